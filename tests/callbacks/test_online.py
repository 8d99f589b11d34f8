import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_vssl.callbacks.online import OnlineKNN, OnlineProbe, encode
from lightning_vssl.data.decode import UnreadableVideo
from tests.callbacks.parts import Clips, Data, TinyMethod

MakeTrainer = Callable[..., Trainer]


def rows_of(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --- encode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_encode_against_one_video_at_a_time(make_trainer: MakeTrainer, dims: int) -> None:
    torch.manual_seed(0)
    method = TinyMethod(dims)
    data = Clips([5, 3, 9, 3, 7, 0, 9], unlabelled=[7])  # out of order, repeated, one unlabelled
    found = encode(make_trainer(), method, DataLoader(data, batch_size=3))
    assert found.rows.tolist() == [0, 3, 5, 9]
    assert found.labels.tolist() == [0, 3, 1, 1]
    method.eval()
    for row, feature in zip(found.rows.tolist(), found.features, strict=True):
        video = Clips([row])[0]["video"].double() / 127.5 - 1  # (V, T, 3, H, W)
        expected = torch.zeros(4, dtype=torch.float64)
        for clip in video:
            if dims == 3:
                maps = method.backbone(clip.transpose(0, 1)[None].float())
                expected += maps[0].double().mean((1, 2, 3)) / 2
            else:
                for frame in clip:
                    expected += method.backbone(frame[None].float())[0].double().mean((1, 2)) / 8
        assert torch.allclose(feature.double(), expected, atol=1e-6)


def test_encode_leaves_no_trace(make_trainer: MakeTrainer) -> None:
    method = TinyMethod()
    method.train()
    method.backbone.norm.eval()  # a frozen norm stays frozen
    state = {name: x.clone() for name, x in method.state_dict().items()}
    numbers = torch.get_rng_state()
    encode(make_trainer(), method, DataLoader(Clips(range(6)), batch_size=4, shuffle=True))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert method.training
    assert method.backbone.conv.training
    assert not method.backbone.norm.training
    for name, x in method.state_dict().items():
        assert torch.equal(x, state[name])


def test_encode_with_workers(make_trainer: MakeTrainer) -> None:
    method = TinyMethod()
    plain = encode(make_trainer(), method, DataLoader(Clips(range(7)), batch_size=2))
    loader = DataLoader(Clips(range(7)), batch_size=2, num_workers=2, prefetch_factor=1)
    for a, b in zip(plain, encode(make_trainer(), method, loader), strict=True):
        assert torch.equal(a, b)


def test_encode_takes_the_same_few_videos_of_all_classes(make_trainer: MakeTrainer) -> None:
    loader = DataLoader(Clips(range(40)), batch_size=4)
    method = TinyMethod()
    some = encode(make_trainer(), method, loader, videos=16)
    torch.manual_seed(5)
    again = encode(make_trainer(), method, loader, videos=16)
    assert len(some.rows) == 16
    assert torch.equal(some.rows, again.rows)
    assert some.labels.unique().tolist() == [0, 1, 2, 3]
    assert some.rows.tolist() != list(range(16))


# --- OnlineKNN ------------------------------------------------------------------------------


def test_a_run_is_measured_and_not_changed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    losses = []
    callbacks = [OnlineKNN(every_n_epochs=2, k=3), OnlineProbe()]
    for chosen in ([], callbacks):
        seed_everything(1, verbose=False)
        method = TinyMethod()
        make_trainer(*chosen, epochs=3, log=True).fit(method, datamodule=Data())
        losses.append(torch.stack(method.losses))
    assert torch.equal(*losses)

    knn = callbacks[0]
    assert isinstance(knn, OnlineKNN)
    content = json.loads((tmp_path / "online_knn.json").read_text())
    assert content["step"] == 18
    assert content["chance"] == 0.25
    assert content["pretrained"] == knn.latest
    assert content["untouched"] == knn.before
    assert content["pretrained"]["queries"] == 12
    assert content["pretrained"]["gallery"] == 24
    assert content["pretrained"]["knn_top1"] > 0.5  # brightness is easy
    assert not list(tmp_path.glob("*.part"))

    rows = rows_of(tmp_path)
    knn_rows = [(r["step"], float(r["val/knn_top1"])) for r in rows if r["val/knn_top1"]]
    assert [step for step, _ in knn_rows] == ["0", "11", "18"]  # before, second epoch, end
    assert knn.before is not None
    assert knn.latest is not None
    assert knn_rows[0][1] == pytest.approx(knn.before["knn_top1"])
    assert knn_rows[-1][1] == pytest.approx(knn.latest["knn_top1"])
    assert sum(bool(r["val/retrieval_top1"]) for r in rows) == 3
    assert sum(bool(r["train/probe_top1"]) for r in rows) == 18
    assert sum(bool(r["val/probe_top1"]) for r in rows) == 3


def test_the_measurement_is_that_of_the_backbone(make_trainer: MakeTrainer) -> None:
    """Against loops: the vote and the nearest neighbour from features of single videos."""
    torch.manual_seed(2)
    method, data = TinyMethod(), Data()
    trainer = make_trainer()
    trainer.datamodule = data  # type: ignore[attr-defined]
    found = OnlineKNN(k=5, temperature=0.1).measure(trainer, method)
    gallery = encode(trainer, method, data.gallery_dataloader())
    queries = encode(trainer, method, DataLoader(Clips(range(12), seed=1), batch_size=5))
    right = nearest_right = 0
    for q, label in zip(queries.features.double(), queries.labels.tolist(), strict=True):
        cosines = F.cosine_similarity(q[None], gallery.features.double()).tolist()
        order = sorted(range(24), key=lambda i: -cosines[i])[:5]
        votes = [0.0] * 4
        for i in order:
            votes[int(gallery.labels[i])] += float(torch.tensor(cosines[i] / 0.1).exp())
        right += votes.index(max(votes)) == label
        nearest_right += int(gallery.labels[order[0]]) == label
    assert found["knn_top1"] == pytest.approx(right / 12)
    assert found["retrieval_top1"] == pytest.approx(nearest_right / 12)


def test_table(make_trainer: MakeTrainer) -> None:
    knn = OnlineKNN(k=20)
    with pytest.raises(ValueError, match="Nothing was measured"):
        knn.table()
    knn.latest = {
        "knn_top1": 0.5,
        "retrieval_top1": 0.4567,
        "chance": 0.125,
        "gallery": 100,
        "queries": 20,
    }
    knn.before = {**knn.latest, "knn_top1": 0.2}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(knn.table())
    text = console.export_text()
    assert "20 held-out videos among 100 training videos" in text
    lines = {line.split()[1]: line.split() for line in text.splitlines() if "│" in line}
    assert lines["pretrained"][3::2] == ["50.0", "45.7"]
    assert lines["untouched"][3::2] == ["20.0", "45.7"]
    assert lines["chance"][3::2] == ["12.5", "12.5"]


def test_a_resumed_run_remembers_the_untouched_encoder(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    seed_everything(1, verbose=False)
    first = OnlineKNN()
    trainer = make_trainer(first, epochs=1)
    trainer.fit(TinyMethod(), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)

    seed_everything(2, verbose=False)  # another fresh encoder
    second = OnlineKNN()
    trainer = make_trainer(second, epochs=2)
    trainer.fit(TinyMethod(), datamodule=Data(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert first.before is not None
    assert second.before == first.before
    assert json.loads((tmp_path / "online_knn.json").read_text())["step"] == 12


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (Data(labels=False), ValueError, "needs labels, and the data have none"),
        (Data(validation=False), ValueError, "no validation split"),
        (LightningDataModule(), TypeError, "needs a datamodule with gallery_dataloader"),
    ],
)
def test_what_the_data_lack_is_said(
    make_trainer: MakeTrainer, data: LightningDataModule, kind: type[Exception], words: str
) -> None:
    trainer = make_trainer()
    trainer.datamodule = data  # type: ignore[attr-defined]
    with pytest.raises(kind, match=words):
        OnlineKNN().measure(trainer, TinyMethod())


class Broken(Clips):
    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if number in (2, 4, 5):
            raise UnreadableVideo("broken.mp4", "cut short")
        return super().__getitem__(number)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_videos_are_left_out(make_trainer: MakeTrainer, workers: int) -> None:
    loader = DataLoader(Broken(range(7)), batch_size=2, num_workers=workers)
    with pytest.warns(UserWarning, match="watcher: 3 of 7 videos could not be read"):
        found = encode(make_trainer(), TinyMethod(), loader, who="watcher")
    assert found.rows.tolist() == [0, 1, 3, 6]


def test_videos_without_any_label_are_refused(make_trainer: MakeTrainer) -> None:
    loader = DataLoader(Clips(range(3), unlabelled=range(3)), batch_size=2)
    with pytest.raises(ValueError, match="of 3 read none has a label"):
        encode(make_trainer(), TinyMethod(), loader)


def test_a_module_without_backbone_is_refused(make_trainer: MakeTrainer) -> None:
    method = LightningModule()
    method.backbone = method.view = torch.nn.Identity()
    with pytest.raises(TypeError, match="has Identity and Identity"):
        encode(make_trainer(), method, DataLoader(Clips(range(3))))


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="k=0"):
        OnlineKNN(k=0)
    with pytest.raises(ValueError, match=r"lr=0\.0"):
        OnlineProbe(lr=0.0)


# --- OnlineProbe ----------------------------------------------------------------------------


def make_probe(make_trainer: MakeTrainer, lr: float = 0.02) -> OnlineProbe:
    probe = OnlineProbe(lr=lr, weight_decay=0.1)
    trainer = make_trainer()
    trainer.datamodule = Data()  # type: ignore[attr-defined]
    probe.on_train_start(trainer, TinyMethod())
    return probe


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    noise = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 4, generator=noise)
    made = []
    for _ in range(count):
        label = torch.randint(0, 4, (16,), generator=noise)
        made.append((5 + 0.1 * (centres[label] + torch.randn(16, 4, generator=noise) / 9), label))
    return made


