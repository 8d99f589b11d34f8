"""YouTube-8M (Abu-El-Haija et al. 2016) and the like: videos or segments listed by identifier."""

from pathlib import Path

from lightning_vssl.data.clips import Clips
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule
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
        table: Path | None = None,
        videos: str = ".",
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
            video_fraction=video_fraction,
            boxes=boxes,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            verify=verify,
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
