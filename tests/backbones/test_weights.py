import argparse
import json
import re
import resource
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from pytorchvideo.models import hub
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model, video

from lightning_vssl.backbones import (
    IMAGENET_PIXELS,
    R3D18,
    Pixels,
    PytorchvideoNet,
    PytorchvideoResNet,
    R2Plus1D18,
    TorchvisionVideo,
    export,
    load_backbone,
    load_head,
    load_weights,
    sha256,
)
from lightning_vssl.backbones.padding import pads_as_tensorflow, same_padding
from lightning_vssl.backbones.weights import export_command, export_record
from tests.backbones.official import checkpoint

SMALL = {"width": 4, "depth": (1, 1, 1, 1)}
KINDS = {"R3D": R3D18, "R2Plus1D": R2Plus1D18}


class Head(nn.Sequential):
    """A head as ``nn/`` might hold one."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 3))
        self.width = width

    @property
    def config(self) -> dict[str, object]:
        return {"class_path": f"{__name__}.Head", "init_args": {"width": self.width}}


def scramble(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics in eval mode, so that nothing is a default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.fill_(7)
    return network.eval()


def lightning_checkpoint(path: Path, network, heads=None, **more) -> Path:
    """What a method's ``on_save_checkpoint`` leaves in a file."""
    heads = heads or {}
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    for name, head in heads.items():
        state |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    state["projector.weight"] = torch.rand(2, 2)
    record = export_record("CtP", network, heads=heads)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"epoch": 3, "global_step": 40, "state_dict": state, "export": record, **more}
    torch.save(content, path)
    return path


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def clip():
    return torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(1))


# Official CtP


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone.", ""])
def test_official_checkpoint_gives_the_official_output(kind, prefix, tmp_path, clip):
    torch.manual_seed(0)
    theirs, content = checkpoint(kind, prefix=prefix)
    file = tmp_path / "epoch_300.pth"
    torch.save(content, file)
    ours = KINDS[kind](width=8, depth=(1, 1, 1, 1), last_stride=1)
    report = load_weights(ours, file, echo=False)
    expected = theirs(clip)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(ours.eval()(clip), expected, rtol=0, atol=1e-5)
    assert report.naming == "microsoft/CtP's names"
    assert (report.loaded, report.missing) == (len(ours.state_dict()), ())
    assert len(report.unexpected) == 2


def test_official_names_are_the_ones_of_the_official_files():
    _, content = checkpoint("R3D", depth=2)
    names = set(content["state_dict"])
    for name in ("stem.conv", "stem.bn", "layer1.0.conv1.conv", "layer4.1.bn2", "layer1.0.bn1"):
        assert f"backbone.{name}.weight" in names
    assert "backbone.layer2.0.downsample.conv.weight" in names
    assert "backbone.layer2.0.downsample_bn.running_var" in names
    _, content = checkpoint("R2Plus1D")
    assert "backbone.layer1.0.conv1.conv_s.weight" in content["state_dict"]


def test_official_checkpoint_exports_and_reloads_equal(tmp_path, clip):
    _, content = checkpoint("R3D")
    torch.save(content, tmp_path / "official.pth")
    ours = R3D18(width=8, depth=(1, 1, 1, 1), last_stride=1)
    load_weights(ours, tmp_path / "official.pth", echo=False)
    report = export(lightning_checkpoint(tmp_path / "last.ckpt", ours))
    reloaded = load_backbone(report.folder)
    assert reloaded.stride == (8, 16)
    downstream = R3D18(width=8, depth=(1, 1, 1, 1))
    load_weights(downstream, tmp_path / "official.pth", echo=False)
    assert torch.equal(reloaded(clip), downstream.eval()(clip))


def test_official_r2plus1d_does_not_half_load_into_r3d(tmp_path):
    _, content = checkpoint("R2Plus1D")
    torch.save(content, tmp_path / "official.pth")
    ours = R3D18(width=8, depth=(1, 1, 1, 1))
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit R3D18") as error:
        load_weights(ours, tmp_path / "official.pth")
    message = str(error.value)
    assert "naming recognised: microsoft/CtP's names" in message
    assert "stem.0.weight is (5, 3, 1, 7, 7) in the file and (8, 3, 3, 7, 7) in R3D18" in message
    assert re.search(r"\d+ of 60 weights match", message)
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


class Foreign:
    """Stands for an object of another library inside a checkpoint."""


def test_a_file_with_objects_is_refused_and_the_way_out_is_said(tmp_path):
    _, content = checkpoint("R3D")
    content["meta"]["config"] = Foreign()
    content["meta"]["arguments"] = argparse.Namespace(lr=1)
    torch.save(content, tmp_path / "official.pth")
    with pytest.raises(ValueError, match="does not unpickle objects") as error:
        load_weights(R3D18(width=8, depth=(1, 1, 1, 1)), tmp_path / "official.pth")
    message = str(error.value)
    assert "test_weights.Foreign" in message
    assert "argparse.Namespace" in message
    assert "torch.save(checkpoint['state_dict'], 'weights.pth')" in message


