"""Views: same keys same bytes, replay, what follows a flip, and how often things happen."""

import colorsys
import copy
import math

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torchvision.transforms.v2 import functional

from lightning_vssl.augment import views as module
from lightning_vssl.augment.views import FineTuneViews, Normalise, VideoViews, flip_boxes
from lightning_vssl.nn.keyed import sample_key

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _batch(count=4, views=2, frames=3, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, views, frames, 3, size, size + 4)
    return {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "key": torch.tensor([sample_key(0, 1, i) for i in range(count)]),
        "index": torch.arange(count),
    }


def _off(**changes):
    """No chance at all, except for what is changed."""
    settings = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
    return VideoViews(MEAN, STD, **{**settings, **changes})


def _everything(semantics="torchvision"):
    return VideoViews(blur_kernel=5, solarise=0.3, semantics=semantics)


AUGMENTS = [
    _everything(),
    _everything("byol"),
    FineTuneViews(brightness_probability=0.5, contrast_probability=0.5, hue_probability=0.5),
]


def test_normalise_equals_torchvision():
    batch = _batch()
    result = Normalise(MEAN, STD)(batch)
    assert set(result) == {"video", "key", "index", "views"}
    assert result["views"].shape == (4, 2, 3, 3, 24, 28)
    assert result["views"].is_contiguous()
    frames = functional.to_dtype(batch["video"], torch.float32, scale=True)
    expected = functional.normalize(frames.flatten(0, 2), MEAN, STD).view(frames.shape)
    torch.testing.assert_close(result["views"].transpose(2, 3), expected, atol=1e-6, rtol=1e-6)
    assert "views" not in batch


def test_with_nothing_switched_on_views_are_the_plain_view():
    batch = _batch()
    assert torch.equal(_off()(batch)["views"], Normalise(MEAN, STD)(batch)["views"])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_sample_does_not_know_its_batch(augment):
    batch = _batch()
    whole = augment(batch)
    for rows in ([0, 1], [2], [3, 0, 1]):
        part = augment({name: value[rows] for name, value in batch.items()})
        assert torch.equal(part["views"], whole["views"][rows])
        for name, value in part["views_params"].items():
            assert torch.equal(value, whole["views_params"][name][rows]), name
    assert torch.equal(augment(batch)["views"], whole["views"])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_global_generator_is_neither_read_nor_moved(augment):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(_batch())["views"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(_batch())["views"], first)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_replay_makes_the_same_pixels(augment):
    batch = _batch()
    result = augment(batch)
    assert torch.equal(augment.replay(batch["video"], result["views_params"]), result["views"])
    # The parameters alone decide: with another sample's, the pixels differ.
    other = {name: value.roll(1, 0) for name, value in result["views_params"].items()}
    assert not torch.equal(augment.replay(batch["video"], other), result["views"])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_views_are_float32_and_the_same_under_autocast(augment):
    batch = _batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = augment(batch)["views"]
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, augment(batch)["views"])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_whole_batch_at_once_gives_the_same_as_clip_by_clip(augment, monkeypatch):
    # On an accelerator the clips are worked on together; the arithmetic is the same code.
    batch = _batch(8)
    one_by_one = augment(batch)
    monkeypatch.setattr(
        module, "_parts", lambda views, video: [(views.flatten(0, 1), video.flatten(0, 1))]
    )
    together = augment(batch)
    wrong = (together["views"] - one_by_one["views"]).abs() > 2e-5
    assert wrong.sum() <= 3  # a value at the threshold of solarisation may fall on either side


@pytest.mark.parametrize("augment", AUGMENTS)
def test_samples_views_and_epochs_differ(augment):
    keys = torch.tensor([sample_key(0, epoch, i) for epoch in (0, 1) for i in range(40)])
    drawn = augment.draw(keys, 3)
    for name, value in drawn.items():
        assert value.shape[:2] == (80, 3), name
        assert not torch.equal(value[:40], value[40:]), name
        assert not torch.equal(value[:, 0], value[:, 1]), name
        assert not torch.equal(value[:, 1], value[:, 2]), name


