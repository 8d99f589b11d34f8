"""ConST-CL's contrast between regions (Yuan et al., CVPR 2022, Eq. 2, 3 and 6).

As in `lightning_vssl.losses.info_nce`, vectors are L2-normalised here, in float32 whatever the
autocast (float64 stays). Letters: B videos, N and M regions, D channels.
"""

import torch
from torch import Tensor

from lightning_vssl.losses.info_nce import unit
from lightning_vssl.nn.gather import all_reduce_sum, gather, rank, world_size


@torch.no_grad()
def nearest_regions(regions: Tensor, others: Tensor, valid: Tensor) -> Tensor:
    """Pairs each region with the one of the other view that is most like it (Eq. 2 and 6).

    The paper prints an argmin of a dot product, which would pair the least alike; its text
    ("closest in the feature space") and the authors' code take the argmax, as here.

    Args:
        regions: Region features of one view, (B, N, D).
        others: Those of the other view of the same videos, (B, M, D).
        valid: Which of the others exist, (B, M) bool.

    Returns:
        Index into M, (B, N) int64; 0 where a video has none.
    """
    with torch.autocast(regions.device.type, enabled=False):
        likeness = unit(regions) @ unit(others).transpose(1, 2)  # (B, N, M)
    return likeness.masked_fill(~valid[:, None], -torch.inf).argmax(dim=-1)


def region_info_nce(
    predicted: Tensor,
    targets: Tensor,
    pairs: Tensor,
    valid: Tensor,
    valid_targets: Tensor,
    temperature: float = 0.2,
) -> Tensor:
    """InfoNCE of predicted regions against the regions of all other videos (Eq. 2 and 6).

    The positive of a region is the target it is paired with; the negatives are all regions of the
    target view of every *other* video on all ranks: other regions of its own video are left out.
    (The paper prints h'_i in the denominator's positive, and sums negatives over i; read as h'_j
    and as a sum over k.) The mean is over all regions of all ranks that exist and have a target.

    Args:
        predicted: z, (B, N, D) of this rank's videos.
        targets: h' of the target view, (B, M, D); gradients flow into them, here and through the
            gather.
        pairs: Index of each region's positive, (B, N), as `nearest_regions` gives it.
        valid: Which regions exist, (B, N) bool.
        valid_targets: Which targets exist, (B, M) bool.
        temperature: Above 0; 0.2 in the paper.

    Returns:
        The loss, () float32 or float64; 0 where no region exists.

    Raises:
        ValueError: If a shape or the temperature does not fit.
    """
    _check(predicted, targets, pairs, valid, valid_targets, temperature)
    videos = len(predicted)
    with torch.autocast(predicted.device.type, enabled=False):
        z, h = unit(predicted), unit(targets)
        h = torch.where(valid_targets[..., None], h, 0)  # what is missing may be anything
        everyone, there = gather(h), gather(valid_targets)  # (B_global, M, D), (B_global, M)
        own = h.gather(1, pairs[..., None].expand(-1, -1, h.shape[-1]))  # (B, N, D)
        positive = (z * own).sum(-1, keepdim=True) / temperature  # (B, N, 1)
        cosines = torch.einsum("bnd,gmd->bngm", z, everyone) / temperature
        row = rank() * videos + torch.arange(videos, device=z.device)
        other = torch.arange(len(everyone), device=z.device) != row[:, None]  # (B, B_global)
        keep = other[:, None, :, None] & there[None, None]  # (B, 1, B_global, M)
        negatives = cosines.masked_fill(~keep, -torch.inf).flatten(2)  # (B, N, B_global * M)
        losses = torch.cat([positive, negatives], dim=2).logsumexp(2) - positive[..., 0]  # (B, N)
        counted = valid & valid_targets.any(1, keepdim=True)
        count = all_reduce_sum(counted.sum().to(losses)).clamp(min=1)
        return torch.where(counted, losses, 0).sum() * world_size() / count


def _check(
    predicted: Tensor,
    targets: Tensor,
    pairs: Tensor,
    valid: Tensor,
    valid_targets: Tensor,
    temperature: float,
) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    shapes = {
        "predicted": tuple(predicted.shape),
        "targets": tuple(targets.shape),
        "pairs": tuple(pairs.shape),
        "valid": tuple(valid.shape),
        "valid_targets": tuple(valid_targets.shape),
    }
    fits = (
        predicted.dim() == 3
        and targets.dim() == 3
        and predicted.shape[::2] == targets.shape[::2]
        and pairs.shape == valid.shape == predicted.shape[:2]
        and valid_targets.shape == targets.shape[:2]
    )
    if not fits:
        raise ValueError(
            "predicted must be (B, N, D), targets (B, M, D), pairs and valid (B, N), "
            f"valid_targets (B, M); got {shapes}"
        )
