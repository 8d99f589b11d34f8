"""Numbers of tracking one object: success and precision of OTB, AO and SR of GOT-10k.

One-pass evaluation is that of Wu, Lim, Yang, "Online Object Tracking: A Benchmark" (CVPR 2013),
AO and SR those of Huang, Zhao, Huang, "GOT-10k" (TPAMI 2021). What their texts leave open is as in
the GOT-10k toolkit, by which VFS and ConST-CL were measured:

- Thresholds of overlap are 0, 0.05, ..., 1 and an overlap must exceed them. Perfect boxes do not
  exceed 1, so that the best success is 20/21.
- The first box counts, as that of the ground truth, whatever was predicted there.
- Boxes are those of the result files: three decimals of left, top, width and height.
- Every sequence weighs the same, however long.

The pysot toolkit, which other papers use, differs; see `one_pass`.
"""

from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Convention = Literal["got10k", "pysot"]
Array = NDArray[np.float64]

PIXELS = 20
"""Distance of centres at which precision is reported."""

_SUCCESS, _PRECISION = 21, 51
_HALF = 10  # entry of the overlap 0.5
_COARSE, _FINE = np.linspace(0, 1, _SUCCESS), np.linspace(0, 1, 101)
_SHARES = np.linspace(0, 0.5, _PRECISION)
_PIXELS = np.arange(_PRECISION, dtype=np.float64)
_NAME = 64  # bytes of a sequence's name, which travels between ranks beside its numbers


