import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightning_vssl.data.windows import (
    CentreCrop,
    CentreSquare,
    RandomResizedCrop,
    ScaleCrop,
    SizeCrop,
    ThreeCrops,
    WholeFrame,
    Windows,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def draws(window: Windows, height: int, width: int, n: int) -> np.ndarray:
    """(n, 4)"""
    return np.concatenate([window.sample(height, width, 1, rng(seed)) for seed in range(n)])


def sizes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.5, 2.0)])
def test_random_resized_crop_has_torchvisions_distribution(ratio):
    height, width, n = 90, 140, 2000
    ours = draws(RandomResizedCrop(64, (0.3, 1.0), ratio), height, width, n)
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(64, (0.3, 1.0), ratio, antialias=True)
    image = torch.zeros(3, height, width)
    theirs = [reference.make_params([image]) for _ in range(n)]
    w, h = sizes(ours)
    for mine, name in ((w, "width"), (h, "height"), (ours[:, 0], "left"), (ours[:, 1], "top")):
        other = np.array([params[name] for params in theirs])
        assert stats.ks_2samp(mine, other).pvalue > 1e-3, name


def test_random_resized_crop_falls_back_to_torchvisions_centre():
    reference = v2.RandomResizedCrop(64, (1.0, 1.0), (3 / 4, 4 / 3), antialias=True)
    for height, width in ((20, 200), (200, 20)):
        params = reference.make_params([torch.zeros(3, height, width)])
        (box,) = RandomResizedCrop(64, (1.0, 1.0)).sample(height, width, 1, rng())
        assert box.tolist() == [
            params["left"],
            params["top"],
            params["left"] + params["width"],
            params["top"] + params["height"],
        ]


def test_ratio_is_uniform_where_asked():
    boxes = draws(
        RandomResizedCrop(64, (0.01, 0.01), (0.5, 2.0), log_ratio=False), 4000, 4000, 1500
    )
    w, h = sizes(boxes)
    assert stats.kstest(w / h, stats.uniform(0.5, 1.5).cdf).statistic < 0.04


@pytest.mark.parametrize(
    "make", [RandomResizedCrop, ScaleCrop, SizeCrop], ids=["resized", "scale", "size"]
)
def test_clips_share_a_rectangle_or_have_their_own(make):
    own = make(independent=True).sample(240, 320, 4, rng())
    shared = make(independent=False).sample(240, 320, 4, rng())
    assert own.shape == shared.shape == (4, 4)
    assert len(np.unique(own, axis=0)) > 1
    assert len(np.unique(shared, axis=0)) == 1


def test_clips_named_share_a_rectangle_and_all_else_is_drawn_as_before():
    window, own = RandomResizedCrop(shared=(0, 1, 1, 0)), RandomResizedCrop()
    source, alone = rng(), rng()
    boxes, expected = window.sample(240, 320, 4, source), own.sample(240, 320, 4, alone)
    assert np.array_equal(boxes, expected[[0, 1, 1, 0]])
    assert len(np.unique(expected, axis=0)) == 4
    assert source.random() == alone.random()
    assert np.array_equal(window.sample(240, 320, 2, rng()), boxes[:2])
    with pytest.raises(ValueError, match="one number per clip is needed, and there are 5"):
        window.sample(240, 320, 5, rng())


@pytest.mark.parametrize("shared", [(1, 1), (0, 2, 1), (0, 0, 1), (-1,)])
def test_sharing_with_a_clip_that_does_not_draw_is_refused(shared):
    with pytest.raises(ValueError, match="each number is that of the clip itself"):
        RandomResizedCrop(shared=shared)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (100, 180)])
