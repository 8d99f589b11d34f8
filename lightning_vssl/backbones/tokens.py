"""Video transformers as backbones: tokens become a map, blocks become stages.

A network over patches keeps tokens that lie nowhere, a class token or registers, beside those that
do. Its map is made of the latter alone; the former travel along from stage to stage, so that the
numbers are those of the whole network.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from lightning_vssl.backbones.carrying import CarryingBackbone

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

# How networks name their extra tokens and their tables of positions.
_TOKENS_AND_PLACES = re.compile(
    r"(cls|class)_token|register_tokens|position_embeddings|pos_embed_\w+|\w+_pos|rel_pos_\w"
)


@dataclass(frozen=True)
class Tokens:
    """What a transformer passes from block to block.

    Attributes:
        values: The tokens, (B, N, C).
        grid: How many of them lie along each axis: (T', h, w), or (h, w) in an image.
        others: How many, at the front, lie nowhere.
    """

    values: Tensor
    grid: tuple[int, ...]
    others: int = 0

    def as_map(self) -> Tensor:
        """The tokens that lie somewhere, (B, C, T', h, w) or (B, C, h, w)."""
        placed = self.values[:, self.others :].transpose(1, 2)  # (B, C, T'*h*w)
        return placed.reshape(*placed.shape[:2], *self.grid).contiguous()


def quarters(blocks: int) -> dict[str, range]:
    """Which of a plain transformer's blocks make ``layer1`` to ``layer4``, as even as can be.

    Args:
        blocks: How many there are, at least 4.

    Returns:
        Indices of blocks by stage.

    Raises:
        ValueError: If there are fewer than four.
    """
    if blocks < 4:
        raise ValueError(f"a transformer must have at least 4 blocks, one a stage; got {blocks}")
    ends = [number * blocks // 4 for number in range(5)]
    parts = zip(STAGES[1:], pairwise(ends), strict=True)
    return {name: range(*pair) for name, pair in parts}


def filled(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Fills a clip or an image up to whole patches, so that every pixel is in one.

    Height and width get zeros below and to the right, which is the mean colour of normalised
    pixels (timm's ``dynamic_img_pad``); time repeats the last frame (so V-JEPA 2 takes images).

    Args:
        x: (B, C, T, H, W) or (B, C, H, W).
        patch: Sides of a patch: (T, H, W) or (H, W).

    Returns:
        ``x`` with each side rounded up to a multiple; itself where they are.
    """
    *time, down, right = (-side % unit for side, unit in zip(x.shape[2:], patch, strict=True))
    if down or right:
        x = F.pad(x, (0, right, 0, down))
    if time and time[0]:
        x = F.pad(x, (0, 0, 0, 0, 0, time[0]), mode="replicate")
    return x


class TokenBackbone(CarryingBackbone[Tokens]):
    """A backbone whose stages pass on `Tokens`."""

    def no_weight_decay(self) -> list[str]:
        """Names of the parameters that weight decay leaves alone: tokens and tables of positions.

        `lightning_vssl.optim.parameter_groups` asks for them, as timm's networks answer it.
        """
        names = (name for name, _ in self.named_parameters())
        return [name for name in names if _TOKENS_AND_PLACES.fullmatch(name.rpartition(".")[2])]
