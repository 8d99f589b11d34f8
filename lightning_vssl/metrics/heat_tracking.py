"""How well a coarse heat map follows an object: DAVIS-2016's J of the mask that is made of it.

PreViTS (Chen et al., WACV 2023, section 4.5 and Table 6) scores Grad-CAM maps of 7 x 7 cells with
J, and neither the paper nor the released code says how such a map becomes a mask. Here it is
brought to [0, 1] over its own cells, scaled bilinearly to the frame and cut at one half. Since the
number hangs on that choice, `HeatTracking` tells what other thresholds give, what a mask as large
as the first frame's gives, and the floor: the first frame's mask, left where it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each
from lightning_vssl.metrics.segmentation import Statistics, statistics
from lightning_vssl.nn.grad_cam import resize_cam

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

_VOID = 255
_RULES = 256  # more than there are ways to make a mask


def unit_range(heat: Tensor) -> Tensor:
    """Brings each map to [0, 1] over its own cells; one without any difference becomes zeros.

    Args:
        heat: (B, h, w).

    Returns:
        (B, h, w) float64.
    """
    values = heat.double()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return torch.where(high > low, (values - low) / (high - low), 0)


def heat_masks(heat: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """The step from map to mask: [0, 1], bilinear to the frame, above the threshold.

    Args:
        heat: (B, h, w).
        size: Height and width of the frame.
        threshold: In [0, 1).

    Returns:
        (B, H, W) bool; nothing where a map has no difference in it.

    Raises:
        ValueError: If the threshold is out of its range.
    """
    _check_threshold(threshold)
    return resize_cam(unit_range(heat), size) > threshold


def region(masks: Tensor, truth: Tensor) -> Tensor:
    """J, intersection over union; 1 where neither has a pixel.

    Args:
        masks: (..., H, W) bool.
        truth: (..., H, W) bool.

    Returns:
        (...) float64.
    """
    both = (masks & truth).flatten(-2).sum(-1)
    either = (masks | truth).flatten(-2).sum(-1)
    return torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)


def heat_regions(
    heat: Tensor, truth: Tensor, thresholds: Sequence[float], area: int
) -> tuple[Tensor, Tensor]:
    """J of one map for every way to make a mask of it.

    Args:
        heat: (h, w).
        truth: Where the object is, (H, W) bool.
        thresholds: See `heat_masks`.
        area: Of the mask that takes the hottest pixels, how many; where several are as hot as the
            last of them, all of these.

    Returns:
        (K,) float64 by threshold, and that of the hottest pixels, a single number.
    """
    height, width = truth.shape
    large = resize_cam(unit_range(heat[None]), (height, width))[0]
    levels = large.new_tensor(list(thresholds))[:, None, None]
    last = large.flatten().kthvalue(large.numel() - min(area, large.numel()) + 1).values
    hottest = (large >= last) & (large > 0)
    return region(large > levels, truth), region(hottest, truth)


class Sensitivity(NamedTuple):
    """Mean J of other masks than the one that is reported.

    Attributes:
        by_threshold: For each threshold.
        first_area: Of as many of the hottest pixels as the first frame's mask has.
        first_mask: Of the first frame's mask itself, left where it is: what any tracker must beat.
    """

    by_threshold: dict[float, float]
    first_area: float
    first_mask: float

    @property
    def best(self) -> tuple[float, float]:
        """The best threshold, known only in hindsight, and its mean J."""
        return max(self.by_threshold.items(), key=lambda item: item[1])


class HeatTracking(Metric):
    """J of masks made of heat maps, by DAVIS-2016's rules: mean over sequences.

    ``update`` takes the maps (T - 2, h, w) of all frames of a sequence but the first and the last,
    which the benchmark leaves out, the true masks (T, H, W) of all of them, and the sequence's
    number in its data set; ``compute`` gives ``J_mean``, ``J_recall`` and ``J_decay`` as fractions,
    each over the frames of a sequence first. All objects of a mask are one; 255 is background. A
    sequence seen twice counts once.

    Differs from PreViTS in two words: it calls recall a share of sequences, where DAVIS's is a
    share of frames, and decay the last quarter's J less the first's, where DAVIS has the opposite
    sign. "Our evaluation metrics follow" DAVIS, so they do here.

    Args:
        threshold: Where the reported mask is cut; see `heat_masks`.
        thresholds: Where else, for `sensitivity`.

    Raises:
        ValueError: If a threshold is out of [0, 1).
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    rows: list[Tensor]

    def __init__(self, threshold: float = 0.5, thresholds: Sequence[float] = THRESHOLDS) -> None:
        super().__init__()
        for value in (threshold, *thresholds):
            _check_threshold(value)
        self.threshold = threshold
        self.thresholds = tuple(thresholds)
        # Index, number of the rule, then mean, recall and decay of J. The rules: the reported
        # threshold, the others, the hottest pixels, the first mask.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self._gathered = torch.empty(0, 0, 5)
        self.reset()

    def reset(self) -> None:
        """Forgets all sequences."""
        super().reset()
        # A rank without a sequence must gather a table as the others do, if an empty one.
        self.rows = [torch.empty(0, 5, dtype=torch.float64, device=self.device)]

    def update(self, heat: Tensor, truth: Tensor, index: int) -> None:
        """Adds a sequence.

        Raises:
            ValueError: If there are fewer than three frames, not as many maps as frames without
                the first and the last, or no object in the first frame.
        """
        if len(truth) < 3 or len(heat) != len(truth) - 2:
            raise ValueError(
                f"heat must have a map for each of the {len(truth)} frames, three or more, but the "
                f"first and the last; got {len(heat)}"
            )
        there = (truth != 0) & (truth != _VOID)
        area = int(there[0].sum())
        if area == 0:
            raise ValueError("the first frame's mask has no object: there is nothing to follow")
        levels = [self.threshold, *self.thresholds]
        values = []
        for cells, object_there in zip(heat, there[1:-1], strict=True):
            cut, hottest = heat_regions(cells, object_there.to(heat.device), levels, area)
            values.append(torch.cat([cut, hottest[None]]))
        stayed = region(there[:1], there[1:-1])
        table = torch.cat([torch.stack(values, dim=1).cpu(), stayed[None].cpu()])  # (rules, T - 2)
        rows = [[index, rule, *statistics(row.numpy())] for rule, row in enumerate(table)]
        self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, float]:
        """The three numbers, as fractions.

        Raises:
            ValueError: If no sequence was added.
        """
        rows = dim_zero_cat(self.rows)
        if len(rows) == 0:
            raise ValueError("no sequence was added: nothing to compare")
        names = (rows[:, 0] * _RULES + rows[:, 1]).long()
        kept = first_of_each(names)
        kept = kept[names[kept].argsort()]
        self._gathered = rows[kept].view(-1, len(self.thresholds) + 3, rows.shape[1])
        values = self._gathered[:, 0, 2:].mean(0).tolist()
        return {f"J_{n}": v for n, v in zip(Statistics._fields, values, strict=True)}

    def sensitivity(self) -> Sensitivity:
        """What other masks give, of the sequences that the last ``compute`` counted."""
        means = self._gathered[:, 1:, 2].mean(0).tolist()
        return Sensitivity(
            dict(zip(self.thresholds, means[:-2], strict=True)), means[-2], means[-1]
        )

    def sequences(self) -> dict[int, Statistics]:
        """What each sequence reached, by index, of those that the last ``compute`` counted."""
        return {int(row[0]): Statistics(*row[2:]) for row in self._gathered[:, 0].tolist()}


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
