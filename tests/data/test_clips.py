import math

import numpy as np
import pytest
from scipy import stats

from lightning_vssl.data.clips import (
    CentreClip,
    ClipPair,
    Clips,
    FrameViews,
    JitteredClip,
    RandomClip,
    SpeedClips,
    UniformClips,
)


def times(count: int, fps: float = 25.0) -> np.ndarray:
    return np.arange(count) / fps


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def draws(clips: Clips, count: int, n: int, fps: float = 25.0) -> np.ndarray:
    """(n, V, T) samples, each with a generator of its own, as the dataset draws them."""
    return np.stack([clips.sample(times(count, fps), rng(seed)) for seed in range(n)])


@pytest.mark.parametrize("count", [5, 31, 32, 40, 100, 301])
def test_tick_is_ctps_rule(count):
    expected = []
    for i in range(10):
        tick = (count - 32 + 1) / 10
        offset = int(tick / 2 + tick * i) if tick > 0 else 0
        expected.append([min(offset + 2 * t, count - 1) for t in range(16)])
    assert UniformClips().sample(times(count), rng()).tolist() == expected


@pytest.mark.parametrize("count", [16, 17, 29, 100, 300])
def test_centres_are_vcops_rule(count):
    clips = UniformClips(frames=16, stride=1, placement="centres")
    starts = [int(centre) - 8 for centre in np.linspace(8, count - 8, 10)]
    expected = [[start + t for t in range(16)] for start in starts]
    assert clips.sample(times(count), rng()).tolist() == expected


def test_rounded_is_rspnets_rule():
    clips = UniformClips(frames=16, stride=2, placement="rounded", short="loop")
    starts = [0, 8, 15, 23, 31, 38, 46, 54, 61, 69]  # linspace(0, 100 - 31, 10): steps of 7.67
    assert clips.sample(times(100), rng())[:, 0].tolist() == starts
    assert (np.diff(clips.sample(times(100), rng()), axis=1) == 2).all()
    # as many frames as the clip has, too few for its stride: the stride shrinks
    shrunk = clips.sample(times(20), rng())
    assert shrunk[0].tolist() == np.round(np.linspace(0, 19, 16)).astype(int).tolist()
    assert (shrunk == shrunk[0]).all()
    # fewer frames: they start over, one by one
    assert clips.sample(times(10), rng())[3].tolist() == [t % 10 for t in range(16)]
    single = UniformClips(frames=16, stride=1, clips=1, placement="rounded")
    assert single.sample(times(101), rng())[0, 0] == 42


def test_linspace_is_vitos_rule_at_12_frames_a_second():
    clips = UniformClips(frames=24, stride=1, placement="linspace", fps=12, short="loop")
    shown = [math.floor(tick * 30 / 12 + 1e-9) for tick in range(120)]  # ten seconds at 30 a second
    starts = [int(start) for start in np.linspace(0, 120 - 24, 10)]
    expected = [shown[start : start + 24] for start in starts]
    assert clips.sample(times(300, fps=30), rng()).tolist() == expected


def test_resampling_follows_the_times_of_a_variable_rate():
    moments = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 1.2])  # frame 2 stays for 0.8 seconds
    clips = CentreClip(frames=5, stride=1, fps=4, short="error")
    # 1.3 seconds at 4 a second: ticks at 0, .25, .5, .75, 1
    assert clips.sample(moments, rng()).tolist() == [[0, 2, 2, 2, 3]]


def test_centre_clip():
    assert CentreClip(frames=4, stride=3).sample(times(21), rng()).tolist() == [[5, 8, 11, 14]]


def test_jittered_clip_is_ctps():
    clips = JitteredClip(frames=16, strides=(3,), clips=2)
    found = draws(clips, 60, 2000)  # (n, 2, 16)
    assert found.shape == (2000, 2, 16)
    # jitter of the first frame and the start: first = start + U{0,1,2}, start = U{0..12}
    chance = np.convolve(np.ones(13) / 13, np.ones(3) / 3)
    seen = np.bincount(found[..., 0].ravel(), minlength=15)
    assert len(seen) == 15
    assert stats.chisquare(seen, chance * seen.sum()).pvalue > 1e-3
    # steps lie between stride - 2 and stride + 2, triangular
    steps = np.bincount(np.diff(found, axis=2).ravel(), minlength=6)
    assert steps[0] == 0
    assert steps[1:] / steps.sum() == pytest.approx(np.array([1, 2, 3, 2, 1]) / 9, abs=0.01)
    assert not np.array_equal(found[:, 0], found[:, 1])


def test_jittered_clip_draws_its_stride_uniformly():
    found = draws(JitteredClip(), 400, 3000)[:, 0]  # (n, 16)
    mean = (found[:, 15] - found[:, 0]) / 15  # within 4 / 15 of the stride, twice
    stride = np.clip(np.round(mean), 1, 5).astype(int)
    assert np.bincount(stride)[1:] / 3000 == pytest.approx(np.full(5, 0.2), abs=0.03)
    assert (np.diff(found[stride == 1]) == 1).all()  # no jitter at stride 1


def test_jittered_clip_repeats_the_last_frame_of_a_short_video():
    found = draws(JitteredClip(), 10, 50)
    assert found.max() == 9
    assert (np.diff(found, axis=2) >= 0).all()
    assert (found[..., -1] == 9).all()


def test_random_clip_starts_anywhere_that_fits():
    found = draws(RandomClip(frames=4, stride=2, clips=3), 12, 1500)
    assert (np.diff(found, axis=2) == 2).all()
    seen = np.bincount(found[..., 0].ravel())
    assert len(seen) == 12 - 7 + 1
    assert stats.chisquare(seen).pvalue > 1e-3
    correlation = np.corrcoef(found[:, :, 0].T)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 0.08


