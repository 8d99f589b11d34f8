"""Twenty clips of built-in films in AVA's format, from the files to the number."""

import csv
import functools
import json

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_vssl.backbones import R3D18
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.data.windows import Canvas
from lightning_vssl.datamodules.ava import AVA
from lightning_vssl.evaluation.localization import ActionLocalisation
from lightning_vssl.metrics.detection import files_frame_map
from lightning_vssl.nn.action_transformer import RoIHead
from tests.evaluation.small import trainer

CLIPS = 20


def same_films_twice(root):
    """Makes twenty key frames of the training films both training and validation."""
    excluded = (root / "ava_train_excluded_timestamps_v2.2.csv").read_text().split()
    rows = (root / "ava_train_v2.2.csv").read_text().splitlines()
    frames = dict.fromkeys(",".join(row.split(",")[:2]) for row in rows)
    chosen = [frame for frame in frames if frame not in excluded][:CLIPS]
    assert len(chosen) == CLIPS
    kept = [row for row in rows if ",".join(row.split(",")[:2]) in chosen]
    for split in ("train", "val"):
        (root / f"ava_{split}_v2.2.csv").write_text("\n".join(kept) + "\n")
        (root / f"ava_{split}_excluded_timestamps_v2.2.csv").write_text("\n".join(excluded) + "\n")


class Kept(LightningDataModule):
    """The key frames of a data module, decoded once."""

    def __init__(self, module):
        super().__init__()
        module.prepare_data()
        module.setup("fit")
        dataset = module.val_dataloader().dataset
        self.samples = [dataset[i] for i in range(len(dataset))]
        self.classes, self.task = module.classes, module.task

    def train_dataloader(self):
        return DataLoader(self.samples, batch_size=CLIPS)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.slow
def test_twenty_clips_are_fitted_and_the_file_says_the_same(tmp_path):
    root = make_demo(tmp_path / "ava", "ava", videos=16, workers=1, progress=False)
    same_films_twice(root)
    canvas = Canvas((64, 64))
    films = AVA(root, frames=8, stride=4, eval_window=canvas, cache_dir=tmp_path / "cache")
    data = Kept(films)
    assert len(data.samples) == CLIPS
    torch.manual_seed(0)
    model = ActionLocalisation(
        backbone=R3D18(width=8, depth=(1, 1, 1, 1)),
        stage="layer2",
        head=functools.partial(RoIHead, dropout=0.0),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
    )
    runner = trainer(tmp_path, max_epochs=80, limit_val_batches=0)
    runner.fit(model, data)
    (logged,) = runner.test(model, data, verbose=False)
    assert logged["test/mAP"] >= 95

    result = json.loads((tmp_path / "result.json").read_text())
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    truth = root / "ava_val_v2.2.csv"
    labels = root / "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
    again = files_frame_map(truth, tmp_path / "predictions.csv", labels=labels)
    assert abs(100 * again.mean - logged["test/mAP"]) < 1e-6
    assert len(rows) == result["boxes"] * len(again.truth)
