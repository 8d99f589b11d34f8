"""DAVIS-2016 and DAVIS-2017: every frame of short videos with masks of its objects.

Perazzi et al., CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object
Segmentation", 2017.
"""

from pathlib import Path
from typing import Literal, get_args

from lightning_vssl.data.masks import MaskedSequence
from lightning_vssl.data.sequences import FrameSequence
from lightning_vssl.datamodules.sequences import SequenceDataModule, SequenceSplit

Year = Literal[2016, 2017]

_SOURCE = "DAVIS is offered at davischallenge.org: DAVIS-2017-trainval-480p, or DAVIS-data of 2016"


class DAVIS(SequenceDataModule[MaskedSequence]):
    """DAVIS at 480p: ``val`` of 2017 has 30 sequences with 61 objects, of 2016 20 sequences.

    Frames are ``JPEGImages/480p/<sequence>/*.jpg``, masks are
    ``Annotations/480p/<sequence>/*.png``, and ``ImageSets/<year>/<split>.txt`` lists the sequences,
    by name or by pairs of paths. For 2016 all objects of a sequence are one, whether the masks are
    those of 2017 (ids with a palette) or of 2016 (grey, 0 and 255). What is wrong with lists, files
    or sizes is said before the first frame.

    Args:
        root: Folder of DAVIS.
        year: 2017: every object is followed by itself; 2016: all together.
        split: ``train`` or ``val``. The masks of the test splits are not public.
        resolution: Name of the folders below ``JPEGImages`` and ``Annotations``; ``480p``, or
            ``Full-Resolution`` where that was downloaded.
        only: Names of the sequences to take, instead of those listed; None takes the list's.

    Raises:
        ValueError: If the year or the split is unknown.
    """

    def __init__(
        self,
        root: Path,
        *,
        year: Year = 2017,
        split: SequenceSplit = "val",
        resolution: str = "480p",
        only: tuple[str, ...] | None = None,
    ) -> None:
        if year not in get_args(Year):
            raise ValueError(f"year must be 2016 or 2017, got {year!r}")
        if split == "test":
            raise ValueError(
                "split must be train or val: DAVIS keeps the masks of its test splits to itself"
            )
        super().__init__(root, split=split)
        self.year: Year = year
        self.resolution = resolution
        self.only = None if only is None else tuple(only)

    def names(self, split: SequenceSplit) -> list[str]:
        """Sequences of a split, in the list's order."""
        if self.only is not None:
            return list(self.only)
        file = self.root / "ImageSets" / str(self.year) / f"{split}.txt"
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}: {_SOURCE}")
        found: dict[str, None] = {}  # a set in order
        for number, row in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            words = row.split()
            if len(words) > 2 or (len(words) == 2 and len(Path(words[0]).parts) < 2):
                raise ValueError(
                    f"{file}, line {number}: {row!r} is neither a sequence's name nor the paths of "
                    "a frame and its mask"
                )
            if words:
                found[words[0] if len(words) == 1 else Path(words[0]).parent.name] = None
        return list(found)

    def read(self, split: SequenceSplit, name: str) -> MaskedSequence:
        """One sequence: a mask for each frame, of its size; the first one is looked into."""
        frames = self._listed("JPEGImages", name, ".jpg")
        masks = self._listed("Annotations", name, ".png")
        for have, others, what in ((frames, masks, "mask"), (masks, frames, "frame")):
            if alone := sorted(have.keys() - others.keys()):
                raise FileNotFoundError(
                    f"{have[alone[0]]} has no {what} in {next(iter(others.values())).parent}"
                    + (f", and {len(alone) - 1} others neither" if len(alone) > 1 else "")
                    + f": {_SOURCE}"
                )
        found = MaskedSequence(
            FrameSequence(name, tuple(frames.values())),
            tuple(masks.values()),
            union=self.year == 2016,
        )
        found.check_sizes()
        first = found.mask(0)
        if not ((first > 0) & (first < 255)).any():
            raise ValueError(f"{found.files[0]}: the first mask has no object to follow")
        return found

    def _listed(self, kind: str, name: str, suffix: str) -> dict[str, Path]:
        """The files of a sequence by their stems, in order."""
        folder = self.root / kind / self.resolution / name
        files = sorted(folder.glob(f"*{suffix}"))
        if not files:
            raise FileNotFoundError(f"no {suffix[1:]} files in {folder}: {_SOURCE}")
        return {file.stem: file for file in files}
