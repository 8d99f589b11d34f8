"""Crops about objects: against a slow sampler, torchvision's crops and pixels, and their bound."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from lightning_vssl.augment.objects import (
    ObjectViews,
    resample,
    sum_inside,
    summed_area,
    truncated_normal,
)
from lightning_vssl.augment.views import VideoViews, view_keys
from lightning_vssl.data.windows import RandomResizedCrop
from lightning_vssl.nn.keyed import sample_key

DRAWS = 10_000
RATIO = (3 / 4, 4 / 3)
EXACT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# Of two-sample Kolmogorov-Smirnov tests. A case compares four quantities: p > 0.01 for the case as
# a whole asks for p > 0.01 / 4 of each (Bonferroni).
LEVEL = 0.01 / 4


def keys(count, epoch=0):
    return torch.tensor([sample_key(0, epoch, i) for i in range(count)])


def colourless(flip=0.0):
    return VideoViews(*EXACT, flip=flip, jitter=0.0, grey=0.0, blur=0.0)


def whole(masks, source=None, canvas=(4, 4)):
    """A batch of one clip each that shows whole frames of ``source`` (height, width) pixels."""
    count, frames, height, width = masks.shape
    source = source or (height, width)
    crop = torch.tensor([0.0, 0, source[1], source[0]]).expand(count, 1, 4)
    return {
        "video": torch.zeros(count, 1, frames, 3, *canvas, dtype=torch.uint8),
        "crop": crop,
        "key": keys(count),
        "mask": masks[:, None],
        "tracked": torch.ones(count, 1, dtype=torch.bool),
    }


def rectangle(height, width, box, frames=1):
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, frames, height, width, dtype=torch.uint8)
    mask[:, :, y1:y2, x1:x2] = 1
    return mask


def alike(ours, theirs):
    return stats.ks_2samp(ours, theirs, method="asymp").pvalue > LEVEL


# --- a slow sampler, one crop at a time, from the description alone -----------------------------


def slow_place(mean, side, room, centre, rng):
    """Where a side begins."""
    if centre == "uniform" or side == room:
        return rng.randint(0, room - side)
    if centre == "centroid":
        return min(max(round(mean - side / 2), 0), room - side)
    at = -1
    while not side / 2 <= at <= room - side / 2:  # until the crop is inside the picture
        at = rng.gauss(mean, room)
    return round(at - side / 2)


def slow_crop(mask, rng, coverage=0.3, centre="gaussian", scale=(0.4, 1.0)):
    """A crop (x1, y1, x2, y2) of a mask (h, w) of one frame, drawn as PreViTS describes it."""
    height, width = mask.shape
    ys, xs = np.nonzero(mask)
    middle = xs.mean() + 0.5, ys.mean() + 0.5
    least = min(coverage, 0.4 * height * width / len(xs))

    def shows(x, y, w, h):
        return mask[y : y + h, x : x + w].sum() / len(xs)

    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x = slow_place(middle[0], w, width, centre, rng)
            y = slow_place(middle[1], h, height, centre, rng)
            if shows(x, y, w, h) >= least:
                return x, y, x + w, y + h
    x1, y1 = (math.floor(first * rng.random()) for first in (xs.min(), ys.min()))
    x2, y2 = (
        math.ceil(last + 1 + (room - last - 1) * rng.random())
        for last, room in ((xs.max(), width), (ys.max(), height))
    )
    w = max(1, min(x2 - x1, math.floor((y2 - y1) * RATIO[1])))
    h = max(1, min(y2 - y1, math.floor((x2 - x1) / RATIO[0])))
    x = min(max(round(middle[0] - w / 2), x1), x2 - w)
    y = min(max(round(middle[1] - h / 2), y1), y2 - h)
    if shows(x, y, w, h) >= least:
        return x, y, x + w, y + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    places = [(int((width - w) * step / 64), int((height - h) * step / 64)) for step in range(65)]
    x, y = max(places, key=lambda at: shows(*at, w, h))
    return x, y, x + w, y + h


SHAPES = {
    "small, in the middle": (100, 120, (55, 40, 67, 52)),
    "small, in a corner": (100, 120, (0, 92, 7, 100)),
    "large": (100, 120, (5, 5, 110, 98)),
    "a wide strip": (90, 160, (10, 3, 150, 9)),
    "a tall frame": (160, 90, (70, 100, 88, 140)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "centre"),
    [
        *((name, "gaussian") for name in SHAPES),
        ("a wide strip", "uniform"),
        ("a tall frame", "uniform"),
        ("a tall frame", "centroid"),
    ],
)
def test_crops_follow_a_slow_sampler(name, centre):
    height, width, box = SHAPES[name]
    mask = rectangle(height, width, box)
    augment = ObjectViews(colourless(), 8, centre=centre)
    drawn = augment.draw(whole(mask.expand(DRAWS, -1, -1, -1)))
    ours = drawn["box"][:, 0].numpy()
    rng = random.Random(1)
    slow = np.array([slow_crop(mask[0, 0].numpy(), rng, centre=centre) for _ in range(DRAWS // 2)])
    for described in (
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),  # area
        lambda b: np.log((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])),  # shape
        lambda b: (b[:, 0] + b[:, 2]) / 2,
        lambda b: (b[:, 1] + b[:, 3]) / 2,
    ):
        assert alike(described(ours), described(slow))


@pytest.mark.parametrize(
    ("height", "width", "centre"),
    [(90, 160, "gaussian"), (90, 160, "uniform"), (200, 120, "gaussian"), (60, 200, "centroid")],
)
def test_without_a_bound_crops_are_random_resized_crops(height, width, centre):
    mask = rectangle(height, width, (3, 3, 9, 9)).expand(DRAWS, -1, -1, -1)
    augment = ObjectViews(colourless(), 8, coverage=0.0, centre=centre)
    drawn = augment.draw(whole(mask))
    assert (drawn["bound"] == 0).all()
    ours = drawn["box"][:, 0].numpy()
    window = RandomResizedCrop(8, (0.4, 1.0))
    rng = np.random.default_rng(5)
    theirs = np.concatenate([window.sample(height, width, 1, rng) for _ in range(DRAWS)])
    torch.manual_seed(0)
    picture, made = torch.empty(3, height, width), v2.RandomResizedCrop(8, (0.4, 1.0))
    drawn_there = [made.make_params([picture]) for _ in range(DRAWS)]
    torchvision = np.array(
        [(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]) for p in drawn_there]
    )
    for reference in (theirs, torchvision):
        for described in (
            lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
            lambda b: np.log((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])),
            lambda b: b[:, 0],
            lambda b: b[:, 1],
        ):
            assert alike(described(ours), described(reference))


def test_clips_without_an_object_get_the_same_plain_crop():
    mask = rectangle(60, 80, (3, 3, 9, 9)).repeat(50, 1, 1, 1)
    augment, plain = ObjectViews(colourless(), 8), ObjectViews(colourless(), 8, coverage=0.0)
    batch = whole(mask)
    expected = plain.draw(batch)["box"]
    lost = {**batch, "tracked": torch.zeros(50, 1, dtype=torch.bool)}
    black = {**batch, "mask": torch.zeros_like(batch["mask"])}
    void = {**batch, "mask": batch["mask"] * 255}
    without = {name: value for name, value in batch.items() if name not in ("mask", "tracked")}
    for other in (lost, black, void, without):
        drawn = augment.draw(other)
        assert torch.equal(drawn["box"], expected)
        assert (drawn["covered"] == 0).all()
        assert (drawn["bound"] == 0).all()
    assert not torch.equal(augment.draw(batch)["box"], expected)


def random_masks(count, frames, height, width, seed):
    """Ellipses of any size and place that wander and get lost, some of them partly outside."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.rand(count, *shape, generator=generator)

    y = torch.arange(height)[:, None] + 0.5
    x = torch.arange(width) + 0.5
    axes = torch.exp(math.log(0.01) + some(2) * math.log(0.6 / 0.01))
    start, step = some(2), (some(2) - 0.5) * 0.1
    at = start[:, None] + step[:, None] * torch.arange(frames)[:, None]  # (N, T, 2)
    far = ((x / width - at[..., 0, None, None]) / axes[:, None, None, None, 0]) ** 2
    far = far + ((y / height - at[..., 1, None, None]) / axes[:, None, None, None, 1]) ** 2
    lost = some(frames, 1, 1) < 0.2
    return ((far < 1) & ~lost).to(torch.uint8)  # (N, T, h, w)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "coverage", "centre"),
    [(32, 40, 0.3, "gaussian"), (24, 64, 0.9, "gaussian"), (40, 32, 0.6, "uniform")],
)
def test_the_bound_holds_wherever_it_can(height, width, coverage, centre):
    masks = random_masks(DRAWS, 3, height, width, seed=3)
    augment = ObjectViews(colourless(), 8, coverage=coverage, centre=centre)
    drawn = {name: value[:, 0] for name, value in augment.draw(whole(masks)).items()}
    for_one = masks.numpy().astype(np.int64)
    box = drawn["box"].numpy().round().astype(int)
    assert np.array_equal(box, drawn["box"].numpy())  # whole pixels
    w_most = min(width, round(height * RATIO[1]))  # every legal crop lies in one of this size
    h_most = min(height, round(width / RATIO[0]))
    held = impossible = 0
    for n, (x1, y1, x2, y2) in enumerate(box):
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        mask = for_one[n]
        total, frames = mask.sum(), mask.any((1, 2)).sum()
        if not total:
            assert drawn["bound"][n] == 0
            continue
        bound = min(coverage, 0.4 * height * width * frames / total)
        assert drawn["bound"][n].item() == pytest.approx(bound, abs=1e-12)
        inside = mask[:, y1:y2, x1:x2].sum() / total
        assert drawn["covered"][n].item() == pytest.approx(inside, abs=1e-12)
        if inside >= bound:
            held += 1
            continue
        flat = mask.sum(0)
        best = max(
            flat[y : y + h_most, x : x + w_most].sum()
            for y in range(height - h_most + 1)
            for x in range(width - w_most + 1)
        )
        assert best / total < bound
        impossible += 1
    assert held > 0.8 * DRAWS
    assert impossible < 0.1 * DRAWS
    attempts = drawn["attempt"].bincount(minlength=12)
    assert (attempts[:10] > 0).all()  # all tries are used, and so is what stands behind them
    assert attempts[10] > 0
    assert attempts[11] > 0


