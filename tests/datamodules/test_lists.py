"""The official lists of the datasets, written small."""

import logging
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lightning_vssl.data.clips import UniformClips
from lightning_vssl.data.store import TABLE, store_table
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.hmdb51 import HMDB51
from lightning_vssl.datamodules.kinetics import Kinetics
from lightning_vssl.datamodules.ucf101 import UCF101
from lightning_vssl.datamodules.video_folder import VideoFolder
from tests.videos import numbered_frames, write_video


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())


def listed(data, split: str) -> list[tuple[str, int]]:
    return [(entry.path, entry.label) for entry in data.entries(split)[0]]


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 Archery\r\n2 HandstandPushups\r\n3 YoYo\r\n")
    for split in (1, 2):
        train = (
            f"Archery/v_Archery_g0{split}_c01.avi 1\r\n"
            "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n"
            "YoYo/v_YoYo_g25_c05.avi 3\r\n"
        )
        write(lists / f"trainlist0{split}.txt", train)
        test = "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\nYoYo/v_YoYo_g01_c01.avi\r\n\r\n"
        write(lists / f"testlist0{split}.txt", test)
    (tmp_path / "UCF-101").mkdir()
    return tmp_path


def test_ucf101(ucf):
    data = UCF101(ucf, split=2)
    assert data.entries("train")[1] == ("Archery", "HandstandPushups", "YoYo")
    assert listed(data, "train") == [
        ("UCF-101/Archery/v_Archery_g02_c01.avi", 0),
        ("UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi", 1),
        ("UCF-101/YoYo/v_YoYo_g25_c05.avi", 2),
    ]
    assert listed(data, "test") == listed(data, "val")
    assert [label for _, label in listed(data, "test")] == [1, 2]


def test_ucf101_spelt_otherwise_on_disk(ucf):
    touch(ucf / "UCF-101/HandStandPushups/v_HandStandPushups_g08_c01.avi")
    assert listed(UCF101(ucf), "train")[1] == (
        "UCF-101/HandStandPushups/v_HandStandPushups_g08_c01.avi",
        1,
    )


def test_ucf101_with_classes_right_below_the_root(ucf):
    (ucf / "UCF-101").rmdir()
    touch(ucf / "YoYo/v_YoYo_g25_c05.avi")
    assert listed(UCF101(ucf), "train")[2] == ("YoYo/v_YoYo_g25_c05.avi", 2)


def test_ucf101_that_is_not_there(tmp_path):
    expected = (
        r"UCF-101: 3 of 3 official files are missing:(.|\s)*classInd.txt: \S*SplitsX?"
        r"(.|\s)*trainlist03.txt(.|\s)*UCF-101: UCF101.rar of crcv.ucf.edu"
    ).replace("X?", "-RecognitionTask.zip")
    with pytest.raises(FileNotFoundError, match=expected):
        UCF101(tmp_path, split=3).entries("train")


def test_ucf101_labels_that_do_not_match(ucf):
    rows = ucf / "ucfTrainTestlist/trainlist01.txt"
    write(rows, "YoYo/v_YoYo_g25_c05.avi 1\n")
    with pytest.raises(ValueError, match=r"has label 1, and classInd.txt says 3"):
        UCF101(ucf).entries("train")
    write(rows, "Dance/v_Dance_g25_c05.avi 1\n")
    with pytest.raises(ValueError, match=r"class Dance .* is not in classInd.txt"):
        UCF101(ucf).entries("train")
    write(rows, "\n")
    with pytest.raises(ValueError, match="lists no videos"):
        UCF101(ucf).entries("train")
    write(ucf / "ucfTrainTestlist/classInd.txt", "2 Archery\n1 YoYo\n")
    with pytest.raises(ValueError, match="from 1 to 2 in order"):
        UCF101(ucf).entries("train")
    with pytest.raises(ValueError, match="split=4"):
        UCF101(ucf, split=4)


