"""From a row of the manifest to a sample."""

from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_vssl.data.boxes import BoxFile, cut_boxes
from lightning_vssl.data.clips import Clips, Times, TrackedClips
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.tubes import Masks, TubeFile, TubeForm, box_masks, cut_masks
from lightning_vssl.data.unreadable import TooManyUnreadable, Unreadable, stand_ins
from lightning_vssl.data.windows import Canvas, Windows
from lightning_vssl.nn.keyed import sample_key

_WORD = (1 << 64) - 1


class VideoDataset(Dataset[dict[str, Tensor]]):
    """Clips of the videos of a manifest.

    A sample is a dict: ``video`` (V, T, 3, H, W) uint8 RGB; ``crop`` (V, 4) float32, the rectangle
    shown, xyxy in pixels of the video as displayed; ``key`` () int64, where every draw starts;
    ``time`` (V, T) float64, seconds at which the frames are shown; ``index`` () int64, the row
    delivered; ``replaced`` () bool; ``label`` () int64 where ``labels`` is set; ``boxes``
    (V, T, N, 4) float32, xyxy in pixels of ``video``, NaN where missing, where ``boxes`` is given;
    ``mask`` (V, T, h, w) uint8, 1 on the object, and ``tracked`` (V,) bool, where ``tubes`` is
    given. A clip is tracked if it was drawn in its video's tube (by a sampler that is none of
    `TrackedClips`: if the object happens to be seen in every frame, or in the middle one where
    ``tube_form`` is ``middle``) and the window shows some of the object. The masks of all others
    are empty. Masks have the window's shape, scaled down to the short side of the file's masks.

    It is indexed by (epoch, index), or by index alone for epoch 0. What a sample holds depends on
    the seed, the epoch and the index alone. A window of several crops a clip makes V = clips x
    crops, the crops of one clip together.

    A video that breaks while it is read is logged once by name. In training another one, chosen by
    the key, takes its place, and ``replaced`` says so; the key stays that of the row asked for.
    The count of distinct broken videos is shared with the workers.

    Args:
        manifest: The videos, all of them readable as far as their headers tell.
        clips: Which frames.
        window: Which part of the picture.
        seed: The run's seed.
        labels: Whether samples carry their class.
        replace: Whether another video stands in for one that breaks: yes in training; no in
            evaluation, where it raises.
        max_unreadable: Share of the rows, in [0, 1], that may break before the run stops.
        boxes: Regions of the videos, cut by the window as the pixels are.
        tubes: Where the object of each video is, cut by the window as the pixels are.
        tube_form: What the masks are; see `lightning_vssl.data.tubes.TubeForm`.
        max_missing: Share of the rows, in [0, 1], that may lack boxes or tubes.

    Raises:
        ValueError: If the manifest is empty, a row lacks its label, or too many rows lack boxes or
            tubes.
    """

    def __init__(
        self,
        manifest: Manifest,
        clips: Clips,
        window: Windows,
        *,
        seed: int = 0,
        labels: bool = False,
        replace: bool = True,
        max_unreadable: float = 0.05,
        boxes: BoxFile | None = None,
        tubes: TubeFile | None = None,
        tube_form: TubeForm = "mask",
        max_missing: float = 0.0,
    ) -> None:
        if not len(manifest):
            raise ValueError("the manifest has no video that can be read")
        if tube_form not in get_args(TubeForm):
            raise ValueError(f"tube_form={tube_form!r}: choose {', '.join(get_args(TubeForm))}")
        if tubes is not None and isinstance(window, Canvas):
            raise ValueError("masks are not laid on a Canvas: take another window with tubes")
        if labels:
            _check_labelled(manifest)
        self.manifest = manifest
        self.clips = clips
        self.window = window
        self.seed = seed
        self.labels = labels
        self.replace = replace
        self._unreadable = Unreadable(manifest.path, len(manifest), limit=max_unreadable)
        self.boxes = boxes
        self.unboxed = ""
        if boxes is not None:
            self._box_rows, self.unboxed = boxes.covering(manifest, max_missing=max_missing)
        self.tubes = tubes
        self.tube_form = tube_form
        self.untracked = ""
        if tubes is not None:
            self._tube_rows, self.untracked = tubes.covering(manifest, max_missing=max_missing)

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def unreadable(self) -> npt.NDArray[np.int64]:
        """Rows that broke while they were read, here and in the workers of this process."""
        return self._unreadable.numbers

    @property
    def mask_shape(self) -> tuple[int, int]:
        """(h, w) of a sample's masks; the window's shape without tubes."""
        height, width = self.window.shape
        side = min(height, width) if self.tubes is None else self.tubes.side
        scale = min(1.0, side / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's pixels."""
        clips, frames = self.clips.shape
        height, width = self.window.shape
        return clips * self.window.crops * frames * 3 * height * width

    def __getitem__(self, item: tuple[int, int] | int) -> dict[str, Tensor]:
        """Reads a sample.

        Args:
            item: (epoch, index), or an index of epoch 0.

        Raises:
            UnreadableVideo: If the video breaks and ``replace`` is off.
            TooManyUnreadable: If more videos have broken than ``max_unreadable`` allows.
            ValueError: If the clip is longer than its video and the sampler refuses that.
        """
        epoch, index = item if isinstance(item, tuple) else (0, int(item))
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} videos")
        key = sample_key(self.seed, epoch, index)
        row, frames = self._read(index, key, epoch)
        sample: dict[str, Tensor] = {
            **frames,
            "key": torch.tensor(key),
            "index": torch.tensor(row),
            "replaced": torch.tensor(row != index),
        }
        if self.labels:
            sample["label"] = torch.tensor(self.manifest.label(row))
        return sample

    def _read(self, index: int, key: int, epoch: int) -> tuple[int, dict[str, Tensor]]:
        """The clips of a row, or of the first readable one of the rows that the key names."""
        for row in stand_ins(index, len(self), key):
            try:
                return row, self._clip(row, key, epoch)
            except UnreadableVideo as error:
                self._note(row, error)
        raise TooManyUnreadable(f"none of the {len(self)} samples can be read")

    def _clip(self, row: int, key: int, epoch: int) -> dict[str, Tensor]:
        rng = np.random.Generator(np.random.Philox(key=key & _WORD))
        path = self.manifest.path(row)
        with self.manifest.open(row) as reader:
            first, last = np.searchsorted(reader.times, self.manifest.span(row))
            if first >= last:
                raise UnreadableVideo(path, f"no frame within {self.manifest.span(row)} seconds")
            times = reader.times[first:last]  # (N,)
            try:
                chosen, inside = self._choose(row, times, rng, epoch)  # (clips, T), (clips,)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            crops, frame = self.window.crops, (reader.info.height, reader.info.width)
            video, used = self._pixels(reader, first + chosen, rng)
        chosen = np.repeat(chosen, crops, axis=0)  # (V, T)
        shown = np.asarray(times[chosen], np.float64)  # (V, T)
        sample = {
            "video": video,
            "crop": torch.from_numpy(used),
            "time": torch.from_numpy(shown),
        }
        if self.boxes is not None:
            regions = self.boxes.for_frames(int(self._box_rows[row]), shown)  # (V, T, N, 4)
            regions = cut_boxes(regions, used, frame, self.window.shape)
            sample["boxes"] = torch.from_numpy(regions)
        if self.tubes is not None:
            masks = self._masks(row, shown, frame)  # (V, T, h, w)
            masks[~np.repeat(inside, crops)] = 0
            cut = torch.from_numpy(cut_masks(masks, used, frame, self.mask_shape))
            sample["mask"] = cut  # (V, T, h, w)
            sample["tracked"] = (cut != 0).flatten(1).any(dim=1)  # (V,)
        return sample

    def _pixels(
        self, reader: VideoReader, chosen: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, npt.NDArray[np.float32]]:
        """Reads frames of (clips, T) numbers: (V, T, 3, H, W), and what they show, (V, 4)."""
        window, frame = self.window, (reader.info.height, reader.info.width)
        fitted = window.fitted(*frame)
        pixels, used = reader.read(
            np.repeat(chosen, window.crops, axis=0),
            windows=window.sample(*frame, len(chosen), rng),  # (V, 4)
            size=fitted,
            interpolation=window.interpolation,
        )
        video = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()  # (V, T, 3, h, w)
        if not isinstance(window, Canvas):
            return video, used
        (height, width), (h, w) = window.size, fitted
        canvas = video.new_full((*video.shape[:3], height, width), window.fill)
        canvas[..., :h, :w] = video
        used[:, 2:] *= (width / w, height / h)
        return canvas, used

    def _choose(
        self, row: int, times: Times, rng: np.random.Generator, epoch: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The frames of the clips, (clips, T), and whether each clip lies in the tube, (clips,)."""
        tracked = None
        if self.tubes is not None:
            tracked = self.tubes.tracked(int(self._tube_rows[row]), times)  # (N,)
        if isinstance(self.clips, TrackedClips):
            chosen, inside = self.clips.draw(times, tracked, rng, epoch)
            return chosen, np.full(len(chosen), inside)
        chosen = self.clips.sample(times, rng)
        if tracked is None:
            return chosen, np.zeros(len(chosen), np.bool_)
        if self.tube_form == "middle":
            return chosen, np.asarray(tracked[chosen[:, chosen.shape[1] // 2]])
        return chosen, np.asarray(tracked[chosen].all(axis=1))

    def _masks(self, row: int, shown: Times, frame: tuple[int, int]) -> Masks:
        """The masks of whole frames shown at (V, T) seconds, (V, T, h, w)."""
        assert self.tubes is not None
        tube = int(self._tube_rows[row])
        if tube >= 0:
            self._check_size(row, self.tubes.size(tube), frame)
        if self.tube_form == "middle":
            middle = shown.shape[1] // 2
            masks = self.tubes.masks(tube, shown[:, middle : middle + 1])  # (V, 1, h, w)
            return np.repeat(masks, shown.shape[1], axis=1)
        masks = self.tubes.masks(tube, shown)
        return box_masks(masks) if self.tube_form == "box" else masks

    def _check_size(self, row: int, size: tuple[int, int], frame: tuple[int, int]) -> None:
        """Raises where masks were made of a picture of another shape."""
        assert self.tubes is not None
        (h, w), (height, width) = size, frame
        if abs(h * width - w * height) > height + width:  # half a pixel of each, twice over
            raise ValueError(
                f"{self.manifest.path(row)} is shown at {width} x {height} pixels, and its masks "
                f"in {self.tubes.path} are {w} x {h}: they are of another video, or of one that "
                "was turned or cropped; track the videos that are read"
            )

    def _note(self, row: int, error: UnreadableVideo) -> None:
        """Counts a broken video in training; an evaluation stops."""
        if self.replace:
            self._unreadable.note(row, error)
            return
        raise UnreadableVideo(
            error.path,
            f"{error.reason}. An evaluation does not leave out a video in silence: repair or "
            "remove the file, or set verify: true to have such files found, listed and left out "
            "beforehand",
        ) from error


def _check_labelled(manifest: Manifest) -> None:
    without = np.flatnonzero(manifest.labels < 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(manifest)} videos have no label:\n{manifest.names(without)}"
        )
