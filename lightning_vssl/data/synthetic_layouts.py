"""Writing of the built-in videos, each collection in the layout and codec of its model.

A layout says, for the n-th video, which scene it shows and where its file goes; both follow from n
alone, so 100,000 videos need no more memory than 50. Files appear whole under their names (written
beside, then renamed): a run that was killed goes on where it stopped.
"""

import errno
import functools
import json
import multiprocessing
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal

import av
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_vssl.data.synthetic_scenes import (
    MOTIONS,
    OBJECTS,
    Split,
    draw,
    labels,
)

VERSION = 1
"""Raised whenever the pixels or the files of a given seed change."""

_MARKER = ".built-in.json"
_CHUNK = 8


# --- files that appear whole --------------------------------------------------------------------


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; line ends stay as they are in ``text``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    part.write_bytes(text.encode())
    part.replace(path)


@dataclass(frozen=True)
class Coding:
    """How a video is encoded.

    Attributes:
        codec: Name of the encoder: ``libx264``, ``mpeg4`` or ``libvpx-vp9``.
        container: Name of the container: ``mp4``, ``avi`` or ``webm``.
        gop: Frames from keyframe to keyframe, at most.
        b_frames: B frames between two others, at most.
        tag: Four-character code, where the model's differs from the container's usual one.
        options: Options of the encoder.
    """

    codec: str
    container: str
    gop: int
    b_frames: int
    tag: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def h264(gop: int = 30, b_frames: int = 3, crf: int = 18) -> Coding:
    """H.264 in MP4."""
    return Coding(
        "libx264", "mp4", gop, b_frames, options=(("preset", "veryfast"), ("crf", str(crf)))
    )


def mpeg4(gop: int = 12, b_frames: int = 2) -> Coding:
    """MPEG-4 Part 2 in AVI with the code XVID, as in UCF-101 and HMDB-51."""
    return Coding("mpeg4", "avi", gop, b_frames, tag="XVID", options=(("qscale", "3"),))


def vp9(gop: int = 30) -> Coding:
    """VP9 in WebM, as in Something-Something V2."""
    options = (("crf", "24"), ("b", "0"), ("deadline", "realtime"), ("cpu-used", "7"))
    return Coding("libvpx-vp9", "webm", gop, 0, options=options)


