"""Boxes are drawn where they are; the callback writes a picture whole or not at all."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.backbones import R3D18
from lightning_vssl.callbacks.pictures import (
    RegionPairs,
    TrackedPatches,
    draw_pairs,
    draw_tracks,
)


def _boxes(*boxes: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(boxes).view(1, 1, len(boxes), 4)


def test_true_and_predicted_boxes_lie_where_they_are():
    clips = torch.zeros(1, 3, 2, 32, 32)
    true = _boxes((4, 6, 14, 16), (8, 6, 18, 16))
    predicted = _boxes((4, 6, 14, 16), (2, 20, 12, 30))
    sheet = np.asarray(draw_tracks(clips, true, predicted, columns=2, zoom=4))
    second = sheet[18 : 18 + 128, 4 + 132 : 4 + 132 + 128].astype(int)  # the second frame's cell
    green = (second[..., 1] > 200) & (second[..., 0] < 100)
    pink = (second[..., 0] > 200) & (second[..., 1] < 100)
    rows, columns = np.nonzero(green)
    assert (rows.min(), columns.min()) == (6 * 4, 8 * 4)
    assert (rows.max(), columns.max()) == (16 * 4, 18 * 4)
    assert pink[20 * 4, 2 * 4 : 12 * 4].all()
    assert pink[30 * 4, 2 * 4 : 12 * 4].all()


def test_a_box_that_is_not_known_is_not_drawn_as_true():
    clips = torch.zeros(1, 3, 1, 32, 32)
    unknown, predicted = _boxes((torch.nan,) * 4), _boxes((2, 20, 12, 30))
    cell = np.asarray(draw_tracks(clips, unknown, predicted, zoom=4))[18:, 4:].astype(int)
    assert not ((cell[..., 1] > 200) & (cell[..., 0] < 100)).any()
    assert ((cell[..., 0] > 200) & (cell[..., 1] < 100)).any()


def test_a_box_with_swapped_corners_is_drawn():
    clips = torch.zeros(1, 3, 1, 16, 16)
    draw_tracks(clips, _boxes((2, 2, 8, 8)), _boxes((8, 8, 2, 2)), columns=1)


def test_callback_writes_the_first_validation_batch(tmp_path: Path):
    trainer = SimpleNamespace(
        is_global_zero=True, default_root_dir=str(tmp_path), sanity_checking=False, current_epoch=0
    )
    module = SimpleNamespace(backbone=R3D18(width=4, depth=(1, 1, 1, 1)))
    callback = TrackedPatches(clips=2, frames=3)
    outputs = {
        "views": torch.zeros(3, 1, 3, 4, 16, 16),
        "trajectories": torch.ones(3, 2, 4, 4) * torch.tensor([2.0, 2, 9, 9]),
        "predicted": torch.ones(3, 2, 4, 4) * torch.tensor([3.0, 3, 9, 9]),
    }
    callback.on_validation_batch_end(trainer, module, outputs, None, 0)
    callback.on_fit_end(trainer, module)
    with Image.open(tmp_path / "tracked_patches.png") as picture:
        assert picture.size == (3 * (16 * 14 + 4) + 4, 2 * (16 * 14 + 4) + 22)
    assert [p.name for p in tmp_path.iterdir()] == ["tracked_patches.png"]


def test_a_method_that_tracks_nothing_is_named():
    trainer = SimpleNamespace(is_global_zero=True)
    with pytest.raises(TypeError, match="does not return `trajectories` and `predicted`"):
        TrackedPatches().on_validation_batch_end(trainer, None, {"loss": 0}, None, 0)


def test_partners_have_the_colour_of_their_region():
    boxes = torch.tensor([[2.0, 2, 10, 10], [16, 16, 28, 28]]).view(1, 1, 2, 4).repeat(1, 2, 1, 1)
    sheet = np.asarray(
        draw_pairs(torch.zeros(1, 2, 3, 32, 32), boxes, torch.tensor([[1, 1]]), zoom=4)
    )
    left, right = sheet[18:146, 4:132], sheet[18:146, 136:264]
    one, two = left[8, 20], left[64, 80]
    assert (one != two).any()
    assert (right[64, 80] == one).all()  # the region both are paired with: nested
    assert (right[66, 80] == two).all()
    assert (right[8, 20] == 150).all()  # no region's partner


def test_missing_regions_are_not_drawn():
    boxes = torch.full((1, 2, 1, 4), torch.nan)
    sheet = np.asarray(draw_pairs(torch.zeros(1, 2, 3, 16, 16), boxes, torch.zeros(1, 1).long()))
    assert not sheet[18:34, 4:20].any()


def test_region_pairs_shows_the_frame_of_the_regions(tmp_path: Path):
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    module = SimpleNamespace(
        backbone=R3D18(width=4, depth=(1, 1, 1, 1), pixels=((0, 0, 0), (1, 1, 1)))
    )
    callback = RegionPairs(videos=1)
    views = torch.zeros(2, 2, 3, 4, 112, 112)
    views[0, 0, :, 2], views[0, 1, :, 1] = 1.0, 0.5
    outputs = {
        "views": views,
        "places": torch.full((2, 2, 3, 4), torch.nan),
        "pairs": torch.zeros(2, 2, 3, dtype=torch.int64),
        "frames": torch.tensor([[2, 1], [0, 0]]),
    }
    callback.on_validation_batch_end(trainer, module, outputs, None, 0)
    callback.on_fit_end(trainer, module)
    with Image.open(tmp_path / "region_pairs.png") as picture:
        sheet = np.asarray(picture)
    assert (sheet[30, 30] == 255).all()
    assert (sheet[30, 4 + 228 + 30] == 128).all()
