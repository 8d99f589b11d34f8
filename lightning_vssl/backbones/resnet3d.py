"""3-D ResNets of basic blocks: CtP's R3D-18 and R(2+1)D-18, VCOP's R(2+1)D-10, Hara's ResNet-18.

R3D-18 and R(2+1)D-18 are those of Tran et al., "A closer look at spatiotemporal convolutions for
action recognition" (2018), in the variant of Wang et al., "Unsupervised visual representation
learning by tracking patches in video" (CtP, 2021): no max-pool after the stem, batch norm with eps
1e-3, the shortcut a plain 1x1x1 convolution in both networks, and in R(2+1)D the middle width
computed for every convolution from its own widths (31.3 M parameters in torchvision, where a
block's first convolution decides for both; 33.2 M here). CtP pretrains with stride 1 in the last
stage, in space only, and goes downstream with stride 2; the weights are the same.

RSPNet (Chen et al., AAAI 2021) and PreViTS (Chen et al., WACV 2023) have two others: the R(2+1)D of
VCOP (Xu et al., CVPR 2019), with one block per stage and every convolution factored, the stem's and
the shortcuts' too; and, RSPNet only, the 3-D ResNet-18 of Hara et al. (CVPR 2018) with a stem of 7
frames and a max-pool over time and space.

Parameters are named as in ``torchvision.models.video``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_vssl.backbones.base import IMAGENET_PIXELS, Backbone, Pixels, as_pixels

_Triple = tuple[int, int, int]
_Conv = Callable[[int, int, _Triple, float], nn.Module]
_Stem = Callable[[int, float], nn.Sequential]

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def _conv_3d(channels_in: int, channels_out: int, stride: _Triple, eps: float) -> nn.Module:
    """One 3x3x3 convolution (``eps`` has no use here: the norm comes after it)."""
    return nn.Conv3d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def _conv_2plus1d(channels_in: int, channels_out: int, stride: _Triple, eps: float) -> nn.Module:
    """A 3x3x3 convolution factored into 1x3x3, norm, ReLU, 3x1x1, with as many parameters."""
    middle = 27 * channels_in * channels_out // (9 * channels_in + 3 * channels_out)
    time, height, width = stride
    return nn.Sequential(
        nn.Conv3d(channels_in, middle, (1, 3, 3), (1, height, width), (0, 1, 1), bias=False),
        nn.BatchNorm3d(middle, eps=eps),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, channels_out, (3, 1, 1), (time, 1, 1), (1, 0, 0), bias=False),
    )


def _stem_3d(width: int, eps: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
        nn.BatchNorm3d(width, eps=eps),
        nn.ReLU(inplace=True),
    )


def _stem_hara(width: int, eps: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, width, 7, (1, 2, 2), 3, bias=False),
        nn.BatchNorm3d(width, eps=eps),
        nn.ReLU(inplace=True),
        nn.MaxPool3d(3, 2, padding=1),
    )


def _stem_2plus1d(width: int, eps: float) -> nn.Sequential:
    return _factored_stem(max(1, 45 * width // 64), width, eps)  # 45 at the paper's width


def _stem_vcop(width: int, eps: float) -> nn.Sequential:
    return _factored_stem(3 * 49 * 3 * width // (49 * 3 + 3 * width), width, eps)  # 83 of 64


def _factored_stem(middle: int, width: int, eps: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(middle, eps=eps),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, (3, 1, 1), (1, 1, 1), (1, 0, 0), bias=False),
        nn.BatchNorm3d(width, eps=eps),
        nn.ReLU(inplace=True),
    )


def _shortcut(channels_in: int, channels_out: int, stride: _Triple, eps: float) -> nn.Module:
    """A 1x1x1 convolution (``eps`` has no use here: the norm comes after it)."""
    return nn.Conv3d(channels_in, channels_out, 1, stride, bias=False)


def _factored_shortcut(
    channels_in: int, channels_out: int, stride: _Triple, eps: float
) -> nn.Module:
    """VCOP's: the 1x1x1 convolution factored as the others, with its stride in space, then time."""
    middle = channels_in * channels_out // (channels_in + channels_out)
    time, height, width = stride
    return nn.Sequential(
        nn.Conv3d(channels_in, middle, 1, (1, height, width), bias=False),
        nn.BatchNorm3d(middle, eps=eps),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, channels_out, 1, (time, 1, 1), bias=False),
    )