# torchvision, pytorchvideo


def test_torchvision_r3d_loads_as_it_is(tmp_path, clip):
    theirs = scramble(video.r3d_18())
    torch.save(theirs.state_dict(), tmp_path / "r3d_18.pth")
    ours = R3D18(norm_eps=1e-5).eval()
    report = load_weights(ours, tmp_path / "r3d_18.pth", echo=False)
    assert report.unexpected == ("fc.weight", "fc.bias")
    small = clip[:, :, :4, :16, :16]
    with torch.no_grad():
        pooled = theirs.fc(ours(small).mean((2, 3, 4)))
        torch.testing.assert_close(pooled, theirs(small))


def test_torchvision_r2plus1d_has_other_middle_widths_and_is_refused(tmp_path):
    torch.save(video.r2plus1d_18().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"layer2\.0\.conv2\.0\.0\.weight is \(230, 128"):
        load_weights(R2Plus1D18(), tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["s3d", "mc3_18"])
def test_torchvisions_files_load_into_the_adapter(name, tmp_path):
    theirs = get_model(name, weights=None)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = TorchvisionVideo(name)
    report = load_weights(ours, tmp_path / "weights.pth", echo=False)
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.net.state_dict().items())
    assert report.naming == "torchvision's names"
    assert {key.split(".")[0] for key in report.unexpected} <= {"fc", "head", "classifier"}


def test_r3d_and_torchvisions_adapter_exchange_weights(tmp_path):
    ours, theirs = R3D18(), TorchvisionVideo("r3d_18")
    for source, target in ((ours, theirs), (theirs, ours)):
        scramble(source, seed=id(source) % 1000)
        save_file(source.state_dict(), tmp_path / "weights.safetensors")
        load_weights(target, tmp_path / "weights.safetensors", echo=False)
        a, b = list(source.state_dict().values()), list(target.state_dict().values())
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_pytorchvideos_files_load_into_the_adapter(tmp_path):
    theirs = hub.x3d_xs(pretrained=False)
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "X3D_XS.pyth")
    ours = PytorchvideoNet("x3d_xs")
    report = load_weights(ours, tmp_path / "X3D_XS.pyth", echo=False)
    assert same_weights(ours.blocks, theirs.blocks[:-1])
    assert {key[:9] for key in report.unexpected} == {"blocks.5."}


# Strictness


def test_report_is_one_line(tmp_path, capsys):
    network = scramble(R3D18(**SMALL))
    file = lightning_checkpoint(tmp_path / "last.ckpt", network)
    report = load_weights(R3D18(**SMALL), file)
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert "72 of 72 entries loaded (the backbone's own names)" in printed
    assert "missing: none; left over: projector (1)" in printed


def test_missing_entries_are_an_error_that_names_them(tmp_path):
    network = R3D18(**SMALL)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("layer4.")}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"45 of 60 weights match\. Missing: layer4\.0\.conv1\.0"):
        load_weights(R3D18(**SMALL), tmp_path / "weights.safetensors")


def test_a_deeper_networks_file_is_refused(tmp_path):
    save_file(R3D18(width=4, depth=(2, 1, 1, 1)).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"In the file, but not in R3D18: layer1\.1\.conv1\.1"):
        load_weights(R3D18(**SMALL), tmp_path / "w.safetensors")


def test_a_wider_networks_file_is_refused_and_nothing_changes(tmp_path):
    save_file(R3D18(width=8, depth=(1, 1, 1, 1)).state_dict(), tmp_path / "w.safetensors")
    network = R3D18(**SMALL)
    before = network.stem[0].weight.clone()
    with pytest.raises(ValueError, match=r"stem\.0\.weight is \(8, 3, 3, 7, 7\) in the file and"):
        load_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network.stem[0].weight, before)


def test_a_wrong_checkpoint_is_named_as_such(tmp_path):
    torch.save({"transformer.h.0.weight": torch.rand(2)}, tmp_path / "gpt.pth")
    with pytest.raises(
        ValueError, match=r"is not a checkpoint of R3D18: .* The file has transformer\.h\.0\.weight"
    ):
        load_weights(R3D18(**SMALL), tmp_path / "gpt.pth")


def test_counters_of_batch_norms_may_be_missing(tmp_path):
    network = scramble(R3D18(**SMALL))
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    target = R3D18(**SMALL)
    report = load_weights(target, tmp_path / "w.safetensors", echo=False)
    assert len(report.missing) == 12
    assert torch.equal(target.stem[0].weight, network.stem[0].weight)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt"])
