"""OTB: Wu, Lim, Yang, "Object Tracking Benchmark", TPAMI 2015, and its 2013 version.

98 folders hold the 100 sequences of OTB-2015, 59,040 frames: Jogging and Skating2 have two targets
each. otb.csv beside this file lists, for every sequence, where its frames begin and end, for David,
Football1, Freeman3, Freeman4 and Diving use a part of their folder and the files of BlurCar1, 3 and
4 do not begin at 1. Sequences are named as in the GOT-10k toolkit: Jogging.1.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lightning_vssl.data.sequences import FolderFiles, FrameSequence, TrackedSequence
from lightning_vssl.data.track_files import TrackFiles, check_first, read_boxes
from lightning_vssl.datamodules.base import require_files
from lightning_vssl.datamodules.sequences import SequenceDataModule, SequenceSplit

OTBVersion = Literal["otb2015", "otb2013", "otb50", "found"]

_PAGE = "cvlab.hanyang.ac.kr/tracker_benchmark (Visual Tracker Benchmark)"
_TABLE = Path(__file__).with_name("otb.csv")


class _Row(NamedTuple):
    """Where a sequence lies; ``frames`` is 0 where all images of the folder belong to it."""

    name: str
    folder: str
    annotation: str
    first: int
    frames: int
    digits: int
    otb2013: bool
    otb50: bool

    def images(self, folder: Path) -> FolderFiles:
        """Its frames, in order."""
        there = sorted(file.name for file in folder.glob("*.jpg"))
        if not self.frames:
            return FolderFiles(folder, tuple(there))
        last = self.first + self.frames
        names = [f"{number:0{self.digits}d}.jpg" for number in range(self.first, last)]
        missing = sorted({*names} - {*there})
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {self.frames} frames of {self.name}, first "
                f"{missing[0]}: unpack {self.folder}.zip of {_PAGE} again"
            )
        return FolderFiles(folder, tuple(names))


@cache
def official_sequences() -> tuple[_Row, ...]:
    """The 100 sequences of OTB-2015."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            _Row(
                name=line["name"],
                folder=line["folder"],
                annotation=line["annotation"],
                first=int(line["first"]),
                frames=int(line["frames"]),
                digits=int(line["digits"]),
                otb2013=line["otb2013"] == "1",
                otb50=line["otb50"] == "1",
            )
            for line in csv.DictReader(file)
        )


def _found(root: Path) -> list[_Row]:
    """Every sequence below a folder, as the official table has it where it does."""
    known = {(row.folder, row.annotation): row for row in official_sequences()}
    rows = []
    for folder in sorted(root.iterdir() if root.is_dir() else []):
        files = [file.name for file in sorted(folder.glob("groundtruth_rect*.txt"))]
        for target, file in enumerate(files, start=1):
            name = folder.name if len(files) == 1 else f"{folder.name}.{target}"
            own = _Row(name, folder.name, file, 1, 0, 4, False, False)
            rows.append(known.get((folder.name, file), own))
    return rows


class OTB(SequenceDataModule[TrackedSequence]):
    """OTB for one-pass evaluation: 100 sequences, each with the box of one target in every frame.

    Layout: ``<root>/<Name>/img/%04d.jpg`` and ``<root>/<Name>/groundtruth_rect*.txt``, lines of
    left, top, width, height, pixels counted from 1, separated by commas, tabs or blanks; and
    ``attrs.txt`` where the folder has it. Boxes are handed on as they stand, also where they leave
    the frame or have no size. The first one, from which trackers start, must be sound.

    Args:
        root: Folder of the data set.
        version: ``otb2015``: all 100 sequences; ``otb2013``: the 51 of the first benchmark;
            ``otb50``: the 50 hard ones of 2015; their averages do not compare. ``found``: every
            folder below ``root`` that holds boxes, of OTB or not.
    """

    def __init__(self, root: Path, *, version: OTBVersion = "otb2015") -> None:
        super().__init__(root, split="test")
        if version not in get_args(OTBVersion):
            raise ValueError(f"version must be otb2015, otb2013, otb50 or found; got {version!r}")
        self.version: OTBVersion = version

    def _rows(self) -> list[_Row]:
        if self.version == "found":
            return _found(self.root)
        return [
            row
            for row in official_sequences()
            if self.version == "otb2015"
            or (row.otb2013 if self.version == "otb2013" else row.otb50)
        ]

    def _row(self, name: str) -> _Row:
        return next(row for row in self._rows() if row.name == name)

    def folder(self, name: str) -> Path:
        """The folder that a sequence lies in; two sequences of OTB may share one."""
        return self.root / self._row(name).folder

    def names(self, split: SequenceSplit) -> list[str]:
        """Names of the sequences.

        Raises:
            FileNotFoundError: If folders of the version are missing.
            ValueError: If the split is another than ``test``.
        """
        if split != "test":
            raise ValueError(f"OTB has no {split} sequences, only those of test: run test")
        rows = self._rows()
        require_files({self.root / r.folder: f"{r.folder}.zip of {_PAGE}" for r in rows}, "OTB")
        return [row.name for row in rows]

    def read(self, split: SequenceSplit, name: str) -> TrackedSequence:
        """One sequence with its boxes.

        Raises:
            FileNotFoundError: If frames or boxes are missing.
            ValueError: If a line of the boxes is wrong, they are not as many as the frames, or the
                first box has no size or lies outside the frame.
        """
        row = self._row(name)
        folder = self.folder(name)
        frames = FrameSequence(name, row.images(folder / "img"))
        file = folder / row.annotation
        boxes = read_boxes(file, first=1)
        if len(boxes) != len(frames):
            raise ValueError(
                f"{file} has {len(boxes)} boxes for the {len(frames)} frames of {name}"
            )
        check_first(boxes, frames, file)
        return TrackedSequence(frames, boxes, attributes=_attributes(folder / "attrs.txt"))

    def track_files(self, folder: Path) -> TrackFiles:
        """What a tracker found in these sequences, in the toolkit's layout."""
        return TrackFiles(folder, "otb")


def _attributes(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    return tuple(word.strip() for word in file.read_text().split(",") if word.strip())
