"""Frame-mAP of action detections: the number of AVA and AVA-Kinetics.

As the ActivityNet evaluation defines it (``get_ava_performance.py``, after PASCAL VOC): per action,
the area under the envelope of precision over recall of all boxes of all frames; then the mean over
the actions that the ground truth has. Usable alone: `files_frame_map` takes two CSV files.
"""

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.action_rows import (
    EVALUATED,
    ActionRows,
    Floats,
    Ints,
    check_actions,
    frame_numbers,
    read_action_rows,
    read_frames,
    read_label_map,
)
from lightning_vssl.metrics.neighbours import first_of_each

Bools = npt.NDArray[np.bool_]
Variant = Literal["activitynet", "slowfast", "mmaction2"]
"""Whose evaluation; see `frame_map`."""


@dataclass(frozen=True)
class _Rules:
    """Where the evaluations differ."""

    order: Literal["heap", "score", "file"]  # of the rows of a frame
    cap: int | None  # rows of a frame that count
    frames: Literal["listed", "any", "acted"]  # where detections count
    keep_excluded_truth: bool
    drop_flat: bool  # boxes without area
    undetected: bool  # whether an action without any detection counts, as 0
    as_truth: bool  # frames in the order of the ground truth, not of the detections
    precision: type[np.floating]


_RULES: Mapping[Variant, _Rules] = {
    "activitynet": _Rules("heap", 50, "listed", False, True, True, False, np.float64),
    "slowfast": _Rules("file", None, "any", False, True, True, False, np.float64),
    "mmaction2": _Rules("score", None, "acted", True, False, False, True, np.float32),
}


@dataclass(frozen=True)
class FrameMAP:
    """What `frame_map` found.

    Attributes:
        mean: Frame-mAP, in [0, 1].
        average_precision: By action, in [0, 1]; NaN for an action that does not count.
        truth: Boxes of the ground truth by action.
        frames: Frames that hold any of them.
    """

    mean: float
    average_precision: dict[int, float]
    truth: dict[int, int]
    frames: int


