"""Denser maps from the same weights: strides taken out of late stages, kernels dilated instead.

Tracking and mask propagation read maps at stride 8 (VFS; ConST-CL, section 4.2), RoI pooling at
stride 16 with a dilated last stage (SlowFast), from networks that were pretrained at stride 32.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone

First = Literal["previous", "own"]

_MaxPool = nn.MaxPool2d | nn.MaxPool3d
_AveragePool = nn.AvgPool2d | nn.AvgPool3d
_Layer = nn.Conv2d | nn.Conv3d | _MaxPool | _AveragePool
_Found = dict[_Layer, tuple[str, int, int]]
_CELLS = 4  # of the last map, along each side, in the pass that finds the layers


def restride(
    backbone: Backbone, stages: Sequence[str], *, dilate: bool = True, first: First = "previous"
) -> None:
    """Takes the stride in space out of stages, in place; weights and strides in time stay.

    With ``dilate``, every kernel behind a stride that is gone is spread by as much: it sees the
    same pixels around its place as before, and at the places that were there before, maps are equal
    ("a trous") but for gates that average over the whole map. Without, kernels stay compact and see
    less.

    `Backbone.config` still says what was trained: the network is exported as it was.

    Args:
        backbone: A convolutional network.
        stages: Names of the stages that keep the size of the stage before; none leaves all as is.
        dilate: Whether kernels are dilated.
        first: What the strided convolution that opens a stage is dilated by: as the stage before
            (``previous``, torchvision's ``replace_stride_with_dilation``, which gives equal maps),
            or as the rest of its stage (``own``, mmcv's ``dilations``, which VFS's tracker has).

    Raises:
        ValueError: If a stage is unknown, has no stride of its own, or gets it from something else
            than convolutions with odd kernels and max-pools (patch merging, average pools); the
            network is then as it was.
    """
    if first not in get_args(First):
        raise ValueError(f"first must be previous or own, got {first!r}")
    removed = _removed(backbone, stages)
    if not removed:
        return
    found = _trace(backbone)
    _check(backbone, found, removed)
    for layer, (name, before, after) in found.items():
        spread = before // _new(before, removed)
        step = _new(after, removed) // _new(before, removed)
        if first == "own" and not isinstance(layer, _MaxPool):
            spread = after // _new(after, removed)
        _change(backbone, name, layer, step, spread if dilate else 1)
    backbone.stage_strides = {
        name: (time, _new(space, removed)) for name, (time, space) in backbone.stage_strides.items()
    }
    backbone.stride = backbone.stage_strides[backbone.stages[-1]]


def _removed(backbone: Backbone, stages: Sequence[str]) -> dict[int, int]:
    """The factors to take out, by the stride at which each is reached, in the order of stages."""
    spaces = {name: space for name, (_, space) in backbone.stage_strides.items()}
    names = list(spaces)
    removed: dict[int, int] = {}
    for stage in stages:
        if stage not in names[1:]:
            raise ValueError(f"stages must be among {', '.join(names[1:])}; got {stage!r}")
        before = spaces[names[names.index(stage) - 1]]
        if spaces[stage] == before or spaces[stage] in removed:
            raise ValueError(
                f"{stage} has no stride to take out, leave it out: strides are {spaces}"
            )
        removed[spaces[stage]] = spaces[stage] // before
    return removed


def _new(stride: int, removed: dict[int, int]) -> int:
    """What becomes of a total stride."""
    return stride // math.prod(step for level, step in removed.items() if stride >= level)


def _trace(backbone: Backbone) -> _Found:
    """Layers with a kernel or a stride: name, strides in space of what goes in and comes out.

    A small picture that is sent through tells.
    """
    side = _CELLS * max(space for _, space in backbone.stage_strides.values())
    frames = [2 * backbone.stride[0]] if backbone.dims == 3 else []
    found: _Found = {}

    def note(name: str, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        before, after = (side / size.shape[-1] for size in (given[0], made))
        if before.is_integer() and after.is_integer():
            found[cast(_Layer, layer)] = (name, int(before), int(after))

    layers = [(name, one) for name, one in backbone.named_modules() if isinstance(one, _Layer)]
    hooks = [
        layer.register_forward_hook(functools.partial(note, name))
        for name, layer in layers
        if max(_space(layer.kernel_size) + _space(layer.stride)) > 1
    ]
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        with torch.no_grad():
            like = next(backbone.parameters())
            backbone.eval()(like.new_zeros(1, 3, *frames, side, side))
    finally:
        for module, mode in modes:
            module.training = mode
        for hook in hooks:
            hook.remove()
    return found


def _check(backbone: Backbone, found: _Found, removed: dict[int, int]) -> None:
    """Refuses what cannot be changed, before anything is."""
    for name, layer in backbone.named_modules():
        if isinstance(layer, _Layer) and max(_space(layer.stride)) > 1 and layer not in found:
            raise ValueError(f"{name} was not run, or its map is odd: its stride is not understood")
    reached = {after for _, before, after in found.values() if before < after}
    if missing := [str(level) for level in removed if level not in reached]:
        raise ValueError(
            f"no convolution or max-pool of {type(backbone).__name__} leads to stride "
            f"{', '.join(missing)}: it cannot be taken out"
        )
    for layer, (name, before, after) in found.items():
        touched = _new(before, removed) < before or _new(after, removed) < after
        odd = all(side % 2 for side in _space(layer.kernel_size))
        if touched and (
            isinstance(layer, _AveragePool) or not (odd or isinstance(layer, _MaxPool))
        ):
            raise ValueError(
                f"{name} ({type(layer).__name__}, kernel {layer.kernel_size}) cannot do without "
                "its stride: only convolutions with odd kernels and max-pools can"
            )


def _change(backbone: Backbone, name: str, layer: _Layer, step: int, spread: int) -> None:
    """Gives a layer another stride in space, and spreads its kernel."""
    lost = step != _space(layer.stride)[0]
    layer.stride = _with_space(layer, layer.stride, step)
    if isinstance(layer, _AveragePool) or not (lost or spread > 1):
        return
    layer.dilation = _with_space(layer, layer.dilation, _space(layer.dilation)[0] * spread)
    if isinstance(layer.padding, str):  # timm's convolutions that find theirs themselves
        return
    padding = _space(layer.padding)[0] * spread
    if not isinstance(layer, _MaxPool):
        layer.padding = _with_space(layer, layer.padding, padding)
        return
    # A pool takes no more padding than half of its kernel: it gets a layer for that. Even kernels
    # that have lost their stride miss something behind.
    reach = _space(layer.dilation)[0] * (_space(layer.kernel_size)[0] - 1)
    behind = reach - padding if step == 1 else padding
    sides = (padding, behind, padding, behind)
    pad: nn.Module = nn.ConstantPad2d(sides, -math.inf)
    if isinstance(layer, nn.MaxPool3d):
        pad = nn.ConstantPad3d((*sides, 0, 0), -math.inf)
    layer.padding = cast(tuple[int, int], _with_space(layer, layer.padding, 0))
    backbone.set_submodule(name, nn.Sequential(pad, layer))


def _space(value: int | Sequence[int]) -> tuple[int, int]:
    """The part for height and width of a kernel's, stride's, ... one number or one an axis."""
    if isinstance(value, int):
        return value, value
    height, width = value[-2:]
    return height, width


def _with_space(layer: _Layer, value: int | Sequence[int], new: int) -> tuple[int, ...]:
    """The same with another number for height and width; a single number stands for every axis."""
    flat = isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    before = (() if flat else (value,)) if isinstance(value, int) else tuple(value[:-2])
    return (*before, new, new)
