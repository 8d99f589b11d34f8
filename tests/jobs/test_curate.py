"""Curation: what is kept and why, killed and resumed, on one process and on two."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from torch import Tensor

from lightning_vssl import cli
from lightning_vssl.curation.classifier import FrameClassifier, TimmClassifier
from lightning_vssl.curation.summary import evenness
from lightning_vssl.curation.titles import ClassNames
from lightning_vssl.data.clips import UniformClips
from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.synthetic import OBJECTS, draw, labels
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.datamodules.video_folder import VideoFolder
from lightning_vssl.datamodules.videonet import VideoCandidates, VideoNet
from lightning_vssl.jobs.base import Job
from lightning_vssl.jobs.curate import CurateJob, FirstFrames
from tests.jobs.killed import one_is_killed, two_go_on
from tests.videos import frame_number, numbered_frames, write_video

RECIPE = Path(__file__).parents[2] / "recipes" / "jobs" / "curate.yaml"
SHARD = 3
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
GREY, RED, BLUE = (90, 90, 90), (220, 30, 30), (30, 30, 220)


class Colours(FrameClassifier):
    """Knows grey, red and blue: a stand-in for a classifier that is never wrong."""

    def __init__(self) -> None:
        super().__init__(size=16, crop=0.5)
        self.register_buffer("known", torch.tensor([GREY, RED, BLUE]).float())
        self.frames: list[int] = []

    @property
    def settings(self) -> dict[str, object]:
        return {"classifier": "colours"}

    def prepare(self, classes: ClassNames) -> None:
        assert classes.ids == ("grey", "red", "blue")

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.dtype == torch.uint8
        assert frames.shape[1:] == (3, 16, 16)
        self.frames.append(len(frames))
        return torch.cdist(frames.float().mean(dim=(2, 3)), self.known).argmin(dim=1)


CLASSES = "class,names\ngrey,grey|gray\nred,red thing|scarlet\nblue,blue\n"


def plain(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """A video of one colour a frame, 32 x 48; the border is red, and cut off."""
    out = np.empty((len(colours), 32, 48, 3), np.uint8)
    out[:] = RED
    out[:, 8:24, 16:32] = np.array(colours, np.uint8)[:, None, None]
    return out


def curated(root: Path, rows: str, classifier: FrameClassifier | None = None, **settings):
    """Runs the job over these rows of a CSV file; gives the rows of its file."""
    (root / "candidates.csv").write_text("path,title,class\n" + rows, "utf-8")
    (root / "classes.csv").write_text(CLASSES, "utf-8")
    data = VideoCandidates(
        root,
        table=root / "candidates.csv",
        classes=root / "classes.csv",
        cache_dir=root / "cache",
    )
    job = CurateJob(classifier or Colours(), shard_size=SHARD, **settings)
    Trainer(accelerator="cpu", devices=1, default_root_dir=root / "out", **QUIET).predict(job, data)
    return pq.read_table(root / "out" / "videonet.parquet").to_pylist()


class TestRules:
    def test_the_first_hundred_frames(self, tmp_path):
        """An object that first appears at frame 90 is kept, at 110 rejected."""
        starts = [0, 90, 99, 100, 110]
        for start in starts:
            shown = [GREY] * start + [RED] * (130 - start)
            write_video(tmp_path / f"{start}.mp4", plain(shown), fps=12)
        classifier = Colours()
        rows = curated(tmp_path, "".join(f"{s}.mp4,Scarlet {s},red\n" for s in starts), classifier)
        assert [row["kept"] for row in rows] == [True, True, True, False, False]
        assert [row["frame"] for row in rows] == [0, 90, 99, -1, -1]
        assert [row["seen"] for row in rows] == ["red", *["grey"] * 4]
        assert rows[4]["reason"] == "class"
        assert rows[4]["detail"] == "on none of 100 frames; most show grey"
        assert classifier.frames == [100] * 5

    @pytest.mark.parametrize(
        ("frames", "fps", "suffix", "kept"),
        [
            (99, 10, "mp4", False),  # 9.9 s
            (100, 10, "mp4", True),  # 10.0 s
            (299, 30, "mp4", False),
            (300, 30, "mp4", True),
            (299, 30, "mkv", False),
            (300, 30, "mkv", True),  # whole milliseconds in the file
            (240, 24, "mkv", True),
            (100, 10, "avi", True),
            (300, 29.97, "mp4", True),
            (299, 29.97, "mp4", False),
        ],
    )
    def test_ten_seconds(self, tmp_path, frames, fps, suffix, kept):
        codec = "mpeg4" if suffix == "avi" else "libx264"
        write_video(tmp_path / f"a.{suffix}", plain([RED] * frames), fps, codec)
        (row,) = curated(tmp_path, f"a.{suffix},red thing,red\n")
        assert (row["kept"], row["reason"]) == (kept, "" if kept else "short")
        assert abs(row["seconds"] - frames / fps) < 2e-3
        if not kept:
            assert row["detail"] == f"{row['seconds']:.3f} s of 10"
            assert row["frame"] == -1

    def test_the_order_of_the_reasons(self, tmp_path, monkeypatch):
        opened = []
        work = FirstFrames.__call__

        def notes(self, reader, span):
            opened.append(reader.path.name)
            return work(self, reader, span)

        monkeypatch.setattr(FirstFrames, "__call__", notes)
        write_video(tmp_path / "good.mp4", plain([RED] * 40), fps=4)
        write_video(tmp_path / "short.mp4", plain([RED] * 30), fps=4)
        (tmp_path / "broken.mp4").write_bytes(b"no video" * 99)
        files = ("good", "short", "broken", "absent")
        rows = curated(
            tmp_path,
            "".join(f"{name}.mp4,{title},red\n" for title in ("SCARLET!",) for name in files)
            + "".join(f"{name}.mp4,scarlets,grey\n" for name in files)
            + "good.mp4,so blue,blue\n",
        )
        reasons = ["", "short", "unreadable", "unreadable", *["title"] * 4, "class"]
        assert [row["reason"] for row in rows] == reasons
        assert [row["kept"] for row in rows] == [not reason for reason in reasons]
        assert rows[3]["detail"] == "missing"
        assert "cannot be opened as a video" in rows[2]["detail"]
        assert rows[4]["detail"] == "no name of grey in it"
        assert opened == ["good.mp4", "good.mp4"]  # nothing else is decoded

    def test_an_odd_title_comes_back_as_it_was(self, tmp_path):
        title = "ＳＣＡＲＬＥＴ 🦜 «ré­d» \u202e\u0301"  # noqa: RUF001
        write_video(tmp_path / "a.mp4", plain([RED] * 40), fps=4)
        (row,) = curated(tmp_path, f"a.mp4,{title},red\n")
        assert row["kept"]
        assert row["title"] == title

    def test_a_video_of_fewer_frames(self, tmp_path):
        write_video(tmp_path / "a.mp4", plain([RED] * 11), fps=1)
        classifier = Colours()
        rows = curated(tmp_path, "a.mp4,blue,blue\n", classifier)
        assert classifier.frames == [11]
        assert rows[0]["detail"] == "on none of 11 frames; most show red"

    def test_only_its_span(self, tmp_path):
        """A candidate of seconds 12 to 24: its frames are counted from there, its length too."""
        write_video(tmp_path / "a.mp4", plain([RED] * 120 + [BLUE] * 120), fps=10)
        (tmp_path / "spans.csv").write_text(
            "path,title,class,start,end\n"
            "a.mp4,blue,blue,12,24\na.mp4,scarlet,red,13,24\na.mp4,blue,blue,14.5,\n"
            "a.mp4,blue,blue,11,15\na.mp4,blue,blue,1,23\n"
        )
        (tmp_path / "classes.csv").write_text(CLASSES)
        data = VideoCandidates(
            tmp_path,
            table=tmp_path / "spans.csv",
            classes=tmp_path / "classes.csv",
            cache_dir=tmp_path / "cache",
        )
        job = CurateJob(Colours(), shard_size=SHARD)
        out = tmp_path / "out"
        Trainer(accelerator="cpu", devices=1, default_root_dir=out, **QUIET).predict(job, data)
        rows = pq.read_table(out / "videonet.parquet").to_pylist()
        assert [row["reason"] for row in rows] == ["", "class", "short", "short", "class"]
        assert [round(row["seconds"], 3) for row in rows] == [12, 11, 9.5, 4, 22]
        net = VideoNet(tmp_path, manifest=out / "videonet.parquet")
        (entry,), classes = net.entries("train")
        assert (entry.path, entry.label, entry.start, entry.end) == ("a.mp4", 0, 12.0, 24.0)
        assert classes == ("blue", "red")

    def test_the_middle_square(self, tmp_path):
        write_video(tmp_path / "a.mp4", numbered_frames(60, 48, 64), fps=25)
        with VideoReader(tmp_path / "a.mp4") as reader:
            found = FirstFrames(7, 24, 1.0)(reader, (1.0, 9.0))["frames"]
            expected, _ = reader.read(
                np.arange(25, 32)[None], windows=np.array([[8, 0, 56, 48]]), size=(24, 24)
            )
            whole, _ = reader.read(np.arange(25, 32)[None])
        assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected[0])
        assert [frame_number(frame) for frame in whole[0]] == list(range(25, 32))


class TestSummaries:
    def test_counts_and_picture(self, tmp_path):
        write_video(tmp_path / "red.mp4", plain([RED] * 40), fps=4)
        write_video(tmp_path / "short.mp4", plain([RED] * 9), fps=4)
        curated(
            tmp_path,
            "red.mp4,scarlet,red\nred.mp4,blue,blue\nshort.mp4,red thing,red\n"
            "none.mp4,blue,blue\nshort.mp4,,grey\n",
        )
        assert (tmp_path / "out" / "counts.csv").read_text().splitlines() == [
            "class,name,candidates,kept,title,unreadable,short,class",
            "grey,grey,1,0,1,0,0,0",
            "red,red thing,2,1,0,0,1,0",
            "blue,blue,2,0,0,1,0,1",
        ]
        picture = matplotlib.image.imread(tmp_path / "out" / "balance.png")
        assert picture.shape[2] == 4
        assert picture[..., :3].std() > 0.05

    def test_evenness(self):
        assert evenness(np.array([5, 5, 5, 5])) == pytest.approx(1)
        assert evenness(np.array([9, 0, 0])) == 0
        assert evenness(np.array([0, 0])) == evenness(np.array([7])) == 0
        assert evenness(np.array([1, 1, 0, 0])) == pytest.approx(0.5)

    def test_they_are_made_anew_when_lost(self, tmp_path):
        write_video(tmp_path / "red.mp4", plain([RED] * 40), fps=4)
        curated(tmp_path, "red.mp4,scarlet,red\n")
        files = [tmp_path / "out" / name for name in ("counts.csv", "balance.png")]
        before = [file.read_bytes() for file in files]
        for file in files:
            file.unlink()
        curated(tmp_path, "red.mp4,scarlet,red\n")
        assert [file.read_bytes() for file in files] == before


class TestTimm:
    """The real path: a network of timm, weights from a file."""

    def network(self, seed: int = 0, num_classes: int = 3) -> torch.nn.Module:
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", num_classes=num_classes)

    def classes(self, count: int = 3) -> ClassNames:
        names = tuple(f"n{i}" for i in range(count))
        return ClassNames(names, tuple((name,) for name in names))

    @pytest.mark.parametrize("form", ["safetensors", "pth", "nested"])
    def test_it_says_what_the_network_says(self, tmp_path, form):
        network = self.network().eval()
        file = tmp_path / f"weights.{'pth' if form == 'nested' else form}"
        state = network.state_dict()
        if form == "safetensors":
            save_file(state, file)
        else:
            torch.save({"state_dict": state} if form == "nested" else state, file)
        torch.manual_seed(1)
        made = TimmClassifier("test_resnet", file, num_classes=3, size=40, frames_at_once=3)
        made.prepare(self.classes())
        frames = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8)
        with torch.no_grad():
            scores = network((frames.double() / 255 - 0.5).float() / 0.5)
        assert made(frames).tolist() == scores.argmax(1).tolist()
        assert str(made.settings["weights"]).startswith("sha256 ")

    def test_wrong_files(self, tmp_path):
        def made(file: Path) -> None:
            TimmClassifier("test_resnet", file, num_classes=3).prepare(self.classes())

        with pytest.raises(FileNotFoundError, match=r"no weights of the classifier at .*none.pth"):
            made(tmp_path / "none.pth")
        torch.save(self.network(num_classes=4).state_dict(), tmp_path / "four.pth")
        with pytest.raises(ValueError, match=r"four.pth do not fit test_resnet with 3 classes"):
            made(tmp_path / "four.pth")
        for name in ("text.pth", "text.safetensors"):
            (tmp_path / name).write_text("no weights at all")
            with pytest.raises(ValueError, match=name):
                made(tmp_path / name)
        with pytest.raises(ValueError, match="num_classes=3: the candidates' classes are 5"):
            TimmClassifier("test_resnet", num_classes=3).prepare(self.classes(5))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"network": "resnet5000"}, "timm has no such network; it has .*resnet50"),
            ({"network": "of my own"}, "timm has no such network"),
            ({"network": "test_resnet.never"}, "network='test_resnet.never'"),
            ({"size": 0}, "size=0"),
            ({"crop": 1.5}, "crop=1.5"),
            ({"num_classes": 0}, "num_classes=0"),
            ({"frames_at_once": 0}, "frames_at_once=0"),
        ],
    )
    def test_wrong_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            TimmClassifier(**{"network": "test_resnet", **settings})


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"min_seconds": -1.0}, {"shard_size": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        CurateJob(Colours(), **wrong)


def test_other_data_has_no_candidates(tmp_path):
    write_video(tmp_path / "a.mp4", plain([RED] * 4))
    data = VideoFolder(tmp_path, labels=False, cache_dir=tmp_path / "cache")
    trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match="VideoFolder has no candidates: curation takes"):
        trainer.predict(CurateJob(Colours()), data)


# --- whole, killed, resumed ---------------------------------------------------------------------

VIDEOS = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos, each a candidate for two classes of an untrained network."""
    folder = tmp_path_factory.mktemp("candidates")
    lines = ["path,title,class"]
    for i in range(VIDEOS):
        frames = numbered_frames(12 + i, 48 + 16 * (i % 2), 64, seed=i)
        write_video(folder / f"{i:02d}.mp4", frames, fps=1.3)
        for name in ("one", "two"):
            title = "nothing" if i == 5 and name == "two" else f"{name.title()} №{i}"
            lines.append(f"{i:02d}.mp4,{title},{name}")
    (folder / "03.mp4").write_bytes(b"no video" * 99)
    (folder / "candidates.csv").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "classes.csv").write_text("class,names\none,one\ntwo,two\n")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "predict",
        f"--config={RECIPE}",
        f"--data.root={root}",
        f"--data.table={root / 'candidates.csv'}",
        f"--data.classes={root / 'classes.csv'}",
        "--data.num_workers=0",
        f"--data.cache_dir={out.parent / 'cache'}",
        "--model.classifier.network=test_resnet",
        f"--model.classifier.weights={root / 'weights.safetensors'}",
        "--model.classifier.num_classes=2",
        "--model.classifier.size=32",
        f"--model.shard_size={SHARD}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        f"--trainer.default_root_dir={out}",
        *more,
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a job's folder but the configuration, which names the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("config")
    }


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    cli.main(command(root, out))
    return out / "seed0"


