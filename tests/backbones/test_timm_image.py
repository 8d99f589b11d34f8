"""Image networks against timm's own, torchvision's names, and the numbers that are published."""

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers.norm_act import BatchNormAct2d

from lightning_vssl.backbones import TimmNet, export, load_backbone, load_weights

SWIN = "swin_small_patch4_window7_224"
SMALL = {"resnet50": {"width": 4, "depth": (1, 1, 2, 1)}, SWIN: {"width": 6, "depth": (1, 2, 1, 1)}}


def counted(module):
    return sum(p.numel() for p in module.parameters())


def small(name, **more):
    torch.manual_seed(0)
    return TimmNet(name, **SMALL[name], **more).eval()


def images(size=64, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "millions", "channels"),
    [("resnet50", 23.508, (64, 256, 512, 1024, 2048)), (SWIN, 48.837, (96, 96, 192, 384, 768))],
)
def test_parameters_channels_and_strides(name, millions, channels):
    with torch.device("meta"):
        net = TimmNet(name)
    assert counted(net) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert tuple(net.stage_channels.values()) == channels
    assert net.stages == ("stem", "layer1", "layer2", "layer3", "layer4")
    assert [s for _, s in net.stage_strides.values()] == [4, 4, 8, 16, 32]
    assert net.num_features == channels[-1]
    assert net.dims == 2


@pytest.mark.parametrize("name", SMALL)
def test_maps_have_the_channels_and_strides_stated(name):
    net, x = small(name), images(64)
    maps = net.features(x, net.stages)
    for stage, one in maps.items():
        size = 64 // net.stage_strides[stage][1]
        assert one.shape == (2, net.stage_channels[stage], size, size)
    assert torch.equal(maps["layer4"], net(x))
    assert list(net.features(x, ["layer4", "layer3"])) == ["layer3", "layer4"]


@pytest.mark.parametrize("name", SMALL)
def test_maps_equal_timms_features(name):
    net, x = small(name), images(224, 1)
    arguments = {"resnet50": ("channels", "layers"), SWIN: ("embed_dim", "depths")}[name]
    width = (4, 8, 16, 32) if name == "resnet50" else 6
    values = dict(zip(arguments, (width, SMALL[name]["depth"]), strict=True))
    peer = timm.create_model(name, num_classes=0, **values).eval()
    peer.load_state_dict({k.removeprefix("net."): v for k, v in net.state_dict().items()})
    wanted = peer.forward_intermediates(x, norm=True, intermediates_only=True)[-4:]
    found = net.features(x, net.stages[1:])
    for ours, theirs in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    pooled = peer(x)
    torch.testing.assert_close(net(x).mean((2, 3)), pooled)


@pytest.mark.parametrize("size", [32, 96, 128])
def test_swin_takes_other_sizes(size):
    net = small(SWIN)
    assert net(images(size)).shape == (2, 48, size // 32, size // 32)


def test_torchvisions_resnet_loads_and_gives_its_features(tmp_path):
    torch.manual_seed(2)
    peer = torchvision.models.resnet18().eval()
    torch.save(peer.state_dict(), tmp_path / "resnet18.pth")
    net = TimmNet("resnet18").eval()
    report = load_weights(net, tmp_path / "resnet18.pth", echo=False)
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert not report.missing
    x = images()
    peer.fc = torch.nn.Identity()
    torch.testing.assert_close(net(x).mean((2, 3)), peer(x))


@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "convnext_atto", "efficientnet_b0", "densenet121",
     "vit_tiny_patch16_224", "maxvit_pico_rw_256", "swinv2_cr_tiny_ns_224"],
)  # fmt: skip
def test_timms_own_files_load(name, tmp_path):
    torch.manual_seed(3)
    peer = timm.create_model(name).eval()
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    net = TimmNet(name).eval()
    report = load_weights(net, tmp_path / "model.safetensors", echo=False)
    assert not report.missing
    size = peer.default_cfg["input_size"][-1]
    maps = net.features(images(size, 1), net.stages)
    for stage, one in maps.items():
        side = size // net.stage_strides[stage][1]
        assert one.shape == (1, net.stage_channels[stage], side, side)
    if name == "convnext_atto":
        wanted = peer.forward_intermediates(images(size, 1), intermediates_only=True)
        torch.testing.assert_close(maps["layer4"], wanted[-1])


VITS = [
    "vit_tiny_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch16_dinov3",  # rotary positions, registers
    "deit_tiny_distilled_patch16_224",  # two tokens in front
    "vit_base_patch16_siglip_224",  # pooled by attention
    "vit_medium_patch16_gap_256",  # no class token
    "vit_base_patch16_clip_224",  # a norm before the blocks
    "eva02_tiny_patch14_224",
]


@pytest.mark.parametrize("name", VITS)
def test_maps_of_plain_transformers_are_timms_tokens(name):
    torch.manual_seed(0)
    peer = timm.create_model(name, embed_dim=48, depth=8, dynamic_img_size=True).eval()
    net = TimmNet(name, width=48, depth=(2, 2, 2, 2)).eval()
    theirs = peer.state_dict()
    net.net.load_state_dict({key: theirs[key] for key in net.net.state_dict()})
    assert {key.split(".")[0] for key in theirs if key not in net.net.state_dict()} <= set(
        net.classifiers
    )
    patch = net.stride[1]
    x = images(5 * patch)[..., : 3 * patch]
    maps = net.features(x, net.stages)
    tokens = peer.forward_features(x)[:, peer.num_prefix_tokens :]  # (B, 15, C)
    for row in range(5):
        for column in range(3):
            torch.testing.assert_close(
                maps["layer4"][:, :, row, column], tokens[:, 3 * row + column]
            )
    between = peer.forward_intermediates(x, indices=[1, 3, 5], intermediates_only=True)
    for stage, one in zip(("layer1", "layer2", "layer3"), between, strict=True):
        torch.testing.assert_close(maps[stage], one)
        torch.testing.assert_close(net.features(x, [stage])[stage], one)
    assert torch.equal(net(x), maps["layer4"])


