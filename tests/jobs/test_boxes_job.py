"""The job that makes a box file: whole, killed and resumed, on one process and on two."""

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_vssl import cli
from lightning_vssl.data.boxes import SCALE, BoxFile
from lightning_vssl.data.clips import RandomClip
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.whole import ShardSampler, shards_of
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.video_folder import VideoFolder
from lightning_vssl.jobs.base import Job
from lightning_vssl.jobs.boxes import BoxFrames, BoxJob
from lightning_vssl.proposals.base import Proposals
from lightning_vssl.proposals.segments import Slic
from lightning_vssl.run import RunCLI
from tests.jobs.killed import SECONDS, one_is_killed
from tests.videos import numbered_frames, write_numbered, write_video

RECIPE = Path(__file__).parents[2] / "recipes" / "jobs" / "boxes.yaml"
VIDEOS = 11
SHARD = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        frames = numbered_frames(30 + 5 * i, 48 + 16 * (i % 2), 64, seed=i)
        write_video(folder / "some" / f"{i:02d}.mp4", frames)
    (folder / "some" / "07.mp4").write_bytes(b"no video" * 99)
    return folder


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "predict",
        f"--config={RECIPE}",
        "--data=VideoFolder",
        f"--data.root={root}",
        "--data.labels=false",
        "--data.num_workers=0",
        "--data.max_unreadable=0.2",
        f"--data.cache_dir={out.parent / 'cache'}",
        "--model.proposals.segments=4",
        "--model.proposals.short_side=32",
        "--model.fps=5",
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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a job's folder but the configuration, which names the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("config")
    }


def test_the_recipes_other_sources(tmp_path, monkeypatch):
    """Taking the detector kept the short side of the recipe's superpixels, 128 for its own 256."""

    class Parsed(RunCLI):
        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    rows = re.findall(r"^#.*?(--model\.proposals.*?)  +\((.+)\)$", RECIPE.read_text(), re.MULTILINE)
    assert [name for _, name in rows] == ["16 segments", "objects", "persons"]
    segments, objects, persons = (words.removesuffix(" behind that").split() for words, _ in rows)
    monkeypatch.chdir(tmp_path)
    for words, name, expected in (
        (segments, "Felzenszwalb", {"segments": 16, "short_side": 128}),
        (objects, "Detector", {"classes": "all", "short_side": 256}),
        ([*objects, *persons], "Detector", {"classes": "person", "short_side": 256}),
    ):
        found = Parsed(["predict", "--config", str(RECIPE), *words]).config.predict
        proposals = found.model.init_args.proposals
        assert proposals.class_path.rpartition(".")[2] == name
        assert {key: proposals.init_args[key] for key in expected} == expected


