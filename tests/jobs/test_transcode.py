"""The job that encodes videos once more: what comes out, and that a killed run goes on."""

import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from lightning_vssl import cli
from lightning_vssl.data.clips import RandomClip
from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.base import VideoDataModule
from lightning_vssl.datamodules.video_folder import VideoFolder
from lightning_vssl.jobs import transcode
from lightning_vssl.jobs.base import Job
from lightning_vssl.jobs.transcode import TranscodeJob, black_bars, report, thinned
from tests.evaluation.small import trainer
from tests.videos import frame_number, numbered_frames, write_video

RECIPE = Path(__file__).parents[2] / "recipes" / "jobs" / "transcode.yaml"
VIDEOS = 7
SHARD = 3


def film(number: int) -> np.ndarray:
    return numbered_frames(30 + 3 * number, 64 + 16 * (number % 2), 96, seed=number)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        path = folder / f"class{i % 2}" / f"{i}.{('mp4', 'avi')[i % 2]}"
        write_video(path, film(i), (25, 10)[i % 2], ("libx264", "mpeg4")[i % 2], gop=250)
    (folder / "class0" / "4.mp4").write_bytes(b"no video" * 99)
    return folder


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "predict",
        f"--config={RECIPE}",
        "--data=VideoFolder",
        f"--data.root={root}",
        "--data.num_workers=0",
        "--data.max_unreadable=0.2",
        f"--data.cache_dir={out.parent / 'cache'}",
        "--model.short_side=32",
        "--model.gop=5",
        "--model.crf=12",
        f"--model.shard_size={SHARD}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        f"--trainer.default_root_dir={out}",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    cli.main(command(root, out))
    return out / "seed0"


def rows(folder: Path) -> list[dict[str, object]]:
    """The table, without the times that reading took."""
    table = pq.read_table(folder / "videos.parquet")
    return table.drop_columns(["clip_ms_before", "clip_ms_after"]).to_pylist()


def videos(folder: Path) -> dict[str, bytes]:
    found = (folder / "videos").rglob("*")
    return {str(f.relative_to(folder)): f.read_bytes() for f in found if f.is_file()}


class TestWhatComesOut:
    def test_a_file_for_each_video_that_can_be_read(self, root, whole):
        made = rows(whole)
        assert [row["path"] for row in made] == sorted(
            str(f.relative_to(root)) for f in root.rglob("*.*")
        )
        broken = [row for row in made if row["error"]]
        assert [row["path"] for row in broken] == ["class0/4.mp4"]
        assert "cannot be opened" in broken[0]["error"]
        assert set(videos(whole)) == {row["file"] for row in made if not row["error"]}
        for row in made:
            if not row["error"]:
                assert row["size"] == (whole / row["file"]).stat().st_size
                assert row["bytes_before"] == (root / row["path"]).stat().st_size

    def test_every_frame_at_its_time(self, root, whole):
        for row in rows(whole):
            if row["error"]:
                continue
            number = int(Path(row["path"]).stem)
            with VideoReader(root / row["path"]) as a, VideoReader(whole / row["file"]) as b:
                assert a.info.frames == b.info.frames == row["frames"] == 30 + 3 * number
                assert np.abs(a.times - b.times).max() < 1e-6
                size = (32, 48) if number % 2 == 0 else (32, 38)
                assert (b.info.height, b.info.width) == (row["height"], row["width"]) == size
                indices = np.arange(a.info.frames)[None]
                before, after = (r.read(indices, size=size)[0][0].astype(float) for r in (a, b))
            assert [frame_number(f) for f in after] == list(range(len(after)))
            assert 10 * np.log10(255**2 / np.square(before - after).mean()) > 30

    def test_keyframes_no_b_frames_no_sound(self, whole):
        for name in videos(whole):
            with av.open(str(whole / name)) as file:
                assert [stream.type for stream in file.streams] == ["video"]
                packets = [p for p in file.demux(video=0) if p.size]
                assert all(p.pts == p.dts for p in packets)
                keys = np.flatnonzero([p.is_keyframe for p in packets])
                assert np.diff([*keys, len(packets)]).max() <= 5

    def test_the_report(self, root, whole):
        said = json.loads((whole / "report.json").read_text())
        good = [row for row in rows(whole) if not row["error"]]
        table = pq.read_table(whole / "videos.parquet").to_pylist()
        assert (said["videos"], said["failed"]) == (VIDEOS, 1)
        assert said["bytes_before"] == sum((root / r["path"]).stat().st_size for r in good)
        assert said["bytes_after"] == sum(len(content) for content in videos(whole).values())
        assert said["bytes_ratio"] == said["bytes_after"] / said["bytes_before"]
        for when in ("before", "after"):
            spent = [r[f"clip_ms_{when}"] for r in table if not r["error"]]
            assert min(spent) > 0
            found = said[f"clips_per_cpu_second_{when}"]
            assert found == pytest.approx(1e3 * len(spent) / sum(spent))

    def test_nothing_that_can_be_read(self, whole):
        table = pq.read_table(whole / "videos.parquet")
        nothing = report(table.filter([bool(e) for e in table.column("error").to_pylist()]))
        assert (nothing["failed"], nothing["clips_ratio"], nothing["bytes_ratio"]) == (1, 0, 0)