def test_areas_and_shapes_stay_in_their_ranges():
    masks = random_masks(2000, 2, 100, 120, seed=4)
    drawn = ObjectViews(colourless(), 8, scale=(0.3, 0.7)).draw(whole(masks))
    x1, y1, x2, y2 = drawn["box"][:, 0].unbind(-1)
    tried = drawn["attempt"][:, 0] < 10
    area = (x2 - x1) * (y2 - y1) / (100 * 120)
    assert area[tried].min() > 0.3 - 0.02
    assert area[tried].max() < 0.7 + 0.02
    ratio = (x2 - x1) / (y2 - y1)
    assert ratio.min() > RATIO[0] * 0.97  # whole pixels
    assert ratio.max() < RATIO[1] * 1.03


def test_the_middle_frame_alone_may_be_judged():
    mask = torch.zeros(400, 5, 60, 60, dtype=torch.uint8)
    mask[:, :, :10, :10] = 1
    mask[:, 2] = 0
    mask[:, 2, 50:, 50:] = 1
    drawn = ObjectViews(colourless(), 8, coverage=1.0, judged="middle").draw(whole(mask))
    assert (drawn["box"][..., 2:] == 60).all()
    assert (drawn["covered"] == 1).all()
    assert (drawn["box"][..., 0] > 10).any()  # the other frames' object need not be seen
    drawn = ObjectViews(colourless(), 8, coverage=1.0).draw(whole(mask))
    assert (drawn["covered"] == 1).all()
    assert (drawn["box"][..., 0] == 0).all()


