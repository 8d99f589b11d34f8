"""The attention loss of PreViTS: the network shall look at the object that was tracked.

Source: Chen et al., "PreViTS: Contrastive Pretraining with Video Tracking Supervision" (WACV
2023), section 3.3, Eq. 5: one minus the cosine between the Grad-CAM of the query
(`lightning_vssl.nn.grad_cam`) and the object's mask, brought to the size of that map.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_vssl.nn.gather import all_reduce_sum, world_size

TargetForm = Literal["paper", "official"]
VOID = 255


def tube_target(mask: Tensor, size: tuple[int, ...], form: TargetForm = "paper") -> Tensor:
    """Brings the masks of a clip to the size of a map, as what its Grad-CAM shall look like.

    Args:
        mask: (B, T, h, w), 0 background, 255 void, anything else object; bool or integers.
        size: (T', h', w') of a video net's map, (h', w') of an image net's.
        form: ``paper``: each cell holds the share of object in its part of the clip, over space
            and time (section 3.3, "the same spatial and temporal dimension"). ``official``: the
            mask of the middle frame, T // 2, scaled bilinearly with corners aligned and repeated
            over T', as in the released code.

    Returns:
        (B, *size) float32 in [0, 1]; an image net's is the average over time, or the middle frame.

    Raises:
        ValueError: If a shape or the form does not fit.
    """
    if mask.dim() != 4 or 0 in mask.shape[1:]:
        raise ValueError(f"mask must be (B, T, h, w), none empty; got {tuple(mask.shape)}")
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"size must be (T', h', w') or (h', w'), each at least 1; got {size}")
    if form not in get_args(TargetForm):
        raise ValueError(f"form must be paper or official; got {form!r}")
    times, space = (size[0] if len(size) == 3 else 1), size[-2:]
    with torch.autocast(mask.device.type, enabled=False):
        if form == "official":
            middle = _object(mask[:, mask.shape[1] // 2])
            small = F.interpolate(
                middle[:, None], size=list(space), mode="bilinear", align_corners=True
            )
            target = small.expand(-1, times, -1, -1)
        else:
            target = F.adaptive_avg_pool3d(_object(mask)[:, None], (times, space[0], space[1]))[
                :, 0
            ]
    return target if len(size) == 3 else target[:, 0]


def _object(mask: Tensor) -> Tensor:
    there = mask if mask.dtype == torch.bool else (mask > 0) & (mask != VOID)
    return there.float()


def attention_loss(cam: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """One minus the cosine of maps and masks, the mean over what has a mask (Eq. 5).

    The mean is over the samples of *all* ranks: a rank returns its own sum over the global count
    times the number of ranks, so that the average over ranks that DistributedDataParallel takes
    is the mean of the global batch, however the samples with masks are spread. All ranks must
    call it, since the count is communicated.

    Args:
        cam: Grad-CAM of this rank's samples, (B, *S), not negative.
        target: Their masks at that size, (B, *S), as of `tube_target`.
        valid: Which samples have a true mask, (B,) bool. The others may hold anything, NaN too.
            A sample with an empty target has none either, whatever ``valid`` says.

    Returns:
        The loss, () float32 or float64. An empty map counts with a cosine of 0 and has no
        gradient. Where no sample of any rank has a mask: 0, with gradients of 0.

    Raises:
        ValueError: If the shapes do not fit or ``valid`` is not boolean.
    """
    if cam.dim() < 2 or cam.shape != target.shape or valid.shape != cam.shape[:1]:
        raise ValueError(
            "cam and target must be (B, *S) alike, and valid (B,); got "
            f"{tuple(cam.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}"
        )
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be boolean; got {valid.dtype}")
    with torch.autocast(cam.device.type, enabled=False):
        mask = target.detach().to(cam.dtype if cam.dtype == torch.float64 else torch.float32)
        mask = mask.flatten(1)
        counted = valid & mask.any(1)
        mask = torch.where(counted[:, None], mask, 0)
        looks = torch.where(counted[:, None], cam.flatten(1).to(mask), 0)
        # A cosine has no scale; without one, the squares of a small map would underflow.
        largest = looks.detach().abs().amax(1, keepdim=True)
        looks = looks / torch.where(largest == 0, 1, largest)
        seen = counted & (largest[:, 0] != 0)
        product = looks.square().sum(1) * mask.square().sum(1)
        length = torch.where(seen, product, 1).sqrt()
        cosine = torch.where(seen, (looks * mask).sum(1) / length, 0)
        count = all_reduce_sum(counted.sum().to(cosine)).clamp(min=1)
        return torch.where(counted, 1 - cosine, 0).sum() * world_size() / count
