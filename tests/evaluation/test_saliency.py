"""Saliency: both kinds of maps against loops, the whole evaluation on drawn spots, bad input."""

import functools
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones.weights import export
from lightning_vssl.datamodules.clickme import ClickMe
from lightning_vssl.evaluation.saliency import HumanSaliency, gradient_map
from lightning_vssl.methods.vito import VITO, MoCLR
from tests.datamodules.clickme_files import blobs, write
from tests.evaluation.small import OneLayer, trainer
from tests.methods.frames import FrameNet

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def exported(folder, kind=VITO, bright=False):
    """An export of a small method; ``bright``: attention that looks at bright places."""
    torch.manual_seed(0)
    options = {"attention_hidden": 6} if kind is VITO else {}
    method = kind(FrameNet(), VideoViews(), SGD, hidden=(8,), projection=8, **options)
    if bright:
        for block in method.backbone.blocks.values():
            torch.nn.init.constant_(block[0].weight, 0.05)
        for scale in method.attention.scales:
            torch.nn.init.constant_(scale[0].weight, 0.3)
            torch.nn.init.constant_(scale[-1].weight, 1.0)
    elif kind is VITO:
        for scale in method.attention.scales:
            torch.nn.init.normal_(scale[-1].weight)
    checkpoint = {"state_dict": method.state_dict(), "epoch": 0, "global_step": 1}
    method.on_save_checkpoint(checkpoint)
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "last.ckpt")
    export(folder / "last.ckpt", folder / "export")
    return method, str(folder / "export")


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    pictures, maps = blobs(10)
    return write(tmp_path_factory.mktemp("clickme"), pictures, maps)


def test_attention_maps_are_the_masks_averaged(tmp_path):
    method, folder = exported(tmp_path)
    frames = torch.randn(2, 3, 64, 64)
    module = HumanSaliency(weights=folder)
    assert module.source == "attention"
    method.eval()
    _, _, (fine, coarse) = method.encode(frames)
    large = [
        F.interpolate(m[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
        for m in (fine, coarse)
    ]
    assert torch.allclose(module.maps_of(frames), (large[0] + large[1]) / 2, atol=1e-9)
    assert module.maps_of(frames).std() > 1e-5


@pytest.mark.parametrize("channels", ["mean", "max"])
def test_gradient_map_equals_differences(channels):
    torch.manual_seed(0)
    backbone = FrameNet().double().eval()
    frames = torch.randn(1, 3, 16, 16).double()
    found = gradient_map(backbone, frames, channels)[0]
    for y, x in ((0, 0), (5, 9), (15, 3)):
        slopes = []
        for c in range(3):
            values = []
            for step in (-1e-5, 1e-5):
                moved = frames.clone()
                moved[0, c, y, x] += step
                values.append(backbone(moved).mean((2, 3)).square().sum().item() / 2)
            slopes.append(abs(values[1] - values[0]) / 2e-5)
        expected = np.mean(slopes) if channels == "mean" else max(slopes)
        assert found[y, x].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("kind", [VITO, MoCLR])
def test_whole_evaluation(tmp_path, spots, kind):
    """Attention to what is bright agrees with people who looked at bright spots."""
    _, folder = exported(tmp_path, kind, bright=kind is VITO)
    module = HumanSaliency(weights=folder, paper={"alignment": 47.7})
    data = ClickMe(spots, size=64, batch_size=4)
    logged, *_ = trainer(tmp_path).test(module, data, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"]["alignment"] == pytest.approx(logged["test/alignment"])
    assert result["results"]["spearman"] == pytest.approx(0.65753 * logged["test/alignment"])
    assert (result["images"], result["undefined"]) == (10, 0)
    assert result["method"] == kind.__name__
    assert result["protocol"]["source"] == ("attention" if kind is VITO else "gradient")
    data.setup("test")
    expected = []
    for batch in data.test_dataloader():
        views = module.view(batch)["views"][:, 0, :, 0]
        for own, human in zip(module.maps_of(views), batch["human"], strict=True):
            expected.append(stats.spearmanr(own.ravel(), human.ravel()).statistic)
    assert logged["test/spearman"] == pytest.approx(100 * np.mean(expected), rel=1e-5)
    if kind is VITO:
        assert logged["test/spearman"] > 50


def test_refused(tmp_path):
    _, folder = exported(tmp_path)
    _, plain = exported(tmp_path / "moclr", MoCLR)
    with pytest.raises(ValueError, match="no export's folder"):
        HumanSaliency(backbone=FrameNet(), weights=str(tmp_path / "last.ckpt"))
    with pytest.raises(ValueError, match="needs the attention of VITO"):
        HumanSaliency(backbone=FrameNet(), source="attention")
    with pytest.raises(ValueError, match="not the head 'attention'"):
        HumanSaliency(weights=plain, source="attention")
    with pytest.raises(ValueError, match="over time and space"):
        HumanSaliency(backbone=OneLayer(dims=3))
    with pytest.raises(ValueError, match="source must be"):
        HumanSaliency(backbone=FrameNet(), source="both")
    with pytest.raises(ValueError, match="channels must be"):
        HumanSaliency(backbone=FrameNet(), channels="sum")
    assert HumanSaliency(backbone=FrameNet()).source == "gradient"
    assert HumanSaliency(weights=folder, source="gradient").attention is None


def test_data_without_maps_of_people(tmp_path):
    from tests.callbacks.parts import Data

    class Test(Data):
        test_dataloader = Data.val_dataloader

    with pytest.raises(ValueError, match="use ClickMe"):
        trainer(tmp_path).test(HumanSaliency(backbone=FrameNet()), Test(), verbose=False)