def box_overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, box by box.

    Args:
        a: xyxy, (F, 4).
        b: Their counterparts, (F, 4).

    Returns:
        (F,) float64 in [0, 1], on the CPU; 0 for two boxes of no size, NaN where a box is NaN.
    """
    return torch.from_numpy(_overlaps(_array(a), _array(b)))


def _overlaps(a: Array, b: Array) -> Array:
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    both = np.maximum(sides, 0).prod(1)
    either = _sizes(a).prod(1) + _sizes(b).prod(1) - both
    shares: Array = both / (either + np.finfo(np.float64).eps)
    return shares.clip(0, 1)


def _sizes(boxes: Array) -> Array:
    """Widths and heights, (F, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def _array(boxes: Tensor) -> Array:
    """A few hundred boxes at a time: NumPy takes a fifth of the time of torch there."""
    return np.asarray(boxes.detach().cpu().numpy(), np.float64)


def as_written(boxes: Tensor) -> Tensor:
    """Boxes as they come back from a result file, of three decimals.

    Args:
        boxes: xyxy, (F, 4).

    Returns:
        (F, 4) float64.
    """
    table = _array(boxes)
    low, size = table[:, :2].round(3), _sizes(table).round(3)
    return torch.from_numpy(np.concatenate([low, low + size], axis=1))


class OnePass(NamedTuple):
    """Curves of one sequence, or their mean over sequences, float64 in [0, 1].

    Args:
        success: Share of frames whose overlap exceeds 0, 0.05, ..., 1, (21,).
        precision: Share of frames whose centre is at most 0, 1, ..., 50 pixels off, (51,).
        normalised: The same for 0, 0.01, ..., 0.5 of the object's width and height, (51,).
    """

    success: Tensor
    precision: Tensor
    normalised: Tensor

    def scores(self, convention: Convention = "got10k") -> dict[str, float]:
        """The numbers that are reported.

        Args:
            convention: Whose normalised precision: the mean of the curve (``got10k``), or its
                value at 0.2 (``pysot``).

        Returns:
            In [0, 1]: ``success`` (mean of the curve), ``precision`` (at 20 pixels),
            ``normalised_precision`` and ``success_rate`` (overlap above 0.5).
        """
        normalised = self.normalised.mean() if convention == "got10k" else self.normalised[20]
        return {
            "success": float(self.success.mean()),
            "precision": float(self.precision[PIXELS]),
            "normalised_precision": float(normalised),
            "success_rate": float(self.success[_HALF]),
        }


def one_pass(predicted: Tensor, truth: Tensor, convention: Convention = "got10k") -> OnePass:
    """The curves of one sequence.

    ``got10k`` takes the true box for the first frame and judges all of them alike. ``pysot`` takes
    the first frame as it was predicted. Where left, top (counted from 1), width or height of the
    true box is not above 0 it counts the overlap as missed, and where its centre is not it counts
    the distance as 0: such frames are precise without success.

    Args:
        predicted: xyxy in pixels from 0, (F, 4).
        truth: True boxes, (F, 4). Those that are NaN are missed in both conventions, but precise in
            ``pysot``.
        convention: Whose.

    Returns:
        The curves.

    Raises:
        ValueError: If there are fewer or more boxes than frames, or a predicted box is NaN,
            infinite or turned over.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be got10k or pysot, got {convention!r}")
    found, true = _pair(predicted, truth)
    if convention == "got10k":
        found = np.concatenate([true[:1], found[1:]])
    shifts = ((true[:, :2] + true[:, 2:]) - (found[:, :2] + found[:, 2:])) / 2  # 0 for equal boxes
    size = _sizes(true)
    relative = shifts / (np.maximum(size, 1) if convention == "got10k" else size + 1e-16)
    overlaps, distances, normalised = (
        _overlaps(found, true),
        np.hypot(*shifts.T),
        np.hypot(*relative.T),
    )
    if convention == "pysot":
        seen = (true[:, :2] + 1 > 0).all(1) & (size > 0).all(1)
        centred = (true[:, :2] + 1 + (size - 1) / 2 > 0).all(1)  # counted from 1
        overlaps = np.where(seen, overlaps, -1)
        distances = np.where(centred, distances, -1)
        normalised = np.where(centred, normalised, -1)
    frames = len(true)
    curves = (
        np.count_nonzero(~np.isnan(overlaps)) - _at_most(overlaps, _COARSE),
        _at_most(distances, _PIXELS),
        _at_most(normalised, _SHARES if convention == "got10k" else _PIXELS / 100),
    )
    return OnePass(*(torch.from_numpy(counts / frames) for counts in curves))


def inside_frame(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes as the GOT-10k toolkit bounds them by the frame.

    The left and the top edge are moved into the frame and the width and the height are kept where
    they fit: a box that reaches beyond the left edge is shifted, not cut.

    Args:
        boxes: xyxy in pixels from 0, (F, 4).
        size: Height and width of the frame in pixels.

    Returns:
        (F, 4) float64.
    """
    return torch.from_numpy(_inside(_array(boxes), size))


def _inside(boxes: Array, size: tuple[int, int]) -> Array:
    limit = np.array([size[1], size[0]], np.float64)
    low = np.clip(boxes[:, :2], 0, limit)
    return np.concatenate([low, low + np.minimum(_sizes(boxes), limit - low)], axis=1)


def visible_overlaps(
    predicted: Tensor, truth: Tensor, cover: Tensor, size: tuple[int, int]
) -> Tensor:
    """The overlaps of one sequence that GOT-10k counts.

    Args:
        predicted: xyxy in pixels from 0, (F, 4).
        truth: True boxes, (F, 4).
        cover: How much of the object is seen, (F,); frames of 0, or without a true box, are left
            out.
        size: Height and width of the frames in pixels; see `inside_frame`.

    Returns:
        Overlaps of the frames behind the first that show the object, (M,) float64.

    Raises:
        ValueError: If there are fewer or more boxes or labels than frames, or a predicted box is
            NaN, infinite or turned over.
    """
    found, true = _pair(predicted, truth)
    if cover.shape != truth.shape[:1]:
        raise ValueError(f"{len(truth)} frames and {len(cover)} labels of cover")
    seen = (cover.cpu().numpy() > 0) & ~np.isnan(true).any(1)
    seen[0] = False
    return torch.from_numpy(_overlaps(_inside(found[seen], size), _inside(true[seen], size)))


class AnnotatedTrack(Protocol):
    """What a metric wants to know of a sequence, such as `lightning_vssl.data.sequences` has."""

    @property
    def name(self) -> str:
        """Names it; no two of a data set share it."""

    @property
    def boxes(self) -> Tensor:
        """True boxes, xyxy in pixels from 0, (F, 4); NaN where there is none."""

    @property
    def cover(self) -> Tensor | None:
        """How much of the object is seen, (F,), from 0; None counts all frames."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""


class TrackingMetric(Metric):
    """Numbers over sequences, whatever rank tracked them; a rank may have none.

    ``update`` takes a sequence and the boxes that were found in it; a sequence seen twice counts
    once. ``compute`` gives shares in [0, 1] by name and sets the attributes.

    Args:
        rounded: Judge boxes as they stand in a result file, of three decimals.

    Attributes:
        table: Of each sequence, in alphabetical order, the numbers and its ``frames``.
        curves: By name thresholds and the share of frames, of all sequences together.
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor]

    def __init__(self, *, rounded: bool = True) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.rounded = rounded
        # Flat, because what torchmetrics makes up for a rank without rows has one dimension.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.table: dict[str, dict[str, float]] = {}
        self.curves: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, sequence: AnnotatedTrack, predicted: Tensor) -> None:
        """Adds a sequence.

        Args:
            sequence: With its true boxes.
            predicted: xyxy in pixels from 0, (F, 4).

        Raises:
            ValueError: If there are fewer or more boxes than frames, a predicted box is NaN,
                infinite or turned over, or the true boxes are withheld; names the sequence.
        """
        truth = sequence.boxes
        if len(truth) > 1 and np.isnan(_array(truth[1:])).all():
            raise ValueError(
                f"{sequence.name}: the true boxes are withheld; write the result files and send "
                "them to the data set's server"
            )
        boxes = as_written(predicted) if self.rounded else predicted
        name = sequence.name.encode()
        if len(name) > _NAME:
            raise ValueError(f"{sequence.name}: names of sequences have at most {_NAME} bytes")
        try:
            numbers = self._numbers(sequence, boxes, truth)
        except ValueError as error:
            raise ValueError(f"{sequence.name}: {error}") from error
        letters = np.frombuffer(name.ljust(_NAME, b"\0"), np.uint8)
        row = torch.from_numpy(np.concatenate([letters, *numbers]))  # float64
        self.rows.append(row.to(self.device))

    def _numbers(self, sequence: AnnotatedTrack, boxes: Tensor, truth: Tensor) -> list[Array]:
        """What is kept of a sequence, always as many numbers."""
        raise NotImplementedError

    def _gathered(self, count: int) -> tuple[list[str], Tensor]:
        """Names of the sequences, each once, in alphabetical order, and their numbers, (S, N)."""
        if len(self.rows) == 0:
            raise ValueError("no sequence was added: nothing to report")
        table = dim_zero_cat(self.rows).cpu().reshape(-1, _NAME + count)
        letters = table[:, :_NAME].byte().numpy()
        rows = {bytes(name).rstrip(b"\0").decode(): row for row, name in enumerate(letters)}
        names = sorted(rows)
        return names, table[[rows[name] for name in names], _NAME:]