class TestDataModule:
    def batches(self, root: Path, cache: Path, store: Path | None) -> list[dict[str, object]]:
        data = VideoFolder(
            root,
            clips=RandomClip(frames=4, stride=2),
            window=WholeFrame((32, 40)),
            batch_size=3,
            store=store,
            cache_dir=cache,
            max_unreadable=0.2,
        )
        data.prepare_data()
        data.setup("fit")
        return list(data.train_dataloader())

    def test_the_same_samples_from_the_new_files(self, root, whole, tmp_path):
        """Labels, order, draws and times are those of the originals; pixels are nearly theirs."""
        here, there = (
            self.batches(root, tmp_path / "cache", store) for store in (None, whole.parent)
        )
        assert len(here) == len(there) == 2
        for one, other in zip(here, there, strict=True):
            assert set(one) == set(other)
            for name in ("label", "index", "key", "replaced"):
                assert one[name].equal(other[name])
            assert (one["time"] - other["time"]).abs().max() < 1e-6
            gap = one["video"].double() - other["video"].double()
            assert 0 < gap.square().mean() < 100

    def test_what_the_store_lacks_is_said(self, root, whole, tmp_path, caplog):
        self.batches(root, tmp_path / "cache", whole)
        said = "1 of 7 training videos are not in the store"
        assert caplog.text.count(said) == 1
        assert "read where they lie: class0/4.mp4" in caplog.text


class Spans(VideoDataModule):
    """Three rows of two videos."""

    def entries(self, split: str) -> tuple[list[Entry], tuple[str, ...]]:
        names = (("class0/0.mp4", 0.0, 0.4), ("class1/1.avi", 0.5, 2.0), ("class0/0.mp4", 0.6, 1.0))
        return [Entry(name, -1, start, end) for name, start, end in names], ()