def test_the_shape_is_that_of_the_source_whatever_the_canvas_and_the_mask():
    mask = rectangle(90, 160, (20, 30, 60, 50), frames=2).repeat(30, 1, 1, 1)
    native = whole(mask, canvas=(90, 160))
    squeezed = whole(mask, canvas=(50, 50))
    coarse = whole(mask[:, :, ::10, ::10], source=(90, 160), canvas=(50, 50))
    moved = {**native, "crop": native["crop"] + torch.tensor([7.0, 11, 7, 11])}
    augment = ObjectViews(colourless(), 8)
    expected = augment.draw(native)
    for batch in (squeezed, coarse, moved):
        drawn = augment.draw(batch)
        assert torch.equal(drawn["box"], expected["box"])
        torch.testing.assert_close(drawn["covered"], expected["covered"])
    assert torch.equal(augment(native)["crop"].double(), expected["box"])
    offset = torch.tensor([7.0, 11, 7, 11]).double()
    assert torch.equal(augment(moved)["crop"].double(), expected["box"] + offset)


def test_views_and_epochs_have_crops_of_their_own():
    mask = rectangle(60, 80, (20, 20, 50, 50)).repeat(20, 1, 1, 1)
    one = whole(mask)
    many = {name: v.repeat(1, 3, *(1,) * (v.dim() - 2)) for name, v in one.items() if name != "key"}
    augment = ObjectViews(colourless(), 8)
    box = augment.draw({**many, "key": one["key"]})["box"]
    assert box.shape == (20, 3, 4)
    assert torch.equal(box[:, :1], augment.draw(one)["box"])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not (box[:, a] == box[:, b]).all(-1).any()
    assert not torch.equal(augment.draw({**one, "key": keys(20, 1)})["box"], box[:, :1])