class OnePassEvaluation(TrackingMetric):
    """Success and precision, every sequence of the same weight, by `one_pass`.

    Numbers: see `OnePass.scores`. Curves: ``success``, ``precision``, ``normalised_precision``.

    Args:
        convention: Whose; see `one_pass`.
        rounded: Judge boxes as they stand in a result file, of three decimals.
    """

    def __init__(self, convention: Convention = "got10k", *, rounded: bool = True) -> None:
        super().__init__(rounded=rounded)
        if convention not in get_args(Convention):
            raise ValueError(f"convention must be got10k or pysot, got {convention!r}")
        self.convention: Convention = convention

    def _numbers(self, sequence: AnnotatedTrack, boxes: Tensor, truth: Tensor) -> list[Array]:
        curves = one_pass(boxes, truth, self.convention)
        return [np.array([len(truth)]), *(curve.numpy() for curve in curves)]

    def compute(self) -> dict[str, float]:
        """The scores in [0, 1]; sets the attributes.

        Raises:
            ValueError: If there is no sequence.
        """
        names, numbers = self._gathered(1 + _SUCCESS + 2 * _PRECISION)
        parts = [_SUCCESS, _PRECISION, _PRECISION]
        self.table = {
            name: {
                "frames": float(row[0]),
                **OnePass(*torch.split(row[1:], parts)).scores(self.convention),
            }
            for name, row in zip(names, numbers, strict=True)
        }
        mean = OnePass(*torch.split(numbers[:, 1:].mean(0), parts))
        self.curves = {
            "success": (torch.arange(_SUCCESS) / 20, mean.success),
            "precision": (torch.arange(_PRECISION), mean.precision),
            "normalised_precision": (torch.arange(_PRECISION) / 100, mean.normalised),
        }
        return mean.scores(self.convention)


