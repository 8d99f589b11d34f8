"""MViT against torchvision's and pytorchvideo's own networks."""

import itertools

import pytest
import torch
from pytorchvideo.models import hub
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model
from torchvision.models.video.mvit import PositionalEncoding

from lightning_vssl.backbones import PytorchvideoMViT, TorchvisionMViT, load_weights
from lightning_vssl.optim import parameter_groups

SMALL = {"width": 8, "depth": (1, 1, 2, 1), "clip": (4, 32, 32)}
KINDS = {
    "mvit_v1_b": TorchvisionMViT,
    "mvit_v2_s": TorchvisionMViT,
    "mvit_base_16x4": PytorchvideoMViT,
    "mvit_base_32x3": PytorchvideoMViT,
}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """A truncated normal takes seconds to draw; any weights do here."""
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)
    torch.manual_seed(0)


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def theirs_of(name, clip):
    """The library's own network, told to take a smaller clip than its builder allows."""
    frames, height, width = clip
    if KINDS[name] is PytorchvideoMViT:
        return getattr(hub, name)(spatial_size=(height, width), temporal_size=frames).eval()
    network = get_model(name).eval()
    grid = ((height // 4, width // 4), frames // 2)
    if name == "mvit_v1_b":
        network.pos_encoding = PositionalEncoding(96, *grid, rel_pos_embed=False)
        for table in network.pos_encoding.parameters():
            nn.init.normal_(table)
    else:
        network.pos_encoding.spatial_size, network.pos_encoding.temporal_size = grid
    return network


def tokens_of(network, clip):
    """What the network's last norm gives: class token first."""
    seen = []
    norm = network.norm if hasattr(network, "norm") else network.norm_embed
    with norm.register_forward_hook(lambda *args: seen.append(args[2])), torch.no_grad():
        network(clip)
    return seen[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mvit_v1_b", (4, 64, 64)),
        ("mvit_v2_s", (6, 96, 32)),  # its relative positions are scaled from 16 x 224 x 224
        ("mvit_base_16x4", (4, 64, 64)),
    ],
)
def test_map_is_made_of_the_librarys_own_tokens(name, size, tmp_path):
    theirs = theirs_of(name, size)
    ours = KINDS[name](name, **({} if name == "mvit_v2_s" else {"clip": size})).eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    report = load_weights(ours, tmp_path / "theirs.safetensors", echo=False)
    assert not report.missing
    assert all(key.startswith("head.") for key in report.unexpected)
    clip = rand(2, 3, *size)
    tokens = tokens_of(theirs, clip)  # (2, 1 + T'*h*w, 768)
    with torch.no_grad():
        found = ours(clip)
    places = list(
        itertools.product(range(size[0] // 2), range(size[1] // 32), range(size[2] // 32))
    )
    assert found.shape == (2, 768, *(last + 1 for last in places[-1]))
    for number, place in enumerate(places, start=1):
        torch.testing.assert_close(found[(..., *place)], tokens[:, number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "published"), [("mvit_v1_b", 36_610_672), ("mvit_v2_s", 34_537_744)]
)
def test_parameters_are_as_many_as_torchvision_states(name, published):
    with torch.device("meta"):
        count = sum(p.numel() for p in TorchvisionMViT(name).parameters())
    assert count + 768 * 400 + 400 == published


@pytest.mark.parametrize("name", KINDS)
def test_stages_gradients_and_config(name):
    network = KINDS[name](name, **SMALL).train()
    clip = rand(2, 3, *SMALL["clip"])
    maps = network.features(clip, network.stages)
    assert list(maps) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    for stage, one in maps.items():
        time, space = network.stage_strides[stage]
        side = 32 // space
        assert one.shape == (2, network.stage_channels[stage], 4 // time, side, side), stage
    network.eval()(clip).square().sum().backward()
    assert not [key for key, one in network.named_parameters() if one.grad is None]
    with torch.device("meta"):  # as an export builds it
        rebuilt = type(network)(**network.config["init_args"])
    assert rebuilt.config == network.config
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == shapes
    assert all(value.is_meta for value in rebuilt.state_dict().values())


def test_decay_spares_positions_and_the_class_token():
    for name, wanted in {"mvit_v1_b": 4, "mvit_v2_s": 1 + 3 * 5, "mvit_base_16x4": 4}.items():
        network = KINDS[name](name, **SMALL)
        assert len(network.no_weight_decay()) == wanted
        spared = {id(one) for one in parameter_groups(network)[1]["params"]}
        places = [p for key, p in network.named_parameters() if "pos" in key or "token" in key]
        norms = [p for key, p in network.named_parameters() if "norm" in key]
        assert {id(one) for one in (*places, *norms)} <= spared


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_base_16x4"])
def test_tables_of_positions_refuse_other_clips(name):
    with pytest.raises(ValueError, match=r"takes clips of 4 x 32 x 32 .* got 4 x 32 x 64"):
        KINDS[name](name, **SMALL)(rand(1, 3, 4, 32, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mvit_v3"}, "one of mvit_v1_b, mvit_v2_s; got 'mvit_v3'"),
        ({"width": 0}, "width must be at least [18], got 0"),
        ({"depth": (1, 2, 11)}, "depth must be four numbers"),
        ({"clip": (5, 32, 32)}, "multiples of 2, 4 and 4; got"),
        ({"weights": "IMAGENET"}, "one of KINETICS400_V1, DEFAULT, or null; got"),
        ({"weights": "KINETICS400_V1", "width": 48}, "need the published width"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionMViT(**arguments)
    if not arguments.keys() & {"weights", "name"}:
        with pytest.raises(ValueError, match=message):
            PytorchvideoMViT(**arguments)
