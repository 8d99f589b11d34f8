"""Kinetics-400, -600 and -700 (Kay et al. 2017; Carreira et al. 2018, 2019)."""

import csv
import logging
from pathlib import Path
from typing import Literal

from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.store import Store
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import Unpack, VideoOptions

_log = logging.getLogger(__name__)

_ALIASES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validate", "validation"),
    "test": ("test",),
}
_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi")
_SOURCE = (
    "the official CSV, from the Kinetics page of Google DeepMind or the archives of the CVDF "
    "(github.com/cvdfoundation/kinetics-dataset)"
)
_NEEDED = ("youtube_id", "time_start", "time_end")


class Kinetics(VideoDataModule):
    """Kinetics, from the official CSV files and the trimmed clips.

    Layout: ``<root>/annotations/{train,val,test}.csv`` (or the files right below ``root``;
    ``validate`` and the prefixes ``kinetics_``, ``kinetics-400_`` and the like are known) with the
    header ``label,youtube_id,time_start,time_end,split``, and the clips
    ``<root>/<split>/<class>/<youtube_id>_<start:06d>_<end:06d>.mp4``, blanks of the class written
    as ``_`` or kept, or all clips of a split in one folder. Classes are sorted by name.

    Five to ten per cent of the videos have disappeared: what is missing is counted, named, and
    left out up to ``max_missing``.

    Args:
        root: Folder of the dataset.
        variant: Number of classes.
        test_split: Videos of a test: the validation list, since the labels of the test list are
            withheld, or the test list.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        variant: Literal["400", "600", "700"] = "400",
        test_split: Literal["val", "test"] = "val",
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
        )
        if variant not in ("400", "600", "700"):
            raise ValueError(f"variant={variant!r}: choose '400', '600' or '700'")
        if test_split not in ("val", "test"):
            raise ValueError(f"test_split={test_split!r}: choose 'val' or 'test'")
        self.variant = variant
        self.test_split: Split = test_split

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The rows of a split's CSV; a clip that is not there keeps its place and is counted."""
        source = self.test_split if split == "test" else split
        files = {name: self._csv(name) for name in dict.fromkeys(("train", source))}
        require_files(dict.fromkeys(files.values(), _SOURCE), f"Kinetics-{self.variant}")
        rows = _rows(files[source])
        known = rows if source == "train" else _rows(files["train"])
        classes = tuple(sorted({label for label, _ in known if label}))
        if len(classes) != int(self.variant):
            _log.warning(
                "%s has %d classes, Kinetics-%s has %s",
                files["train"],
                len(classes),
                self.variant,
                self.variant,
            )
        labels = {name: label for label, name in enumerate(classes)}
        strange = sorted({label for label, _ in rows if label and label not in labels})
        if strange:
            raise ValueError(
                f"{files[source]} has classes that {files['train']} lacks: "
                f"{', '.join(strange[:10])}; are both of Kinetics-{self.variant}?"
            )
        find = _Clips(self.root, self._folder(source), self._opened())
        entries = [Entry(find(label, clip), labels.get(label, -1)) for label, clip in rows]
        return entries, classes

    def _csv(self, split: str) -> Path:
        """The CSV of a split: the first of the known places that exists, or the usual one."""
        prefixes = ("", "kinetics_", f"kinetics-{self.variant}_", f"kinetics{self.variant}_")
        places = [
            self.root / folder / f"{prefix}{name}.csv"
            for folder in ("annotations", ".")
            for prefix in prefixes
            for name in _ALIASES[_split(split)]
        ]
        return next((place for place in places if place.is_file()), places[0])

    def _folder(self, split: str) -> str:
        names, store = _ALIASES[_split(split)], self._opened()
        there = [name for name in names if (self.root / name).is_dir()]
        if store is not None:
            there += [name for name in names if store.below(name)]
        return next(iter(there), names[0])


class _Clips:
    """Finds clips with one listing per folder rather than one look-up per file.

    Where a store has them, the originals may be gone, and it knows what they were called.
    """

    def __init__(self, root: Path, folder: str, store: Store | None) -> None:
        self._root = root
        self._folder = folder
        self._store = store
        self._listed: dict[str, dict[str, str]] = {}

    def __call__(self, label: str, clip: str) -> str:
        """Path of a clip, relative to the root; the usual one where there is no such file."""
        usual = f"{self._folder}/{label.replace(' ', '_')}" if label else self._folder
        for folder in dict.fromkeys((usual, f"{self._folder}/{label}", self._folder)):
            name = self._list(folder).get(clip)
            if name is not None:
                return f"{folder}/{name}"
        return f"{usual}/{clip}.mp4"

    def _list(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            place = self._root / folder
            stored = [] if self._store is None else self._store.names(folder)
            files = [*map(Path, stored), *(place.iterdir() if place.is_dir() else ())]
            self._listed[folder] = {
                file.stem: file.name for file in files if file.suffix in _SUFFIXES
            }
        return self._listed[folder]


def _split(name: str) -> Split:
    return "train" if name == "train" else "val" if name == "val" else "test"


def _rows(file: Path) -> list[tuple[str, str]]:
    """(class or nothing, name of the clip) of each row of an official CSV."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        absent = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(
                f"{file} has no column {', '.join(absent)}: the official header is "
                "label,youtube_id,time_start,time_end,split"
            )
        rows = [
            (
                (row.get("label") or "").strip(),
                f"{row['youtube_id']}_{_second(row['time_start'])}_{_second(row['time_end'])}",
            )
            for row in reader
        ]
    if not rows:
        raise ValueError(f"{file} lists no videos")
    return rows


def _second(text: str) -> str:
    return f"{int(float(text)):06d}"
