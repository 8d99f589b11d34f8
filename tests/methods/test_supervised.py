"""Supervised as a whole: its step against the formula, what it validates, what it refuses."""

import functools
import math

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.augment.views import FineTuneViews, Normalise
from lightning_vssl.backbones import load_backbone
from lightning_vssl.callbacks.export import Export
from lightning_vssl.evaluation.recognition import FineTune
from lightning_vssl.methods.supervised import Supervised
from lightning_vssl.nn.keyed import sample_key
from tests.methods.clips import ClipNet
from tests.methods.frames import FrameNet

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def small(**options: object) -> Supervised:
    torch.manual_seed(0)
    return Supervised(ClipNet(), FineTuneViews(), SGD, **options)


def batch(size: int = 4, views: int = 2, classes: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, views, 4, 3, 32, 32)
    return {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "key": torch.tensor([sample_key(0, 0, i) for i in range(size)]),
        "index": torch.arange(size),
        "label": torch.arange(size) % classes,
    }


def test_step_equals_the_cross_entropy_written_out() -> None:
    method = small(dropout=0.0, init_std=0.3).double()
    method.build(3)
    method.double()
    views = method.augment(batch())["views"].double()
    found = method._step({**batch(), "views": views})
    maps = method.backbone(views.flatten(0, 1)).detach()
    total = 0.0
    for row, map_ in enumerate(maps):  # two clips of each video
        scores = [float((map_.mean((1, 2, 3)) * w).sum() + b) for w, b in classes_of(method)]
        right = int(batch()["label"][row // 2])
        total += math.log(sum(math.exp(s) for s in scores)) - scores[right]
    assert found["loss"].item() == pytest.approx(total / 8, rel=1e-9)
    assert found["embedding"].shape == (4, 12)


def classes_of(method: Supervised) -> list[tuple[Tensor, Tensor]]:
    return list(zip(method.head.weight.detach(), method.head.bias.detach(), strict=True))


def test_validation_takes_the_mean_logits_of_all_clips(monkeypatch) -> None:
    method = small()
    method.build(3)
    logits = torch.tensor([[[5.0, 0.0, 4.0], [0.0, 5.0, 4.0]]])  # either clip alone is wrong
    step = {"loss": torch.tensor(0.0), "logits": logits}
    monkeypatch.setattr(method, "_step", lambda batch: step)
    monkeypatch.setattr(method, "log", lambda *args, **options: None)
    method.validation_step({"label": torch.tensor([2]), "index": torch.tensor([0])}, 0)
    assert method.accuracy is not None
    assert method.accuracy.compute() == {1: [1.0]}


def test_an_image_network_sees_every_frame_by_itself() -> None:
    torch.manual_seed(0)
    network = FrameNet()
    method = Supervised(network, FineTuneViews(), SGD).eval()
    views = torch.randn(2, 1, 3, 3, 32, 32)
    with torch.no_grad():
        pooled = method.pooled(views)
        frames = [network(views[:, 0, :, t]).mean((2, 3)) for t in range(3)]
    assert pooled.shape == (2, 1, network.num_features)
    torch.testing.assert_close(pooled[:, 0], torch.stack(frames).mean(0))


def test_every_parameter_gets_a_gradient() -> None:
    method = small(dropout=0.0, init_std=0.3)
    method.build(3)
    method._step(method.augment(batch()))["loss"].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


class Moving(LightningDataModule):
    """Bright squares that go left or right, or stand: no frame shows the class."""

    num_classes = 3

    def __init__(self, batch_size: int = 6) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.samples = [self._sample(i) for i in range(24)]

    @staticmethod
    def _sample(number: int) -> dict[str, Tensor]:
        label = number % 3
        video = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
        for t in range(4):
            left = 12 + 2 * (number % 4) + 3 * t * (label - 1)
            video[0, t, :, 8:20, left : left + 8] = 255
        return {
            "video": video,
            "key": torch.tensor(sample_key(0, 0, number)),
            "index": torch.tensor(number),
            "label": torch.tensor(label),
        }

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.samples, self.batch_size)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        twice = [*self.samples, *self.samples[:5]]  # as a distributed sampler would
        return DataLoader(twice, 7)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def trainer(folder: object, **options: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_learns_motion_and_leaves_a_backbone_that_evaluations_take(tmp_path) -> None:
    torch.manual_seed(0)
    method = Supervised(
        ClipNet(width=8),
        Normalise(*ClipNet().pixels),
        functools.partial(torch.optim.AdamW, lr=0.01),
        dropout=0.0,
    )
    run = trainer(tmp_path, max_epochs=12, callbacks=[Export()])
    run.fit(method, Moving())
    top1 = float(run.callback_metrics["val/top1"])
    assert top1 > 90
    with torch.no_grad():  # by hand: each video once, in percent
        method.eval()
        rows = [{k: v[None] for k, v in sample.items()} for sample in Moving().samples]
        right = [
            int(method._step(method.view(row))["logits"][0, 0].argmax()) == int(row["label"])
            for row in rows
        ]
    assert top1 == pytest.approx(100 * sum(right) / len(right), abs=1e-4)
    exported = load_backbone(tmp_path / "export")
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value), name
    taken = FineTune(optimizer=SGD, weights=str(tmp_path / "export"))
    assert taken.method == "Supervised"


def test_a_run_continues_and_other_classes_are_refused(tmp_path) -> None:
    torch.manual_seed(0)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(small(), Moving())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again = small()
    more = trainer(tmp_path, max_epochs=2)
    more.fit(again, Moving(), ckpt_path=tmp_path / "last.ckpt")
    assert more.global_step == 2 * saved["global_step"]
    other = Moving()
    other.num_classes = 4
    with pytest.raises(ValueError, match="3 classes and the data 4"):
        trainer(tmp_path, max_epochs=2).fit(small(), other, ckpt_path=tmp_path / "last.ckpt")


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="dropout must be in"):
        small(dropout=1.0)
    with pytest.raises(ValueError, match="num_classes must be"):
        small(num_classes=1)
    nameless = Moving()
    nameless.num_classes = 0
    with pytest.raises(ValueError, match="how many classes there are"):
        trainer(tmp_path).fit(small(), nameless)
    nameless.num_classes = 1
    with pytest.raises(ValueError, match="Moving found a single class"):
        trainer(tmp_path).fit(small(), nameless)
    sided = Moving()
    sided.handed = True
    with pytest.raises(ValueError, match="FineTuneViews mirrors clips, and the classes of Moving"):
        trainer(tmp_path).fit(small(), sided)
    with pytest.raises(ValueError, match="num_classes=5, but the data has 3"):
        trainer(tmp_path).fit(small(num_classes=5), Moving())
    method = small(num_classes=3)
    method.build(3)
    unlabelled = {k: v for k, v in method.augment(batch()).items() if k != "label"}
    with pytest.raises(ValueError, match="needs labelled videos"):
        method._step(unlabelled)
