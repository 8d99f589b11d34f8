"""Losses of a Siamese tracker's response map (SiamFC, Bertinetto et al., ECCV workshops 2016)."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from lightning_vssl.nn.gather import all_reduce_sum, world_size

Distance = Literal["l1", "l2"]


def response_labels(size: tuple[int, int], radius: float, *, distance: Distance = "l1") -> Tensor:
    """Which cells of a response map lie on the target, which stands in the middle.

    Args:
        size: Cells of the map, (H, W). With an even number the middle is between two cells.
        radius: Largest distance to the middle that still counts, in cells, 0 or more.
        distance: ``l2`` is the paper's (section 2.2, the norm of the offset); ``l1``, a diamond, is
            what the PyTorch port has, which VFS trains with.

    Returns:
        (H, W) float32: 1 on the target, 0 elsewhere.

    Raises:
        ValueError: If ``distance`` is unknown, or no cell is positive, or none negative.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be l1 or l2, got {distance!r}")
    down, right = (torch.arange(side) - (side - 1) / 2 for side in size)  # (H,), (W,)
    if distance == "l1":
        away = down.abs()[:, None] + right.abs()[None]  # (H, W)
    else:
        away = (down.square()[:, None] + right.square()[None]).sqrt()
    labels = (away <= radius).float()
    if not 0 < float(labels.sum()) < labels.numel():
        raise ValueError(
            f"radius {radius:g} makes {int(labels.sum())} of the {size[0]} x {size[1]} cells of "
            "the response positive: it needs both kinds; change the radius or the sizes of crops"
        )
    return labels


def balanced_response_loss(responses: Tensor, labels: Tensor) -> Tensor:
    """Logistic loss in which positive and negative cells weigh the same (SiamFC, section 2.2).

    Args:
        responses: Logits, (B, H, W).
        labels: 1 on the target, 0 elsewhere, (H, W).

    Returns:
        The mean over samples of half the mean loss of positive cells plus half that of negative
        ones, a scalar.
    """
    weights = labels / labels.sum() + (1 - labels) / (1 - labels).sum()  # (H, W), sums to 2
    losses = functional.binary_cross_entropy_with_logits(
        responses, labels.expand_as(responses), reduction="none"
    )  # (B, H, W)
    return (losses * weights / 2).sum((1, 2)).mean()


def focal_response_loss(responses: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss over all cells, divided by the sum of its weights, as VFS trains its tracker.

    A cell weighs (1 - p)^gamma, p being the probability given to its true label (Lin et al., ICCV
    2017, equation 4). Division by the weights keeps the loss from vanishing with them; it is
    differentiated too, and sums over the cells of all processes.

    Args:
        responses: Logits, (B, H, W).
        labels: 1 on the target, 0 elsewhere, (H, W).
        gamma: How much less an easy cell weighs, 0 or more.

    Returns:
        A scalar; its mean over processes is the loss of one process with all samples.
    """
    signed = responses * (2 * labels - 1)  # logit of the true label
    weights = torch.sigmoid(-signed).pow(gamma)
    losses = -weights * functional.logsigmoid(signed)
    return world_size() * losses.sum() / all_reduce_sum(weights.sum())