def test_ucf101_from_list_to_batch(ucf):
    for name in ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi"):
        write_video(ucf / "UCF-101" / name, numbered_frames(12), codec="mpeg4")
    data = UCF101(ucf, eval_clips=UniformClips(4, 1, clips=2), eval_window=WholeFrame((16, 16)))
    for split in ("train", "val"):
        (ucf / f"ucfTrainTestlist/{split}list01.txt").unlink(missing_ok=True)
    touch(ucf / "ucfTrainTestlist/trainlist01.txt")
    write(ucf / "ucfTrainTestlist/trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 3\n")
    data.prepare_data()
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["label"].tolist() == [1, 2]
    assert batch["video"].shape == (2, 2, 4, 3, 16, 16)
    assert data.num_classes == 3


ODD = "Faith_Rewarded_(2004)_#1!_[x];&_swing_f_nm_np1_ba_med_2.avi"


@pytest.fixture
def hmdb(tmp_path: Path) -> Path:
    lists = tmp_path / "testTrainMulti_7030_splits"
    write(lists / "wave_test_split1.txt", f"{ODD} 1 \nb.avi 2 \nc.avi 0 \n")
    write(lists / "brush_hair_test_split1.txt", "d.avi 2 \ne.avi 1 \n\n")
    touch(*(tmp_path / "videos" / name for name in (f"wave/{ODD}", "brush_hair/d.avi")))
    return tmp_path


def test_hmdb51(hmdb):
    data = HMDB51(hmdb)
    assert data.entries("train")[1] == ("brush_hair", "wave")
    assert listed(data, "train") == [("videos/brush_hair/e.avi", 0), (f"videos/wave/{ODD}", 1)]
    assert listed(data, "test") == [("videos/brush_hair/d.avi", 0), ("videos/wave/b.avi", 1)]
    assert listed(data, "val") == listed(data, "test")


def test_hmdb51_that_is_not_there(hmdb, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"2 of 3 .*(\s.*)*wave_test_split2.txt"):
        HMDB51(hmdb, split=2).entries("train")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"testTrainMulti_7030_splits: test_train_splits"):
        HMDB51(empty).entries("train")


def test_hmdb51_with_a_strange_number(hmdb):
    write(hmdb / "testTrainMulti_7030_splits/wave_test_split1.txt", "a.avi 3\n")
    with pytest.raises(ValueError, match=r"'a.avi 3' must end in 0, 1 or 2"):
        HMDB51(hmdb).entries("train")


HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    write(
        tmp_path / "annotations/train.csv",
        HEADER
        + "shaking hands,-abc_d,5,15,train\n"
        + '"petting animal (not cats)",_xyz,120,130,train\n'
        + "abseiling,missing,0,10,train\n",
    )
    write(tmp_path / "annotations/validate.csv", HEADER + "abseiling,v1,0,10,validate\n")
    write(tmp_path / "annotations/test.csv", "youtube_id,time_start,time_end,split\nt1,0,10,test\n")
    touch(
        tmp_path / "train/shaking_hands/-abc_d_000005_000015.mp4",
        tmp_path / "train/petting animal (not cats)/_xyz_000120_000130.mkv",
        tmp_path / "val/v1_000000_000010.webm",
    )
    return tmp_path


def test_kinetics(kinetics, caplog):
    data = Kinetics(kinetics, variant="600", test_split="test")
    with caplog.at_level(logging.WARNING):
        entries, classes = data.entries("train")
    assert classes == ("abseiling", "petting animal (not cats)", "shaking hands")
    assert [(entry.path, entry.label) for entry in entries] == [
        ("train/shaking_hands/-abc_d_000005_000015.mp4", 2),
        ("train/petting animal (not cats)/_xyz_000120_000130.mkv", 1),
        ("train/abseiling/missing_000000_000010.mp4", 0),
    ]
    assert "has 3 classes, Kinetics-600 has 600" in caplog.text
    assert listed(data, "val") == [("val/v1_000000_000010.webm", 0)]
    assert listed(data, "test") == [("test/t1_000000_000010.mp4", -1)]
    assert listed(Kinetics(kinetics), "test") == listed(data, "val")


