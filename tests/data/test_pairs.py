"""Training pairs out of sequences whose frames and boxes are drawn here."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_vssl.data.crops import context_side
from lightning_vssl.data.pairs import BoxLimits, PairDataset
from lightning_vssl.data.sequences import FrameSequence, TrackedSequence
from lightning_vssl.data.unreadable import TooManyUnreadable

NUMBER = 10  # grey of frame t is NUMBER + t, of its box 200
SIDE = 24


def sequence(folder, name="moving", frames=12, width=200):
    """A bright square that moves right by 4 pixels a frame, over a ground that tells the frame."""
    (folder / name).mkdir()
    files, boxes = [], []
    for t in range(frames):
        pixels = np.full((120, width, 3), NUMBER + t, np.uint8)
        x = 30 + 4 * t
        pixels[40 : 40 + SIDE, x : x + SIDE] = 200
        files.append(folder / name / f"{t:04d}.png")
        Image.fromarray(pixels).save(files[-1])
        boxes.append([x, 40, x + SIDE, 40 + SIDE])
    boxes = torch.tensor(boxes, dtype=torch.float64)
    return TrackedSequence(FrameSequence(name, tuple(files)), boxes)


def ground(crop):
    """The frame's number, from the ground's grey at a crop's right edge."""
    return int(crop[0, :, -1].median()) - NUMBER


