"""Stores: where videos lie that were transcoded or packed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_vssl.data.manifest import Entry, build_manifest, usable
from lightning_vssl.data.place import Place
from lightning_vssl.data.store import Store, repeated, store_table
from tests.videos import write_numbered


def written(folder: Path, *rows: dict[str, object]) -> Path:
    usual = {"file": "", "offset": 0, "size": 0, "cropped": False, "error": ""}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(store_table([{**usual, **row} for row in rows]), folder / "videos.parquet")
    return folder


class TestPlaces:
    def test_of_several_stores_at_any_depth(self, tmp_path):
        written(tmp_path / "train/seed0", {"path": "a.avi", "file": "videos/a.mp4", "size": 3})
        member = {"path": "b/c.mp4", "file": "tars/0.tar", "offset": 512, "size": 7}
        written(tmp_path / "test/seed0", member, {"path": "d.mp4", "error": "broken"})
        store = Store(tmp_path)
        entries = [Entry("b/c.mp4", 1, 2.0, 3.0), Entry("a.avi"), Entry("d.mp4"), Entry("e.mp4")]
        placed = store.placed(entries, tmp_path / "root")
        assert placed[0].place == Place(tmp_path / "test/seed0/tars/0.tar", 512, 7)
        assert placed[1].place == Place(tmp_path / "train/seed0/videos/a.mp4", 0, 3)
        assert placed[2:] == entries[2:]  # what could not be made, and what is not listed
        assert (placed[0].label, placed[0].start, placed[0].end) == (1, 2.0, 3.0)
        assert len(store) == 2

    def test_stand_wherever_they_are_asked_for_from(self, tmp_path, monkeypatch):
        """A path relative to one folder was another video's in the next."""
        written(tmp_path / "runs", {"path": "a.mp4", "file": "videos/a.mp4"})
        monkeypatch.chdir(tmp_path)
        store = Store(Path("runs"))
        assert store.path == tmp_path / "runs"
        place = store.placed([Entry("a.mp4")], tmp_path)[0].place
        assert place == Place(tmp_path / "runs/videos/a.mp4")

    def test_what_lies_inside_a_store_is_not_searched(self, tmp_path):
        """It has as many files as the data set, and each process would walk them all."""
        written(tmp_path / "s", {"path": "a.mp4", "file": "videos/a.mp4"})
        written(tmp_path / "s/videos/deep", {"path": "a.mp4", "file": "b.mp4"})
        assert len(Store(tmp_path)) == 1

    def test_absolute_paths_below_the_root(self, tmp_path):
        written(tmp_path / "s", {"path": "a.mp4", "file": "x.mp4"})
        entry = Entry(str(tmp_path / "root" / "a.mp4"))
        assert Store(tmp_path / "s").placed([entry], tmp_path / "root")[0].place is not None

    def test_cut_pictures_are_known(self, tmp_path):
        written(tmp_path, {"path": "a", "file": "a", "cropped": True}, {"path": "b", "file": "b"})
        assert [Store(tmp_path).cropped(name) for name in "abc"] == [True, False, False]


class TestWhatIsWrong:
    def test_nothing_there(self, tmp_path):
        (tmp_path / "shards").mkdir()
        with pytest.raises(FileNotFoundError, match=r"no videos\.parquet in .* run it again to go"):
            Store(tmp_path)

    def test_another_table(self, tmp_path):
        pq.write_table(pa.table({"path": ["a"]}), tmp_path / "videos.parquet")
        with pytest.raises(ValueError, match=r"videos\.parquet is not the table of a store"):
            Store(tmp_path)

    def test_no_table_at_all(self, tmp_path):
        (tmp_path / "videos.parquet").write_bytes(b"PAR1 but no more")
        with pytest.raises(ValueError, match=r"videos\.parquet is not the table of a store"):
            Store(tmp_path)

    def test_the_same_video_twice(self, tmp_path):
        for name in ("files", "tars"):
            written(tmp_path / name, {"path": "a.mp4", "file": "a.mp4"})
        with pytest.raises(ValueError, match=r"a\.mp4 is in .*files/.* and in .*tars/"):
            Store(tmp_path)


class TestManifest:
    def test_knows_where_a_video_lies(self, tmp_path):
        file = write_numbered(tmp_path / "elsewhere" / "x.mp4", 20)
        entries = [Entry("a.avi", place=Place(file)), Entry("gone.avi")]
        made = build_manifest(entries, tmp_path, cache_dir=tmp_path / "cache", progress=False)
        assert made.path(0) == tmp_path / "a.avi"
        assert made.place(0) == Place(file, 0, file.stat().st_size)
        assert made.place(1) is None
        assert (made.readable.tolist(), made.missing.tolist()) == ([True, False], [False, True])
        with made.open(0) as reader:
            assert (reader.path, reader.info.frames) == (tmp_path / "a.avi", 20)

    def test_a_video_that_moved_is_another_list(self, tmp_path):
        """With the place left out of the cached table's name, the old place was read."""
        for name, frames in (("x", 20), ("y", 30)):
            file = write_numbered(tmp_path / f"{name}.mp4", frames)
            entry = Entry("a.avi", place=Place(file))
            made = build_manifest([entry], tmp_path, cache_dir=tmp_path / "c", progress=False)
            assert made.column("frames").tolist() == [frames]

    def test_a_store_that_lost_files_is_named(self, tmp_path):
        """The message sent the reader to the data set's root, where nothing was wrong."""
        file = write_numbered(tmp_path / "store" / "x.mp4", 20)
        lost = Place(tmp_path / "store" / "000.tar", 512, 9)
        entries = [Entry("a.avi", place=Place(file)), Entry("b.avi", place=lost)]
        made = build_manifest(entries, tmp_path, cache_dir=tmp_path / "cache", progress=False)
        with pytest.raises(FileNotFoundError, match=r"1 files .* the first .*store/000\.tar: copy"):
            usable(made, name="training")

    def test_rows_of_one_video(self, tmp_path):
        write_numbered(tmp_path / "a.mp4", 20)
        entries = [Entry("a.mp4", end=0.2), Entry("b.mp4"), Entry("a.mp4", start=0.2)]
        made = build_manifest(entries, tmp_path, cache_dir=tmp_path / "c", progress=False)
        assert np.array_equal(repeated(made), [False, False, True])