class TestSettings:
    def run(self, data: VideoDataModule, out: Path, **settings: object) -> Path:
        job = TranscodeJob(short_side=32, preset="ultrafast", **settings)
        trainer(out, enable_progress_bar=False).predict(job, data)
        return out

    def test_spans_are_kept_and_videos_made_once(self, root, tmp_path):
        out = self.run(Spans(root, cache_dir=tmp_path / "cache"), tmp_path / "out")
        assert [row["path"] for row in rows(out)] == ["class0/0.mp4", "class1/1.avi"]
        for store in (None, out):
            data = Spans(root, cache_dir=tmp_path / "cache", store=store)
            data.prepare_data()
            listed = data.manifest("train")
            assert [listed.span(row) for row in range(3)] == [(0.0, 0.4), (0.5, 2.0), (0.6, 1.0)]
            assert (listed.place(2) is None) == (store is None)

    def test_black_bars_are_cut_off(self, tmp_path, caplog):
        frames = np.full((20, 64, 96, 3), 16, np.uint8)
        frames[:, 8:56, 10:90] = numbered_frames(20, 48, 80)
        frames[:, 8:56, 10:90] = np.maximum(frames[:, 8:56, 10:90], 60)
        write_video(tmp_path / "root" / "bars.mp4", frames)
        write_video(tmp_path / "root" / "none.mp4", numbered_frames(20, 64, 96))
        data = VideoFolder(tmp_path / "root", labels=False, cache_dir=tmp_path / "cache")
        out = self.run(data, tmp_path / "out", crop_bars=True)
        assert [row["cropped"] for row in rows(out)] == [True, False]
        assert (rows(out)[0]["height"], rows(out)[0]["width"]) == (32, 54)
        with VideoReader(out / "videos/bars.mp4") as reader:
            assert reader.read(np.arange(20)[None])[0].max(axis=(0, 1, 4)).min() > 40

    def test_a_lower_rate(self, root, tmp_path):
        data = Spans(root, cache_dir=tmp_path / "cache")
        out = self.run(data, tmp_path / "out", fps=12.5)
        with VideoReader(out / "videos/class0/0.mp4") as reader:
            assert np.allclose(reader.times, np.arange(15) / 12.5)
            shown = reader.read(np.arange(15)[None])[0][0]
        assert [frame_number(frame) for frame in shown] == list(range(0, 30, 2))
        with VideoReader(out / "videos/class1/1.avi".replace(".avi", ".mp4")) as reader:
            assert reader.info.frames == 33  # ten a second: all of them

    def test_another_codec(self, root, tmp_path):
        data = Spans(root, cache_dir=tmp_path / "cache")
        out = self.run(data, tmp_path / "out", codec="mpeg4", gop=5, quantiser=2)
        with VideoReader(root / "class0/0.mp4") as a, VideoReader(out / rows(out)[0]["file"]) as b:
            assert b.info.codec == "mpeg4"
            assert np.abs(a.times - b.times).max() < 1e-6
            found = b.read(np.arange(30)[None])[0][0]
        assert [frame_number(frame) for frame in found] == list(range(30))
        with av.open(str(out / rows(out)[0]["file"])) as file:
            packets = [p for p in file.demux(video=0) if p.size]
            assert all(p.pts == p.dts for p in packets)
            assert np.diff(np.flatnonzero([p.is_keyframe for p in packets])).max() <= 5

    def test_names_that_differ_in_their_ending_alone(self, tmp_path):
        for ending in ("mp4", "mkv"):
            write_video(tmp_path / "root" / f"a.{ending}", numbered_frames(4))
        data = VideoFolder(tmp_path / "root", labels=False, cache_dir=tmp_path / "cache")
        with pytest.raises(ValueError, match=r"1 files would hold several videos.*a\.mp4"):
            self.run(data, tmp_path / "out")

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"short_side": 8}, "short_side=8"),
            ({"gop": 0}, "gop=0"),
            ({"crf": 52}, "crf=52"),
            ({"quantiser": 0}, "quantiser=0"),
            ({"fps": 0.0}, r"fps=0\.0: above 0"),
            ({"codec": "libx265"}, "codec='libx265': choose libx264 or mpeg4"),
            ({"preset": "quick"}, "preset='quick': choose ultrafast"),
        ],
    )
    def test_refusals(self, settings, match):
        with pytest.raises(ValueError, match=match):
            TranscodeJob(**settings)

    def test_an_encoder_that_this_build_lacks(self, monkeypatch):
        def lacks(name, mode):
            raise av.codec.codec.UnknownCodecError(name)

        monkeypatch.setattr(av, "Codec", lacks)
        with pytest.raises(ValueError, match="codec='libx264': this build of PyAV has no such"):
            TranscodeJob()


class TestParts:
    def test_thinned_against_a_loop(self):
        rng = np.random.default_rng(0)
        for fps in (3.0, 7.5, 12.0):
            times = np.concatenate([[0.0], np.cumsum(rng.uniform(0.01, 0.09, 80))])
            chosen, shown = thinned(times, 80 / times[-1], fps)
            expected, due = [], []
            n = 0
            while n / fps <= times[-1] + 1e-6:
                frame = max(i for i, t in enumerate(times) if t <= n / fps + 1e-6)
                if frame not in expected:
                    expected.append(frame)
                    due.append(n / fps)
                n += 1
            assert chosen.tolist() == expected
            assert np.allclose(shown, due)

    def test_no_frame_is_repeated(self):
        times = np.array([0.0, 0.02, 0.04, 1.0, 1.02, 1.04])
        chosen, shown = thinned(times, 25.0, 10.0)
        assert chosen.tolist() == [0, 2, 3]
        assert np.allclose(shown, [0.0, 0.1, 1.0])

    def test_a_rate_that_is_low_enough(self):
        times = np.arange(10) / 25
        for fps in (None, 25.0, 30.0):
            chosen, shown = thinned(times, 25.0, fps)
            assert np.array_equal(chosen, np.arange(10))
            assert np.array_equal(shown, times)

    def test_a_dark_video_keeps_its_picture(self, tmp_path):
        frames = np.full((6, 64, 96, 3), 5, np.uint8)
        frames[:, 30:34, 40:44] = 200
        path = write_video(tmp_path / "a.mp4", frames)
        with VideoReader(path) as reader:
            assert black_bars(reader) == (0, 0, 96, 64)


