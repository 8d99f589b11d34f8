"""Accuracy of a classifier over videos, each counted once.

torchmetrics' classification accuracy cannot tell that a sample came twice, and a distributed
sampler repeats samples to give every rank as many. So the state here is, for each video, the rank
of its class among the scores: small, and enough for any top-k.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each


def rank_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one.

    Args:
        scores: (..., B, C), higher is likelier.
        labels: (B,) int64 in [0, C).

    Returns:
        (..., B) int64 in [0, C]: 0 when the right class has the highest score. Of equal scores
        the lower class comes first, as in an arg max. Scores that are not numbers give C.

    Raises:
        ValueError: If the shapes do not fit or a label is out of range.
    """
    classes = scores.shape[-1]
    if scores.ndim < 2 or labels.shape != scores.shape[-2:-1]:
        raise ValueError(
            f"scores (..., B, C) and labels (B,) do not fit: got {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if labels.numel() > 0 and not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(
            f"labels must lie in [0, {classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    column = labels[:, None].expand(*scores.shape[:-1], 1)  # (..., B, 1)
    right = scores.gather(-1, column)
    earlier = torch.arange(classes, device=scores.device) < column  # (..., B, C)
    rank = ((scores > right) | ((scores == right) & earlier)).sum(dim=-1)
    return rank.masked_fill(scores.isnan().any(dim=-1), classes)


class VideoAccuracy(Metric):
    """Top-k accuracy of one or several classifiers over the same videos.

    Args:
        classifiers: How many classifiers are scored side by side (G).
        topk: The k to report.

    Attributes:
        videos: How many different videos the last ``compute`` counted, over all ranks.
    """

    is_differentiable = False
    full_state_update = False

    rank: list[Tensor]
    index: list[Tensor]

    def __init__(self, classifiers: int = 1, topk: Sequence[int] = (1, 5)) -> None:
        super().__init__()
        if classifiers < 1:
            raise ValueError(f"classifiers must be at least 1, got {classifiers}")
        if not topk or min(topk) < 1:
            raise ValueError(f"topk must name at least one k, each above 0, got {tuple(topk)}")
        self.classifiers = classifiers
        self.topk = tuple(topk)
        self.videos = 0
        self.add_state("rank", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds videos.

        Args:
            scores: (G, B, C), or (B, C) with one classifier.
            labels: (B,) int64.
            index: Row of the manifest, (B,) int64; a row seen before is not counted again.
        """
        if scores.ndim == 2:
            scores = scores[None]
        if scores.shape[0] != self.classifiers:
            raise ValueError(
                f"scores must come from {self.classifiers} classifiers, got {scores.shape[0]}"
            )
        self.rank.append(rank_of_label(scores.detach(), labels).T)  # (B, G)
        self.index.append(index)

    def compute(self) -> dict[int, list[float]]:
        """For each k the accuracy in [0, 1] of each classifier; sets ``videos``."""
        if len(self.index) == 0:
            raise ValueError("no videos were added: there is no accuracy")
        rank = dim_zero_cat(self.rank)[first_of_each(dim_zero_cat(self.index))]  # (N, G)
        self.videos = rank.shape[0]
        return {k: (rank < k).double().mean(dim=0).tolist() for k in self.topk}
