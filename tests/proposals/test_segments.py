import builtins
import sys

import numpy as np
import pytest
import torch

from lightning_vssl.proposals.segments import Felzenszwalb, Slic

KINDS = [Slic(segments=16), Felzenszwalb(segments=16)]
each = pytest.mark.parametrize("proposals", KINDS, ids=lambda p: p.source)

OBJECTS = [(10, 20, 60, 100), (90, 12, 150, 52), (100, 70, 124, 118)]  # xyxy
COLOURS = [(220, 40, 40), (40, 200, 60), (240, 220, 30)]


def scene(height: int = 128, width: int = 160) -> torch.Tensor:
    """Three plain rectangles before a dark ground, with a little noise, (1, 3, H, W)."""
    noise = np.random.default_rng(0).integers(-6, 7, size=(height, width, 3))
    picture = np.full((height, width, 3), (40, 50, 110))
    for (x0, y0, x1, y1), colour in zip(OBJECTS, COLOURS, strict=True):
        picture[y0:y1, x0:x1] = colour
    frame = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return torch.from_numpy(frame).permute(2, 0, 1)[None]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(width, 0) * max(height, 0)
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def test_segments_find_what_is_drawn():
    boxes = Felzenszwalb(segments=16)(scene())[0].numpy() * (160, 128, 160, 128)
    boxes = boxes[~np.isnan(boxes).any(axis=1)]
    for drawn in OBJECTS:
        assert max(overlap(box, np.array(drawn)) for box in boxes) > 0.9


def test_superpixels_keep_to_what_is_drawn():
    # A superpixel is about a sixteenth of the frame, so it covers a part of a larger object, and
    # does not reach over its edges by more than a little.
    boxes = Slic(segments=16)(scene())[0].numpy() * (160, 128, 160, 128)
    for x0, y0, x1, y1 in OBJECTS:
        inside = [
            box
            for box in boxes
            if (box >= (x0 - 4, y0 - 4, 0, 0)).all() and (box <= (999, 999, x1 + 4, y1 + 4)).all()
        ]
        assert inside
        low, high = np.min(inside, axis=0)[:2], np.max(inside, axis=0)[2:]
        assert overlap(np.array([*low, *high]), np.array([x0, y0, x1, y1])) > 0.7


@each
def test_sixteen_boxes_of_a_textured_frame(proposals):
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.integers(0, 256, size=(3, 3, 10, 14))).float()
    frames = torch.nn.functional.interpolate(coarse, size=(128, 176), mode="bicubic")
    frames = frames.clamp(0, 255).to(torch.uint8)
    boxes = proposals(frames)
    assert boxes.shape == (3, 16, 4)
    assert boxes.dtype == torch.float32
    assert torch.isfinite(boxes).all()
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert torch.equal(proposals(frames[1:2])[0], boxes[1])  # each frame on its own
    assert proposals.limit == 16


@each
@pytest.mark.parametrize("size", [(128, 128), (16, 200), (2, 2), (1, 1)])
def test_a_plain_frame_has_boxes_too(proposals, size):
    boxes = proposals(torch.full((2, 3, *size), 90, dtype=torch.uint8))
    there = ~boxes.isnan().any(dim=2)
    assert (there.sum(dim=1) >= 1).all()
    kept = boxes[there]
    assert (kept[:, 2:] > kept[:, :2]).all()
    assert not there[:, :-1].logical_not().logical_and(there[:, 1:]).any()  # NaN behind the last


@each
def test_settings(proposals):
    assert proposals.settings["segments"] == 16
    assert proposals.settings["short_side"] == proposals.short_side == 128


@pytest.mark.parametrize("wrong", [{"segments": 0}, {"short_side": -1}, {"compactness": 0.0}])
def test_wrong_numbers_slic(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Slic(**wrong)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"sigma": -1.0}, {"min_size": 0}])
def test_wrong_numbers_felzenszwalb(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Felzenszwalb(**wrong)


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"lightning-vssl\[regions\]"):
        Slic()
