"""Regions of a feature map, and ConST-CL's head over them.

Yuan et al., "Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision", CVPR 2022,
sections 3.2 and 4.1; where the paper is silent, the authors' released configuration. Letters: B
videos, N regions, C channels of the map, T H W its grid, M memory tokens.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

Pooled = Literal["mean", "max"]

PLACE = 16
"""Numbers that say where a voxel is: 8 of its frame and 8 of its row and column."""

_BINS = 4  # per side and region


def pool_regions(maps: Tensor, boxes: Tensor, pooled: Pooled = "mean") -> Tensor:
    """Pools the regions of single feature maps by RoIAlign (section 3.1).

    4 x 4 bins, each the bilinear sample at its centre, then their mean or maximum. A voxel's value
    stands at its integer coordinate, so a box from 0 to 1 runs from the centre of the first voxel
    to one voxel beyond the centre of the last, where values repeat the last: the convention of the
    authors' code, which no region falls short of a voxel in.

    Args:
        maps: One map per video, (B, C, H, W).
        boxes: Corners xyxy as shares of the map's width and height, (B, N, 4); finite.
        pooled: What is taken of a region's bins: the ``mean`` to pretrain, the ``max`` in the
            action transformer.

    Returns:
        (B, N, C).

    Raises:
        ValueError: If the shapes do not fit.
    """
    if maps.dim() != 4 or boxes.dim() != 3 or boxes.shape[-1] != 4 or len(maps) != len(boxes):
        raise ValueError(
            "maps must be (B, C, H, W) and boxes (B, N, 4) of the same videos; got "
            f"{tuple(maps.shape)} and {tuple(boxes.shape)}"
        )
    batch, count = boxes.shape[:2]
    height, width = maps.shape[-2:]
    grid = boxes.new_tensor([width, height, width, height])
    # torchvision's aligned=True subtracts half a voxel; this convention does not.
    corners = (boxes * grid + 0.5).to(maps.dtype).flatten(0, 1)  # (B*N, 4)
    video = torch.arange(batch, device=boxes.device, dtype=maps.dtype).repeat_interleave(count)
    rois = torch.cat([video[:, None], corners], dim=1)  # (B*N, 5)
    bins: Tensor = roi_align(maps, rois, (_BINS, _BINS), sampling_ratio=1, aligned=True)
    vectors = bins.amax((2, 3)) if pooled == "max" else bins.mean((2, 3))
    return vectors.view(batch, count, maps.shape[1])


def context_frames(frames: int, length: int) -> list[int]:
    """Frames of a map around its centre that serve as context (section 4.4).

    Args:
        frames: Frames T of the map.
        length: How many, odd and at most ``frames``; 5 in the paper's main tables.

    Returns:
        Their indices: every ``T // length``-th around frame ``T // 2``.

    Raises:
        ValueError: If ``length`` is even or more than ``frames``.
    """
    if length < 1 or length % 2 == 0 or length > frames:
        raise ValueError(
            f"context_length={length}: an odd number of frames, at most the {frames} frames of "
            "the feature map"
        )
    step = frames // length
    return [frames // 2 + k * step for k in range(-(length // 2), length // 2 + 1)]


class _Unit(nn.Module):
    """One attention unit: cross-attention, residual to the projected query, norm, MLP."""

    def __init__(
        self, query: int, memory: int, hidden: int, activation: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.query = nn.Linear(query, hidden)
        self.key = nn.Linear(memory, hidden)
        self.value = nn.Linear(memory, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, hidden), activation, nn.Linear(hidden, hidden), nn.Dropout(dropout)
        )
        self.dropout = dropout

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.query(x)  # (B, N, hidden)
        attended = F.scaled_dot_product_attention(
            q,
            self.key(memory),  # (B, M, hidden)
            self.value(memory),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.mlp(self.norm(q + attended))
        return out


def encoding(coordinates: int) -> nn.Sequential:
    """A small network from coordinates in voxels to 8 numbers."""
    return nn.Sequential(nn.Linear(coordinates, 4), nn.ReLU(), nn.Linear(4, PLACE // 2))


def placed(maps: Tensor, when: nn.Module, where: nn.Module) -> Tensor:
    """Puts beside every voxel's channels which frame and which place of the map it is.

    Args:
        maps: (B, C, T, H, W).
        when: Encodes a frame, counted from the middle of the map; see `encoding`.
        where: Encodes a row and a column, counted from the middle of the map.

    Returns:
        (B, C + 16, T, H, W).
    """
    frames, height, width = maps.shape[-3:]

    def centred(n: int) -> Tensor:
        return torch.arange(n, device=maps.device, dtype=maps.dtype) - (n - 1) / 2

    t, y, x = centred(frames), centred(height), centred(width)
    times = when(t[:, None])[:, None, None].expand(frames, height, width, -1)
    places = where(torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1))
    position = torch.cat([times, places[None].expand(frames, -1, -1, -1)], dim=-1)
    position = position.movedim(-1, 0).to(maps.dtype)  # (16, T, H, W)
    return torch.cat([maps, position[None].expand(len(maps), -1, -1, -1, -1)], dim=1)


class AttentionLayers(nn.ModuleList):
    """Layers of independent attention units, side by side: ConST-CL's and its action transformer's.

    Each unit ("head") is a cross-attention of its own width, with no attention among the queries;
    the units' outputs are put side by side and meet the same memory in the next layer.

    Args:
        query: Width of the queries.
        memory: Width of the memory's tokens.
        hidden: Width of a unit.
        layers: Layers.
        heads: Units of a layer.
        activation: Of the units' MLP, ``gelu`` or ``relu``.
        dropout: Share dropped of the attention and of a unit's output, in [0, 1).

    Attributes:
        out_features: Width of the result, ``heads * hidden``.

    Raises:
        ValueError: If an argument is none of those.
    """

    def __init__(
        self,
        query: int,
        memory: int,
        hidden: int,
        layers: int,
        heads: int,
        activation: Literal["gelu", "relu"],
        dropout: float,
    ) -> None:
        if min(query, memory, hidden, layers, heads) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "channels, hidden, layers and heads must be at least 1 and dropout in [0, 1); got "
                f"{query}, {hidden}, {layers}, {heads} and {dropout}"
            )
        if activation not in ("gelu", "relu"):
            raise ValueError(f"activation must be 'gelu' or 'relu', got {activation!r}")
        self.out_features = heads * hidden
        super().__init__(
            nn.ModuleList(
                _Unit(
                    width, memory, hidden, nn.GELU() if activation == "gelu" else nn.ReLU(), dropout
                )
                for _ in range(heads)
            )
            for width in (query, *[self.out_features] * (layers - 1))
        )

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Lets queries look at a memory.

        Args:
            x: (B, N, query).
            memory: (B, M, memory).

        Returns:
            (B, N, heads * hidden).
        """
        for layer in self:
            units = cast(nn.ModuleList, layer)
            x = torch.cat([unit(x, memory) for unit in units], dim=-1)
        return x


