"""Curation by nearest neighbours: the alternative that VITO's section 3.2 points at.

The paper names "alternative curation strategies such as the nearest-neighbor retrieval" with which
LVD-142M was made (Oquab et al., DINOv2, 2023): what lies near curated images is taken. Here the
class of a frame is that of the labelled image nearest to it in the features of a backbone, or none
where that image is too far; all else is as with a classifier. No classifier is needed, nor its
1,000 classes: a few labelled images of each class, and a backbone that was trained without labels.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import load_weights, sha256
from lightning_vssl.curation.classifier import FrameClassifier
from lightning_vssl.curation.titles import ClassNames
from lightning_vssl.data.frames import IMAGE_SUFFIXES


class NearestImages(FrameClassifier):
    """The class of the nearest labelled image.

    Features are the mean over the backbone's last map, of length one; nearness is their cosine.

    Args:
        backbone: A network over images.
        images: Folder of labelled images: one folder per class, called as the class's identifier.
            Classes without a folder are never found.
        backbone_weights: The backbone's weights, anything that `load_weights` reads; None leaves it
            untrained, which is for tests alone. No other classifier calls its weights so: on the
            command line, which carries arguments over from the class that a recipe names, those
            of another network never come along.
        least: Cosine below which an image is too far, in [-1, 1]. It depends on the backbone:
            neither paper gives one for this use.
        size: Side of a frame, and of an image, in pixels.
        crop: Share of the short side that the middle square takes, in (0, 1].
        frames_at_once: Frames of a forward pass.

    Raises:
        ValueError: If the backbone is no network over images or a number is out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Path,
        backbone_weights: Path | None = None,
        *,
        least: float = 0.5,
        size: int = 224,
        crop: float = 0.875,
        frames_at_once: int = 100,
    ) -> None:
        super().__init__(size=size, crop=crop)
        if backbone.dims != 2:
            raise ValueError(
                f"{type(backbone).__name__} is a network over clips: give one (dims=2)"
            )
        if not -1 <= least <= 1 or frames_at_once < 1:
            raise ValueError(f"least={least}, frames_at_once={frames_at_once}: a cosine; 1 or more")
        self.backbone = backbone
        self.images = Path(images).expanduser()
        self.backbone_weights = (
            None if backbone_weights is None else Path(backbone_weights).expanduser()
        )
        self.least = least
        self.frames_at_once = frames_at_once
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), backbone.pixels, strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        self._files: list[tuple[Path, int]] = []
        self._about: dict[str, object] = {}
        self._bank: tuple[Tensor, Tensor] | None = None

    @property
    def settings(self) -> dict[str, object]:
        """The backbone and its weights, the images by a hash of them, and how frames are cut."""
        return {
            "classifier": "nearest images",
            "backbone": self.backbone.config,
            **self._about,
            "least": self.least,
            "size": self.size,
            "crop": self.crop,
        }

    def prepare(self, classes: ClassNames) -> None:
        """Loads the weights and lists the images; see `FrameClassifier.prepare`."""
        if self._files:
            return
        if not self.images.is_dir():
            raise FileNotFoundError(f"no folder of labelled images at {self.images}")
        labels = {name: label for label, name in enumerate(classes.ids)}
        folders = sorted(folder for folder in self.images.iterdir() if folder.is_dir())
        strange = [folder.name for folder in folders if folder.name not in labels]
        if strange:
            raise ValueError(
                f"{self.images} has folders that are no class: {', '.join(strange[:10])}; they are "
                f"called as the classes' identifiers, such as {classes.ids[0]}"
            )
        digest = hashlib.blake2b(digest_size=16)
        files = []
        for folder in folders:
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    files.append((file, labels[folder.name]))
                    digest.update(f"{folder.name}/{file.name}".encode())
                    digest.update(file.read_bytes())
        if not files:
            raise ValueError(f"{self.images} has no images ({', '.join(IMAGE_SUFFIXES)})")
        weights = self.backbone_weights
        if weights is not None:
            load_weights(self.backbone, weights)
        self._about = {
            "weights": None if weights is None else f"sha256 {sha256(weights)}",
            "images": digest.hexdigest(),
        }
        self._files = files

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Names classes; see `FrameClassifier.forward`. The first call reads the images."""
        self.backbone.eval()
        if self._bank is None:
            self._bank = self._read(frames.device)
        images, labels = self._bank
        found = []
        for first in range(0, len(frames), self.frames_at_once):
            near = self._features(frames[first : first + self.frames_at_once]) @ images.T
            cosine, nearest = near.max(dim=1)
            found.append(torch.where(cosine >= self.least, labels[nearest], -1))
        return torch.cat(found)

    def _read(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Features (N, C) and classes (N,) of the labelled images."""
        parts = []
        for first in range(0, len(self._files), self.frames_at_once):
            files = self._files[first : first + self.frames_at_once]
            pixels = np.stack([self._square(file) for file, _ in files])
            parts.append(self._features(torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)))
        return torch.cat(parts), torch.tensor([label for _, label in self._files], device=device)

    def _square(self, file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The middle square of an image, (size, size, 3)."""
        try:
            with Image.open(file) as image:
                side = self.crop * min(image.size)
                left, top = (image.width - side) / 2, (image.height - side) / 2
                square = image.convert("RGB").resize(
                    (self.size, self.size),
                    Image.Resampling.BILINEAR,
                    box=(left, top, left + side, top + side),
                )
        except OSError as error:
            raise ValueError(f"cannot read the labelled image {file}: {error}") from error
        return np.asarray(square)

    def _features(self, pixels: Tensor) -> Tensor:
        """Features of images, (B, 3, H, W) uint8: (B, C)."""
        maps = self.backbone((pixels.float() - self.mean) / self.std)
        return nn.functional.normalize(maps.mean(dim=(2, 3)), dim=1)