@pytest.mark.parametrize("judged", ["clip", "middle"])
def test_clips_that_share_their_draws_have_one_crop_about_what_both_show(judged):
    """RSPNet's key and its twin, of which either shows the object where the other does not."""
    mask = torch.zeros(300, 3, 4, 60, 80, dtype=torch.uint8)
    mask[:, 0, :, 40:60, 60:80] = 1
    mask[:, 1, :, :12, :16] = 1
    mask[:, 2, :, 30:46, 20:36] = 1
    mask[:100, 2] = 0
    video = torch.zeros(300, 3, 4, 3, 60, 80, dtype=torch.uint8)
    crop = torch.tensor([0.0, 0, 80, 60]).expand(300, 3, 4)
    tracked = torch.ones(300, 3, dtype=torch.bool)
    batch = {"video": video, "mask": mask, "tracked": tracked, "crop": crop, "key": keys(300)}
    shared = VideoViews(*EXACT, shared=(0, 1, 1))
    sharing = ObjectViews(shared, 8, coverage=0.9, judged=judged)
    apart = ObjectViews(VideoViews(*EXACT), 8, coverage=0.9, judged=judged)
    drawn, own = sharing.draw(batch), apart.draw(batch)
    # One clip with the frames of both.
    united = {
        "video": video[:, 1:].flatten(1, 2)[:, None],
        "mask": mask[:, 1:].flatten(1, 2)[:, None],
        "tracked": tracked[:, 1:2],
        "crop": crop[:, 1:2],
        "key": view_keys(keys(300), 3).view(300, 3)[:, 1],
    }
    together = ObjectViews(shared, 8, coverage=0.9).draw(united)
    for name, value in drawn.items():
        assert torch.equal(value[:, 0], own[name][:, 0]), name
        assert torch.equal(value[:, 1], value[:, 2]), name
        assert torch.equal(value[:, 1], together[name][:, 0]), name
    assert not (drawn["box"][:, 0] == drawn["box"][:, 1]).all(1).any()
    assert (drawn["box"][:, 1] != own["box"][:, 1]).any(1).float().mean() > 0.3
    assert torch.equal(drawn["box"][:100, 1:], own["box"][:100, 1:2].expand(-1, 2, -1))
    for n, (x1, y1, x2, y2) in enumerate(drawn["box"][:, 1].int().tolist()):
        shown, there = mask[n, 1:, :, y1:y2, x1:x2].sum(), mask[n, 1:].sum()
        assert drawn["covered"][n, 1].item() == pytest.approx((shown / there).item(), abs=1e-6)
        assert shown / there > drawn["bound"][n, 1] - 1e-6