class _BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(
        self,
        conv: _Conv,
        shortcut: _Conv,
        channels_in: int,
        channels_out: int,
        stride: _Triple,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv(channels_in, channels_out, stride, eps),
            nn.BatchNorm3d(channels_out, eps=eps),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            conv(channels_out, channels_out, (1, 1, 1), eps),
            nn.BatchNorm3d(channels_out, eps=eps),
        )
        self.downsample: nn.Module | None = None
        if channels_in != channels_out or stride != (1, 1, 1):
            self.downsample = nn.Sequential(
                shortcut(channels_in, channels_out, stride, eps),
                nn.BatchNorm3d(channels_out, eps=eps),
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(out + shortcut)
        return out


class _ResNet3D(Backbone):
    """The body that all networks share; the convolutions, the stem and the shortcuts differ."""

    def __init__(
        self,
        *,
        conv: _Conv,
        shortcut: _Conv,
        stem: _Stem,
        stem_stride: tuple[int, int],
        last_stride: int,
        width: int,
        depth: Sequence[int],
        norm_eps: float,
        pixels: Pixels,
        init_args: Mapping[str, object],
    ) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        if len(depth) != 4 or min(depth) < 1:
            raise ValueError(
                f"depth must give the blocks of four stages, each at least 1; got {depth}"
            )
        widths = (width, 2 * width, 4 * width, 8 * width)
        time, space = stem_stride
        super().__init__(
            channels=dict(zip(_STAGES, (width, *widths), strict=True)),
            strides={
                "stem": (time, space),
                "layer1": (time, space),
                "layer2": (2 * time, 2 * space),
                "layer3": (4 * time, 4 * space),
                "layer4": (8 * time, 4 * last_stride * space),
            },
            init_args={
                "width": width,
                "depth": tuple(depth),
                **init_args,
                "pixels": as_pixels(pixels),
            },
            pixels=pixels,
        )
        first_strides: tuple[_Triple, ...] = (
            (1, 1, 1),
            (2, 2, 2),
            (2, 2, 2),
            (2, last_stride, last_stride),
        )
        self.stem = stem(width, norm_eps)
        channels = width
        for number, (out, blocks, stride) in enumerate(
            zip(widths, depth, first_strides, strict=True), start=1
        ):
            layers = [_BasicBlock(conv, shortcut, channels, out, stride, norm_eps)]
            layers += [
                _BasicBlock(conv, shortcut, out, out, (1, 1, 1), norm_eps)
                for _ in range(blocks - 1)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*layers))
            channels = out
        self._initialise()

    def _initialise(self) -> None:
        """Kaiming normal over the fan-out on every convolution; norms start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the stem or one of the four residual stages."""
        out: Tensor = self.get_submodule(name)(x)
        return out


class _CtP(_ResNet3D):
    """What CtP's two networks share: the stride of the last stage, which the weights do not see."""

    def __init__(
        self,
        *,
        conv: _Conv,
        stem: _Stem,
        width: int,
        depth: Sequence[int],
        last_stride: int,
        norm_eps: float,
        pixels: Pixels,
    ) -> None:
        if last_stride not in (1, 2):
            raise ValueError(
                f"last_stride must be 2, or 1 as in CtP's pretraining; got {last_stride}"
            )
        super().__init__(
            conv=conv,
            shortcut=_shortcut,
            stem=stem,
            stem_stride=(1, 2),
            last_stride=last_stride,
            width=width,
            depth=depth,
            norm_eps=norm_eps,
            pixels=pixels,
            init_args={"last_stride": last_stride, "norm_eps": norm_eps},
        )

    def downstream(self) -> dict[str, object]:
        """Config with stride 2 in the last stage, as CtP fine-tunes; the weights are the same."""
        config = self.config
        init_args = config["init_args"]
        assert isinstance(init_args, dict)
        return {**config, "init_args": {**init_args, "last_stride": 2}}


