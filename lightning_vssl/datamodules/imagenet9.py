"""ImageNet-9, the Backgrounds Challenge of pictures (Xiao et al. 2021)."""

from pathlib import Path

import torch
from torch import Tensor

from lightning_vssl.data import imagenet9
from lightning_vssl.data.backgrounds import VARIANTS, Variant, variant_of
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.frames import IMAGE_SUFFIXES
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import WholeFrame, Windows
from lightning_vssl.datamodules.base import Loader, Split, require_files
from lightning_vssl.datamodules.image_folder import ImageFolder
from lightning_vssl.datamodules.options import LoaderOptions, Unpack
from lightning_vssl.datamodules.variants import rendered_folder

_SOURCE = "github.com/MadryLab/backgrounds_challenge, its release"


class ImageNet9(ImageFolder):
    """Training on ImageNet, tests on the eight variants of ImageNet-9, 4,050 pictures each.

    Layout of the tests: ``<challenge>/<variant>/val/<class>/*``, a folder for each of the nine
    classes, which is known by its English name or synset (``02_wheeled vehicle``). The pictures,
    224 x 224, are taken as they are; of another size they are scaled to it. Labels of the test are
    the nine classes; `superclasses` tells what each of ImageNet's 1,000 counts as.

    Training and validation are those of `ImageFolder`; the classes must be all of ImageNet's, or
    nine in the order of `lightning_vssl.data.imagenet9.CLASSES`. A test does not look at them.

    Args:
        root: Folder of ImageNet.
        challenge: Folder of ImageNet-9's variants.
        variants: Which variants are tested.
        train: Folder of the training images, below ``root``.
        val: Folder of the validation images, below ``root``; None where there is none.
        val_labels: File below ``root`` with the classes of validation images that lie loose; see
            `ImageFolder`.
        views: Views of a training image.
        size: Side of a test picture in pixels.
        window: Crop of a training view; None for BYOL's: 0.08 to 1 of the area, 224 x 224, cubic.
        eval_window: Crop in validation; None for the short side to 256, the centre of 224 x 224,
            cubic.
        batch_size: Training images per step over all processes together.
        label_fraction: Share of the training images of each class that are used.
        max_missing: Share of a split's images that may lack their file.
        max_unreadable: Share of them that may be broken.
        options: How samples are read; see `VideoDataModule`.

    Raises:
        ValueError: If a variant is unknown or given twice, or ``size`` is below 1.
    """

    def __init__(
        self,
        root: Path,
        *,
        challenge: Path,
        variants: tuple[Variant, ...] = VARIANTS,
        train: str = "train",
        val: str | None = "val",
        val_labels: str | None = None,
        views: int = 1,
        size: int = 224,
        window: Windows | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 256,
        label_fraction: float = 1.0,
        max_missing: float = 0.0,
        max_unreadable: float = 0.0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(
            root,
            train=train,
            val=val,
            test=None,
            val_labels=val_labels,
            views=views,
            window=window,
            eval_window=eval_window,
            batch_size=batch_size,
            label_fraction=label_fraction,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            **options,
        )
        self.challenge = Path(challenge).expanduser().absolute()
        rendered_folder(self.challenge, variants)
        self.variants: tuple[Variant, ...] = tuple(variants)
        self.validated_on_test = False
        self.size = size
        self._test_window = WholeFrame((size, size))

    @property
    def num_classes(self) -> int:
        """Classes of the training; 0 in a test, which does not look at it."""
        return len(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        known = [self.manifests[split] for split in ("train", "val") if split in self.manifests]
        return known[0].classes if known else ()

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The images of a split; of a test, those of all variants."""
        if split != "test":
            return super().entries(split)
        folders = {name: self.challenge / name / "val" for name in self.variants}
        require_files(dict.fromkeys(folders.values(), _SOURCE), "ImageNet-9")
        entries = [entry for folder in folders.values() for entry in _pictures(folder)]
        return entries, imagenet9.CLASSES

    def test_dataloader(self) -> Loader:
        """The pictures of all variants in order, whole."""
        dataset = VideoDataset(
            self.manifest("test"),
            self.eval_clips,
            self._test_window,
            seed=self.seed,
            labels=True,
            replace=False,
        )
        return self._loader(dataset, self._local(self.eval_batch_size, "eval_batch_size"), None)

    def row_variants(self) -> Tensor:
        """Which of ``variants`` each row of the test is, (N,) int64."""
        paths = self.manifest("test").table.column("path").to_pylist()
        return torch.from_numpy(variant_of(self.variants, self.challenge, paths))

    def superclasses(self, num_classes: int) -> Tensor:
        """Which of the nine classes each class of a classifier counts as, (C,), -1 for none."""
        return imagenet9.superclasses(num_classes)

    def _check_classes(self) -> None:
        """The nine classes of the test are not those of training."""


def _pictures(folder: Path) -> list[Entry]:
    """The pictures below one variant's folder of classes.

    Raises:
        ValueError: If its folders are not one for each class, or one is empty.
    """
    labels = {item: imagenet9.label_of(item.name) for item in sorted(folder.iterdir())}
    labels = {item: label for item, label in labels.items() if item.is_dir()}
    if sorted(labels.values()) != list(range(len(imagenet9.CLASSES))):
        raise ValueError(
            f"{folder} must hold a folder for each of {', '.join(imagenet9.CLASSES)}; it holds "
            f"{', '.join(item.name for item in labels) or 'none'}"
        )
    found = []
    for item, label in labels.items():
        files = sorted(f for f in item.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(f"{item} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
        found += [Entry(str(file), label) for file in files]
    return found
