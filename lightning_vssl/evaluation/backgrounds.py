"""Backgrounds challenges: one trained classifier, tested on several variants of the same data.

The Backgrounds Challenge of pictures (Xiao et al., Noise or Signal, ICLR 2021), and of videos
(PreViTS, section 4.3, Table 4, and supplement): a linear or fine-tuned classifier
(`lightning_vssl.evaluation.recognition`) is trained as always, and a data module that has variants
(`JHMDB`, `MiniKinetics`, `ImageNet9`) has its test report every one of them.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_vssl.metrics.variants import VariantAccuracy


@runtime_checkable
class HasVariants(Protocol):
    """A data module whose test may consist of several variants of the same videos.

    Attributes:
        variants: Their names; none for an ordinary test.
        validated_on_test: Whether validation reads the videos of the test.
    """

    variants: tuple[str, ...]
    validated_on_test: bool

    def row_variants(self) -> Tensor:
        """Which variant each row of the test is, (N,) int64."""


@runtime_checkable
class HasSuperclasses(Protocol):
    """A data module whose test has fewer, larger classes than its training."""

    def superclasses(self, num_classes: int) -> Tensor:
        """Which class of the test each class of the classifier counts as, (C,), -1 for none."""


def variant_accuracy(module: object, num_classes: int) -> VariantAccuracy | None:
    """The metric of a data module's test.

    Args:
        module: The data module.
        num_classes: Classes of the classifier.

    Returns:
        The metric; None where the test has no variants.
    """
    if not isinstance(module, HasVariants) or not module.variants:
        return None
    told = module.superclasses(num_classes) if isinstance(module, HasSuperclasses) else None
    return VariantAccuracy(module.variants, module.row_variants(), told)


def with_gaps(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Adds what the papers derive from the variants.

    Args:
        accuracies: Percent, by variant.

    Returns:
        The same, ``bg_gap``: how much is lost where the background is of another class rather than
        of the same (MIXED-SAME - MIXED-RAND, Xiao et al., section 3), and ``no_fg_drop``: how much
        without the foreground (original - NO-FG, PreViTS, section 4.3); each where both are there.
    """
    gaps = {"bg_gap": ("mixed_same", "mixed_rand"), "no_fg_drop": ("original", "no_fg")}
    return {
        **accuracies,
        **{
            name: accuracies[one] - accuracies[other]
            for name, (one, other) in gaps.items()
            if one in accuracies and other in accuracies
        },
    }