class TestAlone:
    def test_its_file_holds_what_the_proposals_say(self, whole, root):
        boxes = BoxFile(whole / "boxes.parquet", cache_dir=whole.parent / "cache")
        assert (boxes.source, boxes.limit, boxes.videos) == ("slic", 4, VIDEOS - 1)
        assert boxes.parameters["fps"] == 5
        propose = Slic(segments=4, short_side=32)
        table = pq.read_table(whole / "boxes.parquet")
        assert table.column("path").to_pylist() == [f"some/{i:02d}.mp4" for i in range(VIDEOS)]
        for i in (0, 5):
            with VideoReader(root / "some" / f"{i:02d}.mp4") as reader:
                size = (32, 43) if i % 2 == 0 else (32, 32)
                count = round(5 * (30 + 5 * i) / 25)
                shown = [int((k + 0.5) * (30 + 5 * i) / count + 1e-6) for k in range(count)]
                pixels, _ = reader.read(np.array([shown]), size=size)
                seconds = reader.times[shown]
            assert np.allclose(table.column("time")[i].as_py(), seconds, atol=1e-5)
            expected = propose(torch.from_numpy(pixels[0]).permute(0, 3, 1, 2)).numpy()
            found = boxes.for_frames(f"some/{i:02d}.mp4", seconds[None])[0]
            assert np.allclose(found, expected, atol=1 / SCALE, equal_nan=True)

    def test_a_broken_video_is_recorded(self, whole):
        table = pq.read_table(whole / "boxes.parquet")
        errors = table.column("error").to_pylist()
        assert [bool(error) for error in errors] == [i == 7 for i in range(VIDEOS)]
        assert "cannot be opened as a video" in errors[7]

    def test_what_lies_in_its_folder(self, whole):
        shards = ["000-000000003", "003-000000006", "006-000000009", "009-000000011"]
        names = [f"shards/000000{name}.parquet" for name in shards]
        assert sorted(contents(whole)) == ["boxes.parquet", "job.json", *names]
        told = json.loads((whole / "job.json").read_text())
        assert (told["job"], told["videos"], told["segments"]) == ("BoxJob", VIDEOS, 4)

    def test_a_training_run_takes_the_file(self, whole, root, tmp_path):
        data = VideoFolder(
            root,
            labels=False,
            clips=RandomClip(4),
            window=WholeFrame((32, 32)),
            batch_size=5,
            boxes=whole / "boxes.parquet",
            max_unreadable=0.2,
            cache_dir=tmp_path,
        )
        data.prepare_data()
        data.setup("fit")
        for batch in data.train_dataloader():
            assert batch["boxes"].shape == (5, 1, 4, 4, 4)
            assert torch.isfinite(batch["boxes"][:, :, :, 0]).all()

    def test_a_video_that_breaks_half_way(self, root, tmp_path, monkeypatch, caplog):
        read = VideoReader.read

        def breaks(self, indices, **settings):
            if self.path.name == "02.mp4":
                raise UnreadableVideo(self.path, "frame 9 does not decode")
            return read(self, indices, **settings)

        monkeypatch.setattr(VideoReader, "read", breaks)
        with caplog.at_level(logging.WARNING):
            cli.main(command(root, tmp_path / "out"))
        assert f"cannot read {root}/some/02.mp4: frame 9 does not decode" in caplog.text
        assert f"2 of {VIDEOS} videos could not be read" in caplog.text
        errors = pq.read_table(tmp_path / "out/seed0/boxes.parquet").column("error").to_pylist()
        assert [i for i, error in enumerate(errors) if error] == [2, 7]

    def test_any_other_error_names_the_video(self, root, tmp_path, monkeypatch):
        def fails(*args: object, **settings: object) -> None:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(VideoReader, "read", fails)
        with pytest.raises(RuntimeError, match="out of luck") as caught:
            cli.main(command(root, tmp_path / "out"))
        assert any("00.mp4" in note for note in caught.value.__notes__)

    def test_nothing_is_kept_in_memory(self, root, tmp_path):
        job = BoxJob(Slic(segments=4, short_side=32), fps=1.0, shard_size=5)
        data = VideoFolder(root, labels=False, max_unreadable=0.2, cache_dir=tmp_path / "cache")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path / "out", **quiet)
        assert not trainer.predict(job, data, return_predictions=True)
        assert (tmp_path / "out" / "boxes.parquet").is_file()


class Stopped(Exception):
    pass


