"""DAVIS on disk: lists of both years, objects, and what is missing or wrong, by name."""

import shutil

import numpy as np
import pytest
from PIL import Image

from lightning_vssl.data.masks import write_mask
from lightning_vssl.datamodules.davis import DAVIS


@pytest.fixture
def root(tmp_path):
    """Two sequences of three frames: one with two objects, the other with one."""
    for name, objects in (("bear", 2), ("dance-twirl", 1)):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / kind / "480p" / name).mkdir(parents=True)
        for t in range(3):
            picture = np.full((8, 12, 3), 40 * t, np.uint8)
            Image.fromarray(picture).save(tmp_path / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            ids = np.zeros((8, 12), np.uint8)
            ids[2:4, t : t + 3], ids[6, 6 - t] = 1, objects
            write_mask(tmp_path / f"Annotations/480p/{name}/{t:05d}.png", ids)
    for year in ("2016", "2017"):
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("dance-twirl\nbear\n\n")
    rows = [
        f"/JPEGImages/480p/{name}/{t:05d}.jpg /Annotations/480p/{name}/{t:05d}.png\n"
        for name in ("bear", "dance-twirl")
        for t in range(3)
    ]
    (tmp_path / "ImageSets/2016/val.txt").write_text("".join(rows))
    return tmp_path


def walked(data):
    data.setup("test")
    return list(data.test_dataloader())


def test_2017(root):
    first, second = walked(DAVIS(root))
    assert [one.name for one in (first, second)] == ["dance-twirl", "bear"]
    assert second.mask(0).unique().tolist() == [0, 1, 2]
    assert [file.name for file in second.files] == ["00000.png", "00001.png", "00002.png"]
    assert second.frames.frame(2).shape == (3, 8, 12)


def test_2016_has_one_object(root):
    first, _ = walked(DAVIS(root, year=2016))
    assert first.name == "bear"
    assert first.mask(0).unique().tolist() == [0, 1]
    assert (first.mask(1) != 0).sum() == 7


def test_only_some(root):
    assert [one.name for one in walked(DAVIS(root, only=("bear",)))] == ["bear"]


def test_missing_files_are_named(root):
    (root / "Annotations/480p/bear/00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001.jpg has no mask in .*bear: DAVIS is"):
        walked(DAVIS(root))
    (root / "JPEGImages/480p/bear/00001.jpg").unlink()
    (root / "JPEGImages/480p/bear/00002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002.png has no frame in .*bear"):
        walked(DAVIS(root))
    shutil.rmtree(root / "JPEGImages/480p/bear")
    with pytest.raises(FileNotFoundError, match=r"no jpg files in .*bear"):
        walked(DAVIS(root))
    with pytest.raises(FileNotFoundError, match=r"train.txt: DAVIS is offered at"):
        walked(DAVIS(root, split="train"))


def test_wrong_files_are_named(root):
    file = root / "Annotations/480p/bear/00002.png"
    write_mask(file, np.ones((8, 13), np.uint8))
    with pytest.raises(ValueError, match=r"bear.00002.png: 13 x 8 pixels"):
        walked(DAVIS(root))
    write_mask(file, np.ones((8, 12), np.uint8))
    write_mask(root / "Annotations/480p/bear/00000.png", np.full((8, 12), 255, np.uint8))
    with pytest.raises(ValueError, match=r"00000.png: the first mask has no object"):
        walked(DAVIS(root))
    (root / "ImageSets/2017/val.txt").write_text("bear\nbear 1 2\n")
    with pytest.raises(ValueError, match=r"val.txt, line 2: 'bear 1 2' is neither"):
        walked(DAVIS(root))


def test_refused(root):
    with pytest.raises(ValueError, match="year must be 2016 or 2017"):
        DAVIS(root, year=2019)
    with pytest.raises(ValueError, match="keeps the masks of its test splits"):
        DAVIS(root, split="test")