def test_of_a_still_video_both_keys_have_the_same_pixels_and_masks():
    mask = random_masks(12, 1, 40, 50, seed=6)[:, None].expand(-1, 3, 4, -1, -1)
    video = torch.rand(12, 1, 1, 3, 40, 50, generator=torch.Generator().manual_seed(0)) * 255
    batch = {
        "video": video.to(torch.uint8).expand(-1, 3, 4, -1, -1, -1),
        "mask": mask,
        "tracked": torch.ones(12, 3, dtype=torch.bool),
        "crop": torch.tensor([0.0, 0, 50, 40]).expand(12, 3, 4),
        "key": keys(12),
    }
    made = ObjectViews(VideoViews(blur_kernel=5, shared=(0, 1, 1)), 24)(batch)
    for name in ("views", "mask", "crop"):
        assert torch.equal(made[name][:, 1], made[name][:, 2]), name
    assert not (made["views"][:, 0] == made["views"][:, 1]).flatten(1).all(1).any()
    assert not torch.equal(made["mask"][:, 0], made["mask"][:, 1])


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 32, 100])
@pytest.mark.parametrize("crop", [(0, 0, 60, 44), (3, 5, 40, 29), (50, 10, 60, 40), (8, 8, 9, 9)])
def test_pixels_equal_torchvisions_resized_crop(crop, size):
    x1, y1, x2, y2 = crop
    picture = torch.rand(1, 3, 44, 60, generator=torch.Generator().manual_seed(0)) * 255
    ours = resample(picture, torch.tensor([crop]), size)
    theirs = functional.resized_crop(
        picture, y1, x1, y2 - y1, x2 - x1, [size, size], antialias=True
    )
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_crops_between_pixels_move_smoothly():
    """A ramp stays the ramp, whatever parts of pixels the crop begins and ends with."""
    ramp = (torch.arange(50) + 0.5).expand(1, 1, 40, 50)
    boxes = torch.tensor([[10.3, 5.2, 30.9, 25.8], [10.35, 5.2, 30.95, 25.8]])
    cut = resample(ramp.repeat(2, 1, 1, 1), boxes, 10)
    expected = 10.3 + (torch.arange(10) + 0.5) * 2.06
    torch.testing.assert_close(cut[0, 0, 4, 1:-1], expected[1:-1], atol=0.1, rtol=0)
    assert (cut[1] - cut[0]).abs().max() < 0.1
    still = resample(torch.full((1, 1, 40, 50), 7.0), boxes[:1], 33)
    torch.testing.assert_close(still, torch.full_like(still, 7.0))


