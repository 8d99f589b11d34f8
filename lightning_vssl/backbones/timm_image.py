"""Image networks of timm behind the backbone contract."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_vssl.backbones.base import IMAGENET_PIXELS, Backbone, Pixels, as_pixels
from lightning_vssl.backbones.tokens import Tokens, filled, quarters

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

# Which modules make each stage, by the names that timm gave them.
_RESNET: dict[str, tuple[str, ...]] = {
    "stem": ("conv1", "bn1", "act1", "maxpool"),
    **{name: (name,) for name in _STAGES[1:]},
}
_SWIN: dict[str, tuple[str, ...]] = {
    "stem": ("patch_embed",),
    "layer1": ("layers.0",),
    "layer2": ("layers.1",),
    "layer3": ("layers.2",),
    "layer4": ("layers.3", "norm"),
}

# Plain transformers over patches, DeiT's, DINOv2's and DINOv3's among them.
_TRANSFORMERS = (VisionTransformer, VisionTransformerDistilled, Eva)


@dataclass(frozen=True)
class _Built:
    """A network and where its maps lie.

    Attributes:
        net: The network.
        channels: Channels by stage.
        strides: Stride in space by stage.
        parts: Names of the modules of each stage; empty where only the whole network runs.
        ends: Of a plain transformer, index of the block that ends each stage.
        last: Whether maps come with the channels last.
        left_out: Names of modules that timm's file has and this network has not.
    """

    net: nn.Module
    channels: Mapping[str, int]
    strides: Mapping[str, int]
    parts: Mapping[str, tuple[str, ...]]
    ends: Mapping[str, int] = field(default_factory=dict)
    last: bool = False
    left_out: tuple[str, ...] = ()


class TimmNet(Backbone):
    """A network of timm without its pooling and classifier, over single images.

    VITO's networks are ``resnet50`` (23.51 M parameters) and ``swin_small_patch4_window7_224``
    (48.84 M). Parameters keep timm's names behind ``net.``;
    `lightning_vssl.backbones.load_weights` reads timm's own files, and torchvision's and mmaction's
    of a ResNet.

    Stages: of a ResNet the ``stem`` (up to the max-pool, stride 4) and ``layer1`` to ``layer4``; of
    a Swin the ``stem`` (patch embedding) and the four stages, each with the patch merging before
    it, the last with the final norm. A Swin takes images whose sides are multiples of 4, its masks
    are made for them. A plain vision transformer (ViT, DeiT, DINOv2, DINOv3, EVA-02) has
    ``layer1`` to ``layer4``, a quarter of its blocks each, the last with the final norm unless that
    is the classifier's, all with the stride of its patches. Its maps are made of the patches; class
    token and registers are left out. It takes images of any size: they are filled up to whole
    patches, and its position embedding is scaled as timm scales it. Any other network that timm
    builds with ``features_only`` has the maps that timm offers, named ``layer1``, ``layer2``, ...
    from the finest to the coarsest, or ``stem`` and ``layer1`` to ``layer4`` where there are five;
    what lies behind the last is left out.

    Batch norms that carry their activation inside (EfficientNet, RegNet, DenseNet and others) are
    held apart from it, under the same names in the state dict: torch would lose the activation
    where it exchanges them for SyncBatchNorm (``trainer.sync_batchnorm``).

    Args:
        name: timm's name of the network.
        width: Channels of the narrowest stage, in a ResNet's ``layer1`` before its expansion (64
            in timm's) or of a Swin's patches (96 in Swin-S); the following stages double it. None
            for the network's own, and for networks of other families.
        depth: Blocks of the four stages (ResNet-50: 3, 4, 6, 3; Swin-S: 2, 2, 18, 2). None for
            the network's own, and for networks of other families.
        drop_path: Rate of stochastic depth in training, in [0, 1); None for timm's (0 in ResNets,
            0.1 in Swins). It draws from the global generator.
        pixels: Mean and standard deviation of R, G, B; None for those in timm's configuration.

    Raises:
        ValueError: If timm has no such network or no feature maps of it, or ``width``, ``depth``
            or ``drop_path`` do not fit it.
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        width: int | None = None,
        depth: Sequence[int] | None = None,
        drop_path: float | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(f"name must be a network of timm, got {name!r}{hint}")
        if drop_path is not None and not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1) or null, got {drop_path}")
        built = _build(name, width, depth, drop_path)
        wanted = as_pixels(_timm_pixels(name) if pixels is None else pixels)
        super().__init__(
            channels=built.channels,
            strides={stage: (1, stride) for stage, stride in built.strides.items()},
            init_args={
                "name": name,
                "width": width,
                "depth": depth,
                "drop_path": drop_path,
                "pixels": wanted,
            },
            pixels=wanted,
            dims=2,
        )
        self.classifiers += built.left_out
        self._parts = dict(built.parts)
        self._ends = dict(built.ends)
        self._channels_last = built.last
        self.net = _with_norms_apart(built.net)

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs one stage of a ResNet or a Swin.

        Raises:
            ValueError: If the network is of another family, which timm runs as a whole.
        """
        if not self._parts:
            raise ValueError(
                f"{self._init_args['name']} runs as a whole: call the network, or features()"
            )
        if self._channels_last and name != "stem":  # the patch embedding takes channels first
            x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        for path in self._parts[name]:
            x = self.net.get_submodule(path)(x)
        return x.permute(0, 3, 1, 2) if self._channels_last else x

    def forward(self, x: Tensor) -> Tensor:
        """Runs the whole network.

        Args:
            x: Normalised images, (B, C, H, W).

        Returns:
            The last stage's map, (B, num_features, H', W').

        Raises:
            ValueError: If ``x`` has another number of dimensions.
        """
        last = self.stages[-1]
        return super().forward(x) if self._parts else self.features(x, [last])[last]

    def features(self, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Runs the network as far as needed and returns the maps of the stages named.

        Args:
            x: Normalised images, (B, C, H, W).
            stages: Names out of `stages`, in any order.

        Returns:
            Map of each stage by name, (B, C', H', W'), in the order in which the stages run.

        Raises:
            ValueError: If a stage is not one of this network, or ``x`` has another number of
                dimensions.
        """
        if self._parts:
            return super().features(x, stages)
        self._check(x)
        self._check_stages(stages)
        if self._ends:
            return self._quarters(x, stages)
        maps = self.net(x)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        made = zip(self.stages, maps, strict=True)
        return {name: one for name, one in made if name in stages}

    def _quarters(self, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Maps of a plain transformer's stages; the last is behind the final norm."""
        net: Any = self.net
        patch = self.stride[1]
        x = filled(x, (patch, patch))
        names = [name for name in self.stages if name in stages]
        ends = [self._ends[name] for name in names]
        if self.stages[-1] not in names:
            maps = net.forward_intermediates(x, ends, stop_early=True, intermediates_only=True)
            return dict(zip(names, maps, strict=True))
        final, maps = net.forward_intermediates(x, ends)
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        maps[-1] = Tokens(final, grid, others=net.num_prefix_tokens).as_map()
        return dict(zip(names, maps, strict=True))


class _NormThenAct(nn.Module):
    """timm's batch norm with an activation, as a batch norm and what follows it.

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` exchanges every batch norm for one that knows
    nothing of timm's activation; here it finds a plain one. State dicts keep timm's names.
    """

    def __init__(self, joint: BatchNormAct2d) -> None:
        super().__init__()
        affine, running = joint.weight is not None, joint.running_mean is not None
        with torch.device("meta"):
            norm = nn.BatchNorm2d(joint.num_features, joint.eps, joint.momentum, affine, running)
        norm._parameters.update(joint._parameters)
        norm._buffers.update(joint._buffers)
        self.norm = norm.train(joint.training)
        self.drop = joint.drop
        self.act = joint.act
        self.register_state_dict_post_hook(_named_as_timm)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_named_as_here)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, H, W), then activates."""
        out: Tensor = self.act(self.drop(self.norm(x)))
        return out


def _named_as_timm(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: object
) -> None:
    """A hook that takes ``norm.`` out of the names."""
    inner = f"{prefix}norm."
    for key in [key for key in state_dict if key.startswith(inner)]:
        state_dict[prefix + key.removeprefix(inner)] = state_dict.pop(key)


def _named_as_here(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_others: object
) -> None:
    """A hook that puts ``norm.`` into the names."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}norm.{key.removeprefix(prefix)}"] = state_dict.pop(key)


