"""The job that makes a tube file: whole, killed and resumed, on one process and on two."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn

from lightning_vssl import cli
from lightning_vssl.data.clips import TrackedPair, TrackedSpeeds
from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.tubes import Tube, TubeFile, shrink_masks, tube_table, write_tubes
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.video_folder import VideoFolder
from lightning_vssl.jobs.base import Job
from lightning_vssl.jobs.track import TrackJob, usable_tubes
from lightning_vssl.jobs.tube_pictures import draw_strips, draw_tube
from lightning_vssl.tracking import PngMasks, Saliency, Tracker
from tests.jobs.killed import one_is_killed, two_go_on
from tests.videos import write_video

RECIPE = Path(__file__).parents[2] / "recipes" / "jobs" / "track.yaml"
VIDEOS = 11
SHARD = 3
BLACK, BROKEN, SHORT = 4, 7, 9
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Red(Saliency):
    """What is red."""

    short_side = 64

    @property
    def source(self) -> str:
        return "red"

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def __call__(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        assert video.startswith("some/")
        assert len(numbers) == len(frames)
        red, green, blue = frames.float().unbind(1)
        return ((red - blue > 60) & (green < 60)).float()


def moving(i: int) -> np.ndarray:
    """A red square to and fro over grey; video SHORT has it for a moment only, BLACK nothing."""
    frames = 60 if i == SHORT else 75 + 5 * i
    height, width = 48 + 16 * (i % 2), 64
    out = np.full((frames, height, width, 3), 0 if i == BLACK else 90, np.uint8)
    seen = {BLACK: range(0), SHORT: range(3, 12)}.get(i, range(frames))
    for t in seen:
        top, left = abs((t // 3 + 2 * i) % 40 - 20), 4 + abs((t // 2 + 3 * i) % 80 - 40)
        out[t, top : top + 18, left : left + 16] = (200, 0, 0)
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        write_video(folder / "some" / f"{i:02d}.mp4", moving(i), options={"crf": "4"})
    (folder / "some" / f"{BROKEN:02d}.mp4").write_bytes(b"no video" * 99)
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
        "--model.tracker.saliency=tests.jobs.test_track_job.Red",
        "--model.side=24",
        "--model.drawn=3",
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
    """Every file of a job's folder but the configuration, which names the folder.

    Of a drawn video its name alone: the encoder does not write the same bytes every time.
    """
    return {
        path.relative_to(folder).as_posix(): b"" if path.suffix == ".mp4" else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("config")
    }


def tubes_of(whole: Path) -> TubeFile:
    return TubeFile(whole / "tubes.parquet", cache_dir=whole.parent / "cache")


class TestAlone:
    def test_its_masks_are_the_red_pixels(self, whole):
        tubes = tubes_of(whole)
        assert (tubes.source, tubes.side, tubes.videos) == ("Red", 24, VIDEOS - 1)
        assert (tubes.parameters["fps"], tubes.parameters["gate"]) == (12.5, 0.3)
        table = pq.read_table(whole / "tubes.parquet").to_pylist()
        for i in (0, 3, 10):
            frames = moving(i)
            red = (frames[..., 0].astype(int) - frames[..., 2]) > 60
            name = f"some/{i:02d}.mp4"
            (row,) = [row for row in table if row["path"] == name]
            shown = np.round(np.array(row["time"]) * 25).astype(int)
            assert len(shown) == round(len(frames) / 2)
            assert set(np.diff(shown)) <= {1, 2, 3}
            found = tubes.masks(name, shown / 25)
            expected = shrink_masks(red[shown], 24)
            assert found.shape == expected.shape
            agree = (found & expected).sum() / (found | expected).sum()
            assert agree > 0.97  # the codec moves an edge here and there

    def test_an_all_black_video_has_no_object_and_is_not_missing(self, whole):
        tubes = tubes_of(whole)
        (row,) = tubes.rows([f"some/{BLACK:02d}.mp4"])
        assert row >= 0
        assert not tubes.tracked(int(row), np.arange(100) / 25).any()

    def test_a_broken_video_is_recorded(self, whole):
        errors = pq.read_table(whole / "tubes.parquet").column("error").to_pylist()
        assert [bool(error) for error in errors] == [i == BROKEN for i in range(VIDEOS)]
        assert "cannot be opened as a video" in errors[BROKEN]

    def test_it_says_how_many_tubes_can_be_used(self, whole):
        told = json.loads((whole / "usable.json").read_text())
        assert told == {
            "videos": VIDEOS,
            "usable": VIDEOS - 3,  # without the black, the broken and the short one
            "share": round((VIDEOS - 3) / VIDEOS, 4),
            "min_seconds": 2.4,
            "min_run": 1.28,
            "without_object": 1,
            "unreadable": 1,
        }

    def test_usable_is_what_training_draws_in_a_tube(self, tmp_path):
        # Videos of 10 s and 25 frames a second, every second one looked at; 0.01 s against ties.
        rng = np.random.default_rng(0)
        tubes, names = [], [f"{i}.mp4" for i in range(300)]
        for name in names:
            turns = rng.random(125) < rng.choice(
                [0.02, 0.05, 0.1]
            )  # where the object comes or goes
            seen = np.cumsum(turns) % 2 == rng.integers(2)
            tubes.append(
                Tube(
                    name, np.arange(125) / 12.5 + 0.01, seen[:, None, None] & np.ones((2, 3), bool)
                )
            )
        table = tube_table(
            [*tubes, Tube("broken.mp4", np.zeros(0), np.zeros((0, 2, 3), bool), "x")]
        )
        write_tubes(tmp_path / "tubes.parquet", table, source="drawn")
        file = TubeFile(tmp_path / "tubes.parquet", cache_dir=tmp_path)
        stored = np.arange(250) / 25
        both = []
        for clips, run in ((TrackedSpeeds(), 1.28), (TrackedPair(frames=1), 0.0)):
            inside = [
                clips.draw(stored, file.tracked(name, stored), np.random.default_rng(1))[1]
                for name in names
            ]
            usable = usable_tubes(table, min_seconds=2.4, min_run=run)
            assert usable[:-1].tolist() == inside
            assert not usable[-1]
            both.append(sum(inside))
        assert 50 < both[0] < both[1] - 10 < 280

    def test_some_are_drawn(self, whole, root):
        drawn = sorted((whole / "drawn").iterdir())
        assert [int(file.stem) for file in drawn] == [0, 5, 10]
        with VideoReader(drawn[0]) as reader, VideoReader(root / "some" / "00.mp4") as source:
            assert (reader.info.width, reader.info.height) == (64, 48)
            assert reader.info.duration == pytest.approx(source.info.duration, abs=0.1)
            frame = reader.read(np.array([[5]]))[0][0, 0].astype(int)
        assert (frame[..., 1] - frame[..., 0] > 80).any()  # a green outline
        with Image.open(whole / "tubes.png") as picture:
            assert picture.width > 6 * 128
        shards = ["000-000000003", "003-000000006", "006-000000009", "009-000000011"]
        names = [f"shards/000000{name}.parquet" for name in shards]
        made = ["tubes.parquet", "tubes.png", "usable.json", "job.json", *names]
        assert sorted(contents(whole)) == sorted([*made, *(f"drawn/{f.name}" for f in drawn)])

    def test_a_training_run_takes_the_file(self, whole, root, tmp_path):
        data = VideoFolder(
            root,
            labels=False,
            clips=TrackedPair(8, 2),
            window=WholeFrame((32, 32)),
            batch_size=5,
            tubes=whole / "tubes.parquet",
            max_unreadable=0.2,
            cache_dir=tmp_path,
        )
        data.prepare_data()
        data.setup("fit")
        seen = {}
        for batch in data.train_dataloader():
            assert batch["mask"].shape == (5, 2, 8, 24, 24)
            assert batch["mask"].flatten(2).any(2).tolist() == batch["tracked"].tolist()
            seen |= dict(zip(batch["index"].tolist(), batch["tracked"].tolist(), strict=True))
            red = (batch["video"][:, :, :, 0].int() - batch["video"][:, :, :, 2]) > 60
            area = red.float().mean((-2, -1)) - batch["mask"].float().mean((-2, -1))
            assert area[batch["tracked"]].abs().max() < 0.05
        fallback = [row for row, tracked in seen.items() if not all(tracked)]
        assert set(fallback) <= {BLACK, SHORT - 1}  # the broken one has left the list
        assert len(seen) - len(fallback) >= 7

    def test_a_network_works_on_the_accelerator(self, root, whole, tmp_path):
        class Net(nn.Module, Red):  # type: ignore[misc]
            forward = Red.__call__
            __call__ = nn.Module.__call__

        job = TrackJob(Tracker(Net()), side=24, shard_size=4, drawn=0)
        assert isinstance(job.network, Net)
        data = VideoFolder(root, labels=False, max_unreadable=0.2, cache_dir=tmp_path / "cache")
        trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path / "out", **QUIET)
        trainer.predict(job, data)
        assert job.work.tracker is None  # the workers read, and do not track
        columns = ["path", "time", "area", "masks", "error"]
        found, expected = (
            pq.read_table(folder / "tubes.parquet", columns=columns)
            for folder in (tmp_path / "out", whole)
        )
        assert found.to_pylist() == expected.to_pylist()

    def test_pictures_of_labels_from_the_disk(self, root, tmp_path):
        for i in (0, 1, 3):
            frames = moving(i)
            red = (frames[..., 0].astype(int) - frames[..., 2]) > 60
            (tmp_path / "masks" / f"{i:02d}").mkdir(parents=True)
            for t, mask in enumerate(red):
                picture = Image.fromarray(mask.astype(np.uint8) * 2, "P")
                picture.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0])  # as DAVIS: dark colours
                picture.save(tmp_path / "masks" / f"{i:02d}" / f"{t:05d}.png")
        saliency = PngMasks(
            str(tmp_path / "masks"), "{name}/{frame:05d}.png", labels=(2,), missing="lost"
        )
        job = TrackJob(Tracker(saliency), side=24, drawn=0)
        data = VideoFolder(root, labels=False, max_unreadable=0.2, cache_dir=tmp_path / "cache")
        trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path / "out", **QUIET)
        trainer.predict(job, data)
        assert job.work.tracker is job.tracker  # the workers track
        tubes = TubeFile(tmp_path / "out" / "tubes.parquet", cache_dir=tmp_path)
        assert json.loads((tmp_path / "out" / "usable.json").read_text())["usable"] == 3
        frames = moving(3)
        red = (frames[..., 0].astype(int) - frames[..., 2]) > 60
        found = tubes.masks("some/03.mp4", np.array([30, 60]) / 25)
        near = [shrink_masks(red[t : t + 3], 24) for t in (29, 59)]
        for mask, candidates in zip(found, near, strict=True):
            assert any(np.mean(mask != candidate) < 0.02 for candidate in candidates)


class Stopped(Exception):
    pass


class TestGoingOn:
    @pytest.mark.parametrize("videos", [0, 4, 6, 10])
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
        assert "tubes.parquet" not in found
        cli.main(words)
        assert contents(tmp_path / "out/seed0") == contents(whole)

    def test_killed_before_it_was_drawn(self, root, whole, tmp_path, monkeypatch, caplog):
        words = command(root, tmp_path / "out")
        with monkeypatch.context() as patched:
            patched.setattr(TrackJob, "_draw", lambda *_: None)
            cli.main(words)
        assert "tubes.png" not in contents(tmp_path / "out/seed0")
        monkeypatch.setattr(Job, "predict_step", lambda *_: pytest.fail("nothing is left to do"))
        with caplog.at_level(logging.INFO, "lightning.pytorch"):
            cli.main(words)
        assert (
            f"8 of {VIDEOS} videos (72.7 %) show an object for 2.4 seconds or more, 1.28 of"
            in caplog.text
        )
        assert contents(tmp_path / "out/seed0") == contents(whole)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("--model.side=20", r"side was 24 and is 20"),
            ("--model.tracker.gate=0.2", r"gate was 0.3 and is 0.2"),
            ("--model.tracker.saliency=MotionSaliency", r"saliency was Red and is MotionSaliency"),
        ],
    )
    def test_other_settings_are_refused(self, root, whole, change, message):
        before = contents(whole)
        with pytest.raises(SystemExit, match=message):
            cli.main(command(root, whole.parent, change))
        assert contents(whole) == before


@pytest.mark.slow
@pytest.mark.ddp
def test_one_is_killed_and_two_go_on(root, whole, tmp_path):
    out = tmp_path / "out"
    before = one_is_killed(command(root, out), out / "seed0")
    two_go_on(command(root, out))
    assert contents(out / "seed0") == contents(whole)
    assert {path: path.stat().st_ino for path in before} == before  # not written anew


class TestPictures:
    def test_the_object_is_bright_and_outlined(self):
        frames = np.full((2, 40, 60, 3), 200, np.uint8)
        masks = np.zeros((2, 20, 30), np.uint8)
        masks[0, 5:15, 10:20] = 1
        drawn = draw_tube(frames, masks)
        assert (drawn[0, 10:30, 20:40] == 200).all()
        assert (drawn[0, 9, 25] == (60, 220, 90)).all()
        assert (drawn[0, 0] == 80).all()
        assert (drawn[1] == 80).all()  # lost
        with pytest.raises(ValueError, match="2 frames and 1 masks"):
            draw_tube(frames, masks[:1])

    def test_strips(self):
        tall, wide = np.zeros((9, 80, 40, 3), np.uint8), np.zeros((3, 40, 80, 3), np.uint8)
        picture = draw_strips([tall, wide], ["a", "b"], columns=4, height=40)
        assert picture.size == (4 + 4 * 84, 4 + 2 * 60)


@pytest.mark.parametrize(
    "wrong",
    [{"split": "all"}, {"shard_size": 0}, {"fps": 0.0}, {"max_frames": 0}, {"side": 0},
     {"min_seconds": -1.0}, {"min_run": -1.0}, {"drawn": -1}],
)  # fmt: skip
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        TrackJob(Tracker(Red()), **wrong)
