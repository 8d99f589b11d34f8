"""The networks of RSPNet and PreViTS, against others written from a description of their files."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

from lightning_vssl.backbones import (
    C3D,
    S3DG,
    HaraR3D18,
    R2Plus1D10,
    TimmNet,
    export,
    load_backbone,
    load_head,
    load_weights,
)
from lightning_vssl.backbones.naming import recognise
from lightning_vssl.nn.heads import MLP
from tests.backbones import official_rspnet as official
from tests.backbones.counting import count
from tests.backbones.official_rspnet import checkpoint, scrambled

# Network, the stand-in, side of a frame, parameters (M) and multiply-adds (G) of the released
# networks without classifiers, last map of 16 frames.
FACTS = [
    (S3DG, official.S3DG, 224, 8.68, 17.0, (1, 1024, 2, 7, 7)),
    (C3D, official.C3D, 112, 27.66, 38.5, (1, 512, 2, 7, 7)),
    (R2Plus1D10, official.R2Plus1D, 112, 14.37, 21.4, (1, 512, 2, 7, 7)),
    (HaraR3D18, official.R18, 112, 33.20, 8.3, (1, 512, 1, 4, 4)),
]
SMALL = {
    S3DG: {"width": 8, "depth": (1, 1, 1)},
    C3D: {"width": 4, "depth": (1, 1, 1, 1, 1)},
    R2Plus1D10: {"width": 4},
    HaraR3D18: {"width": 4, "depth": (1, 1, 1, 1)},
}
NAMES = [
    (S3DG, official.S3DG, "fc", "RSPNet's names of S3D-G"),
    (C3D, official.C3D, "linear", "RSPNet's names of C3D"),
    (R2Plus1D10, official.R2Plus1D, "linear", "VCOP's names"),
    (HaraR3D18, official.R18, "fc", "torchvision's names of a 2-D ResNet"),
]
WIDTH = {official.S3DG: 16}  # every width of S3D-G stays a whole number
each = pytest.mark.parametrize("kind", list(SMALL))


@pytest.fixture
def clip():
    return torch.rand(2, 3, 16, 64, 64, generator=torch.Generator().manual_seed(1))


# Counts


@pytest.mark.parametrize(("kind", "theirs", "side", "parameters", "macs", "shape"), FACTS)
def test_counts_are_the_released_networks(kind, theirs, side, parameters, macs, shape):
    counted = count(kind, 16, side, side)
    assert round(counted[0] / 1e6, 2) == parameters
    assert round(counted[1] / 1e9, 1) == macs
    assert counted[2] == shape


@pytest.mark.parametrize(("kind", "theirs"), [row[:2] for row in FACTS])
def test_counts_equal_the_stand_ins(kind, theirs):
    def flops(network):
        with FlopCounterMode(display=False) as counter:
            network(x)
        return counter.get_total_flops()

    with torch.device("meta"):
        network, ours = theirs().eval(), kind().eval()
        x = torch.zeros(1, 3, 16, 64, 64)
    sizes = [sorted(p.numel() for p in n.parameters()) for n in (network, ours)]
    assert sizes[0] == sizes[1]
    assert flops(network) == flops(ours)


def test_the_tables_other_numbers():
    # With UCF-101's classifier: 8.78 M and 14.42 M, where the papers print 9.6 M and 14.4 M.
    assert round((count(S3DG, 16, 64, 64)[0] + 1025 * 101) / 1e6, 2) == 8.78
    assert round((count(R2Plus1D10, 16, 64, 64)[0] + 513 * 101) / 1e6, 2) == 14.42
    # The papers' 33.4 M for C3D are those of torchvision's R3D-18 with 400 classes.
    with torch.device("meta"):
        wrong = get_model("r3d_18", weights=None)
    assert round(sum(p.numel() for p in wrong.parameters()) / 1e6, 1) == 33.4


# Files


@pytest.mark.parametrize(("kind", "theirs", "classifier", "naming"), NAMES)
def test_official_checkpoint_gives_the_official_output(
    kind, theirs, classifier, naming, tmp_path, clip
):
    torch.manual_seed(0)
    width = WIDTH.get(theirs, 4)
    network = scrambled(theirs(width))
    ours = kind(width=width)
    torch.save(checkpoint(network, ours.num_features, classifier), tmp_path / "pretrained.pth.tar")
    report = load_weights(ours, tmp_path / "pretrained.pth.tar", echo=False)
    with torch.no_grad():
        expected = network(clip)
        assert (expected[0] - expected[1]).abs().max() > 0.01
        torch.testing.assert_close(ours.eval()(clip), expected, rtol=0, atol=1e-5)
    assert report.naming == f"{naming}, below encoder_q.encoder"
    assert (report.loaded, report.missing) == (len(ours.state_dict()), ())
    assert f"{classifier}.weight" in report.unexpected
    assert {"encoder_q.fc1.2.weight", "queue"} <= set(report.unexpected)


@pytest.mark.parametrize(("kind", "theirs", "classifier", "naming"), NAMES)
def test_official_names_at_full_size_all_fit(kind, theirs, classifier, naming):
    with torch.device("meta"):
        state, wanted = theirs().state_dict(), kind().state_dict()
    renamed, found = recognise(state, wanted)
    assert found == naming
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in wanted.items()}


def test_official_names_are_the_ones_of_the_official_files():
    names = set(official.S3DG(16).state_dict())
    assert "feature.sepConv1.sep_conv.0.conv3d.weight" in names
    assert "feature.sepConv1.excitation.bias" in names
    assert "feature.sepInc_3b.branch1.1.sep_conv.1.bn.running_var" in names
    assert "feature.sepInc_5c.branch3.1.conv3d.weight" in names
    names = set(official.R2Plus1D(4).state_dict())
    assert "conv1.spatial_conv.weight" in names
    assert "conv3.block1.downsampleconv.temporal_conv.weight" in names
    assert "conv5.block1.downsamplebn.weight" in names
    assert "conv3a.bias" in official.C3D(4).state_dict()
    assert "layer2.0.downsample.1.bias" in official.R18(4).state_dict()


def test_a_file_of_another_of_these_networks_is_refused_by_name(tmp_path):
    content = checkpoint(scrambled(official.C3D(4)), 32, "linear")
    torch.save(content, tmp_path / "c3d.pth.tar")
    for kind in (S3DG, R2Plus1D10, HaraR3D18):
        ours = kind(**SMALL[kind])
        before = {key: value.clone() for key, value in ours.state_dict().items()}
        with pytest.raises(ValueError, match=f"c3d.pth.tar .* {kind.__name__}"):
            load_weights(ours, tmp_path / "c3d.pth.tar")
        assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


def test_export_keeps_both_heads_under_our_names(tmp_path, clip):
    torch.manual_seed(0)
    network = scrambled(official.C3D(4))
    content = checkpoint(network, 32, "linear")
    torch.save(content, tmp_path / "previts.pth.tar")
    report = export(
        tmp_path / "previts.pth.tar", tmp_path / "out", backbone=C3D(width=4), method="PreViTS"
    )
    assert report.heads == ("projector", "speed_head")
    state, pooled = content["model"], torch.rand(2, 32)
    for name, theirs in (("projector", "fc1"), ("speed_head", "fc2")):
        head = load_head(report.folder, name)
        assert isinstance(head, MLP)
        weight, bias = (state[f"encoder_q.{theirs}.2.{key}"] for key in ("weight", "bias"))
        torch.testing.assert_close(head(pooled), pooled @ weight.T + bias)
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(report.folder)(clip), network(clip))


def test_previts_image_network_has_one_trained_head(tmp_path):
    torch.manual_seed(0)
    network = scrambled(get_model("resnet18", weights=None))
    state = network.state_dict()
    content = checkpoint(network, 512, "fc")
    torch.save(content, tmp_path / "image.pth.tar")
    ours = TimmNet("resnet18")
    report = export(tmp_path / "image.pth.tar", tmp_path / "out", backbone=ours)
    assert report.heads == ("projector",)
    assert torch.equal(ours.net.conv1.weight, state["conv1.weight"])


# The networks


@each
def test_strides_and_channels_are_as_said(kind, clip):
    network = kind(**SMALL[kind]).eval()
    maps = network.features(clip, network.stages)
    assert list(maps) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    for name, value in maps.items():
        time, space = network.stage_strides[name]
        expected = (2, network.stage_channels[name], 16 // time, 64 // space, 64 // space)
        assert value.shape == expected, name
    assert torch.equal(network(clip), maps["layer4"])


@each
def test_config_rebuilds_the_network(kind):
    network = kind(**SMALL[kind])
    config = network.config
    assert config["class_path"] == f"lightning_vssl.backbones.{kind.__name__}"
    rebuilt = kind(**config["init_args"])
    assert rebuilt.config == config == network.downstream()
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (network, rebuilt)]
    assert shapes[0] == shapes[1]


@each
def test_all_parameters_receive_a_gradient(kind, clip):
    network = kind(**SMALL[kind])
    network(clip).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_s3d_without_gates_is_torchvisions(tmp_path, clip):
    torch.manual_seed(0)
    theirs = scrambled(get_model("s3d", weights=None))
    torch.save(theirs.state_dict(), tmp_path / "s3d.pth")
    ours = S3DG(gates=False, stem="temporal").eval()
    report = load_weights(ours, tmp_path / "s3d.pth", echo=False)
    assert report.naming == "torchvision's names of S3D"
    assert {key.split(".")[0] for key in report.unexpected} == {"classifier"}
    with torch.no_grad():
        expected = theirs.features(clip)
        assert (expected[0] - expected[1]).abs().max() > 0.1
        torch.testing.assert_close(ours(clip), expected)
        released = S3DG(gates=False).eval()
        released.load_state_dict(ours.state_dict())
        assert (released(clip) - expected).abs().max() > 0.1


def test_the_released_stem_sees_every_second_frame(clip):
    network = S3DG(**SMALL[S3DG]).eval()
    published = S3DG(**SMALL[S3DG], stem="temporal").eval()
    published.load_state_dict(network.state_dict())
    other = clip.clone()
    other[:, :, 1::2] = 0
    assert torch.equal(network(clip), network(other))
    assert not torch.allclose(published(clip), published(other))
    other[:, :, 2] = 0
    assert not torch.allclose(network(clip), network(other))


@each
def test_an_untouched_network_lets_the_clip_through(kind, clip):
    torch.manual_seed(0)
    out = kind(**SMALL[kind]).eval()(clip)  # PyTorch's own initial weights leave 1e-6
    assert (out[0] - out[1]).abs().max() > 0.01


def test_norms_are_the_released_ones():
    def norms(kind):
        modules = kind(**SMALL[kind]).modules()
        return {(m.eps, m.momentum) for m in modules if isinstance(m, nn.BatchNorm3d)}

    assert norms(S3DG) == {(1e-3, 0.001)}
    assert norms(C3D) == norms(R2Plus1D10) == norms(HaraR3D18) == {(1e-5, 0.1)}
    fast = S3DG(**SMALL[S3DG], norm_momentum=0.1)
    assert fast.stem[0][1].momentum == 0.1


def test_only_c3d_and_gates_have_biases():
    def biased(kind):
        modules = kind(**SMALL[kind]).named_modules()
        convs = [(n, m) for n, m in modules if isinstance(m, nn.Conv3d)]
        return {n for n, m in convs if m.bias is not None}, len(convs)

    names, count_ = biased(C3D)
    assert len(names) == count_ == 5
    assert biased(R2Plus1D10)[0] == biased(HaraR3D18)[0] == set()
    # The stem, layer1's, and two in each of the three blocks.
    assert len(biased(S3DG)[0]) == 8
    assert all(name.endswith("2.conv") for name in biased(S3DG)[0])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (S3DG, {"width": 0}, "width must be at least 1; got 0"),
        (S3DG, {"depth": (2, 5)}, "depth must be three numbers"),
        (S3DG, {"depth": (2, 6, 2)}, r"up to \(2, 5, 2\); got"),
        (S3DG, {"stem": "both"}, "stem must be spatial or temporal"),
        (S3DG, {"norm_momentum": 0.0}, "norm_momentum must be above 0"),
        (C3D, {"width": 0}, "width must be at least 1"),
        (C3D, {"depth": (1, 1, 2, 2)}, "convolutions of five stages"),
        (R2Plus1D10, {"depth": (1, 1, 1)}, "blocks of four stages"),
        (HaraR3D18, {"width": 0}, "width must be at least 1"),
        (HaraR3D18, {"pixels": ((0.5,), (0.5,))}, "pixels must be"),
    ],
)
def test_arguments_are_checked(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_a_2d_resnet18_is_inflated_into_haras(tmp_path):
    torch.manual_seed(0)
    theirs = get_model("resnet18", weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = HaraR3D18()
    report = load_weights(ours, tmp_path / "resnet18.pth", inflate=True, echo=False)
    assert (report.missing, report.unexpected) == ((), ("fc.weight", "fc.bias"))
    torch.testing.assert_close(ours.stem[0].weight.sum(2), theirs.conv1.weight)
    torch.testing.assert_close(ours.layer3[0].conv2[0].weight.sum(2), theirs.layer3[0].conv2.weight)
    with pytest.raises(ValueError, match="no kernels that a 2-D ResNet's could be inflated to"):
        load_weights(R2Plus1D10(width=4), tmp_path / "resnet18.pth", inflate=True)
