"""The picture of VITO's masks, looked at pixel by pixel."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from lightning_vssl.callbacks.attention import AttentionMasks, draw_attention
from tests.callbacks.parts import TinyBackbone


def test_a_mask_lights_its_place_and_no_other():
    frames = torch.full((1, 2, 3, 16, 16), 0.5)
    frames[0, 1] = 1.0
    masks = torch.zeros(1, 2, 2, 4, 4)
    masks[0, 0, 0, 0, 0] = 0.3  # first view, finest scale: top left
    masks[0, 0, 1, 3, 3] = 0.1  # coarsest: bottom right
    masks[0, 1] = 1 / 16  # second view: everywhere alike
    sheet = np.asarray(draw_attention(frames, masks)).astype(int)
    assert sheet.shape == (18 + 20 + 4, 2 * 3 * 20 + 4, 3)
    cells = [sheet[18:34, 4 + 20 * i : 20 + 20 * i].sum(-1) for i in range(6)]
    assert (cells[0] == 3 * 128).all()
    assert (cells[3] == 3 * 255).all()
    assert cells[1][0, 0] > 3 * cells[1][15, 15]
    assert cells[2][15, 15] > 3 * cells[2][0, 0]
    assert cells[1][0, 0] == cells[2][15, 15]  # each by its own largest value
    assert cells[4].min() == cells[4].max() == cells[5].max()


def test_attention_masks_writes_the_last_batch_of_a_run_without_validation(tmp_path: Path):
    trainer = SimpleNamespace(
        is_global_zero=True,
        default_root_dir=str(tmp_path),
        num_training_batches=3,
        global_step=3,
        max_steps=10,
        enable_validation=False,
    )
    module = SimpleNamespace(backbone=TinyBackbone(dims=2))
    callback = AttentionMasks(videos=1)
    outputs = {"views": torch.zeros(2, 3, 3, 1, 112, 112), "attention": torch.rand(2, 3, 2, 4, 4)}
    callback.on_train_batch_end(trainer, module, outputs, None, 2)
    callback.on_fit_end(trainer, module)
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.size == (3 * 3 * 116 + 4, 18 + 116 + 4)
