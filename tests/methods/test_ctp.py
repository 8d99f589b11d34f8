"""CtP as a whole: its step against the formula, its counts, what it learns first."""

import functools

import pytest
import torch
from torch import nn

from lightning_vssl.augment.label_sources import CycleTracks
from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
from lightning_vssl.backbones import R3D18
from lightning_vssl.losses.trajectory import decode, encode
from lightning_vssl.methods.ctp import CtP
from lightning_vssl.nn.keyed import sample_key

PATCHES = PatchTracks(scales=(9, 14, 18), speed=1.7)


def _small(tracks: nn.Module = PATCHES, **options: object) -> CtP:
    torch.manual_seed(0)
    return CtP(
        backbone=R3D18(width=4, depth=(1, 1, 1, 1), last_stride=1),
        augment=CatchThePatch(tracks=tracks),
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        hidden_channels=16,
        **options,
    )


def _batch(size: int = 2, frames: int = 16, side: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, 1, frames, 3, side, side)
    return {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "key": torch.tensor([sample_key(0, 0, i) for i in range(size)]),
        "index": torch.arange(size),
    }


def test_the_papers_network_has_its_parameters():
    with torch.device("meta"):
        backbone = R3D18(last_stride=1)
        method = CtP(backbone, nn.Identity(), functools.partial(torch.optim.SGD, lr=0.01))
    whole = sum(p.numel() for p in method.parameters())
    body = sum(p.numel() for p in backbone.parameters())
    assert round((whole - body) / 1e6, 2) == 7.11
    assert 0.82 < body / whole < 0.83  # "more than 82 %", section 3.2
    assert method.head.stride == 8
    assert method.head.in_frames == 2


def test_step_equals_the_loss_written_out():
    method = _small().double()
    batch = method.augment(_batch())
    for name in ("views", "trajectories", "trajectory_weights"):
        batch[name] = batch[name].double()
    outputs = method._step(batch)
    boxes = batch["trajectories"]
    predicted, _ = method.track(batch["views"][:, 0], boxes[:, :, 0])
    distance = (predicted - encode(boxes, boxes[:, :, 0])).abs()
    smooth = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5)
    assert outputs["loss"].item() == pytest.approx(smooth.sum().item() / (2 * 3 * 16), rel=1e-12)


def test_frames_that_weigh_nothing_change_no_loss_and_are_handed_on_as_unknown():
    method = _small().eval()
    batch = method.augment(_batch())
    weights = torch.ones_like(batch["trajectory_weights"])
    weights[0, 1, 4:] = 0
    moved = batch["trajectories"].clone()
    moved[0, 1, 4:] = 3.0
    names = {**batch, "trajectory_weights": weights}
    with torch.no_grad():
        outputs = method._step(names)
        other = method._step({**names, "trajectories": moved})
    assert outputs["loss"] == other["loss"]
    known = outputs["trajectories"].isfinite().all(-1)
    assert torch.equal(known, weights > 0)
    assert torch.equal(outputs["trajectories"][known], batch["trajectories"][known])


def test_every_parameter_gets_a_gradient():
    method = _small()
    method._step(method.augment(_batch()))["loss"].backward()
    without = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_patch_in_another_place_changes_only_its_own_prediction():
    """The head answers each query by itself: the others' boxes are not an input."""
    method = _small().eval()
    batch = method.augment(_batch(1))
    query = batch["trajectories"][:, :, 0]
    first, _ = method.track(batch["views"][:, 0], query)
    moved = query.clone()
    moved[:, 1] = torch.tensor([1.0, 1.0, 30.0, 20.0])
    second, _ = method.track(batch["views"][:, 0], moved)
    assert torch.allclose(first[:, [0, 2]], second[:, [0, 2]], atol=1e-6)
    assert not torch.allclose(first[:, 1], second[:, 1], atol=1e-6)