class R3D18(_CtP):
    """R3D-18: a ResNet-18 whose convolutions are 3x3x3 (33.17 M parameters).

    A clip of 16 x 112 x 112 becomes 512 x 2 x 7 x 7 with 40.7 G multiply-adds, or with
    ``last_stride=1`` 512 x 2 x 14 x 14 with 48.0 G.

    Args:
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        depth: Blocks of the four stages.
        last_stride: Stride in space of the last stage: 2, or 1 as CtP pretrains (its supplement,
            Table 2). The stride in time is 2 either way, and the weights fit both.
        norm_eps: Epsilon of the batch norms. 1e-3 as CtP; with 1e-5 the network computes what
            ``torchvision.models.video.r3d_18`` computes with the same weights.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1]; ImageNet's as CtP.

    Raises:
        ValueError: If an argument is outside of what is named here.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: tuple[int, int, int, int] = (2, 2, 2, 2),
        last_stride: Literal[1, 2] = 2,
        norm_eps: float = 1e-3,
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        super().__init__(
            conv=_conv_3d,
            stem=_stem_3d,
            width=width,
            depth=depth,
            last_stride=last_stride,
            norm_eps=norm_eps,
            pixels=pixels,
        )


class R2Plus1D18(_CtP):
    """R(2+1)D-18: every 3x3x3 convolution factored into space and time (33.17 M parameters).

    A clip of 16 x 112 x 112 becomes 512 x 2 x 7 x 7 with 41.5 G multiply-adds, or with
    ``last_stride=1`` 512 x 2 x 14 x 14 with 49.4 G.

    Args:
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        depth: Blocks of the four stages.
        last_stride: Stride in space of the last stage: 2, or 1 as CtP pretrains (its supplement,
            Table 2). The stride in time is 2 either way, and the weights fit both.
        norm_eps: Epsilon of the batch norms; 1e-3 as CtP.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1]; ImageNet's as CtP.

    Raises:
        ValueError: If an argument is outside of what is named here.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: tuple[int, int, int, int] = (2, 2, 2, 2),
        last_stride: Literal[1, 2] = 2,
        norm_eps: float = 1e-3,
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        super().__init__(
            conv=_conv_2plus1d,
            stem=_stem_2plus1d,
            width=width,
            depth=depth,
            last_stride=last_stride,
            norm_eps=norm_eps,
            pixels=pixels,
        )


class R2Plus1D10(_ResNet3D):
    """R(2+1)D-10: the R(2+1)D of VCOP, RSPNet and PreViTS (14.37 M parameters).

    One block per stage, and every convolution factored: the stem (83 channels between its two
    parts) and the shortcuts too. A clip of 16 x 112 x 112 becomes 512 x 2 x 7 x 7 with 21.4 G
    multiply-adds. The papers' tables say 14.4 M, which is this network, with or without its
    classifier of 101 classes; it is not R(2+1)D-18.

    Args:
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        depth: Blocks of the four stages.
        norm_eps: Epsilon of the batch norms.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1]; ImageNet's as RSPNet.

    Raises:
        ValueError: If an argument is outside of what is named here.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: tuple[int, int, int, int] = (1, 1, 1, 1),
        norm_eps: float = 1e-5,
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        super().__init__(
            conv=_conv_2plus1d,
            shortcut=_factored_shortcut,
            stem=_stem_vcop,
            stem_stride=(1, 2),
            last_stride=2,
            width=width,
            depth=depth,
            norm_eps=norm_eps,
            pixels=pixels,
            init_args={"norm_eps": norm_eps},
        )


class HaraR3D18(_ResNet3D):
    """Hara's 3-D ResNet-18 with shortcuts B, as RSPNet trains it (33.20 M parameters).

    The stem is 7 x 7 x 7 with stride (1, 2, 2), then a max-pool over 3 x 3 x 3 with stride 2 in
    time too. A clip of 16 x 112 x 112 becomes 512 x 1 x 4 x 4 with 8.3 G multiply-adds: maps of a
    quarter of `R3D18`'s size in the first stage, and one step of time at the end.

    Args:
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        depth: Blocks of the four stages.
        norm_eps: Epsilon of the batch norms.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1]; ImageNet's as RSPNet.

    Raises:
        ValueError: If an argument is outside of what is named here.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: tuple[int, int, int, int] = (2, 2, 2, 2),
        norm_eps: float = 1e-5,
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        super().__init__(
            conv=_conv_3d,
            shortcut=_shortcut,
            stem=_stem_hara,
            stem_stride=(2, 4),
            last_stride=2,
            width=width,
            depth=depth,
            norm_eps=norm_eps,
            pixels=pixels,
            init_args={"norm_eps": norm_eps},
        )
