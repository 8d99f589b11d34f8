"""Masks as files and films: ids come back, colours are DAVIS's, background stays clear."""

import types

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.callbacks.masks import MaskFilms, SavedMasks, draw_masks
from lightning_vssl.data.masks import MaskedSequence, read_mask, write_mask
from lightning_vssl.data.sequences import FrameSequence


@pytest.fixture
def followed(tmp_path):
    """A sequence of three grey frames, and what was found of it."""
    masks = torch.zeros(3, 20, 30, dtype=torch.uint8)
    frames, files = [], []
    for t in range(3):
        masks[t, 4:12, 3 + t : 13 + t], masks[t, 15:18, 20:26] = 1, 2
        frames.append(tmp_path / f"{t:05d}.jpg")
        files.append(tmp_path / f"{t:05d}.png")
        Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(frames[-1])
        write_mask(files[-1], masks[t].numpy())
    return MaskedSequence(FrameSequence("walk", tuple(frames)), tuple(files)), masks


def after(callback, folder, batch, outputs, number=0):
    trainer = types.SimpleNamespace(default_root_dir=folder)
    callback.on_test_batch_end(trainer, None, outputs, batch, number)


def test_files_hold_the_ids(tmp_path, followed):
    sequence, masks = followed
    after(SavedMasks("found"), tmp_path, sequence, {"masks": masks})
    for t in range(3):
        assert (read_mask(tmp_path / f"found/walk/{t:05d}.png") == masks[t].numpy()).all()


def test_drawn(followed):
    sequence, masks = followed
    for picture, ids in zip(draw_masks(sequence.frames.frames(), masks), masks, strict=True):
        assert picture.shape == (20, 30, 3)
        assert (picture[ids == 0] == 100).all()
        assert picture[16, 22].tolist() == [50, 114, 50]  # half of (0, 128, 0)
        assert picture[15, 22].tolist() == [0, 128, 0]  # the edge


def test_film_and_picture(tmp_path, followed):
    sequence, masks = followed
    callback = MaskFilms(sequences=1, columns=2)
    after(callback, tmp_path, sequence, {"masks": masks})
    with av.open(str(tmp_path / "mask_films/walk.mp4")) as film:
        shown = [one.to_ndarray(format="rgb24") for one in film.decode(video=0)]
    assert len(shown) == 3
    drawn = np.stack(list(draw_masks(sequence.frames.frames(), masks)))
    assert np.abs(np.stack(shown).astype(int) - drawn).mean() < 12  # colours are halved in size
    with Image.open(tmp_path / "mask_films/walk.png") as picture:
        assert picture.size == (60, 20)
    after(callback, tmp_path / "second", sequence, {"masks": masks}, number=1)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("callback", [SavedMasks(), MaskFilms()])
def test_other_evaluations_are_refused(tmp_path, callback):
    with pytest.raises(TypeError, match="take the callback out"):
        after(callback, tmp_path, {"video": torch.zeros(1)}, {"loss": torch.zeros(())})


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="at least 1"):
        MaskFilms(columns=0)