class TestGoingOn:
    def test_a_run_that_was_killed_in_the_middle_of_a_file(
        self, root, whole, tmp_path, monkeypatch
    ):
        """What was encoded is not encoded again, and no part of a file is taken for one."""
        words, encode = command(root, tmp_path / "out"), transcode.encode_timed
        made = []

        def dies(path, frames, *settings):
            made.append(path)
            if len(made) == 5:
                path.write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            encode(path, frames, *settings)

        with monkeypatch.context() as patched:
            patched.setattr(transcode, "encode_timed", dies)
            process = get_context("fork").Process(target=cli.main, args=(words,))
            process.start()
            process.join(120)
        assert process.exitcode == -signal.SIGKILL
        out = tmp_path / "out/seed0"
        assert not (out / "videos.parquet").exists()
        assert len(list(out.glob("shards/0*.parquet"))) == 1
        left = videos(out)
        half = [name for name in left if name.endswith(".tmp")]
        assert [left.pop(name) for name in half] == [b"half of it"]
        assert left == {name: videos(whole)[name] for name in left}
        assert len(left) == 4
        before = {name: (out / name).stat().st_ino for name in left}
        steps: list[int] = []

        def counts(self, batch, batch_idx, step=Job.predict_step):
            steps.append(batch["row"])
            return step(self, batch, batch_idx)

        again: list[Path] = []
        monkeypatch.setattr(Job, "predict_step", counts)
        monkeypatch.setattr(
            transcode, "encode_timed", lambda *all: (again.append(all[0]), encode(*all))
        )
        cli.main(words)
        assert steps == list(range(SHARD, VIDEOS))  # the shard that was done is not looked at
        assert len(again) == 2
        assert {name: (out / name).stat().st_ino for name in before} == before
        assert videos(out) == videos(whole)
        assert rows(out) == rows(whole)

    def test_a_video_that_cannot_be_encoded_does_not_end_the_job(self, root, tmp_path, monkeypatch):
        """One in 240,000 would otherwise stop every run at the same place."""
        encode, calls = transcode.encode_timed, []

        def fails(path, frames, times, *settings):
            calls.append(path)
            if len(calls) == 1:
                raise av.error.ArgumentError(22, "Invalid argument")
            if len(calls) == 2:
                frames, times = list(frames)[:-1], times[:-1]
            encode(path, frames, times, *settings)

        monkeypatch.setattr(transcode, "encode_timed", fails)
        cli.main(command(root, tmp_path / "out"))
        out = tmp_path / "out/seed0"
        errors = [str(row["error"]) for row in rows(out) if row["path"] != "class0/4.mp4"]
        assert errors[0] == "libx264 cannot encode it (Invalid argument)"
        assert errors[1] == "what was encoded has 35 frames instead of 36"
        assert errors[2:] == [""] * 4
        assert set(videos(out)) == {row["file"] for row in rows(out) if not row["error"]}

    def test_a_full_disk_is_said(self, root, tmp_path, monkeypatch):
        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(transcode, "encode_timed", full)
        with pytest.raises(SystemExit, match="no space left on the disk"):
            cli.main(command(root, tmp_path / "out"))
        assert not videos(tmp_path / "out/seed0")

    def test_other_settings_are_refused(self, root, whole):
        before = videos(whole)
        with pytest.raises(SystemExit, match="gop was 5 and is 6"):
            cli.main(command(root, whole.parent, "--model.gop=6"))
        assert videos(whole) == before
