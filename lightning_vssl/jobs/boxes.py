"""Region boxes for every video (ConST-CL section 3.3 and Table 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from lightning_vssl.data.boxes import VideoBoxes, box_metadata, box_table
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.video_files import video_name
from lightning_vssl.data.whole import Record, Span, Work
from lightning_vssl.jobs.base import Job
from lightning_vssl.proposals.base import Proposals

_AT_ONCE = 32  # frames in memory while a worker proposes


@dataclass(frozen=True)
class BoxFrames:
    """Reads the frames of a video that are boxed, and proposes boxes for them.

    Frames are taken at the middles of equal parts of the video, so that any frame is at most half
    a part away from a boxed one.

    Args:
        fps: Frames boxed per second.
        max_frames: Most frames of a video; a longer one is boxed at a lower rate.
        short_side: Pixels that a frame's short side is scaled down to; never up.
        proposals: What proposes, None to return the frames.
    """

    fps: float
    max_frames: int
    short_side: int
    proposals: Proposals | None

    def __call__(self, reader: VideoReader, span: Span) -> dict[str, Tensor]:
        """Works on one video.

        Args:
            reader: The video.
            span: Seconds that are used.

        Returns:
            ``time`` (F,) float32 and ``boxes`` (F, N, 4) float32 shares, or ``frames``
            (F, 3, H, W) uint8.

        Raises:
            UnreadableVideo: If there is no frame in the span, or one does not decode.
        """
        chosen = self.frames(reader.times, reader.info.fps, span)
        if not len(chosen):
            raise UnreadableVideo(reader.path, f"no frame within {span} seconds")
        time = torch.from_numpy(reader.times[chosen].astype(np.float32))
        parts = [
            self._read(reader, chosen[first : first + _AT_ONCE])
            for first in range(0, len(chosen), _AT_ONCE)
        ]
        return {"time": time, ("frames" if self.proposals is None else "boxes"): torch.cat(parts)}

    def frames(
        self, times: npt.NDArray[np.float64], rate: float, span: Span
    ) -> npt.NDArray[np.int64]:
        """Chooses frames.

        Args:
            times: When the video's frames are shown, seconds, (N,).
            rate: Its frames per second.
            span: Seconds that are used.

        Returns:
            Frame numbers, ascending, without repetition, (F,).
        """
        first, last = np.searchsorted(times, span)
        if first >= last:
            return np.empty(0, np.int64)
        own = times[first:last]
        length = float(own[-1] - own[0]) + 1 / rate
        count = min(max(1, round(length * self.fps)), self.max_frames)
        middles = own[0] + (np.arange(count) + 0.5) * length / count
        shown = np.searchsorted(own, middles, side="right") - 1
        frames: npt.NDArray[np.int64] = first + np.unique(shown)
        return frames

    def _read(self, reader: VideoReader, chosen: npt.NDArray[np.int64]) -> Tensor:
        """Boxes of these frames, (F, N, 4), or the frames, (F, 3, H, W)."""
        height, width = reader.info.height, reader.info.width
        scale = min(1.0, self.short_side / min(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pixels, _ = reader.read(chosen[None], size=size)  # (1, F, H, W, 3)
        frames = torch.from_numpy(pixels[0]).permute(0, 3, 1, 2)
        return frames.contiguous() if self.proposals is None else self.proposals(frames)


class BoxJob(Job):
    """Makes the box file of a data set; see `lightning_vssl.data.boxes`.

    Args:
        proposals: What proposes: ``Slic``, ``Felzenszwalb`` or ``Detector``.
        fps: Frames boxed per second of video; of a frame between, those of the nearest are taken.
        max_frames: Most frames of a video; a longer one is boxed at a lower rate. A detector's
            frames travel together: 600 of 256 x 455 pixels are 210 MB of shared memory.
        split: Videos of which split.
        shard_size: Videos of a shard: what a killed run may lose, times its processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        proposals: Proposals,
        *,
        fps: float = 2.0,
        max_frames: int = 600,
        split: Literal["train", "val", "test"] = "train",
        shard_size: int = 128,
    ) -> None:
        super().__init__("boxes", split=split, shard_size=shard_size)
        if not fps > 0 or max_frames < 1:
            raise ValueError(f"fps={fps}, max_frames={max_frames}: above 0, and 1 or more")
        self.proposals = proposals
        self.fps = fps
        self.max_frames = max_frames

    @property
    def work(self) -> Work:
        """Reads frames and, unless that is for the accelerator, proposes."""
        own = None if isinstance(self.proposals, nn.Module) else self.proposals
        return BoxFrames(self.fps, self.max_frames, self.proposals.short_side, own)

    def description(self) -> Mapping[str, object]:
        """What the boxes depend on."""
        return {
            "source": self.proposals.source,
            **self.proposals.settings,
            "fps": self.fps,
            "max_frames": self.max_frames,
        }

    def finish(self, record: Record) -> Record:
        """Runs a detector on the frames of a video."""
        frames = record.pop("frames", None)
        return record if frames is None else {**record, "boxes": self.proposals(_tensor(frames))}

    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """Rows of the box file."""
        paths = manifest.table.column("path")
        videos = []
        for record in records:
            name = video_name(paths[int(_number(record["row"]))].as_py(), manifest.root)
            time, boxes = np.zeros(0), np.zeros((0, 0, 4))
            if not record["error"]:
                time = _tensor(record["time"]).cpu().numpy()
                boxes = _tensor(record["boxes"]).cpu().numpy()
            videos.append(VideoBoxes(name, time, boxes, str(record["error"])))
        made = box_metadata(source=self.proposals.source, parameters=self.description())
        return box_table(videos).replace_schema_metadata(made)


def _tensor(value: Tensor | int | str) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _number(value: Tensor | int | str) -> int:
    assert isinstance(value, int)
    return value
