"""Clips inside a tube: their law against tries, the distances of Table 7a, the fallback."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lightning_vssl.data.clips import ALWAYS, TrackedClips, TrackedPair, TrackedSpeeds


def times(count: int, fps: float = 25.0) -> np.ndarray:
    return np.arange(count) / fps


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def holes(count: int, *lost: range) -> np.ndarray:
    """Tracked but for some frames, (count,)."""
    tracked = np.ones(count, bool)
    for frames in lost:
        tracked[frames.start : frames.stop] = False
    return tracked


def drawn(
    clips: TrackedClips, tracked: np.ndarray | None, n: int, count: int = 0, epoch: int = ALWAYS
) -> tuple[np.ndarray, np.ndarray]:
    """(n, V, T) frames, and whether each sample is in the tube, (n,)."""
    shown = times(count if tracked is None else len(tracked))
    found = [clips.draw(shown, tracked, rng(seed), epoch) for seed in range(n)]
    return np.stack([frames for frames, _ in found]), np.array([inside for _, inside in found])


def tries(clips: TrackedClips, tracked: np.ndarray, seed: int) -> tuple[int, int] | None:
    """The slow way: query and key anywhere until both fit, 100 times at most."""
    draws = rng(seed + 10**6)
    room = len(tracked) - clips.window
    gap = round(clips.gap * 25)
    for _ in range(100):
        query, key = draws.integers(room + 1, size=2)
        distance = abs(query - key)
        fits = {"varying": True, "zero": distance == 0, "constant": distance == gap}
        if not fits[clips.distance]:
            continue
        windows = [tracked[start : start + clips.window] for start in (query, key)]
        if all(window.all() for window in windows):
            return int(query), int(key)
    return None


@pytest.mark.parametrize(
    "clips",
    [
        TrackedPair(4, 2),
        TrackedPair(4, 2, distance="zero"),
        TrackedPair(4, 2, distance="constant", gap=0.2),
        TrackedSpeeds(4),
    ],
    ids=["varying", "zero", "constant", "speeds"],
)
def test_the_law_is_that_of_trying(clips):
    clips = type(clips)(**{**vars(clips), "min_tracked": 1})
    tracked = holes(34, range(5), range(17, 19), range(31, 34))
    frames, inside = drawn(clips, tracked, 4000)
    assert inside.all()
    exact = Counter((int(query), int(key)) for query, key in frames[:, :2, 0])
    slow = Counter(tries(clips, tracked, seed) for seed in range(4000))
    slow.pop(None, None)
    assert set(exact) >= set(slow)  # nothing that trying finds is left out
    pairs = sorted(set(exact) | set(slow))
    table = [[count[pair] for pair in pairs] for count in (exact, slow)]
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert stats.chisquare([exact[pair] for pair in pairs]).pvalue > 0.001  # all alike


@pytest.mark.parametrize(
    ("clips", "window"), [(TrackedPair(6, 3), 16), (TrackedSpeeds(8), 16), (TrackedPair(1), 1)]
)
def test_every_frame_of_a_window_is_tracked(clips, window):
    tracked = holes(150, range(20, 40), range(77, 79), range(120, 130))
    frames, inside = drawn(clips, tracked, 500)
    assert inside.all()
    for start in frames[:, :, 0].ravel():
        assert tracked[start : start + window].all()


def test_only_middle_frames_need_be_as_in_the_authors_code():
    tracked = holes(400, *(range(k, k + 3) for k in range(0, 400, 4)))  # every fourth frame
    clips = TrackedSpeeds(16, inside="middle")
    frames, inside = drawn(clips, tracked, 200)
    assert inside.all()
    assert tracked[frames[:, :, 8]].all()
    pairs = TrackedPair(16, inside="middle")
    frames, inside = drawn(pairs, tracked, 200)
    assert inside.all()
    assert tracked[frames[:, :, 8]].all()
    assert not drawn(TrackedPair(16), tracked, 5)[1].any()  # no whole window is tracked


class TestDistances:
    tracked = holes(250, range(100, 110))

    def gaps(self, **settings) -> np.ndarray:
        epoch = settings.pop("epoch", ALWAYS)
        frames, inside = drawn(TrackedPair(16, **settings), self.tracked, 800, epoch=epoch)
        assert inside.all()
        return frames[:, 1, 0] - frames[:, 0, 0]

    def test_varying(self):
        gaps = self.gaps()
        starts = [s for s in range(235) if self.tracked[s : s + 16].all()]
        expected = [b - a for a, b in itertools.product(starts, starts)]
        assert stats.ks_2samp(gaps, expected).pvalue > 0.001

    def test_zero(self):
        assert not self.gaps(distance="zero").any()

    def test_constant(self):
        gaps = self.gaps(distance="constant")
        assert set(gaps.tolist()) == {-42, 42}  # 1.7 s at 25 frames a second, before or after
        assert abs((gaps > 0).mean() - 0.5) < 0.08
        assert set(self.gaps(distance="constant", gap=2.0).tolist()) == {-50, 50}

    @pytest.mark.parametrize("epoch", [0, 24, 99, 500])
    def test_curriculum(self, epoch):
        gaps = np.abs(self.gaps(distance="curriculum", relax=100, epoch=epoch))
        most = int(234 * min(1, (epoch + 1) / 100))
        assert gaps.max() <= most
        assert gaps.max() > 0.8 * most - 1
        if epoch >= 99:
            assert np.array_equal(gaps, np.abs(self.gaps()))

    def test_seconds_follow_the_rate(self):
        clips = TrackedPair(4, distance="constant", gap=1.0, min_tracked=1)
        moments = np.arange(100) / 12.5
        frames, inside = clips.draw(moments, np.ones(100, bool), rng(0))
        assert inside
        assert abs(frames[0, 0] - frames[1, 0]) in (12, 13)

    def test_a_tube_too_short_for_the_distance_falls_back(self):
        tracked = holes(250, range(70, 250))
        frames, inside = drawn(TrackedPair(16, distance="constant", gap=3.0), tracked, 50)
        assert not inside.any()
        assert (np.abs(frames[:, 0, 0] - frames[:, 1, 0]) == 75).all()
        frames, inside = drawn(TrackedPair(16, distance="constant"), holes(40), 50)
        assert not inside.any()  # nor does the video have that distance: the longest it has
        assert (np.abs(frames[:, 0, 0] - frames[:, 1, 0]) == 24).all()


class TestFallback:
    @pytest.mark.parametrize("tracked", [holes(200, range(59, 200)), np.zeros(200, bool), None])
    def test_clips_are_drawn_anywhere(self, tracked):
        frames, inside = drawn(TrackedPair(16, 2), tracked, 1500, 200)
        assert not inside.any()
        starts = frames[:, :, 0]
        assert stats.kstest(starts.ravel() + 0.5, stats.uniform(0, 170).cdf).pvalue > 0.001
        assert abs(stats.spearmanr(starts[:, 0], starts[:, 1]).statistic) < 0.1
        assert (np.diff(frames, axis=2) == 2).all()

    def test_sixty_tracked_frames_are_enough(self):
        assert drawn(TrackedPair(16), holes(200, range(60, 200)), 5)[1].all()
        assert not drawn(TrackedPair(16), holes(200, range(59, 200)), 5)[1].any()
        assert drawn(TrackedPair(16, min_tracked=16), holes(200, range(16, 200)), 5)[1].all()

    def test_sample_is_the_draw_without_a_tube(self):
        clips = TrackedSpeeds(8)
        for seed in range(20):
            frames = clips.sample(times(99), rng(seed))
            assert np.array_equal(frames, clips.draw(times(99), None, rng(seed))[0])


class TestSpeeds:
    def test_three_views_of_two_windows(self):
        frames, _ = drawn(TrackedSpeeds(16), holes(250), 400)
        steps = np.diff(frames, axis=2)
        assert (steps == steps[:, :, :1]).all()
        query, key, other = steps[:, :, 0].T
        assert np.array_equal(query, key)
        assert np.array_equal(query + other, np.full(400, 3))  # 1 and 2, or 2 and 1
        assert np.array_equal(frames[:, 1, 0], frames[:, 2, 0])
        assert abs((query == 1).mean() - 0.5) < 0.08
        fast = query == 2  # the coin and the windows have nothing to do with each other
        starts = frames[:, 0, 0]
        assert stats.ks_2samp(starts[fast], starts[~fast]).pvalue > 0.001

    def test_shapes(self):
        assert TrackedSpeeds(16).shape == (3, 16)
        assert TrackedPair(1).shape == (2, 1)
        assert TrackedSpeeds(16, (1, 4)).window == 64


@pytest.mark.parametrize("clips", [TrackedPair(16, 2), TrackedSpeeds(16)])
@pytest.mark.parametrize("count", [1, 7, 30, 31, 32, 33])
def test_short_videos(clips, count):
    clips = type(clips)(**{**vars(clips), "min_tracked": 1})
    for short in ("loop", "clamp"):
        own = type(clips)(**{**vars(clips), "short": short})
        frames, inside = own.draw(times(count), np.ones(count, bool), rng(0))
        assert inside
        assert frames.shape == own.shape
        assert 0 <= frames.min() <= frames.max() < count
    if count < 31:
        own = type(clips)(**{**vars(clips), "short": "error"})
        with pytest.raises(ValueError, match=r"the clip needs 3\d frames and the video has"):
            own.draw(times(count), None, rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"distance": "random"},
        {"inside": "window"},
        {"gap": 0.0},
        {"relax": 0},
        {"min_tracked": 0},
        {"frames": 0},
    ],
)
def test_wrong_settings(wrong):
    for kind in (TrackedPair, TrackedSpeeds):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            kind(**wrong)
    with pytest.raises(ValueError, match="speeds="):
        TrackedSpeeds(speeds=(2, 2))
    with pytest.raises(ValueError, match="frames=1: a clip needs 2 frames or more"):
        TrackedSpeeds(frames=1)
    with pytest.raises(ValueError, match="stride="):
        TrackedPair(stride=0)
