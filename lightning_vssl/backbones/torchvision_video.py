"""Video networks of torchvision behind the backbone contract."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.video.resnet import (
    BasicBlock,
    BasicStem,
    Conv2Plus1D,
    Conv3DNoTemporal,
    Conv3DSimple,
    R2Plus1dStem,
    VideoResNet,
)
from torchvision.models.video.swin_transformer import SwinTransformer3d

from lightning_vssl.backbones.base import IMAGENET_PIXELS, KINETICS_PIXELS, Backbone, Pixels

TorchvisionName = Literal[
    "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "swin3d_s", "swin3d_b"
]

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

# Which modules of the network make each stage, by the names that torchvision gave them.
_RESNET: dict[str, tuple[str, ...]] = {name: (name,) for name in _STAGES}
_S3D: dict[str, tuple[str, ...]] = {
    name: tuple(f"features.{index}" for index in range(first, last))
    for name, (first, last) in zip(
        _STAGES, ((0, 1), (1, 4), (4, 7), (7, 13), (13, 16)), strict=True
    )
}
_SWIN: dict[str, tuple[str, ...]] = {
    "stem": ("patch_embed",),
    "layer1": ("features.0",),
    "layer2": ("features.1", "features.2"),
    "layer3": ("features.3", "features.4"),
    "layer4": ("features.5", "features.6", "norm"),
}

_RESNET_STRIDES = ((1, 2), (1, 2), (2, 4), (4, 8), (8, 16))
_SWIN_STRIDES = ((2, 4), (2, 4), (2, 8), (2, 16), (2, 32))

# Name -> modules, channels and strides of the five stages, pixels.
_NETWORKS: dict[
    str,
    tuple[dict[str, tuple[str, ...]], tuple[int, ...], tuple[tuple[int, int], ...], Pixels],
] = {
    "r3d_18": (_RESNET, (64, 64, 128, 256, 512), _RESNET_STRIDES, KINETICS_PIXELS),
    "mc3_18": (
        _RESNET,
        (64, 64, 128, 256, 512),
        ((1, 2), (1, 2), (1, 4), (1, 8), (1, 16)),
        KINETICS_PIXELS,
    ),
    "r2plus1d_18": (_RESNET, (64, 64, 128, 256, 512), _RESNET_STRIDES, KINETICS_PIXELS),
    "s3d": (
        _S3D,
        (64, 192, 480, 832, 1024),
        ((2, 2), (2, 4), (2, 8), (4, 16), (8, 32)),
        KINETICS_PIXELS,
    ),
    "swin3d_t": (_SWIN, (96, 96, 192, 384, 768), _SWIN_STRIDES, IMAGENET_PIXELS),
    "swin3d_s": (_SWIN, (96, 96, 192, 384, 768), _SWIN_STRIDES, IMAGENET_PIXELS),
    "swin3d_b": (_SWIN, (128, 128, 256, 512, 1024), _SWIN_STRIDES, IMAGENET_PIXELS),
}

# What torchvision's builders hold fixed: a ResNet's convolutions by stage and its stem, a Swin's
# channels, blocks and heads.
_RESNETS: dict[str, tuple[list[type], type]] = {
    "r3d_18": ([Conv3DSimple] * 4, BasicStem),
    "mc3_18": ([Conv3DSimple, *[Conv3DNoTemporal] * 3], BasicStem),
    "r2plus1d_18": ([Conv2Plus1D] * 4, R2Plus1dStem),
}
_SWINS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "swin3d_t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin3d_s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin3d_b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


class TorchvisionVideo(Backbone):
    """A network of ``torchvision.models.video`` without its pooling and classifier.

    Parameters keep torchvision's names behind ``net.``; `lightning_vssl.backbones.load_weights`
    reads torchvision's own files. Stages are named ``stem`` and ``layer1`` to ``layer4`` in every
    network: the residual stages, for S3D the parts between its max-pools (the pool opens the part
    that it leads to), for Swin the four stages, each with the patch merging before it, the last
    with the final norm. The MViT networks are `TorchvisionMViT`.

    Args:
        name: Which network.
        width: Channels of a Swin's patches, a multiple of its heads there; each stage after
            ``layer1`` doubles them. None for the network's own, and for the others.
        depth: Blocks of the four stages of a ResNet or a Swin. None for the network's own, and
            for S3D.
        weights: torchvision's name of its own trained weights, such as ``KINETICS400_V1``, which
            it downloads; None for random weights. Weights from a file go through
            `lightning_vssl.backbones.load_weights` instead.

    Raises:
        ValueError: If the network or the weights are not among those that exist, ``width`` or
            ``depth`` do not fit it, or ``weights`` are asked for with either.
    """

    def __init__(
        self,
        name: TorchvisionName,
        *,
        width: int | None = None,
        depth: Sequence[int] | None = None,
        weights: str | None = None,
    ) -> None:
        if name not in _NETWORKS:
            hint = "; MViT is TorchvisionMViT" if str(name).startswith("mvit") else ""
            raise ValueError(f"name must be one of {', '.join(_NETWORKS)}; got {name!r}{hint}")
        _check_size(name, width, depth)
        known = list(get_model_weights(name).__members__)
        if weights is not None and weights not in known:
            raise ValueError(
                f"weights of {name} must be one of {', '.join(known)}, or null; got {weights!r}. "
                "To read a file, leave weights empty and load it with load_weights"
            )
        if weights is not None and (width, depth) != (None, None):
            raise ValueError(
                f"weights={weights!r} need {name} as it is: leave width and depth null"
            )
        modules, channels, strides, pixels = _NETWORKS[name]
        if width is not None:
            channels = (width, *(width * 2**stage for stage in range(4)))
        super().__init__(
            channels=dict(zip(_STAGES, channels, strict=True)),
            strides=dict(zip(_STAGES, strides, strict=True)),
            # The weights are not repeated: an export carries them in its own file.
            init_args={"name": name, "width": width, "depth": depth},
            pixels=pixels,
            least=(5, 17) if name == "s3d" else (1, 1),  # its pools are not all padded
        )
        self.origin = None if weights is None else f"torchvision: {name} {weights}"
        self._modules_of = modules
        self._channels_last = modules is _SWIN
        kept = {path.split(".")[0] for paths in modules.values() for path in paths}
        built = (
            get_model(name, weights=weights)
            if (width, depth) == (None, None)
            else _of_size(name, width, depth)
        )
        children = built.named_children()
        self.net = nn.ModuleDict({name: child for name, child in children if name in kept})

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs one stage; Swin's maps are turned to channels first on the way out."""
        if self._channels_last and name != "stem":  # the patch embedding takes channels first
            x = x.permute(0, 2, 3, 4, 1)  # (B, T, H, W, C)
        for path in self._modules_of[name]:
            x = self.net.get_submodule(path)(x)
        return x.permute(0, 4, 1, 2, 3) if self._channels_last else x


def _check_size(name: str, width: int | None, depth: Sequence[int] | None) -> None:
    if width is not None:
        if name not in _SWINS:
            raise ValueError(f"width is for Swins; {name} takes torchvision's own: leave it null")
        heads = _SWINS[name][2][0]
        if width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of {name}'s {heads} heads, got {width}")
    if depth is not None:
        if name not in (*_SWINS, *_RESNETS):
            raise ValueError(f"depth is for ResNets and Swins; leave it null for {name}")
        if len(depth) != 4 or min(depth) < 1:
            raise ValueError(f"depth must be four numbers of blocks, each at least 1, got {depth}")


def _of_size(name: str, width: int | None, depth: Sequence[int] | None) -> Any:  # noqa: ANN401
    """A network of another width or depth than torchvision's builders make."""
    if name in _RESNETS:
        makers, stem = _RESNETS[name]
        return VideoResNet(BasicBlock, makers, list(depth or (2, 2, 2, 2)), stem)
    channels, blocks, heads = _SWINS[name]
    return SwinTransformer3d(
        patch_size=[2, 4, 4],
        embed_dim=width or channels,
        depths=list(depth or blocks),
        num_heads=list(heads),
        window_size=[8, 7, 7],
        stochastic_depth_prob=0.1,
    )
