"""Action localisation: fitted, shuffled, resumed, gathered; and what it refuses."""

import csv
import functools
import json

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vssl.augment.jitter import JitteredViews
from lightning_vssl.backbones.weights import export
from lightning_vssl.evaluation.localization import ActionLocalisation
from lightning_vssl.metrics.detection import DetectionMetric
from lightning_vssl.nn.action_transformer import ActionTransformer, RoIHead
from tests.evaluation.people import People, people, task_of
from tests.evaluation.small import PLAIN, OneLayer, Tensors, trainer, videos

ADAM = functools.partial(torch.optim.Adam, lr=0.02)
SMALL = functools.partial(ActionTransformer, hidden=16, layers=1, heads=2, dropout=0.0)
PLAIN_HEAD = functools.partial(RoIHead, dropout=0.0)


def module(head=SMALL, **changes):
    torch.manual_seed(0)
    arguments = {"backbone": OneLayer(), "head": head, "optimizer": ADAM, **changes}
    return ActionLocalisation(**arguments)


@pytest.mark.parametrize("head", [SMALL, PLAIN_HEAD], ids=["transformer", "plain"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "fine-tuned"])
def test_twenty_clips_are_learned(tmp_path, head, frozen):
    clips = people(20, seed=1)
    data = People(train=clips, val=clips, test=clips, batch_size=20)
    model = module(head, frozen=frozen, paper={"mAP": 31.1})
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    epochs = 60 if head is SMALL else 200
    runner = trainer(tmp_path, max_epochs=epochs, check_val_every_n_epoch=epochs)
    runner.fit(model, data)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["split"], result["steps_trained"]) == ("validation", epochs)
    (logged,) = runner.test(model, data, verbose=False)
    # The plain head knows no order in time: it tells a flicker by its mean shade.
    assert logged["test/mAP"] >= 95
    after = model.backbone.state_dict()
    assert frozen == all(torch.equal(after[name], value) for name, value in before.items())

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"] == {"mAP": pytest.approx(logged["test/mAP"])}
    assert (result["split"], result["boxes"], result["paper"]) == ("test", 39, {"mAP": 31.1})
    assert list(result["average_precision"])[::3] == ["1 red", "4 yellow", "7 flicker"]
    precision = result["average_precision"].values()
    assert np.mean(list(precision)) == pytest.approx(logged["test/mAP"])
    assert result["protocol"]["frozen_backbone"] is frozen
    assert result["protocol"]["head"] == model.head.config
    assert result["protocol"]["training"]["optimizer"]["class"] == "Adam"
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 39 * 7
    assert {len(row) for row in rows} == {8}
    assert all(0 <= float(row[7]) <= 1 for row in rows)


def test_shuffled_labels_leave_held_out_clips_at_chance(tmp_path):
    clips, others = people(40, seed=1), people(40, seed=2)

    def held_out(train):
        model = module(frozen=True)
        runner = trainer(tmp_path, max_epochs=50)
        data = People(train=train, test=others, batch_size=40)
        runner.fit(model, data)
        return runner.test(model, data, verbose=False)[0]["test/mAP"] / 100

    def shuffled():
        order = np.random.default_rng(0).permutation(79)
        labels = torch.cat([s["box_labels"][0, s["box_index"] >= 0] for s in clips])[order]
        made = []
        for sample in clips:
            own = sample["box_index"][sample["box_index"] >= 0]
            changed = sample["box_labels"].clone()
            changed[0, : len(own)] = labels[own]
            made.append({**sample, "box_labels": changed})
        return made

    task = task_of(others)
    metric, chance = DetectionMetric(task), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        metric.update(torch.rand(79, 7, generator=generator), torch.arange(79))
        chance.append(metric.compute()["mAP"])
        metric.reset()
    assert min(chance) < held_out(shuffled()) < max(chance)
    assert held_out(clips) > 0.9 > 2 * max(chance)


