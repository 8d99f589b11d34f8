"""Heat maps against masks: scikit-learn's Jaccard, loops, closed forms; the floors' shapes."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from scipy.stats import norm
from sklearn.metrics import jaccard_score
from torch import Tensor
from torchmetrics import Metric

from lightning_vssl.metrics.localisation import (
    HeatLocalisation,
    centred_gaussian,
    equal_area_iou,
    gaussian_like,
    heat_inside,
    heat_iou,
    heat_lift,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def blob(height: int, width: int, y: float, x: float, sigma: float) -> Tensor:
    rows = torch.arange(height)[:, None] - y
    columns = torch.arange(width)[None] - x
    return (-(rows**2 + columns**2) / (2 * sigma**2)).exp()


@pytest.mark.parametrize("space", [(9, 11), (3, 6, 7)])
@pytest.mark.parametrize("threshold", [0.15, 0.5, 1.0])
def test_iou_equals_scikit_learn(space: tuple[int, ...], threshold: float) -> None:
    heat, mask = draw(5, *space), draw(5, *space, seed=1) < 0.3
    found = heat_iou(heat, mask, threshold)
    for b in range(5):
        high = heat[b].numpy().astype(float) >= threshold * heat[b].numpy().astype(float).max()
        expected = jaccard_score(mask[b].numpy().ravel(), high.ravel())
        assert found[b].item() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(heat_iou(1000 * heat.double(), mask.byte() * 3, threshold), found)


def test_equal_area_iou_equals_sorting() -> None:
    heat, mask = draw(5, 9, 11), draw(5, 9, 11, seed=1) < 0.3
    found = equal_area_iou(heat, mask)
    for b in range(5):
        area = int(mask[b].sum())
        hottest = np.argsort(-heat[b].numpy().ravel())[:area]
        high = np.zeros(99, dtype=bool)
        high[hottest] = True
        expected = jaccard_score(mask[b].numpy().ravel(), high)
        assert found[b].item() == pytest.approx(expected, abs=1e-12)


def test_places_of_equal_heat_share_the_area_that_is_left() -> None:
    heat = torch.tensor([[[9.0, 5.0, 5.0], [5.0, 5.0, 1.0]]])
    mask = torch.tensor([[[1, 1, 0], [0, 0, 1]]])
    # area 3: the 9 and half of each of the four 5s
    both = 1 + 2 / 4
    assert equal_area_iou(heat, mask).item() == pytest.approx(both / (6 - both), abs=1e-12)
    assert equal_area_iou(torch.ones(1, 2, 3), mask).item() == pytest.approx(0.5 / 1.5, abs=1e-12)


def test_heat_inside_and_lift_equal_loops() -> None:
    heat, mask = draw(4, 2, 5, 6), draw(4, 2, 5, 6, seed=1) < 0.4
    inside, lift = heat_inside(heat, mask), heat_lift(heat, mask)
    for b in range(4):
        pairs = list(zip(heat[b].flatten().tolist(), mask[b].flatten().tolist(), strict=True))
        share = math.fsum(h for h, m in pairs if m) / math.fsum(h for h, _ in pairs)
        area = sum(m for _, m in pairs) / len(pairs)
        assert inside[b].item() == pytest.approx(share, abs=1e-12)
        assert lift[b].item() == pytest.approx(share / area, abs=1e-12)


def test_the_mask_itself_is_found_and_its_complement_is_not() -> None:
    mask = draw(3, 8, 8) < 0.25
    for heat, best in ((mask.float(), True), (~mask, False)):
        for score in (heat_iou, equal_area_iou, heat_inside):
            expected = torch.full((3,), float(best), dtype=torch.float64)
            assert torch.allclose(score(heat.float(), mask), expected), score.__name__
    assert torch.allclose(heat_lift(mask.float(), mask), 64 / mask.flatten(1).sum(1).double())


def test_void_places_do_not_count() -> None:
    heat = draw(3, 6, 8)
    mask = (draw(3, 6, 8, seed=1) < 0.4).to(torch.uint8)
    void = mask.clone()
    void[:, :, 5:] = 255
    junk = heat.clone()
    junk[:, :, 5:] = 1e6
    for score in (heat_iou, equal_area_iou, heat_inside, heat_lift):
        expected = score(heat[:, :, :5], mask[:, :, :5])
        assert torch.allclose(score(junk, void), expected, atol=1e-12), score.__name__


def test_negative_heat_is_none_and_a_map_without_heat_is_uniform() -> None:
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[:, :2, :2] = True
    heat = draw(2, 4, 5) - 0.5
    for score in (heat_iou, equal_area_iou, heat_inside, heat_lift):
        assert torch.equal(score(heat, mask), score(heat.clamp(min=0), mask))
        assert torch.equal(score(-heat.abs(), mask), score(torch.ones(2, 4, 5), mask))
    share = 4 / 20
    assert heat_iou(torch.zeros(2, 4, 5), mask)[0].item() == pytest.approx(share)
    uniform = equal_area_iou(torch.zeros(2, 4, 5), mask)[0].item()
    assert uniform == pytest.approx(share / (2 - share))
    assert heat_lift(torch.zeros(2, 4, 5), mask)[0].item() == pytest.approx(1)


def test_an_empty_mask_has_no_number() -> None:
    heat, mask = draw(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)
    mask[1, 0, 0] = 1
    for score in (heat_iou, equal_area_iou, heat_inside, heat_lift):
        assert score(heat, mask).isnan().tolist() == [True, False]


def test_centred_gaussian_equals_scipy() -> None:
    found = centred_gaussian((9, 12), 0.25)
    y = norm.pdf(np.arange(9) - 4, scale=0.25 * 9)
    x = norm.pdf(np.arange(12) - 5.5, scale=0.25 * 12)
    expected = y[:, None] * x
    assert np.allclose(found.numpy(), expected / expected.max(), atol=1e-12)


def moments(heat: Tensor) -> list[float]:
    """Centre and standard deviation along height, then along width, by loops."""
    total = float(heat.sum())
    found = []
    for over in (1, 0):
        profile = (heat.double().sum(over) / total).tolist()
        mean = sum(p * k for k, p in enumerate(profile))
        found += [mean, math.sqrt(sum(p * (k - mean) ** 2 for k, p in enumerate(profile)))]
    return found


def test_the_floor_is_as_wide_as_the_heat_and_in_the_middle() -> None:
    heat = torch.stack(
        [blob(20, 31, 4, 25, 2.5), blob(20, 31, 10, 3, 4), draw(20, 31) * blob(20, 31, 6, 20, 7)]
    )
    floor = gaussian_like(heat)
    assert floor.shape == heat.shape
    for own, like in zip(heat, floor, strict=True):
        _, high, _, wide = moments(own)
        found = moments(like)
        assert found == pytest.approx([9.5, high, 15, wide], abs=1e-6)
    volume = torch.stack([heat, 0 * heat, 2 * heat], dim=1)  # (B, T, h, w): twice the same place
    assert torch.allclose(gaussian_like(volume)[:, 1], floor, atol=1e-9)


def test_heat_wider_than_uniform_has_a_uniform_floor() -> None:
    heat = torch.zeros(2, 6, 8)
    heat[0, :, [0, -1]] = 1  # at the borders
    for like in gaussian_like(heat):
        assert like.min() > 0.999


def test_heat_in_one_column_has_a_narrow_floor() -> None:
    heat = torch.zeros(1, 2, 5)
    heat[0, :, 1] = 1
    assert gaussian_like(heat)[0, 0].round(decimals=6).tolist() == [0, 0, 1, 0, 0]


def test_means_over_samples_each_once_and_the_floor_beside() -> None:
    heat = torch.stack([blob(7, 7, y, x, 1.2) for y, x in ((1, 1), (5, 2), (3, 6), (2, 2), (0, 0))])
    heat[4] = 0
    mask = torch.zeros(5, 28, 28, dtype=torch.uint8)
    for b, (y, x) in enumerate([(4, 4), (20, 8), (12, 24), (0, 0), (8, 8)]):
        mask[b, y : y + 6, x : x + 5] = b != 3  # the fourth has no object
    metric = HeatLocalisation(threshold=0.4)
    assert isinstance(metric, Metric)
    metric.update(heat[2:], mask[2:], torch.tensor([2, 3, 4]))
    metric.update(heat[:2], mask[:2], torch.tensor([0, 1]))
    metric.update(heat[1:3], mask[1:3], torch.tensor([1, 2]))  # as a distributed sampler pads
    found = metric.compute()
    assert set(found) == set(metric.names)
    assert (metric.samples, metric.undefined, metric.blank) == (4, 1, 1)
    assert metric.rows.tolist() == [0, 1, 2, 4]
    large = torch.tensor(
        np.stack(
            [zoom(h.double().numpy(), 4, order=1, grid_mode=True, mode="nearest") for h in heat]
        )
    )
    rows = [0, 1, 2, 4]
    for prefix, maps in (("", large), ("floor_", gaussian_like(large))):
        for name, score in (
            ("iou", lambda h, m: heat_iou(h, m, 0.4)),
            ("area_iou", equal_area_iou),
            ("inside", heat_inside),
            ("lift", heat_lift),
        ):
            expected = score(maps[rows], mask[rows])
            assert torch.allclose(metric.values[prefix + name], expected, atol=1e-9), name
            assert found[prefix + name] == pytest.approx(expected.mean().item(), abs=1e-9)
    assert found["iou"] > 2 * found["floor_iou"]


def test_a_floor_of_given_sigma_and_volumes() -> None:
    heat, mask = draw(2, 2, 4, 4), draw(2, 6, 12, 16, seed=1) < 0.3
    metric = HeatLocalisation(floor=0.2)
    metric.update(heat, mask, torch.tensor([0, 1]))
    found = metric.compute()
    bell = centred_gaussian((12, 16), 0.2).expand(2, 6, 12, 16)
    assert found["floor_inside"] == pytest.approx(heat_inside(bell, mask).mean().item(), abs=1e-12)


def test_refused() -> None:
    heat, mask = draw(2, 4, 4), torch.ones(2, 4, 4)
    for threshold in (0.0, 1.5):
        with pytest.raises(ValueError, match="threshold"):
            heat_iou(heat, mask, threshold)
        with pytest.raises(ValueError, match="threshold"):
            HeatLocalisation(threshold)
    with pytest.raises(ValueError, match="alike"):
        heat_inside(heat, mask[0])
    with pytest.raises(ValueError, match="sigma"):
        centred_gaussian((4, 4), 0.0)
    with pytest.raises(ValueError, match="heat must be"):
        gaussian_like(heat[0])
    for floor in (-1.0, "wide"):
        with pytest.raises(ValueError, match="floor"):
            HeatLocalisation(floor=floor)
    metric = HeatLocalisation()
    with pytest.warns(UserWarning, match="compute"), pytest.raises(ValueError, match="no maps"):
        metric.compute()
    with pytest.raises(ValueError, match="as many samples"):
        metric.update(heat, mask, torch.tensor([0]))
    metric.update(heat, torch.zeros(2, 4, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="empty"):
        metric.compute()
