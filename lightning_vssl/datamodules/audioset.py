"""AudioSet (Gemmeke et al. 2017): ten seconds each of two million videos, for pretraining."""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.clips import Clips
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.segments import VideoFiles, read_segments
from lightning_vssl.datamodules.video_folder import VideoFolder

_SOURCE = "from the AudioSet page of Google Research (research.google.com/audioset/download.html)"


class AudioSet(VideoDataModule):
    """AudioSet, from the official CSV files and the videos, or from the videos alone.

    Layout: ``<root>/{unbalanced_train,balanced_train,eval}_segments.csv`` (or below
    ``annotations/``) with the columns ``YTID, start_seconds, end_seconds, positive_labels``, and
    the videos anywhere below ``<root>/<videos>``: whole, called ``<YTID>``, or cut, called
    ``<YTID>_<start>`` or ``<YTID>_<start>_<end>``. Segments have several labels each, and samples
    carry one: they are left out, pretraining needs none.

    Much of AudioSet has disappeared: what is missing is counted, named, and left out up to
    ``max_missing``.

    Args:
        root: Folder of the dataset.
        train: Which lists are the training videos; ``folder`` for all videos there are, without a
            list and whole.
        videos: Folder of the videos, below ``root``.
        clips: Frames of a training sample; None for CtP's.
        window: Crop of a training sample; None for CtP's.
        eval_clips: Frames of an evaluation sample; None for CtP's ten clips.
        eval_window: Crop of an evaluation sample; None for CtP's.
        batch_size: Training samples per step over all processes together.
        eval_batch_size: The same in evaluation; None for ``batch_size``.
        num_workers: Processes per training process that read videos.
        prefetch_factor: Batches that each of them holds ready.
        seed: Where every draw of the data starts.
        cache_dir: Folder of the manifests; None for ``~/.cache/lightning_vssl``.
        gallery: In tests, walk the training videos first, then the test videos.
        video_fraction: Share of the training videos that are used, whatever their class.
        boxes: Box file of the videos, which samples then carry; see `VideoDataModule`.
        max_missing: Share of a split's videos that may lack their file, or their boxes.
        max_unreadable: Share of them that may be broken.
        verify: Decode every video in full when it is first listed.
    """

    def __init__(
        self,
        root: Path,
        *,
        train: Literal["all", "unbalanced", "balanced", "folder"] = "all",
        videos: str = "videos",
        clips: Clips | None = None,
        window: Windows | None = None,
        eval_clips: Clips | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        seed: int = 0,
        cache_dir: Path | None = None,
        gallery: bool = False,
        video_fraction: float = 1.0,
        boxes: Path | None = None,
        max_missing: float = 0.25,
        max_unreadable: float = 0.05,
        verify: bool = False,
    ) -> None:
        super().__init__(
            root,
            clips=clips,
            window=window,
            eval_clips=eval_clips,
            eval_window=eval_window,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            seed=seed,
            cache_dir=cache_dir,
            gallery=gallery,
            video_fraction=video_fraction,
            boxes=boxes,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            verify=verify,
        )
        if train not in ("all", "unbalanced", "balanced", "folder"):
            raise ValueError(f"train={train!r}: choose 'all', 'unbalanced', 'balanced' or 'folder'")
        self.train = train
        self.videos = videos

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The segments of a split in the order of its lists; those of `eval` for the test."""
        if split == "val":
            return [], ()
        if self.train == "folder":
            folder = VideoFolder(self.root, train=self.videos, labels=False)
            return folder.entries("train") if split == "train" else ([], ())
        names = {"all": ("unbalanced_train", "balanced_train")}.get(
            self.train, (f"{self.train}_train",)
        )
        files = [self._list(name) for name in (names if split == "train" else ("eval",))]
        require_files(dict.fromkeys(files, _SOURCE), "AudioSet")
        find = VideoFiles(self.root, self.videos)
        columns = ("YTID", "start_seconds", "end_seconds")
        return [find.entry(row) for file in files for row in read_segments(file, columns)], ()

    def _list(self, name: str) -> Path:
        """A list: the first of the known places that exists, or the usual one."""
        places = [self.root / folder / f"{name}_segments.csv" for folder in (".", "annotations")]
        return next((place for place in places if place.is_file()), places[0])
