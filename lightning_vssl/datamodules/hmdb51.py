"""HMDB-51 (Kuehne et al. 2011)."""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import Unpack, VideoOptions

_PAGE = "serre-lab.clps.brown.edu (HMDB: a large human motion database)"
_USES: dict[Split, str] = {"train": "1", "val": "2", "test": "2"}


class HMDB51(VideoDataModule):
    """HMDB-51 with its three official splits: 70 training and 30 test videos of each class.

    Layout: ``<root>/testTrainMulti_7030_splits/<class>_test_split{1,2,3}.txt`` and the videos
    ``<root>/videos/<class>/*.avi`` (or in ``hmdb51_org``, or right below ``root``). The number
    behind a name is 1 for training, 2 for test, 0 for neither. A class's label is its place among
    the sorted names.

    The dataset has no validation videos: validation reads the test videos, as the papers do. A
    number reported from it must be that of the last checkpoint, not of the best.

    Args:
        root: Folder of the dataset.
        split: Official split.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: Literal[1, 2, 3] = 1,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
        )
        if split not in (1, 2, 3):
            raise ValueError(f"split={split}: choose 1, 2 or 3")
        self.split = split

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The videos that the official lists mark for a split."""
        lists = self._folder("testTrainMulti_7030_splits", "test_train_splits", "splits")
        videos = self._folder("videos", "hmdb51_org", ".")
        classes = listed_classes(lists)
        files = {lists / f"{name}_test_split{self.split}.txt": "" for name in classes}
        needed = dict.fromkeys(files or [lists], f"test_train_splits.rar of {_PAGE}")
        require_files({**needed, videos: f"hmdb51_org.rar of {_PAGE}"}, "HMDB-51")
        entries = []
        for label, (name, file) in enumerate(zip(classes, files, strict=True)):
            folder = videos.relative_to(self.root) / name
            entries += [
                Entry(str(folder / line.rsplit(maxsplit=1)[0]), label)
                for line in file.read_text().splitlines()
                if line.strip() and use_of(line, file) == _USES[split]
            ]
        if not entries:
            raise ValueError(f"the lists in {lists} mark no video for {split}")
        return entries, classes

    def _folder(self, *names: str) -> Path:
        places = [self.root / name for name in names]
        return next((place for place in places if place.is_dir()), places[0])


def listed_classes(lists: Path) -> tuple[str, ...]:
    """Names of the classes that have a list of any split, sorted."""
    ending = "_test_split"
    return tuple(
        sorted({file.stem[: file.stem.rindex(ending)] for file in lists.glob(f"*{ending}?.txt")})
    )


def use_of(line: str, file: Path) -> str:
    """What a line's number says: 1 training, 2 test, 0 neither."""
    use = line.split()[-1]
    if use not in ("0", "1", "2"):
        raise ValueError(f"{file}: {line.strip()!r} must end in 0, 1 or 2")
    return use
