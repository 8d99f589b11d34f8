"""TensorFlow's 'SAME' padding, for weights that were trained with it.

At stride 1 and odd kernels 'SAME' pads alike on both sides, as PyTorch's networks do. At stride s
it pads just enough for ceil(n / s) outputs and puts the odd pixel behind: a kernel of 7 at stride 2
pads (2, 3) where n is even and (3, 3) where it is odd, PyTorch's networks always (3, 3). The maps
have the same sizes; with an even n they are sampled one pixel apart at every strided layer.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional


def same_amounts(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """What 'SAME' pads before and behind, by axis.

    Args:
        size: Length of the input along each axis.
        kernel: Length of the kernel.
        stride: Its stride.
        dilation: Its dilation.

    Returns:
        For each axis (before, behind), such that there are ceil(size / stride) outputs.
    """
    amounts = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        outputs = -(-n // s)
        total = max((outputs - 1) * s + d * (k - 1) + 1 - n, 0)
        amounts.append((total // 2, total - total // 2))
    return amounts


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    a, b, c = (value,) * 3 if isinstance(value, int) else value
    return a, b, c


def _padded(x: Tensor, amounts: Sequence[tuple[int, int]], value: float) -> Tensor:
    """Pads (N, C, T, H, W); `functional.pad` wants the last axis first."""
    return functional.pad(x, [side for pair in reversed(amounts) for side in pair], value=value)


class SameConv3d(nn.Conv3d):
    """A convolution that pads as TensorFlow's 'SAME'; its ``padding`` is not used."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, C', ceil(T / s), ceil(H / s), ceil(W / s))."""
        stride, dilation = _triple(self.stride), _triple(self.dilation)
        amounts = same_amounts(input.shape[2:], self.weight.shape[2:], stride, dilation)
        if any(before != behind for before, behind in amounts):
            input, amounts = _padded(input, amounts, 0.0), [(0, 0)] * 3
        padding = [before for before, _ in amounts]
        return functional.conv3d(
            input, self.weight, self.bias, stride, padding, dilation, self.groups
        )


class SameMaxPool3d(nn.MaxPool3d):
    """A max-pool that pads as TensorFlow's 'SAME'; what is padded is never the maximum."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, C, ceil(T / s), ceil(H / s), ceil(W / s))."""
        kernel, stride = _triple(self.kernel_size), _triple(self.stride)
        dilation = _triple(self.dilation)
        amounts = same_amounts(input.shape[2:], kernel, stride, dilation)
        if any(side for pair in amounts for side in pair):
            input = _padded(input, amounts, -torch.inf)
        return functional.max_pool3d(input, kernel, stride, 0, dilation)


def same_padding(network: nn.Module) -> None:
    """Makes the strided convolutions and max-pools inside a network pad as TensorFlow's 'SAME'.

    They are replaced in place by layers with the same parameters under the same names, so that
    ``state_dict`` and ``parameters`` stay what they were. Layers with stride 1 pad alike either
    way and are left alone.

    Args:
        network: A module that holds the layers, just built: hooks on them are not kept.

    Raises:
        ValueError: If a layer to be replaced pads with something else than zeros, rounds its size
            up or returns indices, or if a kernel at stride 1 is even.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not _matters(layer):
                continue
            _refuse_even(layer)
            if isinstance(layer, nn.Conv3d) and not isinstance(layer, SameConv3d):
                setattr(parent, name, _same_conv(layer))
            elif isinstance(layer, nn.MaxPool3d) and not isinstance(layer, SameMaxPool3d):
                setattr(parent, name, _same_pool(layer))


def needs_padding(network: nn.Module) -> bool:
    """Whether there is a layer for which the padding makes a difference."""
    return any(_matters(layer) for layer in network.modules())


def pads_as_tensorflow(network: nn.Module) -> bool:
    """Whether every layer for which it makes a difference pads as TensorFlow's 'SAME'."""
    return all(
        isinstance(layer, SameConv3d | SameMaxPool3d)
        for layer in network.modules()
        if _matters(layer)
    )


def _matters(layer: nn.Module) -> TypeGuard[nn.Conv3d | nn.MaxPool3d]:
    """Whether 'SAME' and symmetric padding can differ: a kernel above 1 along a strided axis."""
    if not isinstance(layer, nn.Conv3d | nn.MaxPool3d):
        return False
    kernel, stride = _triple(layer.kernel_size), _triple(layer.stride)
    return any(k > 1 and s > 1 for k, s in zip(kernel, stride, strict=True))


def _refuse_even(layer: nn.Conv3d | nn.MaxPool3d) -> None:
    kernel, stride = _triple(layer.kernel_size), _triple(layer.stride)
    if any(k % 2 == 0 and s == 1 for k, s in zip(kernel, stride, strict=True)):
        raise ValueError(f"a kernel must be odd where its stride is 1; got {layer}")


def _same_conv(layer: nn.Conv3d) -> SameConv3d:
    if layer.padding_mode != "zeros":
        raise ValueError(f"'SAME' pads with zeros; got {layer}")
    made = SameConv3d(
        layer.in_channels,
        layer.out_channels,
        _triple(layer.kernel_size),
        stride=_triple(layer.stride),
        dilation=_triple(layer.dilation),
        groups=layer.groups,
        bias=False,
        device="meta",  # the parameters are the old layer's
    )
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)


def _same_pool(layer: nn.MaxPool3d) -> SameMaxPool3d:
    if layer.ceil_mode or layer.return_indices:
        raise ValueError(f"'SAME' neither rounds up nor returns indices; got {layer}")
    made = SameMaxPool3d(
        _triple(layer.kernel_size), stride=_triple(layer.stride), dilation=_triple(layer.dilation)
    )
    return made.train(layer.training)
