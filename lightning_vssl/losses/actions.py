"""The loss of action localisation: a binary decision per box and class."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from lightning_vssl.nn.gather import all_reduce_sum, world_size

Classes = Literal["sum", "mean"]


def action_loss(
    logits: Tensor, labels: Tensor, present: Tensor, classes: Classes = "sum"
) -> Tensor:
    """Binary cross-entropy of the boxes that exist, averaged over those of all ranks.

    Args:
        logits: (B, N, C).
        labels: 0 or 1, as many of them as a person does, (B, N, C).
        present: Which boxes exist, (B, N) bool; what the others hold does not count.
        classes: What is taken over the classes: the ``sum`` (VideoGLUE, as the mean times 80), or
            the ``mean`` (SlowFast). Their learning rates are meant for it.

    Returns:
        The loss, () float32 or float64; 0 where no rank has a box. With several ranks the mean of
        theirs is the mean over all boxes.

    Raises:
        ValueError: If the shapes do not fit, or ``classes`` is neither.
    """
    if logits.shape != labels.shape or present.shape != logits.shape[:-1]:
        raise ValueError(
            "logits and labels must be (B, N, C) and present (B, N); got "
            f"{tuple(logits.shape)}, {tuple(labels.shape)} and {tuple(present.shape)}"
        )
    if classes not in get_args(Classes):
        raise ValueError(f"classes must be sum or mean, got {classes!r}")
    with torch.autocast(logits.device.type, enabled=False):
        chosen = logits[present].to(torch.promote_types(logits.dtype, torch.float32))  # (M, C)
        every = functional.binary_cross_entropy_with_logits(
            chosen, labels[present].to(chosen), reduction="none"
        )
        total = every.sum() if classes == "sum" else every.mean(-1).sum()
        return world_size() * total / all_reduce_sum(present.sum()).clamp(min=1)