SHARING = [
    VideoViews(blur_kernel=5, solarise=0.3, shared=(0, 1, 1)),
    VideoViews(blur_kernel=5, jitter=(0.2, 0.5, 0.9), solarise=(0.1, 0.5, 0.8), shared=(0, 1, 1)),
]


@pytest.mark.parametrize("augment", SHARING, ids=["a chance for all", "a chance per view"])
def test_views_that_share_their_draws_are_treated_alike(augment):
    """Of a still video RSPNet's two keys have the same pixels; nothing else is drawn otherwise."""
    keys = torch.tensor([sample_key(0, 0, i) for i in range(40)])
    own = copy.copy(augment)
    own.shared = None
    drawn, alone = augment.draw(keys, 3), own.draw(keys, 3)
    assert drawn.keys() == alone.keys()
    for name, value in drawn.items():
        assert torch.equal(value[:, :2], alone[name][:, :2]), name
        assert torch.equal(value[:, 2], value[:, 1]), name
        assert not torch.equal(alone[name][:, 2], value[:, 1]), name
        assert not torch.equal(value[:, 0], value[:, 1]), name
    batch = _batch(count=8, views=1, frames=1)
    still = {**batch, "video": batch["video"].expand(-1, 3, 4, -1, -1, -1)}
    views = augment(still)["views"]
    assert torch.equal(views[:, 1], views[:, 2])
    assert not (views[:, 0] == views[:, 1]).flatten(1).all(1).any()
    with pytest.raises(ValueError, match="one number per clip is needed, and there are 4"):
        _off(shared=(0, 1, 1))(_batch(views=4))


def test_of_fewer_views_the_first_share_as_they_would():
    """Validation has two views of a sample."""
    keys = torch.tensor([sample_key(0, 0, i) for i in range(40)])
    three, two = SHARING[0].draw(keys, 3), SHARING[0].draw(keys, 2)
    for name, value in two.items():
        assert torch.equal(value, three[name][:, :2]), name


def test_frames_of_a_clip_are_treated_alike():
    batch = _batch(frames=1)
    batch["video"] = batch["video"].expand(-1, -1, 4, -1, -1, -1)
    views = _everything()(batch)["views"]
    for t in range(1, 4):
        torch.testing.assert_close(views[:, :, :, t], views[:, :, :, 0], atol=1e-6, rtol=0)


def test_video_views_equal_torchvision_on_the_parameters_drawn():
    batch = _batch(6)
    augment = VideoViews(MEAN, STD, blur_kernel=7, jitter=0.9, solarise=0.3, grey=0.3)
    result = augment(batch)
    drawn = result["views_params"]
    clips = functional.to_dtype(batch["video"], torch.float32, scale=True)  # (B, V, T, 3, H, W)
    operations = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    seen = {name: drawn[name].sum().item() for name in ("flip", "jitter", "grey", "blur")}
    assert all(0 < count < 12 for count in seen.values()), seen
    for b in range(6):
        for v in range(2):
            own = {name: value[b, v].tolist() for name, value in drawn.items()}
            clip = clips[b, v]
            if own["flip"]:
                clip = functional.horizontal_flip(clip)
            for index in own["order"] if own["jitter"] else []:
                clip = operations[index](clip, own["values"][index])
            if own["grey"]:
                clip = functional.rgb_to_grayscale(clip, 3)
            if own["blur"]:
                clip = functional.gaussian_blur(clip, [7, 7], [own["sigma"]] * 2)
            if own["solarise"]:
                clip = functional.solarize(clip, 0.5)
            expected = functional.normalize(clip, MEAN, STD).transpose(0, 1)
            # A value at the threshold may fall on either side of it.
            wrong = (result["views"][b, v] - expected).abs() > 1e-4
            assert wrong.sum() <= (3 if own["solarise"] else 0)


def _hsv(pixels, change):
    """Changes (h, s, v) of every pixel of a clip (T, 3, H, W), in float64."""
    flat = pixels.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    made = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in flat]
    frames, _, height, width = pixels.shape
    return torch.tensor(made).double().view(frames, height, width, 3).permute(0, 3, 1, 2)


