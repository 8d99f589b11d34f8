"""Video networks of pytorchvideo behind the backbone contract.

pytorchvideo is imported where it is used: only a recipe that names one of these classes needs it.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from lightning_vssl.backbones.base import IMAGENET_PIXELS, Backbone, Pixels, as_pixels
from lightning_vssl.backbones.padding import same_padding
from lightning_vssl.nn.recompute import recompute

_Triple = tuple[int, int, int]
_Quad = tuple[int, int, int, int]

Padding = Literal["symmetric", "tensorflow"]

PytorchvideoName = Literal[
    "slow_r50",
    "c2d_r50",
    "i3d_r50",
    "r2plus1d_r50",
    "csn_r101",
    "x3d_xs",
    "x3d_s",
    "x3d_m",
    "x3d_l",
]

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_PIXELS: Pixels = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))

_FIVE = ((0,), (1,), (2,), (3,), (4,))
_SIX = ((0,), (1,), (2, 3), (4,), (5,))  # a max-pool over time between the first two stages
_R50 = (64, 256, 512, 1024, 2048)
_X3D = (24, 24, 48, 96, 192)
_X3D_STRIDES = ((1, 2), (1, 4), (1, 8), (1, 16), (1, 32))
_POOLED_STRIDES = ((1, 4), (1, 4), (2, 8), (2, 16), (2, 32))

# Name -> blocks, channels, strides (time, space) of the five stages.
_NETWORKS: dict[
    str, tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[tuple[int, int], ...]]
] = {
    "slow_r50": (_FIVE, _R50, ((1, 4), (1, 4), (1, 8), (1, 16), (1, 32))),
    "c2d_r50": (_SIX, _R50, _POOLED_STRIDES),
    "i3d_r50": (_SIX, _R50, _POOLED_STRIDES),
    "r2plus1d_r50": (_FIVE, _R50, ((1, 2), (1, 4), (1, 8), (2, 16), (4, 32))),
    "csn_r101": (_FIVE, _R50, ((1, 4), (1, 4), (2, 8), (4, 16), (8, 32))),
    "x3d_xs": (_FIVE, _X3D, _X3D_STRIDES),
    "x3d_s": (_FIVE, _X3D, _X3D_STRIDES),
    "x3d_m": (_FIVE, _X3D, _X3D_STRIDES),
    "x3d_l": (_FIVE, _X3D, _X3D_STRIDES),
}


class PytorchvideoNet(Backbone):
    """A network of ``pytorchvideo.models.hub`` by name, without its head.

    Parameters keep pytorchvideo's names (``blocks.0.conv.weight``), so the ``model_state`` of its
    checkpoints loads as it is. Stages are named ``stem`` and ``layer1`` to ``layer4``; a max-pool
    between two stages belongs to the later one. MViT is `PytorchvideoMViT`, SlowFast is
    `SlowFast`. The networks with boxes (detection) are not offered: they do not map a clip alone.

    Args:
        name: Which network.
        width: Channels of a ResNet's stem (64 in all of them); the stages put out 4, 8, 16 and 32
            times as many. None for the network's own, and for X3D.

    Raises:
        ValueError: If the network is not among those that exist, or ``width`` does not fit it.
    """

    def __init__(self, name: PytorchvideoName, *, width: int | None = None) -> None:
        if name not in _NETWORKS:
            raise ValueError(
                f"name must be one of {', '.join(_NETWORKS)}; got {name!r}{_reason(str(name))}"
            )
        if width is not None and (width < 1 or name.startswith("x3d")):
            raise ValueError(f"width must be at least 1, and null for X3D; got {width} for {name}")
        from pytorchvideo.models import hub

        blocks, channels, strides = _NETWORKS[name]
        if width is not None:
            channels = (width, *(width * times for times in (4, 8, 16, 32)))
        super().__init__(
            channels=dict(zip(_STAGES, channels, strict=True)),
            strides=dict(zip(_STAGES, strides, strict=True)),
            init_args={"name": name, "width": width},
            pixels=_PIXELS,
            classifiers=(f"blocks.{blocks[-1][-1] + 1}",),  # the head is the block after the last
        )
        self._blocks_of = dict(zip(_STAGES, blocks, strict=True))
        narrow = {} if width is None else {"stem_dim_out": width}
        network = getattr(hub, name)(pretrained=False, **narrow)
        self.blocks = nn.ModuleList(list(network.blocks)[:-1])

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the blocks of one stage."""
        for index in self._blocks_of[name]:
            x = self.blocks[index](x)
        return x


def _reason(name: str) -> str:
    """Why a network of pytorchvideo is not offered."""
    if name.startswith("mvit"):
        return "; MViT is PytorchvideoMViT"
    if "detection" in name:
        return ", which takes boxes beside the clip; ActionLocalisation pools boxes from any map"
    return "; SlowFast is SlowFast" if name.startswith("slowfast") else ""


