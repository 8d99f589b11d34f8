"""Clips of tracked sequences as pretraining takes them: windows and frames about the object."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.data.clips import JitteredClip, RandomClip
from lightning_vssl.data.sequences import FrameSequence, TrackedSequence
from lightning_vssl.data.trajectories import TrajectoryClips
from lightning_vssl.data.windows import ScaleCrop, ThreeCrops, WholeFrame

HEIGHT, WIDTH = 60, 110
WINDOW = ScaleCrop(24, (24, 30))


def square(folder: Path, *, frames=24, size=14, start=(70, 20), speed=1, hidden=()):
    """A white square on black that moves to the right, and its boxes."""
    folder.mkdir()
    rows = []
    for t in range(frames):
        x, y = start[0] + speed * t, start[1]
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[y : y + size, x : x + size] = 255
        Image.fromarray(pixels).save(folder / f"{t:04d}.png")
        rows.append([x, y, x + size, y + size])
    boxes = torch.tensor(rows, dtype=torch.float64)
    boxes[list(hidden)] = torch.nan
    return TrackedSequence(FrameSequence(folder.name, tuple(sorted(folder.iterdir()))), boxes)


def drawn(sequence: TrackedSequence, epochs: int, **options):
    options = {"clips": JitteredClip(6, strides=(1, 2)), "window": WINDOW, **options}
    clips = TrajectoryClips([sequence], kind="train", frames=6, size=24, **options)
    return [clips[epoch, 0] for epoch in range(epochs)]


def test_the_object_is_in_the_window_and_under_its_box(tmp_path):
    samples = drawn(square(tmp_path / "one"), 30)
    lefts = set()
    for sample in samples:
        assert sample["video"].shape == (1, 6, 3, 24, 24)
        boxes = sample["boxes"][0, :, 0]
        first = boxes[0]
        # 14 of 60 pixels are 5.6 of 24, or 7 of 30: whole, but for the window's rounding.
        assert ((first[2:] - first[:2]) > 5.2).all()
        lefts.add(round(float(first[0])))
        for picture, box in zip(sample["video"][0, :, 0].float() / 255, boxes, strict=True):
            if box.isnan().any():
                assert picture.mean() < 0.08  # at most 2 pixels of it are left at the border
                continue
            area = (box[2:] - box[:2]).prod()
            assert picture.sum().item() == pytest.approx(area.item(), rel=0.02)
            x0, y0, x1, y1 = box.tolist()
            inside = picture[int(y0 + 2) : int(y1 - 1), int(x0 + 2) : int(x1 - 1)]
            assert (inside > 0.95).all()
    assert len(lefts) > 5  # the object is not always at the same place


def test_a_window_that_shows_the_object_stays_where_it_was_drawn(tmp_path):
    """Only windows that would cut the first box are moved, and then to its edge."""
    sequence = square(tmp_path / "one", start=(48, 23), speed=0)
    lefts = torch.tensor([float(s["boxes"][0, 0, 0, 0]) for s in drawn(sequence, 60)])
    rights = torch.tensor([float(s["boxes"][0, 0, 0, 2]) for s in drawn(sequence, 60)])
    at_edge = (lefts < 0.3) | (rights > 23.7)
    assert 5 < at_edge.sum() < 55
    assert lefts.unique().numel() > 8


def test_a_larger_object_fills_the_window(tmp_path):
    sequence = square(tmp_path / "one", size=58, start=(10, 1))
    for sample in drawn(sequence, 10, window=ScaleCrop(24, (48,))):
        assert sample["boxes"][0, 0, 0].tolist() == [0, 0, 24, 24]
        assert sample["video"][0, 0].min() == 255


def test_clips_start_where_the_object_is_seen(tmp_path):
    sequence = square(tmp_path / "one", start=(10, 20), hidden=[*range(9), *range(13, 24)])
    for sample in drawn(sequence, 20, window=None):
        x0 = sample["boxes"][0, 0, 0, 0].item() * WIDTH / 24
        assert round(x0) in range(19, 23)  # frames 9 to 12
        shown = sample["boxes"][0, :, 0].isnan().any(1)
        assert not shown[0]


def test_frames_beyond_the_end_count_no_more(tmp_path):
    sequence = square(tmp_path / "one", start=(10, 20), hidden=range(23))
    (sample,) = drawn(sequence, 1, window=None)
    assert sample["boxes"][0, :, 0].isnan().any(1).tolist() == [False] + [True] * 5
    assert torch.equal(sample["video"][0, :1].expand(6, -1, -1, -1), sample["video"][0])


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    sequence = square(tmp_path / "one")
    samples, again, other = drawn(sequence, 4), drawn(sequence, 4), drawn(sequence, 4, seed=1)
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(samples, again, strict=True))
    boxes, same, others = (
        torch.stack([sample["boxes"].nan_to_num(-1) for sample in found])
        for found in (samples, again, other)
    )
    assert torch.equal(boxes, same)
    assert not torch.equal(boxes, others)
    assert not torch.equal(boxes, boxes[:1].expand_as(boxes))


def test_tests_are_not_drawn(tmp_path):
    sequence = square(tmp_path / "one")
    options = {"kind": "test", "frames": 6, "size": 24}
    plain = TrajectoryClips([sequence], **options)
    same = TrajectoryClips([sequence], clips=JitteredClip(6), window=WINDOW, **options)
    for clip in range(len(plain)):
        assert torch.equal(plain[clip]["video"], same[clip]["video"])
        assert torch.equal(plain[clip]["boxes"], same[clip]["boxes"])


def test_several_clips_or_crops_of_a_sample_are_refused(tmp_path):
    sequence = square(tmp_path / "one", frames=6)
    with pytest.raises(ValueError, match="takes 2 clips of a sample: one is meant"):
        TrajectoryClips([sequence], kind="train", clips=RandomClip(clips=2))
    with pytest.raises(ValueError, match="takes 3 crops of a clip: one is meant"):
        TrajectoryClips([sequence], kind="train", window=ThreeCrops(24))
    TrajectoryClips([sequence], kind="train", window=WholeFrame((24, 24)))
