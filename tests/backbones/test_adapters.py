import pytest
import torch
from pytorchvideo.models import hub
from pytorchvideo.models.resnet import create_resnet
from torch import nn
from torchvision.models import get_model, get_model_weights

from lightning_vssl.backbones import PytorchvideoNet, PytorchvideoResNet, TorchvisionVideo
from tests.backbones.counting import count

TORCHVISION = ["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "swin3d_s", "swin3d_b"]
PYTORCHVIDEO = [
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
SMALL = {"width": 4, "depth": (1, 1, 1, 1)}


def check_stages(network, clip):
    maps = network.features(clip, network.stages)
    for name, value in maps.items():
        time, space = network.stage_strides[name]
        expected = (clip.shape[2] // time, clip.shape[3] // space, clip.shape[4] // space)
        assert value.shape == (1, network.stage_channels[name], *expected), name
    assert network(clip).shape == maps[network.stages[-1]].shape


@pytest.mark.parametrize("name", TORCHVISION)
def test_stages_of_torchvision(name):
    with torch.device("meta"):
        check_stages(TorchvisionVideo(name).eval(), torch.zeros(1, 3, 16, 224, 160))


@pytest.mark.parametrize("name", PYTORCHVIDEO)
def test_stages_of_pytorchvideo(name):
    with torch.device("meta"):
        check_stages(PytorchvideoNet(name).eval(), torch.zeros(1, 3, 16, 224, 160))


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "s3d", "swin3d_t"])
def test_last_map_leads_to_torchvisions_own_output(name, monkeypatch):
    # Swin's truncated normal takes seconds to draw; any weights do here.
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)
    torch.manual_seed(0)
    theirs = get_model(name, weights=None).eval()
    ours = TorchvisionVideo(name).eval()
    state = theirs.state_dict()
    ours.net.load_state_dict({k: state[k] for k in ours.net.state_dict()})
    clip = torch.rand(1, 3, 16, 64, 64) if name == "s3d" else torch.rand(1, 3, 4, 32, 32)
    with torch.no_grad():
        out = ours(clip)
        if name == "s3d":  # its pooling wants a map of 2 x 7 x 7, so up to the map only
            torch.testing.assert_close(out, theirs.features(clip))
            return
        pooled = theirs.avgpool(out).flatten(1)
        head = theirs.head if name.startswith("swin") else theirs.fc
        torch.testing.assert_close(head(pooled), theirs(clip))


def test_pixels_are_the_ones_of_torchvisions_weights():
    for name in TORCHVISION:
        transform = get_model_weights(name).DEFAULT.transforms()
        with torch.device("meta"):
            mean, std = TorchvisionVideo(name).pixels
        assert (list(mean), list(std)) == (transform.mean, transform.std)


def test_last_map_leads_to_pytorchvideos_own_output():
    torch.manual_seed(0)
    theirs = hub.x3d_xs(pretrained=False).eval()
    ours = PytorchvideoNet("x3d_xs").eval()
    state = theirs.state_dict()
    ours.load_state_dict({key: state[key] for key in ours.state_dict()})
    clip = torch.rand(1, 3, 4, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(theirs.blocks[-1](ours(clip)), theirs(clip))


def test_cvrl_r3d50_has_the_papers_counts():
    parameters, macs, shape = count(PytorchvideoResNet, 16, 224, 224)
    assert abs(parameters - 31.672e6) < 0.0005e6
    assert abs(macs - 45.52e9) < 0.005e9
    assert shape == (1, 2048, 8, 7, 7)


def test_our_assembly_equals_create_resnet():
    theirs = create_resnet(
        model_depth=50,
        stem_conv_kernel_size=(5, 7, 7),
        stem_conv_stride=(2, 2, 2),
        stem_dim_out=8,
        stage_conv_a_kernel_size=((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1)),
        head=None,
    ).eval()
    ours = PytorchvideoResNet(width=8).eval()
    for parameter in theirs.parameters():  # the last norm of each block starts at zero
        parameter.data.add_(0.01)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(ours(clip), theirs(clip), rtol=0, atol=0)


def test_strides_and_dilations_of_the_r3d50():
    network = PytorchvideoResNet(
        **SMALL, stem_stride=(1, 2, 2), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)
    ).eval()
    assert network.stage_strides["layer4"] == (1, 8)
    check_stages(network, torch.rand(1, 3, 2, 64, 64))
    assert network.blocks[4].res_blocks[0].branch2.conv_b.dilation == (1, 4, 4)


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"])
def test_other_depths_are_torchvisions_with_blocks_left_out(name):
    """One block of the two that every stage has at least: the first ones have torchvision's."""
    with torch.device("meta"):
        theirs = get_model(name).state_dict()
        ours = TorchvisionVideo(name, depth=(1, 1, 1, 1))
    assert ours.config["init_args"]["depth"] == [1, 1, 1, 1]
    state = {key.removeprefix("net."): value.shape for key, value in ours.state_dict().items()}
    assert set(state) < set(theirs)
    assert all(theirs[key].shape == shape for key, shape in state.items())
    first = "features.0.0" if name == "swin3d_t" else "layer1.0"
    assert sum(key.startswith(first) for key in state) == sum(
        key.startswith(first) for key in theirs
    )


