"""Data modules hand the tubes of a file to their samples."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_vssl.data.clips import TrackedPair
from lightning_vssl.data.tubes import Tube, tube_table, write_tubes
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.base import VideoDataModule
from lightning_vssl.datamodules.demo import Demo
from lightning_vssl.datamodules.kinetics import Kinetics
from lightning_vssl.datamodules.vggsound import VGGSound
from lightning_vssl.datamodules.video_folder import VideoFolder
from tests.datamodules.test_base import Toy, ready
from tests.videos import write_numbered


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(24):
        write_numbered(folder / f"{i:02d}.mp4", 30, seed=i)
    return folder


def tracked(file: Path, numbers: range) -> Path:
    """A file whose masks are the left (number + 2) / 32 of the frame; odd videos have none."""
    tubes = []
    for i in numbers:
        masks = np.zeros((15, 24, 32), bool)
        masks[:, :, : (i + 2) * (1 - i % 2)] = True
        tubes.append(Tube(f"{i:02d}.mp4", np.arange(15) / 12.5, masks))
    write_tubes(file, tube_table(tubes), source="test")
    return file


def toy(root: Path, file: Path, cache: Path, **settings) -> VideoDataModule:
    window = WholeFrame((24, 32))
    clips = TrackedPair(4, min_tracked=10)
    return ready(Toy(root, tubes=file, cache_dir=cache, clips=clips, window=window, **settings))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_carry_masks(root, tmp_path, workers):
    file = tracked(tmp_path / "tubes.parquet", range(15))
    data = toy(root, file, tmp_path / "cache", num_workers=workers)
    seen = 0
    for batch in data.train_dataloader():
        assert batch["mask"].shape == (4, 2, 4, 24, 32)
        assert batch["tracked"].dtype == torch.bool
        for row, masks, inside in zip(
            batch["index"].tolist(), batch["mask"], batch["tracked"], strict=True
        ):
            assert inside.tolist() == [row % 2 == 0] * 2
            expected = torch.arange(32) < (row + 2) * (1 - row % 2)
            assert (masks.bool() == expected).all()
            seen += 1
    assert seen == 12


def test_an_evaluation_that_the_file_does_not_know_goes_without(root, tmp_path):
    file = tracked(tmp_path / "tubes.parquet", range(15))
    data = toy(root, file, tmp_path / "cache", tube_form="box")
    (batch,) = data.val_dataloader()
    assert "mask" not in batch
    batch = next(iter(data.gallery_dataloader()))
    assert batch["mask"].shape == (5, 2, 4, 16, 16)
    assert batch["tracked"][:, 0].tolist() == [True, False] * 2 + [True]


def test_missing_tubes(root, tmp_path, caplog):
    file = tracked(tmp_path / "tubes.parquet", range(12))
    with pytest.raises(ValueError, match=r"3 of 15 listed videos have no tube(.|\n)*12\.mp4"):
        toy(root, file, tmp_path / "cache", max_missing=0.1)
    with caplog.at_level(logging.WARNING):
        toy(root, file, tmp_path / "cache", max_missing=0.2)
    assert "3 of 15" in caplog.text


def test_a_file_that_is_not_there_is_said_before_anything_is_read(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tube file"):
        Toy(root, tubes=tmp_path / "no.parquet", cache_dir=tmp_path / "cache").prepare_data()


@pytest.mark.parametrize("kind", [Demo, Kinetics, VGGSound, VideoFolder])
def test_these_data_modules_take_them(kind: type[VideoDataModule], tmp_path):
    given = kind(tmp_path, tubes=tmp_path / "x", tube_form="middle")
    assert (given.tubes, given.tube_form) == (tmp_path / "x", "middle")
    assert (kind(tmp_path).tubes, kind(tmp_path).tube_form) == (None, "mask")
