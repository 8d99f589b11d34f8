"""Weights of a 2-D ResNet for a 3-D one (I3D: Carreira and Zisserman 2017, section 2.4).

A 2-D kernel is repeated over the kernel's time and divided by its length, so that a video of one
repeated image gives, away from the first and last frames (where zeros pad the time), the response
of the 2-D network to that image. Batch norms are copied.

This holds where the rest of the two networks agrees, and is not hidden where it does not:

- R3D-18 has no max-pool after its stem while ResNet-18 has one; every kernel still finds its
  place. Its batch norms have eps 1e-3 instead of 1e-5 unless it is built with ``norm_eps=1e-5``.
- `PytorchvideoResNet` with ResNet-50's widths agrees in every part.
- R(2+1)D has no kernel over time and space to inflate, so it is refused.

CtP's Table 3 inflates a ResNet-18 trained on ImageNet to R3D-18: torchvision's or timm's file, or
what `TimmNet` was trained to by a method of this library. ConST-CL's Table 2 inflates VFS (Xu and
Wang 2021) to its R3D-50 so. VFS's files name a ResNet-50 as mmaction does; its heads are left over.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from lightning_vssl.backbones.naming import from_mmaction, from_resnet

_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample)(?:\.(\d))?\.(\w+)")
_HELD = "net."  # where an adapter keeps another library's network


def inflate_kernel(weight: Tensor, time: int) -> Tensor:
    """Repeats a kernel over time and divides it by the number of repeats.

    Args:
        weight: Kernel, (out, in, h, w).
        time: Length in time of the kernel wanted, at least 1.

    Returns:
        Kernel, (out, in, time, h, w), whose sum over time is ``weight``.

    Raises:
        ValueError: If ``weight`` is not 4-D or ``time`` is below 1.
    """
    if weight.dim() != 4:
        raise ValueError(f"weight must be (out, in, h, w); got shape {tuple(weight.shape)}")
    if time < 1:
        raise ValueError(f"time must be at least 1; got {time}")
    return weight[:, :, None].repeat(1, 1, time, 1, 1) / time


def is_resnet_2d(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a 2-D ResNet as torchvision, timm or mmaction names it.

    One of `lightning_vssl.backbones.timm_image.TimmNet`, trained here, counts.
    """
    state = _without_prefix(state)
    stem = state.get("conv1.weight", state.get("conv1.conv.weight"))
    return stem is not None and stem.dim() == 4 and any(_BLOCK.match(key) for key in state)


def _without_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Entries of a network that an adapter of this library holds, as the network names them."""
    return {key.removeprefix(_HELD): value for key, value in state.items()}


def _pytorchvideo_name(key: str) -> str:
    """Name of a 2-D bottleneck ResNet's entry in pytorchvideo's ResNets."""
    if key.startswith(("conv1.", "bn1.")):
        part = "conv" if key.startswith("conv1.") else "norm"
        return f"blocks.0.{part}.{key.split('.')[-1]}"
    found = _BLOCK.fullmatch(key)
    if found is None:
        return key
    block = f"blocks.{found[1]}.res_blocks.{found[2]}"
    if found[3] == "downsample":
        return f"{block}.branch1_{'conv' if found[4] == '0' else 'norm'}.{found[5]}"
    part = "conv" if found[3].startswith("conv") else "norm"
    return f"{block}.branch2.{part}_{'abc'[int(found[3][-1]) - 1]}.{found[5]}"


def inflate_resnet(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], *, name: str = "the backbone"
) -> dict[str, Tensor]:
    """Turns the weights of a 2-D ResNet into those of a 3-D one.

    Args:
        state: State dict of a ResNet of torchvision, timm or mmaction, or of a `TimmNet`; its
            classifier is passed through.
        target: State dict of the 3-D network, which gives names and lengths in time.
        name: What to call the network in an error.

    Returns:
        The entries under the target's names. Whether all of them fit is for the caller to check.

    Raises:
        ValueError: If ``state`` is not a 2-D ResNet's, or the target has no kernels of that form.
    """
    if not is_resnet_2d(state):
        raise ValueError(
            "inflate=True is for the weights of a 2-D ResNet as torchvision, timm or mmaction name "
            f"them (conv1.weight, layer1.0.conv1.weight, ...); this file has {_some(state)}"
        )
    state = _without_prefix(state)
    rename = _pytorchvideo_name if "blocks.0.conv.weight" in target else from_resnet
    prefix = _HELD if any(key.startswith(_HELD) for key in target) else ""
    if f"{prefix}{rename('layer1.0.conv1.weight')}" not in target:
        raise ValueError(
            f"{name} has no kernels that a 2-D ResNet's could be inflated to (R(2+1)D's are "
            "factored into space and time); use R3D18, TorchvisionVideo r3d_18 or "
            "PytorchvideoResNet"
        )
    inflated: dict[str, Tensor] = {}
    for key, value in state.items():
        new = prefix + rename(from_mmaction(key))
        wanted = target.get(new)
        if value.dim() == 4 and wanted is not None and wanted.dim() == 5:
            value = inflate_kernel(value, wanted.shape[2])
        inflated[new if wanted is not None else key] = value
    return inflated


def _some(keys: Collection[str]) -> str:
    first = list(keys)[:3]
    return ", ".join(first) + (", ..." if len(keys) > 3 else "")
