"""Simple online tracking of boxes and masks (SORT, Bewley et al. 2016; PreViTS section 3.2).

A Kalman filter with constant velocity carries every box on to the next frame, and the Hungarian
method gives the boxes found there to the boxes foreseen, by their overlap. Written from the paper
and its constants. What differs: the overlap may be that of boxes and masks (PreViTS checks "the IoU
constraint across continuous frame masks"), all tracks are filtered at once, and a track keeps the
frames before its third, because nothing here has to be said at once.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STEP = np.eye(7)  # x, y, area, ratio and the velocities of the first three
_STEP[[0, 1, 2], [4, 5, 6]] = 1
_SEEN = np.eye(4, 7)
_NOISE_SEEN = np.diag([1.0, 1, 10, 10])
_NOISE_STEP = np.diag([1.0, 1, 1, 1, 0.01, 0.01, 0.0001])
_NOISE_START = np.diag([10.0, 10, 10, 10, 10_000, 10_000, 10_000])


def box_iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union of every pair of boxes.

    Args:
        first: (N, 4) xyxy.
        second: (M, 4) xyxy.

    Returns:
        (N, M) in [0, 1]; 0 where both boxes are empty.
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - inner
    share: Floats = inner / np.maximum(union, 1e-12)
    return share


def mask_iou(first: Bools, second: Bools) -> Floats:
    """Intersection over union of every pair of masks.

    Args:
        first: (N, h, w).
        second: (M, h, w).

    Returns:
        (N, M) in [0, 1]; 0 where both masks are empty.
    """
    a = first.reshape(len(first), -1).astype(np.float32)
    b = second.reshape(len(second), -1).astype(np.float32)
    inner = (a @ b.T).astype(np.float64)  # counts below 2^24 are exact
    union = a.sum(1, dtype=np.float64)[:, None] + b.sum(1, dtype=np.float64)[None] - inner
    share: Floats = inner / np.maximum(union, 1e-12)
    return share


def associate(overlap: Floats, gate: float) -> tuple[Ints, Ints]:
    """Gives detections to tracks so that the sum of the overlaps is largest (Hungarian method).

    Args:
        overlap: (N, M), of N tracks and M detections.
        gate: Pairs that overlap less are undone.

    Returns:
        Tracks and detections of the pairs, (P,) each.
    """
    tracks, found = linear_sum_assignment(overlap, maximize=True)
    kept = overlap[tracks, found] >= gate
    return tracks[kept].astype(np.int64), found[kept].astype(np.int64)


def to_measurement(boxes: Floats) -> Floats:
    """Centre x, centre y, area, width over height, (N, 4), of boxes (N, 4) xyxy."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.column_stack([centre, width * height, width / height])


def to_boxes(state: Floats) -> Floats:
    """Boxes (N, 4) xyxy of states or measurements (N, 4 or more)."""
    area, ratio = np.maximum(state[:, 2], 1e-6), np.maximum(state[:, 3], 1e-6)
    half = np.column_stack([np.sqrt(area * ratio), np.sqrt(area / ratio)]) / 2
    return np.concatenate([state[:, :2] - half, state[:, :2] + half], axis=1)


