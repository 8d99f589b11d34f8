"""JHMDB (Jhuang et al. 2013), and the Video Backgrounds Challenge on it (PreViTS, section 4.3)."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_vssl.data.backgrounds import VARIANTS, Variant, variant_of
from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.hmdb51 import listed_classes, use_of
from lightning_vssl.datamodules.options import ClipOptions, Unpack
from lightning_vssl.datamodules.variants import in_variants, rendered_folder

_PAGE = "jhmdb.is.tue.mpg.de"
_USES: dict[Split, str] = {"train": "1", "val": "2", "test": "2"}


class JHMDB(VideoDataModule):
    """JHMDB with its three official splits: 928 clips of 15 to 40 frames, 21 classes.

    Layout: ``<root>/splits/<class>_test_split{1,2,3}.txt`` with a line ``<video>.avi <1 or 2>`` a
    clip, 1 for training and 2 for test, and the frames ``<root>/Rename_Images/<class>/<video>/
    00001.png`` and on. A class's label is its place among the sorted names. The masks of the
    foreground, ``<root>/puppet_mask/<class>/<video>/puppet_mask.mat``, are read by
    recipes/jobs/backgrounds.yaml alone.

    The Video Backgrounds Challenge: with ``rendered``, the folder that the job has filled, tests
    read every test clip in all ``variants``, variant after variant. Training and validation read
    the clips as they are.

    The dataset has no validation videos: validation reads the test videos, as the papers do. A
    number reported from it must be that of the last checkpoint, not of the best.

    Args:
        root: Folder of the dataset.
        split: Official split; PreViTS's is 1.
        rendered: Folder of the variants: ``variants`` in the run's folder of the job. None to test
            the clips as they are.
        variants: Which variants are tested.
        fps: Frames per second of the frames on disk.
        max_missing: Share of a split's videos that may lack their file.
        max_unreadable: Share of them that may be broken.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: Literal[1, 2, 3] = 1,
        rendered: Path | None = None,
        variants: tuple[Variant, ...] = VARIANTS,
        fps: float = 30.0,
        max_missing: float = 0.0,
        max_unreadable: float = 0.0,
        **options: Unpack[ClipOptions],
    ) -> None:
        super().__init__(root, max_missing=max_missing, max_unreadable=max_unreadable, **options)
        if split not in (1, 2, 3):
            raise ValueError(f"split={split}: choose 1, 2 or 3")
        if not fps > 0:
            raise ValueError(f"fps={fps}: frames per second, above 0")
        self.split = split
        self.rendered = rendered_folder(rendered, variants)
        self.variants: tuple[Variant, ...] = tuple(variants) if rendered is not None else ()
        self.fps = fps
        self.validated_on_test = True

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The clips that the official lists mark for a split; of a test, all their variants."""
        lists, frames = self.root / "splits", self.root / "Rename_Images"
        classes = listed_classes(lists)
        files = {lists / f"{name}_test_split{self.split}.txt": "" for name in classes}
        needed = dict.fromkeys(files or [lists], f"splits.zip of {_PAGE}")
        require_files({**needed, frames: f"Rename_Images.tar.gz of {_PAGE}"}, "JHMDB")
        entries = []
        for label, (name, file) in enumerate(zip(classes, files, strict=True)):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.strip() and use_of(line, file) == _USES[split]:
                    video = line.rsplit(maxsplit=1)[0].removesuffix(".avi")
                    entries.append(Entry(f"Rename_Images/{name}/{video}", label, fps=self.fps))
        if not entries:
            raise ValueError(f"the lists in {lists} mark no clip for {split}")
        if split == "test" and self.rendered is not None and self._job() is None:
            entries = in_variants(entries, classes, self.rendered, self.variants)
        return entries, classes

    def row_variants(self) -> Tensor:
        """Which of ``variants`` each row of the test is, (N,) int64."""
        assert self.rendered is not None
        paths = self.manifest("test").table.column("path").to_pylist()
        return torch.from_numpy(variant_of(self.variants, self.rendered, paths))