def _byol_blur(clip, sigma, kernel):
    """A separable convolution with 'SAME' padding, zeros beyond the borders."""
    at = torch.arange(-(kernel // 2), kernel // 2 + 1).double()
    taps = torch.exp(-(at**2) / (2 * sigma**2))
    taps = (taps / taps.sum()).repeat(3, 1, 1, 1)  # (3, 1, 1, K)
    clip = nn.functional.conv2d(clip, taps, padding="same", groups=3)
    return nn.functional.conv2d(clip, taps.mT, padding="same", groups=3)


def test_byol_views_equal_their_definition_on_the_parameters_drawn():
    # In float64 from the definition: flip, jitter in the order drawn with a clamp after each part,
    # grey, blur, solarise, normalise.
    batch = _batch(6, frames=1)
    augment = VideoViews(
        MEAN, STD, saturation=0.2, semantics="byol", grey=0.3, blur=(1.0, 0.5), solarise=(0.0, 0.5)
    )
    result = augment(batch)
    drawn = result["views_params"]
    for name in ("flip", "jitter", "grey", "blur", "solarise"):
        assert 0 < drawn[name].sum() < 12, name
    parts = [
        lambda x, delta: x + delta,
        lambda x, factor: factor * (x - x.mean((2, 3), True)) + x.mean((2, 3), True),
        lambda x, factor: _hsv(x, lambda h, s, v: (h, min(max(s * factor, 0), 1), v)),
        lambda x, delta: _hsv(x, lambda h, s, v: ((h + delta) % 1.0, s, v)),
    ]
    weights = torch.tensor([0.2989, 0.5870, 0.1140]).double()
    for b in range(6):
        for v in range(2):
            own = {name: value[b, v].tolist() for name, value in drawn.items()}
            clip = batch["video"][b, v].double() / 255  # (T, 3, H, W)
            clip = clip.flip(-1) if own["flip"] else clip
            for index in own["order"] if own["jitter"] else []:
                clip = parts[index](clip, own["values"][index]).clamp(0, 1)
            if own["grey"]:
                clip = torch.einsum("tchw,c->thw", clip, weights)[:, None].repeat(1, 3, 1, 1)
            if own["blur"]:
                clip = _byol_blur(clip, own["sigma"], 23)
            if own["solarise"]:
                clip = torch.where(clip < 0.5, clip, 1 - clip)
            expected = (clip - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            wrong = (result["views"][b, v] - expected.transpose(0, 1)).abs() > 1e-4
            # A value at the threshold may fall on either side of it.
            assert wrong.sum() <= (3 if own["solarise"] else 0)


def test_byols_two_views_have_its_chances_and_ranges():
    keys = torch.tensor([sample_key(3, 0, i) for i in range(20_000)])
    drawn = VideoViews(saturation=0.2, semantics="byol", blur=(1.0, 0.1), solarise=(0.0, 0.2)).draw(
        keys, 2
    )
    chances = {
        "flip": (0.5, 0.5),
        "jitter": (0.8, 0.8),
        "grey": (0.2, 0.2),
        "blur": (1.0, 0.1),
        "solarise": (0.0, 0.2),
    }
    for name, wanted in chances.items():
        assert drawn[name].float().mean(0).tolist() == pytest.approx(wanted, abs=0.015), name
    low, high = drawn["values"].amin((0, 1)), drawn["values"].amax((0, 1))
    assert low.tolist() == pytest.approx([-0.4, 0.6, 0.8, -0.1], abs=1e-3)
    assert high.tolist() == pytest.approx([0.4, 1.4, 1.2, 0.1], abs=1e-3)
    assert (drawn["sigma"].min() >= 0.1) & (drawn["sigma"].max() <= 2.0)
    orders = drawn["order"].flatten(0, 1) @ torch.tensor([64, 16, 4, 1])
    _, counts = orders.unique(return_counts=True)
    assert len(counts) == 24
    assert counts.double().div(40_000 / 24).sub(1).abs().max() < 0.12


def test_fine_tune_views_equal_ctps_formulas_on_the_parameters_drawn():
    batch = _batch(8, views=1)
    augment = FineTuneViews(
        MEAN, STD, brightness_probability=0.6, contrast_probability=0.6, hue_probability=0.0
    )
    result = augment(batch)
    drawn = {name: value[:, 0] for name, value in result["views_params"].items()}
    assert 0 < drawn["brighten"].sum() < 8
    assert 0 < drawn["stretch"].sum() < 8
    mean, std = (torch.tensor(x).double().view(1, 3, 1, 1) for x in (MEAN, STD))
    for b in range(8):
        levels = batch["video"][b, 0].double()
        if drawn["flip"][b]:
            levels = levels.flip(-1)
        if drawn["brighten"][b]:
            levels = (levels + drawn["brightness"][b].double()).clamp(0, 255)
        if drawn["stretch"][b]:
            levels = (levels * drawn["contrast"][b].double()).clamp(0, 255)
        expected = (levels / 255 - mean) / std
        difference = result["views"][b, 0].transpose(0, 1).double() - expected
        assert difference.abs().max() < 1e-5


def test_chances_and_ranges_are_those_asked_for():
    keys = torch.tensor([sample_key(0, 0, i) for i in range(4000)])
    augment = VideoViews(
        flip=0.5, jitter=0.8, grey=0.2, blur=(1.0, 0.1), solarise=(0.0, 0.2), saturation=0.2
    )
    drawn = augment.draw(keys, 2)
    chances = {
        "flip": (0.5, 0.5),
        "jitter": (0.8, 0.8),
        "grey": (0.2, 0.2),
        "blur": (1.0, 0.1),
        "solarise": (0.0, 0.2),
    }
    for name, expected in chances.items():
        assert drawn[name].float().mean(0).tolist() == pytest.approx(expected, abs=0.03), name
    low, high = drawn["values"].flatten(0, 1).min(0).values, drawn["values"].flatten(0, 1).max(0)
    assert low.tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=1e-2)
    assert high.values.tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=1e-2)
    assert drawn["sigma"].min() >= 0.1
    assert drawn["sigma"].max() < 2.0
    orders = (drawn["order"] * torch.tensor([64, 16, 4, 1])).sum(-1).flatten()
    counts = torch.unique(orders, return_counts=True)[1]
    assert len(counts) == 24
    assert counts.min() > 8000 / 24 * 0.8
    # Different draws of a sample know nothing of each other.
    table = torch.cat([drawn["values"][:, 0], drawn["sigma"][:, :1]], dim=1).T
    off_diagonal = torch.corrcoef(table) - torch.eye(5)
    assert off_diagonal.abs().max() < 0.06


def test_fine_tune_defaults_are_ctps():
    keys = torch.tensor([sample_key(0, 0, i) for i in range(8000)])
    drawn = {name: value[:, 0] for name, value in FineTuneViews().draw(keys, 1).items()}
    for name, chance in {"flip": 0.35, "brighten": 0.2, "stretch": 0.2, "tint": 0.2}.items():
        assert drawn[name].float().mean().item() == pytest.approx(chance, abs=0.02), name
    for name, (low, high) in {
        "brightness": (-32, 32),
        "contrast": (math.exp(-0.2), math.exp(0.2)),
        "hue": (-12, 12),
        "saturation": (math.exp(-0.1), math.exp(0.1)),
    }.items():
        assert drawn[name].min().item() == pytest.approx(low, abs=(high - low) / 500), name
        assert drawn[name].max().item() == pytest.approx(high, abs=(high - low) / 500), name


def test_byol_brightness_is_drawn_around_zero():
    keys = torch.tensor([sample_key(0, 0, i) for i in range(2000)])
    values = VideoViews(semantics="byol").draw(keys, 1)["values"][..., 0]
    assert values.min().item() == pytest.approx(-0.4, abs=1e-2)
    assert values.max().item() == pytest.approx(0.4, abs=1e-2)


def test_boxes_and_masks_follow_the_flip():
    batch = _batch(6, size=20)  # 24 pixels wide
    boxes = torch.full((6, 2, 3, 2, 4), float("nan"))
    boxes[..., 0, :] = torch.tensor([2.0, 3.0, 9.0, 11.0])
    batch["boxes"] = boxes
    mask = torch.zeros(6, 2, 3, 20, 24, dtype=torch.uint8)
    mask[..., 3:11, 2:9] = 7
    batch["mask"] = mask
    batch["video"] = torch.where(mask[:, :, :, None] > 0, 255, 0).to(torch.uint8)
    batch["video"] = batch["video"].expand(-1, -1, -1, 3, -1, -1).contiguous()
    result = _off(flip=0.5)(batch)
    flip = result["views_params"]["flip"]
    assert flip.dtype == torch.bool
    assert flip.any()
    assert not flip.all()
    object_seen = result["views"][:, :, 0] > 0  # (B, V, T, H, W)
    assert torch.equal(object_seen, result["mask"] == 7)
    for b, v in torch.cartesian_prod(torch.arange(6), torch.arange(2)).tolist():
        expected = [15.0, 3.0, 22.0, 11.0] if flip[b, v] else [2.0, 3.0, 9.0, 11.0]
        assert (result["boxes"][b, v, :, 0] == torch.tensor(expected)).all()
        x1, y1, x2, y2 = map(int, expected)
        assert object_seen[b, v, 0, y1:y2, x1:x2].all()
        assert object_seen[b, v, 0].sum() == (x2 - x1) * (y2 - y1)
    assert result["boxes"][..., 1, :].isnan().all()
    assert batch["boxes"] is boxes
    assert torch.equal(batch["mask"], mask)
    assert torch.equal(result["video"], batch["video"])


def test_one_box_a_clip_is_enough():
    boxes = torch.tensor([1.0, 2.0, 5.0, 6.0])
    assert flip_boxes(boxes, 10).tolist() == [5.0, 2.0, 9.0, 6.0]
    batch = _batch()
    batch["boxes"] = boxes.expand(4, 2, 1, 1, 4)
    assert _off(flip=1.0)(batch)["boxes"][0, 0, 0, 0].tolist() == [23.0, 2.0, 27.0, 6.0]


@pytest.mark.parametrize("augment", [Normalise(), VideoViews(), FineTuneViews()])
def test_only_uint8_clips_are_taken(augment):
    batch = _batch()
    with pytest.raises(ValueError, match=r"uint8.*float32"):
        augment({**batch, "video": batch["video"].float()})
    with pytest.raises(ValueError, match=r"\(B, V, T, 3, H, W\)"):
        augment({**batch, "video": batch["video"][:, 0]})


def test_probabilities_must_match_the_views():
    with pytest.raises(ValueError, match=r"got 2 .* for 3 views"):
        _off(blur=(1.0, 0.1))(_batch(views=3))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VideoViews(flip=1.5), "flip"),
        (lambda: VideoViews(jitter=-0.1), "jitter"),
        (lambda: VideoViews(blur=(1.0, 2.0)), "blur"),
        (lambda: VideoViews(brightness=-1), "brightness"),
        (lambda: VideoViews(hue=0.6), "hue"),
        (lambda: VideoViews(semantics="simclr"), "semantics"),
        (lambda: VideoViews(blur_kernel=4), "blur_kernel"),
        (lambda: VideoViews(blur_sigma=(0.0, 1.0)), "blur_sigma"),
        (lambda: VideoViews(shared=(1, 1)), "shared"),
        (lambda: VideoViews(std=(0.0, 1.0, 1.0)), "std"),
        (lambda: FineTuneViews(hue_probability=2), "hue_probability"),
        (lambda: FineTuneViews(contrast=-0.2), "contrast"),
    ],
)
def test_wrong_values_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_a_recipe_can_name_views_with_lists_and_numbers():
    def train(augment: nn.Module):
        return augment

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(train)
    settings = {"blur": [1.0, 0.1], "solarise": [0, 0.2], "grey": 0.2, "mean": [0.5, 0.5, 0.5]}
    settings["shared"] = [0, 0]
    config = parser.parse_object(
        {
            "augment": {
                "class_path": "lightning_vssl.augment.views.VideoViews",
                "init_args": settings,
            }
        }
    )
    augment = parser.instantiate_classes(config).augment
    assert augment.blur == (1.0, 0.1)
    assert augment.solarise == (0.0, 0.2)
    assert augment.shared == (0, 0)
    assert augment.mean.tolist() == [0.5, 0.5, 0.5]


def test_views_add_nothing_to_a_checkpoint():
    assert VideoViews().state_dict() == {}