def test_a_run_resumes_where_it_stopped_and_its_backbone_is_exported(tmp_path):
    clips = people(20, seed=1)

    def fit(folder, epochs, ckpt=None):
        model = module(augment=JitteredViews(*PLAIN, scale=(0.8, 1.2)))
        keep = ModelCheckpoint(dirpath=folder, save_last=True, enable_version_counter=False)
        runner = trainer(folder, max_epochs=epochs, enable_checkpointing=True, callbacks=[keep])
        runner.fit(model, People(train=clips), ckpt_path=ckpt)
        return model

    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    resumed = fit(tmp_path / "parts", 4, tmp_path / "parts" / "last.ckpt")
    assert int(resumed.steps_trained) == 8
    for (name, mine), its in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, its), name

    data = People(test=people(10, seed=3))
    tested = module(head=SMALL)
    (logged,) = trainer(tmp_path).test(
        tested, data, ckpt_path=tmp_path / "whole" / "last.ckpt", verbose=False
    )
    assert (tmp_path / "result.json").is_file()
    (direct,) = trainer(tmp_path / "direct").test(whole, data, verbose=False)
    assert logged == direct
    report = export(tmp_path / "whole" / "last.ckpt", tmp_path / "export")
    assert report.method == "untouched, ActionLocalisation"
    with pytest.raises(ValueError, match="not the checkpoint of an ActionLocalisation"):
        tested.on_load_checkpoint({"state_dict": {}})


def test_an_early_stage_and_an_image_network(tmp_path):
    clips = people(6, seed=1)
    data = People(train=clips, test=clips)
    for backbone in (OneLayer(dims=2), OneLayer()):
        model = module(backbone=backbone, stage="only", clips_at_once=4)
        runner = trainer(tmp_path, max_epochs=1)
        runner.fit(model, data)
        runner.test(model, data, verbose=False)
        made = model(torch.rand(2, 1, 3, 4, SIZE, SIZE), torch.full((2, 3, 4), torch.nan))
        assert made.isfinite().all()
        assert made.shape == (2, 3, 7)
    with pytest.raises(ValueError, match="stage must be null or one of only, got 'layer3'"):
        module(stage="layer3")


SIZE = 24


def test_places_follow_the_boxes_whatever_the_size_of_the_view():
    model = module(PLAIN_HEAD).eval()
    model.build(7)
    views = torch.zeros(1, 1, 3, 2, SIZE, 2 * SIZE)
    views[..., 4:12, 30:44] = 1  # a white rectangle
    boxes = torch.tensor([[[30.0, 4, 44, 12], [2, 4, 16, 12], [30, 14, 44, 22]]])
    with torch.no_grad():
        inside, left, below = model(views, boxes)[0]
        blank = model(torch.zeros_like(views), boxes)[0, 0]
    assert torch.equal(left, blank)
    assert torch.equal(below, blank)
    assert (inside - blank).abs().max() > 1e-3


def test_confidence_reaches_the_metric_and_a_clip_without_a_box_is_no_error(tmp_path):
    clips = people(6, seed=1)
    for sample in clips[:2]:
        sample["boxes"].fill_(torch.nan)
        sample["box_index"].fill_(-1)
    model = module(confidence=False, variant="slowfast", class_loss="mean")
    assert (model.metric.confidence, model.metric.variant) == (False, "slowfast")
    runner = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=1)
    runner.fit(model, People(train=clips[:2], batch_size=2))
    data = People(test=clips)
    data.task = lambda split: task_of(people(6, seed=1))
    runner.test(model, data, verbose=False)
    assert json.loads((tmp_path / "result.json").read_text())["boxes"] == 9
    assert all(p.isfinite().all() for p in model.parameters())


def test_mistakes_are_named(tmp_path):
    clips = people(4)
    with pytest.raises(ValueError, match="class_loss must be sum or mean"):
        module(class_loss="max")
    with pytest.raises(ValueError, match="variant='voc': choose activitynet"):
        module(variant="voc")
    with pytest.raises(ValueError, match="was never trained"):
        trainer(tmp_path).test(module(), People(test=clips), verbose=False)
    with pytest.raises(ValueError, match="Tensors has none: use AVA"):
        trainer(tmp_path, max_epochs=1).fit(module(), Tensors(train=videos(1)))
    with pytest.raises(RuntimeError, match="the head is not built"):
        module()(torch.zeros(1, 1, 3, 2, 8, 8), torch.zeros(1, 1, 4))
    built = module()
    built.build(7)
    with pytest.raises(ValueError, match="has 7 classes and the data 80"):
        built.build(80)

    def without(*names):
        left = [{k: v for k, v in sample.items() if k not in names} for sample in clips]
        return People(train=left)

    for name, message in (("boxes", "the batch has none"), ("box_labels", "no 'box_labels'")):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, max_epochs=1).fit(module(), without(name))
    doubled = [{**s, "boxes": s["boxes"].expand(1, 4, -1, -1)} for s in clips]
    with pytest.raises(ValueError, match="boxes of its key frame"):
        trainer(tmp_path, max_epochs=1).fit(module(), People(train=doubled))
