import logging
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import SequentialSampler

from lightning_vssl.data.clips import CentreClip, JitteredClip, UniformClips
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import RandomResizedCrop, ScaleCrop, WholeFrame
from lightning_vssl.datamodules import base as module
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from tests.videos import write_numbered

CLASSES = ("a", "b", "c")
VIDEOS = 24


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Toy(VideoDataModule):
    """Lists what it is told to."""

    def __init__(self, root: Path, lists: dict[Split, list[Entry]] | None = None, **settings):
        defaults = {
            "clips": JitteredClip(4),
            "window": ScaleCrop(16, (16, 20)),
            "eval_clips": UniformClips(4, 1, clips=2),
            "eval_window": WholeFrame((16, 16)),
            "batch_size": 4,
            "eval_batch_size": 5,
        }
        super().__init__(root, **{**defaults, **settings})
        self.lists = lists if lists is not None else LISTS
        self.names = dict.fromkeys(("train", "val", "test"), CLASSES)

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        return self.lists.get(split, []), self.names[split]


def entry(i: int, *, labelled: bool = True) -> Entry:
    return Entry(f"{i:02d}.mp4", i % 3 if labelled else -1)


LISTS: dict[Split, list[Entry]] = {
    "train": [entry(i) for i in range(15)],
    "val": [entry(i) for i in range(15, 18)],
    "test": [entry(i) for i in range(18, VIDEOS)],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        write_numbered(folder / f"{i:02d}.mp4", 20 + i, seed=i)
    return folder


def trainer(ranks: int = 1, rank: int = 0, stage: str = "fit", **more: object) -> SimpleNamespace:
    """What a data module reads of a Trainer."""
    known = {
        "world_size": ranks,
        "global_rank": rank,
        "num_devices": ranks,
        "is_global_zero": rank == 0,
        "limit_val_batches": 1.0,
        "lightning_module": None,
        "state": SimpleNamespace(fn=SimpleNamespace(value=stage)),
    }
    return SimpleNamespace(**{**known, **more})


def ready(data: VideoDataModule, stage: str = "fit", **settings) -> VideoDataModule:
    data.trainer = trainer(stage=stage, **settings)
    data.prepare_data()
    data.setup(stage)
    return data


def test_loaders(root):
    data = ready(Toy(root))
    assert (data.num_classes, data.classes) == (3, CLASSES)
    train = data.train_dataloader()
    assert len(train) == 3
    for batch in train:
        assert batch["video"].shape == (4, 1, 4, 3, 16, 16)
        assert batch["label"].tolist() == [i % 3 for i in batch["index"].tolist()]
    validation = data.val_dataloader()
    assert isinstance(validation.sampler, SequentialSampler)
    (batch,) = validation
    assert batch["video"].shape == (3, 2, 4, 3, 16, 16)
    assert batch["index"].tolist() == [0, 1, 2]
    gallery = data.gallery_dataloader()
    assert isinstance(gallery.sampler, SequentialSampler)
    assert torch.cat([b["index"] for b in gallery]).tolist() == list(range(15))
    assert set(data.manifests) == {"train", "val"}
    assert data.unreadable == 0


def test_a_gallery_comes_before_the_test(root):
    data = ready(Toy(root, gallery=True), "test")
    first, second = data.test_dataloader()
    assert [len(first.dataset), len(second.dataset)] == [15, 6]
    assert next(iter(first))["crop"][0, 0].tolist() == [0, 0, 64, 48]
    alone = ready(Toy(root), "test")
    assert len(alone.test_dataloader().dataset) == 6
    assert set(alone.manifests) == {"test"}
    assert len(alone.predict_dataloader().dataset) == 6


def test_a_split_that_is_not_there(root):
    data = ready(Toy(root, {"train": LISTS["train"]}))
    assert data.val_dataloader() == []
    data.trainer = trainer(stage="test")
    with pytest.raises(ValueError, match="has no test videos"):
        data.setup("test")


def test_validation_that_is_not_used_is_not_asked_for(root):
    class NoLists(Toy):
        def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
            if split != "train":
                raise FileNotFoundError(split)
            return super().entries(split)

    data = ready(NoLists(root), limit_val_batches=0)
    assert set(data.manifests) == {"train"}


def test_unlabelled_videos_train(root):
    data = ready(Toy(root, {"train": [entry(i, labelled=False) for i in range(8)]}))
    assert "label" not in next(iter(data.train_dataloader()))


def test_ranks_share_the_global_batch(root):
    whole = list(ready(Toy(root)).train_dataloader())
    shares = [list(ready(Toy(root), ranks=2, rank=rank).train_dataloader()) for rank in range(2)]
    assert len(whole) == len(shares[0]) == len(shares[1]) == 3
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, expected in batch.items():
            together = torch.stack([part[name] for part in parts], 1).flatten(0, 1)
            assert torch.equal(together, expected), name


@pytest.mark.parametrize(
    ("size", "ranks", "fits"), [(32, 3, "30 or 33"), (4, 8, "take 8"), (10, 4, "8 or 12")]
)
def test_a_batch_that_does_not_divide(root, size, ranks, fits):
    data = Toy(root, batch_size=size, lists={"train": LISTS["train"] * 3})
    data = ready(data, ranks=ranks)
    with pytest.raises(ValueError, match=rf"batch_size={size} does not divide.*{fits}"):
        data.train_dataloader()
    data.batch_size, data.eval_batch_size = ranks, size
    with pytest.raises(ValueError, match=rf"eval_batch_size={size}"):
        data.gallery_dataloader()


def test_a_batch_larger_than_the_data(root):
    with pytest.raises(ValueError, match="batch_size=16 is more than the 15 training videos"):
        ready(Toy(root, batch_size=16)).train_dataloader()


def labels(data: VideoDataModule) -> Counter[int]:
    return Counter(data.manifest("train").labels.tolist())


def paths(data: VideoDataModule) -> list[str]:
    manifest = data.manifest("train")
    return [manifest.path(row).name for row in range(len(manifest))]


def test_label_fraction_takes_its_share_of_each_class(root):
    lists = {"train": LISTS["train"] + [Entry("23.mp4", 0)] * 5}  # ten of class 0, five of others
    some = ready(Toy(root, lists, label_fraction=0.4))
    assert labels(some) == {0: 4, 1: 2, 2: 2}
    assert labels(ready(Toy(root, lists, label_fraction=0.01))) == {0: 1, 1: 1, 2: 1}
    again = ready(Toy(root, lists, label_fraction=0.4))
    assert paths(again) == paths(some)
    other = ready(Toy(root, lists, label_fraction=0.4, seed=1))
    assert paths(other) != paths(some)
    more = ready(Toy(root, lists, label_fraction=0.8))
    assert not Counter(paths(some)) - Counter(paths(more))
    assert len(ready(Toy(root, label_fraction=0.4), "validate").manifest("val")) == 3


def test_video_fraction_takes_its_share_of_all(root):
    some = ready(Toy(root, video_fraction=0.4))
    assert len(some.manifest("train")) == 6
    assert paths(some) == sorted(paths(some))
    more = ready(Toy(root, video_fraction=0.8))
    assert set(paths(some)) < set(paths(more))
    assert len(ready(Toy(root, video_fraction=0.001)).manifest("train")) == 1


def test_label_fraction_needs_labels(root):
    lists = {"train": [entry(i, labelled=False) for i in range(8)]}
    with pytest.raises(ValueError, match=r"label_fraction=0.5 needs labels.*use video_fraction"):
        ready(Toy(root, lists, label_fraction=0.5))


def test_a_class_that_training_lacks(root):
    data = Toy(root)
    data.names["val"] = ("a", "b", "dance")
    with pytest.raises(ValueError, match="validation videos have classes that training lacks: d"):
        ready(data)


def test_classes_in_another_order(root):
    data = Toy(root)
    data.names["val"] = ("b", "a", "c")
    with pytest.raises(ValueError, match="not in training's order: b, a, c against a, b, c"):
        ready(data)


def test_a_label_without_a_class(root):
    with pytest.raises(ValueError, match=r"label 3 of 00.mp4 has no class"):
        ready(Toy(root, {"train": [Entry("00.mp4", 3)]}))


def test_missing_videos_are_left_out_with_one_warning(root, caplog):
    lists: dict[Split, list[Entry]] = {"train": [*LISTS["train"], Entry("gone.mp4", 0)]}
    with caplog.at_level(logging.WARNING):
        data = ready(Toy(root, lists))
    assert len(data.manifest("train")) == 15
    assert caplog.text.count("1 of 16 training videos are missing") == 1
    caplog.clear()
    Toy(root, lists).setup("fit")  # another process of the same run finds the manifest
    second = Toy(root, lists)
    second.trainer = trainer(ranks=2, rank=1)
    caplog.clear()
    second.setup("fit")
    assert not caplog.records
    with pytest.raises(FileNotFoundError, match=r"gone.mp4"):
        ready(Toy(root, lists, max_missing=0.01))


def test_setup_before_prepare_data(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        Toy(root, cache_dir=tmp_path).setup("fit")
    with pytest.raises(RuntimeError, match="call prepare_data"):
        Toy(root).train_dataloader()


def test_without_a_trainer_everything_is_prepared(root, tmp_path):
    data = Toy(root, cache_dir=tmp_path)
    data.prepare_data()
    assert len(list(tmp_path.iterdir())) == 3
    data.setup("fit")
    assert len(data.train_dataloader()) == 3
    assert data.state_dict() == {}


def test_little_shared_memory(root, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 0, 40_000))
    monkeypatch.setattr(module, "_SHARED_MEMORY", root)
    data = ready(Toy(root, num_workers=2))
    with caplog.at_level(logging.WARNING):
        ready(Toy(root)).train_dataloader()
        assert not caplog.records  # without workers nothing goes through it
        loader = data.train_dataloader()
    # 4 x 4 x 3 x 16 x 16 bytes a batch, two of two workers ready and one in use: 61 kB
    assert "bus error" in caplog.text
    assert "prefetch_factor (2)" in caplog.text
    assert loader.persistent_workers
    assert loader.prefetch_factor == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_fraction": 0.0}, "label_fraction=0.0: a share"),
        ({"video_fraction": 1.5}, "video_fraction=1.5: a share"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"prefetch_factor": 0}, "prefetch_factor=0"),
    ],
)
def test_wrong_settings(root, settings, message):
    with pytest.raises(ValueError, match=message):
        Toy(root, **settings)


