"""A film read back."""

import numpy as np
import pytest

from lightning_vssl.data.decode import VideoReader, probe
from lightning_vssl.data.film import write_film


def frames(count=9, height=49, width=66):
    for t in range(count):
        pixels = np.full((height, width, 3), 40, np.uint8)
        pixels[10:30, 5 * t : 5 * t + 20] = (200, 60, 120)
        yield pixels


def test_frames_come_back_at_their_times(tmp_path):
    file = tmp_path / "made" / "film.mp4"
    write_film(file, frames(), fps=12.5)
    assert (probe(file).height, probe(file).width) == (48, 66)
    with VideoReader(file) as reader:
        assert reader.times == pytest.approx(np.arange(9) / 12.5, abs=1e-3)
        read, _ = reader.read(np.arange(9)[None])
    for made, drawn in zip(read[0], frames(), strict=True):
        error = np.square(made.astype(float) - drawn[:48, :66]).mean()
        assert 10 * np.log10(255**2 / error) > 25


def test_no_frame_or_frames_of_two_sizes_leave_nothing_behind(tmp_path):
    for wrong, words in ((iter(()), "needs a frame"), (_two_sizes(), "frame 2 has the shape")):
        with pytest.raises(ValueError, match=words):
            write_film(tmp_path / "film.mp4", wrong)
    assert list(tmp_path.iterdir()) == []


def _two_sizes():
    yield from frames(2)
    yield from frames(1, height=64)
