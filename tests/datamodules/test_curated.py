"""VideoNet, AudioSet and lists like YouTube-8M's."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_vssl.data.clips import UniformClips
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.audioset import AudioSet
from lightning_vssl.datamodules.segments import Segment, VideoFiles, read_segments
from lightning_vssl.datamodules.videonet import VideoCandidates, VideoNet
from lightning_vssl.datamodules.youtube8m import YouTube8M
from tests.videos import numbered_frames, write_video


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    return file


def listed(data, split: str = "train") -> list[tuple[str, float, float | None]]:
    entries, classes = data.entries(split)
    assert classes == ()
    return [(e.path, e.start, None if math.isnan(e.end) else e.end) for e in entries]


class TestVideoNet:
    @pytest.mark.parametrize("kept", [("true", "False", "1", "0"), (True, False, True, False)])
    def test_a_list(self, tmp_path, kept):
        rows = {"path": list("abcd"), "class": ["n2", "n1", "n2", "n3"], "kept": list(kept)}
        if isinstance(kept[0], str):
            lines = [",".join(row) for row in zip(*rows.values(), strict=True)]
            file = write(tmp_path / "list.csv", "\n".join(["path,class,kept", *lines]))
        else:
            file = tmp_path / "list.parquet"
            pq.write_table(pa.table(rows), file)
        entries, classes = VideoNet(tmp_path, manifest=file).entries("train")
        assert classes == ("n1", "n2", "n3")  # a class that has lost all its videos keeps its place
        assert [(entry.path, entry.label) for entry in entries] == [("a", 1), ("c", 1)]
        assert VideoNet(tmp_path, manifest=file).entries("val") == ([], ())

    def test_a_video_kept_for_two_classes_counts_once(self, tmp_path, caplog):
        """In one batch twice it was its own negative."""
        rows = ["a,n2,true,,", "a,n1,true,,", "b,n1,false,,", "b,n2,true,,", "c,n1,true,0,5"]
        rows += ["c,n2,true,5,9", "c,n3,true,,5", "a,n3,true,0,", "c,n1,true,5,9.5"]
        text = "\n".join(["path,class,kept,start,end", *rows])
        data = VideoNet(tmp_path, manifest=write(tmp_path / "list.csv", text))
        with caplog.at_level("INFO", logger="lightning.pytorch"):
            entries, classes = data.entries("train")
        assert classes == ("n1", "n2", "n3")
        told = [(entry.path, entry.label, entry.start) for entry in entries]
        assert told == [("a", 1, 0), ("b", 1, 0), ("c", 0, 0), ("c", 1, 5), ("c", 0, 5)]
        assert "keeps 3 videos more than once" in caplog.text
        assert "(5 are left)" in caplog.text

    def test_a_folder(self, tmp_path):
        touch(tmp_path / "n2/a.mp4", tmp_path / "n1/deep/b.webm", tmp_path / "n1/notes.txt")
        entries, classes = VideoNet(tmp_path).entries("train")
        assert classes == ("n1", "n2")
        assert [(e.path, e.label) for e in entries] == [("n1/deep/b.webm", 0), ("n2/a.mp4", 1)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,class,kept\na,n1,perhaps\n", "kept is 'perhaps' in a row"),
            ("path,class\na,n1\nb,\n", "kept video 2 has no path or no class"),
            ("path,label\na,n1\n", "has no column class"),
            ("path,class\n", "lists no videos"),
            ("path,class,start\na,n1,soon\n", "row 1: start 'soon' is no number"),
        ],
    )
    def test_a_wrong_list(self, tmp_path, text, message):
        file = write(tmp_path / "list.csv", text)
        with pytest.raises(ValueError, match=message):
            VideoNet(tmp_path, manifest=file).entries("train")
        with pytest.raises(FileNotFoundError, match=r"no table of videos at .*none.csv"):
            VideoNet(tmp_path, manifest=tmp_path / "none.csv").entries("train")


def test_candidates_are_imagenet_s_by_default(tmp_path):
    table = write(
        tmp_path / "t.csv", "path,title,class\na.mp4,x,n01440764\nb.mp4,x,Great White Shark\n"
    )
    data = VideoCandidates(tmp_path, table=table)
    entries, classes = data.entries("train")
    assert [(entry.path, entry.label) for entry in entries] == [("a.mp4", 0), ("b.mp4", 2)]
    assert len(classes) == 1000
    assert data.candidates() is data.candidates()
    assert data.entries("test") == ([], ())


HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    write(
        tmp_path / "unbalanced_train_segments.csv",
        HEADER + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        '-_whole, 0.000, 10.000, "/m/09x0r"\n#odd-one, 1.500, 11.500, "/m/09x0r"\n',
    )
    write(tmp_path / "balanced_train_segments.csv", HEADER + 'b_al, 20.000, 30.000, "/m/09x0r"\n')
    write(tmp_path / "annotations/eval_segments.csv", HEADER + 'e_val, 5.000, 15.000, "/m/1"\n')
    touch(
        tmp_path / "videos/--PJHxphWEs_30.mp4",
        tmp_path / "videos/deep/-_whole.mkv",
        tmp_path / "videos/b_al_000020_000030.webm",
        tmp_path / "videos/e_val_5000_15000.mp4",
        tmp_path / "videos/.hidden.mp4",
    )
    return tmp_path


class TestAudioSet:
    def test_its_lists(self, audioset):
        unbalanced = [
            ("videos/--PJHxphWEs_30.mp4", 0.0, None),
            ("videos/deep/-_whole.mkv", 0.0, 10.0),
        ]
        balanced = [("videos/b_al_000020_000030.webm", 0.0, None)]
        assert listed(AudioSet(audioset)) == unbalanced + balanced
        assert listed(AudioSet(audioset, train="unbalanced")) == unbalanced
        assert listed(AudioSet(audioset, train="balanced")) == balanced
        assert listed(AudioSet(audioset), "test") == [("videos/e_val_5000_15000.mp4", 0.0, None)]
        assert listed(AudioSet(audioset), "val") == []

    def test_its_folder_alone(self, audioset):
        paths = [path for path, _, _ in listed(AudioSet(audioset, train="folder"))]
        assert paths == sorted(paths)
        assert len(paths) == 4
        assert listed(AudioSet(audioset, train="folder"), "test") == []

    def test_what_is_missing(self, audioset):
        (audioset / "videos/deep/-_whole.mkv").unlink()
        assert listed(AudioSet(audioset))[1] == ("videos/-_whole.mp4", 0.0, 10.0)
        (audioset / "balanced_train_segments.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"AudioSet: 1 of 2 official files are missing"):
            AudioSet(audioset).entries("train")
        with pytest.raises(FileNotFoundError, match="no folder of videos at"):
            AudioSet(audioset, train="unbalanced", videos="clips").entries("train")
        with pytest.raises(ValueError, match="train='some': choose"):
            AudioSet(audioset, train="some")


class TestYouTube8M:
    def test_a_list_of_videos(self, tmp_path):
        write(tmp_path / "ids.csv", "id,labels\na,3 4\nb,\n")
        touch(tmp_path / "x/a.mp4", tmp_path / "y/b.webm")
        assert listed(YouTube8M(tmp_path, table=Path("ids.csv"))) == [
            ("x/a.mp4", 0.0, None),
            ("y/b.webm", 0.0, None),
        ]

    def test_a_list_of_segments(self, tmp_path):
        file = write(
            tmp_path / "lists/segments.csv", "id,start,end,labels\na,5,10,3\na,10,,3\nb,5,10,3\n"
        )
        touch(tmp_path / "videos/a.mp4", tmp_path / "videos/b_5_10.mp4")
        expected = [
            ("videos/a.mp4", 5.0, 10.0),
            ("videos/a.mp4", 10.0, None),
            ("videos/b_5_10.mp4", 0.0, None),
        ]
        assert listed(YouTube8M(tmp_path, table=file, videos="videos")) == expected
        assert YouTube8M(tmp_path, table=file).entries("test") == ([], ())

    def test_a_folder(self, tmp_path):
        touch(tmp_path / "b.mp4", tmp_path / "c/a.mp4")
        assert listed(YouTube8M(tmp_path)) == [("b.mp4", 0.0, None), ("c/a.mp4", 0.0, None)]

    def test_only_the_segment_is_read(self, tmp_path):
        write_video(tmp_path / "a.mp4", numbered_frames(100), fps=10)
        write(tmp_path / "ids.csv", "id,start,end\na,2,4\na,6,9\n")
        data = YouTube8M(
            tmp_path,
            table=Path("ids.csv"),
            clips=UniformClips(clips=1, frames=4),
            window=WholeFrame((16, 16)),
            batch_size=2,
            cache_dir=tmp_path / "cache",
        )
        data.prepare_data()
        data.setup("fit")
        (batch,) = data.train_dataloader()
        for index, time in zip(batch["index"].tolist(), batch["time"], strict=True):
            low, high = ((2, 4), (6, 9))[index]
            assert (time >= low).all()
            assert (time < high).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,start,end\na,1,2\n", "has no column id: it has video, start, end"),
        ("id,start,end\n", "lists no segments"),
        ("", "lists no segments"),
        ("id,start,end\n,1,2\n", "line 2: id is empty"),
        ("id,start,end\na,one,2\n", "line 2: 'one' is no number of seconds"),
        ("id,start,end\n\na,3,2\n", "line 3: a segment from 3 to 2 seconds"),
        ("id,start,end\na,-1,2\n", "a segment from -1 to 2 seconds"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    file = write(tmp_path / "list.csv", text)
    with pytest.raises(ValueError, match=message):
        read_segments(file, ("id", "start", "end"))


def test_no_list(tmp_path):
    with pytest.raises(FileNotFoundError, match="no list of segments at"):
        read_segments(tmp_path / "none.csv", ("id", None, None))


@pytest.mark.parametrize("name", ["a_7_17", "a_7", "a_000007_000017", "a_000007", "a_7000_17000"])
def test_a_cut_file_is_taken_whole(tmp_path, name):
    touch(tmp_path / f"{name}.mp4", tmp_path / "a.mp4", tmp_path / "a_8_18.mp4")
    entry = VideoFiles(tmp_path, ".").entry(Segment("a", 7, 17))
    assert (entry.path, entry.start) == (f"{name}.mp4", 0.0)
    assert math.isnan(entry.end)
