"""S3D-G: the separable Inception network with gates.

Xie et al., "Rethinking spatiotemporal feature learning: speed-accuracy trade-offs in video
classification" (ECCV 2018), in the form that RSPNet (Chen et al., AAAI 2021) and PreViTS (Chen et
al., WACV 2023) train: torchvision's S3D with a gate behind every separable unit, batch norm with
eps 1e-3 and momentum 0.001. Their stem takes every second frame before any convolution looks
across time; the published network, and torchvision's, take it where they do (``stem="temporal"``).
The papers' tables print 9.6 M parameters, which the released code has not: it is 8.68 M, or 8.78 M
with a classifier of 101 classes.

Parts are named as torchvision names them; `lightning_vssl.backbones.load_weights` reads RSPNet's
and PreViTS's files, and torchvision's of its S3D for a network without gates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.video.s3d import SepInceptionBlock3D, TemporalSeparableConv
from torchvision.ops import Conv3dNormActivation

from lightning_vssl.backbones.base import IMAGENET_PIXELS, Backbone, Pixels, as_pixels

Stem = Literal["spatial", "temporal"]

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_DEPTH = (2, 5, 2)

# Widths of each block's convolutions: branch 0; branch 1, two; branch 2, two; branch 3.
_INCEPTION: tuple[tuple[tuple[int, int, int, int, int, int], ...], ...] = (
    (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
    ),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    (
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    ),
)


class Gate(nn.Module):
    """Weighs channels by what the whole clip says: a sigmoid of a linear layer of the mean.

    Args:
        channels: Channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same."""
        weights = torch.sigmoid(self.conv(x.mean((2, 3, 4), keepdim=True)))  # (B, C, 1, 1, 1)
        return x * weights


class S3DG(Backbone):
    """S3D-G without its pooling and classifier (8.68 M parameters).

    A clip of 16 x 224 x 224 becomes 1024 x 2 x 7 x 7 with 17.0 G multiply-adds. The stages are the
    parts between the max-pools, each with the pool that leads to it: ``stem``; ``layer1`` (two
    convolutions), ``layer2`` (Inception blocks 3b, 3c), ``layer3`` (4b to 4f), ``layer4`` (5b, 5c).
    Kernels start Kaiming normal over the fan-out, those of the gates as PyTorch has them; the
    papers do not say.

    Args:
        width: Channels of the stem; all others are scaled with it and rounded down, to at least 1.
        depth: Inception blocks of the last three stages; where there are fewer than the network's
            2, 5 and 2, the last ones of a stage are left out.
        gates: Whether a gate follows every separable unit; False makes it S3D.
        stem: Which of the stem's two convolutions has the stride in time: ``spatial`` as released
            by RSPNet and PreViTS, so that of 16 frames the network sees 8; ``temporal`` as
            published. Weights fit either, and give other features.
        norm_momentum: Share of each batch in the running statistics of the batch norms. At 0.001
            they need thousands of steps: a short run that is evaluated wants 0.1.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1]; ImageNet's as RSPNet.

    Raises:
        ValueError: If an argument is outside of what is named here.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: tuple[int, int, int] = _DEPTH,
        gates: bool = True,
        stem: Stem = "spatial",
        norm_momentum: float = 0.001,
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        _check(width, depth, stem, norm_momentum)
        scaled = partial(_scaled, width=width)
        blocks = [
            [tuple(map(scaled, row)) for row in rows[:count]]
            for rows, count in zip(_INCEPTION, depth, strict=True)
        ]
        outs = [_out(rows[-1]) for rows in blocks]
        strides = ((2, 2), (2, 4), (2, 8), (4, 16), (8, 32))
        super().__init__(
            channels=dict(zip(_STAGES, (scaled(64), scaled(192), *outs), strict=True)),
            strides=dict(zip(_STAGES, strides, strict=True)),
            init_args={
                "width": width,
                "depth": tuple(depth),
                "gates": gates,
                "stem": stem,
                "norm_momentum": norm_momentum,
                "pixels": as_pixels(pixels),
            },
            pixels=pixels,
            least=(5, 17),
        )
        norm = partial(nn.BatchNorm3d, eps=1e-3, momentum=norm_momentum)
        self.stem = TemporalSeparableConv(3, scaled(64), 7, 2, 3, norm)
        if stem == "spatial":
            self.stem[0][0].stride, self.stem[1][0].stride = (2, 2, 2), (1, 1, 1)
        self.layer1 = nn.Sequential(
            _space_pool(),
            Conv3dNormActivation(scaled(64), scaled(64), 1, norm_layer=norm),
            TemporalSeparableConv(scaled(64), scaled(192), 3, 1, 1, norm),
        )
        pools = (_space_pool(), nn.MaxPool3d(3, 2, padding=1), nn.MaxPool3d(2))
        before = scaled(192)
        for name, pool, rows in zip(_STAGES[2:], pools, blocks, strict=True):
            layers: list[nn.Module] = [pool]
            for row in rows:
                layers.append(SepInceptionBlock3D(before, *row, norm))
                before = _out(row)
            self.add_module(name, nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if gates:
            _add_gates(self)

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the pool and the blocks of one stage."""
        out: Tensor = self.get_submodule(name)(x)
        return out


def _check(width: int, depth: Sequence[int], stem: str, norm_momentum: float) -> None:
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width}")
    if len(depth) != 3 or any(not 1 <= n <= m for n, m in zip(depth, _DEPTH, strict=True)):
        raise ValueError(
            f"depth must be three numbers of blocks, from 1 up to {_DEPTH}; got {depth}"
        )
    if stem not in get_args(Stem):
        raise ValueError(f"stem must be spatial or temporal; got {stem!r}")
    if not 0 < norm_momentum <= 1:
        raise ValueError(f"norm_momentum must be above 0 and at most 1; got {norm_momentum}")


def _scaled(channels: int, width: int) -> int:
    return max(1, channels * width // 64)


def _add_gates(network: nn.Module) -> None:
    for unit in list(network.modules()):
        if isinstance(unit, TemporalSeparableConv):
            unit.append(Gate(unit[1].out_channels))


def _space_pool() -> nn.Module:
    return nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))


def _out(row: tuple[int, ...]) -> int:
    """Channels that an Inception block puts out: those of its four branches."""
    return row[0] + row[2] + row[4] + row[5]
