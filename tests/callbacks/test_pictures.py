"""Boxes are drawn where they are; the callback writes a picture whole or not at all."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.backbones import R3D18
from lightning_vssl.callbacks.pictures import TrackedPatches, draw_tracks


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
    with pytest.raises(TypeError, match="does not return `predicted`"):
        TrackedPatches().on_validation_batch_end(trainer, None, {"loss": 0}, None, 0)
