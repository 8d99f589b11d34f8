import math

import pytest
import torch
from torch import nn
from torchvision.models import video

from lightning_vssl.backbones import R3D18, R2Plus1D18
from tests.backbones.counting import count

# CtP's configs and code, counted there: parameters, multiply-adds at 16 x 112 x 112.
PAPER = [
    (R3D18, 1, 33.17e6, 48.0e9, (1, 512, 2, 14, 14)),
    (R3D18, 2, 33.17e6, 40.7e9, (1, 512, 2, 7, 7)),
    (R2Plus1D18, 1, 33.17e6, 49.4e9, (1, 512, 2, 14, 14)),
    (R2Plus1D18, 2, 33.17e6, 41.5e9, (1, 512, 2, 7, 7)),
]
SMALL = {"width": 4, "depth": (1, 1, 1, 1)}


@pytest.mark.parametrize(("kind", "last_stride", "parameters", "macs", "shape"), PAPER)
def test_counts_are_the_papers(kind, last_stride, parameters, macs, shape):
    counted = count(lambda: kind(last_stride=last_stride), 16, 112, 112)
    assert abs(counted[0] - parameters) < 0.005e6
    assert abs(counted[1] - macs) < 0.05e9
    assert counted[2] == shape


def conv(t, h, w, c_in, c_out, k):
    """Parameters and multiply-adds of a convolution whose map is (c_out, t, h, w)."""
    weights = c_in * c_out * math.prod(k)
    return weights, weights * t * h * w


def by_hand(factored: bool, last_stride: int) -> tuple[int, int]:
    """Both counts of the full networks at 16 x 112 x 112, from the papers' description."""
    parts = []
    norms = 0
    if factored:
        parts += [conv(16, 56, 56, 3, 45, (1, 7, 7)), conv(16, 56, 56, 45, 64, (3, 1, 1))]
        norms += 45 + 64
    else:
        parts += [conv(16, 56, 56, 3, 64, (3, 7, 7))]
        norms += 64
    c_in, t, s = 64, 16, 56
    for c_out, dt, ds in ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 2, last_stride)):
        for block in range(2):
            for number in range(2):
                a = c_in if (block, number) == (0, 0) else c_out
                t_in = t
                if (block, number) == (0, 0):
                    t, s = t // dt, s // ds
                if factored:
                    mid = 27 * a * c_out // (9 * a + 3 * c_out)
                    parts += [
                        conv(t_in, s, s, a, mid, (1, 3, 3)),
                        conv(t, s, s, mid, c_out, (3, 1, 1)),
                    ]
                    norms += mid
                else:
                    parts += [conv(t, s, s, a, c_out, (3, 3, 3))]
                norms += c_out
            if block == 0 and c_in != c_out:
                parts += [conv(t, s, s, c_in, c_out, (1, 1, 1))]
                norms += c_out
        c_in = c_out
    weights = sum(p for p, _ in parts)
    return weights + 2 * norms, sum(m for _, m in parts)


@pytest.mark.parametrize(("kind", "factored"), [(R3D18, False), (R2Plus1D18, True)])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_counts_equal_a_count_by_hand(kind, factored, last_stride):
    counted = count(lambda: kind(last_stride=last_stride), 16, 112, 112)
    assert counted[:2] == by_hand(factored, last_stride)


@pytest.mark.parametrize("kind", [R3D18, R2Plus1D18])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_strides_and_channels_are_as_said(kind, last_stride):
    network = kind(**SMALL, last_stride=last_stride)
    maps = network.features(torch.rand(2, 3, 16, 32, 48), network.stages)
    assert list(maps) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    for name, value in maps.items():
        time, space = network.stage_strides[name]
        expected = (2, network.stage_channels[name], 16 // time, 32 // space, 48 // space)
        assert value.shape == expected, name
    assert network.stride == (8, 8 * last_stride)
    assert network.num_features == 32


@pytest.mark.parametrize("kind", [R3D18, R2Plus1D18])
def test_the_stride_changes_no_weight(kind):
    pretraining, downstream = kind(**SMALL, last_stride=1), kind(**SMALL, last_stride=2)
    downstream.load_state_dict(pretraining.state_dict())
    x = torch.rand(1, 3, 8, 32, 32)
    # Kernels of the last stage's first block meet the same pixels at every second place.
    first = [n.eval().features(x, ["layer3"])["layer3"] for n in (pretraining, downstream)]
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=0)
    shortcuts = [
        network.layer4[0].downsample(value)
        for network, value in zip((pretraining, downstream), first, strict=True)
    ]
    torch.testing.assert_close(shortcuts[0][..., ::2, ::2], shortcuts[1])


def test_downstream_form_has_stride_two_and_keeps_the_rest():
    network = R3D18(**SMALL, last_stride=1, norm_eps=1e-4)
    arguments = network.downstream()["init_args"]
    assert arguments == {**network.config["init_args"], "last_stride": 2}
    assert arguments["norm_eps"] == 1e-4
    assert network.config["init_args"]["last_stride"] == 1


def test_norms_are_ctps():
    for kind in (R3D18, R2Plus1D18):
        norms = [m for m in kind(**SMALL).modules() if isinstance(m, nn.BatchNorm3d)]
        assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.1)}


def test_no_pooling_and_no_bias():
    for kind in (R3D18, R2Plus1D18):
        modules = list(kind(**SMALL).modules())
        assert not any("Pool" in type(m).__name__ for m in modules)
        assert all(m.bias is None for m in modules if isinstance(m, nn.Conv3d))


def test_initial_weights_are_kaiming_normal_over_the_fan_out():
    torch.manual_seed(0)
    kernel = R3D18(depth=(1, 1, 1, 1), width=16).layer4[0].conv1[0].weight  # 64 to 128 channels
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / (27 * 128)), rel=0.02)
    assert abs(kernel.mean().item()) < 1e-3


def test_r3d_equals_torchvision_at_its_epsilon():
    torch.manual_seed(0)
    theirs = video.r3d_18().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = R3D18(norm_eps=1e-5).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state)
    x = torch.rand(1, 3, 4, 24, 24)
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(theirs.stem(x)))))
    torch.testing.assert_close(ours(x), expected)


def test_middle_widths_are_each_convolutions_own():
    # torchvision gives both convolutions of a block the first one's width.
    ours, theirs = R2Plus1D18(), video.r2plus1d_18()
    assert ours.layer2[0].conv1[0][0].out_channels == 230
    assert ours.layer2[0].conv2[0][0].out_channels == 288
    assert theirs.layer2[0].conv2[0][0].out_channels == 230


def test_all_parameters_receive_a_gradient():
    for kind in (R3D18, R2Plus1D18):
        network = kind(**SMALL)
        network(torch.rand(2, 3, 8, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"depth": (2, 2, 2)}, "depth must give the blocks of four stages"),
        ({"depth": (2, 2, 0, 2)}, "each at least 1"),
        ({"last_stride": 4}, "last_stride must be 2, or 1"),
        ({"pixels": ((0.5,), (0.5,))}, "pixels must be"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        R3D18(**arguments)