def test_views_equal_torchvision_from_the_parameters_drawn():
    generator = torch.Generator().manual_seed(0)
    batch = whole(rectangle(48, 64, (30, 5, 50, 25), frames=3).repeat(4, 1, 1, 1))
    shape = (4, 1, 3, 3, 48, 64)
    batch["video"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    made = ObjectViews(colourless(flip=0.5), 24)(batch)
    assert made["views"].shape == (4, 1, 3, 3, 24, 24)
    flips = made["views_params"]["flip"][:, 0].tolist()
    assert 0 < sum(flips) < 4
    for n, flip in enumerate(flips):
        x1, y1, x2, y2 = map(int, made["crop_params"]["box"][n, 0].tolist())
        assert made["crop"][n, 0].tolist() == [x1, y1, x2, y2]
        frames = functional.resized_crop(
            batch["video"][n, 0], y1, x1, y2 - y1, x2 - x1, [24, 24], antialias=True
        )
        assert (made["video"][n, 0].int() - frames.int()).abs().max() <= 1
        frames = frames.flip(-1) if flip else frames
        views = made["views"][n, 0].transpose(0, 1) * 255
        assert (views - frames).abs().max() < 1.01


@pytest.mark.parametrize("canvas", [(64, 80), (50, 50)])
def test_masks_and_boxes_lie_where_the_pixels_lie(canvas):
    """An object of one pure colour: after crop and flip the mask is what has the colour."""
    masks = random_masks(64, 4, *canvas, seed=6)
    batch = whole(masks, source=(64, 80), canvas=canvas)
    batch["video"] = torch.zeros(64, 1, 4, 3, *canvas, dtype=torch.uint8)
    batch["video"][:, :, :, 1] = 255 * batch["mask"]
    batch["video"][:, :, :, 2] = 255 * (1 - batch["mask"])
    there = batch["mask"].flatten(3).any(3)
    boxes = torch.full((64, 1, 4, 1, 4), torch.nan)
    for n, t in there[:, 0].nonzero().tolist():
        y, x = batch["mask"][n, 0, t].nonzero().unbind(1)
        corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        boxes[n, 0, t, 0] = torch.tensor([float(corner) for corner in corners])
    batch["boxes"] = boxes
    made = ObjectViews(colourless(flip=0.5), 32)(batch)
    flips = made["views_params"]["flip"]
    assert 0.3 < flips.float().mean() < 0.7
    colour = made["views"][:, :, 1]  # (B, V, T, h, w)
    assert made["mask"].dtype == torch.uint8
    assert made["mask"].shape == (64, 1, 4, 32, 32)
    clear = (colour - 0.5).abs() > 0.005
    assert clear.float().mean() > 0.99
    assert torch.equal(made["mask"][clear].bool(), colour[clear] > 0.5)
    assert 0 < made["mask"].float().mean() < 1
    for n, t in there[:, 0].nonzero().tolist():
        shown = made["mask"][n, 0, t].nonzero()
        if not len(shown):
            continue
        found = torch.stack([*shown.min(0).values.flip(0), *(shown.max(0).values + 1).flip(0)])
        box = made["boxes"][n, 0, t, 0]
        if box.isnan().any():  # under a pixel of it is left
            assert (shown.max(0).values == shown.min(0).values).any()
            continue
        # A mask keeps what is at least half in a pixel; at the border the weights lean inwards.
        assert (found[:2] >= box[:2] - 0.6).all()
        assert (found[2:] <= box[2:] + 0.6).all()
        if len(shown) > 150:
            assert (found - box).abs().max() < 6


def test_a_coarse_mask_covers_the_same_part_of_the_view():
    fine = torch.zeros(20, 2, 60, 80, dtype=torch.uint8)
    fine[:, :, 20:50, 10:40] = 1
    batch = whole(fine)
    coarse = {**batch, "mask": batch["mask"][..., 5::10, 5::10]}
    augment = ObjectViews(colourless(flip=0.5), 40)
    one, two = augment(batch)["mask"], augment(coarse)["mask"]
    overlap = (one & two).sum((-1, -2)) / (one | two).sum((-1, -2))
    assert overlap.min() > 0.85


def test_a_sample_does_not_know_its_batch():
    generator = torch.Generator().manual_seed(0)
    batch = whole(random_masks(6, 3, 40, 50, seed=8))
    video = torch.randint(0, 256, (6, 1, 3, 3, 40, 50), dtype=torch.uint8, generator=generator)
    batch["video"] = video
    batch["tracked"][2] = False
    augment = ObjectViews(VideoViews(blur_kernel=5), 24)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    together = augment(batch)
    assert torch.equal(torch.get_rng_state(), state)
    for rows in ([0], [2, 4], [5, 1, 3]):
        alone = augment({name: value[rows] for name, value in batch.items()})
        for name in ("views", "mask", "crop", "video"):
            assert torch.equal(alone[name], together[name][rows]), name
        for name, value in alone["crop_params"].items():
            assert torch.equal(value, together["crop_params"][name][rows]), name


def test_the_batch_is_left_as_it_was():
    batch = whole(random_masks(3, 2, 40, 50, seed=9))
    before = {name: value.clone() for name, value in batch.items()}
    ObjectViews(VideoViews(blur_kernel=5), 24)(batch)
    assert set(batch) == set(before)
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_replaying_the_colours_gives_the_views():
    batch = whole(random_masks(3, 2, 40, 50, seed=9))
    augment = ObjectViews(VideoViews(blur_kernel=5), 24)
    made = augment(batch)
    again = augment.cut(batch, made["crop_params"])
    assert torch.equal(again["video"], made["video"])
    views = augment.views.replay(again["video"], made["views_params"])
    assert torch.equal(views, made["views"])


# --- parts --------------------------------------------------------------------------------------


def test_sums_inside_boxes_equal_slow_ones():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 5, (3, 7, 9), generator=generator)
    corners = torch.rand(3, 50, 2, 2, generator=generator, dtype=torch.float64)
    corners = corners.sort(2).values * torch.tensor([9.0, 7.0])
    corners[:, :10] = corners[:, :10].round()
    boxes = corners.flatten(2)  # x1, y1, x2, y2
    found = sum_inside(summed_area(cells), boxes)
    for n in range(3):
        for k, (x1, y1, x2, y2) in enumerate(boxes[n].tolist()):
            expected = 0.0
            for y in range(7):
                for x in range(9):
                    wide = max(0.0, min(x + 1, x2) - max(x, x1))
                    high = max(0.0, min(y + 1, y2) - max(y, y1))
                    expected += wide * high * cells[n, y, x].item()
            assert found[n, k].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("mean", "low", "high"), [(3, 1, 5), (0, 2, 9), (20, 2, 9), (4, 6, 6)])
