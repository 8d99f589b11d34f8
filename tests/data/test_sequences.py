import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from lightning_vssl.data.sequences import (
    FolderFiles,
    FrameSequence,
    SequenceSampler,
    TrackedSequence,
    UnreadableFrame,
    read_frame,
    with_neighbours,
)
from lightning_vssl.datamodules.sequences import SequenceDataModule


def drawn(folder, count=12, name="one", ending="png"):
    """A sequence whose frame t is of the colour (t, 2t, 3t), with one pixel of the corner white."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for t in range(count):
        pixels = np.zeros((5, 7, 3), np.uint8)
        pixels[:] = (t, 2 * t, 3 * t)
        pixels[0, 6] = 255
        files.append(folder / f"{t:04d}.{ending}")
        Image.fromarray(pixels).save(files[-1])
    return FrameSequence(name, tuple(files))


def test_a_frame_is_rgb_channels_first(tmp_path):
    sequence = drawn(tmp_path)
    frame = sequence.frame(4)
    assert frame.shape == (3, 5, 7)
    assert frame.dtype == torch.uint8
    assert frame.is_contiguous()
    assert frame[:, 3, 3].tolist() == [4, 8, 12]
    assert (frame == 255).nonzero().tolist() == [[c, 0, 6] for c in range(3)]
    assert sequence.size == (5, 7)
    assert len(sequence) == 12


@pytest.mark.parametrize(
    ("start", "stop", "wanted"),
    [(0, None, range(12)), (3, 5, range(3, 5)), (10, 40, range(10, 12)), (4, 4, range(0))],
)
def test_frames_come_in_order_and_leave_no_thread(tmp_path, start, stop, wanted):
    before = threading.active_count()
    seen = [int(frame[0, 2, 2]) for frame in drawn(tmp_path).frames(start, stop)]
    assert seen == list(wanted)
    assert threading.active_count() == before


def test_a_walk_that_is_given_up_ends_its_thread(tmp_path):
    before = set(threading.enumerate())
    walk = drawn(tmp_path, 40).frames()
    next(walk)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 1
    walk.close()
    for thread in mine:
        thread.join(5)
        assert not thread.is_alive()


def test_grey_and_palette_become_rgb(tmp_path):
    grey = Image.fromarray(np.full((2, 2), 9, np.uint8))
    grey.save(tmp_path / "grey.png")
    palette = Image.fromarray(np.ones((2, 2), np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert read_frame(tmp_path / "grey.png")[:, 0, 0].tolist() == [9, 9, 9]
    assert read_frame(tmp_path / "palette.png")[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("neighbours", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_neighbours_repeat_the_edges(count, neighbours):
    frames = [torch.tensor(t) for t in range(count)]
    found = [[int(f) for f in around] for around in with_neighbours(frames, neighbours)]
    assert found == [
        [min(max(t + d, 0), count - 1) for d in range(-neighbours, neighbours + 1)]
        for t in range(count)
    ]


def test_a_cut_off_frame_is_named_when_its_turn_comes(tmp_path):
    sequence = drawn(tmp_path, 12, ending="jpg")
    broken = sequence.files[11]
    broken.write_bytes(broken.read_bytes()[:-200])
    walk = sequence.frames()
    assert [next(walk).shape for _ in range(11)] == [(3, 5, 7)] * 11
    with pytest.raises(UnreadableFrame, match=r"0011\.jpg"):
        next(walk)


def test_a_missing_frame_is_named_also_from_a_worker(tmp_path):
    with pytest.raises(UnreadableFrame, match=r"gone\.jpg: no such file") as caught:
        read_frame(tmp_path / "gone.jpg")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_does_not_fit_the_frames_is_refused(tmp_path):
    frames = drawn(tmp_path, 3)
    boxes = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"one: boxes must be float64 of shape \(3, 4\)"):
        TrackedSequence(frames, boxes[:2])
    with pytest.raises(ValueError, match=r"one: boxes .* got torch.float32"):
        TrackedSequence(frames, boxes.float())
    with pytest.raises(ValueError, match="one: cover must have one entry for each of the 3"):
        TrackedSequence(frames, boxes, cover=torch.zeros(2))
    with pytest.raises(ValueError, match="two has no frame"):
        FrameSequence("two", ())


def test_files_of_a_folder_are_paths_when_asked_for(tmp_path):
    names = tuple(f"{t:03d}.png" for t in range(5))
    one, two = (FolderFiles(tmp_path / folder, names) for folder in "ab")
    paths = [tmp_path / "a" / name for name in names]
    assert list(one) == paths
    assert one[-1] == paths[-1]
    assert one[1:3] == tuple(paths[1:3])
    assert len(one) == 5
    assert paths[2] in one
    assert one != two
    other = FolderFiles(tmp_path / "c", tuple(f"{t:03d}.png" for t in range(5)))
    assert all(a is b for a, b in zip(one.names, other.names, strict=True))
    with pytest.raises(ValueError, match="nothing has no frame"):
        FrameSequence("nothing", FolderFiles(tmp_path, ()))


def test_every_sequence_is_dealt_once_whatever_the_ranks():
    lengths = torch.randint(50, 4000, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    for ranks in (1, 2, 3, 8, 64):
        dealt = [list(SequenceSampler(lengths, ranks=ranks, rank=r)) for r in range(ranks)]
        assert sorted(n for mine in dealt for n in mine) == list(range(100))
        assert all(mine == sorted(mine) for mine in dealt)
        load = [sum(lengths[n] for n in mine) for mine in dealt]
        # Graham (1969): the longest first is at most 4/3 - 1/(3 ranks) of the best there is,
        # which is at least the mean and the longest.
        assert max(load) <= (4 / 3) * max(sum(lengths) / ranks, max(lengths))


def test_more_ranks_than_sequences_leave_some_without():
    dealt = [list(SequenceSampler([5, 9], ranks=4, rank=r)) for r in range(4)]
    assert sorted(dealt) == [[], [], [0], [1]]
    assert sum(len(SequenceSampler([5, 9], ranks=4, rank=r)) for r in range(4)) == 2


class Two(SequenceDataModule[TrackedSequence]):
    def names(self, split):
        return ["a", "b"] if split == "test" else []

    def read(self, split, name):
        frames = drawn(self.root / name, {"a": 3, "b": 12}[name], name)
        return TrackedSequence(frames, torch.zeros(len(frames), 4, dtype=torch.float64))


class Walker(LightningModule):
    def __init__(self):
        super().__init__()
        self.seen = []

    def test_step(self, batch, batch_idx):
        assert isinstance(batch, TrackedSequence)
        self.seen.append((batch.name, len(list(batch.frames.frames()))))


def test_trainer_hands_over_sequences_as_they_are(tmp_path):
    model, data = Walker(), Two(tmp_path)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.test(model, data, verbose=False)
    assert model.seen == [("a", 3), ("b", 12)]
    assert trainer.test_dataloaders.dataset[0] is data.sequences("test")[0]


def test_a_split_without_sequences_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="Two has no val sequence"):
        Two(tmp_path).setup("validate")
    with pytest.raises(ValueError, match="split must be train, val or test; got 'dev'"):
        Two(Path(tmp_path), split="dev")
