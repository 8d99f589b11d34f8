"""What goes wrong for users, through the command line: one clear message each, no traceback."""

import csv
import errno
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from lightning_vssl import cli
from lightning_vssl.backbones import R3D18
from tests.videos import numbered_frames, write_video

BACKBONE = {
    "class_path": "lightning_vssl.backbones.resnet3d.R3D18",
    "init_args": {"width": 4, "depth": [1, 1, 1, 1]},
}
WINDOWS = "lightning_vssl.data.windows"
CLIPS = "lightning_vssl.data.clips"
PRETRAIN = {
    "trainer": {
        "default_root_dir": "runs/errors",
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {
        "class_path": "lightning_vssl.methods.ctp.CtP",
        "init_args": {
            "backbone": {**BACKBONE, "init_args": {**BACKBONE["init_args"], "last_stride": 1}},
            "augment": {"class_path": "lightning_vssl.augment.patches.CatchThePatch"},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
            "frames": 4,
            "hidden_channels": 8,
        },
    },
    "data": {
        "class_path": "lightning_vssl.datamodules.video_folder.VideoFolder",
        "init_args": {
            "root": "videos",
            "cache_dir": "cache",
            "clips": {"class_path": f"{CLIPS}.RandomClip", "init_args": {"frames": 4}},
            "window": {
                "class_path": f"{WINDOWS}.ScaleCrop",
                "init_args": {"size": 32, "short_sides": [32]},
            },
            "batch_size": 2,
        },
    },
}
RETRIEVAL = {
    **PRETRAIN,
    "model": {
        "class_path": "lightning_vssl.evaluation.retrieval.Retrieval",
        "init_args": {"backbone": BACKBONE, "weights": "weights.safetensors"},
    },
}
TRACKER = {
    "trainer": {**PRETRAIN["trainer"], "default_root_dir": "runs/tracker"},
    "model": {
        "class_path": "lightning_vssl.evaluation.tracking.SiamFC",
        "init_args": {
            "backbone": BACKBONE,
            "stage": "layer1",
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
            "search": {
                "class_path": "lightning_vssl.tracking.siamese.SiameseSearch",
                "init_args": {"exemplar": 31, "search": 63},
            },
        },
    },
    "data": {
        "class_path": "lightning_vssl.datamodules.tracking_pairs.TrackingPairs",
        "init_args": {
            "train": {
                "class_path": "lightning_vssl.datamodules.got10k.GOT10k",
                "init_args": {"root": "got10k"},
            },
            "exemplar": 31,
            "search": 63,
            "batch_size": 1,
        },
    },
}


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN))
    Path("retrieval.yaml").write_text(yaml.safe_dump(RETRIEVAL))
    Path("tracker.yaml").write_text(yaml.safe_dump(TRACKER))


def videos(*names, frames=8):
    return [
        write_video(Path("videos", name), numbered_frames(frames, seed=i))
        for i, name in enumerate(names)
    ]


