"""The built-in videos as a data module: drawn once, read by the common reader."""

from pathlib import Path

import numpy as np
import pytest

from lightning_vssl.data import synthetic_recognition
from lightning_vssl.data.synthetic import MOTIONS, OBJECTS, draw, labels, make_demo
from lightning_vssl.datamodules.demo import Demo
from lightning_vssl.datamodules.hmdb51 import HMDB51
from lightning_vssl.datamodules.kinetics import Kinetics
from lightning_vssl.datamodules.ucf101 import UCF101

VIDEOS = 24


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def module(cache, **options) -> Demo:
    data = Demo(
        videos=VIDEOS, cache_dir=cache, make_workers=1, batch_size=4, eval_batch_size=4, **options
    )
    data.prepare_data()
    return data


def test_draws_once_and_delivers_what_was_drawn(cache, monkeypatch):
    data = module(cache, gallery=True)
    assert data.root.parent == cache / "demo"
    monkeypatch.setattr(synthetic_recognition.DemoLayout, "write", None)  # a second drawing fails
    data = module(cache, gallery=True)
    data.setup("test")
    gallery, test = data.test_dataloader()
    assert (len(gallery.dataset), len(test.dataset)) == (16, 8)
    assert data.classes == MOTIONS
    seen = []
    for batch in test:
        assert batch["video"].shape == (4, 2, 16, 3, 64, 64)
        for row, label, video in zip(batch["index"], batch["label"], batch["video"], strict=True):
            assert int(label) == labels(0, int(row), "test")[0]
            drawn = draw(0, int(row), "test")
            first = int((len(drawn.frames) - 31) / 4)  # CtP's placement of two clips
            frame = drawn.frames[first].astype(float).mean(axis=(0, 1))
            assert np.allclose(video[0, 0].float().mean(dim=(1, 2)), frame, atol=4)
            seen.append(int(label))
    assert sorted(seen) == list(range(8))


def test_targets_are_motion_or_object(cache):
    data = module(cache, target="object")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["video"].shape == (4, 1, 16, 3, 64, 64)
    wanted = [labels(0, int(row), "train")[1] for row in batch["index"]]
    assert batch["label"].tolist() == wanted
    assert data.classes == OBJECTS
    assert data.num_classes == 6
    with pytest.raises(ValueError, match="target='shape': choose 'motion' or 'object'"):
        module(cache, target="shape")


def test_worlds_have_their_own_videos(cache):
    assert module(cache, world=1).root != module(cache).root


@pytest.mark.parametrize(
    ("name", "reader"),
    [("ucf101", UCF101), ("hmdb51", HMDB51), ("kinetics", Kinetics)],
)
def test_the_real_readers_read_the_built_in_files(tmp_path, monkeypatch, name, reader):
    def draw_small(seed, index, split, *, size=None, frames=None, fps=None, borders="wrap"):
        return draw(seed, index, split, size=(32, 48), frames=20, fps=fps)

    monkeypatch.setattr(synthetic_recognition, "draw", draw_small)
    make_demo(tmp_path / "videos", name, videos=VIDEOS, workers=1, progress=False)
    data = reader(tmp_path / "videos", cache_dir=tmp_path / "cache", batch_size=8)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.num_classes == len(MOTIONS)
    for split, count in (("train", 16), ("test", 8)):
        manifest = data.manifest(split)
        assert len(manifest) == count
        assert np.bincount(manifest.labels).tolist() == [count // 8] * 8
        names = {Path(manifest.path(row)).parent.name for row in range(count)}
        assert {name.replace("_", "").lower() for name in names} == {m.lower() for m in MOTIONS}
    assert next(iter(data.train_dataloader()))["video"].shape[2] == 16
