"""Small videos for the tests, made on the spot."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_BITS = 8


def numbered_frames(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Frames that carry their own number, so that a test knows which one it was given.

    The upper half holds the number as eight black or white bars, the most significant first; the
    lower half is a smooth texture that moves by one pixel a frame and depends on ``seed``.

    Returns:
        (N, H, W, 3) uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    tone = rng.uniform(60, 200, size=3)
    wave = rng.uniform(0.05, 0.3, size=2)
    y, x = np.mgrid[0:height, 0:width]
    out = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        pattern = np.sin(wave[0] * (x + i))[..., None] * np.cos(wave[1] * y)[..., None]
        out[i] = np.clip(tone + 40 * pattern, 0, 255)
        for bit in range(_BITS):
            on = (i >> (_BITS - 1 - bit)) & 1
            left, right = bit * width // _BITS, (bit + 1) * width // _BITS
            out[i, : height // 2, left:right] = 235 * on + 10
    return out


def frame_number(frame: np.ndarray) -> int:
    """Reads the number back from a frame of `numbered_frames`, (H, W, 3), at any size."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(_BITS):
        centre = (2 * bit + 1) * width // (2 * _BITS)
        number = 2 * number + int(frame[height // 8 : height // 4, centre].mean() > 127)
    return number


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float | Fraction = 25,
    codec: str = "libx264",
    *,
    gop: int = 12,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
) -> Path:
    """Encodes frames, (N, H, W, 3) uint8 RGB, into ``path``; the suffix names the container.

    Args:
        path: ``.mp4``, ``.avi``, ``.mkv``, ...; missing folders are made.
        frames: The frames, even sides.
        fps: Frames per second.
        codec: ``libx264``, ``mpeg4``, ``mjpeg``, ...
        gop: Frames from one key frame to the next at most.
        b_frames: Bidirectional frames in a row at most.
        options: Further options of the encoder.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.thread_count = 1
        stream.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.options = {"crf": "12"} if codec == "libx264" else {}
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        stream.options = {**stream.options, **(options or {})}
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_numbered(path: Path, frames: int = 40, fps: float = 25, seed: int = 0) -> Path:
    """`numbered_frames` in a small H.264 file."""
    return write_video(path, numbered_frames(frames, seed=seed), fps)
