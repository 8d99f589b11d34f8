"""Folders of images: the lists against torchvision's, batches against Pillow, broken files."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets

from lightning_vssl.data.unreadable import TooManyUnreadable
from lightning_vssl.data.windows import CentreCrop, RandomResizedCrop
from lightning_vssl.datamodules import base
from lightning_vssl.datamodules.image_folder import ImageFolder
from lightning_vssl.evaluation.base import data_arguments

CLASSES = ("n01440764", "n01443537", "n02084071")


def image(path, seed, size=(50, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path, "JPEG", quality=95)


@pytest.fixture
def imagenet(tmp_path):
    """train/<synset>/*.JPEG and val/<synset>/*.JPEG."""
    root = tmp_path / "imagenet"
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count * len(CLASSES)):
            name = CLASSES[number % len(CLASSES)]
            file = (
                f"{name}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
            )
            image(root / split / name / file, number + 100 * (split == "val"))
    return root


def made(root, tmp_path, **arguments):
    settings = {"batch_size": 4, "cache_dir": tmp_path / "cache", "window": RandomResizedCrop(16)}
    return ImageFolder(root, **{**settings, "eval_window": CentreCrop(20, 16), **arguments})


def rows(data, split):
    return [(entry.path, entry.label) for entry in data.entries(split)[0]]


def test_the_lists_are_torchvisions(imagenet, tmp_path):
    data = made(imagenet, tmp_path)
    for split in ("train", "val"):
        theirs = datasets.ImageFolder(str(imagenet / split))
        ours = [(str(imagenet / path), label) for path, label in rows(data, split)]
        assert ours == theirs.samples
        assert data.entries(split)[1] == tuple(theirs.classes) == CLASSES
    assert rows(data, "test") == rows(data, "val")


def test_defaults_are_byols():
    data = ImageFolder("anywhere")
    assert data.clips.shape == (2, 1)
    assert data.window == RandomResizedCrop(224, (0.08, 1.0), interpolation="bicubic")
    assert data.eval_window == CentreCrop(256, 224, "bicubic")
    assert data_arguments(data)["views"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_the_contracts(imagenet, tmp_path, workers):
    data = made(imagenet, tmp_path, views=3, num_workers=workers, seed=5)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["video"].shape == (4, 3, 1, 3, 16, 16)
    assert batch["video"].dtype == torch.uint8
    assert batch["time"].tolist() == [[[0.0]] * 3] * 4
    assert batch["crop"].shape == (4, 3, 4)
    assert not batch["replaced"].any()
    labels = torch.from_numpy(data.manifest("train").labels)
    assert torch.equal(batch["label"], labels[batch["index"]])
    assert data.num_classes == 3
    # Each view is its own window of the same image, as Pillow cuts it.
    assert len({tuple(row) for row in batch["crop"][0].tolist()}) == 3
    for i in range(4):
        picture = Image.open(data.manifest("train").path(int(batch["index"][i])))
        for v in range(3):
            box = tuple(batch["crop"][i, v].tolist())
            wanted = picture.resize((16, 16), Image.Resampling.BILINEAR, box=box)
            got = batch["video"][i, v, 0].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(got, np.asarray(wanted))


def test_cubic_windows_reach_the_worker(imagenet, tmp_path):
    data = made(imagenet, tmp_path, window=RandomResizedCrop(16, interpolation="bicubic"))
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    picture = Image.open(data.manifest("train").path(int(batch["index"][0])))
    box = tuple(batch["crop"][0, 0].tolist())
    wanted = picture.resize((16, 16), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(batch["video"][0, 0, 0].permute(1, 2, 0), np.asarray(wanted))


def test_evaluation_shows_the_centre_of_every_image_once(imagenet, tmp_path):
    data = made(imagenet, tmp_path, gallery=True)
    data.prepare_data()
    data.setup("test")
    gallery, queries = data.test_dataloader()
    assert sum(len(batch["index"]) for batch in gallery) == 12
    (first, second) = queries
    assert (len(first["index"]), len(second["index"])) == (4, 2)
    assert first["video"].shape == (4, 1, 1, 3, 16, 16)
    # 50 x 40 becomes 25 x 20; the 16 in the centre are 32 pixels of the original.
    assert first["crop"][0, 0].tolist() == [8, 4, 40, 36]


def test_images_without_classes(tmp_path):
    root = tmp_path / "images"
    for number in range(4):
        image(root / "a" / f"{number}.png.jpg", number)
        image(root / "a" / "deeper" / f"{number}.jpg", number)
    (root / "a" / "notes.txt").touch()
    (root / "a" / ".hidden.jpg").touch()
    data = made(root, tmp_path, train=".", val=None, test=None, labels=False)
    assert [path for path, _ in rows(data, "train")][:2] == ["a/0.png.jpg", "a/1.png.jpg"]
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert "label" not in batch
    assert len(data.manifest("train")) == 8
    assert data.val_dataloader() == []


def flat(root):
    """The validation images as the official archive has them."""
    for file in sorted((root / "val").rglob("*.JPEG")):
        file.rename(root / "val" / file.name)
    for folder in CLASSES:
        (root / "val" / folder).rmdir()


@pytest.mark.parametrize("kind", ["synsets", "names", "kaggle"])
def test_official_validation_images_take_their_classes_from_a_list(imagenet, tmp_path, kind):
    before = sorted(
        (path.split("/")[-1], label) for path, label in rows(made(imagenet, tmp_path), "val")
    )
    flat(imagenet)
    synsets = [CLASSES[label] for _, label in before]
    text = {
        "synsets": "\n".join(synsets) + "\n",
        "names": "".join(f"{n} {s}\r\n" for (n, _), s in zip(before, synsets, strict=True)),
        "kaggle": "ImageId,PredictionString\n"
        + "".join(f"{n[:-5]},{s} 1 2 3 4 \n" for (n, _), s in zip(before, synsets, strict=True)),
    }[kind]
    (imagenet / "val.txt").write_text(text)
    data = made(imagenet, tmp_path, val_labels="val.txt")
    assert [(path.removeprefix("val/"), label) for path, label in rows(data, "val")] == before
    assert rows(data, "test") == rows(data, "val")
    assert [label for _, label in rows(data, "train")] == [0] * 4 + [1] * 4 + [2] * 4


def test_lists_that_do_not_fit_are_refused(imagenet, tmp_path):
    flat(imagenet)
    with pytest.raises(
        ValueError, match=r"val holds images \(ILSVRC2012_val_00000000.JPEG, .*val_labels"
    ):
        made(imagenet, tmp_path).entries("val")
    data = made(imagenet, tmp_path, val_labels="val.txt")
    with pytest.raises(FileNotFoundError, match="val_labels: no file"):
        data.entries("val")
    (imagenet / "val.txt").write_text("n01440764\n")
    with pytest.raises(ValueError, match=r"names 1 classes, and .* holds 6 images"):
        data.entries("val")
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000001 n01440764\n")
    with pytest.raises(
        ValueError, match=r"no class to 5 of the 6 images .*_00000000.JPEG the first"
    ):
        data.entries("val")


def test_folders_that_do_not_fit_are_refused(imagenet, tmp_path):
    image(imagenet / "val" / "n99999999" / "a.JPEG", 0)
    with pytest.raises(ValueError, match=r"classes that .* lacks: n99999999"):
        made(imagenet, tmp_path).entries("val")
    image(imagenet / "train" / "loose.JPEG", 0)
    with pytest.raises(ValueError, match=r"holds images \(loose.JPEG, ...\) beside folders"):
        made(imagenet, tmp_path).entries("train")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nothing"):
        made(imagenet, tmp_path, train="nothing").entries("train")
    (imagenet / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images below .*empty"):
        made(imagenet, tmp_path, train="empty").entries("train")
    with pytest.raises(ValueError, match="contains 'train/val'"):
        made(imagenet, tmp_path, val="train/val")


def test_a_broken_image_is_named_counted_and_replaced(imagenet, tmp_path, caplog):
    broken = imagenet / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:700])  # the header is whole, the pixels are not
    data = made(imagenet, tmp_path, batch_size=6, max_unreadable=0.1)
    data.prepare_data()
    data.setup("fit")
    assert len(data.manifest("train")) == 12
    with caplog.at_level(logging.WARNING):
        batches = list(data.train_dataloader()) + list(data.train_dataloader())
    replaced = torch.cat([batch["replaced"] for batch in batches])
    assert int(replaced.sum()) == 2  # once an epoch
    assert data.unreadable == 1
    assert sum(broken.name in record.getMessage() for record in caplog.records) == 1
    assert not any((batch["index"] == 0).any() for batch in batches)
    data = made(imagenet, tmp_path, batch_size=6, max_unreadable=0.01)
    data.setup("fit")
    with pytest.raises(TooManyUnreadable, match=broken.name):
        list(data.train_dataloader())
    # Found beforehand where asked for.
    data = made(imagenet, tmp_path, batch_size=6, max_unreadable=0.1, verify=True)
    data.prepare_data()
    data.setup("fit")
    assert len(data.manifest("train")) == 11


def test_the_manifest_is_kept(imagenet, tmp_path, monkeypatch):
    made(imagenet, tmp_path).prepare_data()

    def never(*_, **__):
        raise AssertionError("probed again")

    monkeypatch.setattr("lightning_vssl.data.manifest.probe", never)
    again = made(imagenet, tmp_path)
    again.prepare_data()
    again.setup("fit")
    assert again.manifest("train").column("width").tolist() == [50] * 12


def test_folders_are_listed_once(imagenet, tmp_path, monkeypatch):
    data = made(imagenet, tmp_path)
    data.prepare_data()
    monkeypatch.setattr("lightning_vssl.datamodules.image_folder._images", None)
    data.setup("fit")
    data.setup("test")
    assert isinstance(data.train_dataloader(), DataLoader)
    assert base.VideoDataModule.entries.__isabstractmethod__
