"""UCF-101 (Soomro et al. 2012)."""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import Unpack, VideoOptions

_PAGE = "crcv.ucf.edu/data/UCF101.php"
_LISTS = f"UCF101TrainTestSplits-RecognitionTask.zip of {_PAGE}"


class UCF101(VideoDataModule):
    """UCF-101 with its three official splits.

    Layout: ``<root>/ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt`` and the videos
    ``<root>/UCF-101/<Class>/v_<Class>_gNN_cNN.avi`` (or in ``videos``, or right below ``root``).
    Upper and lower case need not agree: the class HandstandPushups has files named
    ``v_HandStandPushups_*``.

    The dataset has no validation videos: validation reads the test list, as the papers do. A
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
        """The rows of the official list."""
        lists = self.root / "ucfTrainTestlist"
        index = lists / "classInd.txt"
        name = "trainlist" if split == "train" else "testlist"
        rows = lists / f"{name}{self.split:02d}.txt"
        videos = self._videos()
        require_files({index: _LISTS, rows: _LISTS, videos: f"UCF101.rar of {_PAGE}"}, "UCF-101")
        classes = _classes(index)
        labels = {name.casefold(): label for label, name in enumerate(classes)}
        disk = _on_disk(videos, self.root)
        entries = []
        for line in rows.read_text().splitlines():
            if line.strip():
                path, label = _row(line, labels, rows)
                usual = str((videos / path).relative_to(self.root))
                entries.append(Entry(disk.get(path.casefold(), usual), label))
        if not entries:
            raise ValueError(f"{rows} lists no videos")
        return entries, classes

    def _videos(self) -> Path:
        places = [self.root / "UCF-101", self.root / "videos"]
        if any(place.is_dir() for place in places):
            return next(place for place in places if place.is_dir())
        return self.root if any(self.root.glob("*/v_*.avi")) else places[0]


def _classes(index: Path) -> tuple[str, ...]:
    """Names by id; the file counts from 1."""
    pairs = [line.split() for line in index.read_text().splitlines() if line.strip()]
    ids = [int(number) for number, _ in pairs]
    if ids != list(range(1, len(ids) + 1)):
        raise ValueError(f"{index}: the ids must go from 1 to {len(ids)} in order")
    return tuple(name for _, name in pairs)


def _row(line: str, labels: dict[str, int], file: Path) -> tuple[str, int]:
    """(path, label) of a line, the label checked against the folder's class where it is given."""
    path, *given = line.split()
    name = path.split("/")[0]
    label = labels.get(name.casefold())
    if label is None:
        raise ValueError(f"{file}: the class {name} of {path} is not in classInd.txt")
    if given and int(given[0]) != label + 1:
        raise ValueError(f"{file}: {path} has label {given[0]}, and classInd.txt says {label + 1}")
    return path, label


def _on_disk(videos: Path, root: Path) -> dict[str, str]:
    """Path below the root of every video there, by its class and name without regard to case."""
    return {
        f"{file.parent.name}/{file.name}".casefold(): str(file.relative_to(root))
        for file in videos.glob("*/*.avi")
    }