def encode(path: Path, frames: NDArray[np.uint8], fps: float, coding: Coding) -> None:
    """Encodes a video with one thread, whole or not at all.

    Args:
        path: The file.
        frames: (T, H, W, 3) uint8, RGB, H and W even.
        fps: Frames per second; 29.97 becomes 30000/1001.
        coding: Codec, container and their settings.

    Raises:
        OSError: If the file cannot be written, for instance because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        _encode(part, frames, Fraction(fps).limit_denominator(1001), coding)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            error.errno or errno.EIO, f"cannot write a video: {reason}", str(path)
        ) from error


def _encode(path: Path, frames: NDArray[np.uint8], rate: Fraction, coding: Coding) -> None:
    with av.open(str(path), "w", format=coding.container) as output:
        stream = output.add_stream(coding.codec, rate=rate, options=dict(coding.options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.gop_size = coding.gop
        context.max_b_frames = coding.b_frames
        if coding.tag is not None:
            context.codec_tag = coding.tag
        if coding.codec == "mpeg4":
            context.qmin, context.qmax = 2, 4
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


# --- layouts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout(ABC):
    """A collection of built-in videos on disk.

    Attributes:
        root: Its folder.
        videos: Number of videos, training and test together.
        seed: Seed of all pixels and labels.
    """

    root: Path
    videos: int
    seed: int

    name: ClassVar[str]

    @property
    def tests(self) -> int:
        """Number of test videos: a quarter, rounded down to whole sets of motions."""
        return max(self.videos // 4 // len(MOTIONS) * len(MOTIONS), len(MOTIONS))

    def place(self, number: int) -> tuple[Split, int]:
        """Finds split and index of the n-th video: training videos first."""
        train = self.videos - self.tests
        return ("train", number) if number < train else ("test", number - train)

    def split(self, split: Split) -> Iterator[int]:
        """Lists the numbers of the videos of a split."""
        train = self.videos - self.tests
        yield from range(train) if split == "train" else range(train, self.videos)

    def labels(self, number: int) -> tuple[int, int]:
        """Looks up motion and object of the n-th video."""
        split, index = self.place(number)
        return labels(self.seed, index, split)

    @abstractmethod
    def target(self, number: int) -> Path:
        """Names the file or folder of the n-th video."""

    @abstractmethod
    def write(self, number: int) -> None:
        """Draws and writes the n-th video, whole or not at all."""

    @abstractmethod
    def finish(self) -> None:
        """Writes the lists, once all videos are there."""


@dataclass(frozen=True)
class DemoLayout(Layout):
    """The native layout: H.264 in ``train/`` and ``test/``, and one CSV for each.

    ``train.csv`` and ``test.csv`` have the columns path, motion, object; the two classes are
    written by name. Folders hold at most 1,000 videos.
    """

    name: ClassVar[str] = "demo"

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        split, index = self.place(number)
        return self.root / split / f"{index // 1000:03d}" / f"{index:06d}.mp4"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        split, index = self.place(number)
        drawn = draw(self.seed, index, split)
        encode(self.target(number), drawn.frames, drawn.fps, h264(gop=(12, 24, 48)[index % 3]))

    def finish(self) -> None:
        """Writes train.csv and test.csv."""
        splits: tuple[Split, Split] = ("train", "test")
        for split in splits:
            rows = ["path,motion,object\n"]
            for number in self.split(split):
                motion, kind = self.labels(number)
                path = self.target(number).relative_to(self.root).as_posix()
                rows.append(f"{path},{MOTIONS[motion]},{OBJECTS[kind]}\n")
            write_text(self.root / f"{split}.csv", "".join(rows))


LayoutName = Literal["demo"]

LAYOUTS: dict[LayoutName, type[Layout]] = {"demo": DemoLayout}


# --- making -------------------------------------------------------------------------------------


def _write_some(layout: Layout, numbers: range) -> int:
    for number in numbers:
        if not layout.target(number).exists():
            layout.write(number)
    return len(numbers)


def _chunks(total: int) -> list[range]:
    return [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]


def _done(layout: Layout, workers: int) -> Iterator[int]:
    """Writes all videos; yields how many each finished chunk held."""
    work = functools.partial(_write_some, layout)
    chunks = _chunks(layout.videos)
    if workers == 1 or len(chunks) == 1:
        yield from map(work, chunks)
        return
    # fork: the workers draw and encode only, and a user's script needs no __main__ guard.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        try:
            yield from pool.map(work, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def _with_bar(done: Iterable[int], total: int, name: str, shown: bool) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown) as bar:
        task = bar.add_task(f"Built-in videos ({name})", total=total)
        for count in done:
            bar.advance(task, count)


def make_demo(
    root: str | Path,
    layout: LayoutName = "demo",
    *,
    videos: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draws and writes a collection of built-in videos, or goes on with one that was begun.

    Args:
        root: Folder of the collection; made if missing.
        layout: Whose folder layout, lists and codec to use.
        videos: Number of videos, 16 to 100,000; a quarter of them are for testing.
        seed: Seed of all pixels and labels: the same seed, the same pixels.
        workers: Number of processes; None: as many as this process may use cores.
        progress: Whether to show a bar.

    Returns:
        The folder.

    Raises:
        ValueError: If an argument is out of range, or the folder holds another collection.
        OSError: If a file cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not 16 <= videos <= 100_000:
        raise ValueError(f"videos must be in 16..100000, got {videos}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1 (or None: all cores), got {workers}")
    root = Path(root)
    plan = LAYOUTS[layout](root, videos, seed)
    wanted = {"layout": layout, "videos": videos, "seed": seed, "version": VERSION}
    if _begun(root, wanted):
        return root
    write_text(root / _MARKER, json.dumps({**wanted, "done": False}))
    _with_bar(_done(plan, workers or _cores()), videos, layout, progress)
    plan.finish()
    write_text(root / _MARKER, json.dumps({**wanted, "done": True}))
    return root


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _begun(root: Path, wanted: dict[str, str | int]) -> bool:
    """Reads the marker: True if the collection is complete, False if it has to be written."""
    marker = root / _MARKER
    if not marker.exists():
        if root.exists() and any(root.iterdir()):
            raise ValueError(
                f"root must be an empty folder or one of built-in videos, got {root}, which holds"
                " other files; name a new folder"
            )
        return False
    found = json.loads(marker.read_text())
    done = bool(found.pop("done", False))
    if found != wanted:
        raise ValueError(
            f"{root} holds other built-in videos ({found}) than asked for ({wanted}); name another"
            " folder or delete this one"
        )
    return done
