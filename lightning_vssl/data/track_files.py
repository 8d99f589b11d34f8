"""Text files of boxes, one line a frame: ground truth, and what a tracker found.

A line is left, top, width and height. Numbers are separated by commas, tabs or blanks, mixed even
inside OTB. What a tracker found is kept as the GOT-10k toolkit keeps it, which its reports and
most others read: three decimals, commas, and a file of seconds a frame beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.sequences import FrameSequence

TrackLayout = Literal["otb", "got10k"]


def read_numbers(file: Path, columns: int) -> NDArray[np.float64]:
    """Reads a table of numbers separated by commas, tabs or blanks.

    Args:
        file: Empty lines at its end are left out.
        columns: Numbers of a line.

    Returns:
        (lines, columns); NaN where the file says so.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line holds anything else, or there is none; names the file and the line.
    """
    text = file.read_text(encoding="utf-8").rstrip()
    lines = text.splitlines()
    try:
        table = np.loadtxt([line.replace(",", " ") for line in lines], ndmin=2, comments=None)
    except ValueError:  # said below, with its line
        table = np.empty((0, 0))
    if lines and table.shape == (len(lines), columns) and not np.isinf(table).any():
        return table
    for number, line in enumerate(lines, start=1):
        if not _is_row(line, columns):
            raise ValueError(
                f"{file}, line {number}: expected {columns} number(s) separated by commas, tabs "
                f"or blanks, got {line!r}"
            )
    raise ValueError(f"{file} is empty: expected lines of {columns} number(s)")


def _is_row(line: str, columns: int) -> bool:
    words = line.replace(",", " ").split()
    try:
        return len(words) == columns and not np.isinf([float(word) for word in words]).any()
    except ValueError:
        return False


def read_boxes(file: Path, *, first: int) -> Tensor:
    """Reads boxes.

    Args:
        file: Lines of left, top, width, height.
        first: Number of the image's first pixel: 1 in OTB, 0 in GOT-10k.

    Returns:
        xyxy in pixels from 0, (F, 4) float64; NaN where the file says so. Boxes of no size stay.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is wrong, or a width or height negative; names the file and the line.
    """
    table = read_numbers(file, 4)
    table[np.isnan(table).any(1)] = np.nan
    negative = np.flatnonzero((table[:, 2:] < 0).any(1))
    if len(negative):
        raise ValueError(
            f"{file}, line {negative[0] + 1}: left, top, width, height with a negative width or "
            f"height: {table[negative[0]].tolist()}"
        )
    table[:, :2] -= first
    table[:, 2:] += table[:, :2]
    return torch.from_numpy(table)


def read_polygons(file: Path, *, first: int) -> Tensor:
    """Reads the upright boxes around polygons of four corners, as VOT has them from 2014 to 2019.

    Args:
        file: Lines of x and y of each corner, in turn.
        first: Number of the image's first pixel.

    Returns:
        xyxy in pixels from 0, (F, 4) float64; NaN where the file says so.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is wrong; names the file and the line.
    """
    corners = torch.from_numpy(read_numbers(file, 8)).reshape(-1, 4, 2) - first
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[boxes.isnan().any(1)] = torch.nan
    return boxes


def check_first(boxes: Tensor, frames: FrameSequence, file: Path) -> None:
    """Raises where the first box of a sequence cannot start a tracker.

    Args:
        boxes: xyxy in pixels from 0, (F, 4).
        frames: The frames; the header of the first one is read.
        file: Where the boxes are from.

    Raises:
        ValueError: If the box is absent, has no size, or lies outside the frame.
    """
    height, width = frames.size
    x0, y0, x1, y1 = boxes[0].tolist()
    if not (max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)):
        raise ValueError(
            f"{file}, line 1: trackers start from the first box, which must have a size and lie in "
            f"the frame of {width} x {height} pixels; got left {x0:g}, top {y0:g}, right {x1:g}, "
            f"bottom {y1:g}, counted from 0"
        )


@dataclass(frozen=True)
class TrackFiles:
    """A folder of what one tracker found, in the layout of the GOT-10k toolkit.

    ``otb``: ``<sequence>.txt`` and ``times/<sequence>_time.txt``, pixels counted from 1.
    ``got10k``: ``<sequence>/<sequence>_001.txt`` and ``<sequence>/<sequence>_time.txt``, pixels
    counted from 0: what its evaluation server takes, packed as a zip file.

    Args:
        folder: The folder, named after the tracker where the toolkit is to read it.
        layout: Whose layout.
    """

    folder: Path
    layout: TrackLayout

    def __post_init__(self) -> None:
        if self.layout not in ("otb", "got10k"):
            raise ValueError(f"layout must be otb or got10k, got {self.layout!r}")

    @property
    def first(self) -> int:
        """Number of the image's first pixel."""
        return 1 if self.layout == "otb" else 0

    def boxes_file(self, name: str) -> Path:
        """The file of a sequence's boxes."""
        if self.layout == "otb":
            return self.folder / f"{name}.txt"
        return self.folder / name / f"{name}_001.txt"

    def times_file(self, name: str) -> Path:
        """The file of the seconds that each frame took."""
        place = "times" if self.layout == "otb" else name
        return self.folder / place / f"{name}_time.txt"

    def write(self, name: str, boxes: Tensor, seconds: Sequence[float] | None = None) -> None:
        """Writes what was found in a sequence, each file whole or not at all.

        Args:
            name: The sequence.
            boxes: xyxy in pixels from 0, (F, 4).
            seconds: What each frame took, F numbers; None writes no such file.

        Raises:
            ValueError: If a box is not finite, or the seconds are not as many.
            OSError: If a file cannot be written.
        """
        low, high = boxes.double().cpu().reshape(-1, 2, 2).unbind(1)
        table = torch.cat([low + self.first, high - low], dim=1)  # (F, 4)
        if not table.isfinite().all():
            raise ValueError(f"{name}: a box is NaN or infinite; trackers must say where it is")
        if seconds is not None and len(seconds) != len(table):
            raise ValueError(f"{name}: {len(table)} boxes and {len(seconds)} times")
        lines = (",".join(f"{value:.3f}" for value in row) for row in table.tolist())
        _write(self.boxes_file(name), lines)
        if seconds is not None:
            _write(self.times_file(name), (f"{value:.8f}" for value in seconds))

    def read(self, name: str) -> Tensor:
        """Reads what was found in a sequence.

        Returns:
            xyxy in pixels from 0, (F, 4) float64.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a line is wrong; names the file and the line.
        """
        return read_boxes(self.boxes_file(name), first=self.first)


@runtime_checkable
class KeepsTracks(Protocol):
    """A data module of sequences whose toolkit keeps what a tracker found."""

    def track_files(self, folder: Path) -> TrackFiles:
        """The files in a folder that is named after the tracker."""


def _write(file: Path, lines: Iterable[str]) -> None:
    with whole_file(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