def test_a_truncated_file_is_refused_by_name(name, tmp_path):
    network = R3D18(**SMALL)
    file = tmp_path / name
    if name.endswith("ckpt"):
        torch.save(network.state_dict(), file)
    else:
        save_file(network.state_dict(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name} is not a .*cut short while copying"):
        load_weights(network, file)


def test_missing_files_are_named(tmp_path):
    for name in ("none.ckpt", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            load_weights(R3D18(**SMALL), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="is not an export"):
        load_backbone(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        sha256(tmp_path / "none")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no tensors by name; it has epoch"):
        load_weights(R3D18(**SMALL), tmp_path / "a.ckpt")
    torch.save([torch.rand(1)], tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        load_weights(R3D18(**SMALL), tmp_path / "b.ckpt")


def test_wrappers_of_ddp_and_compile_are_stripped(tmp_path):
    network = scramble(R3D18(**SMALL))
    state = OrderedDict(
        (f"module.backbone._orig_mod.{k}", v) for k, v in network.state_dict().items()
    )
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    target = R3D18(**SMALL)
    load_weights(target, tmp_path / "w.pth", echo=False)
    assert same_weights(target, network)


# Export


@pytest.mark.parametrize("kind", [R3D18, R2Plus1D18])
def test_export_and_back(kind, tmp_path, clip):
    network = scramble(kind(**SMALL))
    file = lightning_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", network)
    report = export(file)
    assert report.folder == (tmp_path / "run" / "export").resolve()
    assert sorted(p.name for p in report.folder.iterdir()) == [
        "backbone.safetensors",
        "config.json",
    ]
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")] == []
    for path in (report.folder, report.folder / "backbone.safetensors", file):
        loaded = load_backbone(path)
        assert same_weights(loaded, network)
        assert torch.equal(loaded(clip), network(clip))
        assert not loaded.training


def test_config_says_what_a_user_needs(tmp_path):
    pixels = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    network = R3D18(**SMALL, last_stride=1, pixels=pixels)
    report = export(lightning_checkpoint(tmp_path / "last.ckpt", network))
    config = json.loads((report.folder / "config.json").read_text())
    assert config["class_path"] == "lightning_vssl.backbones.R3D18"
    assert config["init_args"]["last_stride"] == 2
    assert config["pretraining"]["init_args"]["last_stride"] == 1
    assert config["layout"] == "BCTHW"
    assert config["pixels"] == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    assert (config["num_features"], config["stride"]) == (32, {"time": 8, "space": 16})
    assert (config["method"], config["epoch"], config["global_step"]) == ("CtP", 3, 40)
    assert config["library"]["name"] == "lightning-vssl"
    assert config["sha256"] == report.sha256 == sha256(report.folder)
    assert load_backbone(report.folder).pixels == pixels


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    file = lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL))
    assert export(file, tmp_path / "a").sha256 == export(file, tmp_path / "b").sha256


def test_the_safetensors_file_reads_without_the_library(tmp_path):
    network = scramble(R3D18(**SMALL))
    report = export(lightning_checkpoint(tmp_path / "last.ckpt", network))
    state = load_file(report.folder / "backbone.safetensors")
    assert state.keys() == network.state_dict().keys()


def test_heads_are_exported_beside_the_backbone(tmp_path):
    head = Head(5)
    file = lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL), heads={"attend": head})
    report = export(file)
    assert report.heads == ("attend",)
    assert list(load_file(report.folder / "heads.safetensors")) == [
        "attend.0.bias",
        "attend.0.weight",
    ]
    assert same_weights(load_head(report.folder, "attend"), head)
    with pytest.raises(ValueError, match="holds attend, not the head 'project'"):
        load_head(report.folder, "project")


def test_a_head_that_an_export_lacks_is_named(tmp_path):
    report = export(lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL)))
    with pytest.raises(ValueError, match="holds no heads, not the head 'attend'"):
        load_head(report.folder, "attend")


def test_a_head_that_cannot_be_rebuilt_is_refused():
    with pytest.raises(ValueError, match=r"head 'attend' \(Linear\) needs a property config"):
        export_record("CtP", R3D18(**SMALL), heads={"attend": nn.Linear(1, 1)})


def test_the_record_survives_a_safe_checkpoint(tmp_path):
    record = export_record("CtP", R3D18(**SMALL), heads={"attend": Head(2)})
    torch.save(record, tmp_path / "record.pt")
    assert torch.load(tmp_path / "record.pt", weights_only=True) == record
    assert json.loads(json.dumps(record)) == record


