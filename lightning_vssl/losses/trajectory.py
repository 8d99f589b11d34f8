"""The loss of Catch-the-Patch: how far a predicted trajectory is from the true one.

Source: Wang et al., "Unsupervised Visual Representation Learning by Tracking Patches in Video"
(CVPR 2021), section 3.1 and 3.2. The printed equations use the second target for the width and
the third for the height; the third and fourth are meant, since the first two are the centre's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = (0.8, 0.8, 0.04, 0.04)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Splits xyxy boxes into centres and sizes of at least one pixel."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, (high - low).clamp(min=1)


def encode(
    boxes: Tensor, query: Tensor, sigma: tuple[float, float, float, float] = SIGMA
) -> Tensor:
    """Expresses trajectories relative to their query boxes (section 3.2).

    Args:
        boxes: Trajectories, (..., T, 4), xyxy in pixels.
        query: The box of the first frame, (..., 4), xyxy in pixels.
        sigma: Scales of the centre's x and y (pixels) and of the logarithms of width and height.

    Returns:
        Targets, (..., T, 4): offsets of the centre and log ratios of the size, over ``sigma``.
    """
    centre, size = _centre_and_size(boxes)
    query_centre, query_size = _centre_and_size(query)
    shift = centre - query_centre.unsqueeze(-2)
    ratio = size.log() - query_size.log().unsqueeze(-2)
    return torch.cat([shift, ratio], dim=-1) / boxes.new_tensor(sigma)


def decode(
    targets: Tensor, query: Tensor, sigma: tuple[float, float, float, float] = SIGMA
) -> Tensor:
    """Turns predicted targets back into boxes; the inverse of `encode`.

    Args:
        targets: (..., T, 4), as `encode` returns.
        query: The box of the first frame, (..., 4), xyxy in pixels.
        sigma: The scales that the targets were made with.

    Returns:
        Boxes, (..., T, 4), xyxy in pixels.
    """
    targets = targets * targets.new_tensor(sigma)
    query_centre, query_size = _centre_and_size(query)
    centre = query_centre.unsqueeze(-2) + targets[..., :2]
    half = query_size.unsqueeze(-2) * targets[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def trajectory_loss(
    predicted: Tensor, target: Tensor, weights: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Smooth-L1 distance between predicted and true targets, in float32 or better.

    The paper divides the sum over trajectories by their number alone; the authors' code also
    divides by the number of frames, which is what makes the learning rate of 0.01 fit.

    Args:
        predicted: Predicted targets, (B, K, T, 4).
        target: True targets, (B, K, T, 4).
        weights: Weight of each frame, (B, K, T); 0 leaves a frame out.
        count: Sum of the weights that the mean divides by, a scalar: over all ranks, divided by
            their number, when the gradients are averaged over ranks. At least 1 is used.

    Returns:
        The loss of the centres and the loss of the sizes, two scalars whose sum is the loss.
    """
    if predicted.dtype in (torch.float16, torch.bfloat16):
        predicted = predicted.float()
    distance = F.smooth_l1_loss(predicted, target.to(predicted), reduction="none", beta=1.0)
    distance = distance * weights.to(predicted)[..., None]
    count = count.to(predicted).clamp(min=1)
    return distance[..., :2].sum() / count, distance[..., 2:].sum() / count
