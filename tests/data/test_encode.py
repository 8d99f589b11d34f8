"""Encoding with the frames' own times."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.encode import Coding, clock, encode_timed
from tests.videos import frame_number, numbered_frames

CODING = Coding("libx264", "mp4", 6, 0, options=(("preset", "veryfast"), ("crf", "12")))


@pytest.mark.parametrize(
    ("rate", "base"),
    [
        (Fraction(25), Fraction(1, 25)),
        (Fraction(30000, 1001), Fraction(1001, 30000)),
        (Fraction(15), Fraction(1, 15)),
    ],
)
def test_a_constant_rate_is_its_own_clock(rate, base):
    assert clock(np.arange(200) / float(rate), rate) == base


def test_the_clocks_of_containers():
    rng = np.random.default_rng(0)
    for ticks in (1_000, 600, 12_800, 90_000):
        numbers = np.cumsum(rng.integers(1, 50, 200)) - 1
        times = (numbers - numbers[0]) / ticks
        base = clock(times, Fraction(25))
        assert base.denominator <= ticks
        assert np.allclose(np.rint(times / float(base)) * float(base), times, atol=1e-7)
    assert clock(np.array([0.0, 1 / 7.3, 1 / 3.1]), Fraction(25)) == Fraction(1, 1_000_000)


@pytest.mark.parametrize("kind", ["constant", "milliseconds", "any"])
def test_frames_and_times_come_back(tmp_path, kind):
    rng = np.random.default_rng(1)
    gaps = {
        "constant": np.full(29, 1001 / 24000),
        "milliseconds": rng.integers(20, 200, 29) / 1e3,
        "any": rng.uniform(0.01, 0.3, 29),
    }[kind]
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    frames = numbered_frames(30)
    encode_timed(tmp_path / "a.mp4", iter(frames), times, 29 / times[-1], CODING)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert np.abs(reader.times - times).max() < 1e-6
        found = reader.read(np.arange(30)[None])[0][0]
    assert [frame_number(frame) for frame in found] == list(range(30))
    error = np.square(found.astype(float) - frames).mean()
    assert 10 * np.log10(255**2 / error) > 30


def test_keyframes_and_no_b_frames(tmp_path):
    encode_timed(tmp_path / "a.mp4", iter(numbered_frames(30)), np.arange(30) / 25, 25, CODING)
    with av.open(str(tmp_path / "a.mp4")) as file:
        packets = [p for p in file.demux(video=0) if p.size]
        assert all(p.pts == p.dts for p in packets)
        keys = np.flatnonzero([p.is_keyframe for p in packets])
    assert keys[0] == 0
    assert np.diff([*keys, 30]).max() <= 6


def test_a_picture_an_hour(tmp_path):
    """The rate was rounded to none at all, and divided by."""
    times = np.array([0.0, 3600.0])
    encode_timed(tmp_path / "a.mp4", iter(numbered_frames(2)), times, 1 / 3600, CODING)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert np.allclose(reader.times, times)


def test_a_wrong_number_of_frames(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        encode_timed(tmp_path / "a.mp4", iter(numbered_frames(5)), np.arange(6) / 25, 25, CODING)


def test_the_same_bytes_twice(tmp_path: Path):
    for name in ("a", "b"):
        encode_timed(tmp_path / name, iter(numbered_frames(12)), np.arange(12) / 25, 25, CODING)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_mpeg4_counts_no_finer_than_its_standard_lets_it(tmp_path):
    """Uneven times wanted a clock of 90,000 ticks, which the encoder refuses to open with."""
    rng = np.random.default_rng(2)
    gaps = rng.integers(900, 9000, 29)
    times = np.concatenate([[0.0], np.cumsum(gaps) / 90_000])
    coding = Coding("mpeg4", "mp4", 6, 0, quantisers=(2, 2))
    encode_timed(tmp_path / "a.mp4", iter(numbered_frames(30)), times, 29 / times[-1], coding)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert np.abs(reader.times - times).max() < 1e-5
        found = reader.read(np.arange(30)[None])[0][0]
    assert [frame_number(frame) for frame in found] == list(range(30))


def test_frames_of_one_tick_stay_apart(tmp_path):
    """Two frames half a microsecond apart got one time, which no container takes."""
    times = np.array([0.0, 0.1, 0.1000002, 0.1000004, 0.3000001])
    encode_timed(tmp_path / "a.mp4", iter(numbered_frames(5)), times, 13.3, CODING)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert np.abs(reader.times - times).max() < 3e-6
        found = reader.read(np.arange(5)[None])[0][0]
    assert [frame_number(frame) for frame in found] == list(range(5))
