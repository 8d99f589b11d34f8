"""Fine-tuning of an image network frame by frame, as VITO (A.5)."""

import functools
import json

import pytest
import torch

from lightning_vssl.backbones import R3D18, TimmNet
from lightning_vssl.evaluation.recognition import FineTune
from lightning_vssl.nn.temporal_pool import multiscale_average
from lightning_vssl.optim import Cosine
from tests.evaluation.small import Tensors, trainer

ADAM = functools.partial(torch.optim.Adam, lr=5e-3)
POOLINGS = ("average", "multiscale", "multiscale_attention")


def net():
    torch.manual_seed(0)
    return TimmNet("resnet50", width=4, depth=(1, 1, 1, 1))


def tuned(**changes):
    return FineTune(**{"backbone": net(), "optimizer": ADAM, "dropout": 0.0, **changes})


def clip_of(frames, label, index):
    return {
        "video": frames[None],
        "label": torch.tensor(label),
        "index": torch.tensor(index),
        "time": torch.arange(len(frames), dtype=torch.float64)[None] / 12,
    }


def twenty_clips():
    """Noise: there is nothing to learn but the clips themselves."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (20, 4, 3, 24, 24), generator=generator).to(torch.uint8)
    return [clip_of(frames, i % 5, i) for i, frames in enumerate(pixels)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_learns_twenty_clips_by_heart(pooling, tmp_path):
    clips = twenty_clips()
    # The rate ends at 0: a constant one leaves batch norm's running statistics behind the weights,
    # and Adam free to leap once gradients have vanished, here of sums that nothing normalises.
    module = tuned(pooling=pooling, averaging="softmax", schedule=Cosine())
    runner = trainer(tmp_path, max_epochs=20)
    data = Tensors(train=clips, test=clips, batch_size=10, num_classes=5)
    runner.fit(module, data)
    (logged,) = runner.test(module, data, verbose=False)
    assert logged["test/top1"] == 100.0
    protocol = json.loads((tmp_path / "result.json").read_text())["protocol"]
    assert protocol["pooling"] == pooling
    assert protocol["averaging"] == "mean of the clips' softmax"
    assert protocol["input"]["frames"] == 4


@pytest.mark.parametrize(
    ("pooling", "least", "most"), [("average", 50, 50), ("multiscale", 100, 100)]
)
def test_the_order_of_the_halves_is_seen_by_the_scales_alone(pooling, least, most, tmp_path):
    # Both classes hold the same frames, in the opposite order.
    frames = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    frames[:2, 0], frames[2:, 2] = 200, 200
    clips = [clip_of(frames, 0, 0), clip_of(frames.flip(0), 1, 1)]
    module = tuned(pooling=pooling)
    runner = trainer(tmp_path, max_epochs=12)
    data = Tensors(train=clips * 4, test=clips, num_classes=2)
    runner.fit(module, data)
    (logged,) = runner.test(module, data, verbose=False)
    assert least <= logged["test/top1"] <= most


def test_both_scales_are_those_of_the_frames_one_by_one():
    module = tuned(pooling="multiscale", clips_at_once=2)
    module.build(7)
    module.double().eval()
    views = torch.randn(2, 3, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        seen = module.represent(views)
        logits = module.logits(seen)[0]
        for row, clip in enumerate(views.flatten(0, 1)):
            maps = [
                module.backbone.features(clip[:, t][None], ["layer3", "layer4"]) for t in range(4)
            ]
            early, late = (
                torch.stack([one[name][0].mean((1, 2)) for one in maps])[None]
                for name in ("layer3", "layer4")
            )
            torch.testing.assert_close(seen[row], torch.cat([early, late], dim=2)[0])
            linear = module.heads[0][-1]
            wanted = linear(multiscale_average(early, late))[0]
            torch.testing.assert_close(logits[row], wanted)
    assert linear.in_features == 2 * 64 + 128


def test_the_weights_of_attention_are_trained_and_kept_with_the_classifier():
    module = tuned(pooling="multiscale_attention")
    module.build(5)
    grouped = {p for group in module.groups() for p in group["params"]}
    pool = module.heads[0][0]
    assert {pool.early_weight, pool.late_weight} <= grouped
    assert "heads.0.0.early_weight" in module.state_dict()


def test_bad_input():
    with pytest.raises(ValueError, match="R3D18 is one over time and space: leave it at average"):
        tuned(backbone=R3D18(width=4, depth=(1, 1, 1, 1)), pooling="multiscale")
    with pytest.raises(ValueError, match="pooling must be one of average"):
        tuned(pooling="max")
