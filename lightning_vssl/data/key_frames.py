"""Clips around key frames with the boxes of the persons in them."""

import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_vssl.data.action_boxes import KeyFrames
from lightning_vssl.data.boxes import cut_boxes
from lightning_vssl.data.clips import KeyFrameClip
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.windows import Windows

_WORD = (1 << 64) - 1
_GRACE = 0.5  # seconds that a key frame may lie beyond its file


class KeyFrameDataset(VideoDataset):
    """One clip per key frame.

    A sample is that of `VideoDataset` for a single clip, without a class: ``video``
    (1, T, 3, H, W) uint8, ``crop``, ``time``, ``key``, ``replaced``, and ``index``, which is the
    number of the key frame; then ``boxes`` (1, 1, N, 4) float32, xyxy in pixels of ``video`` at the
    key frame, NaN where there are fewer than N; ``box_labels`` (1, N, C) float32, 1 for the actions
    of a box; ``box_index`` (N,) int64, its row in ``frames.boxes``, -1 where there is none or the
    window cut it away; ``box_scores`` (N,) float32, 0 there; ``shown`` (1, 2) int64, height and
    width in pixels of what the picture covers of ``video``, from the upper left.

    A frame of more than N boxes keeps N: in training drawn by the key, in evaluation those of the
    highest score, of equal ones the first.

    Args:
        manifest: The films.
        clips: Which frames around the key frame.
        window: Which part of the picture.
        frames: Key frames and boxes.
        film: Row of the manifest for each key frame used, (F',).
        used: Their numbers, (F',).
        start: Second of the film at which the file of each row of the manifest begins, (rows,).
        limit: N.
        seed: The run's seed.
        replace: Whether another key frame stands in for one that breaks.
        max_unreadable: Share of the films, in [0, 1], that may break before the run stops.

    Raises:
        ValueError: If there is no key frame, ``limit`` is below 1, or the window takes several
            crops.
    """

    clips: KeyFrameClip

    def __init__(
        self,
        manifest: Manifest,
        clips: KeyFrameClip,
        window: Windows,
        *,
        frames: KeyFrames,
        film: npt.NDArray[np.int64],
        used: npt.NDArray[np.int64],
        start: npt.NDArray[np.float64],
        limit: int = 32,
        seed: int = 0,
        replace: bool = True,
        max_unreadable: float = 0.05,
    ) -> None:
        super().__init__(
            manifest, clips, window, seed=seed, replace=replace, max_unreadable=max_unreadable
        )
        if not len(used):
            raise ValueError("no key frame with a box: nothing to show")
        if limit < 1:
            raise ValueError(f"limit={limit}: one box or more")
        if window.crops != 1:
            raise ValueError(
                f"window={type(window).__name__} takes {window.crops} crops of a clip, and boxes "
                "need one: take Canvas, CentreCrop or WholeFrame"
            )
        self.frames = frames
        self.used = used
        self.limit = limit
        self._film = film
        self._start = start
        self._held: tuple[int, int, VideoReader] | None = None  # process, film, its reader

    def __len__(self) -> int:
        return len(self.used)

    @property
    def crowded(self) -> int:
        """Boxes beyond the limit of their frame."""
        count = np.diff(self.frames.first)[self.used]
        return int(np.maximum(count - self.limit, 0).sum())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": None}

    def _clip(self, row: int, key: int, epoch: int) -> dict[str, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=key & _WORD))
        film, frame = int(self._film[row]), int(self.used[row])
        try:
            reader = self._reader(film)
            chosen = self.clips.around(reader.times, self._moment(film, frame, reader))  # (1, T)
            video, crop = self._pixels(reader, chosen, rng)
        except UnreadableVideo:
            self._held = None
            raise
        size = (reader.info.height, reader.info.width)
        return {
            "video": video,
            "crop": torch.from_numpy(crop),
            "time": torch.from_numpy(np.asarray(reader.times[chosen], np.float64)),
            "shown": torch.tensor([self.window.fitted(*size)]),
            **self._boxes(frame, crop, size, rng),
        }

    def _note(self, row: int, error: UnreadableVideo) -> None:
        super()._note(int(self._film[row]), error)

    def _reader(self, film: int) -> VideoReader:
        """The film's reader; the last one is kept, since key frames are walked film by film."""
        held = self._held
        if held is not None and held[:2] == (os.getpid(), film):
            return held[2]
        if held is not None and held[0] == os.getpid():
            held[2].close()
        self._held = None
        reader = self.manifest.open(film)
        self._held = (os.getpid(), film, reader)
        return reader

    def _moment(self, film: int, frame: int, reader: VideoReader) -> float:
        """Seconds into the file at which a key frame is shown."""
        second = float(self.frames.second[frame])
        moment = second - float(self._start[film])
        if not -_GRACE <= moment <= reader.info.duration + _GRACE:
            first = self._start[film]
            raise UnreadableVideo(
                self.manifest.path(film),
                f"its key frame at second {second:g} lies outside the file, which is taken to hold "
                f"seconds {first:g} to {first + reader.info.duration:g} of the film",
            )
        return moment

    def _boxes(
        self,
        frame: int,
        crop: npt.NDArray[np.float32],
        size: tuple[int, int],
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        table, labels = self.frames.boxes, self.frames.labels
        rows = np.arange(self.frames.first[frame], self.frames.first[frame + 1])
        if len(rows) > self.limit:
            order = np.argsort(-table.score[rows], kind="stable")
            order = rng.permutation(len(rows)) if self.replace else order
            rows = np.sort(rows[order[: self.limit]])
        shares = np.full((1, 1, self.limit, 4), np.nan)
        shares[0, 0, : len(rows)] = table.box[rows]
        boxes = cut_boxes(shares, crop, size, self.window.shape)
        there = ~np.isnan(boxes[0, 0, :, 0])  # (N,)
        index = np.full(self.limit, -1, np.int64)
        index[: len(rows)] = rows
        index[~there] = -1
        marks = np.zeros((1, self.limit, labels.shape[1]), np.float32)
        marks[0, there] = labels[index[there]]
        scores = np.zeros(self.limit, np.float32)
        scores[there] = table.score[index[there]]
        return {
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(marks),
            "box_index": torch.from_numpy(index),
            "box_scores": torch.from_numpy(scores),
        }