class Stopped(Exception):
    pass


class TestGoingOn:
    def test_the_whole_run(self, root, whole):
        rows = pq.read_table(whole / "videonet.parquet").to_pylist()
        assert [row["path"] for row in rows] == [f"{i // 2:02d}.mp4" for i in range(2 * VIDEOS)]
        reasons = [row["reason"] for row in rows]
        assert reasons[6:8] == ["unreadable"] * 2
        assert reasons[11] == "title"
        short = [i for i in range(2 * VIDEOS) if reasons[i] == "short"]
        assert short == [0, 1]  # 12 frames at 1.3 a second are 9.2 s, 13 are 10
        for first in (2, 4, 8, 12):  # of two classes, each frame shows one
            assert {"", "class"} >= set(reasons[first : first + 2])
            assert "" in reasons[first : first + 2]
        told = json.loads((whole / "job.json").read_text())
        assert (told["job"], told["videos"], told["frames"]) == ("CurateJob", 2 * VIDEOS, 100)
        assert told["weights"].startswith("sha256 ")
        names = {name for name in contents(whole) if not name.startswith("shards/")}
        assert names == {"videonet.parquet", "counts.csv", "balance.png", "job.json"}

    def test_a_training_run_takes_the_file(self, root, whole, tmp_path):
        data = VideoNet(
            root,
            manifest=whole / "videonet.parquet",
            clips=UniformClips(clips=1, frames=1),
            window=WholeFrame((16, 16)),
            batch_size=2,
            cache_dir=tmp_path,
        )
        data.prepare_data()
        data.setup("fit")
        rows = pq.read_table(whole / "videonet.parquet").to_pylist()
        kept = {row["path"] for row in rows if row["kept"]}  # some of them for both classes
        assert len(data.manifest("train")) == len(kept) > 3
        assert data.classes == ("one", "two")
        for batch in data.train_dataloader():
            assert batch["video"].shape == (2, 1, 1, 3, 16, 16)
            assert (batch["label"] >= 0).all()

    @pytest.mark.parametrize("rows", [0, 4, 13])
    def test_after_a_failure(self, root, whole, tmp_path, monkeypatch, rows):
        def stops(self, batch, batch_idx, step=Job.predict_step):
            if batch_idx == rows:
                raise Stopped
            return step(self, batch, batch_idx)

        words = command(root, tmp_path / "out")
        with monkeypatch.context() as patched:
            patched.setattr(Job, "predict_step", stops)
            with pytest.raises(Stopped):
                cli.main(words)
        found = contents(tmp_path / "out/seed0")
        assert len([name for name in found if name.startswith("shards/")]) == rows // SHARD
        assert "videonet.parquet" not in found
        cli.main(words)
        assert contents(tmp_path / "out/seed0") == contents(whole)

    def test_a_job_that_is_done(self, root, whole, tmp_path, monkeypatch, capsys):
        words = command(root, tmp_path / "out")
        cli.main(words)
        monkeypatch.setattr(Job, "predict_step", lambda *_: pytest.fail("nothing is left to do"))
        for lost in ("videonet.parquet", "counts.csv", "balance.png"):  # killed at the very end
            (tmp_path / "out/seed0" / lost).unlink()
            cli.main(words)
            assert contents(tmp_path / "out/seed0") == contents(whole)
        assert f"Done: {tmp_path}/out/seed0/videonet.parquet" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("--model.frames=99", r"frames was 100 and is 99"),
            ("--model.min_seconds=9", r"min_seconds was 10.0 and is 9.0"),
            ("--model.classifier.size=31", r"size was 32 and is 31"),
        ],
    )
    def test_other_settings_are_refused(self, root, whole, change, message):
        before = contents(whole)
        with pytest.raises(SystemExit, match=message):
            cli.main(command(root, whole.parent, change))
        assert contents(whole) == before

    def test_other_titles_are_refused(self, root, whole, tmp_path):
        text = (root / "candidates.csv").read_text("utf-8")
        (tmp_path / "c.csv").write_text(text.replace("One №0", "One №9"), "utf-8")
        with pytest.raises(SystemExit, match=r"candidates was \w+ and is"):
            cli.main(command(root, whole.parent, f"--data.table={tmp_path / 'c.csv'}"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("--model.classifier.weights=none.pth", "no weights of the classifier at none.pth"),
            ("--data.table=none.csv", "no table of candidates at none.csv"),
            ("--data.classes=null", r"row 1 \(00.mp4\): unknown class 'one'"),
            ("--model.classifier.num_classes=1000", "num_classes=1000: the candidates' classes"),
        ],
    )
    def test_what_is_wrong_is_said_before_any_video_is_opened(
        self, root, tmp_path, monkeypatch, change, message
    ):
        monkeypatch.setattr(
            VideoCandidates, "prepare_data", lambda _: pytest.fail("videos were listed")
        )
        with pytest.raises(SystemExit, match=message):
            cli.main(command(root, tmp_path / "out", change))


