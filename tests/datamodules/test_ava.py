"""AVA and AVA-Kinetics: which frames, which boxes, from which files."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_vssl.data.clips import KeyFrameClip
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.windows import Canvas, ScaleCrop, ThreeCrops, WholeFrame
from lightning_vssl.datamodules.ava import AVA
from lightning_vssl.datamodules.ava_kinetics import AVAKinetics
from lightning_vssl.metrics.detection import DetectionMetric
from tests.datamodules.test_base import Toy
from tests.videos import frame_number, numbered_frames, write_video

TRAIN = """one,0902,0.25,0.25,0.75,0.75,12,0
one,0902,0.25,0.25,0.75,0.75,80,0
one,0902,0.00,0.00,0.50,1.00,2,1
one,0904,0.50,0.00,1.00,1.00,12,0
one,0905,0.50,0.00,1.00,1.00,12,0
two,0903,0.00,0.50,1.00,1.00,17,0
"""
VAL = """two,0902,0.00,0.50,1.00,1.00,17,0
two,0903,0.10,0.50,0.90,1.00,12,0
three,0902,0.10,0.10,0.60,0.60,12,0
three,0904
"""
DETECTED = """two,0902,0.00,0.45,1.00,1.00,,0.95
two,0902,0.00,0.00,0.30,0.30,,0.85
two,0902,0.30,0.00,0.60,0.30,,0.80
two,0902,0.60,0.00,0.90,0.30,,0.79
three,0904,0.10,0.10,0.60,0.60,,0.99
three,0907,0.10,0.10,0.60,0.60,,0.99
two,0903,0.10,0.50,0.90,1.00,,0.9
"""
EVALUATED = (12, 17, 80)


def files(root: Path) -> None:
    root.mkdir()
    (root / "ava_train_v2.2.csv").write_text(TRAIN)
    (root / "ava_val_v2.2.csv").write_text(VAL)
    (root / "ava_train_excluded_timestamps_v2.2.csv").write_text("one,0904\n")
    (root / "ava_val_excluded_timestamps_v2.2.csv").write_text("two,0903\n")
    items = {n: f'item {{\n  name: "act {n}"\n  id: {n}\n}}\n' for n in (2, *EVALUATED)}
    name = "ava_action_list_v2.2"
    (root / f"{name}.pbtxt").write_text("".join(items.values()))
    shown = "".join(items[n] for n in EVALUATED)
    (root / f"{name}_for_activitynet_2019.pbtxt").write_text(shown)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films of 180 frames at 30 per second, which begin at second 900; two clips."""
    folder = tmp_path_factory.mktemp("ava") / "data"
    files(folder)
    frames = numbered_frames(180)
    for name in ("one", "two", "three"):
        write_video(folder / "videos" / f"{name}.mp4", frames, 30)
    (folder / "kinetics_train_v1.0.csv").write_text("four,12.5,0,0,0.5,0.5,12,0\n")
    kinetics = "four,12.5,0,0,0.5,0.5,12,0\nfive,0.5,0,0,0.5,0.5,17,0\nsix,3.25\n"
    (folder / "kinetics_val_v1.0.csv").write_text(kinetics)
    clip = folder / "kinetics" / "train" / "wave" / "four_000010_000020.mp4"
    write_video(clip, frames, 30)
    write_video(folder / "kinetics" / "val" / "five.mp4", frames[:40], 30)
    return folder


def ready(root: Path, kind: type[AVA] = AVA, stage: str = "fit", **more: object) -> AVA:
    small = {"frames": 4, "stride": 10, "window": Canvas((48, 80)), "eval_window": Canvas((48, 80))}
    cache = root.parent / "cache"
    module = kind(root, **{**small, "batch_size": 1, "cache_dir": cache, "limit": 4, **more})
    module.prepare_data()
    module.setup(stage)
    return module


def numbers(video: torch.Tensor) -> list[int]:
    """The numbers that the frames of a clip (T, 3, H, W) carry, of the canvas's left 64 columns."""
    return [frame_number(frame.permute(1, 2, 0).numpy()[:, :64]) for frame in video]