class RegionDecoder(nn.Module):
    """ConST-CL's projection g(h, F'): a region's feature, rebuilt from another view's context.

    Layers of independent attention units ("heads"), each a cross-attention of its own width with
    no attention among regions; their outputs are put side by side and meet the same memory in the
    next layer; a linear layer brings the last back to the map's channels. 6.93 M parameters at the
    paper's sizes.

    Positions are encoded as the authors' code does, by small networks of the frame and of the
    place, and put beside the memory's channels. The paper's text also gives them to the query:
    ``position="query_and_memory"``, 6,144 parameters more, from the centre of the region's box.

    Args:
        channels: Channels C of the map.
        hidden: Width of a unit.
        layers: Layers.
        heads: Units of a layer.
        activation: Of the units' MLP: ``gelu`` as in the code, ``relu`` as in the paper.
        dropout: Share dropped, in [0, 1); the paper uses none.
        position: Who is told where it is.

    Raises:
        ValueError: If an argument is none of those.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 128,
        layers: int = 3,
        heads: int = 3,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.0,
        position: Literal["memory", "query_and_memory"] = "memory",
    ) -> None:
        super().__init__()
        if position not in ("memory", "query_and_memory"):
            raise ValueError(f"position must be 'memory' or 'query_and_memory', got {position!r}")
        self.places_queries = position == "query_and_memory"
        self.when = encoding(1)
        self.where = encoding(2)
        memory = channels + PLACE
        self.layers = AttentionLayers(
            memory if self.places_queries else channels,
            memory,
            hidden,
            layers,
            heads,
            activation,
            dropout,
        )
        self.output = nn.Linear(self.layers.out_features, channels)

    def forward(self, regions: Tensor, context: Tensor, centres: Tensor) -> Tensor:
        """Rebuilds regions of one view as they are in another.

        Args:
            regions: Their features in the one view, (B, N, C).
            context: Frames of the other view's map, (B, C, T, H, W).
            centres: Centres of the regions' boxes as shares of width and height, (B, N, 2), xy.

        Returns:
            (B, N, C), not normalised.
        """
        memory = placed(context, self.when, self.where).flatten(2).transpose(1, 2)
        x = regions
        if self.places_queries:
            height, width = context.shape[-2:]
            place = centres.flip(-1) * centres.new_tensor([height, width])  # yx in voxels
            place = place - place.new_tensor([(height - 1) / 2, (width - 1) / 2])
            now = self.when(place.new_zeros(*place.shape[:2], 1).to(x))
            x = torch.cat([x, now, self.where(place.to(x))], dim=-1)
        out: Tensor = self.output(self.layers(x, memory))
        return out
