"""Files named as facebookresearch/moco's, with torchvision's ResNet-50 inside."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter

from lightning_vssl.backbones import (
    HaraR3D18,
    PytorchvideoResNet,
    TimmNet,
    export,
    load_backbone,
    load_head,
    load_weights,
)
from lightning_vssl.evaluation.base import pretrained
from tests.backbones.official_rspnet import scrambled


def network(version: int) -> nn.Module:
    """The query encoder: a ResNet-50 whose last layer is MoCo's head."""
    torch.manual_seed(version)
    theirs = scrambled(resnet50(num_classes=128))
    if version == 2:
        theirs.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), theirs.fc)
    return theirs


def checkpoint(theirs: nn.Module) -> dict:
    """What its training script saves of a DistributedDataParallel module, with a small queue."""
    state = OrderedDict()
    for encoder, shift in (("encoder_q", 0), ("encoder_k", 1)):
        for key, value in theirs.state_dict().items():
            state[f"module.{encoder}.{key}"] = value + shift
    state["module.queue"] = torch.rand(128, 64)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.03, "params": [0, 1]}]}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


def feature_map(theirs: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What torchvision's network has before its pooling."""
    return IntermediateLayerGetter(theirs, {"layer4": "map"})(images)["map"]


@pytest.mark.parametrize("version", [1, 2])
def test_moco_checkpoint_gives_torchvisions_output(version, tmp_path):
    theirs = network(version)
    file = tmp_path / "checkpoint_0199.pth.tar"
    torch.save(checkpoint(theirs), file)
    ours = TimmNet("resnet50")
    report = load_weights(ours, file, echo=False)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = feature_map(theirs, images)
        assert (expected[0] - expected[1]).abs().max() > 0.1
        largest = expected.abs().max()
        difference = (ours.eval()(images) - expected).abs().max()
    assert difference / largest < 1e-5
    assert report.naming == "torchvision's names, below encoder_q"
    assert (report.loaded, report.missing) == (318, ())
    assert sorted(key for key in report.unexpected if key.startswith("fc")) == (
        ["fc.bias", "fc.weight"]
        if version == 1
        else ["fc.0.bias", "fc.0.weight", "fc.2.bias", "fc.2.weight"]
    )
    assert {"queue", "queue_ptr", "encoder_k.conv1.weight"} <= set(report.unexpected)


@pytest.mark.parametrize("version", [1, 2])
def test_export_keeps_the_head(version, tmp_path):
    theirs = network(version)
    file = tmp_path / "moco.pth.tar"
    torch.save(checkpoint(theirs), file)
    report = export(file, tmp_path / "out", backbone=TimmNet("resnet50"), method="MoCo")
    assert report.heads == ("projector",)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pooled = load_backbone(report.folder)(images).mean((2, 3))
        projected = load_head(report.folder, "projector")(pooled)
        expected = theirs(images)
    assert (projected - expected).abs().max() / expected.abs().max() < 1e-5


def test_files_of_the_time_are_evaluated(tmp_path):
    # Before PyTorch 1.6 torch.save did not write zip files, which alone can be mapped to memory.
    file = tmp_path / "moco_v1_200ep_pretrain.pth.tar"
    torch.save(checkpoint(network(1)), file, _use_new_zipfile_serialization=False)
    found = pretrained(TimmNet("resnet50"), str(file))
    assert found.method == "unknown"


def test_an_image_network_is_inflated_when_asked(tmp_path):
    theirs = network(1)
    file = tmp_path / "moco.pth.tar"
    torch.save(checkpoint(theirs), file)
    with torch.device("meta"):
        small = HaraR3D18(width=4)
    with pytest.raises(ValueError, match="inflate=True"):
        load_weights(small, file)
    ours = PytorchvideoResNet(stem_kernel=(1, 7, 7))
    report = load_weights(ours, file, inflate=True, echo=False)
    assert report.missing == ()
    kernel = ours.blocks[3].res_blocks[0].branch2.conv_a.weight  # 3 x 1 x 1
    torch.testing.assert_close(kernel.sum(2), theirs.layer3[0].conv1.weight)


def test_the_key_encoder_is_never_taken(tmp_path):
    state = checkpoint(network(1))["state_dict"]
    keys = {key: value for key, value in state.items() if "encoder_q" not in key}
    torch.save({"state_dict": keys}, tmp_path / "keys.pth.tar")
    with pytest.raises(ValueError, match="is not a checkpoint of TimmNet"):
        load_weights(TimmNet("resnet50"), tmp_path / "keys.pth.tar")
