"""The job that packs videos into tar shards: the same samples, bit for bit; no shard by half."""

import json
import os
import signal
import tarfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lightning_vssl.data.clips import RandomClip
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.store import TABLE, store_table
from lightning_vssl.data.windows import RandomResizedCrop
from lightning_vssl.datamodules.base import VideoDataModule
from lightning_vssl.datamodules.video_folder import VideoFolder
from lightning_vssl.jobs import shards
from lightning_vssl.jobs.shards import ShardJob
from tests.evaluation.small import trainer
from tests.videos import numbered_frames, write_video

VIDEOS, SHARD = 7, 3
KINDS = (("libx264", "mp4"), ("mpeg4", "avi"), ("libx264", "mkv"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        codec, ending = KINDS[i % 3]
        path = folder / f"class{i % 2}" / f"some.{i}.{ending}"
        write_video(path, numbered_frames(24 + i, seed=i), codec=codec)
    (folder / "class0" / "some.4.avi").write_bytes(b"no video" * 99)
    return folder


def folder_of(root: Path, cache: Path, store: Path | None = None) -> VideoFolder:
    return VideoFolder(
        root,
        clips=RandomClip(frames=4, stride=2),
        window=RandomResizedCrop(24),
        batch_size=3,
        eval_clips=RandomClip(frames=4, stride=2),
        eval_window=RandomResizedCrop(24),
        store=store,
        cache_dir=cache,
        max_unreadable=0.2,
    )


def pack(data: VideoDataModule, out: Path) -> Path:
    trainer(out, enable_progress_bar=False).predict(ShardJob(shard_size=SHARD), data)
    return out


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return pack(folder_of(root, folder / "cache"), folder / "out")


def table(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(folder / f"{TABLE}.parquet").to_pylist()
    return rows


def tars(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "tars").iterdir())}


class TestTheSameSamples:
    def test_in_training_and_in_evaluation(self, root, packed, tmp_path):
        modules = [folder_of(root, tmp_path / "cache", store) for store in (None, packed)]
        seen = 0
        for data in modules:
            data.prepare_data()
            data.setup("fit")
        loaders = [(data.train_dataloader(), data.gallery_dataloader()) for data in modules]
        for files, members in zip(*loaders, strict=True):
            for epoch in range(2):
                for loader in (files, members):
                    if hasattr(loader.sampler, "set_epoch"):
                        loader.sampler.set_epoch(epoch)
                for one, other in zip(files, members, strict=True):
                    assert one.keys() == other.keys()
                    assert all(torch.equal(one[name], other[name]) for name in one)
                    seen += len(one["index"])
        assert seen == 2 * (6 + 6)
        assert all(modules[1].manifest("train").column("offset") > 0)

    def test_where_only_the_lists_are_left(self, root, packed, tmp_path):
        """The originals need not be there: a data module with lists of its own does without."""

        class Listed(VideoDataModule):
            def entries(self, split: str) -> tuple[list[Entry], tuple[str, ...]]:
                paths = [str(f.relative_to(root)) for f in sorted(root.rglob("*.mp4"))]
                return [Entry(path) for path in paths], ()

        data = Listed(tmp_path / "nothing", store=packed, cache_dir=tmp_path / "cache")
        data.prepare_data()
        assert data.manifest("train").readable.all()


class TestShards:
    def test_hold_the_files_and_say_what_they_are(self, root, packed):
        names = ["000000000-000000003.tar", "000000003-000000006.tar", "000000006-000000007.tar"]
        assert list(tars(packed)) == names
        videos = sorted(str(f.relative_to(root)) for f in root.rglob("*.*"))
        assert [row["path"] for row in table(packed)] == videos
        for number, row in enumerate(table(packed)):
            if row["path"] == "class0/some.4.avi":
                assert "cannot be opened" in row["error"]
                assert row["size"] == 0
                continue
            truth = (root / row["path"]).read_bytes()
            assert row["file"] == f"tars/{names[number // SHARD]}"
            content = (packed / row["file"]).read_bytes()
            assert content[row["offset"] : row["offset"] + row["size"]] == truth
            with tarfile.open(packed / row["file"]) as shard:
                ending = row["path"].rpartition(".")[2]
                assert shard.extractfile(f"{number:09d}.{ending}").read() == truth
                said = json.load(shard.extractfile(f"{number:09d}.json"))
            assert said == {
                "path": row["path"],
                "label": int(row["path"][5]),
                "class": row["path"][:6],
                "start": 0.0,
                "end": None,
            }

    def test_a_video_with_several_spans_is_packed_once(self, root, tmp_path):
        class Spans(VideoDataModule):
            def entries(self, split: str) -> tuple[list[Entry], tuple[str, ...]]:
                spans = ((0.0, 0.4), (0.5, 0.9))
                return [Entry("class0/some.0.mp4", -1, *span) for span in spans], ()

        out = pack(Spans(root, cache_dir=tmp_path / "cache"), tmp_path / "out")
        assert len(table(out)) == 1
        data = Spans(root, store=out, cache_dir=tmp_path / "cache")
        data.prepare_data()
        listed = data.manifest("train")
        assert [listed.span(row) for row in (0, 1)] == [(0.0, 0.4), (0.5, 0.9)]
        assert listed.place(0) == listed.place(1)

    def test_of_transcoded_videos(self, root, packed, tmp_path):
        """A store is packed: its files, under the names of the originals."""
        file = write_video(tmp_path / "made" / "videos" / "x.mp4", numbered_frames(9))
        row = {"path": "class1/some.1.avi", "file": "videos/x.mp4", "offset": 0, "error": ""}
        row |= {"size": file.stat().st_size, "cropped": True}
        pq.write_table(store_table([row]), tmp_path / "made" / f"{TABLE}.parquet")
        out = pack(folder_of(root, tmp_path / "cache", tmp_path / "made"), tmp_path / "out")
        found = {row["path"]: row for row in table(out)}
        assert [name for name, row in found.items() if row["cropped"]] == ["class1/some.1.avi"]
        member = found["class1/some.1.avi"]
        content = (out / member["file"]).read_bytes()[member["offset"] :][: member["size"]]
        assert content == file.read_bytes()


class TestGoingOn:
    def test_a_run_that_was_killed_in_the_middle_of_a_shard(
        self, root, packed, tmp_path, monkeypatch
    ):
        describe, calls = shards._describe, []

        def dies(*args):
            calls.append(0)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            describe(*args)

        out = tmp_path / "out"
        with monkeypatch.context() as patched:
            patched.setattr(shards, "_describe", dies)
            data = folder_of(root, tmp_path / "cache")
            process = get_context("fork").Process(target=pack, args=(data, out))
            process.start()
            process.join(120)
        assert process.exitcode == -signal.SIGKILL
        done, half = sorted(tars(out), key=lambda name: name.startswith("."))
        assert half.endswith(".tmp")
        inode = (out / "tars" / done).stat().st_ino
        pack(folder_of(root, tmp_path / "cache"), out)
        assert (out / "tars" / done).stat().st_ino == inode  # not written anew
        assert tars(out) == tars(packed)
        assert table(out) == table(packed)


class TestWhatIsWrong:
    def test_videos_in_shards_are_not_packed_again(self, root, packed, tmp_path):
        data = folder_of(root, tmp_path / "cache", packed)
        with pytest.raises(ValueError, match="the train videos are read from shards already"):
            pack(data, tmp_path / "out")

    def test_a_folder_of_frames(self, tmp_path):
        class Frames(VideoDataModule):
            def entries(self, split: str) -> tuple[list[Entry], tuple[str, ...]]:
                return [Entry("frames", fps=25.0)], ()

        (tmp_path / "root" / "frames").mkdir(parents=True)
        for number in (1, 2):
            Image.new("RGB", (16, 16)).save(tmp_path / "root" / "frames" / f"{number}.png")
        out = pack(Frames(tmp_path / "root", cache_dir=tmp_path / "cache"), tmp_path / "out")
        assert "images are not packed: transcode them" in table(out)[0]["error"]

    def test_a_shard_that_lost_its_end(self, root, packed, tmp_path):
        """It is found when the videos are listed, by name, and not by a crash in an epoch."""
        copied = tmp_path / "copied"
        (copied / "tars").mkdir(parents=True)
        (copied / f"{TABLE}.parquet").write_bytes((packed / f"{TABLE}.parquet").read_bytes())
        for name, content in tars(packed).items():
            (copied / "tars" / name).write_bytes(content[:3000] if name[8] == "0" else content)
        data = folder_of(root, tmp_path / "cache", copied)
        data.prepare_data()
        with pytest.raises(ValueError, match=r"some\.0\.mp4: the shard .* ends at byte 3000"):
            data.manifest("train")

    def test_a_video_that_shrank_since_it_was_listed(self, tmp_path, monkeypatch):
        file = write_video(tmp_path / "root" / "a.mp4", numbered_frames(9))
        size = file.stat().st_size
        monkeypatch.setattr(shards.Place, "stat", lambda self: (size + 4096, 0))
        place = shards.Place(file)
        with (
            tarfile.open(tmp_path / "x.tar", "w") as shard,
            pytest.raises(OSError, match=r"cannot pack .*a\.mp4: unexpected end of data"),
        ):
            shards._add(shard, 0, place)

    def test_a_size_of_none(self):
        with pytest.raises(ValueError, match="shard_size=0"):
            ShardJob(shard_size=0)


def test_a_row_has_the_places_of_its_bytes_and_not_of_its_neighbours(packed):
    """Members do not overlap, and headers lie between them."""
    rows = [row for row in table(packed) if not row["error"]]
    for name in {row["file"] for row in rows}:
        own = [(row["offset"], row["size"]) for row in rows if row["file"] == name]
        starts, sizes = np.array(own).T
        assert (np.diff(starts) >= sizes[:-1] + 2 * tarfile.BLOCKSIZE).all()