def stopped(*args):
    """Runs a command that must stop; returns its one message."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(args))
    said = str(exit_.value.code)
    assert said.startswith("lightning-vssl: error: ")
    assert "Traceback" not in said
    return said


def fit(*args):
    return stopped("fit", "--config", "pretrain.yaml", *args)


def test_no_data():
    Path("videos").mkdir()
    assert "no videos below videos" in fit()


def test_no_such_folder():
    assert "no folder videos: check root" in fit()


def kinetics(rows):
    Path("videos/annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        with Path(f"videos/annotations/{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            writer.writerows([*row, 0, 10, split] for row in rows)
    return ["--data", "lightning_vssl.datamodules.kinetics.Kinetics"]


def test_csv_with_missing_files():
    videos("train/dancing/id00_000000_000010.mp4", "train/dancing/id01_000000_000010.mp4")
    said = fit(*kinetics([("dancing", f"id{i:02d}") for i in range(20)]))
    assert "18 of 20" in said
    assert all(f"id{i:02d}_000000_000010.mp4" in said for i in range(2, 12))
    assert "id12_000000_000010.mp4" not in said


def test_official_lists_that_are_not_there():
    Path("videos").mkdir()
    said = fit("--data", "lightning_vssl.datamodules.ucf101.UCF101")
    assert "classInd.txt" in said
    assert "crcv.ucf.edu" in said  # where they come from


def test_labels_that_do_not_match():
    videos("train/run/a.mp4", "train/run/b.mp4", "val/jump/c.mp4")
    said = fit("--data.train", "train", "--data.val", "val", "--trainer.limit_val_batches", "1")
    assert "classes that" in said
    assert "lacks: jump" in said


def test_clip_longer_than_its_video():
    videos("a.mp4", "b.mp4", frames=3)
    said = fit("--data.clips.short", "error")
    assert "the clip needs 4 frames and the video has 3" in said
    assert "set short to clamp or loop" in said


def test_batch_larger_than_the_data():
    videos("a.mp4", "b.mp4")
    assert "batch_size=4 is more than the 2 training videos" in fit("--data.batch_size", "4")


def test_weights_that_are_not_there():
    videos("run/a.mp4")
    said = stopped("test", "--config", "retrieval.yaml")
    assert "weights.safetensors" in said


def saved(state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, "weights.safetensors")


def test_weights_of_another_network():
    saved({"fc.weight": torch.zeros(3, 3)})
    said = stopped("test", "--config", "retrieval.yaml")
    assert "weights.safetensors" in said
    assert "stem.0.weight" in said or "missing" in said.lower()


def test_weights_that_match_by_half():
    state = R3D18(width=4, depth=(1, 1, 1, 1)).state_dict()
    saved({k: v for k, v in state.items() if not k.startswith("layer4")})
    assert len(load_file("weights.safetensors")) > 0
    assert "layer4" in stopped("test", "--config", "retrieval.yaml")


def test_weights_of_another_width():
    saved(R3D18(width=8, depth=(1, 1, 1, 1)).state_dict())
    said = stopped("test", "--config", "retrieval.yaml")
    assert "stem.0.weight" in said
    assert "8" in said


def test_misspelt_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["fit", "--config", "pretrain.yaml", "--model.hiden_channels", "8"])
    assert exit_.value.code == 2
    assert "CtP has no option 'hiden_channels'; did you mean 'hidden_channels'?" in (
        capsys.readouterr().err
    )


def broken_in_the_middle(path):
    """Overwrites the second half of a file that its index still describes."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = bytes(len(data) - middle)
    path.write_bytes(data)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_videos_that_break_in_the_middle(workers):
    # A matroska file has its index of frames in its front half: it opens, then breaks.
    for path in videos("a.mkv", "b.mkv", "c.mkv", "d.mkv", frames=60):
        broken_in_the_middle(path)
    frames = ["--data.clips.frames", "50", "--model.frames", "50"]
    said = fit(*frames, "--data.num_workers", workers)
    assert "of 4 videos could not be read" in said
    assert any(f"{name}.mkv" in said for name in "abcd")
    assert "max_unreadable" in said


def cut_off_frames():
    """A sequence of GOT-10k in train and in val, all frames of which but the first are cut off."""
    for split in ("train", "val"):
        folder = Path("got10k", split, "one")
        folder.mkdir(parents=True)
        (folder.parent / "list.txt").write_text("one\n")
        for number in range(4):
            frame = folder / f"{number + 1:08d}.jpg"
            Image.effect_noise((120, 90), 80).save(frame)
            frame.write_bytes(frame.read_bytes()[: None if number == 0 else -900])
        (folder / "groundtruth.txt").write_text("40,30,30,30\n" * 4)
        (folder / "cover.label").write_text("8\n" * 4)
        (folder / "absence.label").write_text("0\n" * 4)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_frames_that_are_cut_off_stop_a_test(workers):
    cut_off_frames()
    said = stopped("test", "--config", "tracker.yaml", "--data.num_workers", workers)
    assert "got10k/val/one/0000000" in said
    assert "truncated" in said
    assert "\n" not in said.partition("\n(LIGHTNING_VSSL_DEBUG")[0]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_too_many_frames_that_are_cut_off_stop_training(workers):
    cut_off_frames()
    said = stopped("fit", "--config", "tracker.yaml", "--data.num_workers", workers)
    assert "1 of 1 sequences could not be read:\n  got10k/train/one\n" in said
    assert "got10k/train/one/0000000" in said
    assert "truncated" in said
    assert "max_unreadable=0.05" in said


def test_full_disk_while_a_checkpoint_is_written(monkeypatch):
    videos("a.mp4", "b.mp4")

    def full(checkpoint, filepath):
        raise OSError(errno.ENOSPC, "No space left on device", str(filepath))

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    said = fit()
    assert "no space left on the disk while writing" in said
    assert "checkpoints" in said


def test_full_disk_while_the_manifest_is_written(monkeypatch):
    videos("a.mp4", "b.mp4")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "cache/manifest.parquet")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    assert "no space left on the disk while writing" in fit()
