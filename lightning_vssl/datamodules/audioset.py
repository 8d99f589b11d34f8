"""AudioSet (Gemmeke et al. 2017): ten seconds each of two million videos, for pretraining."""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import Unpack, VideoOptions
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
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        train: Literal["all", "unbalanced", "balanced", "folder"] = "all",
        videos: str = "videos",
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
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
