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
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Convention = Literal["got10k", "pysot"]

PIXELS = 20
"""Distance of centres at which precision is reported."""

_SUCCESS, _PRECISION = 21, 51
_HALF = 10  # entry of the overlap 0.5
_FINE = np.linspace(0, 1, 101)
_NAME = 64  # bytes of a sequence's name, which travels between ranks beside its numbers


def box_overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, box by box.

    Args:
        a: xyxy, (F, 4).
        b: Their counterparts, (F, 4).

    Returns:
        (F,) float64 in [0, 1]; 0 for two boxes of no size, NaN where a box is NaN.
    """
    a, b = a.double(), b.double()
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    both = sides.prod(1)
    either = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return (both / (either + torch.finfo(torch.float64).eps)).clamp(0, 1)


def centre_shifts(a: Tensor, b: Tensor) -> Tensor:
    """From the centre of each box to that of its counterpart.

    Args:
        a: xyxy, (F, 4).
        b: Their counterparts, (F, 4).

    Returns:
        x and y in the boxes' unit, (F, 2) float64.
    """
    a, b = a.double(), b.double()
    return ((b[:, :2] + b[:, 2:]) - (a[:, :2] + a[:, 2:])) / 2  # 0 for equal boxes


def as_written(boxes: Tensor) -> Tensor:
    """Boxes as they come back from a result file, of three decimals.

    Args:
        boxes: xyxy, (F, 4).

    Returns:
        (F, 4) float64.
    """
    low, high = boxes.double().reshape(-1, 2, 2).unbind(1)
    low, size = low.round(decimals=3), (high - low).round(decimals=3)
    return torch.cat([low, low + size], dim=1)


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
    _check(predicted, truth)
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be got10k or pysot, got {convention!r}")
    predicted, truth = predicted.double(), truth.double()
    if convention == "got10k":
        predicted = torch.cat([truth[:1], predicted[1:]])
    overlaps = box_overlaps(predicted, truth)
    shifts = centre_shifts(predicted, truth)
    size = truth[:, 2:] - truth[:, :2]
    if convention == "got10k":
        relative = shifts / size.clamp(min=1)
        steps = np.linspace(0, 0.5, _PRECISION)
    else:
        relative = shifts / (size + 1e-16)
        steps = np.arange(_PRECISION) / 100
    distances, normalised = shifts.norm(dim=1), relative.norm(dim=1)
    if convention == "pysot":
        seen = ((truth[:, :2] + 1 > 0) & (size > 0)).all(1)
        overlaps = overlaps.where(seen, -1.0)
        centred = (truth[:, :2] + 1 + (size - 1) / 2 > 0).all(1)
        distances = distances.where(centred, -1.0)
        inside = ((truth[:, :2] + 1 + (size - 1) / 2) / (size + 1e-16) > 0).all(1)
        normalised = normalised.where(inside, -1.0)
    frames = len(truth)
    pixels = torch.arange(_PRECISION, dtype=torch.float64)
    return OnePass(
        (frames - _at_most(overlaps.nan_to_num(-1.0), np.linspace(0, 1, _SUCCESS))) / frames,
        _at_most(distances.nan_to_num(torch.inf), pixels.numpy()) / frames,
        _at_most(normalised.nan_to_num(torch.inf), steps) / frames,
    )


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
    limit = torch.tensor([size[1], size[0]], dtype=torch.float64, device=boxes.device)
    low, high = boxes.double().reshape(-1, 2, 2).unbind(1)
    inside = torch.minimum(low.clamp(min=0), limit)
    return torch.cat([inside, inside + torch.minimum(high - low, limit - inside)], dim=1)


def visible_overlaps(
    predicted: Tensor, truth: Tensor, cover: Tensor, size: tuple[int, int]
) -> Tensor:
    """The overlaps of one sequence that GOT-10k counts.

    Args:
        predicted: xyxy in pixels from 0, (F, 4).
        truth: True boxes, (F, 4).
        cover: How much of the object is seen, (F,); frames of 0 are left out.
        size: Height and width of the frames in pixels; see `inside_frame`.

    Returns:
        Overlaps of the frames behind the first that show the object, (M,) float64.

    Raises:
        ValueError: If there are fewer or more boxes or labels than frames, or a predicted box is
            NaN, infinite or turned over.
    """
    _check(predicted, truth)
    if cover.shape != truth.shape[:1]:
        raise ValueError(f"{len(truth)} frames and {len(cover)} labels of cover")
    seen = cover > 0
    seen[0] = False
    return box_overlaps(inside_frame(predicted[seen], size), inside_frame(truth[seen], size))


class Tracked(Protocol):
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

    def update(self, sequence: Tracked, predicted: Tensor) -> None:
        """Adds a sequence.

        Args:
            sequence: With its true boxes.
            predicted: xyxy in pixels from 0, (F, 4).

        Raises:
            ValueError: If there are fewer or more boxes than frames, a predicted box is NaN,
                infinite or turned over, or the true boxes are withheld; names the sequence.
        """
        truth = sequence.boxes.cpu()
        if len(truth) > 1 and truth[1:].isnan().all():
            raise ValueError(
                f"{sequence.name}: the true boxes are withheld; write the result files and send "
                "them to the data set's server"
            )
        boxes = as_written(predicted.cpu()) if self.rounded else predicted.cpu()
        name = sequence.name.encode()
        if len(name) > _NAME:
            raise ValueError(f"{sequence.name}: names of sequences have at most {_NAME} bytes")
        try:
            numbers = self._numbers(sequence, boxes, truth)
        except ValueError as error:
            raise ValueError(f"{sequence.name}: {error}") from error
        letters = torch.tensor(list(name.ljust(_NAME, b"\0")), dtype=torch.float64)
        self.rows.append(torch.cat([letters, numbers]).to(self.device))

    def _numbers(self, sequence: Tracked, boxes: Tensor, truth: Tensor) -> Tensor:
        """What is kept of a sequence, always as many, float64."""
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

    def _numbers(self, sequence: Tracked, boxes: Tensor, truth: Tensor) -> Tensor:
        frames = torch.tensor([len(truth)], dtype=torch.float64)
        return torch.cat([frames, *one_pass(boxes, truth, self.convention)])

    def compute(self) -> dict[str, float]:
        """The scores in [0, 1]; sets the attributes.

        Raises:
            ValueError: If there is no sequence.
        """
        names, numbers = self._gathered(1 + _SUCCESS + 2 * _PRECISION)
        parts = (_SUCCESS, _PRECISION, _PRECISION)
        self.table = {
            name: {
                "frames": float(row[0]),
                **OnePass(*row[1:].split(parts)).scores(self.convention),
            }
            for name, row in zip(names, numbers, strict=True)
        }
        mean = OnePass(*numbers[:, 1:].mean(0).split(parts))
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

    def _numbers(self, sequence: Tracked, boxes: Tensor, truth: Tensor) -> Tensor:
        cover = torch.ones(len(truth)) if sequence.cover is None else sequence.cover.cpu()
        overlaps = visible_overlaps(boxes, truth, cover, sequence.size)
        above = len(overlaps) - _at_most(overlaps, _FINE)
        return torch.cat([torch.stack([torch.tensor(len(overlaps)), overlaps.sum()]), above])

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


def _at_most(values: Tensor, limits: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Tensor:
    """How many values are at most each limit, float64."""
    ordered = values.sort().values
    return torch.searchsorted(ordered, torch.from_numpy(limits).double(), right=True).double()


def _check(predicted: Tensor, truth: Tensor) -> None:
    """Raises where boxes cannot be judged."""
    if truth.ndim != 2 or truth.shape[1:] != (4,) or len(truth) == 0:
        raise ValueError(f"true boxes must be (F, 4) with F at least 1, got {tuple(truth.shape)}")
    if predicted.shape != truth.shape:
        raise ValueError(
            f"a tracker must give one box for each of the {len(truth)} frames, the first included; "
            f"got {tuple(predicted.shape)}"
        )
    broken = ~predicted.isfinite().all(1) | (predicted[:, 2:] < predicted[:, :2]).any(1)
    if broken.any():
        frame = int(broken.nonzero()[0])
        raise ValueError(
            f"the box of frame {frame} must be finite xyxy with x0 <= x1 and y0 <= y1, got "
            f"{predicted[frame].tolist()}"
        )