def test_a_2d_backbone_is_refused():
    class Image(R3D18):
        dims = 2

    backbone = Image(width=4, depth=(1, 1, 1, 1))
    backbone.dims = 2
    with pytest.raises(ValueError, match="CtP needs a 3-D backbone, got Image"):
        CtP(backbone, nn.Identity(), functools.partial(torch.optim.SGD, lr=0.01))


def test_validation_plays_on_the_first_of_several_clips(monkeypatch):
    method = _small().eval()
    one = _batch(2)
    several = {**one, "video": torch.cat([one["video"], one["video"].flip(2)], dim=1)}
    monkeypatch.setattr(method, "log", lambda *args, **options: None)
    with torch.no_grad():
        expected = method.validation_step(one, 0)["loss"]
        assert torch.equal(method.validation_step(several, 0)["loss"], expected)


class TestCycle:
    """The network labels clips itself, by tracking backward."""

    @staticmethod
    def _cycle(size: int = 4) -> tuple[CtP, dict[str, torch.Tensor]]:
        """A network that moves boxes by pixels, its norms fixed, and clips of both kinds."""
        method = _small(CycleTracks(PATCHES, synthetic=0.5)).double().eval()
        nn.init.normal_(method.head.fc1.weight, std=0.3)
        nn.init.normal_(method.head.pred_head.weight, std=0.3)
        batch = method.augment(_batch(size, side=32))
        for name in ("views", "trajectories", "trajectory_weights"):
            batch[name] = batch[name].double()
        assert 0 < batch["own_labels"].sum() < size
        return method, batch

    def test_labels_are_the_way_back_reversed_and_take_no_gradient(self):
        method, batch = self._cycle()
        with torch.no_grad():
            clips, query = batch["views"][:, 0], batch["trajectories"][:, :, 0]
            there = decode(method.track(clips, query)[0], query)
            last = there[:, :, 15].clamp(0, 32)
            back = decode(method.track(clips.flip(2), last)[0], last)
            labels = batch["trajectories"].clone()
            for b in batch["own_labels"].nonzero()[:, 0]:
                for t in range(16):
                    labels[b, :, t] = back[b, :, 15 - t].clamp(0, 32)
        assert (there - query[:, :, None])[:, :, 1:].abs().mean() > 0.1
        outputs = method._step(batch)
        torch.testing.assert_close(outputs["trajectories"], labels)
        outputs["loss"].backward()
        own = {name: p.grad.clone() for name, p in method.named_parameters()}
        method.zero_grad()
        # The same step with the labels given from without; the first boxes are asked for as before.
        predicted, _ = method.track(clips, query)
        distance = (predicted - encode(labels, query)).abs()
        smooth = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5)
        given = smooth.sum() / batch["trajectory_weights"].sum()
        given.backward()
        assert outputs["loss"].item() == pytest.approx(given.item(), rel=1e-12)
        for name, parameter in method.named_parameters():
            torch.testing.assert_close(own[name], parameter.grad, msg=name)

    def test_standing_still_agrees_with_itself(self):
        """The trivial solution that the synthetic quarter is there to prevent (section 5.2)."""
        method, batch = self._cycle()
        nn.init.zeros_(method.head.pred_head.weight)
        own = batch["own_labels"]
        names = ("views", "trajectories", "trajectory_weights", "own_labels")
        assert method._step({name: batch[name][own] for name in names})["loss"] == 0
        assert method._step({name: batch[name][~own] for name in names})["loss"] > 0

    def test_labels_of_a_wild_network_stay_in_the_frame(self):
        method, batch = self._cycle()
        nn.init.normal_(method.head.pred_head.weight, std=100.0)
        outputs = method._step(batch)
        assert outputs["trajectories"].min() >= 0
        assert outputs["trajectories"].max() <= 32
        assert outputs["loss"].isfinite()
        outputs["loss"].backward()
        assert all(p.grad.isfinite().all() for p in method.parameters())
