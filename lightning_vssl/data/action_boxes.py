"""Key frames with persons' boxes and their actions, as AVA and AVA-Kinetics list them.

What the files hold is in `lightning_vssl.metrics.action_rows`; here they are checked as data to
learn from, rows of one box become one box with several actions, and predictions are written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.metrics.action_rows import (
    ActionRows,
    Ints,
    frame_numbers,
    read_action_rows,
)

_SLACK = 1e-3  # of a share: files have three decimals


@dataclass(frozen=True, eq=False)
class KeyFrames:
    """Frames that have boxes, by film and time.

    Attributes:
        videos: Names of the films.
        video: Film of each frame, (F,).
        second: Of the film, (F,).
        first: First box of each frame, and behind the last one, (F + 1,).
        boxes: A row a box, (M,), those of a frame together in the order of the file; ``action`` is
            the first of its actions, ``score`` the detector's, or 1.
        labels: Which actions each box shows, (M, C) bool; column c is action c + 1.
    """

    videos: tuple[str, ...]
    video: Ints
    second: npt.NDArray[np.float64]
    first: Ints
    boxes: ActionRows
    labels: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.video)


def read_boxes(file: Path, actions: Mapping[int, str], *, detected: bool = False) -> ActionRows:
    """Reads boxes to learn from or to classify, and checks them.

    Args:
        file: Ground truth, or detected persons.
        actions: Names of all actions by number.
        detected: Persons were detected: the last column is a score, actions may be missing.

    Returns:
        All rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row cannot be read, a box is reversed, empty or outside its frame, an
            action unknown, one is missing in ground truth, or a score is not in [0, 1]: the message
            names file and line.
    """
    rows = read_action_rows(file)
    boxed = rows.take(rows.boxed)
    extent = boxed.box[:, 2:] - boxed.box[:, :2]
    outside = (boxed.box < -_SLACK) | (boxed.box > 1 + _SLACK)
    unsure = (boxed.score < 0) | (boxed.score > 1)
    known = np.isin(boxed.action, list(actions)) | ((boxed.action == 0) & detected)
    faults = {
        "reaches outside the frame; coordinates are shares of width and height, 0 to 1": (
            outside.any(axis=1)
        ),
        "is reversed or has no area; x1 < x2 and y1 < y2": (extent <= 0).any(axis=1),
        f"has none of the {len(actions)} actions of the label map": ~known,
        "has a score outside 0 to 1 in the last column": unsure & detected,
    }
    for text, which in faults.items():
        wrong = np.flatnonzero(which)
        if len(wrong):
            row = int(wrong[0])
            numbers = ", ".join(f"{value:g}" for value in boxed.box[row])
            action = f"of action {boxed.action[row]}" if boxed.action[row] else "without an action"
            more = f" ({len(wrong)} such rows)" if len(wrong) > 1 else ""
            raise ValueError(
                f"{boxed.where(row)}: the box ({numbers}) {action} {text}{more}. Correct or "
                "remove the row"
            )
    return rows


def key_frames(rows: ActionRows, actions: int, *, detected: bool = False) -> KeyFrames:
    """Puts the rows of a box together.

    Rows of a frame with the same coordinates are one box, as SlowFast has it. Rows without a box
    make no key frame.

    Args:
        rows: Of `read_boxes`.
        actions: C, the largest number of an action.
        detected: The last column is the detector's score; otherwise a person's number, and boxes
            have a score of 1.

    Returns:
        The frames that have boxes.
    """
    rows = rows.take(rows.boxed)
    (frame,) = frame_numbers(rows)
    corners = rows.box.T
    order = np.lexsort((np.arange(len(rows)), *corners, frame))
    keys = np.column_stack([frame, rows.box])[order]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    first = order[new]  # the first row of each box
    place = np.lexsort((first, frame[first]))  # boxes by frame and row
    number = np.empty(len(rows), np.int64)
    number[order] = np.argsort(place)[np.cumsum(new) - 1]  # box of each row
    labels = np.zeros((len(first), actions), np.bool_)
    acted = rows.action > 0
    labels[number[acted], rows.action[acted] - 1] = True
    boxes = rows.take(first[place])
    if not detected:
        boxes = replace(boxes, score=np.ones(len(boxes)))
    start = np.flatnonzero(np.diff(frame[first[place]], prepend=-1))
    return KeyFrames(
        videos=rows.videos,
        video=boxes.video[start],
        second=boxes.second[start],
        first=np.append(start, len(boxes)),
        boxes=boxes,
        labels=labels,
    )


def write_predictions(file: Path, rows: ActionRows) -> None:
    """Writes detections in the official format: whole, or not at all.

    ``video,second,x1,y1,x2,y2,action,score``: whole seconds with four digits, others with six
    decimals; the box as its file had it; the score with as many digits as single precision has,
    so that the file has the number that was computed without it.

    Args:
        file: The file; its folder is made.
        rows: Rows with boxes, such as `lightning_vssl.metrics.detection.DetectionMetric.rows`.

    Raises:
        ValueError: If a row has no box or no action.
        OSError: If the file cannot be written.
    """
    if not (rows.boxed & (rows.action > 0)).all():
        raise ValueError(f"{rows.source}: every prediction needs a box and an action")
    columns = (rows.video, rows.second, rows.box, rows.action, rows.score)
    with whole_file(Path(file)) as temporary, temporary.open("w", encoding="utf-8") as sink:
        for video, second, box, action, score in zip(*(c.tolist() for c in columns), strict=True):
            whole = second == int(second)
            stamp = f"{int(second):04d}" if whole else f"{second:.6f}"
            where = ",".join(f"{share:.6g}" for share in box)
            sink.write(f"{rows.videos[video]},{stamp},{where},{action},{score:.9g}\n")
