"""ImageNet-VID: object detection from video of ILSVRC 2015, whose tracks SiamFC trains with."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.manifest import default_cache_dir
from lightning_vssl.data.sequences import FolderFiles, FrameSequence, TrackedSequence
from lightning_vssl.datamodules.base import require_files
from lightning_vssl.datamodules.sequences import SequenceDataModule, SequenceSplit

_PAGE = "image-net.org/challenges/LSVRC/2015 (ILSVRC2015_VID.tar.gz)"
_SNIPPETS = {"train": "ILSVRC2015_VID_train_*/*", "val": "*"}  # train lies in four parts
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FORMAT = 1


class _Track(NamedTuple):
    """One object of a snippet: the frames that show it, (n,), and its boxes there, (n, 4)."""

    snippet: str
    length: int  # frames of the snippet
    number: int
    frames: NDArray[np.int32]
    boxes: NDArray[np.int32]

    @property
    def name(self) -> str:
        return f"{Path(self.snippet).name}.{self.number}"


class ImageNetVID(SequenceDataModule[TrackedSequence]):
    """ImageNet-VID: 3,862 snippets to train on and 555 of val, every object of each as a sequence.

    Layout: ``<root>/{Data,Annotations}/VID/train/ILSVRC2015_VID_train_*/<snippet>/%06d.{JPEG,xml}``
    and ``.../VID/val/<snippet>/%06d.{JPEG,xml}``. A sequence runs from the first frame that shows
    the object to the last, and its box is NaN where it is not seen in between; it is named
    ``<snippet>.<track>`` as in the GOT-10k toolkit. As there, the last row and column of a box
    belong to it (a box from 10 to 19 is 10 pixels wide), and objects of a single frame are left
    out. Boxes are drawn by hand or interpolated by the data set's makers, and both count.

    Reading 1.3 million XML files takes minutes: `prepare_data` does it once, and keeps a table.

    Args:
        root: The folder ``ILSVRC2015``.
        split: What tests and predictions walk: ``val``, or ``train``.
        cache_dir: Folder of the table; None for ``~/.cache/lightning_vssl``. It is named by the
            snippets: delete it if annotations were changed.

    Raises:
        ValueError: If the split is ``test``, whose boxes are withheld.
    """

    def __init__(
        self, root: Path, *, split: Literal["train", "val"] = "val", cache_dir: Path | None = None
    ) -> None:
        super().__init__(root, split=split)
        if split not in _SNIPPETS:
            raise ValueError(f"split must be train or val, got {split!r}")
        self.cache_dir = cache_dir
        self._tracks: dict[SequenceSplit, dict[str, _Track]] = {}

    def prepare_data(self) -> None:
        """Makes the tables of the splits that are there.

        Raises:
            FileNotFoundError: If a snippet has no annotations, or the other way round.
            ValueError: If an annotation is wrong; names the file.
        """
        splits: tuple[SequenceSplit, ...] = ("train", "val")
        for split in splits:
            if self._annotations(split).is_dir() and not self._table(split).is_file():
                self._write(split)

    def names(self, split: SequenceSplit) -> list[str]:
        """Names of the objects that are seen in two frames or more, by snippet and track.

        Raises:
            FileNotFoundError: If official folders are missing.
            ValueError: If the split is ``test``.
        """
        if split not in _SNIPPETS:
            raise ValueError(f"the boxes of ImageNet-VID's {split} snippets are withheld")
        if split not in self._tracks:
            if not self._table(split).is_file():
                self._write(split)
            self._tracks[split] = {track.name: track for track in _read(self._table(split))}
        return list(self._tracks[split])

    def read(self, split: SequenceSplit, name: str) -> TrackedSequence:
        """One object's sequence.

        Raises:
            FileNotFoundError: If the snippet's frames are missing.
            ValueError: If there is another number of frames than of annotations.
        """
        self.names(split)
        track = self._tracks[split][name]
        folder = self.root / "Data" / "VID" / split / track.snippet
        first, last = int(track.frames[0]), int(track.frames[-1])
        images = _listed(folder, ".JPEG")
        if len(images) != track.length:
            raise ValueError(
                f"{folder} has {len(images)} frames, and annotations of {track.length}"
            )
        frames = FrameSequence(name, FolderFiles(folder, tuple(images[first : last + 1])))
        boxes = torch.full((len(frames), 4), torch.nan, dtype=torch.float64)
        inclusive = torch.from_numpy(track.boxes).double()
        boxes[torch.from_numpy(track.frames).long() - first] = inclusive + torch.tensor(
            [0, 0, 1, 1]
        )
        return TrackedSequence(frames, boxes)

    def _annotations(self, split: SequenceSplit) -> Path:
        return self.root / "Annotations" / "VID" / split

    def _snippets(self, split: SequenceSplit) -> list[str]:
        """Folders of a split's snippets, below its own."""
        folders = [self.root / kind / "VID" / split for kind in ("Annotations", "Data")]
        require_files(dict.fromkeys(folders, _PAGE), "ImageNet-VID")
        found, images = (
            {file.relative_to(folder).as_posix() for file in folder.glob(_SNIPPETS[split])}
            for folder in folders
        )
        if odd := sorted(found ^ images):
            lacking = folders[odd[0] in found]
            raise FileNotFoundError(
                f"{lacking} lacks {len(odd)} snippets that the other folder has, first {odd[0]}: "
                f"unpack {_PAGE} again"
            )
        return sorted(found)

    def _table(self, split: SequenceSplit) -> Path:
        """Where a split's table is kept."""
        words = [_FORMAT, str(self.root.absolute()), split, self._snippets(split)]
        digest = hashlib.blake2b(json.dumps(words).encode(), digest_size=16).hexdigest()
        folder = default_cache_dir() if self.cache_dir is None else Path(self.cache_dir)
        return folder.expanduser() / f"imagenet-vid-{digest}.npz"

    def _write(self, split: SequenceSplit) -> None:
        """Reads every XML file of a split."""
        snippets = self._snippets(split)
        rows: list[tuple[int, ...]] = []
        lengths: list[int] = []
        for number, snippet in enumerate(snippets):
            folder = self._annotations(split) / snippet
            files = _listed(folder, ".xml")
            lengths.append(len(files))
            rows += [(number, *row) for row in _boxes(folder, files)]
        table = np.array(rows, np.int32).reshape(-1, 7)  # snippet, track, frame, box
        with whole_file(self._table(split)) as part, part.open("wb") as stream:
            np.savez(stream, snippets=np.array(snippets), lengths=np.array(lengths), rows=table)


