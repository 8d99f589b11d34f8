import pytest
import torch
from timm import create_model
from torch import nn
from torchvision.models import ResNet, resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from lightning_vssl import cli
from lightning_vssl.backbones import (
    R3D18,
    Backbone,
    PytorchvideoResNet,
    R2Plus1D18,
    TimmNet,
    export,
    load_weights,
)
from lightning_vssl.backbones.inflate import inflate_kernel, inflate_resnet, is_resnet_2d
from lightning_vssl.backbones.weights import stamp
from lightning_vssl.evaluation.base import pretrained
from lightning_vssl.evaluation.recognition import FineTune


def scramble(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def maps_2d(network: ResNet, image: torch.Tensor) -> torch.Tensor:
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


def test_an_inflated_kernel_sums_to_the_flat_one_and_is_even_in_time():
    weight = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    inflated = inflate_kernel(weight, 3)
    assert inflated.shape == (2, 3, 3, 5, 5)
    torch.testing.assert_close(inflated.sum(2), weight)
    assert torch.equal(inflated[:, :, 0], inflated[:, :, 2])
    with pytest.raises(ValueError, match="must be"):
        inflate_kernel(inflated, 3)
    with pytest.raises(ValueError, match="at least 1"):
        inflate_kernel(weight, 0)


@torch.no_grad()
def test_a_still_video_gives_the_image_networks_response():
    torch.manual_seed(0)
    flat = scramble(ResNet(BasicBlock, [1, 1, 1, 1]))
    flat.maxpool = nn.Identity()  # R3D-18 has none
    solid = R3D18(depth=(1, 1, 1, 1), norm_eps=1e-5).eval()
    solid.load_state_dict(
        {
            key: value
            for key, value in inflate_resnet(flat.state_dict(), solid.state_dict()).items()
            if not key.startswith("fc.")
        }
    )
    image = torch.rand(1, 3, 16, 16)
    frames = 64
    out = solid(image[:, :, None].expand(-1, -1, frames, -1, -1))
    expected = maps_2d(flat, image)
    # Padding reaches 3 steps into each end of the last map (3 of 8), never its middle.
    for step in (3, 4):
        torch.testing.assert_close(out[:, :, step], expected, rtol=1e-4, atol=1e-4)
    assert (out[:, :, 0] - expected).abs().max() > 1e-2  # the border does differ


@torch.no_grad()
def test_a_still_video_through_the_r3d50_with_its_max_pool():
    torch.manual_seed(0)
    flat = scramble(ResNet(Bottleneck, [1, 1, 1, 1]))
    solid = PytorchvideoResNet(depth=(1, 1, 1, 1), stem_stride=(1, 2, 2)).eval()
    inflated = inflate_resnet(flat.state_dict(), solid.state_dict())
    solid.load_state_dict({k: v for k, v in inflated.items() if not k.startswith("fc.")})
    image = torch.rand(1, 3, 32, 32)
    out = solid(image[:, :, None].expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(out[:, :, 4], maps_2d(flat, image), rtol=1e-4, atol=1e-4)


def test_a_resnet18_file_inflates_completely(tmp_path):
    flat = resnet18()
    torch.save(flat.state_dict(), tmp_path / "resnet18.pth")
    solid = R3D18()
    report = load_weights(solid, tmp_path / "resnet18.pth", inflate=True, echo=False)
    assert (report.loaded, report.missing) == (120, ())
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert torch.equal(
        solid.layer3[0].downsample[0].weight[:, :, 0], flat.layer3[0].downsample[0].weight
    )
    torch.testing.assert_close(solid.stem[0].weight.sum(2), flat.conv1.weight)


def test_timms_file_inflates_too(tmp_path):
    flat = create_model("resnet18", pretrained=False)
    torch.save(flat.state_dict(), tmp_path / "timm.pth")
    report = load_weights(R3D18(), tmp_path / "timm.pth", inflate=True, echo=False)
    assert report.loaded == 120


def test_imagenet_to_r3d18_as_the_commands_of_the_recipe_say(tmp_path, monkeypatch):
    """CtP, Table 3: a file of torchvision, and one that a method of this library left."""
    monkeypatch.chdir(tmp_path)
    flat = TimmNet("resnet18", depth=(1, 1, 1, 1))
    checkpoint = {"state_dict": {f"backbone.{k}": v for k, v in flat.state_dict().items()}}
    stamp(checkpoint, method="Supervised", backbone=flat)
    torch.save(checkpoint, "flat.ckpt")
    export("flat.ckpt", "flat")
    words = ["--backbone", "R3D18", "--backbone.depth", "[1,1,1,1]", "--inflate", "true"]
    cli.main(["export", "flat", "--out", "solid", *words, "--method", "ImageNet"])
    found = FineTune(optimizer=torch.optim.SGD, backbone=R3D18(depth=(1, 1, 1, 1)), weights="solid")
    assert found.method == "ImageNet"
    solid = found.backbone.layer2[0].conv1[0].weight
    torch.testing.assert_close(solid.sum(2), flat.net.layer2[0].conv1.weight)
    with pytest.raises(ValueError, match=r"holds a 2-D ResNet.*set inflate=True"):
        load_weights(R3D18(depth=(1, 1, 1, 1)), "flat")


def test_a_resnet50_file_inflates_into_the_r3d50(tmp_path):
    with torch.device("meta"):
        state = resnet50().state_dict()
        target = PytorchvideoResNet().state_dict()
        inflated = inflate_resnet(state, target)
    assert {k: v.shape for k, v in inflated.items() if not k.startswith("fc.")} == {
        k: v.shape for k, v in target.items()
    }


def test_a_2d_file_without_being_asked_is_refused(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"holds a 2-D ResNet.*set inflate=True"):
        load_weights(R3D18(), tmp_path / "resnet18.pth")


def vfs_checkpoint(flat):
    """What VFS's training leaves in a file: mmaction's names, heads beside the backbone."""
    state = {}
    for key, value in flat.state_dict().items():
        *block, layer, entry = key.split(".")
        if layer in "01" and block[-1:] == ["downsample"]:
            layer = "conv" if layer == "0" else "bn"
        elif layer.startswith(("conv", "bn")):
            kind = layer.rstrip("0123456789")
            layer = f"conv{layer.removeprefix(kind)}.{kind}"
        else:
            continue  # no classifier
        state[".".join(["backbone", *block, layer, entry])] = value
    state["img_head.projection_fcs.0.weight"] = torch.rand(8, 8)
    state["img_head.predictor_fcs.3.bias"] = torch.rand(8)
    return {"meta": {"epoch": 100, "seed": 0, "env_info": "torch"}, "state_dict": state}


@torch.no_grad()
def test_vfs_inflates_and_a_still_video_gives_its_response(tmp_path):
    torch.manual_seed(0)
    flat = scramble(ResNet(Bottleneck, [1, 1, 1, 1])).double()
    content = vfs_checkpoint(flat)
    names = set(content["state_dict"])
    for name in ("conv1.conv.weight", "conv1.bn.running_var", "layer1.0.conv3.conv.weight"):
        assert f"backbone.{name}" in names
    assert "backbone.layer2.0.downsample.bn.weight" in names
    torch.save(content, tmp_path / "vfs.pth")
    solid = PytorchvideoResNet(depth=(1, 1, 1, 1)).eval().double()  # stem: kernel 5, stride 2
    report = load_weights(solid, tmp_path / "vfs.pth", inflate=True, echo=False)
    assert (report.loaded, report.missing) == (report.total, ())
    assert report.unexpected == (
        "img_head.projection_fcs.0.weight",
        "img_head.predictor_fcs.3.bias",
    )
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    out = solid(image[:, :, None].expand(-1, -1, 16, -1, -1))
    expected = maps_2d(flat, image)
    assert expected.abs().max() > 0.1
    # Zeros reach one step in from the stem, and one from each of two blocks with kernel 3.
    for step in (3, 4):
        torch.testing.assert_close(out[:, :, step], expected, rtol=0, atol=1e-10)
    assert (out[:, :, 0] - expected).abs().max() > 1e-2


def test_vfs_loads_into_a_2d_network_as_it_is(tmp_path):
    class Flat(Backbone):
        def __init__(self):
            super().__init__(channels={"all": 2048}, strides={"all": (1, 32)}, init_args={}, dims=2)
            network = ResNet(Bottleneck, [1, 1, 1, 1])
            del network.fc
            for name, child in network.named_children():
                self.add_module(name, child)

        def stage(self, name, x):
            return maps_2d(self, x)

    flat = scramble(ResNet(Bottleneck, [1, 1, 1, 1]))
    torch.save(vfs_checkpoint(flat), tmp_path / "vfs.pth")
    loaded = Flat().eval()
    report = load_weights(loaded, tmp_path / "vfs.pth", echo=False)
    assert (report.naming, report.missing) == ("mmaction's names", ())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(image), maps_2d(flat, image))


def test_vfs_is_exported_once_and_evaluated_like_any_other(tmp_path, capsys):
    flat = scramble(ResNet(Bottleneck, [1, 1, 1, 1]))
    torch.save(vfs_checkpoint(flat), tmp_path / "vfs.pth")
    with pytest.raises(ValueError, match=r"export .*vfs\.pth --backbone .* --inflate true"):
        load_weights(PytorchvideoResNet(depth=(1, 1, 1, 1)), tmp_path / "vfs.pth")
    cli.main(
        [
            *("export", str(tmp_path / "vfs.pth"), "--inflate=true", "--method=VFS"),
            *("--backbone=PytorchvideoResNet", "--backbone.depth=[1,1,1,1]"),
        ]
    )
    folder = tmp_path / "vfs"
    assert "left over: img_head (2)" in capsys.readouterr().out
    found = pretrained(None, str(folder))
    assert found.method == "VFS"
    solid = PytorchvideoResNet(depth=(1, 1, 1, 1))
    load_weights(solid, tmp_path / "vfs.pth", inflate=True, echo=False)
    assert all(
        torch.equal(v, found.backbone.state_dict()[k]) for k, v in solid.state_dict().items()
    )
    with pytest.raises(FileExistsError):
        export(tmp_path / "vfs.pth", backbone=solid, inflate=True)
    export(tmp_path / "vfs.pth", backbone=solid, inflate=True, overwrite=True)
    with pytest.raises(ValueError, match="name the backbone too"):
        export(tmp_path / "vfs.pth", inflate=True)
    with pytest.raises(ValueError, match=r"no export record\).*--backbone"):
        export(tmp_path / "vfs.pth", tmp_path / "other")


def test_what_cannot_be_inflated_is_refused(tmp_path):
    torch.save(R3D18(width=2).state_dict(), tmp_path / "r3d.pth")
    with pytest.raises(ValueError, match=r"inflate=True is for the weights of a 2-D ResNet"):
        load_weights(R3D18(width=2), tmp_path / "r3d.pth", inflate=True)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"R2Plus1D18 has no kernels .* factored"):
        load_weights(R2Plus1D18(width=2), tmp_path / "resnet18.pth", inflate=True)
    with pytest.raises(ValueError, match=r"0 of 100 weights match\. Of another shape: stem"):
        load_weights(R3D18(width=2), tmp_path / "resnet18.pth", inflate=True)


def test_a_2d_resnet_is_recognised():
    assert is_resnet_2d(resnet18().state_dict())
    assert not is_resnet_2d(R3D18(width=2).state_dict())