def test_probe_against_plain_autograd(make_trainer: MakeTrainer) -> None:
    probe = make_probe(make_trainer)
    weight = torch.zeros(4, 4, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.02, weight_decay=0.1)
    seen: list[torch.Tensor] = []
    for x, label in batches(5):
        label = label.clone()
        label[:3] = -1  # unlabelled
        if seen:
            decay = torch.tensor([0.99 ** (len(seen) - 1 - i) for i in range(len(seen))])
            decay = decay / decay.sum()
            mean = sum(w * part.mean(0) for w, part in zip(decay, seen, strict=True))
            square = sum(w * part.square().mean(0) for w, part in zip(decay, seen, strict=True))
            scale = (square - mean**2 + 1e-6 * (1 + mean**2)).rsqrt()
            scores = (x - mean) * scale @ weight.T + bias
        else:
            scores = torch.zeros(16, 4) @ weight.T + bias
        kept = label >= 0
        expected = (scores.argmax(1)[kept] == label[kept]).float().mean()
        assert probe.step(x, label) == pytest.approx(expected.item())
        optimizer.zero_grad()
        F.cross_entropy(scores[kept], label[kept]).backward()
        optimizer.step()
        seen.append(x[kept])
        assert probe.probe is not None
        # Variances are small differences of float32 squares here: 5 +- 0.1.
        assert torch.allclose(probe.probe.weight, weight, atol=2e-3)
        assert torch.allclose(probe.probe.bias, bias, atol=2e-3)


