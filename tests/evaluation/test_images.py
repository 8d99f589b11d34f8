"""Evaluations of image networks, on images and on videos, against timm, torch and scikit-learn."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones import TimmNet
from lightning_vssl.data.windows import CentreCrop, RandomResizedCrop
from lightning_vssl.datamodules.image_folder import ImageFolder
from lightning_vssl.evaluation.recognition import AttentiveProbe, FineTune, LinearProbe
from lightning_vssl.evaluation.retrieval import KNN, Retrieval
from lightning_vssl.optim import Cosine
from tests.evaluation.small import COLOURS, Tensors, trainer, videos

RATES = (0.4, 0.3, 0.2, 0.1, 0.05)
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)


def small():
    torch.manual_seed(0)
    return TimmNet("resnet18", width=8, depth=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six classes of noisy colours, 40 x 30 and 30 x 40 pixels."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count * 6):
            kind = number % 6
            file = root / split / f"class{kind}" / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (30, 40, 3) if number % 4 else (40, 30, 3)
            noise = draw.integers(-60, 61, shape) + draw.integers(-90, 91, 3)
            pixels = (COLOURS[kind].numpy() + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return root


def data(folder, cache, **changes):
    settings = {
        "views": 1,
        "window": RandomResizedCrop(32, (0.08, 1.0), interpolation="bicubic"),
        "eval_window": CentreCrop(36, 32, "bicubic"),
        "batch_size": 16,
    }
    return ImageFolder(folder, cache_dir=cache, **{**settings, **changes})


def pooled_by_timm(net, manifest):
    """Features (N, D) of the centres of images, cut by Pillow, by timm's own forward."""
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in net.pixels)
    seen = []
    for row in range(len(manifest)):
        image = Image.open(manifest.path(row))
        (box,) = CentreCrop(36, 32).sample(image.height, image.width, 1, np.random.default_rng())
        cut = image.resize((32, 32), Image.Resampling.BICUBIC, box=tuple(box))
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
        with torch.no_grad():
            seen.append(net.net.eval()(((pixels - mean) / std)[None]).mean((2, 3))[0])
    return torch.stack(seen).double().numpy()


def test_image_knn_equals_scikit_learns(folder, tmp_path):
    source = data(folder, tmp_path, gallery=True, eval_batch_size=7)
    module = KNN(backbone=small(), ks=(5, 1), temperature=0.07)
    logged, _ = trainer(tmp_path).test(module, source, verbose=False)
    gallery, queries = source.manifest("train"), source.manifest("val")
    for k, name in ((5, "test/knn_top1"), (1, "test/knn_top1@1")):
        votes = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        votes.fit(pooled_by_timm(module.backbone, gallery), gallery.labels)
        right = votes.predict(pooled_by_timm(module.backbone, queries)) == queries.labels
        assert logged[name] == pytest.approx(100 * right.mean())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["videos"] == {"gallery": 48, "queries": 24}
    assert result["protocol"]["data"]["eval_window"]["interpolation"] == "bicubic"
    assert result["protocol"]["input"]["frames"] == 1


def test_the_linear_probe_sweeps_its_rates_in_one_run(folder, tmp_path):
    torch.manual_seed(0)
    module = LinearProbe(
        backbone=small(),
        optimizer=SGD,
        schedule=Cosine(),
        lrs=RATES,
        augment=VideoViews(jitter=0.0, grey=0.0, blur=0.0),
        paper={"top1": 66.2},
    )
    runner = trainer(tmp_path, max_epochs=4)
    source = data(folder, tmp_path)
    runner.fit(module, source)
    runner.test(module, source, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["split"], result["videos"]) == ("test", 24)
    assert result["validated_on_test"] is True
    rows = result["selection"]["all"]
    assert [row["lr"] for row in rows] == list(RATES)
    best = max(range(5), key=lambda g: rows[g]["validation_top1"])
    assert result["selection"]["chosen"] == {"lr": RATES[best]}
    assert result["results"]["top1"] == rows[best]["test_top1"]
    assert result["results"]["top1"] > 100 / 6 + 20
    assert result["protocol"]["training"]["optimizer"]["nesterov"] is True
    # The numbers are those of the heads on features that timm computes.
    manifest = source.manifest("val")
    features = torch.from_numpy(pooled_by_timm(module.backbone, manifest)).float()
    for head, row in zip(module.heads, rows, strict=True):
        right = head(features).argmax(1).numpy() == manifest.labels
        assert row["test_top1"] == pytest.approx(100 * right.mean())


def test_one_step_of_each_rate_is_nesterovs(tmp_path):
    samples = videos(2, clips=1)
    for sample in samples:
        sample["video"] = sample["video"][:, :1].repeat(1, 1, 1, 8, 8)  # (1, 1, 3, 32, 32)
        sample["time"] = sample["time"][:, :1]
    module = LinearProbe(backbone=small(), optimizer=SGD, lrs=RATES)
    source = Tensors(train=samples, val=samples, test=samples, batch_size=12)
    torch.manual_seed(4)
    module.build(6)
    start = module.heads[0].weight.detach().clone()
    views = module.view({"video": torch.stack([s["video"] for s in samples])})["views"]
    with torch.no_grad():
        features = module.backbone.eval()(views[:, 0, :, 0]).mean((2, 3))  # (12, D)
    weight = start.clone().requires_grad_()
    labels = torch.stack([s["label"] for s in samples])
    functional.cross_entropy(features @ weight.T, labels).backward()
    trainer(tmp_path, max_epochs=1).fit(module, source)
    for head, lr in zip(module.heads, RATES, strict=True):
        # The first moment is the gradient, of which Nesterov takes 1 + 0.9.
        torch.testing.assert_close(head.weight.detach(), start - lr * 1.9 * weight.grad)


def test_an_image_network_sees_the_frames_of_a_clip_one_by_one():
    net = small().eval()
    views = torch.randn(2, 3, 3, 4, 32, 32)  # (B, V, 3, T, H, W)
    with torch.no_grad():
        frames = views.transpose(2, 3).flatten(0, 2)  # (B*V*T, 3, H, W)
        wanted = net(frames).mean((2, 3)).view(2, 3, 4, -1).mean(2)  # (B, V, D)
        probe = LinearProbe(backbone=net, optimizer=SGD)
        torch.testing.assert_close(probe.represent(views), wanted.flatten(0, 1))
        tuned = FineTune(backbone=small(), optimizer=SGD, dropout=0.0).eval()
        torch.testing.assert_close(tuned.represent(views), wanted.flatten(0, 1))
        neighbours = KNN(backbone=small())
        torch.testing.assert_close(neighbours.features(views), wanted.mean(1))
        assert Retrieval(backbone=small()).features(views).shape == (2, 64 * 18)
        tokens = AttentiveProbe(backbone=small(), optimizer=SGD).eval().represent(views)
        assert tokens.shape == (6, 4, 64)
