"""VITO's frames: |dt| of 10,000 draws follows its law in each scheme (Figure B.3)."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from lightning_vssl.data.clips import FrameViews

FPS, SECONDS, T = 100, 10, 2.56
TIMES = np.arange(FPS * SECONDS) / FPS


def gaps(spacing: str, draws: int = 10_000, times: np.ndarray = TIMES) -> np.ndarray:
    """|dt| of every pair of three views, (draws, pairs), in seconds."""
    clips = FrameViews(views=3, seconds=T, spacing=spacing)
    drawn = np.stack(
        [
            times[clips.sample(times, np.random.Generator(np.random.Philox(key=seed)))[:, 0]]
            for seed in range(draws)
        ]
    )
    return np.stack([abs(drawn[:, i] - drawn[:, j]) for i, j in combinations(range(3), 2)], 1)


def ks(found: np.ndarray, cdf) -> float:
    """Distance to a law; each pair of views by itself, since pairs of one video are dependent."""
    return stats.kstest(found, cdf).statistic


def test_marginal_has_its_mode_at_zero():
    """Density 2/T (1 - d/T); frames are 10 ms apart, which alone makes a distance of 0.008."""
    found = gaps("marginal")
    assert found.shape == (10_000, 3)
    for pair in range(3):
        assert ks(found[:, pair], lambda d: 2 * d / T - (d / T) ** 2) < 0.02
    counts, edges = np.histogram(found[:, 0], bins=8, range=(0, T))
    law = np.diff(2 * edges / T - (edges / T) ** 2)
    assert np.abs(counts / 10_000 - law).max() < 0.015
    assert (np.diff(counts) < 0).all()


def test_delta_is_constant():
    found = gaps("delta")
    assert found[:, 0] == pytest.approx(np.full(10_000, T / 2), abs=0.011)
    assert found[:, 2] == pytest.approx(np.full(10_000, T / 2), abs=0.011)
    assert found[:, 1] == pytest.approx(np.full(10_000, T), abs=0.011)


def test_uniform_is_triangular_about_the_distance_of_its_parts():
    found = gaps("uniform")
    for pair, apart in ((0, 1), (2, 1), (1, 2)):
        law = stats.triang(c=0.5, loc=(apart - 1) * T / 3, scale=2 * T / 3)
        assert ks(found[:, pair], law.cdf) < 0.02


def test_same_is_one_frame():
    found = gaps("same")
    assert not found.any()
    clips = FrameViews(views=2, spacing="same")
    seen = {
        int(clips.sample(TIMES, np.random.Generator(np.random.Philox(key=seed)))[0, 0])
        for seed in range(2000)
    }
    assert len(seen) > 750  # of 1000 frames, the middle ones oftener


@pytest.mark.parametrize("spacing", ["marginal", "delta", "uniform", "same"])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_video_shorter_than_the_stretch_is_taken_whole(spacing, count):
    """0.8 seconds and less instead of 2.56: no frame beyond its end, the law on what there is."""
    times = np.arange(count) / 25
    found = gaps(spacing, 2000, times)
    assert found.max() <= times[-1] + 1e-9
    if count == 20 and spacing == "marginal":
        # Two of 20 frames, each as likely: the same one in a twentieth of all draws.
        assert (found[:, 0] == 0).mean() == pytest.approx(1 / 20, abs=0.015)
    if count == 20 and spacing == "delta":
        assert found[:, 1] == pytest.approx(np.full(2000, times[-1]))
