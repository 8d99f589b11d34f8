"""Region similarity J and contour accuracy F of followed masks, as DAVIS defines them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge", 2017; in every corner as the official
evaluation (davis2017-evaluation) computes them. All objects of a frame are scored at once: each is
a bit of one byte per pixel, so that outlining, and dilating by a disc, is a few dozen passes of OR
over the part of the frame where objects are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each

VOID = 255
TOLERANCE = 0.008
"""How far contours may lie apart, as a share of the frame's diagonal (Pont-Tuset et al.)."""

_Mask = NDArray[np.uint8]
_Counts = NDArray[np.int64]
_BITS = 8


class Statistics(NamedTuple):
    """What becomes of one value per frame.

    Attributes:
        mean: Over the frames.
        recall: Share of the frames with more than 0.5.
        decay: Mean of the first quarter of the frames less that of the last.
    """

    mean: float
    recall: float
    decay: float


def statistics(values: Sequence[float] | NDArray[np.float64]) -> Statistics:
    """Mean, recall and decay over the frames of an object.

    Quarters are cut at rounded places and hold both ends, so that neighbours share a frame. NaN is
    left out of mean and decay, and counts as a miss in recall. Differs from the official code where
    a sequence has more than 256 frames: it cuts the places down to a byte there.

    Args:
        values: (T,), one for each frame.

    Returns:
        The three numbers; NaN where nothing is left to average.
    """
    series = np.asarray(values, dtype=np.float64)
    if not len(series):
        return Statistics(np.nan, np.nan, np.nan)
    edges = (np.round(np.linspace(1, len(series), 5) + 1e-10) - 1).astype(np.int64)
    first, last = series[edges[0] : edges[1] + 1], series[edges[3] : edges[4] + 1]
    return Statistics(
        _mean(series), float((series > 0.5).mean()), float(_mean(first) - _mean(last))
    )