def predict(state: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Carries tracks on by one frame. An area that would vanish stays instead.

    Args:
        state: (N, 7): x, y, area, ratio, and the velocities of x, y, area.
        spread: Its covariance, (N, 7, 7).

    Returns:
        Both, one frame later.
    """
    state = state.copy()
    state[state[:, 2] + state[:, 6] <= 0, 6] = 0
    return state @ _STEP.T, _STEP @ spread @ _STEP.T + _NOISE_STEP


def update(state: Floats, spread: Floats, seen: Floats) -> tuple[Floats, Floats]:
    """Corrects tracks by what was seen of them.

    Args:
        state: (N, 7).
        spread: (N, 7, 7).
        seen: Measurements, (N, 4).

    Returns:
        Both, corrected; the covariance in Joseph's form, which keeps it symmetric.
    """
    cross = spread @ _SEEN.T  # (N, 7, 4)
    total = _SEEN @ cross + _NOISE_SEEN  # (N, 4, 4)
    gain = np.linalg.solve(total, cross.swapaxes(1, 2)).swapaxes(1, 2)  # (N, 7, 4)
    left = np.eye(7) - gain @ _SEEN
    moved = state + (gain @ (seen - state @ _SEEN.T)[..., None])[..., 0]
    shrunk = left @ spread @ left.swapaxes(1, 2) + gain @ _NOISE_SEEN @ gain.swapaxes(1, 2)
    return moved, shrunk


@dataclass
class Sort:
    """Follows objects from frame to frame.

    Args:
        gate: Least overlap of a track and what is taken for it, in [0, 1].
        max_age: Frames that a track outlives without being seen.
        mask_weight: Weight of the masks' overlap against the boxes', in [0, 1]. The mask last seen
            is first moved as the filter says that the box has moved.
        scale: Pixels of the boxes per pixel of the masks.

    Raises:
        ValueError: If a number is out of its range.
    """

    gate: float = 0.3
    max_age: int = 1
    mask_weight: float = 0.0
    scale: float = 1.0
    _state: Floats = field(default_factory=lambda: np.empty((0, 7)), init=False, repr=False)
    _spread: Floats = field(default_factory=lambda: np.empty((0, 7, 7)), init=False, repr=False)
    _age: Ints = field(default_factory=lambda: np.empty(0, np.int64), init=False, repr=False)
    _ids: Ints = field(default_factory=lambda: np.empty(0, np.int64), init=False, repr=False)
    _masks: list[tuple[Bools, Floats]] = field(default_factory=list, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.gate <= 1 and 0 <= self.mask_weight <= 1):
            raise ValueError(f"gate={self.gate}, mask_weight={self.mask_weight}: each 0 to 1")
        if self.max_age < 0 or not self.scale > 0:
            raise ValueError(f"max_age={self.max_age}, scale={self.scale}: 0 or more; above 0")

    def __call__(self, boxes: Floats, masks: Bools | None = None) -> Ints:
        """Takes the next frame.

        Args:
            boxes: What was found in it, (N, 4) xyxy, each with an area; N may be 0.
            masks: Their masks, (N, h, w); not needed where ``mask_weight`` is 0.

        Returns:
            Number of the track of each, (N,); new tracks get new numbers.
        """
        self._state, self._spread = predict(self._state, self._spread)
        self._age += 1
        tracks, found = associate(self._overlap(boxes, masks), self.gate)
        seen = to_measurement(boxes)
        if len(tracks):
            self._state[tracks], self._spread[tracks] = update(
                self._state[tracks], self._spread[tracks], seen[found]
            )
            self._age[tracks] = 0
        ids = np.full(len(boxes), -1, np.int64)
        ids[found] = self._ids[tracks]
        self._begin(ids, seen)
        self._remember(ids, boxes, masks)
        self._forget()
        return ids

    def _overlap(self, boxes: Floats, masks: Bools | None) -> Floats:
        """Overlap of the tracks with what was found, (tracks, N)."""
        foreseen = to_boxes(self._state)
        overlap = box_iou(foreseen, boxes)
        if masks is None or not self.mask_weight or not overlap.size:
            return overlap
        places = (foreseen[:, :2] + foreseen[:, 2:]) / 2
        moved = np.stack(
            [
                _shifted(mask, (place - old) / self.scale)
                for (mask, old), place in zip(self._masks, places, strict=True)
            ]
        )
        weight = self.mask_weight
        return (1 - weight) * overlap + weight * mask_iou(moved, masks)

    def _begin(self, ids: Ints, seen: Floats) -> None:
        """Starts tracks with what no track took."""
        new = np.flatnonzero(ids < 0)
        ids[new] = self._next + np.arange(len(new))
        self._next += len(new)
        start = np.concatenate([seen[new], np.zeros((len(new), 3))], axis=1)
        self._state = np.concatenate([self._state, start])
        self._spread = np.concatenate([self._spread, np.repeat(_NOISE_START[None], len(new), 0)])
        self._age = np.concatenate([self._age, np.zeros(len(new), np.int64)])
        self._ids = np.concatenate([self._ids, ids[new]])

    def _remember(self, ids: Ints, boxes: Floats, masks: Bools | None) -> None:
        """Keeps each track's last mask and where its box was."""
        if masks is None or not self.mask_weight:
            return
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        last = {int(name): (masks[i], centres[i]) for i, name in enumerate(ids)}
        for place, name in enumerate(self._ids.tolist()):
            if place == len(self._masks):  # a new track, so it was seen just now
                self._masks.append(last[name])
            else:
                self._masks[place] = last.get(name, self._masks[place])

    def _forget(self) -> None:
        """Ends the tracks that were not seen for too long."""
        kept = self._age <= self.max_age
        if self._masks:
            self._masks = [mask for mask, keep in zip(self._masks, kept, strict=True) if keep]
        self._state, self._spread = self._state[kept], self._spread[kept]
        self._age, self._ids = self._age[kept], self._ids[kept]


def _shifted(mask: Bools, by: Floats) -> Bools:
    """A mask (h, w) moved by (x, y) pixels, rounded; what enters is empty."""
    height, width = mask.shape
    x, y = (int(value) for value in np.rint(by))
    out = np.zeros_like(mask)
    if abs(x) < width and abs(y) < height:
        out[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = mask[
            max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
        ]
    return out
