"""What the label sources of Catch-the-Patch share: where boxes start, how values change in time.

Source: Wang et al., CVPR 2021, section 3.3 and supplement G, with the values of the authors'
released configuration. The sources are `lightning_vssl.augment.patches.PatchTracks` and those of
`lightning_vssl.augment.label_sources`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_vssl.nn.keyed import uniform

_ANCHOR, _JITTER, _PLACE = 16, 17, 18  # streams of the keyed generator
_EASING = (0.70, 0.85)  # cumulated: linear, accelerating, (rest) decelerating


class LabelledClips(NamedTuple):
    """Clips with the trajectories that a network is to read off them.

    Attributes:
        clips: (B, 3, T, H, W) float.
        boxes: (B, K, T, 4) float, xyxy in pixels of ``clips``.
        weights: Weight of each frame in the loss, (B, K, T) float.
        own: Clips of which only the first boxes are given, and whose labels the network is to make
            itself, (B,) bool; None where the source gives all labels.
    """

    clips: Tensor
    boxes: Tensor
    weights: Tensor
    own: Tensor | None = None


class LabelSource(nn.Module, ABC):
    """Where trajectories to learn from come from (section 5.2 and Table 1)."""

    @abstractmethod
    def draw(self, key: Tensor, frames: int, height: int, width: int) -> Any:  # noqa: ANN401
        """Draws what depends on no pixel; `forward` takes it back.

        Args:
            key: Keys of the samples, (B,) int64.
            frames: Frames T of the clips.
            height: Height of the clips in pixels.
            width: Width of the clips in pixels.
        """

    @abstractmethod
    def forward(self, clips: Tensor, drawn: Any, boxes: Tensor | None = None) -> LabelledClips:  # noqa: ANN401
        """Makes the labels, and changes the clips where that is how they are made.

        Args:
            clips: Clips, (B, 3, T, H, W) float in [0, 1]; changed in place.
            drawn: What `draw` returned for them.
            boxes: Boxes that came with the clips, (B, T, N, 4) float, xyxy in pixels, NaN where
                missing; None where none did.
        """


def make_anchors(scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Lists the sizes that patches are drawn from.

    Args:
        scales: Square roots of the areas in pixels.
        ratios: Width over height.

    Returns:
        (len(ratios) * len(scales), 2): width and height in pixels.
    """
    sides = [(s * math.sqrt(r), s / math.sqrt(r)) for r in ratios for s in scales]
    return torch.tensor(sides)


def draw_first_boxes(
    key: Tensor, count: int, anchors: Tensor, scale_jitter: float, canvas: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws where trajectories start, anywhere in the frame.

    Args:
        key: Keys of the samples, (B,) int64.
        count: Boxes K of each clip.
        anchors: Sizes to draw from, (A, 2).
        scale_jitter: Each side is multiplied by exp of a number in plus or minus this.
        canvas: Width and height of the clips in pixels, (2,) float.

    Returns:
        Centres and sizes, (B, K, 2) each, in pixels, not rounded.
    """
    batch = len(key)
    anchor = (uniform(key, count, _ANCHOR) * len(anchors)).long()  # (B, K)
    jitter = uniform(key, 2 * count, _JITTER).view(batch, count, 2) * 2 - 1
    size = anchors[anchor] * (jitter * scale_jitter).exp()  # (B, K, 2)
    size = torch.minimum(size.clamp(min=1), canvas - 1)
    corner = uniform(key, 2 * count, _PLACE).view(batch, count, 2) * (canvas - size)
    return corner + size / 2, size


def whole_pixels(centre: Tensor, size: Tensor, canvas: Tensor) -> Tensor:
    """Makes boxes of whole pixels inside the frame, each of one pixel at least.

    Args:
        centre: (..., 2) in pixels.
        size: (..., 2) in pixels.
        canvas: Width and height of the frame, (2,) float.

    Returns:
        (..., 4) int64, xyxy.
    """
    low = torch.minimum((centre - size / 2).clamp(min=0), canvas).round()
    high = torch.minimum((centre + size / 2).clamp(min=0), canvas).round()
    high = torch.maximum(high, low + 1)
    low = low - (high - canvas).clamp(min=0)
    return torch.cat([low, torch.minimum(high, canvas)], dim=-1).long()


def draw_key_frames(
    key: Tensor, frames: int, probabilities: Sequence[float], stream: int
) -> Tensor:
    """Draws the frames between which a trajectory is interpolated.

    The first and the last frame are always key frames. Inner ones sit on an even grid of spacing
    d, moved by an integer jitter in [-d/3, d/3).

    Args:
        key: Keys of the samples, (B,) int64.
        frames: Frames T of the clip.
        probabilities: Probability of 0, 1, 2, ... inner key frames.
        stream: The stream of random numbers to use.

    Returns:
        Frame indices, (B, len(probabilities) + 1) int64, ascending. Rows with fewer inner key
        frames are filled up with the last frame: segments of no length.
    """
    most = len(probabilities) - 1
    draws = uniform(key, most + 1, stream)  # (B, 1 + most)
    cumulated = torch.tensor(probabilities, device=key.device).cumsum(0)[:-1]
    inner = (draws[:, :1] >= cumulated).sum(1)  # (B,)
    order = torch.arange(1, most + 1, device=key.device)  # (most,)
    spacing = frames / (inner[:, None] + 1).float()  # (B, 1)
    reach = (spacing / 3).floor()
    jitter = (draws[:, 1:] * 2 * reach).floor() - reach
    ticks = ((spacing * order).floor() + jitter).long()  # (B, most)
    ticks = torch.where(order <= inner[:, None], ticks, frames - 1).clamp(0, frames - 1)
    ends = torch.tensor([0, frames - 1], device=key.device).expand(len(key), 2)
    return torch.cat([ends[:, :1], ticks, ends[:, 1:]], dim=1).sort(1).values


def interpolate(values: Tensor, key_frames: Tensor, frames: int, easing: Tensor) -> Tensor:
    """Fills in the frames between key frames.

    Args:
        values: Values at the key frames, (B, M, ...).
        key_frames: Frame indices, (B, M) int64, ascending from 0 to ``frames - 1``.
        frames: Frames T of the clip.
        easing: Number in [0, 1) of each segment, (B, M - 1): below 0.7 the value changes evenly,
            below 0.85 with constant acceleration from rest, else with constant deceleration.

    Returns:
        Values of every frame, (B, T, ...).
    """
    time = torch.arange(frames, device=values.device)
    trailing = (1,) * (values.dim() - 2)
    result = values[:, :1].expand(-1, frames, *values.shape[2:]).clone()
    for segment in range(key_frames.shape[1] - 1):
        start, end = key_frames[:, segment, None], key_frames[:, segment + 1, None]  # (B, 1)
        share = (time - start) / (end - start).clamp(min=1)  # (B, T)
        kind = easing[:, segment, None]
        eased = torch.where(kind < _EASING[0], share, share**2)
        eased = torch.where(kind < _EASING[1], eased, 1 - (1 - share) ** 2)
        first, last = values[:, segment, None], values[:, segment + 1, None]
        between = first + (last - first) * eased.view(*eased.shape, *trailing).to(values)
        inside = ((time > start) & (time <= end)).view(*eased.shape, *trailing)
        result = torch.where(inside, between, result)
    return result
