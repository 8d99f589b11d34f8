"""Spearman's correlation against SciPy's, with ties and constant maps; the mean over images."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics import Metric

from lightning_vssl.metrics.alignment import HUMAN_CEILING, HumanAlignment, ranks, spearman


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_equals_scipy(levels):
    rng = np.random.Generator(np.random.Philox(key=levels))
    a, b = rng.integers(0, levels, (2, 6, 9, 11)) / levels
    b = b + 0.3 * a
    found = spearman(torch.tensor(a), torch.tensor(b))
    for i in range(6):
        expected = stats.spearmanr(a[i].ravel(), b[i].ravel()).statistic
        assert found[i].item() == pytest.approx(expected, abs=1e-12)


def test_ranks_equal_scipys():
    values = torch.tensor([[3.0, 1, 1, 2, 3, 3], [5, 4, 3, 2, 1, 0]])
    assert ranks(values).tolist() == [(stats.rankdata(v) - 1).tolist() for v in values]


def test_constant_and_broken_maps_have_no_correlation():
    a = torch.rand(4, 5, 5)
    b = torch.rand(4, 5, 5)
    a[1], b[2, 0, 0], a[3, 0, 0] = 0.5, torch.nan, torch.inf
    assert spearman(a, b).isnan().tolist() == [False, True, True, True]


def test_mean_over_images_each_once_without_the_undefined():
    torch.manual_seed(0)
    maps, human = torch.rand(5, 8, 8), torch.rand(5, 8, 8)
    maps[2] = 1.0
    metric = HumanAlignment()
    assert isinstance(metric, Metric)
    metric.update(maps[:3], human[:3], torch.tensor([0, 1, 2]))
    metric.update(maps[3:], human[3:], torch.tensor([3, 4]))
    metric.update(maps[:2], human[:2], torch.tensor([0, 1]))  # as a distributed sampler pads
    expected = np.mean(
        [stats.spearmanr(maps[i].ravel(), human[i].ravel()).statistic for i in (0, 1, 3, 4)]
    )
    found = metric.compute()
    assert found["spearman"] == pytest.approx(expected, abs=1e-12)
    assert found["alignment"] == pytest.approx(expected / HUMAN_CEILING, abs=1e-12)
    assert (metric.images, metric.undefined) == (5, 1)


def test_refused():
    with pytest.raises(ValueError, match="alike"):
        spearman(torch.rand(2, 3, 3), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="ceiling"):
        HumanAlignment(0.0)
    metric = HumanAlignment()
    with pytest.raises(ValueError, match="no images"):
        metric.compute()
    metric.update(torch.ones(2, 3, 3), torch.rand(2, 3, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="constant"):
        metric.compute()
