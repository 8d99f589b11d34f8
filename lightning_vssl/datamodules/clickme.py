"""ClickMe: where people looked to tell what a picture shows (Linsley et al., ICLR 2019).

As Harmonization (Fel et al., NeurIPS 2022) distributes it: record files, each record with a JPEG of
an ImageNet picture (``image``, 256 x 256), one of the map (``heatmap``, 256 x 256, grey) and the
class (``label``).
"""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.data.tfrecord import read_example, record_spans

_MAP = 64  # side at which maps are blurred
_TAPS, _SIGMA = 10, 10.0


def blur_map(heat: Tensor) -> Tensor:
    """Blurs maps as Harmonization does: 10 x 10 taps of a Gaussian of sigma 10.

    The number of taps is even, so that the window cannot be centred: it reaches from 4 before a
    position to 5 behind it, and along a row its peak lies 1 behind. Outside the map are zeros.

    Args:
        heat: (B, H, W).

    Returns:
        (B, H, W).
    """
    taps = torch.arange(_TAPS, dtype=torch.float64)
    column = torch.exp(-((taps - 4) ** 2) / (2 * _SIGMA**2))
    row = torch.exp(-((taps - 5) ** 2) / (2 * _SIGMA**2))
    kernel = column[:, None] * row[None]
    kernel = (kernel / kernel.sum()).to(heat)
    padded = F.pad(heat[:, None], (4, 5, 4, 5))
    return F.conv2d(padded, kernel[None, None])[:, 0]


def human_map(heat: Tensor, size: int) -> Tensor:
    """From a stored map to the one that networks are compared with.

    Args:
        heat: (B, H, W) float.
        size: Side of the result in pixels.

    Returns:
        (B, size, size): to 64 x 64, blurred, to the size; bilinear without antialiasing.
    """
    small = F.interpolate(heat[:, None], (_MAP, _MAP), mode="bilinear", align_corners=False)
    blurred = blur_map(small[:, 0])
    return F.interpolate(blurred[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


class _Pictures(Dataset[dict[str, Tensor]]):
    """The records of some files, in order."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.size = size
        self.rows = [(file, *span) for file in files for span in record_spans(file)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        file, start, length = self.rows[number]
        with file.open("rb") as stream:
            stream.seek(start)
            example = read_example(stream.read(length))
        picture = self._decoded(example, "image", "RGB", file)  # (H, W, 3)
        heat = self._decoded(example, "heatmap", "L", file).float()  # (h, w)
        sides = self.size, self.size
        pixels = F.interpolate(
            picture.permute(2, 0, 1)[None].float(), sides, mode="bilinear", align_corners=False
        )
        label = example.get("label") or [0]
        return {
            "video": pixels.round().clamp(0, 255).to(torch.uint8)[None],  # (1, 1, 3, H, W)
            "human": human_map(heat[None], self.size)[0],
            "index": torch.tensor(number),
            "label": torch.tensor(int(label[0])),
            "time": torch.zeros(1, 1, dtype=torch.float64),
        }

    @staticmethod
    def _decoded(
        example: dict[str, list[bytes] | list[int]], name: str, mode: str, file: Path
    ) -> Tensor:
        content = example.get(name, [])
        if len(content) != 1 or not isinstance(content[0], bytes):
            raise ValueError(
                f"{file}: a record has no {name!r}, but {', '.join(example) or 'nothing'}: these "
                "are not ClickMe's files"
            )
        with Image.open(io.BytesIO(content[0])) as image:
            return torch.from_numpy(np.array(image.convert(mode)))


class ClickMe(LightningDataModule):
    """ClickMe's pictures with the maps of people, for tests.

    Batches hold ``video`` (B, 1, 1, 3, H, W) uint8, ``human`` (B, H, W), ``label``, ``index``.
    A picture of 256 x 256 is scaled to ``size`` and rounded to whole numbers, where Harmonization
    keeps fractions; maps are treated as there, see `human_map`.

    Args:
        root: Folder with ``val/val-*.tfrecords`` (17 files) and, for ``train``,
            ``train/train-*.tfrecords`` (318 files), from Harmonization's page.
        split: Which of them. The paper's number is of ``val``.
        size: Side of pictures and maps in pixels.
        batch_size: Pictures per step over all processes together.
        num_workers: Processes per process that read pictures.
        prefetch_factor: Batches that each of them holds ready.

    Raises:
        ValueError: If a number is below 1 or the split is unknown.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: Literal["val", "train"] = "val",
        size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        prefetch_factor: int = 2,
    ) -> None:
        super().__init__()
        if split not in ("val", "train"):
            raise ValueError(f"split must be val or train, got {split!r}")
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.root = Path(root).expanduser()
        self.split = split
        self.size = size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self._pictures: _Pictures | None = None

    def setup(self, stage: str) -> None:
        """Finds the records.

        Raises:
            FileNotFoundError: If there are no files of the split.
        """
        folder = self.root / self.split
        files = sorted(
            folder.glob(f"{self.split}-*.tfrecords"),
            key=lambda file: (len(file.name), file.name),  # 2 before 10
        )
        if not files:
            raise FileNotFoundError(
                f"no {folder}/{self.split}-*.tfrecords: ClickMe is distributed with the code of "
                "Harmonization (serre-lab/Harmonization), 17 files of val, 318 of train"
            )
        self._pictures = _Pictures(files, self.size)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The pictures in order."""
        if self._pictures is None:
            raise RuntimeError("no pictures yet: call setup('test')")
        ranks = 1 if self.trainer is None else self.trainer.world_size
        if self.batch_size % ranks:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide by the {ranks} processes of this "
                "run (it counts the pictures of all of them together)"
            )
        return DataLoader(
            self._pictures,
            batch_size=self.batch_size // ranks,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )
