"""How salient each pixel of a video's frames is (PreViTS section 3.2): one interface.

The paper takes the maps of DeepUSPS, a network trained without labels. Here: maps that any network
has left on the disk, a network in a file, or what can be seen without training.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn import functional


class Saliency(ABC):
    """Finds what is salient in the frames of one video.

    Those that are an `nn.Module` run on the accelerator, all others in the workers that read the
    videos.
    """

    short_side: int
    """Pixels of the short side that frames may be scaled down to beforehand; never up."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What the maps depend on, plain data: kept with the tubes."""

    @abstractmethod
    def __call__(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        """Finds what is salient.

        Args:
            frames: (F, 3, H, W) uint8 RGB, in the order of the video.
            video: Name of the video: its path below the data set's root.
            numbers: The frames' numbers in the video, from 0, (F,); empty means 0, 1, ...

        Returns:
            (F, h, w) float32 in [0, 1], of any size that has the frames' shape; 0.5 and more is
            meant as salient.
        """


class PngSaliency(Saliency):
    """Maps from the disk, one grey picture a frame, such as those of DeepUSPS.

    Args:
        root: Folder of the maps.
        pattern: Path of a map below ``root``, a format of ``{video}`` (the video's name without
            its suffix), ``{name}`` (the same without its folders) and ``{frame}``.
        first: Number of the first frame's map. The released code of PreViTS counts from 1, in five
            digits.
        short_side: Pixels that the maps' short side is scaled down to; never up.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If the pattern has other fields, or none of a frame.
    """

    def __init__(
        self,
        root: str,
        pattern: str = "{video}/{frame:05d}.png",
        *,
        first: int = 1,
        short_side: int = 128,
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise NotADirectoryError(f"root={root!r}: no such folder of saliency maps")
        try:
            names = [pattern.format(video="v", name="n", frame=frame) for frame in (0, 1)]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"pattern={pattern!r}: only video, name and frame are known"
            ) from error
        if names[0] == names[1]:
            raise ValueError(f"pattern={pattern!r}: give the map of a frame by {{frame}}")
        if short_side < 1:
            raise ValueError(f"short_side={short_side}: 1 or more")
        self.pattern = pattern
        self.first = first
        self.short_side = short_side

    @property
    def settings(self) -> dict[str, object]:
        """The pattern; the folder may move."""
        return {"pattern": self.pattern, "first": self.first, "short_side": self.short_side}

    def __call__(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        """Reads the maps; see `Saliency.__call__`.

        Raises:
            FileNotFoundError: If the map of a frame is missing.
            ValueError: If a map is no picture, not whole, or not of the frames' shape.
        """
        chosen = range(len(frames)) if not len(numbers) else numbers
        stem = str(Path(video).with_suffix("")) if video else ""
        size = _scaled(frames.shape[-2], frames.shape[-1], self.short_side)
        maps = np.empty((len(frames), *size), np.float32)
        for row, number in zip(maps, chosen, strict=True):
            file = self.root / self.pattern.format(
                video=stem, name=Path(stem).name, frame=self.first + int(number)
            )
            row[:] = _read_map(file, (frames.shape[-2], frames.shape[-1]), size)
        return torch.from_numpy(maps)


class ModelSaliency(nn.Module, Saliency):
    """A network in a file: TorchScript, or a program of `torch.export` (.pt2).

    It takes (N, 3, h, w) float32 and returns (N, 1, h', w') or (N, h', w'), or (N, 2, h', w') as
    two classes, of which ``channel`` is the salient one. Frames are scaled to ``size``, shape or
    no shape, as DeepUSPS does it.

    Args:
        weights: The file.
        size: Height and width that the network takes.
        mean: Mean of the pixels in [0, 1], by channel.
        std: Their standard deviation.
        logits: Whether the network's numbers still have to go through a sigmoid (softmax where it
            has two classes).
        channel: Which of two classes is the salient one.
        short_side: Pixels of the short side that the frames are scaled down to beforehand.
        frames_at_once: Frames of a forward pass.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither, or a number is out of its range.
    """

    def __init__(
        self,
        weights: str,
        *,
        size: tuple[int, int] = (432, 432),
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        logits: bool = False,
        channel: int = 0,
        short_side: int = 256,
        frames_at_once: int = 16,
    ) -> None:
        super().__init__()
        if min(*size, short_side, frames_at_once) < 1 or min(std) <= 0 or channel not in (0, 1):
            raise ValueError(
                f"size={size}, short_side={short_side}, frames_at_once={frames_at_once}: each 1 or "
                f"more; std={std}: above 0; channel={channel}: 0 or 1"
            )
        file = Path(weights).expanduser()
        self.network, self._hash = _loaded(file)
        self.size = size
        self._pixels = (mean, std)
        self.logits = logits
        self.channel = channel
        self.short_side = short_side
        self.frames_at_once = frames_at_once
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    @property
    def settings(self) -> dict[str, object]:
        """The settings; the network by its hash."""
        return {
            "weights": self._hash,
            "size": list(self.size),
            "mean": list(self._pixels[0]),
            "std": list(self._pixels[1]),
            "logits": self.logits,
            "channel": self.channel,
            "short_side": self.short_side,
        }

    @torch.no_grad()
    def forward(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        """Runs the network; see `Saliency.__call__`.

        Raises:
            ValueError: If the network returns something else than maps.
        """
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        height, width = _scaled(frames.shape[-2], frames.shape[-1], self.short_side)
        maps = [
            self._map(
                functional.interpolate(
                    (part.to(mean.device).float() - mean) / std,
                    self.size,
                    mode="bilinear",
                    antialias=True,
                )
            )
            for part in torch.split(frames, self.frames_at_once)
        ]
        whole = torch.cat(maps)[:, None]
        return functional.interpolate(whole, (height, width), mode="bilinear", antialias=True)[:, 0]

    def _map(self, pixels: Tensor) -> Tensor:
        """(N, h', w') in [0, 1] of (N, 3, h, w)."""
        out = self.network(pixels)
        if not isinstance(out, Tensor) or out.ndim not in (3, 4) or len(out) != len(pixels):
            raise ValueError(f"the network returns {_what(out)}, not maps of {len(pixels)} frames")
        out = out.float() if out.ndim == 4 else out.float()[:, None]
        if out.shape[1] == 2:
            out = (out.softmax(1) if self.logits else out)[:, self.channel]
        elif out.shape[1] == 1:
            out = (out.sigmoid() if self.logits else out)[:, 0]
        else:
            raise ValueError(f"the network returns {_what(out)}, not one map or two classes")
        if not ((out >= 0) & (out <= 1)).all():
            raise ValueError("the network's numbers leave [0, 1]: set logits=true if they are such")
        return out


def _what(out: object) -> str:
    return str(tuple(out.shape)) if isinstance(out, Tensor) else type(out).__name__


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size whose short side is at most that many pixels."""
    scale = min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _read_map(file: Path, frame: tuple[int, int], size: tuple[int, int]) -> np.ndarray:  # type: ignore[type-arg]
    """Reads a map of a frame's shape, scaled to a size, float32 in [0, 1]."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            if abs(height * frame[1] - width * frame[0]) > 1.01 * max(*frame, height, width):
                raise ValueError(
                    f"{file}: the map has {height} x {width} pixels, its frame {frame[0]} x "
                    f"{frame[1]}: not the same shape"
                )
            grey = picture.convert("L").resize(size[::-1], Image.Resampling.BOX)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no saliency map {file}: write one for every frame, or name them by pattern and first"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{file}: not a picture") from error
    except OSError as error:
        raise ValueError(f"{file}: not a whole picture ({error})") from error
    return np.asarray(grey, np.float32) / 255


def _loaded(file: Path) -> tuple[nn.Module, str]:
    """The network, and its hash."""
    if not file.is_file():
        raise FileNotFoundError(f"no network {file}")
    try:
        if file.suffix == ".pt2":
            network = torch.export.load(file).module()
        else:
            network = torch.jit.load(str(file), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"{file}: neither TorchScript nor an exported program (.pt2)") from error
    with file.open("rb") as stream:
        return network, "sha256 " + hashlib.file_digest(stream, "sha256").hexdigest()