def test_random_clip_loops_or_repeats():
    loop = RandomClip(frames=5, short="loop").sample(times(3), rng())
    clamp = RandomClip(frames=5, short="clamp").sample(times(3), rng())
    assert loop.tolist() == [[0, 1, 2, 0, 1]]
    assert clamp.tolist() == [[0, 1, 2, 2, 2]]


def test_clip_pair_follows_the_density():
    count, frames, stride = 40, 4, 2
    room = count - (frames - 1) * stride
    found = draws(ClipPair(frames, stride), count, 6000)
    starts = found[:, :, 0]
    gap = np.abs(starts[:, 1] - starts[:, 0])
    edges = np.arange(room + 1) / room
    chance = np.diff(2 * edges - edges**2)  # integral of (2 / M)(1 - d / M)
    seen = np.bincount(gap, minlength=room)
    assert len(seen) == room
    assert stats.chisquare(seen, chance * len(gap)).pvalue > 1e-3
    assert starts.min() == 0
    assert found.max() == count - 1
    first = starts.min(axis=1)
    assert stats.kstest((first + 0.5) / (room - gap), "uniform").statistic < 0.05
    moved = gap > 0
    assert (starts[moved, 0] < starts[moved, 1]).mean() == pytest.approx(0.5, abs=0.03)


def test_clip_pair_of_a_short_video_is_two_independent_starts():
    found = draws(ClipPair(16, 2), 10, 1000)
    assert stats.chisquare(np.bincount(found[:, 0, 0], minlength=10)).pvalue > 1e-3
    assert abs(np.corrcoef(found[:, 0, 0], found[:, 1, 0])[0, 1]) < 0.1
    assert ((np.diff(found, axis=2) % 10) == 2).all()
    assert draws(ClipPair(16, 2, short="clamp"), 10, 5)[..., 0].max() == 0


def test_speed_clips():
    found = draws(SpeedClips(frames=16), 50, 800)
    steps = np.diff(found, axis=2)
    assert (steps == steps[..., :1]).all()
    speed = steps[..., 0]  # (n, 3)
    assert (speed[:, 0] == speed[:, 1]).all()
    assert (speed[:, 1] + speed[:, 2] == 3).all()
    assert (speed[:, 0] == 1).mean() == pytest.approx(0.5, abs=0.06)
    assert (found[:, 1, 0] == found[:, 2, 0]).all()
    for view in (0, 1):
        seen = np.bincount(found[:, view, 0])
        assert len(seen) == 50 - 32 + 1
        assert stats.chisquare(seen).pvalue > 1e-3
    assert abs(np.corrcoef(found[:, 0, 0], found[:, 1, 0])[0, 1]) < 0.1


@pytest.mark.parametrize("spacing", ["marginal", "delta", "uniform"])
def test_frame_views(spacing):
    clips = FrameViews(views=3, seconds=2.0, spacing=spacing)
    found = draws(clips, 1000, 2000, fps=100)[..., 0] / 100  # (n, 3) seconds of ten
    span = found.max(axis=1) - found.min(axis=1)
    assert span.max() <= 2.0 + 0.01
    gap = found[:, 1] - found[:, 0]
    if spacing == "delta":
        assert gap == pytest.approx(np.full(2000, 1.0), abs=0.011)
        assert stats.kstest(found[:, 0] / 8, "uniform").statistic < 0.04
    elif spacing == "marginal":  # |difference| of two uniform times: triangular, mode at 0
        law = stats.triang(c=0, scale=2.0)
        assert stats.kstest(np.abs(gap), law.cdf).statistic < 0.04
    else:  # difference of uniform times in neighbouring thirds: triangular about 2 / 3
        law = stats.triang(c=0.5, loc=0, scale=4 / 3)
        assert stats.kstest(gap, law.cdf).statistic < 0.04


def test_frame_views_of_a_short_video_take_it_whole():
    found = draws(FrameViews(views=2), 20, 500)  # 0.8 seconds
    assert set(found.ravel().tolist()) == set(range(20))


@pytest.mark.parametrize(
    "clips",
    [
        RandomClip(16, 2, short="error"),
        JitteredClip(short="error", strides=(2,)),
        UniformClips(short="error"),
        UniformClips(short="error", placement="rounded"),
        CentreClip(short="error"),
        ClipPair(short="error"),
        SpeedClips(short="error"),
    ],
)
def test_a_clip_longer_than_its_video(clips):
    with pytest.raises(ValueError, match=r"the clip needs \d+ frames and the video has 20"):
        clips.sample(times(20), rng(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomClip(frames=0), "frames=0"),
        (lambda: JitteredClip(strides=()), "strides"),
        (lambda: UniformClips(placement="middle"), "choose tick"),
        (lambda: UniformClips(fps=-1.0), "fps=-1"),
        (lambda: SpeedClips(speeds=(2, 2)), "speeds"),
        (lambda: SpeedClips(frames=1), "frames=1: a clip needs 2 frames or more"),
        (lambda: FrameViews(spacing="none"), "choose marginal"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "clips", [RandomClip(), JitteredClip(), UniformClips(), ClipPair(), SpeedClips(), FrameViews()]
)
def test_shape_range_and_repetition(clips):
    for count in (1, 7, 64):
        found = clips.sample(times(count), rng(5))
        assert found.shape == clips.shape
        assert found.dtype == np.int64
        assert 0 <= found.min() <= found.max() < count
        assert np.array_equal(found, clips.sample(times(count), rng(5)))
