"""How far a network looks where people look: Spearman correlation of saliency maps.

The score of Linsley et al. (ClickMe, ICLR 2019) and Fel et al. (Harmonization, NeurIPS 2022), which
VITO (A.8) reports: the mean rank correlation over images, divided by that between people.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each

HUMAN_CEILING = 0.65753
"""Mean correlation between people on ClickMe's validation images (Fel et al., released code)."""


def ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension, from 0; equal values share the mean of theirs.

    Args:
        values: (B, N), finite.

    Returns:
        (B, N) float64.
    """
    ordered = values.sort(dim=-1).values.contiguous()
    values = values.contiguous()
    first = torch.searchsorted(ordered, values)
    last = torch.searchsorted(ordered, values, right=True) - 1
    return (first + last).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of pairs of maps.

    Args:
        a: Maps, (B, ...).
        b: Their counterparts, of the same shape.

    Returns:
        (B,) float64 in [-1, 1]; NaN where a map is constant or holds a value that is not finite.

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape or a.dim() < 2:
        raise ValueError(
            f"a and b must be (B, ...) alike; got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    x, y = a.flatten(1), b.flatten(1)
    finite = x.isfinite().all(1) & y.isfinite().all(1)
    x, y = ranks(x.nan_to_num()), ranks(y.nan_to_num())
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    product = (x.square().sum(1) * y.square().sum(1)).sqrt()
    rho = (x * y).sum(1) / product  # 0 / 0 where a map is constant
    return torch.where(finite, rho, torch.nan)


class HumanAlignment(Metric):
    """Mean Spearman correlation with people's maps, and its share of what people reach.

    ``update`` takes the network's maps (B, H, W), people's (B, H, W) and manifest rows (B,);
    ``compute`` gives ``spearman``, the mean over images, and ``alignment``, that over the ceiling.
    Rows seen twice count once; an image of which one map is constant has no correlation and is
    left out, counted in ``undefined``.

    Args:
        ceiling: Correlation between people, in (0, 1].

    Attributes:
        images: How many images the last ``compute`` counted, over all ranks.
        undefined: How many of them have no correlation.

    Raises:
        ValueError: If the ceiling is out of its range.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correlations: list[Tensor]
    index: list[Tensor]

    def __init__(self, ceiling: float = HUMAN_CEILING) -> None:
        super().__init__()
        if not 0 < ceiling <= 1:
            raise ValueError(f"ceiling must lie in (0, 1], got {ceiling}")
        self.ceiling = ceiling
        self.images = 0
        self.undefined = 0
        self.add_state("correlations", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, maps: Tensor, human: Tensor, index: Tensor) -> None:
        """Adds images."""
        self.correlations.append(spearman(maps.detach(), human))
        self.index.append(index)

    def compute(self) -> dict[str, float]:
        """The two numbers, as fractions.

        Raises:
            ValueError: If no image has a correlation.
        """
        if len(self.index) == 0:
            raise ValueError("no images were added: nothing to compare")
        keep = first_of_each(dim_zero_cat(self.index))
        rho = dim_zero_cat(self.correlations)[keep]
        defined = rho[rho.isfinite()]
        self.images, self.undefined = len(rho), len(rho) - len(defined)
        if not len(defined):
            raise ValueError(
                f"all of the {len(rho)} saliency maps, or the maps of people, are constant: there "
                "is no correlation (attention that was never trained is constant)"
            )
        mean = float(defined.mean())
        return {"spearman": mean, "alignment": mean / self.ceiling}
