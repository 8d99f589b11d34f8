import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_vssl.data.clips import ClipPair, Clips, JitteredClip, RandomClip, UniformClips
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.decode import UnreadableVideo
from lightning_vssl.data.manifest import Entry, Manifest, build_manifest
from lightning_vssl.data.sampler import KeyedSampler
from lightning_vssl.data.unreadable import TooManyUnreadable
from lightning_vssl.data.windows import RandomResizedCrop, ScaleCrop, ThreeCrops, WholeFrame
from lightning_vssl.nn.keyed import sample_key
from tests.videos import frame_number, numbered_frames, write_numbered, write_video

VIDEOS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        write_numbered(root / f"{i:02d}.mp4", 30 + i, seed=i)
    return root


def listed(root: Path, *entries: Entry, classes: tuple[str, ...] = ()) -> Manifest:
    rows = list(entries) or [Entry(f"{i:02d}.mp4", i % 3) for i in range(VIDEOS)]
    names = classes or ("a", "b", "c")
    return build_manifest(rows, root, names, cache_dir=root / "cache", workers=0, progress=False)


def broken(folder: Path, tmp_path: Path, *names: str) -> Manifest:
    """A manifest of copies of which some were spoilt after it was made."""
    for file in folder.glob("*.mp4"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = listed(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(b"spoilt" * 50)
    return manifest


def numbers(sample: dict[str, torch.Tensor]) -> np.ndarray:
    """(V, T) numbers that the frames carry."""
    video = sample["video"].numpy()
    return np.array([[frame_number(f.transpose(1, 2, 0)) for f in clip] for clip in video])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def test_a_sample_keeps_the_contract(folder):
    clips, window = ClipPair(frames=4, stride=2), WholeFrame((24, 32))
    dataset = VideoDataset(listed(folder), clips, window, seed=5, labels=True)
    sample = dataset[(2, 7)]
    expected = {
        "video": ((2, 4, 3, 24, 32), torch.uint8),
        "crop": ((2, 4), torch.float32),
        "key": ((), torch.int64),
        "time": ((2, 4), torch.float64),
        "index": ((), torch.int64),
        "replaced": ((), torch.bool),
        "label": ((), torch.int64),
    }
    assert {name: (tuple(v.shape), v.dtype) for name, v in sample.items()} == expected
    assert sample["video"].is_contiguous()
    assert sample["key"] == sample_key(5, 2, 7)
    assert sample["index"] == 7
    assert not sample["replaced"]
    assert sample["label"] == 7 % 3
    assert sample["crop"].tolist() == [[0, 0, 64, 48]] * 2
    assert "label" not in VideoDataset(listed(folder), clips, window)[0]
    assert dataset.sample_bytes == sample["video"].numel()


@pytest.mark.parametrize("clips", [JitteredClip(8), ClipPair(4), UniformClips(4, clips=3)])
def test_the_frames_are_those_the_sampler_chose(folder, clips: Clips):
    dataset = VideoDataset(listed(folder), clips, WholeFrame((48, 64)))
    for index in range(4):
        rng = np.random.Generator(np.random.Philox(key=sample_key(0, 1, index) & (2**64 - 1)))
        chosen = clips.sample(np.arange(30 + index) / 25, rng)
        sample = dataset[(1, index)]
        assert np.array_equal(numbers(sample), chosen)
        assert np.allclose(sample["time"], chosen / 25, atol=1e-3)


def test_a_plain_index_is_epoch_0_and_epochs_differ(folder):
    dataset = VideoDataset(listed(folder), JitteredClip(), RandomResizedCrop(16))
    assert same(dataset[3], dataset[(0, 3)])
    assert not torch.equal(dataset[(0, 3)]["time"], dataset[(1, 3)]["time"])
    other = VideoDataset(listed(folder), JitteredClip(), RandomResizedCrop(16), seed=1)
    assert not torch.equal(other[3]["crop"], dataset[3]["crop"])
    with pytest.raises(IndexError, match="index 12 of a dataset of 12"):
        dataset[12]


def epoch(folder: Path, *, workers: int, ranks: int = 1) -> list[dict[str, torch.Tensor]]:
    """Global batches of two epochs, put together from the ranks'."""
    batches = []
    loaders = []
    for rank in range(ranks):
        dataset = VideoDataset(listed(folder), JitteredClip(6), ScaleCrop(16, (16, 20)))
        sampler = KeyedSampler(VIDEOS, seed=9, ranks=ranks, rank=rank)
        loaders.append(
            DataLoader(
                dataset,
                batch_size=4 // ranks,
                sampler=sampler,
                drop_last=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
        )
    for number in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(number)
        batches += [
            {
                name: torch.stack([part[name] for part in parts], 1).flatten(0, 1)
                for name in parts[0]
            }
            for parts in zip(*loaders, strict=True)
        ]
    return batches


def test_workers_and_ranks_change_nothing(folder):
    alone = epoch(folder, workers=0)
    assert len(alone) == 6
    assert not torch.equal(alone[0]["key"], alone[3]["key"])
    for workers, ranks in ((1, 1), (3, 1), (0, 2), (2, 2)):
        other = epoch(folder, workers=workers, ranks=ranks)
        assert len(other) == 6
        assert all(same(a, b) for a, b in zip(alone, other, strict=True)), (workers, ranks)


def test_three_crops_keep_a_clip_together(tmp_path):
    write_video(tmp_path / "wide.mp4", numbered_frames(20, 32, 96))
    clips = UniformClips(2, 1, clips=2)
    dataset = VideoDataset(listed(tmp_path, Entry("wide.mp4")), clips, ThreeCrops(32))
    sample = dataset[0]
    assert sample["video"].shape == (6, 2, 3, 32, 32)
    assert sample["crop"][:, 0].tolist() == [0, 32, 64] * 2
    assert torch.equal(sample["time"][0], sample["time"][2])
    assert not torch.equal(sample["time"][2], sample["time"][3])
    # the crops of one frame, side by side, are the frame
    whole = VideoDataset(listed(tmp_path, Entry("wide.mp4")), clips, WholeFrame((32, 96)))[0]
    joined = torch.cat(list(sample["video"][:3, 0]), dim=2)
    assert (joined.int() - whole["video"][0, 0].int()).abs().max() <= 2


def test_a_row_may_be_a_part_of_a_file(folder):
    rows = (Entry("11.mp4", start=0.4, end=0.8), Entry("11.mp4", start=1.2))
    dataset = VideoDataset(
        listed(folder, *rows), RandomClip(10, short="error"), WholeFrame((48, 64))
    )
    for number in range(5):
        assert numbers(dataset[(number, 0)])[0].tolist() == list(range(10, 20))
        later = numbers(dataset[(number, 1)])
        assert later.min() >= 30
        assert later.max() <= 40
    assert dataset[0]["time"][0, 0] == pytest.approx(0.4)


def test_a_broken_video_is_replaced_by_the_same_other(folder, tmp_path, caplog):
    manifest = broken(folder, tmp_path, "04.mp4")

    def make() -> VideoDataset:
        clips, window = JitteredClip(4), ScaleCrop(16, (16,))
        return VideoDataset(manifest, clips, window, labels=True, max_unreadable=0.1)

    dataset = make()
    with caplog.at_level(logging.WARNING):
        sample = dataset[(3, 4)]
        again = dataset[(3, 4)]
    assert caplog.text.count("04.mp4") == 1
    assert same(sample, again)
    assert same(sample, make()[(3, 4)])
    assert sample["replaced"]
    row = int(sample["index"])
    assert row != 4
    assert sample["label"] == row % 3
    assert sample["key"] == sample_key(0, 3, 4)
    assert dataset.unreadable.tolist() == [4]
    assert not dataset[(3, 5)]["replaced"]
    rows = {int(dataset[(number, 4)]["index"]) for number in range(12)}
    assert len(rows) > 3


def test_workers_share_the_count_of_broken_videos(folder, tmp_path):
    manifest = broken(folder, tmp_path, "04.mp4", "09.mp4")
    dataset = VideoDataset(manifest, RandomClip(2), ScaleCrop(16, (16,)), max_unreadable=0.2)
    batches = list(DataLoader(dataset, batch_size=3, num_workers=2))
    assert torch.cat([batch["replaced"] for batch in batches]).nonzero().flatten().tolist() == [
        4,
        9,
    ]
    assert dataset.unreadable.tolist() == [4, 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_videos_stop_the_run(folder, tmp_path, workers):
    manifest = broken(folder, tmp_path, "02.mp4", "07.mp4")
    dataset = VideoDataset(manifest, RandomClip(2), ScaleCrop(16, (16,)), max_unreadable=0.1)
    expected = (
        r"2 of 12 videos could not be read:\s+\S+/02.mp4\s+\S+/07.mp4\s(.|\s)*max_unreadable=0.1"
    )
    with pytest.raises(TooManyUnreadable, match=expected):
        list(DataLoader(dataset, batch_size=2, num_workers=workers))


def test_nothing_readable_ends(tmp_path):
    write_numbered(tmp_path / "a.mp4", 8)
    manifest = listed(tmp_path, Entry("a.mp4"))
    (tmp_path / "a.mp4").unlink()
    dataset = VideoDataset(manifest, RandomClip(2), ScaleCrop(16, (16,)), max_unreadable=1.0)
    with pytest.raises(TooManyUnreadable, match="1 of 1"):
        dataset[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_names_the_broken_video(folder, tmp_path, workers):
    manifest = broken(folder, tmp_path, "04.mp4")
    dataset = VideoDataset(manifest, UniformClips(2), WholeFrame((16, 16)), replace=False)
    kind = RuntimeError if workers else UnreadableVideo
    with pytest.raises(kind, match=r"04\.mp4(.|\s)*verify"):
        list(DataLoader(dataset, batch_size=4, num_workers=workers))


def test_a_video_that_breaks_in_the_middle(folder, tmp_path):
    file = write_numbered(tmp_path / "a.mp4", 60)
    write_numbered(tmp_path / "b.mp4", 60)
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + len(content) // 3
    content[start : start + 600] = bytes(600)
    file.write_bytes(content)
    manifest = listed(tmp_path, Entry("a.mp4"), Entry("b.mp4"))
    assert manifest.readable.all()  # its header is whole
    dataset = VideoDataset(manifest, UniformClips(10, 1), WholeFrame((16, 16)), max_unreadable=0.5)
    sample = dataset[0]
    assert sample["replaced"]
    assert sample["index"] == 1


def test_a_clip_longer_than_its_video_names_the_file(folder):
    dataset = VideoDataset(listed(folder), RandomClip(64, short="error"), WholeFrame((16, 16)))
    with pytest.raises(ValueError, match=r"03.mp4: the clip needs 64 frames and the video has 33"):
        dataset[3]


def test_labels_that_are_not_there(folder):
    rows = (Entry("00.mp4", 1), Entry("01.mp4"))
    with pytest.raises(ValueError, match=r"1 of 2 videos have no label:\s+01\.mp4"):
        VideoDataset(listed(folder, *rows), RandomClip(), WholeFrame(), labels=True)


def test_no_videos_or_a_wrong_limit(folder):
    manifest = listed(folder)
    with pytest.raises(ValueError, match="no video"):
        VideoDataset(manifest.select([]), RandomClip(), WholeFrame())
    with pytest.raises(ValueError, match="max_unreadable=5"):
        VideoDataset(manifest, RandomClip(), WholeFrame(), max_unreadable=5)


def test_it_can_be_pickled(folder):
    dataset = VideoDataset(listed(folder), JitteredClip(4), ScaleCrop(16, (16, 20)))
    assert same(pickle.loads(pickle.dumps(dataset))[(1, 2)], dataset[(1, 2)])
