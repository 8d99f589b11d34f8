"""Catch-the-Patch's tracks: their statistics, their pixels, their independence of the batch."""

import functools
import math

import pytest
import torch
from torch.nn import functional

from lightning_vssl.augment.patches import (
    CatchThePatch,
    PatchTracks,
    Tracks,
    paste,
    patch_alpha,
)
from lightning_vssl.augment.trajectories import draw_key_frames, interpolate
from lightning_vssl.nn.keyed import sample_key


def _keys(count: int, epoch: int = 0) -> torch.Tensor:
    return torch.tensor([sample_key(0, epoch, i) for i in range(count)])


def test_key_frames_follow_the_released_rule():
    frames = draw_key_frames(_keys(6000), 16, (0.5, 0.3, 0.2), stream=19)
    assert frames.shape == (6000, 4)
    assert (frames[:, 0] == 0).all()
    assert (frames[:, -1] == 15).all()
    assert (frames.diff(dim=1) >= 0).all()
    inner = ((frames > 0) & (frames < 15)).sum(1)
    shares = torch.bincount(inner, minlength=3) / 6000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    assert set(frames[inner == 1, 1].tolist()) == {6, 7, 8, 9}  # 8 and a jitter of -2 .. 1
    assert set(frames[inner == 2, 1].tolist()) == {4, 5}  # 5 and a jitter of -1 or 0
    assert set(frames[inner == 2, 2].tolist()) == {9, 10}


@pytest.mark.parametrize(
    ("easing", "shape"),
    [(0.0, lambda u: u), (0.75, lambda u: u**2), (0.9, lambda u: 1 - (1 - u) ** 2)],
)
def test_interpolation_equals_its_formula(easing, shape):
    values = torch.tensor([[2.0, 10.0, 4.0]], dtype=torch.float64)
    keys = torch.tensor([[0, 6, 10]])
    filled = interpolate(values, keys, 11, torch.full((1, 2), easing))[0]
    expected = [2 + 8 * shape(t / 6) for t in range(7)]
    expected += [10 - 6 * shape((t - 6) / 4) for t in range(7, 11)]
    assert filled.tolist() == pytest.approx(expected, abs=1e-6)


def test_segments_of_no_length_do_nothing():
    values = torch.tensor([[0.0, 5.0, 5.0, 5.0]])
    filled = interpolate(values, torch.tensor([[0, 5, 5, 5]]), 6, torch.zeros(1, 3))
    assert filled[0].tolist() == pytest.approx([0, 1, 2, 3, 4, 5])


def test_statistics_of_the_released_configuration():
    """Measured on the authors' code: mean centre step 1.24 px, mean sides 36.5 x 36.8 px."""
    boxes = PatchTracks().draw(_keys(4000), 16, 112, 112).boxes.double()
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    sides = boxes[..., 2:] - boxes[..., :2]
    assert centre.diff(dim=2).abs().mean().item() == pytest.approx(1.24, abs=0.03)
    assert sides.mean().item() == pytest.approx(36.65, abs=0.5)
    assert boxes.min() >= 0
    assert boxes.max() <= 112
    assert sides.min() >= 1


def test_speed_and_growth_are_bounded():
    tracks = PatchTracks(speed=2.0, growth=0.0, key_frames=(1.0,)).draw(_keys(500), 16, 112, 112)
    centre = (tracks.boxes[..., :2] + tracks.boxes[..., 2:]).double() / 2
    total = (centre[:, :, -1] - centre[:, :, 0]).abs()
    assert total.max() <= 2 * 15 + 1  # one pixel of rounding
    assert total.max() > 25  # and the bound is used


def test_a_patch_is_never_hidden_in_its_source_or_the_first_frame():
    tracks = PatchTracks(hidden=0.9).draw(_keys(300), 16, 112, 112)
    assert tracks.shown[..., 0].all()
    assert tracks.shown.gather(2, tracks.source[..., None]).all()
    rest = tracks.shown[..., 1:].float().mean().item()
    assert rest == pytest.approx(0.1 + 0.9 / 16, abs=0.02)