def _mean(values: NDArray[np.float64]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else np.nan


def tolerance_radius(height: int, width: int, tolerance: float = TOLERANCE) -> int:
    """How far contours of a frame may lie apart, in pixels.

    Args:
        height: Of the frame.
        width: Of the frame.
        tolerance: Below 1 a share of the diagonal, rounded up (8 pixels at 854 x 480); from 1 on
            pixels.

    Raises:
        ValueError: If it is not above 0.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    return int(tolerance if tolerance >= 1 else np.ceil(tolerance * np.hypot(height, width)))


class FrameScores(NamedTuple):
    """J and F of every object of a frame, (K,) float64 each."""

    region: NDArray[np.float64]
    contour: NDArray[np.float64]


def score_frame(
    truth: _Mask,
    mask: _Mask,
    objects: int,
    *,
    void: NDArray[np.bool_] | None = None,
    tolerance: float = TOLERANCE,
) -> FrameScores:
    """J and F of every object of one frame.

    Args:
        truth: Ids, (H, W) uint8; ids above ``objects``, 255 among them, are background.
        mask: Predicted ids, (H, W) uint8, alike.
        objects: Number of objects K; ids are 1 to K.
        void: Pixels that count for nothing, (H, W).
        tolerance: See `tolerance_radius`.

    Returns:
        J, 1 where neither mask has a pixel of the object, and F, 1 where neither has a contour
        and 0 where one of them has none.

    Raises:
        ValueError: If the shapes differ, arrays are not uint8, or ``objects`` is not 1 to 254.
    """
    _check(truth, mask, objects, void)
    height, width = truth.shape
    radius = tolerance_radius(height, width, tolerance)
    region, contour = [], []
    for start in range(1, objects + 1, _BITS):  # eight objects fit one byte
        count = min(_BITS, objects + 1 - start)
        bits = np.zeros(256, np.uint8)
        bits[start : start + count] = 1 << np.arange(count)
        there, found = (_packed(one, bits, void) for one in (truth, mask))
        rows, columns = _box(there | found)
        there, found = there[rows, columns], found[rows, columns]
        region.append(_region(there, found, count))
        contour.append(_contour(there, found, count, radius))
    return FrameScores(np.concatenate(region), np.concatenate(contour))


def _check(truth: _Mask, mask: _Mask, objects: int, void: NDArray[np.bool_] | None) -> None:
    shapes = {one.shape for one in (truth, mask, void) if one is not None}
    if truth.ndim != 2 or len(shapes) > 1:
        raise ValueError(f"truth, mask and void must be (H, W) alike; got {sorted(shapes)}")
    if truth.dtype != np.uint8 or mask.dtype != np.uint8:
        raise ValueError(f"truth and mask must be uint8; got {truth.dtype} and {mask.dtype}")
    if not 1 <= objects < VOID:
        raise ValueError(f"objects must be 1 to 254, got {objects}")


def _packed(ids: _Mask, bits: _Mask, void: NDArray[np.bool_] | None) -> _Mask:
    """A bit for each object, (H, W)."""
    packed: _Mask = np.take(bits, ids)
    if void is not None:
        packed[void] = 0
    return packed


def _box(packed: _Mask) -> tuple[slice, slice]:
    """Rows and columns that hold every object and a pixel around it; none if there is no object."""
    rows = np.flatnonzero(packed.any(1))
    if not len(rows):
        return slice(0), slice(0)
    columns = np.flatnonzero(np.bitwise_or.reduce(packed[rows[0] : rows[-1] + 1]))
    down, across = (slice(max(i[0] - 1, 0), i[-1] + 2) for i in (rows, columns))
    return down, across


def _counted(packed: _Mask, count: int) -> _Counts:
    """How many entries have each bit, (count,)."""
    bits = ((packed >> bit & 1).view(np.bool_) for bit in range(count))
    return np.array([np.count_nonzero(one) for one in bits])


def _region(there: _Mask, found: _Mask, count: int) -> NDArray[np.float64]:
    both, either = _counted(there & found, count), _counted(there | found, count)
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def _contour(there: _Mask, found: _Mask, count: int, radius: int) -> NDArray[np.float64]:
    truth, mask = _Contour(there, radius), _Contour(found, radius)
    wanted, drawn = _counted(truth.values, count), _counted(mask.values, count)
    recall = _counted(truth.values & mask.near(truth.places), count) / np.maximum(wanted, 1)
    precision = _counted(mask.values & truth.near(mask.places), count) / np.maximum(drawn, 1)
    total = precision + recall
    f = 2 * precision * recall / np.where(total == 0, 1, total)
    return np.where((wanted == 0) & (drawn == 0), 1.0, f)


class _Contour:
    """The contours of packed masks, and where they are near.

    A pixel is on the contour if its right, lower or lower right neighbour is another: the map is
    not symmetric, and what fills the frame has none.

    Attributes:
        places: Where contours are, indices into the padded map.
        values: Which objects' they are, packed.
    """

    def __init__(self, packed: _Mask, radius: int) -> None:
        height, width = packed.shape
        self._radius = radius
        self._stride = width + 2 * radius  # so that no run reaches into the next row
        padded: _Mask = np.zeros((height + 2 * radius, self._stride), np.uint8)
        own = padded[radius : radius + height, radius : radius + width]
        here, right = packed[:-1, :-1], packed[:-1, 1:]
        own[:-1, :-1] = (here ^ right) | (here ^ packed[1:, :-1]) | (here ^ packed[1:, 1:])
        own[-1:, :-1] = packed[-1:, :-1] ^ packed[-1:, 1:]
        own[:-1, -1:] = packed[:-1, -1:] ^ packed[1:, -1:]
        self._flat = padded.ravel()
        self.places = np.flatnonzero(self._flat != 0)
        self.values = self._flat[self.places]

    def near(self, places: NDArray[np.int64]) -> _Mask:
        """Whose contours are at most the tolerance away from some places, packed."""
        rows = np.arange(-self._radius, self._radius + 1)
        halves = np.sqrt(self._radius**2 - rows**2 + 0.5).astype(np.int64)  # of the disc's rows
        runs = self._runs({2 * int(half) + 1 for half in halves})
        hit = np.zeros(len(places), np.uint8)
        for row, half in zip(rows, halves, strict=True):
            hit |= runs[2 * half + 1].take(places + (row * self._stride - half))
        return hit

    def _runs(self, lengths: set[int]) -> dict[int, _Mask]:
        """OR over as many pixels as asked for, from each on."""
        made: dict[int, _Mask] = {}
        run, length = self._flat, 1
        for wanted in sorted(lengths):
            while 2 * length <= wanted:
                run, length = run[:-length] | run[length:], 2 * length
            rest = wanted - length
            made[wanted] = run[: len(run) - rest] | run[rest:] if rest else run
        return made


def score_sequence(
    truth: Sequence[_Mask],
    masks: Sequence[_Mask],
    *,
    tolerance: float = TOLERANCE,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """J and F of every object in every frame, but the first and the last, as the benchmark has it.

    There are as many objects as the largest id of the first frame's truth, 255 apart; an object
    that appears later under a larger id is background. Void counts as background.

    Args:
        truth: Ids of all frames T, (H, W) uint8 each.
        masks: Predicted ids, alike; those of the first and the last frame are not looked at.
        tolerance: See `tolerance_radius`.

    Returns:
        J and F, (K, T - 2) float64 each.

    Raises:
        ValueError: If there are fewer than three frames or not as many masks, the first frame has
            no object, a mask has an id that the first frame's truth lacks, or shapes differ.
    """
    if len(truth) != len(masks) or len(truth) < 3:
        raise ValueError(
            f"truth and masks must be of the same three frames or more, the first and the last are "
            f"not scored; got {len(truth)} and {len(masks)}"
        )
    objects = int(np.where(truth[0] == VOID, 0, truth[0]).max())
    if objects == 0:
        raise ValueError("the first frame's truth has no object: there is nothing to follow")
    scores = []
    for number in range(1, len(truth) - 1):
        largest = int(masks[number].max(initial=0))
        if largest > objects:
            raise ValueError(
                f"the mask of frame {number} has the id {largest}, and the first frame's truth "
                f"names {objects} objects"
            )
        scores.append(score_frame(truth[number], masks[number], objects, tolerance=tolerance))
    region, contour = (np.stack(series, axis=1) for series in zip(*scores, strict=True))
    return region, contour


@dataclass(frozen=True)
class SequenceScores:
    """What one sequence reached.

    Attributes:
        index: Number of the sequence in its data set.
        region: J of each object.
        contour: F of each object.
    """

    index: int
    region: tuple[Statistics, ...]
    contour: tuple[Statistics, ...]


class RegionAndContour(Metric):
    """J, F and their mean over all objects of all sequences: DAVIS-2017's numbers.

    ``update`` takes the ids of one sequence, true and predicted, (T, H, W) uint8, and its number in
    the data set; ``compute`` gives, as fractions, ``J&F``, ``J_mean``, ``J_recall``, ``J_decay``,
    ``F_mean``, ``F_recall`` and ``F_decay``. Statistics are taken over the frames of each object,
    then the mean over objects, however many a sequence has. DAVIS-2016 has one object in each:
    there it is the mean over sequences. A sequence seen twice counts once.

    Args:
        tolerance: See `tolerance_radius`.

    Attributes:
        sequences: What each sequence reached that the last ``compute`` counted, over all ranks, by
            index.

    Raises:
        ValueError: If the tolerance is not above 0.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    rows: list[Tensor]

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        super().__init__()
        tolerance_radius(1, 1, tolerance)
        self.tolerance = tolerance
        self.sequences: tuple[SequenceScores, ...] = ()
        # Index, object, then mean, recall and decay of J and of F, one object after the other: flat
        # and float64, because torchmetrics makes up such a tensor for a rank without sequences.
        self.set_dtype(torch.float64)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, truth: Tensor, masks: Tensor, index: int) -> None:
        """Adds a sequence; see `score_sequence` for what is refused."""
        pair = (one.cpu().numpy() for one in (truth, masks))
        region, contour = score_sequence(*(list(one) for one in pair), tolerance=self.tolerance)
        rows = [
            [index, number, *statistics(j), *statistics(f)]
            for number, (j, f) in enumerate(zip(region, contour, strict=True), start=1)
        ]
        self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device).flatten())

    def compute(self) -> dict[str, float]:
        """The seven numbers, as fractions.

        Raises:
            ValueError: If no sequence was added.
        """
        if len(self.rows) == 0:
            raise ValueError("no sequence was added: nothing to compare")
        table = dim_zero_cat(self.rows).reshape(-1, 8)
        table = table[first_of_each((table[:, 0] * 256 + table[:, 1]).long())]
        self.sequences = tuple(
            _scores(table[table[:, 0] == index]) for index in sorted(set(table[:, 0].tolist()))
        )
        names = [f"{measure}_{name}" for measure in "JF" for name in Statistics._fields]
        numbers = dict(zip(names, table[:, 2:].mean(0).tolist(), strict=True))
        return {"J&F": (numbers["J_mean"] + numbers["F_mean"]) / 2, **numbers}


def _scores(rows: Tensor) -> SequenceScores:
    """From the rows of one sequence, its objects in order."""
    own = rows[rows[:, 1].argsort()].tolist()
    return SequenceScores(
        int(own[0][0]),
        tuple(Statistics(*row[2:5]) for row in own),
        tuple(Statistics(*row[5:]) for row in own),
    )
