"""Folders of frames, and single images, as sources of frames for `VideoReader`.

Frames of a folder that are JPEG are decoded and cut by libav, as the frames of a file are: for a
window that is scaled that takes half the time of Pillow. Whole pixels, other formats and single
images come from Pillow.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from lightning_vssl.data.cutting import PlaneCutter
from lightning_vssl.data.packets import Indices, UnreadableVideo
from lightning_vssl.data.source import (
    DEFAULT_FPS,
    Box,
    FrameCutter,
    FrameSource,
    Pixels,
    VideoInfo,
    snapped,
)
from lightning_vssl.data.windows import Interpolation

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Files that are images, alone or as frames of a folder; compared without regard to case."""

_JPEG_SUFFIXES = (".jpg", ".jpeg")
# Pixels per chroma sample of nearly all of them.
_JPEG_UNIT = (2, 2)

# What comes before the last number of a name, and that number.
_LAST_NUMBER = re.compile(r"(.*?)(\d+)\.[^.]*")

# Pillow's own errors: OSError for most broken files, the others for some formats.
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class _Picture:
    """An image file, decoded once at each size that is asked for, or once into planes."""

    def __init__(self, path: Path, decoder: av.VideoCodecContext | None = None) -> None:
        self.path = path
        self._decoder = decoder
        self._decoded: dict[tuple[int, int], Image.Image] = {}
        self._planes: av.VideoFrame | None = None

    def rgb(self, frame: tuple[int, int], least: tuple[int, int] | None) -> Image.Image:
        """Decode it.

        Args:
            frame: Width and height that it must have.
            least: Width and height that will do, where the format can be read at a fraction of its
                size; None for all pixels.

        Raises:
            UnreadableVideo: It does not decode, or has another size.
        """
        try:
            with Image.open(self.path) as image:
                self._check_size(image.size, frame)
                if least is not None:
                    image.draft("RGB", least)
                if image.size not in self._decoded:
                    self._decoded[image.size] = image.convert("RGB")
                return self._decoded[image.size]
        except _BROKEN as error:
            reason = f"the frame does not decode ({error})"
            raise UnreadableVideo(self.path, reason) from error

    def planes(self, frame: tuple[int, int]) -> av.VideoFrame | None:
        """Decode a JPEG as it is stored; None for what libav cannot, or not in these colours.

        Args:
            frame: Width and height that it must have.

        Raises:
            UnreadableVideo: It has another size.
        """
        if self._planes is None and self._decoder is not None:
            try:
                found = self._decoder.decode(av.Packet(self.path.read_bytes()))
            except (OSError, av.FFmpegError):
                found = []
            if not found:
                self._decoder.flush_buffers()  # an empty file is the end to it
                return None
            if not found[0].format.name.startswith(("yuv", "gray")):
                return None
            self._check_size((found[0].width, found[0].height), frame)
            self._planes = found[0]
        return self._planes

    def _check_size(self, size: tuple[int, int], frame: tuple[int, int]) -> None:
        if size != frame:
            reason = "is {} x {} pixels, the first frame of its folder {} x {}"
            raise UnreadableVideo(self.path, reason.format(*size, *frame))


class _PictureCutter(FrameCutter[_Picture]):
    """Cuts one window of images, which are read at a fraction of their size where that will do."""

    def __init__(
        self,
        window: Box,
        size: tuple[int, int] | None,
        frame: tuple[int, int],
        interpolation: Interpolation,
    ) -> None:
        self._frame = frame
        self._size = size
        self._filter = _FILTERS[interpolation]
        self.used = window
        if size is None:
            left, right = snapped(window[0], window[2], 1, frame[0])
            top, bottom = snapped(window[1], window[3], 1, frame[1])
            self.used = (left, top, right, bottom)

    def __call__(self, frame: _Picture) -> Pixels:
        width, height = self._frame
        x0, y0, x1, y1 = self.used
        if self._size is None:
            whole = np.asarray(frame.rgb(self._frame, None))
            return whole[int(y0) : int(y1), int(x0) : int(x1)]
        out_height, out_width = self._size
        # At least twice the size that is needed, so that the smooth filter still does the work.
        least = (
            min(width, round(2 * out_width * width / (x1 - x0))),
            min(height, round(2 * out_height * height / (y1 - y0))),
        )
        image = frame.rgb(self._frame, least)
        across, down = image.width / width, image.height / height
        box = (
            x0 * across,
            y0 * down,
            min(x1 * across, image.width),
            min(y1 * down, image.height),
        )
        return np.asarray(image.resize((out_width, out_height), self._filter, box=box))


