"""ImageNet-VID's layout, written small: tracks as sequences, pairs out of them, bad files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.datamodules.imagenet_vid import ImageNetVID
from lightning_vssl.datamodules.tracking_pairs import TrackingPairs

OBJECT = """<object><trackid>{}</trackid><name>n02084071</name>
<bndbox><xmax>{}</xmax><xmin>{}</xmin><ymax>{}</ymax><ymin>{}</ymin></bndbox>
<occluded>0</occluded><generated>1</generated></object>"""


def snippet(root, place, frames):
    """Writes a snippet; ``frames`` gives track -> (xmin, ymin, xmax, ymax) of each frame."""
    for kind in ("Data", "Annotations"):
        Path(root, kind, "VID", place).mkdir(parents=True)
    for t, tracks in enumerate(frames):
        pixels = np.full((90, 120, 3), 20 * t, np.uint8)
        Image.fromarray(pixels).save(root / "Data" / "VID" / place / f"{t:06d}.JPEG")
        objects = "".join(OBJECT.format(n, b[2], b[0], b[3], b[1]) for n, b in tracks.items())
        text = f"<annotation><filename>{t:06d}</filename>{objects}</annotation>"
        (root / "Annotations" / "VID" / place / f"{t:06d}.xml").write_text(text)


TRAIN = "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
OTHER = "train/ILSVRC2015_VID_train_0003/ILSVRC2015_train_00003000"


@pytest.fixture
def root(tmp_path):
    box = (10, 20, 39, 49)
    moved = (14, 20, 43, 49)
    gap = [{}, {0: box}, {1: box}, {0: moved, 1: moved, 7: box}, {}]
    snippet(tmp_path, TRAIN, gap)
    snippet(tmp_path, OTHER, [{0: box}] * 3)
    snippet(tmp_path, "val/ILSVRC2015_val_00000000", [{2: box}, {2: moved}])
    return tmp_path


def data(root, **options):
    return ImageNetVID(root, cache_dir=root / "cache", **options)


def test_each_object_is_a_sequence_from_its_first_frame_to_its_last(root):
    found = {one.name: one for one in data(root).sequences("train")}
    assert list(found) == [
        "ILSVRC2015_train_00000000.0",
        "ILSVRC2015_train_00000000.1",
        "ILSVRC2015_train_00003000.0",
    ]  # the object 7 is seen once
    first = found["ILSVRC2015_train_00000000.0"]
    assert [file.name for file in first.frames.files] == [f"{t:06d}.JPEG" for t in (1, 2, 3)]
    assert first.boxes[0].tolist() == [10, 20, 40, 50]  # 30 pixels wide: both ends belong to it
    assert first.boxes[1].isnan().all()
    assert first.boxes[2].tolist() == [14, 20, 44, 50]
    assert int(first.frames.frame(0).float().mean().round()) == 20


def test_val_is_walked(root):
    module = data(root)
    module.setup("validate")
    (one,) = list(module.val_dataloader())
    assert one.name == "ILSVRC2015_val_00000000.2"
    assert len(one) == 2
    assert not one.boxes.isnan().any()


def test_pairs_are_drawn_from_it(root):
    pairs = TrackingPairs(data(root), exemplar=31, search=63, batch_size=3)
    pairs.prepare_data()
    pairs.setup("fit")
    (batch,) = list(pairs.train_dataloader())
    assert batch["video"].shape == (3, 2, 1, 3, 47, 47)
    assert sorted(batch["index"].tolist())[2] == 2
    assert torch.isfinite(batch["boxes"]).all()
    assert pairs.train == {"class": "ImageNetVID", "root": str(root), "split": "val"}


def test_annotations_are_read_once(root):
    data(root).prepare_data()
    xml = root / "Annotations" / "VID" / TRAIN / "000001.xml"
    xml.write_text("no longer read")
    assert len(data(root).sequences("train")) == 3
    assert len(list((root / "cache").glob("*.npz"))) == 2  # train and val


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", r"000002\.xml: no annotation of ImageNet-VID"),
        ("<annotation><object/></annotation>", r"000002\.xml.*invalid literal"),
        (
            f"<annotation>{OBJECT.format(0, 5, 10, 9, 3)}</annotation>",
            r"000002\.xml.*xmin > xmax.*\(10, 3, 5, 9\)",
        ),
    ],
)
def test_bad_annotations_are_named(root, text, said):
    (root / "Annotations" / "VID" / TRAIN / "000002.xml").write_text(text)
    with pytest.raises(ValueError, match=said):
        data(root).sequences("train")


def test_what_is_missing_is_named(root):
    (root / "Data" / "VID" / TRAIN / "000003.JPEG").unlink()
    (root / "Data" / "VID" / TRAIN / "000004.JPEG").unlink()
    with pytest.raises(ValueError, match="00000000 has 3 frames, and annotations of 5"):
        data(root).sequences("train")
    with pytest.raises(ValueError, match="test snippets are withheld"):
        data(root).names("test")
    with pytest.raises(ValueError, match="split must be train or val, got 'test'"):
        data(root, split="test")
    Path(root, "Data", "VID", OTHER).rename(root / "gone")
    with pytest.raises(FileNotFoundError, match=r"Data/VID/train lacks 1 snippets.*00003000"):
        data(root).names("train")
    with pytest.raises(FileNotFoundError, match="ImageNet-VID: 2 of 2 official"):
        data(root / "nowhere").sequences("train")
