"""Encoding videos: how, and one frame after another with the frames' own times."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

# Clocks that containers use, besides the frame rate itself: ticks a second.
_CLOCKS = (1_000, 600, 12_800, 15_360, 16_000, 30_000, 90_000)
_FINEST = 1_000_000
_FINEST_OF = {"mpeg4": 65_535}  # what the standard can write
_EXACT = 1e-7  # seconds


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
        sound: Whether a silent AAC track goes with the pictures.
        quantisers: Least and most, for an encoder that has no constant rate factor.
    """

    codec: str
    container: str
    gop: int
    b_frames: int
    tag: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    sound: bool = False
    quantisers: tuple[int, int] | None = None


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size of a frame whose short side is at most ``short_side``, both sides even."""
    scale = min(1.0, short_side / min(height, width))
    rows, columns = (max(2, round(side * scale / 2) * 2) for side in (height, width))
    return rows, columns


def video_stream(
    output: av.container.OutputContainer, coding: Coding, size: tuple[int, int], rate: Fraction
) -> av.VideoStream:
    """Adds a video stream of 4:2:0 that one thread encodes: the same bytes on every machine.

    Args:
        output: The file.
        coding: Codec and its settings.
        size: (H, W), both even.
        rate: Frames per second.
    """
    added = output.add_stream(coding.codec, rate=rate, options=dict(coding.options))
    stream = cast(av.VideoStream, added)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.gop_size = coding.gop
    context.max_b_frames = coding.b_frames
    if coding.tag is not None:
        context.codec_tag = coding.tag
    if coding.quantisers is not None:
        context.qmin, context.qmax = coding.quantisers
    return stream


def encode_timed(
    path: Path, frames: Iterable[Pixels], times: Floats, fps: float, coding: Coding
) -> None:
    """Encodes a video as its frames come, each with the time at which it is shown.

    Args:
        path: The file.
        frames: (H, W, 3) uint8 RGB each, H and W even.
        times: (T,) seconds, the first 0, increasing. They are kept to half a tick of `clock`; of
            frames that would fall on one tick, the later ones move to the next.
        fps: Mean frames per second.
        coding: Codec, container and their settings; no sound.

    Raises:
        OSError: If the file cannot be written, for instance because the disk is full.
        ValueError: If there are not T frames.
    """
    rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
    base = clock(times, rate, _FINEST_OF.get(coding.codec, _FINEST))
    order = np.arange(len(times))
    ticks = np.rint(times / float(base)).astype(np.int64)
    ticks = (np.maximum.accumulate(ticks - order) + order).tolist()
    with av.open(str(path), "w", format=coding.container) as output:
        stream: av.VideoStream | None = None
        for pixels, tick in zip(frames, ticks, strict=True):
            if stream is None:
                height, width = pixels.shape[:2]
                stream = video_stream(output, coding, (height, width), rate)
                stream.codec_context.time_base = base
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = tick
            frame.time_base = base
            output.mux(stream.encode(frame))
        if stream is not None:
            output.mux(stream.encode(None))


def clock(times: Floats, rate: Fraction, finest: int = _FINEST) -> Fraction:
    """The coarsest of the usual time bases that keeps times as they are.

    Args:
        times: (T,) seconds.
        rate: Mean frames per second.
        finest: Ticks a second that the codec can count, at most.

    Returns:
        Seconds of a tick: 1 / ``rate`` for a constant rate, else that of a container's clock;
        the finest where none keeps them.
    """
    for base in (1 / rate, *(Fraction(1, ticks) for ticks in _CLOCKS)):
        tick = float(base)
        kept = np.abs(np.rint(times / tick) * tick - times).max() < _EXACT
        if kept and base.denominator <= finest:
            return base
    return Fraction(1, finest)