def _with_norms_apart(net: nn.Module) -> nn.Module:
    """Exchanges the batch norms with an activation, in place."""
    for name, joint in list(net.named_modules()):
        if isinstance(joint, BatchNormAct2d):
            net.set_submodule(name, _NormThenAct(joint))
    return net


def _timm_pixels(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the weights that timm takes first for a network."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return IMAGENET_PIXELS
    return config.mean, config.std


def _build(
    name: str, width: int | None, depth: Sequence[int] | None, drop_path: float | None
) -> _Built:
    family = _family(name)
    for argument, value in (("width", width), ("depth", depth)):
        if value is not None and family is None:
            raise ValueError(
                f"{argument} is for ResNets, Swins and plain vision transformers; {name} takes "
                "timm's own: leave it null"
            )
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if depth is not None and (len(depth) != 4 or min(depth) < 1):
        raise ValueError(f"depth must be four numbers of blocks, each at least 1, got {depth}")
    if family is ResNet:
        return _resnet(name, width, depth, drop_path)
    if family is SwinTransformer:
        return _swin(name, width, depth, drop_path)
    if family is not None:
        return _transformer(name, width, depth, drop_path)
    return _any(name, drop_path)


def _family(name: str) -> type[nn.Module] | None:
    """Which of the families with stages of our own a network belongs to."""
    module = timm.model_entrypoint(name).__module__
    families = (ResNet, SwinTransformer, *_TRANSFORMERS)
    return next((kind for kind in families if kind.__module__ == module), None)


def _resnet(
    name: str, width: int | None, depth: Sequence[int] | None, drop_path: float | None
) -> _Built:
    net: Any = timm.create_model(
        name,
        num_classes=0,
        global_pool="",
        channels=None if width is None else tuple(width * 2**i for i in range(4)),
        layers=None if depth is None else tuple(depth),
        drop_path_rate=drop_path,
    )
    stem, *layers = net.feature_info
    channels = [stem["num_chs"], *(layer["num_chs"] for layer in layers)]
    strides = [layers[0]["reduction"], *(layer["reduction"] for layer in layers)]
    return _Built(net, _named(channels), _named(strides), _RESNET)


def _swin(
    name: str, width: int | None, depth: Sequence[int] | None, drop_path: float | None
) -> _Built:
    net: Any = timm.create_model(
        name,
        num_classes=0,
        global_pool="",
        embed_dim=width,
        depths=None if depth is None else tuple(depth),
        drop_path_rate=drop_path,
        strict_img_size=False,
    )
    heads = net.layers[0].blocks[0].attn.num_heads
    if width is not None and width % heads:
        raise ValueError(f"width must be a multiple of {name}'s {heads} heads, got {width}")
    info = [net.feature_info[0], *net.feature_info]  # the patches are as layer1
    channels, strides = ([one[key] for one in info] for key in ("num_chs", "reduction"))
    return _Built(net, _named(channels), _named(strides), _SWIN, last=True)


def _transformer(
    name: str, width: int | None, depth: Sequence[int] | None, drop_path: float | None
) -> _Built:
    if depth is not None and len(set(depth)) > 1:
        raise ValueError(f"depth of {name} must be the same number in each stage, got {depth}")
    try:
        net: Any = timm.create_model(
            name,
            embed_dim=width,
            depth=None if depth is None else sum(depth),
            drop_path_rate=drop_path,
            dynamic_img_size=True,
        )
    except AssertionError as error:  # the heads do not go into the width
        raise ValueError(f"timm builds no {name} of width {width}: {error}") from error
    whole = {key.split(".")[0] for key in net.state_dict()}
    ends = {stage: blocks[-1] for stage, blocks in quarters(len(net.blocks)).items()}
    net.prune_intermediate_layers([len(net.blocks) - 1])  # leaves the blocks, takes the head
    patch = net.patch_embed.patch_size[0]
    return _Built(
        net,
        dict.fromkeys(ends, net.embed_dim),
        dict.fromkeys(ends, patch),
        {},
        ends,
        left_out=tuple(sorted(whole - {key.split(".")[0] for key in net.state_dict()})),
    )


def _any(name: str, drop_path: float | None) -> _Built:
    try:
        net: Any = timm.create_model(name, features_only=True, drop_path_rate=drop_path)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"timm gives no feature maps of {name} as asked for (drop_path={drop_path}): {error}"
        ) from error
    whole = timm.create_model(name, num_classes=0)
    channels, strides = net.feature_info.channels(), net.feature_info.reduction()
    own = list(net.state_dict())
    left_out = [
        child
        for child, _ in whole.named_children()
        if not any(re.match(rf"(model\.)?{child}(_\w+)?\.", key) for key in own)
    ]
    names = _STAGES if len(channels) == 5 else [f"layer{i + 1}" for i in range(len(channels))]
    return _Built(
        net,
        dict(zip(names, channels, strict=True)),
        dict(zip(names, strides, strict=True)),
        {},
        last=str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC"),
        left_out=tuple(left_out),
    )


def _named(values: Sequence[int]) -> dict[str, int]:
    return dict(zip(_STAGES, values, strict=True))