def test_probe_learns_off_centre_features(make_trainer: MakeTrainer) -> None:
    probe = make_probe(make_trainer)
    accuracy = [float(probe.step(x, y)) for x, y in batches(120)]
    assert sum(accuracy[:2]) / 2 < 0.5
    assert sum(accuracy[-20:]) / 20 > 0.95


def test_a_batch_without_labels_changes_nothing_but_adam(make_trainer: MakeTrainer) -> None:
    probe = make_probe(make_trainer)
    assert float(probe.step(torch.randn(3, 4), torch.full((3,), -1))) == 0
    assert probe.probe is not None
    assert all(p.isfinite().all() for p in probe.probe.parameters())


def test_probe_state_continues(make_trainer: MakeTrainer) -> None:
    made = batches(8)
    straight, first = make_probe(make_trainer), make_probe(make_trainer)
    for x, y in made:
        straight.step(x, y)
    for x, y in made[:4]:
        first.step(x, y)
    second = OnlineProbe(lr=0.02, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    assert (
        second.state_dict()["probe"].keys() == first.state_dict()["probe"].keys()
    )  # before a start
    trainer = make_trainer()
    trainer.datamodule = Data()  # type: ignore[attr-defined]
    second.on_train_start(trainer, TinyMethod())
    for x, y in made[4:]:
        second.step(x, y)
    assert straight.probe is not None
    assert second.probe is not None
    for a, b in zip(straight.probe.parameters(), second.probe.parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_gradient_reaches_the_method(make_trainer: MakeTrainer) -> None:
    probe = make_probe(make_trainer)
    x = torch.randn(3, 4, requires_grad=True)
    probe.step(x, torch.tensor([0, 1, 2]))
    assert x.grad is None


def test_probe_says_what_is_missing(make_trainer: MakeTrainer) -> None:
    probe = make_probe(make_trainer)
    trainer, method = make_trainer(), TinyMethod()
    with pytest.raises(ValueError, match=r"outputs\['embedding'\]"):
        probe.on_train_batch_end(trainer, method, {"loss": torch.zeros(())}, {}, 0)
    with pytest.raises(ValueError, match=r"must be \(2, 4\)"):
        probe.step(torch.zeros(2, 5), torch.tensor([0, 1]))