def test_truncated_normal_equals_scipys(mean, low, high):
    draw = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std, low, high = (torch.tensor(float(v)).double() for v in (mean, 8, low, high))
    found = truncated_normal(draw, mean, std, low, high)
    if low == high:
        assert (found == low).all()
        return
    law = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    np.testing.assert_allclose(found.numpy(), law.ppf(draw.numpy()), atol=1e-9)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.4)},
        {"scale": (0.5, 1.1)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"coverage": -0.1},
        {"coverage": 1.5},
        {"centre": "middle"},
        {"judged": "first"},
    ],
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        ObjectViews(colourless(), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(2, 1, 3, 3, 4, 4)}, "video.*must be uint8"),
        ({"crop": torch.zeros(2, 4)}, r"crop.*must be \(2, 1, 4\)"),
        ({"crop": None}, "lacks crop"),
        ({"tracked": None}, "both mask and tracked"),
        ({"mask": None}, "both mask and tracked"),
        ({"mask": torch.zeros(2, 1, 4, 9, 9, dtype=torch.uint8)}, "mask.*as the video has"),
        ({"mask": torch.zeros(2, 1, 3, 9, 9)}, "mask.*must be uint8"),
        ({"mask": torch.zeros(2, 3, 9, 9, dtype=torch.uint8)}, "mask.*must be uint8"),
        ({"tracked": torch.ones(2, 1)}, "tracked.*must be bool"),
        ({"tracked": torch.ones(2, dtype=torch.bool)}, "tracked.*must be bool"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change, message):
    batch = {**whole(random_masks(2, 3, 9, 9, seed=1)), **change}
    batch = {name: value for name, value in batch.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ObjectViews(colourless(), 8)(batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_accelerator_draws_the_same_without_waiting():
    generator = torch.Generator().manual_seed(0)
    batch = whole(random_masks(16, 3, 40, 50, seed=8))
    video = torch.randint(0, 256, (16, 1, 3, 3, 40, 50), dtype=torch.uint8, generator=generator)
    batch["video"] = video
    augment = ObjectViews(colourless(), 24)
    drawn = augment.draw(batch)
    expected = augment.cut(batch, drawn)
    there = {name: value.cuda() for name, value in batch.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment.draw(there)
        cut = augment.cut(there, found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found["box"].cpu(), drawn["box"])
    assert (cut["video"].cpu().int() - expected["video"].int()).abs().max() <= 1
    assert (cut["mask"].cpu() != expected["mask"]).float().mean() < 1e-3
