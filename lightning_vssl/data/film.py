"""Writing frames as a film that any player shows, one after the other as they come."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lightning_vssl.data.atomic import whole_file


def write_film(file: Path, frames: Iterable[NDArray[np.uint8]], fps: float = 25.0) -> None:
    """Encodes frames as H.264 in MP4, whole or not at all; only one frame is held at a time.

    Args:
        file: The file.
        frames: (H, W, 3) uint8 RGB each, of one size. An odd row or column at the end is left out,
            for the format wants even sides.
        fps: Frames per second.

    Raises:
        ValueError: If there is no frame, or one of another size than the first.
        OSError: If the file cannot be written.
    """
    rate = Fraction(fps).limit_denominator(1001)
    with whole_file(file) as part, av.open(str(part), "w", format="mp4") as output:
        options = {"preset": "veryfast", "crf": "20"}
        stream = output.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        size: tuple[int, ...] = ()
        for number, pixels in enumerate(frames):
            size = size or pixels.shape
            if pixels.shape != size:
                raise ValueError(
                    f"{file.name}: frame {number} has the shape {pixels.shape}, and the first "
                    f"{size}"
                )
            even = np.ascontiguousarray(pixels[: size[0] // 2 * 2, : size[1] // 2 * 2])
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            output.mux(stream.encode(frame))
        if not size:
            raise ValueError(f"{file.name}: a film needs a frame")
        output.mux(stream.encode(None))