def _listed(folder: Path, ending: str) -> list[str]:
    """Names of a folder's files, in order; names alone, for there are millions."""
    return sorted(name for name in os.listdir(folder) if name.endswith(ending))  # noqa: PTH208


def _boxes(folder: Path, files: list[str]) -> Iterator[tuple[int, ...]]:
    """Track, frame, xyxy of each object of a snippet."""
    for frame, name in enumerate(files):
        file = folder / name
        try:
            objects = ElementTree.parse(file).getroot().findall("object")
            found = [(int(one.findtext("trackid", "")), frame, *_box(one)) for one in objects]
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(
                f"{file}: no annotation of ImageNet-VID ({error}): unpack {_PAGE} again"
            ) from error
        yield from found


def _box(one: ElementTree.Element) -> tuple[int, ...]:
    box = tuple(int(one.findtext(f"bndbox/{side}", "")) for side in _SIDES)
    if box[0] > box[2] or box[1] > box[3]:
        raise ValueError(f"a box with xmin > xmax or ymin > ymax, {box}")
    return box


def _read(file: Path) -> Iterator[_Track]:
    """The tracks of a table; where a track has two boxes in a frame, the first one counts."""
    with np.load(file) as table:
        snippets, lengths = table["snippets"].tolist(), table["lengths"].tolist()
        rows = table["rows"]
    keys, kept = np.unique(rows[:, :3], axis=0, return_index=True)
    starts = np.flatnonzero(np.diff(keys[:, :2], axis=0, prepend=-1).any(1))
    for own in np.split(rows[kept], starts[1:]):
        if len(own) > 1:
            number, track = own[0, :2].tolist()
            yield _Track(snippets[number], lengths[number], track, own[:, 2], own[:, 3:])
