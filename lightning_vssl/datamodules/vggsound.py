"""VGG-Sound (Chen et al. 2020): 200,000 clips of ten seconds, each with what is heard in it."""

import csv
from pathlib import Path

from lightning_vssl.data.clips import Clips
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.tubes import TubeForm
from lightning_vssl.data.windows import Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
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
        label_fraction: Share of the training videos of each class that are used.
        video_fraction: Share of the training videos that are used, whatever their class.
        boxes: Box file of the videos, which samples then carry; see `VideoDataModule`.
        tubes: Tube file of the videos, whose masks samples then carry; see `VideoDataModule`.
        tube_form: What the masks are: ``mask``, ``box`` or ``middle``.
        max_missing: Share of a split's videos that may lack their file, their boxes or tubes.
        max_unreadable: Share of them that may be broken.
        verify: Decode every video in full when it is first listed.
    """

    def __init__(
        self,
        root: Path,
        *,
        videos: str = "video",
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
        label_fraction: float = 1.0,
        video_fraction: float = 1.0,
        boxes: Path | None = None,
        tubes: Path | None = None,
        tube_form: TubeForm = "mask",
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
            label_fraction=label_fraction,
            video_fraction=video_fraction,
            boxes=boxes,
            tubes=tubes,
            tube_form=tube_form,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            verify=verify,
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
