"""From heat to masks and their J: by hand, against loops, and against the metric of DAVIS."""

import numpy as np
import pytest
import torch

from lightning_vssl.metrics.heat_tracking import (
    HeatTracking,
    heat_masks,
    heat_regions,
    region,
    unit_range,
)
from lightning_vssl.metrics.segmentation import score_sequence, statistics


def test_region_by_hand():
    one = torch.tensor([[True, True, False, False]])
    other = torch.tensor([[False, True, True, True]])
    none = torch.zeros(1, 4, dtype=torch.bool)
    assert region(one, other).item() == 0.25
    assert region(one, one).item() == 1
    assert region(one, none).item() == 0
    assert region(none, none).item() == 1  # DAVIS: nothing to find, nothing found
    assert region(torch.stack([one, none]), one).tolist() == [1, 0]


def test_the_mask_of_a_map_by_hand():
    heat = torch.tensor([[[3.0, 4.0], [5.0, 7.0]]])
    assert unit_range(heat).tolist() == [[[0, 0.25], [0.5, 1]]]
    assert heat_masks(heat, (2, 2)).tolist() == [[[False, False], [False, True]]]  # above, not at
    # Twice as wide, weights 1, 3/4, 1/4, 0 between centres: 0, .0625, .1875, .25 above and
    # .5, .625, .875, 1 below; rows in between are mixed alike.
    wide = heat_masks(heat, (4, 4), 0.45)[0].int().tolist()
    rows = np.array([[0, 0.0625, 0.1875, 0.25], [0.5, 0.625, 0.875, 1]])
    mixed = [rows[0], 0.75 * rows[0] + 0.25 * rows[1], 0.25 * rows[0] + 0.75 * rows[1], rows[1]]
    assert wide == (np.stack(mixed) > 0.45).astype(int).tolist()


def test_a_map_without_difference_shows_nothing():
    for level in (0.0, 2.5):
        flat = torch.full((1, 3, 3), level)
        assert not heat_masks(flat, (6, 6), 0.0).any()
        cut, hottest = heat_regions(flat[0], torch.ones(6, 6, dtype=torch.bool), [0.0, 0.5], 9)
        assert (cut.tolist(), hottest.item()) == ([0, 0], 0)


def test_neither_the_unit_nor_the_origin_of_heat_matters():
    heat = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for threshold in (0.2, 0.5):
        assert torch.equal(
            heat_masks(heat, (20, 30), threshold), heat_masks(7 * heat + 3, (20, 30), threshold)
        )


def test_every_mask_of_a_map_against_loops():
    generator = torch.Generator().manual_seed(1)
    heat = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    truth = torch.rand(9, 8, generator=generator) > 0.6
    levels, area = [0.1, 0.5, 0.8], 13
    large = torch.nn.functional.interpolate(
        ((heat - heat.min()) / (heat.max() - heat.min()))[None, None], (9, 8), mode="bilinear"
    )[0, 0].tolist()
    places = {(y, x): large[y][x] for y in range(9) for x in range(8)}
    true = {place for place in places if truth[place]}
    cut, hottest = heat_regions(heat, truth, levels, area)
    for level, found in zip(levels, cut.tolist(), strict=True):
        mask = {place for place, value in places.items() if value > level}
        assert found == pytest.approx(len(mask & true) / len(mask | true), abs=1e-12)
    largest = sorted(places, key=places.get)[-area:]
    mask = {place for place, value in places.items() if value >= min(map(places.get, largest))}
    assert hottest.item() == pytest.approx(len(mask & true) / len(mask | true), abs=1e-12)


def sequences(count=3, frames=9):
    """Maps and a square that moves on, grows, and hides once."""
    generator = torch.Generator().manual_seed(2)
    for index in range(count):
        truth = torch.zeros(frames, 24, 32, dtype=torch.uint8)
        for t in range(frames):
            truth[t, 4 : 12 + index, 2 * t : 2 * t + 10] = 1
        truth[4] *= index != 1
        truth[:, 0, 0] = 255
        heat = torch.rand(frames - 2, 3, 4, generator=generator, dtype=torch.float64)
        yield index, heat, truth


def test_the_numbers_are_those_of_davis():
    metric = HeatTracking(0.4, (0.2, 0.6))
    wanted = []
    for index, heat, truth in sequences():
        metric.update(heat, truth, index)
        masks = np.zeros(truth.shape, np.uint8)
        masks[1:-1] = heat_masks(heat, (24, 32), 0.4).numpy()
        by_frame, _ = score_sequence(list(truth.numpy()), list(masks))
        wanted.append(statistics(by_frame[0]))
    found = metric.compute()
    mean = np.array(wanted).mean(0)
    assert list(found) == ["J_mean", "J_recall", "J_decay"]
    assert list(found.values()) == pytest.approx(mean.tolist(), abs=1e-12)
    for index, values in metric.sequences().items():
        assert values == pytest.approx(wanted[index], abs=1e-12)


def test_other_thresholds_and_the_floor():
    metric = HeatTracking(0.4, (0.2, 0.6))
    floors = []
    for index, heat, truth in sequences():
        metric.update(heat, truth, index)
        stayed = np.repeat(np.where(truth[:1] == 255, 0, truth[:1]), len(truth), axis=0)
        floors.append(score_sequence(list(truth.numpy()), list(stayed))[0].mean())
    metric.compute()
    other = metric.sensitivity()
    for threshold, value in other.by_threshold.items():
        alone = HeatTracking(threshold)
        for index, heat, truth in sequences():
            alone.update(heat, truth, index)
        assert alone.compute()["J_mean"] == pytest.approx(value, abs=1e-12)
    assert other.first_mask == pytest.approx(float(np.mean(floors)), abs=1e-12)
    assert other.best[1] == max(other.by_threshold.values())
    assert 0 < other.first_area < 1


def test_heat_on_the_object_alone_is_all_right_by_area():
    truth = torch.zeros(5, 8, 8, dtype=torch.uint8)
    for t in range(5):
        truth[t, 2:5, t : t + 3] = 1
    metric = HeatTracking()
    metric.update(truth[1:-1].double(), truth, 0)  # a cell for each pixel
    assert metric.compute() == {"J_mean": 1, "J_recall": 1, "J_decay": 0}
    assert metric.sensitivity().first_area == 1


def test_a_sequence_seen_twice_counts_once_and_the_order_does_not_matter():
    plain, again = HeatTracking(), HeatTracking()
    parts = list(sequences())
    for index, heat, truth in parts:
        plain.update(heat, truth, index)
    for index, heat, truth in [*reversed(parts), parts[1]]:
        again.update(heat, truth, index)
    assert again.compute() == plain.compute()
    assert again.sequences() == plain.sequences()
    assert again.sensitivity() == plain.sensitivity()


def test_bad_input():
    _, heat, truth = next(sequences())
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\), got 1"):
        HeatTracking(1.0)
    metric = HeatTracking()
    with pytest.raises(ValueError, match="no sequence was added"):
        metric.compute()
    with pytest.raises(ValueError, match=r"for each of the 9 frames, .* got 6"):
        metric.update(heat[1:], truth, 0)
    truth[0] = 255
    with pytest.raises(ValueError, match="first frame's mask has no object"):
        metric.update(heat, truth, 0)
