"""Data modules hand the boxes of a file to their samples."""

import logging
from pathlib import Path

import numpy as np
import pytest

from lightning_vssl.data.boxes import VideoBoxes, box_table, write_boxes
from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import VideoDataModule
from lightning_vssl.datamodules.demo import Demo
from lightning_vssl.datamodules.hmdb51 import HMDB51
from lightning_vssl.datamodules.kinetics import Kinetics
from lightning_vssl.datamodules.ucf101 import UCF101
from lightning_vssl.datamodules.video_folder import VideoFolder
from tests.datamodules.test_base import LISTS, Toy, ready, trainer
from tests.videos import write_numbered


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(24):
        write_numbered(folder / f"{i:02d}.mp4", 20 + i, seed=i)
    return folder


def boxed(file: Path, numbers: range) -> Path:
    """A file with one box a video, the left (number + 20) / 100 of the frame."""
    rows = [
        VideoBoxes(f"{i:02d}.mp4", np.zeros(1), np.array([[[0, 0, (i + 20) / 100, 1.0]]]))
        for i in numbers
    ]
    write_boxes(file, box_table(rows), source="test")
    return file


def test_training_batches_carry_boxes(root, tmp_path):
    file = boxed(tmp_path / "boxes.parquet", range(15))
    data = ready(Toy(root, boxes=file, cache_dir=tmp_path / "cache"))
    seen = 0
    for batch in data.train_dataloader():
        assert batch["boxes"].shape == (4, 1, 4, 1, 4)
        for crop, row, boxes in zip(batch["crop"], batch["index"], batch["boxes"], strict=True):
            x0, _, x1, _ = crop[0].tolist()
            edge = (64 * (int(row) + 20) / 100 - x0) / (x1 - x0) * 16
            if edge >= 2:
                assert boxes[0, :, 0, 2].tolist() == pytest.approx([min(edge, 16)] * 4, abs=0.01)
                seen += 1
            else:
                assert boxes.isnan().all()
    assert seen > 3


def test_an_evaluation_that_the_file_does_not_know_goes_without(root, tmp_path):
    file = boxed(tmp_path / "boxes.parquet", range(15))
    data = ready(Toy(root, boxes=file, cache_dir=tmp_path / "cache"))
    (batch,) = data.val_dataloader()
    assert "boxes" not in batch
    assert next(iter(data.gallery_dataloader()))["boxes"].shape == (5, 2, 4, 1, 4)
    file = boxed(tmp_path / "all.parquet", range(18))
    data = ready(Toy(root, boxes=file, cache_dir=tmp_path / "cache"))
    (batch,) = data.val_dataloader()
    assert batch["boxes"][:, 0, 0, 0, 2].tolist() == pytest.approx([5.6, 5.76, 5.92], abs=1e-3)


def test_missing_boxes(root, tmp_path, caplog):
    file = boxed(tmp_path / "boxes.parquet", range(12))
    with pytest.raises(ValueError, match=r"3 of 15 listed videos have no boxes(.|\n)*12\.mp4"):
        ready(Toy(root, boxes=file, max_missing=0.1, cache_dir=tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        ready(Toy(root, boxes=file, max_missing=0.2, cache_dir=tmp_path / "cache"))
    assert "3 of 15" in caplog.text
    caplog.clear()
    data = Toy(root, boxes=file, max_missing=0.2, cache_dir=tmp_path / "cache")
    data.trainer = trainer(ranks=2, rank=1)
    data.setup("fit")
    assert caplog.text == ""


def test_a_file_that_is_not_there_is_said_before_anything_is_read(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no box file"):
        Toy(root, boxes=tmp_path / "no.parquet", cache_dir=tmp_path / "cache").prepare_data()


@pytest.mark.parametrize("kind", [Demo, HMDB51, Kinetics, UCF101, VideoFolder])
def test_every_data_module_takes_them(kind: type[VideoDataModule], tmp_path):
    assert kind(tmp_path, boxes=tmp_path / "x").boxes == tmp_path / "x"
    assert kind(tmp_path).boxes is None


def test_videos_given_by_absolute_path_are_found(root, tmp_path):
    file = boxed(tmp_path / "boxes.parquet", range(15))
    lists = {"train": [Entry(str(root / entry.path)) for entry in LISTS["train"]]}
    data = ready(Toy(root, lists, boxes=file, cache_dir=tmp_path / "cache"))
    assert not next(iter(data.train_dataloader()))["boxes"].isnan().all()