@pytest.mark.slow
@pytest.mark.ddp
def test_one_is_killed_and_two_go_on(root, whole, tmp_path):
    out = tmp_path / "out"
    before = one_is_killed(command(root, out), out / "seed0")
    two_go_on(command(root, out))
    assert contents(out / "seed0") == contents(whole)
    assert {path: path.stat().st_ino for path in before} == before  # not written anew


# --- does it find what is there? ----------------------------------------------------------------


@pytest.mark.slow
def test_precision_and_recall_with_false_titles(tmp_path, record_property):
    """The issue's claim: a classifier that knows the built-in objects, 30 % of the titles false.

    It has been trained on these very videos, so that the numbers are those of the rule and not of a
    classifier: trained on 300 others it gave a precision of 0.71 and a recall of 0.36.
    """
    count, frames, size = 40, 40, 64
    videos = [draw(0, i, "train", frames=frames, size=(size, size)).frames for i in range(count)]
    shown = [labels(0, i, "train")[1] for i in range(count)]
    rng = np.random.default_rng(0)
    told = np.array(shown)
    false = rng.permutation(count)[: round(0.3 * count)]
    told[false] = (told[false] + rng.integers(1, len(OBJECTS), len(false))) % len(OBJECTS)
    (tmp_path / "classes.csv").write_text(
        "class,names\n" + "".join(f"{name.lower()},{name}|a {name}\n" for name in OBJECTS)
    )
    lines = ["path,title,class"]
    for i, pixels in enumerate(videos):
        write_video(tmp_path / f"{i:02d}.mp4", pixels, fps=4, options={"crf": "18"})
        name = OBJECTS[told[i]]
        lines.append(f"{i:02d}.mp4,A video of the {name.upper()} ({i}),{name.lower()}")
    (tmp_path / "candidates.csv").write_text("\n".join(lines) + "\n")

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=len(OBJECTS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    pixels = torch.from_numpy(np.concatenate([video[::3] for video in videos]))
    pixels = torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2).float(), 2)
    targets = torch.tensor(shown).repeat_interleave(len(videos[0][::3]))
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows = torch.randint(len(pixels), (48,), generator=draws)
        scores = network(pixels[rows] / 127.5 - 1)
        loss = torch.nn.functional.cross_entropy(scores, targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")

    more = [f"--model.classifier.num_classes={len(OBJECTS)}", "--model.classifier.size=32"]
    more += ["--model.classifier.crop=1"]
    cli.main(command(tmp_path, tmp_path / "out", *more))
    rows = pq.read_table(tmp_path / "out/seed0/videonet.parquet").to_pylist()
    kept = np.array([row["kept"] for row in rows])
    true = told == np.array(shown)
    precision, recall = (kept & true).sum() / kept.sum(), (kept & true).sum() / true.sum()
    print(f"precision {precision:.3f} (without curation {true.mean():.3f}), recall {recall:.3f}")
    assert {row["reason"] for row in rows} <= {"", "class"}
    assert recall >= 0.95
    assert precision >= 0.9
