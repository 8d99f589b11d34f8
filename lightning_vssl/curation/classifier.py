"""Which class the frames of a video show (VITO section 3.2: a ResNet-50 trained on ImageNet)."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from lightning_vssl.curation.titles import ClassNames


class FrameClassifier(nn.Module, ABC):
    """Names the class of each frame, on the accelerator.

    Frames are square: the middle square of the video's frame, `crop` of its short side, scaled to
    `size` pixels by the worker that reads it.

    Args:
        size: Side of a frame in pixels.
        crop: Share of the short side that the square takes, in (0, 1].

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self, *, size: int = 224, crop: float = 0.875) -> None:
        super().__init__()
        if size < 1 or not 0 < crop <= 1:
            raise ValueError(f"size={size}, crop={crop}: 1 or more pixels, and a share of the side")
        self.size = size
        self.crop = crop

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What its answers depend on, plain data."""

    @abstractmethod
    def prepare(self, classes: ClassNames) -> None:
        """Loads what it needs; called once, before any video is looked at.

        Args:
            classes: The classes it is to tell apart, in the order of its answers.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file or the classes do not fit.
        """

    @abstractmethod
    def forward(self, frames: Tensor) -> Tensor:
        """Names classes.

        Args:
            frames: (F, 3, size, size) uint8 RGB.

        Returns:
            The class that comes first for each frame, (F,) int64; -1 for none.
        """


class TimmClassifier(FrameClassifier):
    """A classifier of timm with weights from a file.

    Pixels are normalised with the mean and the standard deviation that timm knows for the network.
    They come from the decoder scaled in one pass (bilinear, antialiased), and not, as in timm,
    first the frame to 256 pixels and then its middle cut out: the window is the same.

    Args:
        network: Name of a network of timm. The paper says a ResNet-50 trained on ImageNet and no
            more; ``resnet50.tv_in1k`` is the one trained as ResNets first were.
        weights: File of its weights (.safetensors, .pth, .bin); None leaves it untrained, which is
            for tests alone.
        num_classes: Its outputs.
        size: Side of a frame in pixels.
        crop: Share of the short side that the square takes, in (0, 1].
        frames_at_once: Frames of a forward pass.

    Raises:
        ValueError: If there is no such network or a number is out of its range.
    """

    def __init__(
        self,
        network: str = "resnet50.tv_in1k",
        weights: Path | None = None,
        *,
        num_classes: int = 1000,
        size: int = 224,
        crop: float = 0.875,
        frames_at_once: int = 100,
    ) -> None:
        super().__init__(size=size, crop=crop)
        if min(num_classes, frames_at_once) < 1:
            raise ValueError(
                f"num_classes={num_classes}, frames_at_once={frames_at_once}: each 1 or more"
            )
        if not timm.is_model(network):
            near = timm.list_models(f"*{network.partition('.')[0][:6]}*")[:10]
            raise ValueError(
                f"network={network!r}: timm has no such network; it has {', '.join(near)} ..."
                if near
                else f"network={network!r}: timm has no such network (timm.list_models() lists all)"
            )
        try:
            self.network: nn.Module = timm.create_model(network, num_classes=num_classes)
        except RuntimeError as error:  # an unknown tag behind the dot
            raise ValueError(f"network={network!r}: {error}") from error
        about = resolve_model_data_config(self.network)  # type: ignore[no-untyped-call]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(about["mean"]).view(3, 1, 1), False)
        self.register_buffer("std", 255 * torch.tensor(about["std"]).view(3, 1, 1), False)
        self.name = network
        self.weights = None if weights is None else Path(weights).expanduser()
        self.num_classes = num_classes
        self.frames_at_once = frames_at_once
        self._loaded: str | None = None

    @property
    def settings(self) -> dict[str, object]:
        """The network, its weights by their hash, and how frames are cut."""
        return {
            "classifier": self.name,
            "weights": self._loaded,
            "size": self.size,
            "crop": self.crop,
        }

    def prepare(self, classes: ClassNames) -> None:
        """Loads the weights; see `FrameClassifier.prepare`."""
        if len(classes) != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}: the candidates' classes are {len(classes)}; a "
                "classifier has one output for each, in their order"
            )
        if self.weights is None or self._loaded is not None:
            return
        if not self.weights.is_file():
            raise FileNotFoundError(
                f"no weights of the classifier at {self.weights}: give --model.classifier.weights "
                f"a file that timm's {self.name} can load"
            )
        try:
            self.network.load_state_dict(_state(self.weights))
        except (RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(
                f"the weights in {self.weights} do not fit {self.name} with {self.num_classes} "
                f"classes: {_short(str(error))}"
            ) from error
        except Exception as error:  # whatever the unpickler says of bytes that are none of its own
            raise ValueError(f"{self.weights} is no file of weights: {error}") from error
        with self.weights.open("rb") as stream:
            self._loaded = "sha256 " + hashlib.file_digest(stream, "sha256").hexdigest()

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Names classes; see `FrameClassifier.forward`."""
        self.network.eval()
        parts = (
            frames[first : first + self.frames_at_once]
            for first in range(0, len(frames), self.frames_at_once)
        )
        return torch.cat(
            [self.network((part.float() - self.mean) / self.std).argmax(dim=1) for part in parts]
        )


def _state(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    for name in ("state_dict", "model"):  # as training scripts save it
        inner = state.get(name)
        if isinstance(inner, dict):
            return inner
    return state


def _short(text: str) -> str:
    return text if len(text) < 400 else text[:400] + " ..."
