"""What sources of frames share: files, which libav decodes, and pictures, which Pillow does."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_vssl.data.packets import Indices
from lightning_vssl.data.windows import Interpolation

DEFAULT_FPS = 25.0
"""Frames per second of a source that carries no times, unless `fps` says otherwise."""

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
F = TypeVar("F")


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before any of its frames is asked for.

    Attributes:
        frames: Number of frames that are shown.
        width: Pixels of a displayed frame, after rotation.
        height: Pixels of a displayed frame, after rotation.
        fps: Mean rate, (frames - 1) / (last time - first time). Of a single frame, the rate its
            container states, else 25.
        duration: Seconds from the first frame until the last one has been shown.
        rotation: Degrees counter-clockwise by which stored frames are turned for display: 0, 90,
            180 or 270.
        codec: Name of the decoder; of a folder, the suffix of its frames.
        stream: Number of the stream in its container.
    """

    frames: int
    width: int
    height: int
    fps: float
    duration: float
    rotation: int
    codec: str
    stream: int


class FrameCutter(ABC, Generic[F]):
    """Makes an RGB array of one window of a frame.

    Attributes:
        used: The window really cut, x0, y0, x1, y1 in displayed pixels.
    """

    used: Box

    @abstractmethod
    def __call__(self, frame: F) -> Pixels:
        """Cut (H, W, 3) uint8."""


class FrameSource(ABC, Generic[F]):
    """Frames that can be asked for by number."""

    info: VideoInfo
    times: Floats

    @abstractmethod
    def frames(self, wanted: Indices) -> Iterator[tuple[int, F]]:
        """Give the frames `wanted` (sorted, without repetition) in any order."""

    @abstractmethod
    def cutter(
        self, window: Box, size: tuple[int, int] | None, interpolation: Interpolation
    ) -> FrameCutter[F]:
        """Say how a window is cut; `size` None: whole pixels, not scaled."""

    def close(self) -> None:
        """Let go of the file."""


def snapped(low: float, high: float, unit: int, side: int) -> tuple[int, int]:
    """Nearest edges that are multiples of `unit` or the far side, at least a unit apart."""
    grid = np.append(np.arange(0, side, unit), side)
    first = int(np.abs(grid - low).argmin())
    last = int(np.abs(grid - high).argmin())
    if last <= first:
        first = min(int(np.searchsorted(grid, (low + high) / 2, side="right")) - 1, len(grid) - 2)
        last = first + 1
    return int(grid[first]), int(grid[last])
