"""VITO's multi-scale attention pooling (Parthasarathy et al., NeurIPS 2023, section 3.1, Eq. 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionPool(nn.Module):
    """Pools the maps of several scales by a learned mask each, and concatenates.

    At every scale an independent two-layer MLP looks at one position at a time and gives it one
    number; their softmax over the positions is the mask, with which the map is averaged. The paper
    says neither the hidden width nor the activation: ReLU and no norm here. The last layer starts
    at zero, so that training starts from average pooling, and has no bias, which the softmax would
    cancel. Masks are made in float32 whatever the autocast.

    Args:
        channels: Channels of each scale's map, in the order in which they are concatenated.
        hidden: Width of the MLPs' hidden layer; None averages over positions (the ablation of
            Figure B.2) and has no parameters.

    Attributes:
        out_features: Width of the result, the sum of ``channels``.

    Raises:
        ValueError: If there is no scale, or a width is below 1.
    """

    def __init__(self, channels: Sequence[int], hidden: int | None = 512) -> None:
        super().__init__()
        widths = [*channels, *([] if hidden is None else [hidden])]
        if not channels or min(widths) < 1:
            raise ValueError(
                f"channels must name at least one scale, and all widths must be at least 1; got "
                f"channels={list(channels)}, hidden={hidden}"
            )
        self.channels = tuple(channels)
        self.hidden = hidden
        self.out_features = sum(channels)
        self.scales = nn.ModuleList(
            [] if hidden is None else [_scale(width, hidden) for width in channels]
        )

    @property
    def config(self) -> dict[str, object]:
        """Class and arguments that rebuild this module, as plain data."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": {"channels": list(self.channels), "hidden": self.hidden},
        }

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Pools the maps of some pictures.

        Args:
            maps: One map for each scale, (B, C_s, h_s, w_s).

        Returns:
            The pooled vectors, concatenated, (B, out_features), and the masks, (B, h_s, w_s)
            each, positive and of sum 1.

        Raises:
            ValueError: If the maps are not those of the scales.
        """
        if [m.shape[1] for m in maps] != list(self.channels) or any(m.dim() != 4 for m in maps):
            raise ValueError(
                f"maps must be (B, C, h, w) with C = {list(self.channels)}; got "
                f"{[tuple(m.shape) for m in maps]}"
            )
        if self.hidden is None:
            masks = [m.new_full((len(m), *m.shape[2:]), 1 / m[0, 0].numel()) for m in maps]
            return torch.cat([m.mean((2, 3)) for m in maps], dim=1), masks
        pooled, masks = [], []
        for scale, m in zip(self.scales, maps, strict=True):
            positions = m.flatten(2).transpose(1, 2)  # (B, h*w, C)
            logits = scale(positions)[..., 0]  # (B, h*w)
            mask = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
            pooled.append(torch.einsum("bn,bnc->bc", mask.to(m.dtype), positions))
            masks.append(mask.view(-1, *m.shape[2:]))
        return torch.cat(pooled, dim=1), masks


def _scale(channels: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, 1, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), last)


def average_masks(masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """One map for a picture from the masks of all scales: scaled up, then averaged (section 4.2).

    Taken literally: a mask keeps its values, of sum 1 on its own grid, so that a coarse scale,
    having fewer positions, weighs more in the average than a fine one.

    Args:
        masks: One for each scale, (B, h_s, w_s).
        size: Height and width of the result, in pixels.

    Returns:
        (B, H, W), bilinear, without antialiasing.
    """
    large = [
        F.interpolate(mask[:, None].float(), size=size, mode="bilinear", align_corners=False)
        for mask in masks
    ]
    return torch.cat(large, dim=1).mean(dim=1)