def test_training_clips_stand_around_their_key_frames(root: Path) -> None:
    module = ready(root, batch_size=3)
    assert module.num_classes == 80
    assert module.classes[11] == "act 12"
    assert module.classes[0] == "action 1"
    (batch,) = module.train_dataloader()
    assert batch["video"].shape == (3, 1, 4, 3, 48, 80)
    assert batch["shown"].tolist() == [[[48, 64]]] * 3
    assert (batch["video"][..., 64:] == 128).all()
    order = batch["index"].argsort()
    clips = [numbers(batch["video"][b, 0]) for b in order]
    # Frame (s - 900) * 30 is third of four, ten frames apart; beyond the end the last one stays.
    assert clips == [[40, 50, 60, 70], [130, 140, 150, 160], [70, 80, 90, 100]]
    assert np.allclose(batch["time"][order[0], 0], [40 / 30, 50 / 30, 2, 70 / 30], atol=1e-4)
    first = {name: value[order[0]] for name, value in batch.items()}
    assert first["boxes"][0, 0, :2].tolist() == [[16, 12, 48, 36], [0, 0, 32, 48]]
    assert first["boxes"][0, 0, 2:].isnan().all()
    assert first["crop"].tolist() == [[0, 0, 80, 48]]
    assert first["box_labels"].nonzero().tolist() == [[0, 0, 11], [0, 0, 79], [0, 1, 1]]
    assert first["box_index"].tolist() == [0, 1, -1, -1]
    assert first["box_scores"].tolist() == [1, 1, 0, 0]


def test_true_boxes_in_evaluation_and_perfect_answers(root: Path) -> None:
    module = ready(root, stage="test", eval_batch_size=2)
    task = module.task("test")
    assert task.actions == EVALUATED
    metric, seen = DetectionMetric(task), []
    for batch in module.test_dataloader():
        there = batch["box_index"] >= 0
        assert torch.equal(there, ~batch["boxes"][:, 0, 0, :, 0].isnan())
        seen += batch["box_index"][there].tolist()
        metric.update(batch["box_labels"][:, 0][there], batch["box_index"][there])
    assert seen == [0, 1]  # second 903 of "two" is excluded, second 904 of "three" is empty
    assert metric.compute() == {"mAP": 1.0}
    assert metric.found is not None
    assert metric.found.frames == 2
    assert (metric.found.truth[12], metric.found.truth[17]) == (1, 1)


