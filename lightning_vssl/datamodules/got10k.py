"""GOT-10k: Huang, Zhao, Huang, "GOT-10k: A Large High-Diversity Benchmark", TPAMI 2021."""

import os
from pathlib import Path

import torch

from lightning_vssl.data.sequences import FolderFiles, FrameSequence, TrackedSequence
from lightning_vssl.data.track_files import TrackFiles, check_first, read_boxes, read_numbers
from lightning_vssl.datamodules.base import require_files
from lightning_vssl.datamodules.sequences import SequenceDataModule, SequenceSplit

_PAGE = "got-10k.aitestunion.com"


class GOT10k(SequenceDataModule[TrackedSequence]):
    """GOT-10k: 9,335 sequences to train on, 180 of val, 180 of test whose boxes are withheld.

    Layout: ``<root>/{train,val,test}/list.txt`` and, in a folder of each name it lists,
    ``%08d.jpg``, ``groundtruth.txt`` (left, top, width, height, pixels counted from 0),
    ``cover.label`` (0, not seen, to 8, all of it) and ``absence.label``. Where the object is not
    seen the box is NaN; in ``test`` it is in every frame but the first.

    Args:
        root: Folder of the data set.
        split: The split that tests and predictions walk.
    """

    def __init__(self, root: Path, *, split: SequenceSplit = "val") -> None:
        super().__init__(root, split=split)

    def names(self, split: SequenceSplit) -> list[str]:
        """Names of a split's sequences, as its list has them.

        Raises:
            FileNotFoundError: If the list is missing.
        """
        file = self.root / split / "list.txt"
        require_files({file: f"the {split} archive of {_PAGE}"}, "GOT-10k")
        return file.read_text(encoding="utf-8").split()

    def read(self, split: SequenceSplit, name: str) -> TrackedSequence:
        """One sequence with its boxes.

        Raises:
            FileNotFoundError: If the folder or one of its files is missing.
            ValueError: If a line is wrong, there are not as many boxes or labels as frames, or the
                first box has no size or lies outside the frame.
        """
        folder = self.root / split / name
        labels = [] if split == "test" else ["cover", "absence"]
        files = [folder / "groundtruth.txt", *(folder / f"{label}.label" for label in labels)]
        require_files(dict.fromkeys(files, f"the {split} archive of {_PAGE}"), "GOT-10k")
        images = sorted(image for image in os.listdir(folder) if image.endswith(".jpg"))  # noqa: PTH208  # names alone
        frames = FrameSequence(name, FolderFiles(folder, tuple(images)))
        boxes = read_boxes(files[0], first=0)
        count = 1 if split == "test" else len(frames)
        if len(boxes) != count:
            raise ValueError(
                f"{files[0]} has {len(boxes)} boxes, and the {len(frames)} frames of {name} want "
                f"{count}"
            )
        check_first(boxes, frames, files[0])
        if split == "test":
            hidden = torch.full((len(frames) - 1, 4), torch.nan, dtype=torch.float64)
            return TrackedSequence(frames, torch.cat([boxes, hidden]))
        cover, absent = (
            _labels(file, count, 8 if n == 0 else 1) for n, file in enumerate(files[1:])
        )
        boxes[cover == 0] = torch.nan
        return TrackedSequence(frames, boxes, absent=absent > 0, cover=cover)

    def track_files(self, folder: Path) -> TrackFiles:
        """What a tracker found in these sequences, in the toolkit's layout."""
        return TrackFiles(folder, "got10k")


def _labels(file: Path, count: int, highest: int) -> torch.Tensor:
    """One whole number a frame, (F,) int64."""
    numbers = read_numbers(file, 1)[:, 0]
    wrong = [row for row in range(len(numbers)) if numbers[row] not in range(highest + 1)]
    if wrong:
        raise ValueError(
            f"{file}, line {wrong[0] + 1}: a whole number from 0 to {highest} is meant, got "
            f"{numbers[wrong[0]]:g}"
        )
    if len(numbers) != count:
        raise ValueError(f"{file} has {len(numbers)} labels for {count} frames")
    return torch.from_numpy(numbers).long()