class PytorchvideoResNet(Backbone):
    """A 3-D bottleneck ResNet put together from pytorchvideo's parts.

    The defaults are the R3D-50 of CVRL (Qian et al. 2021) and ConST-CL: 31.67 M parameters, a
    clip of 16 x 224 x 224 becomes 2048 x 8 x 7 x 7 with 45.5 G multiply-adds. The arguments are
    those of ``pytorchvideo.models.resnet.create_resnet``, one number per stage where it takes a
    kernel, and any depth. Parameters keep pytorchvideo's names.

    Args:
        width: Channels of the stem; the stages put out 4, 8, 16 and 32 times as many.
        depth: Blocks of the four stages.
        stem_kernel: Kernel of the stem's convolution (T, H, W), each odd.
        stem_stride: Its stride (T, H, W), H and W alike. A max-pool with stride (1, 2, 2)
            follows.
        temporal_kernels: Temporal kernel of the first convolution of every block, by stage; odd.
        strides: Stride in space of each stage.
        dilations: Dilation in space of each stage's 3x3 convolutions.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1].
        padding: How strided layers pad: alike on both sides, or as TensorFlow's 'SAME', which the
            weights of CVRL's release need (`lightning_vssl.backbones.padding`).
        recompute: Whether training forgets the activations inside each residual block and makes
            them again in the backward pass: a fraction of the memory for a third more arithmetic,
            with the same gradients. Not part of `config`.

    Raises:
        ValueError: If a tuple has the wrong length, a number is below 1 or a kernel is even.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: _Quad = (3, 4, 6, 3),
        stem_kernel: _Triple = (5, 7, 7),
        stem_stride: _Triple = (2, 2, 2),
        temporal_kernels: _Quad = (1, 1, 3, 3),
        strides: _Quad = (1, 2, 2, 2),
        dilations: _Quad = (1, 1, 1, 1),
        pixels: Pixels = IMAGENET_PIXELS,
        padding: Padding = "symmetric",
        recompute: bool = False,
    ) -> None:
        if padding not in get_args(Padding):
            raise ValueError(f"padding must be symmetric or tensorflow, got {padding!r}")
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        for name, values in {
            "depth": depth,
            "temporal_kernels": temporal_kernels,
            "strides": strides,
            "dilations": dilations,
        }.items():
            _check_numbers(name, values, 4, odd=name == "temporal_kernels")
        _check_numbers("stem_kernel", stem_kernel, 3, odd=True)
        _check_numbers("stem_stride", stem_stride, 3)
        if stem_stride[1] != stem_stride[2]:
            raise ValueError(f"stem_stride must be alike in height and width; got {stem_stride}")

        time, space = stem_stride[0], 2 * stem_stride[1]
        spaces = [space]
        for stride in strides:
            spaces.append(spaces[-1] * stride)
        super().__init__(
            channels=dict(
                zip(_STAGES, (width, 4 * width, 8 * width, 16 * width, 32 * width), strict=True)
            ),
            strides={name: (time, space) for name, space in zip(_STAGES, spaces, strict=True)},
            init_args={
                "width": width,
                "depth": tuple(depth),
                "stem_kernel": tuple(stem_kernel),
                "stem_stride": tuple(stem_stride),
                "temporal_kernels": tuple(temporal_kernels),
                "strides": tuple(strides),
                "dilations": tuple(dilations),
                "pixels": as_pixels(pixels),
                "padding": padding,
            },
            pixels=pixels,
            classifiers=("blocks.5", "fc"),  # create_resnet's head; that of an inflated ResNet
        )
        self.recompute = recompute
        self.blocks = _initialised(
            _stem(width, stem_kernel, stem_stride),
            *(
                _stage(number, width, depth, temporal_kernels, strides, dilations)
                for number in range(4)
            ),
        )
        if padding == "tensorflow":
            same_padding(self)

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the block of one stage."""
        return self._run(self.blocks[_STAGES.index(name)], x)

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Runs a stage, block by block where activations are recomputed."""
        blocks = stage.res_blocks if hasattr(stage, "res_blocks") else None
        if isinstance(blocks, nn.ModuleList) and self.recompute and self.training:
            for block in blocks:
                x = recompute(block, block, x)
            return x
        out: Tensor = stage(x)
        return out


Endpoint = Literal["both", "global", "local"]


class YResNet(PytorchvideoResNet):
    """ConST-CL's "Y": a 3-D bottleneck ResNet whose last stage is there twice.

    Yuan et al., CVPR 2022, section 3.4 and Figure 3(c). Both last stages see the map of ``layer3``
    and start from different weights. The global one learns what a clip shows as a whole and serves
    clip-level tasks; the local one learns regions and serves localisation and tracking. 51.88 M
    parameters with both; with one of them, a `PytorchvideoResNet`.

    A file of both may be loaded into the network of either: what belongs to the other is left
    over. ``layer4`` is the branch chosen, and the global one where there are both.

    Args:
        endpoint: Which last stages exist: ``both`` to pretrain, ``global`` or ``local`` after.
            An export says ``global``; an evaluation names the network to take ``local``.
        width: See `PytorchvideoResNet`, as all that follow.
        depth: Blocks of the four stages.
        stem_kernel: Kernel of the stem's convolution (T, H, W), each odd.
        stem_stride: Its stride (T, H, W).
        temporal_kernels: Temporal kernel of every block's first convolution, by stage.
        strides: Stride in space of each stage.
        dilations: Dilation in space of each stage.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1].
        padding: How strided layers pad.
        recompute: Whether activations are recomputed in the backward pass.

    Raises:
        ValueError: As `PytorchvideoResNet`, or if ``endpoint`` is none of the three.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint = "both",
        width: int = 64,
        depth: _Quad = (3, 4, 6, 3),
        stem_kernel: _Triple = (5, 7, 7),
        stem_stride: _Triple = (2, 2, 2),
        temporal_kernels: _Quad = (1, 1, 3, 3),
        strides: _Quad = (1, 2, 2, 2),
        dilations: _Quad = (1, 1, 1, 1),
        pixels: Pixels = IMAGENET_PIXELS,
        padding: Padding = "symmetric",
        recompute: bool = False,
    ) -> None:
        if endpoint not in ("both", "global", "local"):
            raise ValueError(f"endpoint must be both, global or local, got {endpoint!r}")
        super().__init__(
            width=width,
            depth=depth,
            stem_kernel=stem_kernel,
            stem_stride=stem_stride,
            temporal_kernels=temporal_kernels,
            strides=strides,
            dilations=dilations,
            pixels=pixels,
            padding=padding,
            recompute=recompute,
        )
        self._init_args = {"endpoint": endpoint, **self._init_args}
        self.endpoint: Endpoint = endpoint
        if endpoint != "global":
            stage = _stage(3, width, depth, temporal_kernels, strides, dilations)
            self.local = _initialised(stage)[0]
            if padding == "tensorflow":
                same_padding(self)
        if endpoint == "local":
            del self.blocks[_STAGES.index("layer4")]
            self.classifiers = (*self.classifiers, "blocks.4")
        elif endpoint == "global":
            self.classifiers = (*self.classifiers, "local")

    def downstream(self) -> dict[str, object]:
        """The network of the global branch; its file holds the local one too."""
        config = self.config
        init_args = config["init_args"]
        assert isinstance(init_args, dict)
        endpoint = "global" if self.endpoint == "both" else self.endpoint
        return {**config, "init_args": {**init_args, "endpoint": endpoint}}

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the block of one stage."""
        if name == "layer4" and self.endpoint == "local":
            return self._run(self.local, x)
        return super().stage(name, x)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the trunk once and both last stages on its map.

        Args:
            x: Normalised clip, (B, C, T, H, W).

        Returns:
            The global and the local map, (B, num_features, T', H', W') each.

        Raises:
            ValueError: If the network has one branch only.
        """
        if self.endpoint != "both":
            raise ValueError(f"this network has the {self.endpoint} branch only, not both")
        trunk = self.features(x, ("layer3",))["layer3"]
        return self.stage("layer4", trunk), self._run(self.local, trunk)