def test_a_sample_does_not_depend_on_its_batch():
    keys = _keys(4)
    video = torch.randint(0, 256, (4, 1, 8, 3, 64, 64), dtype=torch.uint8)
    augment = CatchThePatch(PatchTracks(scales=(16, 24)))
    many = augment({"video": video, "key": keys})
    few = augment({"video": video[2:3], "key": keys[2:3]})
    for name in ("views", "trajectories", "trajectory_weights"):
        assert torch.equal(many[name][2:3], few[name])


def test_pasted_pixels_equal_a_slow_definition():
    torch.manual_seed(0)
    video = torch.rand(1, 3, 2, 40, 40, dtype=torch.float64)
    boxes = torch.tensor([[[[2, 3, 12, 15], [20, 10, 34, 26]], [[5, 5, 9, 9], [22, 12, 26, 17]]]])
    tracks = Tracks(
        boxes=boxes,
        source=torch.tensor([[0, 1]]),
        shape=torch.tensor([[1, 0]]),
        edge=torch.tensor([[0.35, 0.5]]),
        alpha=torch.tensor([[[0.8, 0.9], [1.0, 0.85]]]),
        shown=torch.tensor([[[True, True], [True, False]]]),
    )
    expected = video[0].clone()
    for k in (0, 1):  # the first trajectory has the larger boxes: pasted first
        sx1, sy1, sx2, sy2 = boxes[0, k, tracks.source[0, k]].tolist()
        cut = video[0, :, tracks.source[0, k], sy1:sy2, sx1:sx2]
        base = torch.ones(1, 1, sy2 - sy1, sx2 - sx1, dtype=torch.float64)  # hard rectangle
        for y in range(sy2 - sy1):
            for x in range(sx2 - sx1):
                dy = abs((y + 0.5) / (sy2 - sy1) - 0.5)
                dx = abs((x + 0.5) / (sx2 - sx1) - 0.5)
                if k == 0:  # soft ellipse
                    base[..., y, x] = max(0.0, min(1.0, (0.5 - math.hypot(dx, dy)) / 0.15))
        for t in range(2):
            if not tracks.shown[0, k, t]:
                continue
            x1, y1, x2, y2 = boxes[0, k, t].tolist()
            size = (y2 - y1, x2 - x1)
            resize = functools.partial(
                functional.interpolate, size=size, mode="bilinear", antialias=True
            )
            patch, alpha = resize(cut[None])[0], resize(base)[0, 0]
            for y in range(y2 - y1):
                for x in range(x2 - x1):
                    opacity = alpha[y, x].item() * tracks.alpha[0, k, t].item()
                    pixel = expected[:, t, y1 + y, x1 + x]
                    expected[:, t, y1 + y, x1 + x] = (
                        pixel * (1 - opacity) + patch[:, y, x] * opacity
                    )
    torch.testing.assert_close(paste(video.clone(), tracks)[0], expected, atol=1e-6, rtol=0)


def test_hidden_frames_keep_their_pixels_and_their_label():
    video = torch.rand(2, 3, 16, 112, 112)
    part = PatchTracks(trajectories=1, hidden=0.8)
    tracks = part.draw(_keys(2), 16, 112, 112)
    pasted, boxes, weights, own_labels = part(video.clone(), tracks)
    for b in range(2):
        for t in range(16):
            same = torch.equal(pasted[b, :, t], video[b, :, t])
            own = t == tracks.source[b, 0]  # a patch pasted where it was cut changes nothing
            assert same == (own or not tracks.shown[b, 0, t])
    assert own_labels is None
    assert torch.equal(boxes, tracks.boxes.float())
    assert (weights == 1).all()


