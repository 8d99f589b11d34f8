"""A tube for every video: where its object is in each frame (PreViTS section 3.2)."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.synthetic_files import encode, h264
from lightning_vssl.data.tubes import Tube, shrink_masks, tube_metadata, tube_table, unpack_masks
from lightning_vssl.data.video_files import video_name
from lightning_vssl.data.whole import Record, Span, Work
from lightning_vssl.jobs.base import Job
from lightning_vssl.jobs.boxes import BoxFrames
from lightning_vssl.jobs.tube_pictures import Pixels, draw_strips, draw_tube
from lightning_vssl.tracking import Tracked, Tracker

_log = logging.getLogger("lightning.pytorch")  # the one whose information is shown

_CLOCK = 1e-3  # seconds that do not matter: times are kept as float32
_SHOWN_SIDE = 240  # pixels of the short side of a drawn video


@dataclass(frozen=True)
class TubeFrames:
    """Reads frames of a video, and tracks its object in them.

    Frames are taken at the middles of equal parts of the video, so that any frame is at most half
    a part away from one of them.

    Args:
        fps: Frames per second.
        max_frames: Most frames of a video; a longer one is tracked at a lower rate.
        short_side: Pixels that a frame's short side is scaled down to; never up.
        side: Pixels of the short side of the masks that are kept.
        root: The data set's root, for the videos' names.
        tracker: What tracks, None to return the frames.
    """

    fps: float
    max_frames: int
    short_side: int
    side: int
    root: Path
    tracker: Tracker | None

    def __call__(self, reader: VideoReader, span: Span) -> dict[str, Tensor]:
        """Works on one video.

        Args:
            reader: The video.
            span: Seconds that are used.

        Returns:
            ``time`` (F,) float32, ``number`` (F,) int64, and ``masks`` (F, h, w) bool or
            ``frames`` (F, 3, H, W) uint8.

        Raises:
            UnreadableVideo: If there is no frame in the span, or one does not decode.
        """
        choose = BoxFrames(self.fps, self.max_frames, self.short_side, None)
        chosen = choose.frames(reader.times, reader.info.fps, span)
        if not len(chosen):
            raise UnreadableVideo(reader.path, f"no frame within {span} seconds")
        found = {
            "time": torch.from_numpy(reader.times[chosen].astype(np.float32)),
            "number": torch.from_numpy(chosen),
        }
        frames = torch.from_numpy(_read(reader, chosen, self.short_side)).permute(0, 3, 1, 2)
        if self.tracker is None:
            return {**found, "frames": frames.contiguous()}
        name = video_name(str(reader.path), self.root)
        tracked = self.tracker(frames.contiguous(), name, chosen.tolist())
        return {**found, "masks": small(tracked, self.side)}


def small(tracked: Tracked, side: int) -> Tensor:
    """The masks that are kept, (F, h, w) bool."""
    return torch.from_numpy(shrink_masks(tracked.masks.cpu().numpy(), side))


def _read(reader: VideoReader, chosen: npt.NDArray[np.int64], short_side: int) -> Pixels:
    """Frames scaled down, (F, H, W, 3); never up."""
    height, width = reader.info.height, reader.info.width
    scale = min(1.0, short_side / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels, _ = reader.read(chosen[None], size=size)
    return np.asarray(pixels[0], np.uint8)


class TrackJob(Job):
    """Makes the tube file of a data set; see `lightning_vssl.data.tubes`.

    When all is done the run's folder also holds ``usable.json``, which counts the videos that have
    a tube long enough to train on, and some videos with their tube drawn on them: as they move in
    ``drawn/``, and in ``tubes.png``.

    Args:
        tracker: What finds the object and follows it.
        fps: Frames tracked per second of video; a frame between takes the nearest one's mask.
        max_frames: Most frames of a video; a longer one is tracked at a lower rate.
        side: Pixels of the short side of the masks that are kept: training looks at them at 7 x 7
            to 14 x 14.
        min_seconds: How long the object must be seen, all in all, for a tube to be usable:
            PreViTS's 60 frames (``min_tracked`` of the training recipes) at 25 a second.
        min_run: How long it must be seen without a gap: the 32 frames of RSPNet's window at 25 a
            second. Frames of MoCo (PreViTS on pictures) need none: 0.
        drawn: Videos that are drawn.
        split: Videos of which split.
        shard_size: Videos of a shard: what a killed run may lose, times its processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        fps: float = 12.5,
        max_frames: int = 600,
        side: int = 64,
        min_seconds: float = 2.4,
        min_run: float = 1.28,
        drawn: int = 8,
        split: Literal["train", "val", "test"] = "train",
        shard_size: int = 128,
    ) -> None:
        super().__init__("tubes", split=split, shard_size=shard_size)
        if not fps > 0 or max_frames < 1 or side < 1:
            raise ValueError(f"fps={fps}, max_frames={max_frames}, side={side}: above 0, 1, 1")
        if min(min_seconds, min_run, drawn) < 0:
            raise ValueError(
                f"min_seconds={min_seconds}, min_run={min_run}, drawn={drawn}: 0 or more"
            )
        self.tracker = tracker
        saliency = tracker.saliency
        self.network = saliency if isinstance(saliency, nn.Module) else None  # to the accelerator
        self.fps = fps
        self.max_frames = max_frames
        self.side = side
        self.min_seconds = min_seconds
        self.min_run = min_run
        self.drawn = drawn

    @property
    def work(self) -> Work:
        """Reads frames and, unless saliency is for the accelerator, tracks."""
        own = None if self.network is not None else self.tracker
        short_side = self.tracker.saliency.short_side
        return TubeFrames(
            self.fps, self.max_frames, short_side, self.side, self._listed().root, own
        )

    def description(self) -> Mapping[str, object]:
        """What the tubes depend on."""
        return {
            "saliency": type(self.tracker.saliency).__name__,
            **self.tracker.settings,
            "fps": self.fps,
            "max_frames": self.max_frames,
            "side": self.side,
        }

    def finish(self, record: Record) -> Record:
        """Tracks in the frames of a video, where a network finds what is salient."""
        frames = record.pop("frames", None)
        if frames is None:
            return record
        numbers = _tensor(record["number"]).tolist()
        name = self._name(record)
        return {**record, "masks": small(self.tracker(_tensor(frames), name, numbers), self.side)}

    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """Rows of the tube file."""
        tubes = []
        for record in records:
            time, masks = np.zeros(0), np.zeros((0, 0, 0), np.bool_)
            if not record["error"]:
                time = _tensor(record["time"]).cpu().numpy()
                masks = _tensor(record["masks"]).cpu().numpy()
            tubes.append(Tube(self._name(record), time, masks, str(record["error"])))
        made = tube_metadata(
            source=type(self.tracker.saliency).__name__, parameters=self.description()
        )
        return tube_table(tubes).replace_schema_metadata(made)

    def join(self) -> bool:
        """Makes the file if all shards are there, counts the usable tubes and draws some."""
        if not super().join():
            return False
        about = pq.read_table(self.file, columns=["time", "area", "error"])
        seconds, _ = _seen(about)
        failed = np.array(about.column("error").to_pylist(), np.object_) != ""
        usable = usable_tubes(about, min_seconds=self.min_seconds, min_run=self.min_run)
        counted = {
            "videos": len(usable),
            "usable": int(usable.sum()),
            "share": round(float(usable.mean()), 4) if len(usable) else 0.0,
            "min_seconds": self.min_seconds,
            "min_run": self.min_run,
            "without_object": int(((seconds == 0) & ~failed).sum()),
            "unreadable": int(failed.sum()),
        }
        file = self.folder / "usable.json"
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(counted, indent=2) + "\n", encoding="utf-8")
        _log.info(
            "%d of %d videos (%.1f %%) show an object for %g seconds or more, %g of them without a "
            "gap; %d show none, %d cannot be read",
            counted["usable"],
            counted["videos"],
            100 * counted["share"],
            self.min_seconds,
            self.min_run,
            counted["without_object"],
            counted["unreadable"],
        )
        if not (self.folder / "tubes.png").is_file():
            self._draw(np.flatnonzero(usable))
        return True

    def _draw(self, usable: npt.NDArray[np.int64]) -> None:
        """Draws videos that are evenly spread over those with a usable tube."""
        picked = np.linspace(0, len(usable) - 1, min(self.drawn, len(usable))).round().astype(int)
        rows = usable[picked].tolist()
        if not rows:
            return
        shown = []
        for row in rows:
            with pq.ParquetFile(self.file) as opened:  # a shard is a group of rows
                group = opened.read_row_group(row // self.shard_size)
            tube = group.slice(row % self.shard_size, 1).to_pylist()[0]
            time, seen = np.array(tube["time"]), np.array(tube["area"]) > 0
            masks = np.zeros((len(time), tube["height"], tube["width"]), np.uint8)
            masks[seen] = unpack_masks(tube["masks"], int(seen.sum()), *masks.shape[1:])
            manifest = self._listed()
            try:
                with manifest.open(row) as reader:
                    chosen = np.abs(reader.times[:, None] - time).argmin(axis=0)
                    frames = _read(reader, chosen, _SHOWN_SIDE)
            except UnreadableVideo:
                continue
            even = [length // 2 * 2 for length in frames.shape[1:3]]
            frames = draw_tube(frames, masks)[:, : even[0], : even[1]]
            rate = (len(time) - 1) / (time[-1] - time[0]) if len(time) > 1 else 1.0
            (self.folder / "drawn").mkdir(exist_ok=True)
            encode(self.folder / "drawn" / f"{row:09d}.mp4", frames, rate, h264())
            shown.append((frames, tube["path"]))
        with whole_file(self.folder / "tubes.png") as temporary:
            picture = draw_strips([frames for frames, _ in shown], [name for _, name in shown])
            picture.save(temporary, "PNG")

    def _listed(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest

    def _name(self, record: Record) -> str:
        """The video as the file names it."""
        row, manifest = record["row"], self._listed()
        assert isinstance(row, int)
        return video_name(manifest.table.column("path")[row].as_py(), manifest.root)


def usable_tubes(about: pa.Table, *, min_seconds: float, min_run: float) -> npt.NDArray[np.bool_]:
    """Which tubes training can draw clips in, as `lightning_vssl.data.clips.TrackedClips` does.

    Args:
        about: Rows of a tube file, with ``time`` and ``area``.
        min_seconds: How long the object must be seen, all in all.
        min_run: How long it must be seen without a gap.

    Returns:
        (N,).
    """
    seconds, run = _seen(about)
    return (seconds > 0) & (seconds >= min_seconds - _CLOCK) & (run >= min_run - _CLOCK)


def _seen(about: pa.Table) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For how long the object of each video is seen, all in all and at most without a gap.

    Each frame looked at stands for the time until the next, as the frames between take its mask.

    Returns:
        Seconds, (N,) and (N,); 0 where it is nowhere.
    """
    times, areas = (about.column(name).combine_chunks() for name in ("time", "area"))
    offsets = times.offsets.to_numpy().astype(np.int64)
    frames = np.diff(offsets)  # (N,)
    time = times.values.to_numpy(zero_copy_only=False).astype(np.float64)
    video = np.repeat(np.arange(len(frames)), frames)  # (F,)
    there = areas.values.to_numpy(zero_copy_only=False) > 0
    seen = np.bincount(video, weights=there, minlength=len(frames))
    part = np.zeros(len(frames))
    some = frames > 1
    first, last = offsets[:-1][some], offsets[1:][some] - 1
    part[some] = (time[last] - time[first]) / (frames[some] - 1)
    part[frames == 1] = 1e-3  # one frame is next to nothing
    place = np.arange(len(there))
    lost = np.maximum.accumulate(np.where(there, -1, place)) if len(there) else place
    longest = np.zeros(len(frames), np.int64)
    np.maximum.at(longest, video, place - np.maximum(lost, offsets[video] - 1))
    return seen * part, longest * part


def _tensor(value: Tensor | int | str) -> Tensor:
    assert isinstance(value, Tensor)
    return value
