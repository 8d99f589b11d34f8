"""Makes the videos of a data set quick to read: small, with keyframes close together, no sound.

Training reads a few frames anywhere in a video, so what it costs is how far back the last keyframe
lies and how many pixels are decoded only to be scaled away. Web videos have a keyframe every five
to ten seconds and several times the pixels that are used; this job encodes them once more.
"""

import copy
import json
import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import process_time
from typing import Literal, get_args

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.encode import Coding, encode_timed, even_size
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.packets import words
from lightning_vssl.data.place import Place
from lightning_vssl.data.store import TABLE, repeated, store_table
from lightning_vssl.data.video_files import video_name
from lightning_vssl.data.whole import Record, Span, Work
from lightning_vssl.jobs.base import Job, Shards

_log = logging.getLogger(__name__)

Codec = Literal["libx264", "mpeg4"]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]

_LOOKED_AT = 16  # frames that black bars are looked for in
_DARK = 24.0  # mean of a dark line, of 255: libav's cropdetect
_LEAST = 0.25  # of the picture is left, or what is dark is no bar
_CLIP, _STRIDE, _SIDE = 16, 2, 112  # the clip by which reading is timed
_MORE = (
    ("frames", pa.int64()),
    ("height", pa.int64()),
    ("width", pa.int64()),
    ("bytes_before", pa.int64()),
    ("clip_ms_before", pa.float64()),
    ("clip_ms_after", pa.float64()),
)


@dataclass(frozen=True)
class Transcode:
    """Encodes a video once more, in a worker, and times how it is read before and after.

    Frames are read, cut, scaled (antialiased) and turned as training would read them, so what comes
    out has the frames, in number and time, that training would see.

    Args:
        root: The data set's root.
        folder: Where the videos go.
        short_side: Pixels that a frame's short side is scaled down to; never up.
        fps: Frames per second at most, of which each shows what was shown at its time; None for
            all frames.
        crop_bars: Whether black bars are cut off.
        coding: How files are encoded.
    """

    root: Path
    folder: Path
    short_side: int
    fps: float | None
    crop_bars: bool
    coding: Coding

    def __call__(self, reader: VideoReader, span: Span) -> dict[str, Tensor]:
        """Transcodes a video, in full, whatever the span; what an earlier run has left is kept.

        Args:
            reader: The video.
            span: Not used: the spans of a data set's lists stay true.

        Returns:
            ``frames``, ``height``, ``width``, ``cropped`` (0 or 1), ``size`` and ``bytes_before``,
            () int64; ``clip_ms_before`` and ``clip_ms_after``, () float64, processor time of
            opening the file and reading a clip of 16 frames, every second one, at 112 x 112.

        Raises:
            UnreadableVideo: If a frame does not decode, or what was encoded is not the video: a
                job notes that, and goes on with the others.
            OSError: If the file cannot be written.
        """
        file = target(reader.path, self.root, self.folder)
        chosen, times = thinned(reader.times, reader.info.fps, self.fps)
        height, width = reader.info.height, reader.info.width
        window = black_bars(reader) if self.crop_bars else (0, 0, width, height)
        size = even_size(window[3] - window[1], window[2] - window[0], self.short_side)
        if not file.is_file():
            rate = (len(times) - 1) / times[-1] if len(times) > 1 else reader.info.fps
            box = (float(window[0]), float(window[1]), float(window[2]), float(window[3]))
            frames = reader.stream(chosen, window=box, size=size)
            # What cannot be read is found before the file is opened for writing.
            first = next(frames)
            try:
                with whole_file(file) as temporary:
                    encode_timed(temporary, chain([first], frames), times, rate, self.coding)
            except OSError as error:
                raise OSError(error.errno, f"cannot write {file}: {error}") from error
            except av.FFmpegError as error:
                reason = f"{self.coding.codec} cannot encode it ({words(error)})"
                raise UnreadableVideo(reader.path, reason) from error
        found = {
            "frames": len(chosen),
            "height": size[0],
            "width": size[1],
            "cropped": int(window != (0, 0, width, height)),
            "size": file.stat().st_size,
            "bytes_before": reader.bytes,
        }
        before, after = self._timed(reader, file, len(chosen))
        return {
            **{name: torch.tensor(value) for name, value in found.items()},
            "clip_ms_before": torch.tensor(before, dtype=torch.float64),
            "clip_ms_after": torch.tensor(after, dtype=torch.float64),
        }

    def _timed(self, reader: VideoReader, file: Path, frames: int) -> tuple[float, float]:
        """Milliseconds of a clip from each, the better of two; raises where the new one is short.

        The clip starts anywhere, as the video's name says.
        """
        with VideoReader(reader.path, place=Place(file)) as made:
            if made.info.frames != frames:
                file.unlink()
                reason = f"what was encoded has {made.info.frames} frames instead of {frames}"
                raise UnreadableVideo(reader.path, reason)
        share = zlib.crc32(video_name(str(reader.path), self.root).encode()) / 2**32

        def spent(of: VideoReader) -> float:
            began = process_time()
            with copy.copy(of) as opened:
                last = opened.info.frames - 1
                start = int(share * max(1, last + 1 - _CLIP * _STRIDE))
                clip = np.minimum(start + _STRIDE * np.arange(_CLIP), last)
                opened.read(clip[None], size=(_SIDE, _SIDE))
            return 1e3 * (process_time() - began)

        pairs = [(spent(reader), spent(made)) for _ in range(2)]
        return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