def numbers(sample):
    return [ground(clip[len(clip) // 2]) for clip in sample["video"]]


class TestSample:
    def test_shapes_and_types(self, tmp_path):
        pairs = PairDataset([sequence(tmp_path)], neighbours=2)
        sample = pairs[0]
        assert sample["video"].shape == (2, 5, 3, 239, 239)
        assert sample["video"].dtype == torch.uint8
        assert sample["boxes"].shape == (2, 1, 1, 4)
        assert sample["index"] == 0
        assert pairs.sample_bytes == sample["video"].numel()

    def test_box_bounds_the_object_and_windows_move_and_stretch_within_bounds(self, tmp_path):
        pairs = PairDataset([sequence(tmp_path)], samples=40)
        scale = 127 / context_side(SIDE, SIDE)
        sides, moves = [], []
        for i in range(40):
            sample = pairs[i]
            for clip, box in zip(sample["video"], sample["boxes"][:, 0, 0], strict=True):
                bright = (clip[0, 0] > 120).nonzero().double()
                low, high = bright.amin(0).flip(0), bright.amax(0).flip(0) + 1
                assert torch.allclose(torch.cat([low, high]), box.double(), rtol=0, atol=1.1)
                sides.append(float(box[2] - box[0]) / (SIDE * scale))
                moves += ((box[:2] + box[2:]) / 2 - 239 / 2).tolist()
        assert 0.95 <= min(sides) < 0.96
        assert 1.04 < max(sides) <= 1.05
        assert -4.001 <= min(moves) < -3.5
        assert 3.5 < max(moves) <= 4.001

    def test_without_chance_the_object_stands_in_the_middle_at_its_size(self, tmp_path):
        box = PairDataset([sequence(tmp_path)], margin=0, stretch=0.0)[0]["boxes"][0, 0, 0]
        half = 127 / 4  # context doubles a square
        middle = 255 / 2
        expected = [middle - half, middle - half, middle + half, middle + half]
        assert box.tolist() == pytest.approx(expected, abs=1e-4)

    def test_depends_on_seed_epoch_and_index_alone(self, tmp_path):
        sequences = [sequence(tmp_path, f"s{n}") for n in range(3)]
        pairs, again = (PairDataset(sequences, samples=9, seed=5) for _ in range(2))
        once = pairs[2, 4]
        assert all(torch.equal(once[key], again[2, 4][key]) for key in once)
        for other in (pairs[3, 4], pairs[2, 7], PairDataset(sequences, samples=9)[2, 4]):
            assert not torch.equal(once["video"], other["video"])
            assert other["index"] == 1

    def test_neighbours_share_the_window_and_edges_are_repeated(self, tmp_path):
        pairs = PairDataset([sequence(tmp_path, frames=3)], samples=12, neighbours=2)
        for i in range(12):
            for clip in pairs[i]["video"]:
                frames = [ground(one) for one in clip]
                middle = frames[2]
                assert frames == [min(max(middle + d, 0), 2) for d in (-2, -1, 0, 1, 2)]
                rows = [(one[0] > 120).nonzero().amin(0) for one in clip]
                assert len({int(row[0]) for row in rows}) == 1  # it moves along a row only


class TestWhichFrames:
    def test_are_two_and_near_enough(self, tmp_path):
        pairs = PairDataset([sequence(tmp_path, frames=30, width=320)], samples=60, gap=5)
        seen = [numbers(pairs[i]) for i in range(60)]
        gaps = {second - first for first, second in seen}
        assert gaps == {1, 2, 3, 4}

    def test_bad_boxes_are_left_out(self, tmp_path):
        one = sequence(tmp_path)
        boxes = one.boxes.clone()
        boxes[0] = torch.nan
        boxes[1, 2] = boxes[1, 0] + 19.0  # narrow
        boxes[2, 2] = boxes[2, 0] + 101.0  # more than half the frame
        boxes[3, 2:] = boxes[3, :2] + torch.tensor([20.0, 81.0])  # long
        boxes[4, 3] = boxes[4, 1] + 61.0  # more than half its height
        boxes[5, 2:] = boxes[5, :2] + torch.tensor([20.0, 20.0])  # just large enough
        absent = torch.zeros(12, dtype=torch.bool)
        absent[6] = True
        cover = torch.full((12,), 8)
        cover[7] = 1
        cover[8] = 2  # not above 0.3 x 8
        marked = dataclasses.replace(one, boxes=boxes, absent=absent, cover=cover)
        assert BoxLimits().good(marked).tolist() == [5, 9, 10, 11]

    def test_sequence_without_two_is_replaced_by_another(self, tmp_path):
        good, bad = sequence(tmp_path, "good"), sequence(tmp_path, "bad")
        bad = dataclasses.replace(bad, boxes=torch.full((12, 4), torch.nan, dtype=torch.float64))
        assert [int(PairDataset([bad, good])[i]["index"]) for i in range(2)] == [1, 1]
        with pytest.raises(ValueError, match="none of the 1 sequences has two frames"):
            PairDataset([bad])[0]


class TestErrors:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_sequence_that_breaks_is_logged_once_and_replaced(self, tmp_path, workers, caplog):
        sequences = [sequence(tmp_path, f"s{n}", frames=2) for n in range(6)]
        sequences[2].frames.files[1].unlink()

        def epochs():
            pairs = PairDataset(sequences, samples=12, max_unreadable=0.2)
            return pairs, list(DataLoader(pairs, batch_size=4, num_workers=workers))

        pairs, batches = epochs()
        index = torch.cat([batch["index"] for batch in batches])
        replaced = torch.cat([batch["replaced"] for batch in batches])
        asked = torch.arange(12) % 6
        assert replaced.nonzero().flatten().tolist() == [2, 8]
        assert torch.equal(index[~replaced], asked[~replaced])
        assert 2 not in index
        assert pairs.unreadable.numbers.tolist() == [2]
        if not workers:
            assert caplog.text.count("s2/0001.png: no such file") == 1
        for batch, again in zip(batches, epochs()[1], strict=True):
            assert all(torch.equal(batch[key], again[key]) for key in batch)

    def test_too_many_that_break_end_the_run_with_the_folders(self, tmp_path):
        sequences = [sequence(tmp_path, f"s{n}", frames=2) for n in range(4)]
        pairs = PairDataset(sequences, max_unreadable=0.25)
        sequences[1].frames.files[0].unlink()
        assert pairs[1]["replaced"]
        sequences[3].frames.files[0].write_bytes(b"no picture")
        with pytest.raises(
            TooManyUnreadable,
            match=r"2 of 4 sequences(.|\s)*/s1\s+\S+/s3\s(.|\s)*s3/0000.png: cannot",
        ):
            pairs[3]

    def test_only_the_broken_one_has_good_boxes(self, tmp_path):
        good, bad = sequence(tmp_path, "good", frames=2), sequence(tmp_path, "bad")
        bad = dataclasses.replace(bad, boxes=torch.full((12, 4), torch.nan, dtype=torch.float64))
        good.frames.files[1].unlink()
        with pytest.raises(ValueError, match="none of the 2 sequences has two frames that can be"):
            PairDataset([bad, good], max_unreadable=1.0)[0]

    @pytest.mark.parametrize(
        "wrong",
        [{"margin": 64}, {"stretch": 1.0}, {"gap": 1}, {"neighbours": -1}, {"samples": 0}],
    )
    def test_numbers_out_of_range(self, tmp_path, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PairDataset([sequence(tmp_path)], **wrong)

    def test_no_sequence(self):
        with pytest.raises(ValueError, match="no sequence"):
            PairDataset([])

    @pytest.mark.parametrize("wrong", [{"sides": (5, 5)}, {"shares": (-1, 1)}, {"aspect": 0.5}])
    def test_limits_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BoxLimits(**wrong)
