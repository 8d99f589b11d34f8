import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_vssl.backbones import PytorchvideoResNet
from lightning_vssl.backbones.padding import (
    SameConv3d,
    SameMaxPool3d,
    pads_as_tensorflow,
    same_amounts,
    same_padding,
)

SMALL = {"width": 4, "depth": (1, 1, 1, 1)}


def windows(x, kernel, stride, dilation=(1, 1, 1)):
    """Yields each output position of TensorFlow's 'SAME' and the input positions it sees.

    Written from TensorFlow's documentation: out = ceil(n / s), the padding's total is
    max((out - 1) s + (k - 1) d + 1 - n, 0), and floor(total / 2) of it lie before.
    """
    sizes = x.shape[-3:]
    outs = [math.ceil(n / s) for n, s in zip(sizes, stride, strict=True)]
    starts = []
    for n, k, s, d, out in zip(sizes, kernel, stride, dilation, outs, strict=True):
        total = max((out - 1) * s + (k - 1) * d + 1 - n, 0)
        starts.append(math.floor(total / 2))
    for place in itertools.product(*(range(out) for out in outs)):
        seen = []
        for tap in itertools.product(*(range(k) for k in kernel)):
            at = [
                p * s + t * d - b
                for p, s, t, d, b in zip(place, stride, tap, dilation, starts, strict=True)
            ]
            if all(0 <= a < n for a, n in zip(at, sizes, strict=True)):
                seen.append((tap, tuple(at)))
        yield place, seen, tuple(outs)


def slow_conv(x, weight, stride, dilation=(1, 1, 1)):
    out = None
    for place, seen, outs in windows(x, weight.shape[2:], stride, dilation):
        if out is None:
            out = np.zeros((x.shape[0], weight.shape[0], *outs))
        for tap, at in seen:
            out[(..., *place)] += x[(..., *at)] @ weight[(..., *tap)].T
    return out


def slow_pool(x, kernel, stride):
    out = None
    for place, seen, outs in windows(x, kernel, stride):
        if out is None:
            out = np.full((*x.shape[:2], *outs), -np.inf)
        for _, at in seen:
            out[(..., *place)] = np.maximum(out[(..., *place)], x[(..., *at)])
    return out


SIZES = [(6, 8, 8), (5, 7, 9), (1, 2, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [
        ((5, 7, 7), (2, 2, 2), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2), (1, 1, 1)),
        ((3, 3, 3), (3, 2, 4), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2), (1, 2, 2)),
        ((2, 4, 4), (2, 2, 3), (1, 1, 1)),
    ],
)
def test_convolution_equals_tensorflows_definition(size, kernel, stride, dilation):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, *size))
    weight = rng.standard_normal((4, 3, *kernel))
    layer = SameConv3d(3, 4, kernel, stride=stride, dilation=dilation, bias=False).double()
    layer.weight.data = torch.from_numpy(weight)
    expected = slow_conv(x, weight, stride, dilation)
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3), (2, 2, 2)])
def test_max_pool_equals_tensorflows_definition(size, kernel):
    x = np.random.default_rng(0).standard_normal((2, 3, *size)) - 5  # below any zero padding
    stride = (1, 2, 2) if kernel[0] == 1 else (2, 2, 2)
    pool = SameMaxPool3d(kernel, stride=stride)
    assert np.array_equal(pool(torch.from_numpy(x)).numpy(), slow_pool(x, kernel, stride))


def test_amounts_are_the_known_ones_of_the_r3d50_at_even_sizes():
    ones = (1, 1, 1)
    stem = same_amounts((16, 224, 224), (5, 7, 7), (2, 2, 2), ones)
    assert stem == [(1, 2), (2, 3), (2, 3)]
    pool = same_amounts((8, 112, 112), (1, 3, 3), (1, 2, 2), ones)
    assert pool == [(0, 0), (0, 1), (0, 1)]
    assert same_amounts((8, 7, 7), (1, 3, 3), (1, 2, 2), ones) == [(0, 0), (1, 1), (1, 1)]
    assert same_amounts((8, 7, 7), (1, 1, 1), (1, 2, 2), ones) == [(0, 0)] * 3


def test_a_network_keeps_its_names_parameters_and_sizes():
    network = PytorchvideoResNet(**SMALL).eval()
    before = {name: parameter for name, parameter in network.named_parameters()}
    clip = torch.rand(1, 3, 8, 32, 32)
    symmetric = network(clip)
    names = list(network.state_dict())
    assert not pads_as_tensorflow(network)
    same_padding(network.blocks)
    assert pads_as_tensorflow(network)
    assert list(network.state_dict()) == names
    assert all(before[name] is parameter for name, parameter in network.named_parameters())
    kinds = [type(m).__name__ for m in network.modules() if "Same" in type(m).__name__]
    assert kinds == ["SameConv3d", "SameMaxPool3d", "SameConv3d", "SameConv3d", "SameConv3d"]
    asymmetric = network(clip)
    assert asymmetric.shape == symmetric.shape
    assert (asymmetric - symmetric).abs().max() > 1e-4
    same_padding(network)  # a second time changes nothing
    assert torch.equal(network(clip), asymmetric)


def test_odd_sizes_pad_alike_either_way():
    network = PytorchvideoResNet(**SMALL).eval()
    clip = torch.rand(1, 3, 9, 33, 33)  # 33, 17, 9, 5, 3: odd at every strided layer
    symmetric = network(clip)
    same_padding(network)
    assert torch.equal(network(clip), symmetric)


def test_gradients_are_those_of_padding_by_hand():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv3d(2, 3, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.MaxPool3d(3, 2, 1))
    same_padding(layer.double())
    x = torch.rand(1, 2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pads_the_pool_with_minus_infinity(dtype):
    pool = SameMaxPool3d((1, 3, 3), stride=(1, 2, 2))
    assert torch.equal(pool(-torch.ones(1, 1, 1, 4, 4, dtype=dtype)).unique(), -torch.ones(1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv3d(1, 1, 3, 2, padding_mode="reflect"), "pads with zeros"),
        (nn.MaxPool3d(3, 2, ceil_mode=True), "rounds up"),
        (nn.Conv3d(1, 1, (2, 3, 3), (1, 2, 2)), "must be odd"),
    ],
)
def test_layers_that_have_no_same_padding_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        same_padding(nn.Sequential(layer))
