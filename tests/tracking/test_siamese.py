"""The search against hand-made responses and the port's formulas in NumPy and OpenCV."""

import dataclasses

import numpy as np
import pytest
import torch

from lightning_vssl.tracking.siamese import (
    Peak,
    SiameseSearch,
    cosine_window,
    find_peak,
    moved,
    start,
)

SEARCH = SiameseSearch()
WINDOW = cosine_window(SEARCH.response)


def bumps(*places, cells=17, base=0.0):
    """Responses with one smooth bump each: (height, row, column) in cells from the middle."""
    axis = np.arange(cells) - (cells - 1) / 2
    made = [
        base + h * np.exp(-((axis[:, None] - r) ** 2 + (axis[None] - c) ** 2) / 4)
        for h, r, c in places
    ]
    return torch.from_numpy(np.stack(made)).float()


def by_the_port(responses, search):
    """Steps of the PyTorch port on NumPy arrays, upsampled by OpenCV: factor and offset (x, y)."""
    cv2 = pytest.importorskip("cv2")
    size = search.response
    large = [cv2.resize(r, (size, size), interpolation=cv2.INTER_CUBIC) for r in responses.numpy()]
    half = search.scales // 2
    large = np.stack([r * (search.scale_penalty if i != half else 1) for i, r in enumerate(large)])
    best = int(np.argmax(large.max((1, 2))))
    hann = np.outer(np.hanning(size), np.hanning(size))
    response = large[best] - large[best].min()
    response = response / response.sum() * (1 - search.window)
    response += search.window * hann / hann.sum()
    row, column = np.unravel_index(response.argmax(), response.shape)
    offsets = [(place - (size - 1) / 2) * 8 * responses.shape[1] / size for place in (column, row)]
    return search.factors[best], offsets


class TestPeak:
    @pytest.mark.parametrize("base", [0.0, -3.0])
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_the_port(self, seed, base):
        draw = np.random.default_rng(seed)
        places = [(draw.uniform(0.9, 1.1), *draw.uniform(-5, 5, 2)) for _ in range(3)]
        responses = bumps(*places, base=base)
        factor, offset = by_the_port(responses, SEARCH)
        found = find_peak(responses, SEARCH, 8, WINDOW)
        assert found.factor == factor
        assert found.offset == pytest.approx(offset, abs=0.51)  # one enlarged pixel: a near tie

    def test_in_the_middle_moves_nothing(self):
        found = find_peak(bumps(*[(1.0, 0, 0)] * 3), SEARCH, 8, WINDOW)
        assert found.factor == 1
        assert np.abs(found.offset).max() <= 0.25

    def test_is_where_the_bump_is(self):
        search = dataclasses.replace(SEARCH, window=0.0)
        found = find_peak(bumps(*[(1.0, -3, 5)] * 3), search, 8, WINDOW)
        assert found.offset == pytest.approx((40, -24), abs=0.3)

    def test_cosine_window_draws_to_the_middle(self):
        twins = bumps((1.0, 0, 6)) + bumps((0.95, 0, -1))
        assert find_peak(twins.repeat(3, 1, 1), SEARCH, 8, WINDOW).offset[0] < 0
        free = dataclasses.replace(SEARCH, window=0.0)
        assert find_peak(twins.repeat(3, 1, 1), free, 8, WINDOW).offset[0] > 40

    @pytest.mark.parametrize(("height", "factor"), [(1.02, 1.0), (1.04, 1.0375)])
    def test_another_scale_must_be_better_by_its_penalty(self, height, factor):
        responses = bumps((0.5, 0, 0), (1.0, 0, 0), (height, 0, 0))  # 1 / 0.9745 = 1.026
        assert find_peak(responses, SEARCH, 8, WINDOW).factor == factor

    def test_penalty_favours_other_scales_where_all_is_negative(self):
        responses = bumps(*[(1.0, 0, 0)] * 3, base=-5.0)
        assert find_peak(responses, SEARCH, 8, WINDOW).factor != 1

    def test_steps_of_vfs_are_too_short_by_a_seventeenth(self):
        responses = bumps(*[(1.0, 0, 6)] * 3, cells=18)
        free = dataclasses.replace(SEARCH, window=0.0)
        quirk = dataclasses.replace(free, response_step=0.5)
        true, short = (find_peak(responses, s, 8, WINDOW).offset[0] for s in (free, quirk))
        assert true == pytest.approx(48, abs=0.3)
        assert short / true == pytest.approx(17 / 18)

    def test_nan_is_refused(self):
        responses = bumps(*[(1.0, 0, 0)] * 3)
        responses[0, 3, 3] = float("nan")
        with pytest.raises(ValueError, match="response is not finite"):
            find_peak(responses, SEARCH, 8, WINDOW)


class TestTarget:
    def test_starts_in_the_box_with_context(self):
        target = start((10.0, 20.0, 40.0, 50.0), SEARCH)
        assert target.centre == (25, 35)
        assert target.side == 60
        assert target.box == (10, 20, 40, 50)

    def test_moves_by_the_crops_pixels_and_grows_by_part_of_the_scale(self):
        target = start((0.0, 0.0, 127 / 2, 127 / 2), SEARCH)  # a pixel of the crop is one of it
        found = moved(target, Peak(1.0375, (10.0, -4.0)), SEARCH)
        x, y = target.centre
        assert found.centre == pytest.approx((x + 10.375, y - 4.15))
        grown = 0.41 + 0.59 * 1.0375
        assert found.size == pytest.approx((63.5 * grown, 63.5 * grown))
        assert found.side == pytest.approx(127 * grown)

    def test_window_keeps_within_its_limits(self):
        search = dataclasses.replace(SEARCH, side_limits=(0.2, 5.0))
        for power, limit in ((1, 5.0), (-1, 0.2)):
            target = start((0.0, 0.0, 10.0, 20.0), search)
            side = target.side
            for _ in range(200):
                target = moved(target, Peak(1.0375**power, (0.0, 0.0)), search)
            assert target.side == pytest.approx(limit * side)
            assert target.size == pytest.approx((limit * 10, limit * 20))

    @pytest.mark.parametrize(
        "box", [(0.0, 0.0, 0.0, 5.0), (4.0, 0.0, 2.0, 5.0), (float("nan"),) * 4]
    )
    def test_box_without_area_is_refused(self, box):
        with pytest.raises(ValueError, match="must have an area"):
            start(box, SEARCH)


def test_factors_ascend_around_one():
    assert SEARCH.factors == pytest.approx((1 / 1.0375, 1, 1.0375))
    assert SiameseSearch(scales=1).factors == (1,)


def test_cosine_window_equals_numpys():
    hann = np.outer(np.hanning(272), np.hanning(272))
    assert np.allclose(WINDOW.numpy(), hann / hann.sum(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"exemplar": 255},
        {"scales": 2},
        {"scale_step": 1.0},
        {"scale_penalty": 0.0},
        {"scale_rate": 1.5},
        {"window": -0.1},
        {"response_step": 0.0},
        {"side_limits": (0.2, 0.9)},
    ],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SiameseSearch(**wrong)
