"""VGG-Sound from its official list, and what is wrong in a list or a folder."""

import re

import pytest

from lightning_vssl.data.clips import CentreClip
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.vggsound import VGGSound
from tests.datamodules.test_base import ready


def listed(root, *lines):
    (root / "video").mkdir(parents=True, exist_ok=True)
    (root / "vggsound.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return VGGSound(root)


def test_the_built_in_layout_is_read(tmp_path):
    root = make_demo(tmp_path / "root", "vggsound", videos=16, workers=1, progress=False)
    window, clips = WholeFrame((16, 16)), CentreClip(frames=2)
    data = ready(
        VGGSound(
            root, clips=clips, window=window, eval_clips=clips, eval_window=window, batch_size=4,
            cache_dir=tmp_path / "cache",
        )
    )  # fmt: skip
    assert "rest, not moving" in data.classes
    assert list(data.classes) == sorted(data.classes)
    lines = (root / "vggsound.csv").read_text().splitlines()
    assert len(data.manifests["train"]) == sum(line.endswith(",train") for line in lines)
    assert "val" not in data.manifests
    manifest = data.manifests["train"]
    for row in range(len(manifest)):
        name, start = manifest.path(row).stem.rsplit("_", 1)
        (line,) = [line for line in lines if line.startswith(f"{name},{int(start)},")]
        assert data.classes[manifest.label(row)] in line
    batch = next(iter(data.train_dataloader()))
    assert batch["video"].shape == (4, 1, 2, 3, 16, 16)


def test_the_official_forms(tmp_path):
    data = listed(
        tmp_path,
        "---g-f_I2yQ,1,people marching,test",
        '-0BIyqJj9ZU,30,"dog growling, barking",train',
        "a_b_1,120,people marching,train",
    )
    (tmp_path / "video" / "deeper").mkdir()
    for name in ("video/-0BIyqJj9ZU_000030.mp4", "video/deeper/a_b_1_000120.mkv"):
        (tmp_path / name).touch()
    entries, classes = data.entries("train")
    assert classes == ("dog growling, barking", "people marching")
    assert [(entry.path, entry.label) for entry in entries] == [
        ("video/-0BIyqJj9ZU_000030.mp4", 0),
        ("video/deeper/a_b_1_000120.mkv", 1),
    ]
    (entry,), _ = data.entries("test")  # its clip is not there: it keeps its place
    assert (entry.path, entry.label) == ("video/---g-f_I2yQ_000001.mp4", 1)
    assert data.entries("val") == ([], ())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("abc,1,dog, barking,train", "line 2: 'abc,1,dog,barking,train' is not id"),
        ("abc,1,dog,validation", "is not id, start in seconds, label, train or test"),
        ("abc,soon,dog,train", "line 2: 'soon' is no number of seconds"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    data = listed(tmp_path, "xyz,0,dog,test", line)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.entries("train")


def test_what_is_missing_is_said_together(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"2 of 2 official files(.|\n)*vggsound\.csv"):
        VGGSound(tmp_path).entries("train")
    with pytest.raises(ValueError, match="lists no videos"):
        listed(tmp_path).entries("train")
