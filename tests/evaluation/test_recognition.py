import functools
import json

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from lightning_vssl.backbones.weights import export, load_backbone, sha256
from lightning_vssl.evaluation.classifiers import average_clips
from lightning_vssl.evaluation.recognition import (
    AttentiveHead,
    AttentiveProbe,
    FineTune,
    Late,
    LinearProbe,
)
from lightning_vssl.optim import Cosine, MultiStep
from tests.evaluation.small import OneLayer, Tensors, trainer, videos

SGD = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)


def data(**changes):
    sets = {"train": videos(4, seed=1), "val": videos(2, seed=2), "test": videos(2, seed=3)}
    return Tensors(**{**sets, **changes})


def test_averaging_logits_and_probabilities_name_different_classes():
    # One clip is very sure of class 0, two mildly prefer class 1.
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    assert average_clips(logits, "logits").tolist() == [3.0, pytest.approx(4 / 3), 0.0]
    assert average_clips(logits, "logits").argmax() == 0
    probabilities = average_clips(logits, "softmax")
    e2 = torch.e**2
    assert probabilities[1].item() == pytest.approx((2 * e2 / (e2 + 2) + 1 / (torch.e**9 + 2)) / 3)
    assert probabilities.argmax() == 1


def test_the_grid_equals_a_run_of_each_rate_and_leaves_the_backbone_alone(tmp_path):
    finite = []

    def look(trainer, module, optimizer):
        finite.extend(bool(p.grad.isfinite().all()) for p in module.heads.parameters())

    def fit(lrs, folder):
        torch.manual_seed(0)
        module = LinearProbe(
            backbone=OneLayer(),
            optimizer=SGD,
            schedule=Cosine(),
            lrs=lrs,
            dropout=0.2,
            batch_norm=True,
        )
        before = {k: v.clone() for k, v in module.backbone.state_dict().items()}
        callback = LambdaCallback(on_before_optimizer_step=look)
        runner = trainer(folder, max_epochs=3, gradient_clip_val=0.05, callbacks=[callback])
        torch.manual_seed(1)  # dropout
        runner.fit(module, data())
        after = module.backbone.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        return module, runner

    # The last rate ends in numbers that are none and must not touch the others.
    grid, runner = fit((0.5, 0.01, float("inf")), tmp_path / "grid")
    for g, lr in enumerate((0.5, 0.01)):
        alone, _ = fit((lr,), tmp_path / str(lr))
        for mine, its in zip(grid.heads[g].parameters(), alone.heads[0].parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    # Under 16-mixed a gradient that is no number would stop everybody's steps.
    assert not grid.heads[2].weight.isfinite().any()
    assert all(finite)
    assert not torch.allclose(grid.heads[0].weight, grid.heads[1].weight, atol=1e-2)

    result = json.loads((tmp_path / "grid" / "result.json").read_text())
    assert (result["split"], result["epochs_trained"]) == ("validation", 3)
    assert result["validated_on_test"] is False
    runner.test(grid, data(val=videos(2, seed=3)), verbose=False)
    result = json.loads((tmp_path / "grid" / "result.json").read_text())
    assert (result["split"], result["videos"]) == ("test", 12)
    assert result["results"] == {"top1": 100.0, "top5": 100.0}
    assert result["validated_on_test"] is True
    assert [row["lr"] for row in result["selection"]["all"]] == [0.5, 0.01, "inf"]
    assert result["selection"]["chosen"] == {"lr": 0.5}
    assert result["selection"]["all"][2]["test_top1"] == 0
    assert result["selection"]["by"].startswith("highest top1 on the validation set")
    training = result["protocol"]["training"]
    assert training["optimizer"]["class"] == "SGD"
    assert training["schedule"] == {
        "class": "Cosine",
        "warmup_epochs": 0.0,
        "final": 0.0,
        "warmup_steps": 0,
    }
    assert training["epochs"] == 3


def test_labels_without_meaning_give_chance(tmp_path):
    permuted = data()
    for sample in permuted.train:
        sample["label"] = (sample["label"] + 1) % 6
    module = LinearProbe(backbone=OneLayer(), optimizer=SGD, normalise=True)
    runner = trainer(tmp_path, max_epochs=8)
    runner.fit(module, permuted)
    (logged,) = runner.test(module, permuted, verbose=False)
    assert logged["test/top1"] < 20


def test_fine_tuning_resumes_where_it_stopped_and_its_backbone_is_exported(tmp_path):
    def module(weights=None):
        torch.manual_seed(0)
        return FineTune(
            backbone=OneLayer(),
            weights=weights,
            optimizer=SGD,
            schedule=MultiStep(milestones=(1,)),
            dropout=0.0,
            paper={"top1": 80.0},
        )

    whole = module()
    whole.save_hyperparameters({"object": object(), "number": 3})  # objects must not be pickled
    kept = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_top_k=-1)
    runner = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[kept])
    runner.fit(whole, data())
    assert not torch.equal(whole.backbone.norm.running_mean, torch.zeros(3))
    path = tmp_path / "checkpoints" / "epoch=0-step=3.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"] == {"number": 3}

    resumed = module()
    trainer(tmp_path, max_epochs=2).fit(resumed, data(), ckpt_path=path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    # A test in another process starts from the checkpoint, and needs no training.
    fresh = module()
    with pytest.raises(ValueError, match="never trained"):
        trainer(tmp_path).test(fresh, data(), verbose=False)
    (logged,) = trainer(tmp_path).test(
        fresh, data(), ckpt_path=kept.best_model_path, weights_only=True, verbose=False
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"]["top1"] == pytest.approx(logged["test/top1"])
    assert result["paper"] == {"top1": 80.0}
    assert result["checkpoint"] == kept.best_model_path
    assert result["protocol"]["training"]["epochs"] == 2
    assert result["protocol"]["averaging"] == "mean of the clips' logits"

    report = export(kept.best_model_path)
    assert report.method == "untouched, FineTune"
    clip = torch.rand(1, 3, 2, 4, 4)
    torch.testing.assert_close(load_backbone(report.folder)(clip), whole.eval().backbone(clip))
    # What was exported is evaluated under its own name.
    again = module(str(report.folder))
    assert again.method == "untouched, FineTune"
    assert again.weights_sha256 == sha256(report.folder)
    assert torch.equal(again.backbone.conv.weight, whole.backbone.conv.weight)
    without_backbone = FineTune(weights=str(report.folder), optimizer=SGD)
    assert without_backbone.backbone.training


def test_the_backbone_waits_while_the_classifier_is_trained(tmp_path):
    module = FineTune(
        backbone=OneLayer(), optimizer=SGD, schedule=Cosine(), head_epochs=1, dropout=0.0
    )
    before = module.backbone.conv.weight.clone()
    trainer(tmp_path, max_epochs=1).fit(module, data(val=()))
    assert torch.equal(module.backbone.conv.weight, before)
    assert module.heads[0].bias.abs().max() > 0.01
    trainer(tmp_path, max_epochs=2).fit(module, data(val=()))
    assert not torch.equal(module.backbone.conv.weight, before)


def test_a_late_schedule_is_the_other_one_later():
    late = Late(Cosine(), epochs=2)
    assert [late.factor(step, 3, 12) for step in range(6)] == [1.0] * 6
    assert [late.factor(6 + step, 3, 12) for step in range(6)] == [
        Cosine().factor(step, 3, 6) for step in range(6)
    ]


def test_the_attentive_probe_learns(tmp_path):
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    module = AttentiveProbe(backbone=OneLayer(), optimizer=optimizer, num_heads=2, lrs=(3e-2, 0.0))
    runner = trainer(tmp_path, max_epochs=15)
    runner.fit(module, data())
    (logged,) = runner.test(module, data(), verbose=False)
    assert logged["test/top1"] == 100.0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["selection"]["chosen"] == {"lr": 0.03}
    assert result["selection"]["all"][1]["validation_top1"] < 50


def test_attention_weighs_tokens_by_hand():
    torch.manual_seed(0)
    head = AttentiveHead(4, 3, num_heads=1).double().eval()
    tokens = torch.randn(2, 5, 4, dtype=torch.float64)
    seen = torch.nn.functional.layer_norm(tokens, (4,), head.norm.weight, head.norm.bias)
    q, k, v = head.attention.in_proj_weight.split(4)
    scores = (head.query[0] @ q.T) @ (seen @ k.T).transpose(1, 2) / 2  # (2, 1, 5)
    mixed = scores.softmax(dim=-1) @ (seen @ v.T) @ head.attention.out_proj.weight.T
    out = head.query + mixed
    out = out + head.mlp(out)
    torch.testing.assert_close(head(tokens), head.linear(out[:, 0]))
    # The order of positions says nothing.
    torch.testing.assert_close(head(tokens.flip(1)), head(tokens))


def test_a_frozen_backbone_stays_in_evaluation():
    module = LinearProbe(backbone=OneLayer(), optimizer=SGD).train()
    assert module.training
    assert not any(part.training for part in module.backbone.modules())
    assert not any(p.requires_grad for p in module.backbone.parameters())
    assert FineTune(backbone=OneLayer().eval(), optimizer=SGD).backbone.training


def test_mistakes_are_named(tmp_path):
    probe = LinearProbe(backbone=OneLayer(), optimizer=SGD, lrs=(0.1, 1.0))
    with pytest.raises(ValueError, match="2 classifiers need a validation set"):
        trainer(tmp_path, max_epochs=1).fit(probe, data(val=()))
    with pytest.raises(ValueError, match="has 5 classes and the data 6"):
        trainer(tmp_path).fit(FineTune(backbone=OneLayer(), optimizer=SGD, num_classes=5), data())
    with pytest.raises(ValueError, match="does not know how many classes"):
        trainer(tmp_path).fit(FineTune(backbone=OneLayer(), optimizer=SGD), data(num_classes=0))
    with pytest.raises(ValueError, match="not the checkpoint of a probe"):
        probe.on_load_checkpoint({"state_dict": {}})
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        FineTune(backbone=OneLayer(), optimizer=SGD, dropout=1.0)
    with pytest.raises(ValueError, match="num_heads must divide the backbone's 6 features"):
        AttentiveHead(6, 3, num_heads=4)
    with pytest.raises(ValueError, match="lrs must be null or numbers"):
        LinearProbe(backbone=OneLayer(), optimizer=SGD, lrs=())