def _check_numbers(name: str, values: Sequence[int], count: int, odd: bool = False) -> None:
    wrong = len(values) != count or min(values) < 1 or (odd and any(v % 2 == 0 for v in values))
    if wrong:
        kind = "odd numbers" if odd else "numbers"
        raise ValueError(f"{name} must be {count} {kind}, each at least 1; got {values}")


def _stem(width: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
    from pytorchvideo.models.stem import create_res_basic_stem

    made: nn.Module = create_res_basic_stem(
        in_channels=3,
        out_channels=width,
        conv_kernel_size=tuple(kernel),
        conv_stride=tuple(stride),
        conv_padding=tuple(size // 2 for size in kernel),
    )
    return made


def _stage(
    number: int,
    width: int,
    depth: Sequence[int],
    temporal_kernels: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> nn.Module:
    """One of the four residual stages, from 0."""
    from pytorchvideo.models.resnet import create_bottleneck_block, create_res_stage

    kernel, stride, dilation = temporal_kernels[number], strides[number], dilations[number]
    inner = width * 2**number
    made: nn.Module = create_res_stage(
        depth=depth[number],
        dim_in=width if number == 0 else 2 * inner,
        dim_inner=inner,
        dim_out=4 * inner,
        bottleneck=create_bottleneck_block,
        conv_a_kernel_size=(kernel, 1, 1),
        conv_a_stride=(1, 1, 1),
        conv_a_padding=(kernel // 2, 0, 0),
        conv_b_stride=(1, stride, stride),
        conv_b_padding=(0, dilation, dilation),
        conv_b_dilation=(1, dilation, dilation),
    )
    return made


def _initialised(*blocks: nn.Module) -> nn.ModuleList:
    """Sets the initial weights; they are `create_resnet`'s."""
    from pytorchvideo.models.net import Net

    made: nn.ModuleList = Net(blocks=nn.ModuleList(blocks)).blocks
    return made
