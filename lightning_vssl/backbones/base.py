"""What every backbone is: a network from pixels to a feature map, with named stages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of R, G and B that a network expects, in units of [0, 1]."""

IMAGENET_PIXELS: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINETICS_PIXELS: Pixels = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))

_PACKAGE = "lightning_vssl.backbones"


def as_pixels(pixels: Sequence[Sequence[float]]) -> Pixels:
    """Checks a pair (mean, std) and turns lists, as JSON and YAML give them, into tuples.

    Args:
        pixels: Mean and standard deviation, three numbers each.

    Returns:
        The same numbers as nested tuples.

    Raises:
        ValueError: If there are not two rows of three numbers, or a deviation is not positive.
    """
    if len(pixels) != 2 or any(len(row) != 3 for row in pixels) or min(pixels[1]) <= 0:
        raise ValueError(
            f"pixels must be (mean, std), three numbers each with std > 0; got {pixels!r}"
        )
    mean, std = ((float(r), float(g), float(b)) for r, g, b in pixels)
    return mean, std


# How networks name what follows their feature extractor.
_CLASSIFIERS = ("fc", "head", "heads", "classifier", "cls_head", "linear", "projection")


class Backbone(nn.Module, ABC):
    """A network from pixels to a feature map, described well enough to be exported and rebuilt.

    A subclass builds its layers and says what one stage does in `stage`. Running stages one after
    the other gives `forward`, collecting some of them gives `features`.

    Args:
        channels: Channels of each stage's map, by name of the stage, in the order they run.
        strides: Total stride in time and in space of each stage's map, by the same names.
        init_args: The arguments that rebuild this module, plain data (numbers, strings, lists).
        pixels: How the network wants its pixels: mean and standard deviation of R, G, B.
        dims: 3 for a network over (B, C, T, H, W), 2 for one over (B, C, H, W).
        classifiers: Names under which a file of this network may hold a classifier, which is then
            left out; any other entry that the network lacks is an error.
        least: Frames, and pixels of height and of width, that a clip must have: a pool that is not
            padded leaves nothing of less.

    Attributes:
        num_features: Channels of the last map.
        stride: Total stride in time and in space of the last map.
        stages: Names of the stages, in the order they run.
        stage_channels: Channels by stage.
        stage_strides: Strides (time, space) by stage.
        pixels: Mean and standard deviation.
        dims: 2 or 3.
        classifiers: Names of classifiers in files.
        least: Frames and pixels a side that a clip must have.
        origin: Where the weights come from that it was built with, such as ``transformers:
            facebook/dinov2-base``; None where they are random, or `load_weights` brings them.
        config: ``{"class_path": ..., "init_args": ...}``; plain data that rebuilds this module.

    Raises:
        ValueError: If ``channels`` and ``strides`` do not name the same stages.
    """

    def __init__(
        self,
        *,
        channels: Mapping[str, int],
        strides: Mapping[str, tuple[int, int]],
        init_args: Mapping[str, object],
        pixels: Sequence[Sequence[float]] = IMAGENET_PIXELS,
        dims: Literal[2, 3] = 3,
        classifiers: Sequence[str] = _CLASSIFIERS,
        least: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        if list(channels) != list(strides):
            raise ValueError(
                f"channels and strides must name the same stages; got {list(channels)} "
                f"and {list(strides)}"
            )
        self.stages: tuple[str, ...] = tuple(channels)
        self.stage_channels: dict[str, int] = dict(channels)
        self.stage_strides: dict[str, tuple[int, int]] = dict(strides)
        self.num_features: int = channels[self.stages[-1]]
        self.stride: tuple[int, int] = strides[self.stages[-1]]
        self.pixels: Pixels = as_pixels(pixels)
        self.dims: Literal[2, 3] = dims
        self.classifiers: tuple[str, ...] = tuple(classifiers)
        self.least: tuple[int, int] = least
        self.origin: str | None = None
        self._init_args = dict(init_args)

    @property
    def config(self) -> dict[str, object]:
        """Class and arguments that rebuild this module, as plain data."""
        kind = type(self)
        # The package's own classes go by their public name, so that files may move.
        inside = kind.__module__.startswith(f"{_PACKAGE}.")
        module = _PACKAGE if inside else kind.__module__
        return {
            "class_path": f"{module}.{kind.__qualname__}",
            "init_args": {name: _plain(value) for name, value in self._init_args.items()},
        }

    def downstream(self) -> dict[str, object]:
        """Config of the form in which the network is exported; the same one unless overridden."""
        return self.config

    @abstractmethod
    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs one stage on the map of the stage before it.

        Args:
            name: One of `stages`.
            x: The clip, (B, C, T, H, W), for the first stage, else the previous stage's map.

        Returns:
            The stage's map, (B, C', T', H', W'); without T where ``dims`` is 2.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Runs the whole network.

        Args:
            x: Normalised clip, (B, C, T, H, W), or (B, C, H, W) where ``dims`` is 2.

        Returns:
            The last stage's map, (B, num_features, T', H', W'), or (B, num_features, H', W').

        Raises:
            ValueError: If ``x`` has another number of dimensions, or is smaller than `least`.
        """
        self._check(x)
        for name in self.stages:
            x = self.stage(name, x)
        return x

    def features(self, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Runs the network as far as needed and returns the maps of the stages named.

        Args:
            x: Normalised clip, (B, C, T, H, W), or (B, C, H, W) where ``dims`` is 2.
            stages: Names out of `stages`, in any order.

        Returns:
            Map of each stage by name, in the order in which the stages run.

        Raises:
            ValueError: If a stage is not one of this network, or ``x`` has another number of
                dimensions or is smaller than `least`.
        """
        self._check(x)
        self._check_stages(stages)
        found: dict[str, Tensor] = {}
        for name in self.stages:
            x = self.stage(name, x)
            if name in stages:
                found[name] = x
            if len(found) == len(set(stages)):
                break
        return found

    def _check_stages(self, stages: Sequence[str]) -> None:
        if not stages or any(name not in self.stages for name in stages):
            raise ValueError(
                f"stages must name at least one of {', '.join(self.stages)}; got {list(stages)}"
            )

    def _check(self, x: Tensor) -> None:
        if x.dim() != self.dims + 2:
            layout = "(B, C, T, H, W)" if self.dims == 3 else "(B, C, H, W)"
            raise ValueError(
                f"{type(self).__name__} takes a tensor {layout}; got shape {tuple(x.shape)}"
            )
        frames, side = self.least
        if min(x.shape[-2:]) < side or (self.dims == 3 and x.shape[2] < frames):
            raise ValueError(
                f"{type(self).__name__} takes clips of {frames} frames or more, of {side} x {side} "
                f"pixels or more; got {' x '.join(str(n) for n in x.shape[2:])}"
            )


def _plain(value: object) -> object:
    """Turns tuples into lists, at any depth, as JSON would."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
