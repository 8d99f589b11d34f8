"""Accuracy on several variants of the same test videos or pictures, each row counted once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each


def is_right(scores: Tensor, labels: Tensor, superclasses: Tensor | None = None) -> Tensor:
    """Whether the class with the highest score is the right one, or belongs to it.

    Args:
        scores: (B, C), higher is likelier. Of equal scores the lower class is taken.
        labels: (B,) int64.
        superclasses: What each of the C classes counts as, (C,) int64, -1 for never right: the
            labels are of those. None where classes stand for themselves.

    Returns:
        (B,) bool; False where a score is not a number.

    Raises:
        ValueError: If the shapes do not fit.
    """
    batch, classes = scores.shape
    if labels.shape != (batch,) or (superclasses is not None and len(superclasses) != classes):
        raise ValueError(
            f"scores (B, C), labels (B,) and superclasses (C,) do not fit: got "
            f"{tuple(scores.shape)}, {tuple(labels.shape)} and "
            f"{None if superclasses is None else tuple(superclasses.shape)}"
        )
    if superclasses is None:
        superclasses = torch.arange(classes)
    number = torch.arange(classes, device=scores.device)
    highest = scores == scores.amax(dim=1, keepdim=True)  # (B, C), nowhere True with a NaN
    predicted = torch.where(highest, number, classes).amin(dim=1)  # (B,)
    known = predicted < classes
    told = superclasses.to(scores.device)[predicted.clamp(max=classes - 1)]
    return known & (told >= 0) & (told == labels)


def accuracy_by_variant(right: Tensor, variant: Tensor, variants: int) -> Tensor:
    """Share of right answers in each variant.

    Args:
        right: (N,) bool.
        variant: (N,) int64 in [0, variants).
        variants: How many there are.

    Returns:
        (variants,) float64 in [0, 1]; NaN for one without rows.
    """
    rows = torch.bincount(variant, minlength=variants).double()
    hits = torch.bincount(variant[right], minlength=variants)
    return hits.double() / rows


class VariantAccuracy(Metric):
    """Top-1 accuracy in each variant of a test.

    Args:
        variants: Names of the variants.
        row_variants: Which of them each row of the test is, (N,) int64.
        superclasses: See `is_right`.

    Attributes:
        rows: How many different rows of each variant the last ``compute`` counted, over all ranks.
    """

    is_differentiable = False
    full_state_update = False

    right: list[Tensor]
    index: list[Tensor]
    row_variants: Tensor

    def __init__(
        self,
        variants: Sequence[str],
        row_variants: Tensor,
        superclasses: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.variants = tuple(variants)
        self.rows: dict[str, int] = {}
        self.register_buffer("row_variants", row_variants, persistent=False)
        self.superclasses = superclasses
        self.add_state("right", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds rows.

        Args:
            scores: (B, C).
            labels: (B,) int64.
            index: Rows of the test, (B,) int64; one seen before is not counted again.
        """
        self.right.append(is_right(scores.detach(), labels, self.superclasses))
        self.index.append(index)

    def compute(self) -> dict[str, float]:
        """Accuracy in [0, 1] of each variant that has rows; sets ``rows``."""
        if len(self.index) == 0:
            raise ValueError("nothing was added: there is no accuracy")
        index = dim_zero_cat(self.index)
        first = first_of_each(index)
        right, variant = dim_zero_cat(self.right)[first], self.row_variants[index[first]]
        shares = accuracy_by_variant(right, variant, len(self.variants)).tolist()
        counts = torch.bincount(variant, minlength=len(self.variants)).tolist()
        self.rows = {name: n for name, n in zip(self.variants, counts, strict=True) if n}
        return {name: x for name, x, n in zip(self.variants, shares, counts, strict=True) if n}
