"""Folders of images, ImageNet's above all, as clips of one frame."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_vssl.data.clips import CentreClip, FrameViews
from lightning_vssl.data.frames import IMAGE_SUFFIXES
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import CentreCrop, RandomResizedCrop, Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule
from lightning_vssl.datamodules.options import LoaderOptions, Unpack


class ImageFolder(VideoDataModule):
    """Any folder of images, with or without classes.

    With ``labels``, the folders right below a split's folder are the classes, sorted by name, and
    every image below one belongs to it, as torchvision's ``ImageFolder`` has it. Without, all
    images at any depth are taken, which is all that pretraining needs.

    ImageNet's archives of 2012 (from image-net.org, after registration): unpack
    ``ILSVRC2012_img_train.tar`` and the 1,000 archives in it to ``train/<synset>/*.JPEG``, and
    ``ILSVRC2012_img_val.tar`` to ``val/*.JPEG``. The validation images come without folders and
    without labels: move them into folders of their synsets, or name a list in ``val_labels``.

    A batch is that of a video data set, with clips of one frame: ``video`` (B, V, 1, 3, H, W),
    ``time`` 0. All V views show the same image, each through a window of its own.

    Args:
        root: Folder of the dataset.
        train: Folder of the training images, below ``root``.
        val: Folder of the validation images, below ``root``; None where there is none.
        test: Folder of the test images, below ``root``; None where there is none.
        labels: Read classes from the folders' names.
        val_labels: File below ``root`` with the classes of validation images that lie loose, a row
            each: ``<class>`` alone, for the images sorted by name (the 50,000 synsets that the
            TensorFlow scripts come with), or ``<image> <class>``, with a blank or a comma between,
            the image with or without its ending (Kaggle's ``LOC_val_solution.csv``). It goes for
            ``test`` too where that is the same folder. None: the folders tell.
        suffixes: Endings, in lower case, of the files that are images.
        views: Views V of a training image. BYOL and MoCLR 2, a classifier 1.
        window: Crop of a training view; None for BYOL's: 0.08 to 1 of the area, 224 x 224, cubic.
        eval_window: Crop in evaluation; None for the short side to 256, the centre of 224 x 224,
            cubic.
        batch_size: Training images per step over all processes together.
        gallery: In tests, walk the training images first, then the test images.
        label_fraction: Share of the training images of each class that are used.
        video_fraction: Share of the training images that are used, whatever their class.
        max_missing: Share of a split's images that may lack their file.
        max_unreadable: Share of them that may be broken.
        options: How samples are read; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        train: str = "train",
        val: str | None = "val",
        test: str | None = "val",
        labels: bool = True,
        val_labels: str | None = None,
        suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
        views: int = 2,
        window: Windows | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 256,
        gallery: bool = False,
        label_fraction: float = 1.0,
        video_fraction: float = 1.0,
        max_missing: float = 0.0,
        max_unreadable: float = 0.05,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(
            root,
            clips=FrameViews(views=views),
            window=window or RandomResizedCrop(scale=(0.08, 1.0), interpolation="bicubic"),
            eval_clips=CentreClip(frames=1),
            eval_window=eval_window or CentreCrop(interpolation="bicubic"),
            batch_size=batch_size,
            gallery=gallery,
            label_fraction=label_fraction,
            video_fraction=video_fraction,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            **options,
        )
        inside = [one for one in (val, test) if one and Path(train) in Path(one).parents]
        if inside:
            raise ValueError(
                f"train={train!r} contains {inside[0]!r}: give the training images a folder of "
                "their own"
            )
        self.folders: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.labels = labels
        self.val_labels = val_labels
        self.suffixes = tuple(suffixes)
        self.views = views
        self._files: dict[str, list[str]] = {}

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The images below a split's folder, sorted by path."""
        folder = self.folders[split]
        if folder is None:
            return [], ()
        files = self._listed_files(folder)
        if not self.labels:
            return [Entry(file) for file in files], ()
        train = str(self.folders["train"])
        names = tuple(sorted(set(self._owners(train)) - {""}))
        owners = self._owners(folder)
        strange = sorted(set(owners) - set(names) - {""})
        if strange:
            raise ValueError(
                f"{self.root / folder} has classes that {self.root / train} lacks: "
                f"{', '.join(strange[:10])}"
            )
        number = {name: label for label, name in enumerate(names)}
        rows = zip(files, owners, strict=True)
        return [Entry(file, number.get(owner, -1)) for file, owner in rows], names

    def _owners(self, folder: str) -> list[str]:
        """The class of each image of a folder: a folder's name or a list's, or none for all."""
        files = self._listed_files(folder)
        if self.val_labels is not None and folder == self.folders["val"]:
            return self._told(folder, files, self.root / self.val_labels)
        depth = len(Path(folder).parts)
        parts = [file.split("/") for file in files]
        owners = [part[depth] if len(part) > depth + 1 else "" for part in parts]
        names = sorted(set(owners) - {""})
        if "" in owners and (names or folder != self.folders["train"]):
            loose = files[owners.index("")].rpartition("/")[2]
            beside = f" beside folders of images ({names[0]}, ...)" if names else ""
            raise ValueError(
                f"{self.root / folder} holds images ({loose}, ...){beside}: move them into a "
                "folder of their class, name a list of their classes in val_labels, or set "
                "labels: false"
            )
        return owners

    def _told(self, folder: str, files: list[str], listed: Path) -> list[str]:
        """The classes that a list gives to the images of a folder."""
        if not listed.is_file():
            raise FileNotFoundError(f"val_labels: no file {listed}")
        rows = [
            row.replace(",", " ").split()[:2]
            for row in listed.read_text(encoding="utf-8-sig").splitlines()
            if row.strip()
        ]
        if all(len(row) == 1 for row in rows):
            if len(rows) != len(files):
                raise ValueError(
                    f"{listed} names {len(rows)} classes, and {self.root / folder} holds "
                    f"{len(files)} images"
                )
            return [row[0] for row in rows]
        known = {Path(row[0]).stem: row[1] for row in rows if len(row) == 2}
        owners = [known.get(Path(file).stem, "") for file in files]
        if "" in owners:
            raise ValueError(
                f"{listed} gives no class to {owners.count('')} of the {len(files)} images in "
                f"{self.root / folder}, {files[owners.index('')]} the first"
            )
        return owners

    def _listed_files(self, folder: str) -> list[str]:
        """Paths of the images below a folder, relative to the root, sorted; listed once."""
        if folder not in self._files:
            base = self.root / folder
            if not base.is_dir():
                raise FileNotFoundError(
                    f"no folder {base}: check root and the names of the splits; without "
                    "validation images set val and test to null"
                )
            start = "" if folder == "." else f"{Path(folder).as_posix()}/"
            files = sorted(_images(base, start, self.suffixes))
            if not files:
                raise ValueError(
                    f"no images below {base}: files that end in {', '.join(self.suffixes)} are "
                    "taken"
                )
            self._files[folder] = files
        return self._files[folder]


def _images(folder: Path, start: str, suffixes: Sequence[str]) -> Iterator[str]:
    """Paths of the images below a folder, each behind ``start``; hidden ones are left out."""
    with os.scandir(folder) as found:
        for item in found:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _images(Path(item.path), f"{start}{item.name}/", suffixes)
            elif item.name.lower().endswith(tuple(suffixes)):
                yield f"{start}{item.name}"