class _JpegCutter(FrameCutter[_Picture]):
    """Cuts one window of JPEG images and scales it, with libav; what that cannot read, Pillow."""

    def __init__(
        self,
        window: Box,
        size: tuple[int, int],
        frame: tuple[int, int],
        interpolation: Interpolation,
    ) -> None:
        self._frame = frame
        self._cut = PlaneCutter(window, size, frame, 0, _JPEG_UNIT, interpolation)
        self.used = self._cut.used
        self._last_resort = _PictureCutter(self.used, size, frame, interpolation)

    def __call__(self, frame: _Picture) -> Pixels:
        planes = frame.planes(self._frame)
        return self._last_resort(frame) if planes is None else self._cut(planes)


_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def is_images(path: Path) -> bool:
    """Whether a path names an image or a folder, which then is one of frames."""
    return path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir()


class Folder(FrameSource[_Picture]):
    """A folder of frames, or one image.

    Frames are told apart by number alone, so a folder whose names count (``00001.jpg``) must not
    leave one out: the frames behind a hole would be shown too early.

    Args:
        path: The folder, or the image.
        fps: Frames per second; None for `DEFAULT_FPS`.
        verify: Decode all frames now.

    Raises:
        UnreadableVideo: No frames; a hole in their numbers; the first one, or with ``verify`` any,
            does not decode.
    """

    def __init__(self, path: Path, fps: float | None, verify: bool) -> None:
        found = path.iterdir() if path.is_dir() else (path,)
        names = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES]
        self._frames = sorted(names, key=_natural)
        if not self._frames:
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise UnreadableVideo(path, f"the folder holds no frames ({kinds})")
        _check_numbers(path, [frame.name for frame in self._frames])
        try:
            with Image.open(self._frames[0]) as image:
                width, height = image.size
        except _BROKEN as error:
            reason = f"the frame does not decode ({error})"
            raise UnreadableVideo(self._frames[0], reason) from error
        planar = path.is_dir() and all(f.suffix.lower() in _JPEG_SUFFIXES for f in self._frames)
        self._decoder = _jpeg_decoder() if planar else None
        rate = fps or DEFAULT_FPS
        count = len(self._frames)
        self.times = np.arange(count) / rate
        self.info = VideoInfo(
            frames=count,
            width=width,
            height=height,
            fps=rate,
            duration=count / rate,
            rotation=0,
            codec=self._frames[0].suffix[1:].lower(),
            stream=0,
        )
        if verify:
            for frame in self._frames:
                _Picture(frame).rgb((width, height), None)

    def frames(self, wanted: Indices) -> Iterator[tuple[int, _Picture]]:
        """Give the files of the frames wanted."""
        return ((int(n), _Picture(self._frames[n], self._decoder)) for n in wanted)

    def cutter(
        self, window: Box, size: tuple[int, int] | None, interpolation: Interpolation
    ) -> _PictureCutter | _JpegCutter:
        """Cut with libav or Pillow."""
        frame = (self.info.width, self.info.height)
        if self._decoder is not None and size is not None:
            return _JpegCutter(window, size, frame, interpolation)
        return _PictureCutter(window, size, frame, interpolation)


def _jpeg_decoder() -> av.VideoCodecContext:
    decoder = av.VideoCodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}  # else what is missing of a file is made up
    return decoder


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Order of names in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _check_numbers(folder: Path, names: Sequence[str]) -> None:
    """Raises where names that differ in their last number alone do not count in equal steps."""
    found = [_LAST_NUMBER.fullmatch(name) for name in names]
    numbers = [int(match[2]) for match in found if match]
    if len(numbers) < len(names) or len({match[1] for match in found if match}) > 1:
        return  # other names, which do not count
    steps = np.diff(numbers)
    step = steps.min(initial=np.iinfo(np.int64).max)
    holes = np.flatnonzero(steps != step)
    if holes.size:
        after = int(holes[0])
        raise UnreadableVideo(
            folder,
            f"frames are missing: {names[after + 1]} comes after {names[after]}, and the numbers "
            f"of others are {step} apart",
        )