def test_kinetics_whose_videos_are_in_a_store_alone(kinetics, tmp_path_factory):
    """Only the usual names of the clips were looked for, so that most were called missing."""
    truth = [listed(Kinetics(kinetics), split) for split in ("train", "val")]
    (kinetics / "val").rename(kinetics / "validation")
    files = [f for folder in ("train", "validation") for f in (kinetics / folder).rglob("*.*")]
    usual = {"file": "x", "offset": 512, "size": 9, "cropped": False, "error": ""}
    rows = [{"path": str(file.relative_to(kinetics)), **usual} for file in files]
    store = tmp_path_factory.mktemp("store")
    pq.write_table(store_table(rows), store / f"{TABLE}.parquet")
    for folder in ("train", "validation"):
        shutil.rmtree(kinetics / folder)
    data = Kinetics(kinetics, store=store)
    assert listed(data, "train") == truth[0]
    assert listed(data, "val") == [("validation/v1_000000_000010.webm", 0)]
    placed = [entry.place for split in ("train", "val") for entry in data._placed(split)[0]]
    assert [place is None for place in placed] == [False, False, True, False]


def test_kinetics_that_is_not_there(kinetics):
    (kinetics / "annotations/validate.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"Kinetics-400: 1 of 2 .*\s.*val.csv: the off"):
        Kinetics(kinetics).entries("val")


def test_kinetics_lists_that_do_not_match(kinetics):
    write(kinetics / "annotations/validate.csv", HEADER + "dancing,v1,0,10,validate\n")
    with pytest.raises(ValueError, match=r"validate.csv has classes that .* lacks: dancing"):
        Kinetics(kinetics).entries("val")
    write(kinetics / "annotations/train.csv", "label,id\nx,y\n")
    with pytest.raises(ValueError, match="no column youtube_id, time_start, time_end"):
        Kinetics(kinetics).entries("train")
    write(kinetics / "annotations/train.csv", HEADER)
    with pytest.raises(ValueError, match="lists no videos"):
        Kinetics(kinetics).entries("train")


def test_wrong_settings(tmp_path):
    with pytest.raises(ValueError, match="choose '400', '600' or '700'"):
        Kinetics(tmp_path, variant="500")
    with pytest.raises(ValueError, match="choose 'val' or 'test'"):
        Kinetics(tmp_path, test_split="train")


def test_folder_with_classes(tmp_path):
    touch(tmp_path / "train/run/deep/a.MP4", tmp_path / "train/jump/b.avi", tmp_path / "x.txt")
    touch(tmp_path / "train/jump/notes.txt", tmp_path / "test/run/c.webm")
    data = VideoFolder(tmp_path, train="train", test="test")
    assert data.entries("train")[1] == ("jump", "run")
    assert listed(data, "train") == [("train/jump/b.avi", 0), ("train/run/deep/a.MP4", 1)]
    assert listed(data, "test") == [("test/run/c.webm", 1)]  # jump keeps its number
    assert data.entries("val") == ([], ())
    touch(tmp_path / "test/fly/d.mp4")
    with pytest.raises(ValueError, match=r"test has classes that .*train lacks: fly"):
        data.entries("test")


def test_folder_without_classes(tmp_path):
    touch(tmp_path / "b.mp4", tmp_path / "a.mp4")
    assert VideoFolder(tmp_path).entries("train")[1] == ()
    assert listed(VideoFolder(tmp_path), "train") == [("a.mp4", -1), ("b.mp4", -1)]
    touch(tmp_path / "2021/c.mp4")
    with pytest.raises(ValueError, match=r"holds videos \(a.mp4, ...\) beside folders .*2021"):
        VideoFolder(tmp_path).entries("train")
    paths = ["2021/c.mp4", "a.mp4", "b.mp4"]
    assert listed(VideoFolder(tmp_path, labels=False), "train") == [(path, -1) for path in paths]


def test_folder_that_is_empty_or_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no videos below .*: files that end in .mp4"):
        VideoFolder(tmp_path).entries("train")
    with pytest.raises(FileNotFoundError, match="no folder"):
        VideoFolder(tmp_path / "none").entries("train")
    with pytest.raises(ValueError, match=r"train='.' contains 'val'"):
        VideoFolder(tmp_path, val="val")
