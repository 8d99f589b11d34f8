"""Multiscale vision transformers of torchvision and pytorchvideo behind the backbone contract.

MViT: Fan et al. 2021. MViTv2: Li et al. 2022. pytorchvideo is imported where it is used.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.video.mvit import MSBlockConfig, MViT

from lightning_vssl.backbones.base import Pixels
from lightning_vssl.backbones.tokens import STAGES, TokenBackbone, Tokens

TorchvisionMViTName = Literal["mvit_v1_b", "mvit_v2_s"]
PytorchvideoMViTName = Literal["mvit_base_16x4", "mvit_base_32x3"]

_Triple = tuple[int, int, int]
_Quad = tuple[int, int, int, int]

_KINETICS: Pixels = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))  # both libraries' weights
_STRIDES = {name: (2, space) for name, space in zip(STAGES, (4, 4, 8, 16, 32), strict=True)}
_POOLED = (1, 2, 2)  # stride of the queries that open layer2, layer3 and layer4


class _MViT(TokenBackbone):
    """What both share: blocks that take and give tokens and their grid, a class token in front.

    A subclass sets ``net``, which has ``blocks``, and makes the tokens in `_patches`.
    """

    net: Any

    def __init__(
        self, name: str, width: int, widths: Sequence[int], depth: Sequence[int], clip: _Triple
    ) -> None:
        super().__init__(
            channels=dict(zip(STAGES, (width, *widths), strict=True)),
            strides=_STRIDES,
            init_args={"name": name, "width": width, "depth": tuple(depth), "clip": tuple(clip)},
            pixels=_KINETICS,
        )
        ends = [sum(depth[:count]) for count in range(5)]
        self._blocks_of = dict(zip(STAGES[1:], pairwise(ends), strict=True))
        self.clip = tuple(clip)

    @abstractmethod
    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """(B, 3, T, H, W) -> tokens (B, 1 + N, C) with the class token in front, their grid."""

    @abstractmethod
    def _norm(self, x: Tensor) -> Tensor:
        """The final norm."""

    def embed(self, x: Tensor) -> Tokens:
        """Patches and class token with their positions.

        Args:
            x: Normalised clip, (B, 3, T, H, W).

        Returns:
            The tokens, (B, 1 + N, C).

        Raises:
            ValueError: If the network's positions are a table and the clip has not its size.
        """
        values, grid = self._patches(x)
        return Tokens(values, grid, others=1)

    def advance(self, name: str, carried: Tokens) -> Tokens:
        """Runs the blocks of one stage; the last with the final norm."""
        x, grid = carried.values, carried.grid
        for index in range(*self._blocks_of[name]):
            x, grid = self.net.blocks[index](x, grid)
        if name == STAGES[-1]:
            x = self._norm(x)
        return Tokens(x, tuple(grid), carried.others)

    def _check_size(self, x: Tensor) -> None:
        """Refuses a clip that a table of positions is not for."""
        if tuple(x.shape[2:]) != self.clip:
            wanted, got = (" x ".join(str(n) for n in size) for size in (self.clip, x.shape[2:]))
            raise ValueError(
                f"{self._init_args['name']} takes clips of {wanted} (frames x height x width): its "
                f"positions are a table; got {got}. Cut clips of that size, build it with another "
                "clip, or take TorchvisionMViT mvit_v2_s, whose positions are relative"
            )


class TorchvisionMViT(_MViT):
    """MViT of torchvision without its classifier, over clips.

    Stages: the ``stem`` (patches of 3 x 7 x 7 with stride 2 x 4 x 4, with positions) and
    ``layer1`` to ``layer4``, the four scales, the last with the final norm. Maps are made of the
    patches, the class token is left out. Parameters keep torchvision's names behind ``net.``.
    ``mvit_v2_s`` (34.23 M parameters) has relative positions, which torchvision scales to the
    clip's size; ``mvit_v1_b`` (36.30 M) takes clips of ``clip`` only. Stochastic depth is
    torchvision's (0.2) and draws from the global generator.

    Args:
        name: Which network.
        width: Channels of the patches; the stages after ``layer1`` double them. 96 in both.
        depth: Blocks of the four stages.
        clip: Frames, height and width that the table of positions is made for.
        weights: torchvision's name of its own trained weights, ``KINETICS400_V1``, which it
            downloads; None for random weights.

    Raises:
        ValueError: If the network or the weights are not among those that exist, a number is below
            1, or ``weights`` are asked for with another width, depth or clip than theirs.
    """

    def __init__(
        self,
        name: TorchvisionMViTName = "mvit_v2_s",
        *,
        width: int = 96,
        depth: _Quad = (1, 2, 11, 2),
        clip: _Triple = (16, 224, 224),
        weights: str | None = None,
    ) -> None:
        _check(name, get_args(TorchvisionMViTName), width, depth, clip)
        second = name == "mvit_v2_s"
        widths = [width * times for times in ((1, 2, 4, 8) if second else (2, 4, 8, 8))]
        super().__init__(name, width, widths, depth, clip)
        published = (width, tuple(depth), tuple(clip)) == (96, (1, 2, 11, 2), (16, 224, 224))
        if weights is not None:
            _check_weights(name, weights, published)
        net = _torchvision(second, width, depth, clip)
        if weights is not None:
            net.load_state_dict(get_model(name, weights=weights).state_dict())
            self.origin = f"torchvision: {name} {weights}"
        del net.head
        self.net = net

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        positions = self.net.pos_encoding
        if positions.spatial_pos is not None:
            self._check_size(x)
        patches = self.net.conv_proj(x)  # (B, C, T', h, w)
        return positions(patches.flatten(2).transpose(1, 2)), tuple(patches.shape[2:])

    def _norm(self, x: Tensor) -> Tensor:
        made: Tensor = self.net.norm(x)
        return made


class PytorchvideoMViT(_MViT):
    """MViT-B of pytorchvideo without its classifier, over clips of one size.

    Stages and maps as in `TorchvisionMViT`; parameters keep pytorchvideo's names behind ``net.``,
    so the ``model_state`` of its checkpoints loads as it is. 36.30 M parameters.

    Args:
        name: Which network; they differ in the frames of their clips.
        width: Channels of the patches, at least 8; every stage doubles them but the last.
        depth: Blocks of the four stages.
        clip: Frames, height and width that the table of positions is made for; None for the
            published, 16 or 32 x 224 x 224.

    Raises:
        ValueError: If the network is not among those that exist, or a number is below 1.
    """

    def __init__(
        self,
        name: PytorchvideoMViTName = "mvit_base_16x4",
        *,
        width: int = 96,
        depth: _Quad = (1, 2, 11, 2),
        clip: _Triple | None = None,
    ) -> None:
        sizes = clip if clip is not None else (32 if name == "mvit_base_32x3" else 16, 224, 224)
        _check(name, get_args(PytorchvideoMViTName), width, depth, sizes, least=8)
        super().__init__(name, width, [width * times for times in (2, 4, 8, 8)], depth, sizes)
        from pytorchvideo.models import hub

        opens = [sum(depth[:count]) for count in (1, 2, 3)]
        device = torch.get_default_device()
        with torch.device("cpu"):  # its builder reads numbers off a tensor, which meta has not
            net = getattr(hub, name)(
                pretrained=False,
                temporal_size=sizes[0],
                spatial_size=sizes[1:],
                depth=sum(depth),
                patch_embed_dim=width,
                embed_dim_mul=[[block, 2.0] for block in opens],
                atten_head_mul=[[block, 2.0] for block in opens],
                pool_q_stride_size=[[block, *_POOLED] for block in opens],
            )
        net.head = None
        self.net = net.to(device)

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        self._check_size(x)
        positions = self.net.cls_positional_encoding
        return positions(self.net.patch_embed(x)), tuple(positions.patch_embed_shape)

    def _norm(self, x: Tensor) -> Tensor:
        made: Tensor = self.net.norm_embed(x)
        return made


def _torchvision(second: bool, width: int, depth: Sequence[int], clip: Sequence[int]) -> Any:  # noqa: ANN401
    """MViT of torchvision from its blocks' settings, which its own builders hold fixed."""
    settings: list[MSBlockConfig] = []
    for scale, blocks in enumerate(depth):
        own = width * 2**scale
        for block in range(blocks):
            opens = scale > 0 and block == 0
            ends = scale < 3 and block == blocks - 1
            pools = list(_POOLED) if opens else [1, 1, 1] if second else []
            settings.append(
                MSBlockConfig(
                    num_heads=2**scale,
                    # The second version widens where a scale opens, the first before it.
                    input_channels=own // 2 if second and opens else own,
                    output_channels=2 * own if not second and ends else own,
                    kernel_q=[3, 3, 3] if pools else [],
                    kernel_kv=[3, 3, 3],
                    stride_q=pools,
                    stride_kv=[1, 8 >> scale, 8 >> scale],
                )
            )
    return MViT(
        spatial_size=(clip[1], clip[2]),
        temporal_size=clip[0],
        block_setting=settings,
        residual_pool=second,
        residual_with_cls_embed=False,
        rel_pos_embed=second,
        proj_after_attn=second,
        stochastic_depth_prob=0.2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def _check(
    name: str,
    known: Sequence[str],
    width: int,
    depth: Sequence[int],
    clip: Sequence[int],
    least: int = 1,
) -> None:
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}; got {name!r}")
    if width < least:
        raise ValueError(f"width must be at least {least}, got {width}")
    if len(depth) != 4 or min(depth) < 1:
        raise ValueError(f"depth must be four numbers of blocks, each at least 1, got {depth}")
    if len(clip) != 3 or min(clip) < 1 or clip[0] % 2 or clip[1] % 4 or clip[2] % 4:
        raise ValueError(
            f"clip must be frames, height and width, multiples of 2, 4 and 4; got {clip}"
        )


def _check_weights(name: str, weights: str, published: bool) -> None:
    known = list(get_model_weights(name).__members__)
    if weights not in known:
        raise ValueError(
            f"weights of {name} must be one of {', '.join(known)}, or null; got {weights!r}. "
            "To read a file, leave weights empty and load it with load_weights"
        )
    if not published:
        raise ValueError(f"weights={weights!r} need the published width, depth and clip of {name}")
