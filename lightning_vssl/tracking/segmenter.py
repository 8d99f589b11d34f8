"""Objects by supervision: the upper bound of PreViTS's Table 7d ("Sup. Seg").

The paper does not say which segmenter it takes. Here: one of torchvision's, or masks that any other
has left on the disk. Both stand where unsupervised saliency stands; all else of a tracker is as it
is.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model, get_model_weights, list_models, segmentation

from lightning_vssl.tracking.saliency import Saliency

_VOC = [  # the classes of torchvision's segmenters
    "__background__",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


class Segmenter(nn.Module, Saliency):
    """How sure a semantic segmenter of torchvision is of an object, on the accelerator.

    Args:
        network: Name of a network of `torchvision.models.segmentation`.
        weights: A file of its weights (.pth or .safetensors), or the name of torchvision's own,
            such as ``COCO_WITH_VOC_LABELS_V1``, which are downloaded; None leaves it untrained:
            for tests alone. They are loaded when first used.
        classes: What counts as an object, by the names of Pascal VOC; empty for all of them.
        size: Pixels of the short side that the network sees; torchvision trains at 520.
        short_side: Pixels of the short side that frames travel at.
        frames_at_once: Frames of a forward pass.

    Raises:
        ValueError: If there is no such network, or class, or a number is out of its range.
    """

    def __init__(
        self,
        network: str = "deeplabv3_resnet50",
        weights: str | None = "DEFAULT",
        *,
        classes: tuple[str, ...] = (),
        size: int = 520,
        short_side: int = 256,
        frames_at_once: int = 16,
    ) -> None:
        super().__init__()
        known = list_models(module=segmentation)
        if network not in known:
            raise ValueError(f"network={network!r}: choose one of {', '.join(known)}")
        strange = [name for name in classes if name not in _VOC[1:]]
        if strange:
            raise ValueError(f"classes={classes}: choose of {', '.join(_VOC[1:])}")
        if min(size, short_side, frames_at_once) < 1:
            raise ValueError(
                f"size={size}, short_side={short_side}, frames_at_once={frames_at_once}: each 1 "
                "or more"
            )
        self.network = get_model(network, weights=None, weights_backbone=None, aux_loss=False)
        self.name = network
        self.weights = weights
        self._loaded: str | None = None
        self.classes = tuple(classes)
        self.size = size
        self.short_side = short_side
        self.frames_at_once = frames_at_once
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", 255 * mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * std.view(3, 1, 1), persistent=False)

    def load(self) -> str | None:
        """Loads the weights, once.

        Returns:
            What to call them: a file by its hash.

        Raises:
            ValueError: If there are no such weights, or they do not fit.
        """
        if self.weights is not None and self._loaded is None:
            state, self._loaded = _weights(self.name, self.weights)
            kept = {k: v for k, v in state.items() if not k.startswith("aux_classifier.")}
            try:
                self.network.load_state_dict(kept)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the weights {self.weights} do not fit {self.name}: {error}"
                ) from error
        return self._loaded

    @property
    def settings(self) -> dict[str, object]:
        """The settings; loads the weights, whose hash is one of them."""
        return {
            "network": self.name,
            "weights": self.load(),
            "classes": list(self.classes),
            "size": self.size,
            "short_side": self.short_side,
        }

    @torch.no_grad()
    def forward(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        """Finds objects; see `Saliency.__call__`.

        Args:
            frames: (F, 3, H, W) uint8 RGB.
            video: Not used.
            numbers: Not used.

        Returns:
            The probability of any of the classes, (F, H, W) float32.
        """
        self.load()
        self.network.eval()
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        height, width = frames.shape[-2:]
        scale = self.size / min(height, width)
        seen = max(1, round(height * scale)), max(1, round(width * scale))
        wanted = [_VOC.index(name) for name in self.classes or _VOC[1:]]
        maps = []
        with torch.autocast(mean.device.type, enabled=False):
            for part in torch.split(frames, self.frames_at_once):
                pixels = (part.to(mean.device).float() - mean) / std
                pixels = functional.interpolate(pixels, seen, mode="bilinear", antialias=True)
                found = self.network(pixels)["out"].softmax(1)[:, wanted].sum(1, keepdim=True)
                shown = functional.interpolate(found, (height, width), mode="bilinear")
                maps.append(shown[:, 0].clamp(0, 1))
        return torch.cat(maps)


class PngMasks(Saliency):
    """Masks from the disk, one picture of labels a frame: annotations, or any segmenter's.

    Args:
        root: Folder of the masks.
        pattern: Path of a frame's mask below ``root``, a format of ``{video}`` (the video's name
            without its suffix), ``{name}`` (the same without its folders) and ``{frame}``. DAVIS:
            ``{name}/{frame:05d}.png``.
        first: Number of the first frame's mask.
        labels: Values that are the object; empty for every one but 0. In a palette picture they
            are the numbers of the colours.
        missing: What a frame without a file is: an error, or one in which the object is lost.
        short_side: Pixels of the short side that frames and masks are scaled down to; never up.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If the pattern has other fields, or a number is out of its range.
    """

    def __init__(
        self,
        root: str,
        pattern: str = "{video}/{frame:05d}.png",
        *,
        first: int = 0,
        labels: tuple[int, ...] = (),
        missing: Literal["error", "lost"] = "error",
        short_side: int = 128,
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise NotADirectoryError(f"root={root!r}: no such folder of masks")
        try:
            pattern.format(video="v", name="n", frame=0)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"pattern={pattern!r}: only video, name and frame are known"
            ) from error
        if missing not in ("error", "lost"):
            raise ValueError(f"missing={missing!r}: choose 'error' or 'lost'")
        if short_side < 1:
            raise ValueError(f"short_side={short_side}: 1 or more")
        self.pattern = pattern
        self.first = first
        self.labels = tuple(labels)
        self.missing = missing
        self.short_side = short_side

    @property
    def settings(self) -> dict[str, object]:
        """The pattern and what counts; the folder may move."""
        return {
            "pattern": self.pattern,
            "first": self.first,
            "labels": list(self.labels),
            "missing": self.missing,
            "short_side": self.short_side,
        }

    def __call__(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        """Reads the masks; see `Saliency.__call__`.

        Raises:
            FileNotFoundError: If the mask of a frame is missing, and ``missing`` is ``error``.
            ValueError: If a mask is no picture, or not of the frames' shape.
        """
        height, width = frames.shape[-2:]
        scale = min(1.0, self.short_side / min(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        stem = str(Path(video).with_suffix("")) if video else ""
        maps = np.zeros((len(frames), *size), np.float32)
        for row, number in zip(maps, numbers or range(len(frames)), strict=True):
            file = self.root / self.pattern.format(
                video=stem, name=Path(stem).name, frame=self.first + int(number)
            )
            if not file.is_file():
                if self.missing == "lost":
                    continue
                raise FileNotFoundError(
                    f"no mask {file}: name the masks by pattern and first, or set missing to lost"
                )
            labels = read_labels(file)
            if abs(labels.shape[0] * width - labels.shape[1] * height) > sum(labels.shape) + (
                height + width
            ):
                raise ValueError(
                    f"{file}: the mask has {labels.shape[0]} x {labels.shape[1]} pixels, its frame "
                    f"{height} x {width}: not the same shape"
                )
            objects = np.isin(labels, self.labels) if self.labels else labels != 0
            share = Image.fromarray(objects.astype(np.uint8) * 255)
            row[:] = np.asarray(share.resize(size[::-1], Image.Resampling.BOX), np.float32) / 255
        return torch.from_numpy(maps)


def read_labels(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Reads a mask.

    Args:
        file: A picture, such as DAVIS's.

    Returns:
        Labels, (H, W): a palette's numbers, grey values, or the largest of three colours.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, or not whole.
    """
    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture)
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file}: not a whole picture ({error})") from error
    return pixels.astype(np.int64) if pixels.ndim == 2 else pixels[..., :3].max(-1).astype(np.int64)


def _weights(name: str, weights: str) -> tuple[dict[str, Tensor], str]:
    """The state of a network's weights, and what to call them."""
    file = Path(weights).expanduser()
    if file.is_file():
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return _state(file), f"sha256 {digest}"
    known = [entry.name for entry in get_model_weights(name)]
    if weights not in (*known, "DEFAULT"):
        raise ValueError(
            f"weights={weights!r}: there is no such file, and torchvision's of {name} are "
            f"{', '.join(known)}"
        )
    chosen = get_model_weights(name)[weights]
    return chosen.get_state_dict(progress=False, check_hash=True), str(chosen)


def _state(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    inner = state.get("model")  # as torchvision's reference scripts save it
    return inner if isinstance(inner, dict) else state
