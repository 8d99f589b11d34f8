"""Strides taken out: equal maps at the places that were there before, and what is refused."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from lightning_vssl.backbones import (
    C3D,
    R3D18,
    S3DG,
    PytorchvideoResNet,
    R2Plus1D18,
    TimmNet,
    TorchvisionVideo,
    YResNet,
)
from lightning_vssl.backbones.restride import restride

SMALL = {"width": 4, "depth": (1, 2, 2, 1)}


def _resnet18():
    return TimmNet("resnet18", width=8)


NETWORKS = {
    "resnet18": (_resnet18, ("layer3", "layer4")),
    "resnet50": (lambda: TimmNet("resnet50", width=4), ("layer4",)),
    "regnet": (lambda: TimmNet("regnetx_002"), ("layer4",)),
    "R3D": (lambda: R3D18(width=4, last_stride=2), ("layer3", "layer4")),
    "R(2+1)D": (lambda: R2Plus1D18(width=4, last_stride=2), ("layer3", "layer4")),
    "Slow": (lambda: PytorchvideoResNet(**SMALL), ("layer3", "layer4")),
    "Y, local": (lambda: YResNet(endpoint="local", **SMALL), ("layer3", "layer4")),
    "S3D": (lambda: S3DG(width=8, gates=False), ("layer3", "layer4")),
    "C3D": (lambda: C3D(width=4), ("layer3", "layer4")),
    "torchvision": (lambda: TorchvisionVideo("mc3_18"), ("layer4",)),
}


def _made(build):
    torch.manual_seed(0)
    network = build().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network


def _picture(network, side):
    frames = (2 * network.stride[0],) if network.dims == 3 else ()
    return torch.randn(1, 3, *frames, side, side, dtype=torch.float64)


@pytest.mark.parametrize(("build", "stages"), NETWORKS.values(), ids=NETWORKS)
def test_maps_are_equal_at_the_old_places(build, stages):
    network = _made(build)
    before, weights = network.stride, list(network.state_dict())
    x = _picture(network, 4 * before[1])
    with torch.no_grad():
        sparse = network(x)
        restride(network, stages)
        dense = network(x)
    step = 2 ** len(stages)
    assert network.stride == (before[0], before[1] // step)
    assert dense.shape[-2:] == (x.shape[-2] // network.stride[1], x.shape[-1] // network.stride[1])
    torch.testing.assert_close(dense[..., ::step, ::step], sparse, rtol=0, atol=1e-10)
    assert list(network.state_dict()) == weights


def test_it_is_torchvision_s_dilated_resnet():
    torch.manual_seed(0)
    theirs = resnet50(replace_stride_with_dilation=[False, True, True]).double().eval()
    ours = TimmNet("resnet50").double().eval()
    ours.net.load_state_dict(theirs.state_dict(), strict=False)
    restride(ours, ["layer3", "layer4"])
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-10)


def test_own_dilates_the_first_block_as_the_rest():
    network = TimmNet("resnet18", width=8)
    restride(network, ["layer3", "layer4"], first="own")
    for stage, dilation in (("layer2", 1), ("layer3", 2), ("layer4", 4)):
        blocks = network.net.get_submodule(stage)
        kernels = [one for one in blocks.modules() if getattr(one, "kernel_size", 0) == (3, 3)]
        assert {one.dilation for one in kernels} == {(dilation, dilation)}
        assert {one.padding for one in kernels} == {(dilation, dilation)}


def test_without_dilation_kernels_stay_compact():
    network = TimmNet("resnet18", width=8)
    restride(network, ["layer3"], dilate=False)
    convolutions = [one for one in network.modules() if isinstance(one, nn.Conv2d)]
    assert {one.dilation for one in convolutions} == {(1, 1)}
    assert network.stage_strides["layer4"] == (1, 16)
    assert network(torch.zeros(2, 3, 64, 64)).shape[-2:] == (4, 4)


def test_a_pooled_network_keeps_its_mode_and_takes_a_gradient():
    network = S3DG(width=8).train()
    network.layer1.eval()
    restride(network, ["layer4"])
    assert network.layer4.training
    assert not network.layer1.training
    network(torch.randn(2, 3, 16, 64, 64)).sum().backward()
    assert network.stem[0][0].weight.grad.isfinite().all()


def test_the_export_is_of_the_network_that_was_trained():
    network = PytorchvideoResNet(**SMALL)
    before = network.config
    restride(network, ["layer4"])
    assert network.config == before


@pytest.mark.parametrize(
    ("build", "stages", "complaint"),
    [
        (_resnet18, ["layer5"], "stages must be among layer1, layer2, layer3, layer4"),
        (_resnet18, ["stem"], "stages must be among"),
        (_resnet18, ["layer1"], "layer1 has no stride to take out"),
        (_resnet18, ["layer4", "layer4"], "no stride to take out"),
        (lambda: TimmNet("swin_tiny_patch4_window7_224", width=12), ["layer4"], "leads to stride"),
        (lambda: TimmNet("resnet18d", width=8), ["layer4"], "cannot do without"),
        (lambda: TimmNet("convnext_atto"), ["layer4"], "cannot do without"),
        (lambda: YResNet(**SMALL), ["layer4"], "was not run"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_the_network(build, stages, complaint):
    network = build()
    strides = [one.stride for one in network.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)]
    with pytest.raises(ValueError, match=complaint):
        restride(network, stages)
    after = [one.stride for one in network.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)]
    assert after == strides


def test_first_must_be_known():
    with pytest.raises(ValueError, match="previous or own"):
        restride(_resnet18(), ["layer4"], first="mine")
