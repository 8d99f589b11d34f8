"""Heads that say of every person in a clip what it does: the action transformer, and a plain one.

Girdhar et al., "Video Action Transformer Network", CVPR 2019, in the form in which the authors of
ConST-CL (Yuan et al., CVPR 2022, section 4.2) evaluate it in VideoGLUE: many small attention units
in place of one wide block. The plain head is that of SlowFast (Feichtenhofer et al., ICCV 2019,
section 5), which the rho-MoCo study uses. Letters: B clips, N boxes, C channels of the map, T H W
its grid.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from lightning_vssl.nn.regions import PLACE, AttentionLayers, encoding, placed, pool_regions


def _classifier(features: int, classes: int) -> nn.Linear:
    layer = nn.Linear(features, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


class ActionTransformer(nn.Module):
    """Boxes look at everything in their clip, in time and space, before they are classified.

    Every voxel knows its frame, counted from the key frame in the middle of the clip, and its
    place, counted from the middle of the map: 16 numbers beside its channels. The map averaged over
    time is pooled inside each box (RoIAlign, 4 x 4 bins, their maximum) and gives the query; the
    memory is every voxel of the map. Layers of attention units, dropout, a linear classifier. With
    the backbone frozen this is an attentive probe, with one query for each box.

    What the sources leave open: VideoGLUE's task says 4 x 4 bins, its network's own default is 7 x
    7; the activation is GELU there and ReLU in ConST-CL's pretraining head; the dropout inside the
    units is not given, and none by default. 6.18 M parameters for maps of 2,048 channels and 80
    classes.

    Args:
        channels: Channels C of the map.
        num_classes: Classes.
        hidden: Width of a unit.
        layers: Layers.
        heads: Units of a layer.
        activation: Of the units' MLP, ``gelu`` or ``relu``.
        dropout: Share of what the classifier sees that is dropped in training, in [0, 1).
        unit_dropout: Share dropped inside the units, in [0, 1).

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        hidden: int = 128,
        layers: int = 3,
        heads: int = 3,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.5,
        unit_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(num_classes, dropout)
        self.when = encoding(1)
        self.where = encoding(2)
        width = channels + PLACE
        self.layers = AttentionLayers(width, width, hidden, layers, heads, activation, unit_dropout)
        self.dropout = nn.Dropout(dropout)
        self.linear = _classifier(self.layers.out_features, num_classes)
        self._init_args: dict[str, object] = {
            "channels": channels,
            "num_classes": num_classes,
            "hidden": hidden,
            "layers": layers,
            "heads": heads,
            "activation": activation,
            "dropout": dropout,
            "unit_dropout": unit_dropout,
        }

    @property
    def config(self) -> dict[str, object]:
        """Class and arguments that rebuild this module, as plain data."""
        return _config(self, self._init_args)

    def forward(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """Classifies boxes.

        Args:
            maps: (B, C, T, H, W).
            boxes: Corners xyxy as shares of the clip's width and height, (B, N, 4); finite.

        Returns:
            Logits, (B, N, num_classes) float32, or float64 where the maps are.
        """
        tokens = placed(maps, self.when, self.where)  # (B, C + 16, T, H, W)
        queries = pool_regions(_still(tokens), boxes, "max")  # (B, N, C + 16)
        seen = self.layers(queries, tokens.flatten(2).transpose(1, 2))  # (B, N, heads * hidden)
        logits: Tensor = self.linear(self.dropout(seen))
        return logits.to(queries.dtype)


class RoIHead(nn.Module):
    """The plain head: what lies inside a box, and a linear classifier.

    The map is averaged over time, pooled inside each box (RoIAlign, bins of as many samples as they
    have voxels, shifted by half a voxel), the maximum over the bins goes through dropout to the
    classifier.

    Args:
        channels: Channels C of the map.
        num_classes: Classes.
        bins: Bins along each side of a box.
        dropout: Share of what the classifier sees that is dropped in training, in [0, 1).

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self, channels: int, num_classes: int, bins: int = 7, dropout: float = 0.5
    ) -> None:
        super().__init__()
        _check(num_classes, dropout)
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.bins = bins
        self.dropout = nn.Dropout(dropout)
        self.linear = _classifier(channels, num_classes)
        self._init_args: dict[str, object] = {
            "channels": channels,
            "num_classes": num_classes,
            "bins": bins,
            "dropout": dropout,
        }

    @property
    def config(self) -> dict[str, object]:
        """Class and arguments that rebuild this module, as plain data."""
        return _config(self, self._init_args)

    def forward(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """Classifies boxes; see `ActionTransformer.forward`."""
        frame = _still(maps)  # (B, C, H, W)
        height, width = frame.shape[-2:]
        corners = (boxes * boxes.new_tensor([width, height, width, height])).to(frame.dtype)
        size = (self.bins, self.bins)
        inside = roi_align(frame, list(corners), size, sampling_ratio=0, aligned=True)
        vectors = inside.amax((2, 3)).view(*boxes.shape[:2], maps.shape[1])  # (B, N, C)
        logits: Tensor = self.linear(self.dropout(vectors))
        return logits.to(vectors.dtype)


def _still(maps: Tensor) -> Tensor:
    """The mean over time, wide enough for RoIAlign's coordinates: (B, C, H, W)."""
    return maps.mean(2, dtype=torch.promote_types(maps.dtype, torch.float32))


def _config(module: nn.Module, init_args: dict[str, object]) -> dict[str, object]:
    kind = type(module)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(init_args)}


def _check(num_classes: int, dropout: float) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