@pytest.mark.parametrize("name", VITS)
def test_transformers_take_any_size_and_use_all_they_have(name):
    net = TimmNet(name, width=48, depth=(1, 1, 1, 1))
    patch = net.stride[1]
    x = images(4 * patch)[..., : 3 * patch - 5]
    padded = torch.nn.functional.pad(x, (0, 5, 0, 0))
    net.eval()
    torch.testing.assert_close(net(x), net(padded), rtol=0, atol=0)
    net.train()(x).square().sum().backward()
    assert not [name for name, one in net.named_parameters() if one.grad is None]


def test_vfs_names_load(tmp_path):
    net = small("resnet50")
    named = {}
    for key, value in net.state_dict().items():
        key = key.removeprefix("net.")
        for number in "123":
            key = key.replace(f"bn{number}.", f"conv{number}.bn.")
            key = key.replace(f"conv{number}.w", f"conv{number}.conv.w")
        key = key.replace("downsample.0.", "downsample.conv.")
        named[f"backbone.{key.replace('downsample.1.', 'downsample.bn.')}"] = value + 1
    torch.save({"state_dict": named}, tmp_path / "vfs.pth")
    other = small("resnet50")
    report = load_weights(other, tmp_path / "vfs.pth", echo=False)
    assert "mmaction" in report.naming
    assert torch.equal(
        other.state_dict()["net.conv1.weight"], net.state_dict()["net.conv1.weight"] + 1
    )


@pytest.mark.parametrize(
    "name", ["regnety_002", "efficientnet_b0", "resnetv2_50", "densenet121", "resnet18"]
)
def test_sync_batchnorm_leaves_the_activations(name):
    """timm's norms with an activation inside lost it under Lightning's sync_batchnorm: true."""
    torch.manual_seed(0)
    peer = timm.create_model(name, features_only=True).eval()
    joint = [m for m in peer.modules() if isinstance(m, BatchNormAct2d)]
    assert bool(joint) == (name != "resnet18")
    net = TimmNet(name).eval()
    if joint:
        assert list(net.net.state_dict()) == list(peer.state_dict())
        net.net.load_state_dict(peer.state_dict())
    x = images(64)
    with torch.no_grad():
        wanted = net.features(x, net.stages)
        if joint:
            for ours, theirs in zip(wanted.values(), peer(x), strict=True):
                assert torch.equal(ours, theirs)
        names = list(net.state_dict())
        synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in synced.modules())
        for ours, theirs in zip(
            synced.features(x, net.stages).values(), wanted.values(), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert list(synced.state_dict()) == names
    net.load_state_dict(synced.state_dict())


def test_a_norm_held_apart_trains_as_timms():
    torch.manual_seed(0)
    peer = timm.create_model("test_efficientnet", features_only=True).train()
    net = TimmNet("test_efficientnet").train()
    net.net.load_state_dict(peer.state_dict())
    for model in (peer, net.net):
        model(images(64))[-1].square().mean().backward()
    for ours, theirs in zip(net.parameters(), peer.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert torch.equal(ours.grad, theirs.grad)
    for name, value in net.net.state_dict().items():
        assert torch.equal(value, peer.state_dict()[name]), name
    with pytest.raises(RuntimeError, match="Missing"):
        net.net.load_state_dict({k: v for k, v in peer.state_dict().items() if "bn1" not in k})


@pytest.mark.parametrize("name", SMALL)
def test_export_and_back(name, tmp_path):
    net = small(name, pixels=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    export_of(net, tmp_path)
    again = load_backbone(tmp_path / "out")
    assert again.config == net.config
    assert again.pixels == net.pixels
    x = images()
    assert torch.equal(again(x), net(x))


def export_of(net, folder):
    from lightning_vssl.backbones.weights import export_record

    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    checkpoint = {"state_dict": state, "export": export_record("Tiny", net)}
    torch.save(checkpoint, folder / "last.ckpt")
    export(folder / "last.ckpt", folder / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet51"}, r"name must be a network of timm, got 'resnet51'"),
        ({"name": "convnext_atto", "width": 8}, "width is for ResNets, Swins and plain vision"),
        ({"name": SWIN, "width": 7}, "multiple of .* 3 heads, got 7"),
        ({"name": "vit_tiny_patch16_224", "width": 7}, "no vit_tiny_patch16_224 of width 7"),
        ({"name": "vit_tiny_patch16_224", "depth": (1, 1, 2, 1)}, "the same number in each stage"),
        ({"width": 0}, "width must be at least 1"),
        ({"depth": (3, 4)}, "depth must be four numbers"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"name": "vgg11", "drop_path": 0.1}, "timm gives no feature maps of vgg11 as asked"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmNet(**arguments)


def test_what_does_not_run_in_stages_says_so():
    with pytest.raises(ValueError, match="runs as a whole"):
        TimmNet("convnext_atto").stage("layer1", images())
    with pytest.raises(ValueError, match="layer1, layer2, layer3, layer4; got"):
        TimmNet("convnext_atto").features(images(), ["stem"])
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        small("resnet50")(images()[:, :, None])
