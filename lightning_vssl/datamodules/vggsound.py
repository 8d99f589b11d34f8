"""VGG-Sound (Chen et al. 2020): 200,000 clips of ten seconds, each with what is heard in it."""

import csv
from pathlib import Path

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import Unpack, VideoOptions
from lightning_vssl.datamodules.video_folder import SUFFIXES

_SOURCE = "the official list, from www.robots.ox.ac.uk/~vgg/data/vggsound"


class VGGSound(VideoDataModule):
    """VGG-Sound, from the official list and the clips cut out of their videos.

    Layout: ``<root>/vggsound.csv`` (or below ``data`` or ``annotations``), without a header:
    identifier of the video, second at which the clip starts, label (quoted where it holds a comma),
    ``train`` or ``test``; and the clips ``<id>_<start:06d>.mp4`` below ``videos``, at any depth.
    Classes are sorted by name. There are no validation videos of their own: validation reads none.

    Videos disappear: what is missing is counted, named, and left out up to ``max_missing``.

    Args:
        root: Folder of the dataset.
        videos: Folder of the clips, below ``root``.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        videos: str = "video",
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
        )
        self.videos = videos

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The rows of a split; a clip that is not there keeps its place and is counted."""
        if split == "val":
            return [], ()
        file = next((place for place in self._places() if place.is_file()), self._places()[0])
        folder = self.root / self.videos
        require_files({file: _SOURCE, folder: "the clips, by --data.videos"}, "VGG-Sound")
        rows = _rows(file)
        classes = tuple(sorted({label for _, label, _ in rows}))
        labels = {name: label for label, name in enumerate(classes)}
        found = _clips(folder)
        return [
            Entry(f"{self.videos}/{found.get(clip, f'{clip}.mp4')}", labels[label])
            for clip, label, part in rows
            if part == split
        ], classes

    def _places(self) -> list[Path]:
        return [self.root / folder / "vggsound.csv" for folder in (".", "data", "annotations")]


def _clips(folder: Path) -> dict[str, str]:
    """Where each clip lies below a folder, by its name without a suffix."""
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            found.setdefault(file.stem, file.relative_to(folder).as_posix())
    return found


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """(name of the clip, class, ``train`` or ``test``) of each row of the official list."""
    rows = []
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        for fields in reader:
            if not fields:
                continue
            where = f"{file}, line {reader.line_num}"
            if len(fields) != 4 or fields[3].strip() not in ("train", "test"):
                raise ValueError(
                    f"{where}: {','.join(fields)!r} is not id, start in seconds, label, train or "
                    "test; a label with a comma is quoted"
                )
            name, start, label, part = (field.strip() for field in fields)
            try:
                second = int(float(start))
            except ValueError as error:
                raise ValueError(f"{where}: {start!r} is no number of seconds") from error
            rows.append((f"{name}_{second:06d}", label, part))
    if not rows:
        raise ValueError(f"{file} lists no videos")
    return rows