class TestGoingOn:
    @pytest.mark.parametrize("videos", [0, 2, 3, 7, 10])
    def test_after_a_failure(self, root, whole, tmp_path, monkeypatch, videos):
        def stops(self, batch, batch_idx, step=Job.predict_step):
            if batch_idx == videos:
                raise Stopped
            return step(self, batch, batch_idx)

        words = command(root, tmp_path / "out")
        with monkeypatch.context() as patched:
            patched.setattr(Job, "predict_step", stops)
            with pytest.raises(Stopped):
                cli.main(words)
        found = contents(tmp_path / "out/seed0")
        assert len([name for name in found if name.startswith("shards/")]) == videos // SHARD
        assert "boxes.parquet" not in found
        steps = []

        def counts(self, batch, batch_idx, step=Job.predict_step):
            steps.append(batch["row"])
            return step(self, batch, batch_idx)

        monkeypatch.setattr(Job, "predict_step", counts)
        cli.main(words)
        assert contents(tmp_path / "out/seed0") == contents(whole)
        assert steps == list(range(videos // SHARD * SHARD, VIDEOS))

    def test_a_job_that_is_done(self, root, whole, tmp_path, monkeypatch, capsys):
        words = command(root, tmp_path / "out")
        cli.main(words)
        before = contents(tmp_path / "out/seed0")
        monkeypatch.setattr(Job, "predict_step", lambda *_: pytest.fail("nothing is left to do"))
        cli.main(words)
        assert f"Done: {tmp_path}/out/seed0/boxes.parquet" in capsys.readouterr().out
        (tmp_path / "out/seed0/boxes.parquet").unlink()  # killed before it was joined
        (tmp_path / "out/seed0/.boxes.parquet.x.tmp").touch()
        (tmp_path / "out/seed0/shards/.y.tmp").touch()
        cli.main(words)
        assert contents(tmp_path / "out/seed0") == before == contents(whole)

    def test_a_run_cut_short_says_so(self, root, tmp_path, capsys, caplog):
        words = command(root, tmp_path / "out", "--trainer.limit_predict_batches=4")
        with caplog.at_level(logging.WARNING):
            cli.main(words)
        assert "1 videos of a shard cut short are not kept" in caplog.text
        assert "is not complete: the same command goes on" in capsys.readouterr().out
        assert not (tmp_path / "out/seed0/boxes.parquet").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("--model.fps=6", r"fps was 5.0 and is 6.0"),
            ("--model.shard_size=4", r"shard_size was 3 and is 4"),
            ("--model.proposals=Felzenszwalb", r"source was slic and is felzenszwalb"),
        ],
    )
    def test_other_settings_are_refused(self, root, whole, change, message, capsys):
        before = contents(whole)
        with pytest.raises(SystemExit, match=message):
            cli.main(command(root, whole.parent, change))
        assert contents(whole) == before

    def test_another_list_is_refused(self, root, whole, tmp_path):
        more = tmp_path / "more"
        for file in (root / "some").iterdir():
            (more / "some").mkdir(parents=True, exist_ok=True)
            (more / "some" / file.name).symlink_to(file)
        write_numbered(more / "some" / "extra.mp4")
        with pytest.raises(SystemExit, match=r"videos was 11 and is 12; list was"):
            cli.main(command(more, whole.parent))


class TestTwoProcesses:
    @pytest.mark.slow
    @pytest.mark.ddp
    def test_one_is_killed_and_two_go_on(self, root, whole, tmp_path):
        out = tmp_path / "out"
        before = one_is_killed(command(root, out), out / "seed0")
        two = ["--trainer.devices=2", "--trainer.strategy=ddp"]  # the second started by Lightning
        words = [sys.executable, "-m", "lightning_vssl", *command(root, out, *two)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[2])}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(words, env=environment, timeout=SECONDS, check=False, **pipe)
        assert done.returncode == 0, done.stdout
        until = time.monotonic() + 20  # the other process may be the last
        while not (out / "seed0/boxes.parquet").is_file() and time.monotonic() < until:
            time.sleep(0.05)
        assert contents(out / "seed0") == contents(whole)
        assert {path: path.stat().st_ino for path in before} == before  # not written anew

    @pytest.mark.parametrize("ranks", [1, 2, 3, 7])
    def test_shards_are_dealt_once(self, ranks):
        shards = shards_of(20, 3)
        assert shards[-1] == (18, 20)
        dealt = [list(ShardSampler(shards, ranks=ranks, rank=rank)) for rank in range(ranks)]
        assert sorted(itertools.chain(*dealt)) == list(range(20))
        for rank, rows in enumerate(dealt):
            assert len(ShardSampler(shards, ranks=ranks, rank=rank)) == len(rows)

    def test_a_rank_may_have_nothing_to_do(self):
        sampler = ShardSampler([(0, 5)], ranks=3, rank=2)
        assert len(sampler) == 0
        assert list(sampler) == []

    def test_what_rank_0_refuses_all_ranks_refuse(self, root, tmp_path):
        job = BoxJob(Slic())
        job.trainer = SimpleNamespace(  # type: ignore[assignment]
            is_global_zero=False,
            strategy=SimpleNamespace(broadcast=lambda _: "another job's folder"),
        )
        with pytest.raises(ValueError, match="another job's folder"):
            job.video_loader(SimpleNamespace(), 0, 2)  # type: ignore[arg-type]


