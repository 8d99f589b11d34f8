"""What the header of recipes/eval/ava.yaml says may be changed on the command line can be."""

import torch

from lightning_vssl.augment.views import IMAGENET_MEAN, IMAGENET_STD
from lightning_vssl.backbones import R3D18
from lightning_vssl.backbones.weights import export
from lightning_vssl.nn.action_transformer import ActionTransformer, RoIHead
from tests.evaluation.test_localization import module
from tests.recipes.test_recipes import HERE, ON_CPU, RECIPES, configured

PIXELS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}  # of R3D18; the recipe has others
SMALL = ["--config", str(HERE / "small" / "eval_ava.yaml")]


def built(*words):
    """The recipe's evaluation on two classes, without data."""
    model = configured(RECIPES / "eval" / "ava.yaml", *ON_CPU, *words, instantiate=True).model
    model.build(2)
    return model.train()


def test_a_frozen_backbone_and_the_plain_head():
    probe = built(*SMALL, "--model.frozen", "true")
    assert isinstance(probe.head, ActionTransformer)
    assert probe.head.training
    assert not probe.backbone.training
    assert not any(p.requires_grad for p in probe.backbone.parameters())
    path = f"{RoIHead.__module__}.{RoIHead.__qualname__}"
    plain = built(*SMALL, "--model.head", path, "--model.class_loss", "mean")
    assert isinstance(plain.head, RoIHead)
    assert plain.class_loss == "mean"
    assert all(p.requires_grad for p in plain.parameters())


def test_the_backbone_that_the_weights_describe(tmp_path):
    trained = module(backbone=R3D18(width=4, depth=(1, 1, 1, 1)))
    trained.build(2)
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    export(tmp_path / "last.ckpt", tmp_path / "export")
    words = ["--model.backbone", "null", "--model.weights", str(tmp_path / "export")]
    pixels = [f"--model.augment.{name}={list(v)}" for name, v in PIXELS.items()]
    model = built(*words, *pixels)
    assert isinstance(model.backbone, R3D18)
    mine, its = model.backbone.state_dict(), trained.backbone.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in its.items())
    with torch.no_grad():
        logits = model(torch.zeros(1, 1, 3, 8, 32, 32), torch.tensor([[[0.0, 0, 9, 9]]]))
    assert logits.shape == (1, 1, 2)
