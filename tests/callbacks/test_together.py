"""All callbacks in one run, from a recipe."""

from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer

from tests.callbacks.parts import Data, TinyMethod

PACKAGE = "lightning_vssl.callbacks"
RECIPE = [
    {"class_path": f"{PACKAGE}.online.OnlineKNN", "init_args": {"every_n_epochs": 1, "k": 3}},
    {"class_path": f"{PACKAGE}.online.OnlineProbe", "init_args": {"videos": None}},
    {"class_path": f"{PACKAGE}.monitors.CollapseMonitor", "init_args": {"every_n_steps": 2}},
    {"class_path": f"{PACKAGE}.export.Export", "init_args": {"folder": "out"}},
]


def from_recipe() -> list[Callback]:
    parser = ArgumentParser()
    parser.add_argument("--callbacks", type=list[Callback])
    config = parser.instantiate_classes(parser.parse_object({"callbacks": RECIPE}))
    made: list[Callback] = config.callbacks
    return made


def test_a_run_from_a_recipe(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(*from_recipe(), epochs=1)
    trainer.fit(TinyMethod(), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    assert {
        "train/loss",
        "train/probe_top1",
        "val/probe_top1",
        "val/knn_top1",
        "val/retrieval_top1",
        "monitor/feature_std",
        "monitor/rankme",
    } <= trainer.callback_metrics.keys()
    assert (tmp_path / "out" / "backbone.safetensors").is_file()
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]
    assert {"OnlineKNN", "OnlineProbe", "CollapseMonitor"} <= saved.keys()

    resumed = make_trainer(*from_recipe(), epochs=2)
    resumed.fit(TinyMethod(), datamodule=Data(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert resumed.global_step == 12


def test_a_fast_development_run(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    callbacks = from_recipe()
    make_trainer(*callbacks, fast_dev_run=True).fit(TinyMethod(), datamodule=Data())
    latest = callbacks[0].latest  # type: ignore[attr-defined]
    assert latest["gallery"] == 16
    assert latest["queries"] == 12
    assert not (tmp_path / "out").exists()