def test_an_existing_folder_is_kept_unless_told(tmp_path):
    file = lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL))
    first = export(file)
    with pytest.raises(FileExistsError, match="set overwrite to true"):
        export(file)
    lightning_checkpoint(file, scramble(R3D18(**SMALL), seed=5))
    second = export(file, overwrite=True)
    assert second.folder == first.folder
    assert second.sha256 != first.sha256
    assert sha256(second.folder) == second.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "last.ckpt"]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path):
    file = lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.tex").write_text("words")
    with pytest.raises(FileExistsError, match="holds other things than an export"):
        export(file, overwrite=True)
    assert (tmp_path / "export" / "thesis.tex").read_text() == "words"


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    file = lightning_checkpoint(tmp_path / "last.ckpt", scramble(R3D18(**SMALL)))
    kept = export(file)
    # The kernel refuses files above 16 KiB, as it would refuse all on a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        with pytest.raises(OSError, match=r"export could not be written, nothing was changed"):
            export(file, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "last.ckpt"]
    assert sha256(kept.folder) == kept.sha256


def test_mixed_folders_are_noticed(tmp_path):
    file = lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL))
    one = export(file, tmp_path / "one")
    lightning_checkpoint(file, scramble(R3D18(**SMALL), seed=5))
    other = export(file, tmp_path / "other")
    name = "backbone.safetensors"
    (one.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(ValueError, match=r"is not the file that .*config\.json describes"):
        load_backbone(one.folder)


def test_files_that_are_not_this_librarys_are_refused(tmp_path):
    torch.save({"state_dict": R3D18(**SMALL).state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not saved by a method or evaluation of this library"):
        export(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not say which backbone it holds"):
        load_backbone(tmp_path / "other.ckpt")


def test_a_checkpoint_that_lacks_half_its_backbone_is_not_exported(tmp_path):
    network = R3D18(**SMALL)
    file = lightning_checkpoint(tmp_path / "last.ckpt", network)
    content = torch.load(file, weights_only=True)
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if "layer3" not in k}
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"Missing: layer3\.0\.conv1\.0\.weight"):
        export(file)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_path": "lightning_vssl.backbones.R3D19"}, "cannot be imported"),
        ({"class_path": "torch.nn.Identity"}, "is not a Backbone"),
        ({"class_path": "os.path.join"}, "is not a module"),
        ({"init_args": {"depht": [1, 1, 1, 1]}}, "does not take"),
        ({"format": 2}, "has format 2; this version reads 1"),
    ],
)
def test_a_config_that_describes_no_backbone_is_refused(change, message, tmp_path):
    report = export(lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL)))
    file = report.folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_backbone(report.folder)


def test_adapters_export_and_reload(tmp_path):
    network = PytorchvideoNet("x3d_xs")
    report = export(lightning_checkpoint(tmp_path / "last.ckpt", network))
    assert same_weights(load_backbone(report.folder), network)


def test_the_command_prints_where_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal cuts nothing off
    file = lightning_checkpoint(tmp_path / "last.ckpt", R3D18(**SMALL))
    export_command(str(file), str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert str(tmp_path / "out") in printed
    assert "CtP" in printed
    assert sha256(tmp_path / "out") in printed


# What a file says of its network


class Padded(PytorchvideoResNet):
    """A small R3D-50 that pads as it is told."""

    def __init__(self, padding: str = "symmetric", pixels: Pixels = IMAGENET_PIXELS) -> None:
        super().__init__(width=4, depth=(1, 1, 1, 1), pixels=pixels)
        self._init_args = {"padding": padding, "pixels": pixels}
        if padding == "tensorflow":
            same_padding(self)


@pytest.mark.parametrize("file", ["last.ckpt", "export"])
@pytest.mark.parametrize(
    ("here", "there"), [("symmetric", "tensorflow"), ("tensorflow", "symmetric")]
)
def test_a_network_that_pads_otherwise_than_the_one_trained_is_refused(here, there, file, tmp_path):
    lightning_checkpoint(tmp_path / "last.ckpt", Padded(there))
    export(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=f'build it with padding="{there}".*backbone null'):
        load_weights(Padded(here), tmp_path / file)
    load_weights(Padded(there), tmp_path / file)
    assert pads_as_tensorflow(load_backbone(tmp_path / file)) is (there == "tensorflow")


def test_other_pixels_than_those_trained_with_are_said(tmp_path):
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    lightning_checkpoint(tmp_path / "last.ckpt", Padded(pixels=half))
    export(tmp_path / "last.ckpt")
    for file in ("last.ckpt", "export"):
        assert "pixels" not in load_weights(Padded(pixels=half), tmp_path / file).naming
        said = str(load_weights(Padded(), tmp_path / file))
        assert "trained with pixels [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], this backbone takes" in said


def test_a_config_beside_anyone_elses_file_is_not_read(tmp_path):
    network = scramble(R3D18(**SMALL))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("not ours")
    assert load_weights(R3D18(**SMALL), tmp_path / "model.safetensors").missing == ()