def test_scale_crop_is_a_resize_and_a_random_crop(height, width):
    window = ScaleCrop(112, (112, 128, 144))
    boxes = draws(window, height, width, 1200)
    allowed, seen = set(), np.zeros(3)
    for which, side in enumerate((112, 128, 144)):
        resized = v2.Resize(side)(torch.zeros(1, height, width)).shape[1:]
        y, x = height / resized[0], width / resized[1]
        for top in range(resized[0] - 112 + 1):
            for left in range(resized[1] - 112 + 1):
                box = (left * x, top * y, (left + 112) * x, (top + 112) * y)
                allowed.add((which, *np.round(box, 6)))
    by_box = {entry[1:]: entry[0] for entry in allowed}
    for box in boxes:
        seen[by_box[tuple(np.round(box, 6))]] += 1
    assert seen / 1200 == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    if (height, width) == (240, 320):  # at 128, 59 x 17 places: all columns and rows are visited
        w, _ = sizes(boxes)
        at_128 = boxes[np.abs(w - 112 * 320 / 170) < 1e-6]
        assert len(np.unique(np.round(at_128[:, 1], 6))) == 17
        assert stats.kstest(at_128[:, 0] / (58 * 320 / 170), "uniform").statistic < 0.09


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (96, 400)])
def test_centre_of_171_by_128_is_where_torchvision_puts_it(height, width):
    """A ramp resized and cropped shows where the crop lies in the original."""
    window = SizeCrop(112, ((171, 128),), place="centre")
    (box,) = window.sample(height, width, 1, rng())
    resized = (128, 171) if width >= height else (171, 128)
    ramp_x = torch.arange(width, dtype=torch.float64).expand(1, height, width)
    ramp_y = torch.arange(height, dtype=torch.float64)[:, None].expand(1, height, width)
    for axis, ramp in ((0, ramp_x), (1, ramp_y)):
        crop = F.center_crop(F.resize(ramp, resized, antialias=True), [112, 112])
        line = crop[0, 56] if axis == 0 else crop[0, :, 56]
        step = (box[axis + 2] - box[axis]) / 112
        expected = box[axis] + (torch.arange(112, dtype=torch.float64) + 0.5) * step - 0.5
        inner = slice(8, 104)  # the ramp's ends are flattened by the filter
        off = line[inner] - expected[inner]  # the filter's weights are discrete: a little noise
        assert off.abs().max() < 0.15
        assert off.mean().abs() < 0.02


def test_size_crop_draws_size_and_place():
    boxes = draws(SizeCrop(), 240, 320, 900)
    w, h = sizes(boxes)
    pairs = {(149, 112): 0, (171, 128): 0, (192, 144): 0}
    for wide, high in zip(w, h, strict=True):
        for pair in pairs:
            if abs(wide - 112 * 320 / pair[0]) + abs(high - 112 * 240 / pair[1]) < 1e-6:
                pairs[pair] += 1
    assert sum(pairs.values()) == 900
    assert min(pairs.values()) > 250
    assert boxes.min() >= 0
    assert boxes[:, 2].max() == pytest.approx(320)


def test_centre_crop_and_square_by_hand():
    (box,) = CentreCrop(256, 224).sample(240, 320, 1, rng())
    # 240 -> 256: 341 wide; left = round(117 / 2) = 58, top = 16
    x, y = 320 / 341, 240 / 256
    assert box == pytest.approx([58 * x, 16 * y, 282 * x, 240 * y])
    assert CentreSquare().sample(240, 320, 2, rng()).tolist() == [[40, 0, 280, 240]] * 2
    assert CentreSquare().sample(320, 240, 1, rng()).tolist() == [[0, 40, 240, 280]]
    assert WholeFrame((10, 20)).sample(240, 320, 1, rng()).tolist() == [[0, 0, 320, 240]]
    assert WholeFrame((10, 20)).shape == (10, 20)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240)])
def test_three_crops_cover_the_long_side(height, width):
    window = ThreeCrops(256)
    boxes = window.sample(height, width, 2, rng())
    assert window.crops == 3
    assert boxes.shape == (6, 4)
    assert np.array_equal(boxes[:3], boxes[3:])
    long = 0 if width > height else 1
    assert boxes[0, long] == 0
    assert boxes[2, long + 2] == pytest.approx(max(height, width))
    centre = (boxes[1, long] + boxes[1, long + 2]) / 2
    assert centre == pytest.approx(max(height, width) / 2, abs=1)
    short = boxes[:, [1 - long, 3 - long]]
    assert np.allclose(short, [0, min(height, width)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(scale=(0.5, 1.5)), "scale"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio"),
        (lambda: RandomResizedCrop(independent=False, shared=(0, 0)), "leave out one of the two"),
        (lambda: ScaleCrop(112, (100,)), "none below size=112"),
        (lambda: SizeCrop(112, ((100, 100),)), "no side below size=112"),
        (lambda: SizeCrop(place="left"), "choose random or centre"),
        (lambda: CentreCrop(100, 112), "not below size"),
        (lambda: WholeFrame((0, 10)), "1 or more"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "window",
    [RandomResizedCrop(), ScaleCrop(), SizeCrop(), CentreCrop(), CentreSquare(), ThreeCrops()],
)
def test_inside_the_picture_and_repeatable(window):
    for height, width in ((47, 63), (240, 320), (1080, 607)):
        boxes = window.sample(height, width, 3, rng(4))
        assert boxes.shape == (3 * window.crops, 4)
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert np.array_equal(boxes, window.sample(height, width, 3, rng(4)))


@pytest.mark.parametrize("kind", [RandomResizedCrop, CentreCrop])
def test_interpolation_is_bilinear_unless_asked_for(kind):
    assert kind().interpolation == "bilinear"
    assert kind(interpolation="bicubic").interpolation == "bicubic"
    assert SizeCrop().interpolation == "bilinear"
    with pytest.raises(ValueError, match="interpolation='cubic': choose bilinear or bicubic"):
        kind(interpolation="cubic")
