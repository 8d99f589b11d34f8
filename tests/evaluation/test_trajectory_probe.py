import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.backbones.resnet3d import R3D18
from lightning_vssl.data.sequences import FrameSequence, TrackedSequence, UnreadableFrame
from lightning_vssl.data.trajectories import TrajectoryClips
from lightning_vssl.data.unreadable import TooManyUnreadable
from lightning_vssl.datamodules.got10k_clips import GOT10kClips
from lightning_vssl.evaluation.trajectory_probe import TrajectoryProbe
from lightning_vssl.metrics.trajectory import TrajectoryOverlap
from lightning_vssl.nn.keyed import sample_key
from tests.evaluation.small import OneLayer, trainer

SIDES = 48, 64  # height and width of the frames
SIZE = 12  # of the object


def moving(folder, name, frames=16, speed=(2.0, 1.0), hidden=()):
    """A white square on black that moves, as a folder of GOT-10k; its first frame is at (4, 6)."""
    folder = folder / name
    folder.mkdir(parents=True)
    rows, cover = [], []
    for t in range(frames):
        x, y = round(4 + speed[0] * t), round(6 + speed[1] * t)
        pixels = np.zeros((*SIDES, 3), np.uint8)
        pixels[y : y + SIZE, x : x + SIZE] = 255
        Image.fromarray(pixels).save(folder / f"{t + 1:08d}.jpg", quality=95)
        rows.append(f"{x},{y},{SIZE},{SIZE}")
        cover.append("0" if t in hidden else "8")
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "cover.label").write_text("\n".join(cover))
    (folder / "absence.label").write_text("\n".join("0" for _ in cover))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("got10k")
    speeds = {"right": (2.0, 0.0), "down": (0.0, 1.5), "both": (2.0, 1.5), "still": (0.0, 0.0)}
    for split in ("train", "val"):
        for name, speed in speeds.items():
            moving(folder / split, name, 18, speed)
        (folder / split / "list.txt").write_text("\n".join(speeds))
    return folder


def sequence(folder, frames=20, hidden=(), name="one"):
    moving(folder, name, frames, hidden=hidden)
    files = tuple(sorted((folder / name).glob("*.jpg")))
    xy = torch.tensor([[round(4 + 2.0 * t), round(6 + 1.0 * t)] for t in range(frames)])
    boxes = torch.cat([xy, xy + SIZE], 1).double()
    boxes[list(hidden)] = torch.nan
    return TrackedSequence(FrameSequence(name, files), boxes)