def test_detected_boxes_above_the_threshold_at_listed_seconds(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "detected.csv"
    file.write_text(DETECTED)
    module = ready(root, stage="validate", boxes="detected", detections=file)
    batches = list(module.val_dataloader())
    boxes = module.task("val").boxes
    assert boxes.line.tolist() == [1, 2, 3, 5]
    assert boxes.score.tolist() == [0.95, 0.85, 0.8, 0.99]
    assert [batch["box_index"][0].tolist() for batch in batches] == [[0, 1, 2, -1], [3, -1, -1, -1]]
    assert batches[0]["box_scores"][0].tolist() == pytest.approx([0.95, 0.85, 0.8, 0])
    assert not batches[0]["box_labels"].any()
    metric = DetectionMetric(module.task("val"))
    for batch in batches:
        there = batch["box_index"] >= 0
        index = batch["box_index"][there]
        metric.update((0.5 + index / 10)[:, None].expand(-1, 80), index)
    # Action 17 is found by the last of four boxes, behind one where nobody acts; 12 by none.
    assert metric.compute()["mAP"] == pytest.approx((1 / 4 + 0) / 2)
    training = next(iter(ready(root, boxes="detected", detections=file).train_dataloader()))
    assert training["box_labels"].any()
    with pytest.raises(ValueError, match=r"none of its 7 boxes has a score of 1 \(threshold\)"):
        ready(root, stage="test", boxes="detected", detections=file, threshold=1.0)


def test_a_crowd_keeps_the_surest_and_says_so(root: Path, tmp_path: Path, caplog) -> None:
    file = tmp_path / "detected.csv"
    file.write_text(DETECTED.replace("0.95", "0.81"))
    module = ready(root, stage="test", boxes="detected", detections=file, limit=2)
    with caplog.at_level(logging.WARNING):
        batches = list(module.test_dataloader())
    assert "1 boxes are beyond the 2 of their frame" in caplog.text
    assert [batch["box_index"][0].tolist() for batch in batches] == [[0, 1], [3, -1]]
    data = ready(root, limit=1, batch_size=3).train_dataloader().dataset
    kept = {int(data[(epoch, 0)]["box_index"][0]) for epoch in range(12)}
    assert kept == {0, 1}  # in training the key draws
    assert int(data[(3, 0)]["box_index"][0]) == int(data[(3, 0)]["box_index"][0])


def test_a_crop_cuts_boxes_away(root: Path) -> None:
    whole = ready(root, window=WholeFrame((24, 24)), batch_size=3)
    (batch,) = whole.train_dataloader()
    row = int(batch["index"].argmin())
    assert batch["boxes"][row, 0, 0, 0].tolist() == [6, 6, 18, 18]
    assert batch["shown"][row].tolist() == [[24, 24]]
    data = ready(root, window=ScaleCrop(16, (64,)), batch_size=3).train_dataloader().dataset
    seen = set()
    for epoch in range(30):
        sample = data[(epoch, 0)]
        gone = sample["boxes"][0, 0, :, 0].isnan()
        assert torch.equal(gone, sample["box_index"] < 0)
        assert not sample["box_labels"][0, gone].any()
        assert (sample["box_scores"] > 0).tolist() == (~gone).tolist()
        seen.add(tuple(gone.tolist()[:2]))
    assert len(seen) > 2
    with pytest.raises(ValueError, match="3 crops"):
        ready(root, window=ThreeCrops(16))


def test_ava_kinetics_reads_both_parts(root: Path) -> None:
    module = ready(root, AVAKinetics, batch_size=4, eval_batch_size=1)
    (batch,) = module.train_dataloader()
    clips = [numbers(batch["video"][b, 0]) for b in batch["index"].argsort()]
    assert clips[3] == [55, 65, 75, 85]  # second 12.5 of a clip that begins at 10
    module.setup("test")
    task = module.task("test")
    shown = [numbers(batch["video"][0, 0]) for batch in module.test_dataloader()]
    assert shown[2:] == [[55, 65, 75, 85], [0, 5, 15, 25]]
    assert len(task.truth) == len(VAL.splitlines()) + 3
    assert task.truth.boxed.sum() == 5
    assert module.threshold == 0.2


def test_films_that_are_missing_take_their_truth_with_them(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    files(data)
    (data / "videos").symlink_to(root / "videos")
    (data / "ava_val_v2.2.csv").write_text(VAL + "gone,0902,0.1,0.1,0.6,0.6,80,0\n")
    with pytest.raises(FileNotFoundError, match=r"videos/gone\.mp4"):
        ready(data, stage="test")
    module = ready(data, stage="test", max_missing=0.5)
    assert "gone" not in [
        module.task("test").truth.videos[v] for v in module.task("test").truth.video
    ]
    assert sum(len(batch["index"]) for batch in module.test_dataloader()) == 2
    (data / "ava_action_list_v2.2.pbtxt").unlink()
    (data / "ava_val_v2.2.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"official files are missing"):
        ready(data, stage="test")


def test_folders_of_frames(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    files(data)
    for name in ("one", "two", "three"):
        (data / "frames" / name).mkdir(parents=True)
        for n, frame in enumerate(numbered_frames(100), start=1):
            Image.fromarray(frame).save(data / "frames" / name / f"{name}_{n:06d}.png")
    module = ready(data, stage="test", fps=None)
    shown = [numbers(batch["video"][0, 0]) for batch in module.test_dataloader()]
    assert shown == [[40, 50, 60, 70]] * 2


def test_a_key_frame_outside_its_file_is_named(root: Path) -> None:
    module = ready(root, stage="test", start=0.0)
    with pytest.raises(Exception, match=r"two\.mp4.*second 902 lies outside the file.* 0 to 6"):
        next(iter(module.test_dataloader()))


def test_wrong_arguments(root: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"boxes": "all"}, "boxes='all'"),
        ({"boxes": "detected"}, "needs detections"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"limit": 0}, "limit=0"),
        ({"frames": 0}, "frames=0"),
    ):
        with pytest.raises(ValueError, match=said):
            AVA(root, **wrong)
    bad = tmp_path / "data"
    files(bad)
    (bad / "ava_val_v2.2.csv").write_text(VAL + "three,0905,0.1,0.1,0.6,1.6,12,0\n")
    with pytest.raises(ValueError, match=r"ava_val_v2\.2\.csv, line 5: .* outside the frame"):
        ready(bad, stage="test")


def test_key_frame_clips_at_the_edges_and_by_stored_frames() -> None:
    times = np.arange(100) / 25
    assert KeyFrameClip(4, 2, None).around(times, 0.0).tolist() == [[0, 0, 0, 2]]
    assert KeyFrameClip(4, 2, None).around(times, 9.0).tolist() == [[95, 97, 99, 99]]
    assert KeyFrameClip(5, 10, 50.0).around(times, 2.0).tolist() == [[40, 45, 50, 55, 60]]
    assert KeyFrameClip(3, 1, None).sample(times, np.random.default_rng(0)).tolist() == [
        [49, 50, 51]
    ]


def test_a_canvas_keeps_the_picture_and_its_shape(root: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "tall.mp4", numbered_frames(20, 64, 32), 25)
    lists = {"val": [Entry("tall.mp4")], "test": [], "train": [Entry("tall.mp4")]}
    module = Toy(tmp_path, lists, eval_window=Canvas((32, 40), fill=7), cache_dir=tmp_path / "c")
    module.prepare_data()
    module.setup("validate")
    (batch,) = module.val_dataloader()
    assert (batch["video"][..., 16:] == 7).all()
    assert (batch["video"][..., :16] != 7).any()
    assert batch["crop"][0].tolist() == [[0, 0, 80, 64]] * 2
    with pytest.raises(ValueError, match="fill=256"):
        Canvas(fill=256)