class AverageOverlap(TrackingMetric):
    """GOT-10k's AO and SR: the frames of all sequences together, by `visible_overlaps`.

    Numbers: ``ao``, ``sr50`` and ``sr75``, of a sequence NaN where none of its frames counts;
    ``frames`` are those that count. Curves: ``success``.

    Args:
        rounded: Judge boxes as they stand in a result file, of three decimals.
    """

    def _numbers(self, sequence: AnnotatedTrack, boxes: Tensor, truth: Tensor) -> list[Array]:
        cover = torch.ones(len(truth)) if sequence.cover is None else sequence.cover
        overlaps = visible_overlaps(boxes, truth, cover, sequence.size).numpy()
        above = len(overlaps) - _at_most(overlaps, _FINE)
        return [np.array([len(overlaps), overlaps.sum()]), above]

    def compute(self) -> dict[str, float]:
        """The scores in [0, 1]; sets the attributes.

        Raises:
            ValueError: If there is no sequence, or none shows its object behind the first frame.
        """
        names, numbers = self._gathered(2 + len(_FINE))
        total = numbers.sum(0)
        if total[0] == 0:
            raise ValueError("no frame behind the first one shows its object: nothing to report")
        self.table = {
            name: {"frames": float(row[0]), **_overlap_scores(row)}
            for name, row in zip(names, numbers, strict=True)
        }
        self.curves = {"success": (torch.from_numpy(_FINE), total[2:] / total[0])}
        return _overlap_scores(total)


def _overlap_scores(row: Tensor) -> dict[str, float]:
    """From frames, the sum of overlaps, and how many exceed 0, 0.01, ..., 1."""
    mean, above = row[1] / row[0], row[2:] / row[0]
    return {"ao": float(mean), "sr50": float(above[50]), "sr75": float(above[75])}


def _at_most(values: Array, limits: Array) -> Array:
    """How many values are at most each limit; NaN, which sorting puts last, is above all."""
    return np.searchsorted(np.sort(values), limits, side="right").astype(np.float64)


def _pair(predicted: Tensor, truth: Tensor) -> tuple[Array, Array]:
    """Predicted and true boxes as arrays; raises where they cannot be judged."""
    if truth.ndim != 2 or truth.shape[1:] != (4,) or len(truth) == 0:
        raise ValueError(f"true boxes must be (F, 4) with F at least 1, got {tuple(truth.shape)}")
    if predicted.shape != truth.shape:
        raise ValueError(
            f"a tracker must give one box for each of the {len(truth)} frames, the first included; "
            f"got {tuple(predicted.shape)}"
        )
    found = _array(predicted)
    sound = np.isfinite(found).all(1) & (found[:, :2] <= found[:, 2:]).all(1)
    if not sound.all():
        frame = int((~sound).argmax())
        raise ValueError(
            f"the box of frame {frame} must be finite xyxy with x0 <= x1 and y0 <= y1, got "
            f"{found[frame].tolist()}"
        )
    return found, _array(truth)
