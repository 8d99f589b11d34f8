"""What the layouts of built-in videos share: files that appear whole, encoders, the numbering.

A layout says, for the n-th video, which scene it shows and where its file goes; both follow from n
alone, so 100,000 videos need no more memory than 50. Files appear whole under their names (written
beside, then renamed): a run that was killed goes on where it stopped.
"""

import errno
import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_vssl.data.encode import Coding, video_stream
from lightning_vssl.data.synthetic_scenes import MOTIONS, Split, labels

_SOUND_RATE = 44_100

# --- files that appear whole --------------------------------------------------------------------


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Gives a name to write under; what was written becomes ``path``, or nothing does.

    Raises:
        OSError: Whatever the writing raised, with the path and the system's reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        yield part
        part.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        code = error.errno or errno.EIO
        raise OSError(code, f"cannot write built-in videos: {reason}", str(path)) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_lines(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    """Writes a text file, whole or not at all.

    Args:
        path: The file; its folder is made if missing.
        lines: Its lines, without their ends.
        end: What ends a line.
    """
    with _whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.writelines(line + end for line in lines)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: The file; its folder is made if missing.
        content: What it holds.
    """
    with _whole(path) as part:
        part.write_bytes(content)


def write_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes a folder of files, whole or not at all.

    Args:
        path: The folder; one that is there already is kept as it is.
        files: Names and contents.
    """
    if path.exists():
        return
    with _whole(path) as part:
        part.mkdir()
        for name, content in files:
            (part / name).write_bytes(content)


def jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encodes a picture, (H, W, 3) uint8 RGB, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def h264(gop: int = 30, b_frames: int = 3, *, sound: bool = False) -> Coding:
    """H.264 in MP4."""
    options = (("preset", "veryfast"), ("crf", "18"))
    return Coding("libx264", "mp4", gop, b_frames, options=options, sound=sound)


def mpeg4(gop: int = 12, b_frames: int = 2) -> Coding:
    """MPEG-4 Part 2 in AVI with the code XVID, as in UCF-101 and HMDB-51."""
    options = (("qscale", "3"),)
    return Coding("mpeg4", "avi", gop, b_frames, tag="XVID", options=options, quantisers=(2, 4))


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
    with _whole(path) as part:
        _encode(part, frames, Fraction(fps).limit_denominator(1001), coding)


def _encode(path: Path, frames: NDArray[np.uint8], rate: Fraction, coding: Coding) -> None:
    with av.open(str(path), "w", format=coding.container) as output:
        stream = video_stream(output, coding, (frames.shape[1], frames.shape[2]), rate)
        audio = output.add_stream("aac", rate=_SOUND_RATE, layout="mono") if coding.sound else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if audio is not None:
            samples = int(len(frames) / rate * _SOUND_RATE)
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, samples), dtype=np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = _SOUND_RATE
            silence.pts = 0
            output.mux(audio.encode(silence))
            output.mux(audio.encode(None))


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