class TranscodeJob(Job):
    """Transcodes every video of a split.

    Leaves ``videos/`` in the run's folder, with every file where it was below the data set's root
    and ending in ``.mp4``; ``videos.parquet``, by which a data module with ``--data.store`` reads
    them (`lightning_vssl.data.store`); and ``report.json``, sizes and reading times before and
    after. A video that is listed with several spans is encoded once, whole. What cannot be read
    is recorded with its reason, and stays to be read, and counted, where it lies.

    Args:
        short_side: Pixels that a frame's short side is scaled down to; never up.
        gop: Frames from one keyframe to the next, at most.
        b_frames: B frames between two others, at most.
        fps: Frames per second at most; None to keep all frames and their times.
        crop_bars: Whether black bars at the edges are cut off. Boxes and tubes are shares of the
            picture: those made of the originals then no longer fit.
        codec: H.264, or MPEG-4 part 2: done two to four times as fast, and read a quarter to two
            fifths faster, from files up to two fifths larger.
        crf: Constant rate factor of H.264, 0 to 51; less is better.
        quantiser: That of MPEG-4, 1 to 31; less is better.
        preset: How long H.264's encoder looks for a shorter file.
        fast_decode: Leave out of H.264 what costs its decoder most (the loop filter, arithmetic
            coding): a third less time for files a tenth larger.
        split: Videos of which split.
        shard_size: Videos of a shard. Little is lost with one: files that are there are kept.

    Raises:
        ValueError: If a number is out of its range, or PyAV lacks the encoder.
    """

    def __init__(
        self,
        *,
        short_side: int = 256,
        gop: int = 12,
        b_frames: int = 0,
        fps: float | None = None,
        crop_bars: bool = False,
        codec: Codec = "libx264",
        crf: int = 20,
        quantiser: int = 3,
        preset: Preset = "medium",
        fast_decode: bool = True,
        split: Literal["train", "val", "test"] = "train",
        shard_size: int = 128,
    ) -> None:
        super().__init__(TABLE, split=split, shard_size=shard_size)
        if short_side < 16 or gop < 1 or b_frames < 0:
            raise ValueError(
                f"short_side={short_side}, gop={gop}, b_frames={b_frames}: 16 or more, 1 or more, "
                "0 or more"
            )
        if not 0 <= crf <= 51 or not 1 <= quantiser <= 31:
            raise ValueError(f"crf={crf}, quantiser={quantiser}: 0 to 51, 1 to 31")
        if fps is not None and not fps > 0:
            raise ValueError(f"fps={fps}: above 0, or null for all frames")
        if preset not in get_args(Preset):
            raise ValueError(f"preset={preset!r}: choose {', '.join(get_args(Preset))}")
        if codec not in get_args(Codec):
            raise ValueError(f"codec={codec!r}: choose {' or '.join(get_args(Codec))}")
        try:
            av.Codec(codec, "w")
        except ValueError as error:
            other = next(name for name in get_args(Codec) if name != codec)
            raise ValueError(
                f"codec={codec!r}: this build of PyAV has no such encoder; install the one of "
                f"PyPI, or try codec={other}"
            ) from error
        self.short_side = short_side
        self.gop = gop
        self.b_frames = b_frames
        self.fps = fps
        self.crop_bars = crop_bars
        self.codec = codec
        self.crf = crf
        self.quantiser = quantiser
        self.preset = preset
        self.fast_decode = fast_decode

    @property
    def coding(self) -> Coding:
        """How files are encoded."""
        if self.codec == "mpeg4":
            scale = (self.quantiser, self.quantiser)
            return Coding("mpeg4", "mp4", self.gop, self.b_frames, quantisers=scale)
        options = (("preset", str(self.preset)), ("crf", str(self.crf)))
        tune = (("tune", "fastdecode"),) if self.fast_decode else ()
        return Coding("libx264", "mp4", self.gop, self.b_frames, options=(*options, *tune))

    @property
    def work(self) -> Work:
        """Transcodes."""
        manifest, folder = self._listed(), self.folder / "videos"
        first = np.flatnonzero(~repeated(manifest)).tolist()
        files = Counter(target(manifest.path(row), manifest.root, folder) for row in first)
        twice = sorted(str(file) for file, times in files.items() if times > 1)
        if twice:
            raise ValueError(
                f"{len(twice)} files would hold several videos, whose names differ in their ending "
                f"alone: {', '.join(twice[:5])}; rename those videos"
            )
        return Transcode(
            manifest.root, folder, self.short_side, self.fps, self.crop_bars, self.coding
        )

    def settled(self, manifest: Manifest) -> npt.NDArray[np.bool_]:
        """Rows of a video that another row has too."""
        return repeated(manifest)

    def description(self) -> Mapping[str, object]:
        """What the files depend on."""
        return {
            "short_side": self.short_side,
            "gop": self.gop,
            "b_frames": self.b_frames,
            "fps": self.fps,
            "crop_bars": self.crop_bars,
            "codec": self.codec,
            "crf": self.crf,
            "quantiser": self.quantiser,
            "preset": self.preset,
            "fast_decode": self.fast_decode,
        }

    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """Rows of the store."""
        rows = []
        for record in records:
            row = record["row"]
            assert isinstance(row, int)
            if not record["error"] and "size" not in record:
                continue  # another row of the same video
            path = manifest.path(row)
            made = {name: _number(value) for name, value in record.items()}
            file = target(path, manifest.root, Path("videos")).as_posix()
            rows.append(
                {
                    **made,
                    "path": video_name(str(path), manifest.root),
                    "file": "" if record["error"] else file,
                    "offset": 0,
                    "cropped": bool(made.get("cropped")),
                    "error": str(record["error"]),
                }
            )
        return store_table(rows, _MORE)

    def join(self) -> bool:
        """Makes the table if all shards are there, and the report."""
        if not super().join():
            return False
        made = report(pq.read_table(self.file))
        with whole_file(self.folder / "report.json") as temporary:
            temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        Console().print(_shown(made))
        return True

    def _left(self) -> Shards | str:
        for temporary in (self.folder / "videos").rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        return super()._left()

    def _listed(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest


def target(path: Path, root: Path, folder: Path) -> Path:
    """The file that a video becomes.

    Args:
        path: The video.
        root: The data set's root.
        folder: Where the files go.

    Returns:
        It lies below the folder as the video lies below the root.
    """
    name = Path(video_name(str(path), root))
    parts = [part for part in name.parts if part not in (name.anchor, "..")]
    return folder.joinpath(*parts).with_suffix(".mp4")


def thinned(
    times: npt.NDArray[np.float64], rate: float, fps: float | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Frames that are left at a lower rate.

    Args:
        times: When the frames are shown, seconds, (N,), the first 0.
        rate: Their mean rate.
        fps: Frames per second at most; None for all.

    Returns:
        Numbers of the frames, increasing, (T,), and when each is shown, (T,). At a lower rate frame
        n is shown at n / ``fps`` seconds, and is the one that was shown then; where a frame was
        shown for longer than that, none repeats it.
    """
    if fps is None or rate <= fps * 1.001:
        return np.arange(len(times)), times
    due = np.arange(int(times[-1] * fps + 1e-6) + 1) / fps
    chosen, first = np.unique(
        np.searchsorted(times, due + 1e-6, side="right") - 1, return_index=True
    )
    return chosen, due[first]


def black_bars(reader: VideoReader) -> tuple[int, int, int, int]:
    """What is left of a video's picture without the black bars at its edges.

    A bar is made of lines that are dark (a mean of at most 24 of 255, as libav's ``cropdetect``
    has it) in all of 16 frames, evenly spread.

    Args:
        reader: The video.

    Returns:
        x0, y0, x1, y1 in pixels, even but at the picture's own edge. All of the picture if less
        than a quarter would be left: it is then a dark one.
    """
    height, width = reader.info.height, reader.info.width
    count = reader.info.frames
    looked = np.unique(((np.arange(_LOOKED_AT) + 0.5) * count / _LOOKED_AT).astype(np.int64))
    rows, columns = np.zeros(height), np.zeros(width)
    for pixels in reader.stream(looked):
        grey = pixels.mean(axis=2)  # (H, W)
        rows = np.maximum(rows, grey.mean(axis=1))
        columns = np.maximum(columns, grey.mean(axis=0))
    (top, bottom), (left, right) = _between(rows), _between(columns)
    if (bottom - top) * (right - left) < _LEAST * height * width:
        return 0, 0, width, height
    return left, top, right, bottom


def _between(lines: npt.NDArray[np.float64]) -> tuple[int, int]:
    """The first bright line and the one behind the last, moved inwards to even ones."""
    bright = np.flatnonzero(lines > _DARK)
    if not len(bright):
        return 0, 0
    first, last = int(bright[0]), int(bright[-1]) + 1
    return first + first % 2, last if last == len(lines) else last - last % 2


def report(table: pa.Table) -> dict[str, object]:
    """Sizes and reading times of all videos, before and after.

    Args:
        table: The job's table.

    Returns:
        Plain data.
    """
    done = table.filter(pa.compute.equal(table.column("error"), ""))
    size, clip = (
        [float(np.sum(done.column(name).to_numpy())) for name in pair]
        for pair in (("bytes_before", "size"), ("clip_ms_before", "clip_ms_after"))
    )
    per_second = [1e3 * len(done) / ms if ms else 0.0 for ms in clip]
    return {
        "videos": len(table),
        "failed": len(table) - len(done),
        "bytes_before": int(size[0]),
        "bytes_after": int(size[1]),
        "bytes_ratio": size[1] / size[0] if size[0] else 0.0,
        "clips_per_cpu_second_before": per_second[0],
        "clips_per_cpu_second_after": per_second[1],
        "clips_ratio": per_second[1] / per_second[0] if per_second[0] else 0.0,
        "clip": f"{_CLIP} frames, every {_STRIDE}nd, whole, at {_SIDE} x {_SIDE}, file opened anew",
    }


def _shown(made: Mapping[str, object]) -> Table:
    """The report for a reader."""
    table = Table("", "before", "after", "after / before")
    numbers = {name: float(str(value)) for name, value in made.items() if name != "clip"}
    before, after = numbers["bytes_before"] / 1e6, numbers["bytes_after"] / 1e6
    table.add_row("MB", f"{before:.1f}", f"{after:.1f}", f"{numbers['bytes_ratio']:.2f}")
    before, after = (numbers[f"clips_per_cpu_second_{when}"] for when in ("before", "after"))
    ratio = f"{numbers['clips_ratio']:.2f}"
    table.add_row("clips a second of a core", f"{before:.1f}", f"{after:.1f}", ratio)
    table.caption = f"{made['videos']} videos, {made['failed']} of them not readable"
    return table


def _number(value: Tensor | int | str) -> float | int | str:
    number: float | int | str = value.item() if isinstance(value, Tensor) else value
    return number