@pytest.mark.parametrize(("shape", "share"), [(0, 1.0), (1, 3.14159 / 4), (2, 0.5)])
def test_hard_shapes_cover_their_area(shape, share):
    alpha = patch_alpha(shape, 0.5, 200, 300, torch.device("cpu"))
    assert alpha.mean().item() == pytest.approx(share, abs=0.01)


def test_options_are_checked():
    with pytest.raises(ValueError, match="trajectories must be at least 1, got 0"):
        PatchTracks(trajectories=0)
    with pytest.raises(ValueError, match="hidden must be a probability"):
        PatchTracks(hidden=1.0)
    with pytest.raises(ValueError, match="must sum to 1"):
        PatchTracks(key_frames=(0.5, 0.3))


def test_view_is_replayed_from_what_was_drawn():
    video = torch.randint(0, 256, (6, 1, 16, 3, 64, 64), dtype=torch.uint8)
    augment = CatchThePatch(PatchTracks(scales=(9, 14, 18)))
    batch = augment({"video": video, "key": _keys(6)})
    labels = augment.replay(video, batch["patch_params"])
    assert torch.equal(labels.clips, batch["views"][:, 0])
    assert torch.equal(labels.boxes, batch["trajectories"])
    other = augment({"video": video, "key": _keys(6, epoch=1)})
    assert not torch.equal(other["trajectories"], batch["trajectories"])


def test_chances_are_those_of_the_configuration():
    drawn = CatchThePatch().draw(_keys(8000), 16, 112, 112)
    for name, chance in (("flip", 0.5), ("tint", 0.25), ("brighten", 0.5), ("stretch", 0.5)):
        assert getattr(drawn, name).double().mean().item() == pytest.approx(chance, abs=0.02)
    assert drawn.hue.abs().max() <= 12
    assert drawn.brightness.abs().max() <= 30 / 255
    assert drawn.contrast.log().abs().max() <= 0.1201
    # The coin of the tint says nothing about the hue.
    assert drawn.hue[drawn.tint].mean().abs() < 0.5


def test_without_colour_the_view_is_the_normalised_paste():
    video = torch.randint(0, 256, (2, 1, 16, 3, 64, 64), dtype=torch.uint8)
    augment = CatchThePatch(
        PatchTracks(scales=(9, 14)),
        flip=0,
        hue_probability=0,
        brightness_probability=0,
        contrast_probability=0,
    )
    batch = augment({"video": video, "key": _keys(2)})
    clips = video[:, 0].transpose(1, 2).double() / 255
    expected = paste(clips.clone(), batch["patch_params"].tracks)
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(1, 3, 1, 1, 1)
    torch.testing.assert_close(
        batch["views"][:, 0].double(), (expected - mean) / std, atol=1e-5, rtol=0
    )


def test_colours_change_after_pasting_by_the_released_formulas():
    """Brightness is added, contrast multiplies about black; both clip to the range."""
    video = torch.randint(0, 256, (8, 1, 4, 3, 32, 32), dtype=torch.uint8)
    augment = CatchThePatch(PatchTracks(scales=(9,)), flip=0, hue_probability=0)
    batch = augment({"video": video, "key": _keys(8)})
    drawn = batch["patch_params"]
    expected = paste(video[:, 0].transpose(1, 2).double() / 255, drawn.tracks)
    for b in range(8):
        for t in range(4):
            if drawn.brighten[b]:
                expected[b, :, t] = (expected[b, :, t] + drawn.brightness[b, t]).clamp(0, 1)
            if drawn.stretch[b]:
                expected[b, :, t] = (expected[b, :, t] * drawn.contrast[b, t]).clamp(0, 1)
    assert drawn.brighten.any()
    assert drawn.stretch.any()
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(1, 3, 1, 1, 1)
    torch.testing.assert_close(
        batch["views"][:, 0].double(), (expected - mean) / std, atol=1e-5, rtol=0
    )


def test_two_views_are_refused():
    video = torch.zeros(1, 2, 4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one uint8 clip per sample"):
        CatchThePatch()({"video": video, "key": _keys(1)})