def frame_map(
    truth: ActionRows,
    detections: ActionRows,
    actions: Collection[int] = EVALUATED,
    *,
    excluded: ActionRows | None = None,
    variant: Variant = "activitynet",
    iou: float = 0.5,
) -> FrameMAP:
    """Frame-mAP of detections.

    Within a frame and an action, detections are taken by falling score. Each looks at the one true
    box that it overlaps most (of several as good, the first), and is right if the overlap is at
    least ``iou`` and no detection before it took that box; otherwise it is wrong, though another
    box might overlap enough. Then, over all frames by falling score, precision is made monotone
    from the right and summed over the steps of recall (all points).

    ``activitynet``: of a frame at most 50 detections count, the most certain ones of all evaluated
    actions together; detections in frames that the ground truth does not list are passed over, in
    frames that it lists without a person (rows of two columns, or of other actions) they are
    wrong; boxes without area are left out after the 50 are taken; an action that was never
    detected counts as 0. ``slowfast``: no limit; detections of a frame are taken in the order of
    the file; detections in any frame count. ``mmaction2``: no limit; frames without an evaluated
    action are passed over with their detections; the truth of excluded frames still counts as
    missed; actions that were never detected are left out of the mean; boxes without area stay;
    boxes and scores are in single precision.

    Equal scores: within a frame as the heap of the evaluation's reader leaves them (``mmaction2``:
    in the order of the file). Between the frames of an action the originals leave the order to a
    sort that is not stable; here the later frame comes first, as it does there with a stable one.
    A box without area overlaps nothing.

    Args:
        truth: Ground truth. Rows of other actions count only in that they list their frame.
        detections: Rows with scores.
        actions: Numbers of the actions evaluated.
        excluded: Frames that are left out of both sides, or None.
        variant: Whose evaluation.
        iou: Least overlap, intersection over union, in (0, 1].

    Returns:
        The number and its parts.

    Raises:
        ValueError: If an argument is out of its range, or the ground truth has none of the
            actions; with ``mmaction2`` also for a detection whose box is reversed.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant={variant!r}: choose {', '.join(get_args(Variant))}")
    if not 0 < iou <= 1:
        raise ValueError(f"iou={iou}: an overlap, above 0 and at most 1")
    chosen, rules = np.array(check_actions(actions)), _RULES[variant]
    nothing = truth.take(np.zeros(0, np.int64))
    true_at, found_at, out = frame_numbers(
        truth, detections, nothing if excluded is None else excluded
    )
    wanted = np.isin(truth.action, chosen) & truth.boxed
    counted = wanted if rules.keep_excluded_truth else wanted & ~np.isin(true_at, out)
    amount = {int(n): int((truth.action[counted] == n).sum()) for n in chosen}
    if not any(amount.values()):
        raise ValueError(
            f"{truth.source} has no box of the {len(chosen)} actions evaluated: nothing to find"
        )
    usable = np.isin(detections.action, chosen) & detections.boxed & ~np.isin(found_at, out)
    if rules.frames != "any":
        listed = true_at[wanted] if rules.frames == "acted" else true_at
        usable &= np.isin(found_at, listed)
    there = _ordered(truth, true_at, np.flatnonzero(wanted & ~np.isin(true_at, out)), rules, None)
    found = _ordered(detections, found_at, np.flatnonzero(usable), rules, rules.cap)
    found = found[_shaped(detections, found, drop=rules.drop_flat)]
    right = _right(
        _Side(detections, found_at, found), _Side(truth, true_at, there), iou, rules.precision
    )
    order = _by_frame(found_at[found], true_at[wanted] if rules.as_truth else found_at[usable])
    found, right = found[order], right[order]
    scores, action = detections.score[found].astype(rules.precision), detections.action[found]
    precision = dict.fromkeys(amount, float("nan"))
    for n, total in amount.items():
        own = action == n
        if total and (rules.undetected or own.any()):
            precision[n] = average_precision(scores[own], right[own], total)
    numbers = [number for number in precision.values() if not np.isnan(number)]
    return FrameMAP(
        mean=float(np.mean(numbers)) if numbers else 0.0,
        average_precision=precision,
        truth=amount,
        frames=len(np.unique(true_at[counted])),
    )


def average_precision(scores: npt.ArrayLike, right: npt.ArrayLike, truth: int) -> float:
    """Area under the monotone envelope of precision over recall, at all points (PASCAL VOC 2010).

    Args:
        scores: (N,); of equal ones the last comes first.
        right: Which detections are right, (N,) bool.
        truth: How many there are to find, 1 or more.

    Returns:
        In [0, 1]; 0 without detections.

    Raises:
        ValueError: If the shapes differ, or more are right than there are.
    """
    values, hits = np.asarray(scores), np.asarray(right, np.bool_)
    if values.ndim != 1 or values.shape != hits.shape:
        raise ValueError(f"scores and right must be (N,), got {values.shape} and {hits.shape}")
    if truth < 1 or hits.sum() > truth:
        raise ValueError(f"{int(hits.sum())} of {len(hits)} are right, of {truth} there are")
    hits = hits[np.argsort(values, kind="stable")[::-1]]
    share = np.cumsum(hits) / np.arange(1, len(hits) + 1)  # precision
    envelope = np.maximum.accumulate(share[::-1])[::-1]
    return float(envelope[hits].sum() / truth)  # recall climbs by 1 / truth at each hit


def files_frame_map(
    truth: Path | str,
    detections: Path | str,
    *,
    labels: Path | str | None = None,
    excluded: Path | str | None = None,
    variant: Variant = "activitynet",
    iou: float = 0.5,
) -> FrameMAP:
    """Frame-mAP of a file of detections against a file of ground truth.

    Args:
        truth: CSV of the ground truth; see `lightning_vssl.metrics.action_rows`.
        detections: CSV of the detections, the score in the eighth column.
        labels: Label map of the actions evaluated; None for AVA's 60.
        excluded: CSV of excluded frames, or None.
        variant: Whose evaluation; see `frame_map`.
        iou: Least overlap.

    Returns:
        As `frame_map`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If anything in a file is wrong, or as for `frame_map`.
    """
    return frame_map(
        read_action_rows(truth),
        read_action_rows(detections),
        EVALUATED if labels is None else read_label_map(labels),
        excluded=None if excluded is None else read_frames(excluded),
        variant=variant,
        iou=iou,
    )


# --- matching -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """Some rows of a table, in the order in which they are taken within their frame."""

    table: ActionRows
    frame: Ints
    rows: Ints

    def group(self, actions: int) -> Ints:
        """Frame and action as one number."""
        return self.frame[self.rows] * actions + self.table.action[self.rows]

    def boxes(self, precision: type[np.floating]) -> npt.NDArray[np.floating]:
        return self.table.box[self.rows].astype(precision)


def _ordered(table: ActionRows, frame: Ints, rows: Ints, rules: _Rules, cap: int | None) -> Ints:
    """Rows by frame, and within one in the order of the rules, at most ``cap`` of each."""
    if rules.order == "file":
        return rows[np.argsort(frame[rows], kind="stable")]
    rows = rows[np.lexsort((-table.score[rows], frame[rows]))]  # equal scores in the file's order
    if rules.order == "score" or not len(rows):
        return rows
    at, score = frame[rows], table.score[rows]
    first = np.flatnonzero(np.diff(at, prepend=at[0] - 1))
    count = np.diff(first, append=len(rows))
    even = (at[1:] == at[:-1]) & (score[1:] == score[:-1])  # frames with equal scores
    for frame_ in np.flatnonzero(np.isin(at[first], at[1:][even])).tolist():
        start, end = first[frame_], first[frame_] + count[frame_]
        ranked = _heaped(table, np.sort(rows[start:end]), cap)
        rows[start : start + len(ranked)] = ranked  # what lies behind is cut off below
    if cap is None:
        return rows
    return rows[np.arange(len(rows)) - np.repeat(first, count) < cap]


def _heaped(table: ActionRows, rows: Ints, cap: int | None) -> Ints:
    """A frame's rows as the ActivityNet reader leaves them: what a heap keeps, by falling score.

    Rows enter in the file's order as (score, action, y1, x1, y2, x2); a full heap gives up its
    least entry for a row of a higher score. Equal scores stay as they lie in the heap.
    """
    entries: list[tuple[float, ...]] = []
    same: dict[tuple[float, ...], list[int]] = {}  # equal entries cannot be told apart
    for row in rows.tolist():
        x1, y1, x2, y2 = table.box[row].tolist()
        entry = (float(table.score[row]), float(table.action[row]), y1, x1, y2, x2)
        same.setdefault(entry, []).append(row)
        if cap is None or len(entries) < cap:
            heapq.heappush(entries, entry)
        elif entry[0] > entries[0][0]:
            heapq.heapreplace(entries, entry)
    entries.sort(key=lambda entry: -entry[0])
    return np.array([same[entry].pop(0) for entry in entries], np.int64)


def _shaped(table: ActionRows, rows: Ints, *, drop: bool) -> Bools:
    """Which detections have a box that counts."""
    extent = table.box[rows, 2:] - table.box[rows, :2]
    if drop:
        return np.asarray((extent > 0).all(axis=1))
    reversed_ = np.flatnonzero((extent < 0).any(axis=1))
    if len(reversed_):
        row = int(rows[reversed_[0]])
        raise ValueError(
            f"{table.where(row)}: the box {table.box[row].tolist()} is reversed, which mmaction2 "
            "does not evaluate; x1 <= x2 and y1 <= y2"
        )
    return np.ones(len(rows), np.bool_)


def _right(found: _Side, there: _Side, iou: float, precision: type[np.floating]) -> Bools:
    """Which detections take a true box, (N,)."""
    right = np.zeros(len(found.rows), np.bool_)
    actions = 1 + int(max(found.table.action.max(initial=0), there.table.action.max(initial=0)))
    truth = there.group(actions)
    order = np.argsort(truth, kind="stable")  # keeps the order within a frame and an action
    own = found.group(actions)
    first = np.searchsorted(truth[order], own)
    count = np.searchsorted(truth[order], own, side="right") - first
    rivals = np.flatnonzero(count)  # detections with true boxes to look at
    if not len(rivals):
        return right
    count, first = count[rivals], first[rivals]
    start = np.cumsum(count) - count  # of each one's pairs
    within = np.arange(count.sum()) - np.repeat(start, count)
    target = order[np.repeat(first, count) + within]
    overlap = _overlap(
        np.repeat(found.boxes(precision)[rivals], count, axis=0), there.boxes(precision)[target]
    )
    best = np.maximum.reduceat(overlap, start)
    place = np.where(overlap == np.repeat(best, count), within, np.iinfo(np.int64).max)
    chosen = target[start + np.minimum.reduceat(place, start)]
    good = best >= iou
    _, winner = np.unique(chosen[good], return_index=True)  # the first to take it
    right[rivals[good][winner]] = True
    return right


def _overlap(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Floats:
    """Intersection over union of boxes (P, 4) and (P, 4), (P,); of two without area 0.

    Sides and areas have the boxes' precision; the intersection is double, as mmaction2's is.
    """
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.maximum(high - low, 0).astype(np.float64).prod(axis=1)
    either = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return np.asarray(np.divide(shared, either, out=np.zeros_like(shared), where=either > 0))


def _by_frame(frame: Ints, lead: Ints) -> Ints:
    """Brings detections into the order in which ``lead`` first names their frames, (N,)."""
    used, first = np.unique(lead, return_index=True)
    return np.argsort(first[np.searchsorted(used, frame)], kind="stable").astype(np.int64)


# --- over batches and ranks ---------------------------------------------------------------------


@dataclass(frozen=True)
class DetectionTask:
    """What a split asks.

    Attributes:
        truth: Ground truth.
        boxes: The boxes that are classified, one row each, in the order of ``box_index``; their
            ``score`` is the detector's, 1 for true boxes.
        actions: Numbers of the actions evaluated.
        excluded: Frames that are left out, or None.
    """

    truth: ActionRows
    boxes: ActionRows
    actions: tuple[int, ...] = EVALUATED
    excluded: ActionRows | None = None


class DetectionMetric(Metric):
    """Frame-mAP of scores given to the boxes of a `DetectionTask`.

    ``update`` takes scores and the boxes they belong to; ``compute`` gives ``mAP``. A box seen
    twice counts once; one never seen has no detection. Over several ranks the number is that of
    one.

    Args:
        task: What is asked; may be set later, before ``compute``.
        variant: Whose evaluation; see `frame_map`.
        confidence: Multiply scores by the detector's score of the box, as VideoGLUE does; SlowFast
            does not.
        iou: Least overlap, in (0, 1].

    Attributes:
        found: The last ``compute``: `FrameMAP` with every action's number.
        rows: The rows that it evaluated, of all ranks.
        boxes: How many boxes it classified, over all ranks.

    Raises:
        ValueError: If the variant is unknown.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True

    scores: list[Tensor]
    index: list[Tensor]

    def __init__(
        self,
        task: DetectionTask | None = None,
        *,
        variant: Variant = "activitynet",
        confidence: bool = False,
        iou: float = 0.5,
    ) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise ValueError(f"variant={variant!r}: choose {', '.join(get_args(Variant))}")
        self.task = task
        self.variant: Variant = variant
        self.confidence = confidence
        self.iou = iou
        self.found: FrameMAP | None = None
        self.rows: ActionRows | None = None
        self.boxes = 0
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets what was added."""
        super().reset()
        # Of its type without a row: a rank without boxes can then be gathered with the others.
        self.scores = [torch.empty(0, device=self.device)]
        self.index = [torch.empty(0, dtype=torch.int64, device=self.device)]

    @property
    def average_precision(self) -> dict[int, float]:
        """By action, of the last ``compute``."""
        if self.found is None:
            raise RuntimeError("no numbers yet: call compute() first")
        return self.found.average_precision

    def update(self, scores: Tensor, box_index: Tensor) -> None:
        """Adds boxes.

        Args:
            scores: Probabilities of the actions, (M, C) in [0, 1]; column c is action c + 1.
            box_index: Rows of the task's boxes, (M,) int64; rows of -1 are passed over.

        Raises:
            ValueError: On other shapes, or a score that is not in [0, 1].
        """
        if scores.dim() != 2 or box_index.shape != scores.shape[:1]:
            raise ValueError(
                f"scores must be (M, C) and box_index (M,); got {tuple(scores.shape)} and "
                f"{tuple(box_index.shape)}"
            )
        there = box_index >= 0
        kept = scores.detach()[there].float()
        if not bool(((kept >= 0) & (kept <= 1)).all()):
            raise ValueError("scores must be probabilities in [0, 1]; some are outside or NaN")
        self.scores.append(kept.flatten())
        self.index.append(box_index[there])

    def predictions(self) -> ActionRows:
        """What this rank added, as rows: box by box, every evaluated action of it.

        Raises:
            ValueError: If nothing was added, or a box that the task does not have.
            RuntimeError: If there is no task yet.
        """
        task = self._asked()
        index = dim_zero_cat(self.index).cpu()
        if not len(index):
            raise ValueError("no boxes were added: nothing to evaluate")
        keep = first_of_each(index)
        keep = keep[index[keep].argsort()]
        scores = dim_zero_cat(self.scores).cpu().reshape(len(index), -1)[keep]  # (M, C)
        rows = index[keep].numpy()
        if rows[-1] >= len(task.boxes):
            raise ValueError(
                f"box_index {rows[-1]} of {len(task.boxes)} boxes: they are of another split"
            )
        self.boxes = len(rows)
        columns = torch.tensor([n - 1 for n in task.actions if n <= scores.shape[1]])
        values = scores[:, columns].double().numpy()  # (M, K)
        table = task.boxes.take(rows.repeat(len(columns)))
        if self.confidence:
            values = values * task.boxes.score[rows][:, None]
        return ActionRows(
            videos=table.videos,
            video=table.video,
            second=table.second,
            box=table.box,
            action=np.tile(columns.numpy() + 1, len(rows)),
            score=values.reshape(-1),
            source="the predictions",
            line=np.arange(1, 1 + values.size),
        )

    def compute(self) -> dict[str, float]:
        """``mAP`` in [0, 1]; sets the attributes.

        Raises:
            ValueError: As `predictions` and `frame_map` do.
            RuntimeError: If there is no task yet.
        """
        task = self._asked()
        self.rows = self.predictions()
        self.found = frame_map(
            task.truth,
            self.rows,
            task.actions,
            excluded=task.excluded,
            variant=self.variant,
            iou=self.iou,
        )
        return {"mAP": self.found.mean}

    def _asked(self) -> DetectionTask:
        if self.task is None:
            raise RuntimeError("DetectionMetric has no task yet: set it before compute()")
        return self.task