def test_boxes_of_a_clip_lie_on_the_object_in_its_pixels(tmp_path):
    clips = TrajectoryClips([sequence(tmp_path)], kind="test", frames=6, step=2, size=32)
    sample = clips[0]
    assert sample["video"].shape == (1, 6, 3, 32, 32)
    assert sample["video"].dtype == torch.uint8
    boxes = sample["boxes"][0, :, 0]
    for t in range(6):
        x, y = 4 + 2 * (2 * t), 6 + 2 * t
        wanted = [x / 2, y * 32 / 48, (x + SIZE) / 2, (y + SIZE) * 32 / 48]
        assert boxes[t].tolist() == pytest.approx(wanted, abs=1e-4)
        x0, y0, x1, y1 = boxes[t].round().int().tolist()
        inside = sample["video"][0, t, 0, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
        assert inside.min() > 200
        assert sample["video"][0, t].sum() < 1.5 * 3 * 255 * (x1 - x0) * (y1 - y0)


def test_sequences_are_cut_into_clips_that_begin_with_the_object(tmp_path):
    clips = TrajectoryClips(
        [sequence(tmp_path, 20, hidden=(2, 8))], kind="test", frames=4, step=2, size=32
    )
    # Beginnings at 0, 8 and 16, of which 8 is hidden; the last clip is held at frame 19.
    assert len(clips) == 2
    assert clips[0]["boxes"][0, :, 0].isnan().any(1).tolist() == [False, True, False, False]
    held = clips[1]
    assert held["boxes"][0, :, 0].isnan().any(1).tolist() == [False, False, True, True]
    assert torch.equal(held["video"][0, 2], held["video"][0, 3])


def test_a_training_clip_depends_on_seed_epoch_and_index_alone(tmp_path):
    found = [sequence(tmp_path, 30, name=f"n{n}", hidden=range(3)) for n in range(2)]
    clips, again, other = (
        TrajectoryClips(found, kind="train", frames=4, size=32, seed=seed) for seed in (1, 1, 2)
    )
    assert len(clips) == 2
    starts = set()
    for epoch in range(20):
        sample = clips[epoch, 1]
        assert torch.equal(sample["video"], again[epoch, 1]["video"])
        assert not sample["boxes"].isnan().any()
        starts.add(round(float(sample["boxes"][0, 0, 0, 0])))
    assert len(starts) > 8
    assert any(not torch.equal(clips[e, 0]["boxes"], other[e, 0]["boxes"]) for e in range(5))
    with pytest.raises(ValueError, match="no sequence shows its object"):
        TrajectoryClips([sequence(tmp_path, 5, hidden=range(5), name="h")], kind="train")
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        TrajectoryClips(found, kind="test", step=0)


def test_a_frame_that_breaks_is_replaced_in_training_and_stops_a_test(tmp_path):
    found = [sequence(tmp_path, 8, name=f"n{n}") for n in range(4)]
    for file in found[1].frames.files[4:]:
        file.write_bytes(b"no picture")
    clips, again = (
        TrajectoryClips(found, kind="train", frames=4, step=2, size=32, max_unreadable=0.25)
        for _ in range(2)
    )
    sample = clips[3, 1]
    assert sample["replaced"]
    other = int(sample["index"])
    assert other != 1
    assert torch.equal(sample["video"], again[3, 1]["video"])
    assert sample["key"] == sample_key(0, 3, 1)
    assert not clips[3, other]["replaced"]
    assert clips.unreadable.numbers.tolist() == [1]
    for file in found[0].frames.files:
        file.unlink()
    with pytest.raises(TooManyUnreadable, match=r"2 of 4 sequences(.|\s)*/n0\s+\S+/n1\s"):
        clips[3, 0]
    test = TrajectoryClips(found, kind="test", frames=4, step=1, size=32)
    assert not test[2]["replaced"]
    with pytest.raises(UnreadableFrame, match=r"n1/00000005\.jpg: cannot"):
        test[3]


def test_an_epoch_without_a_step_is_refused(root):
    data = GOT10kClips(root, frames=8, size=32, batch_size=5)
    data.setup("fit")
    with pytest.raises(ValueError, match="batch_size=5 is more than the 4 clips"):
        data.train_dataloader()


def test_the_overlap_leaves_out_the_given_box_and_hidden_frames():
    truth = torch.tensor([[[0.0, 0, 10, 10]] * 4, [[0, 0, 10, 10]] * 4])
    truth[0, 2:] += torch.tensor([5.0, 0, 5, 0])
    truth[1, 1:3] = torch.nan
    predicted = torch.zeros(2, 4, 4)
    predicted[:] = torch.tensor([0.0, 0, 10, 10])
    predicted[0, 3] = truth[0, 3]
    predicted[1, 3] = torch.tensor([0, 0, 10, 5])
    predicted[:, 0] = 99  # given: not judged
    metric = TrajectoryOverlap()
    for _ in range(2):  # a clip that comes twice counts once
        metric.update(predicted, truth, torch.tensor([4, 2]))
    # First clip: 1, 1/3, 1 (held 1, 1/3, 1/3); second: its last frame alone, 1/2 (held 1).
    scores = metric.compute()
    assert scores["miou"] == pytest.approx((1 + 1 / 3 + 1 + 0.5) / 4)
    assert scores["held"] == pytest.approx((1 + 1 / 3 + 1 / 3 + 1) / 4)
    assert (metric.clips, metric.frames) == (2, 4)
    with pytest.raises(ValueError, match="training has diverged"):
        metric.update(predicted * torch.nan, truth, torch.tensor([4, 2]))
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), \(2, 4, 4\)"):
        metric.update(predicted[:, :3], truth, torch.tensor([4, 2]))


def probe(frozen=0, **arguments):
    return TrajectoryProbe(
        backbone=R3D18(width=8, depth=(1, 1, 1, 1), last_stride=1),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        frozen_stages=frozen,
        frames=8,
        hidden_channels=32,
        roi_size=3,
        sigma=(3.0, 3.0, 0.15, 0.15),
        **arguments,
    )


@pytest.mark.parametrize("frozen", [0, 1, 3, 5])
def test_the_first_stages_are_frozen_with_their_statistics(root, tmp_path, frozen):
    torch.manual_seed(0)
    model = probe(frozen)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    data = GOT10kClips(root, frames=8, size=32, batch_size=4)
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, data)
    changed = {
        name.split(".")[0]
        for name, value in model.backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    stages = ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert changed == set(stages[frozen:])


def test_it_learns_to_follow_and_writes_what_it_did(root, tmp_path):
    torch.manual_seed(0)
    model = probe(paper={"miou": 60.0})
    data = GOT10kClips(root, frames=8, size=32, batch_size=4)
    fit = trainer(tmp_path / "fit", max_epochs=40, limit_val_batches=0)
    fit.fit(model, data)
    trainer(tmp_path).test(model, data, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    # The object moves by up to half of its size within a clip: holding its box loses.
    assert result["results"]["held"] < 75
    assert result["results"]["miou"] > result["results"]["held"] + 5
    assert result["clips"] == 4 * 3
    assert result["protocol"]["frozen_stages"] == []
    assert result["protocol"]["data"]["size"] == 32
    assert result["training"]["epochs_trained"] == 40
    assert result["method"] == "untouched"


def test_wrong_networks_and_stages_are_refused():
    with pytest.raises(ValueError, match=r"frozen_stages must be from 0 to 5 \(stem, layer1"):
        probe(6)
    with pytest.raises(ValueError, match="OneLayer sees one frame at a time"):
        TrajectoryProbe(backbone=OneLayer(dims=2), optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match="batch has no 'boxes': use GOT10kClips"):
        probe()._boxes({})
