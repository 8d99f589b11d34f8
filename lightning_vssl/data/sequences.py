"""Sequences of frames on disk, one after the other, as tracking and segmentation walk them.

A sequence is an item of its own: it has no batch dimension, its frames keep the size they were
stored in, and they are read when they are asked for. `SequenceSampler` deals whole sequences to the
processes of a run, each of them once.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_vssl.data.unreadable import UnreadableFile

_AHEAD = 8  # frames that wait, decoded


class UnreadableFrame(UnreadableFile):
    """A frame that is missing or broken."""


def read_frame(file: Path) -> Tensor:
    """Reads a JPEG or PNG.

    Args:
        file: The image, of any mode; grey and palettes become RGB.

    Returns:
        (3, H, W) uint8, RGB.

    Raises:
        UnreadableFrame: If there is no such file, or it is broken or cut off.
    """
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    except FileNotFoundError as error:
        raise UnreadableFrame(file, "no such file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFrame(file, str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class FolderFiles(Sequence[Path]):
    """Files of a folder by their names, which are joined when asked for.

    The training part of GOT-10k has 1.4 million frames, most of whose names are the same in every
    folder: kept once each, they take 11 MB, and as paths half a gigabyte.

    Args:
        folder: The folder.
        names: Names in it, in order.
    """

    folder: Path
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(map(sys.intern, self.names)))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Path: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Path, ...]: ...

    def __getitem__(self, number: int | slice) -> Path | tuple[Path, ...]:
        """The path of a file, or of several."""
        if isinstance(number, slice):
            return tuple(self.folder / name for name in self.names[number])
        return self.folder / self.names[number]


@dataclass(frozen=True)
class FrameSequence:
    """The frames of one video as files.

    Args:
        name: Names the sequence in tables and result files.
        files: JPEG or PNG files, in order.

    Raises:
        ValueError: If there is no frame.
    """

    name: str
    files: Sequence[Path]

    def __post_init__(self) -> None:
        if not len(self.files):
            raise ValueError(f"the sequence {self.name} has no frame")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame in pixels, from the file's header."""
        try:
            with Image.open(self.files[0]) as image:
                return image.height, image.width
        except OSError as error:
            raise UnreadableFrame(self.files[0], str(error)) from error

    def frame(self, number: int) -> Tensor:
        """Reads a frame.

        Args:
            number: From 0; negative ones count from the end.

        Returns:
            (3, H, W) uint8, RGB.

        Raises:
            IndexError: If there is no such frame.
            UnreadableFrame: If it cannot be read.
        """
        return read_frame(self.files[number])

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Reads frames in order; a thread reads some ahead while the caller works.

        Args:
            start: First frame.
            stop: First frame that is not read; None reads to the end.

        Yields:
            (3, H, W) uint8, RGB.

        Raises:
            UnreadableFrame: When a frame's turn has come that cannot be read.
        """
        waiting: deque[Future[Tensor]] = deque()
        reader = ThreadPoolExecutor(1, thread_name_prefix="frames")
        try:
            for number in range(*slice(start, stop).indices(len(self))):
                waiting.append(reader.submit(self.frame, number))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)

    def to(self, device: torch.device) -> Self:
        """Leaves the sequence where it is, on disk: Trainer moves batches, and frames are no batch.

        Args:
            device: Where the model is.
        """
        return self


def with_neighbours(frames: Iterable[Tensor], neighbours: int) -> Iterator[list[Tensor]]:
    """Gives every frame with those around it; the first and the last stand in for what is beyond.

    Args:
        frames: The frames in order.
        neighbours: Frames n on each side.

    Yields:
        For each frame, 2n + 1 frames, itself in the middle.
    """
    window: deque[Tensor] = deque(maxlen=2 * neighbours + 1)
    for frame in _padded(frames, neighbours):
        window.append(frame)
        if len(window) == window.maxlen:
            yield list(window)


def _padded(frames: Iterable[Tensor], neighbours: int) -> Iterator[Tensor]:
    last: Tensor | None = None
    for frame in frames:
        yield from [frame] * (neighbours if last is None else 0)
        yield frame
        last = frame
    if last is not None:
        yield from [last] * neighbours


@dataclass(frozen=True)
class TrackedSequence:
    """Frames with the box of one object in each.

    Args:
        frames: The frames.
        boxes: xyxy in pixels from 0, (F, 4) float64; x1 - x0 is the width in pixels. NaN where the
            object is absent, or its box is not given.
        absent: Frames in which the object is not seen, (F,) bool; None where the data set does not
            say.
        cover: How much of the object is seen, (F,) int64 from 0, not at all, to 8, all of it; None
            where the data set does not say.
        attributes: What makes the sequence hard, as the data set names it.

    Raises:
        ValueError: If anything has not as many rows as there are frames, or boxes are not float64.
    """

    frames: FrameSequence
    boxes: Tensor
    absent: Tensor | None = None
    cover: Tensor | None = None
    attributes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        count = len(self.frames)
        if self.boxes.shape != (count, 4) or self.boxes.dtype != torch.float64:
            raise ValueError(
                f"{self.name}: boxes must be float64 of shape ({count}, 4), one for each frame; "
                f"got {self.boxes.dtype} of shape {tuple(self.boxes.shape)}"
            )
        for name, rows in (("absent", self.absent), ("cover", self.cover)):
            if rows is not None and rows.shape != (count,):
                raise ValueError(
                    f"{self.name}: {name} must have one entry for each of the {count} frames; got "
                    f"shape {tuple(rows.shape)}"
                )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def name(self) -> str:
        """Names the sequence in tables and result files."""
        return self.frames.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame in pixels."""
        return self.frames.size

    @property
    def folder(self) -> Path:
        """Where its frames lie."""
        return self.frames.files[0].parent

    def to(self, device: torch.device) -> Self:
        """Leaves the sequence where it is, as `FrameSequence.to` does."""
        return self


class SequenceSampler(DistributedSampler[int]):
    """Deals sequences to the processes of a run, each of them once, by their lengths.

    The longest goes first, each to the process with the fewest frames so far, so that they finish
    at about the same time. None is repeated to give all as many: a process may get none at all.
    Being a `DistributedSampler`, it is left as it is by Trainer, which shards any other one.

    Args:
        lengths: Frames of each sequence.
        ranks: Processes of the run.
        rank: This process, from 0.
    """

    def __init__(self, lengths: Sequence[int], *, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(
            range(max(len(lengths), ranks)),  # type: ignore[arg-type]  # nothing of it is used
            num_replicas=ranks,
            rank=rank,
            shuffle=False,
        )
        load = [0] * ranks
        mine = []
        for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
            least = load.index(min(load))
            load[least] += lengths[number]
            if least == rank:
                mine.append(number)
        self.numbers = tuple(sorted(mine))

    def __iter__(self) -> Iterator[int]:
        """Yields this process's sequences in the data set's order."""
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