def test_the_published_depth_is_torchvisions_own_network():
    for name, depth in {"r2plus1d_18": (2, 2, 2, 2), "swin3d_t": (2, 2, 6, 2)}.items():
        torch.manual_seed(0)
        with torch.device("meta"):
            theirs = TorchvisionVideo(name)
            ours = TorchvisionVideo(name, depth=depth)
        assert str(ours.net) == str(theirs.net)


def test_narrow_networks():
    torch.manual_seed(0)
    for network, clip in (
        (TorchvisionVideo("swin3d_t", width=12, depth=(1, 1, 1, 1)), (8, 64, 32)),
        (TorchvisionVideo("r3d_18", depth=(1, 1, 1, 1)), (8, 32, 32)),
        (PytorchvideoNet("slow_r50", width=4), (4, 64, 64)),
        (PytorchvideoNet("r2plus1d_r50", width=4), (8, 32, 32)),
        (PytorchvideoNet("csn_r101", width=4), (8, 32, 32)),
    ):
        check_stages(network.eval(), torch.rand(1, 3, *clip))
        assert type(network)(**network.config["init_args"]).config == network.config


def test_configs_rebuild_the_networks():
    for network in (PytorchvideoResNet(**SMALL), PytorchvideoNet("x3d_xs")):
        rebuilt = type(network)(**network.config["init_args"])
        assert rebuilt.config == network.config
        assert rebuilt.state_dict().keys() == network.state_dict().keys()
    with torch.device("meta"):
        assert TorchvisionVideo("s3d").config == {
            "class_path": "lightning_vssl.backbones.TorchvisionVideo",
            "init_args": {"name": "s3d", "width": None, "depth": None},
        }


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"one of r3d_18, mc3_18, .* MViT is TorchvisionMViT"):
        TorchvisionVideo("mvit_v2_s")
    with pytest.raises(ValueError, match="MViT is PytorchvideoMViT"):
        PytorchvideoNet("mvit_base_16x4")
    with pytest.raises(ValueError, match="one of KINETICS400_V1, DEFAULT, or null; got"):
        TorchvisionVideo("r3d_18", weights="weights.pth")
    with pytest.raises(ValueError, match="one of slow_r50"):
        PytorchvideoNet("resnet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "r3d_18", "width": 8}, "width is for Swins; r3d_18"),
        ({"name": "swin3d_t", "width": 8}, "multiple of swin3d_t's 3 heads, got 8"),
        ({"name": "s3d", "depth": (1, 1, 1, 1)}, "depth is for ResNets and Swins; leave it null"),
        ({"name": "r3d_18", "depth": (1, 1)}, "depth must be four numbers"),
        (
            {"name": "r3d_18", "depth": (1, 1, 1, 1), "weights": "KINETICS400_V1"},
            "leave width and depth null",
        ),
    ],
)
def test_sizes_of_torchvisions_networks_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionVideo(**arguments)


@pytest.mark.parametrize("size", [(4, 17, 17), (5, 16, 17), (5, 17, 16)])
def test_s3d_refuses_clips_that_its_pools_leave_nothing_of(size):
    with torch.device("meta"):
        network = TorchvisionVideo("s3d").eval()
        assert network(torch.zeros(1, 3, 5, 17, 17)).shape[2:] == (1, 1, 1)
        with pytest.raises(ValueError, match="5 frames or more, of 17 x 17 pixels or more; got"):
            network(torch.zeros(1, 3, *size))


def test_width_is_not_for_x3d():
    with pytest.raises(ValueError, match="null for X3D; got 8 for x3d_xs"):
        PytorchvideoNet("x3d_xs", width=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"depth": (3, 4, 6)}, "depth must be 4 numbers"),
        ({"temporal_kernels": (1, 1, 2, 3)}, "temporal_kernels must be 4 odd numbers"),
        ({"stem_kernel": (4, 7, 7)}, "stem_kernel must be 3 odd numbers"),
        ({"stem_stride": (1, 2, 1)}, "alike in height and width"),
    ],
)
def test_arguments_of_the_r3d50_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        PytorchvideoResNet(**arguments)
