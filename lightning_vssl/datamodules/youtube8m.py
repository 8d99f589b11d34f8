"""YouTube-8M (Abu-El-Haija et al. 2016) and the like: videos or segments listed by identifier."""

from pathlib import Path

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule
from lightning_vssl.datamodules.options import Unpack, VideoOptions
from lightning_vssl.datamodules.segments import VideoFiles, read_segments
from lightning_vssl.datamodules.video_folder import VideoFolder


class YouTube8M(VideoDataModule):
    """Videos listed by identifier, or all videos of a folder; for pretraining.

    YouTube-8M itself is published as features: its videos are fetched by identifier. The list is a
    CSV file with the column ``id`` and, where rows are segments, ``start`` and ``end`` in seconds;
    other columns, ``labels`` among them, are passed over, since samples carry one class and these
    videos have several. The files lie anywhere below ``<root>/<videos>``: whole, called ``<id>``,
    or cut, called ``<id>_<start>`` or ``<id>_<start>_<end>``.

    Args:
        root: Folder of the dataset.
        table: The list, from ``root`` or absolute; None for all videos of the folder.
        videos: Folder of the videos, below ``root``.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        table: Path | None = None,
        videos: str = ".",
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
        )
        self.table = None if table is None else self.root / Path(table).expanduser()
        self.videos = videos

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The training videos: the rows of the list in its order, or the files sorted by path."""
        if split != "train":
            return [], ()
        if self.table is None:
            return VideoFolder(self.root, train=self.videos, labels=False).entries("train")
        rows = read_segments(self.table, ("id", "start", "end"))
        find = VideoFiles(self.root, self.videos)
        return [find.entry(row) for row in rows], ()