class Bright(nn.Module, Proposals):
    """Boxes the left part of a frame, as wide as it is bright; runs where detectors run."""

    short_side = 20

    @property
    def limit(self) -> int:
        return 1

    @property
    def source(self) -> str:
        return "bright"

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.dtype == torch.uint8
        assert min(frames.shape[2:]) == 20
        share = frames.float().mean(dim=(1, 2, 3)) / 255
        zero, one = torch.zeros_like(share), torch.ones_like(share)
        return torch.stack([zero, zero, share, one], dim=1)[:, None]


def test_a_detector_runs_on_the_accelerator(root, tmp_path):
    job = BoxJob(Bright(), fps=5.0, shard_size=4)
    data = VideoFolder(root, labels=False, max_unreadable=0.2, cache_dir=tmp_path / "cache")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path / "out", **quiet).predict(
        job, data
    )
    boxes = BoxFile(tmp_path / "out" / "boxes.parquet", cache_dir=tmp_path)
    assert (boxes.source, boxes.limit) == ("bright", 1)
    with VideoReader(root / "some" / "04.mp4") as reader:
        pixels, _ = reader.read(np.array([[2, 27]]), size=(20, 27))
        found = boxes.for_frames("some/04.mp4", reader.times[[[2, 27]]])
    bright = pixels[0].mean(axis=(1, 2, 3)) / 255
    assert np.allclose(found[0, :, 0, 2], bright, atol=1e-3)


class TestFrames:
    @pytest.mark.parametrize(
        ("frames", "rate", "fps", "expected"),
        [
            (20, 10, 2.0, [2, 7, 12, 17]),
            (3, 10, 2.0, [1]),  # shorter than a tick: its middle
            (1, 25, 2.0, [0]),
            (8, 4, 50.0, list(range(8))),  # no frame twice
        ],
    )
    def test_middles_of_equal_parts(self, frames, rate, fps, expected):
        choose = BoxFrames(fps, 600, 128, None)
        found = choose.frames(np.arange(frames) / rate, rate, (0.0, float("inf")))
        assert found.tolist() == expected

    def test_any_frame_is_near_a_boxed_one(self):
        times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, size=400))
        times -= times[0]
        found = BoxFrames(2.0, 600, 128, None).frames(times, 25, (0.0, float("inf")))
        distance = np.abs(times[:, None] - times[found]).min(axis=1)
        assert distance.max() < 0.25 + 0.06

    def test_a_long_video_is_boxed_at_a_lower_rate(self):
        found = BoxFrames(2.0, 10, 128, None).frames(np.arange(5000) / 25, 25, (0.0, 1e9))
        assert found.tolist() == list(range(250, 5000, 500))

    def test_only_the_span_is_boxed(self):
        choose = BoxFrames(1.0, 600, 128, None)
        found = choose.frames(np.arange(100) / 10, 10, (2.0, 4.0))
        assert found.tolist() == [25, 35]
        assert len(choose.frames(np.arange(100) / 10, 10, (20.0, 30.0))) == 0


@pytest.mark.parametrize(
    "wrong", [{"split": "all"}, {"shard_size": 0}, {"fps": 0.0}, {"max_frames": 0}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        BoxJob(Slic(), **wrong)