def test_every_missing_official_file_is_listed_at_once(tmp_path):
    (tmp_path / "there").touch()
    files = {tmp_path / "there": "x", tmp_path / "list": "the page", tmp_path / "film": "the rar"}
    expected = r"Toy: 2 of 3 official files are missing:\s+\S+list: the page\s+\S+film: the rar"
    with pytest.raises(FileNotFoundError, match=expected):
        require_files(files, "Toy")


def test_resuming_with_other_data_warns(root, caplog):
    data = ready(Toy(root))
    state = {"epoch": 1, "samples": 8, "batch_size": 4, "videos": 15, "seed": 0}
    data.load_state_dict(state)
    assert not caplog.records
    data.load_state_dict({**state, "videos": 14, "seed": 3})
    assert "seed was 3 and is 0" in caplog.text
    assert "videos was 14 and is 15" in caplog.text


def test_a_configuration_file_makes_one(root):
    parser = ArgumentParser()
    parser.add_argument("--data", type=VideoDataModule)
    config = {
        "class_path": "lightning_vssl.datamodules.video_folder.VideoFolder",
        "init_args": {
            "root": str(root),
            "clips": {
                "class_path": "lightning_vssl.data.clips.JitteredClip",
                "init_args": {"frames": 8, "strides": [1, 2]},
            },
            "eval_clips": {"class_path": "lightning_vssl.data.clips.CentreClip"},
            "window": {
                "class_path": "lightning_vssl.data.windows.RandomResizedCrop",
                "init_args": {"size": 32, "scale": [0.3, 1.0]},
            },
        },
    }
    data = parser.instantiate(parser.parse_object({"data": config})).data
    assert data.clips == JitteredClip(frames=8, strides=(1, 2))
    assert data.eval_clips == CentreClip()
    assert data.window == RandomResizedCrop(size=32, scale=(0.3, 1.0))
    assert data.root == root
