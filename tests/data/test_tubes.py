import json
import lzma
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_vssl.data.clips import CentreClip, RandomClip, TrackedPair, TrackedSpeeds
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.manifest import Entry, Manifest, build_manifest
from lightning_vssl.data.tubes import (
    Tube,
    TubeFile,
    box_masks,
    cut_masks,
    pack_masks,
    shrink_masks,
    tube_table,
    unpack_masks,
    write_tubes,
)
from lightning_vssl.data.windows import RandomResizedCrop, ThreeCrops, WholeFrame
from tests.videos import write_video


def discs(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A disc that wanders, (F, H, W) bool; gone in some frames."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.3, 0.7, size=2) * [height, width]
    step = rng.uniform(-1, 1, size=2)
    radius = rng.uniform(0.15, 0.3) * min(height, width)
    places = centre + step * np.arange(frames)[:, None]
    masks = (y - places[:, 0, None, None]) ** 2 + (x - places[:, 1, None, None]) ** 2 < radius**2
    masks[rng.random(frames) < 0.2] = False
    return masks


def tube(path: str, masks: np.ndarray, fps: float = 25.0, error: str = "") -> Tube:
    return Tube(path, np.arange(len(masks)) / fps, masks, error)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tubes = [
        tube("b.mp4", discs(40, 30, 40, 1)),
        tube("a.mp4", discs(20, 36, 24, 2)),
        tube("empty.mp4", np.zeros((10, 30, 30), bool)),
        tube("broken.mp4", np.zeros((0, 0, 0), bool), error="no key frame"),
    ]
    path = tmp_path / "tubes.parquet"
    write_tubes(path, tube_table(tubes), source="test", parameters={"side": 30})
    return path


def reader(path: Path) -> TubeFile:
    return TubeFile(path, cache_dir=path.parent / "cache")


class TestPacking:
    @pytest.mark.parametrize("shape", [(0, 4, 5), (1, 1, 1), (3, 7, 5), (40, 64, 114)])
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_nothing_is_lost(self, shape, share):
        masks = np.random.default_rng(0).random(shape) < share
        assert np.array_equal(unpack_masks(pack_masks(masks), *shape), masks)

    def test_long_runs(self):
        masks = np.zeros((30, 64, 114), bool)  # beyond 16 bits
        masks[-1, -1, -1] = True
        assert np.array_equal(unpack_masks(pack_masks(masks), 30, 64, 114), masks)

    def test_the_bytes_are_as_the_module_says(self):
        masks = np.array([[[0, 1, 1], [0, 0, 1]]], bool)
        raw = np.frombuffer(lzma.decompress(pack_masks(masks)), "<u4")
        assert raw.tolist() == [1, 2, 2, 1]

    def test_damage_is_seen(self):
        packed = bytearray(pack_masks(discs(9, 20, 20)))
        with pytest.raises(ValueError, match=r"hold 3600 pixels, and 9 masks of 20 x 21"):
            unpack_masks(bytes(packed), 9, 20, 21)
        with pytest.raises(ValueError, match="damaged"):
            unpack_masks(bytes(packed[:-9]), 9, 20, 20)
        packed[len(packed) // 2] ^= 255
        with pytest.raises(ValueError, match="damaged"):
            unpack_masks(bytes(packed), 9, 20, 20)


class TestShapes:
    @pytest.mark.parametrize("size", [(24, 32), (25, 33), (50, 16), (16, 16), (8, 12)])
    def test_shrinking_keeps_half_covered_pixels(self, size):
        masks = discs(5, *size, seed=3)
        small = shrink_masks(masks, 16)
        scale = min(1, 16 / min(size))
        h, w = round(size[0] * scale), round(size[1] * scale)
        assert small.shape == (5, h, w)
        fine = np.kron(masks, np.ones((1, h, w)))  # every pixel cut into h x w parts
        shares = fine.reshape(5, h, size[0], w, size[1]).mean(axis=(2, 4))
        clear = np.abs(shares - 0.5) > 1e-3
        assert np.array_equal(small[clear], shares[clear] > 0.5)

    def test_a_small_object_does_not_vanish(self):
        masks = np.zeros((2, 300, 400), bool)
        masks[1, 200, 30] = True
        small = shrink_masks(masks, 30)
        assert small.sum(axis=(1, 2)).tolist() == [0, 1]
        assert small[1, 20, 3]

    def test_cutting_looks_at_the_centres(self):
        rng = np.random.default_rng(1)
        masks = (rng.random((3, 2, 20, 30)) < 0.5).astype(np.uint8)
        windows = np.array([[0, 0, 60, 40], [10.5, 3, 50, 33], [59, 39, 60, 40]])
        cut = cut_masks(masks, windows, (40, 60), (7, 9))
        for v, t, i, j in np.ndindex(3, 2, 7, 9):
            x0, y0, x1, y1 = windows[v]
            y, x = y0 + (i + 0.5) / 7 * (y1 - y0), x0 + (j + 0.5) / 9 * (x1 - x0)
            assert cut[v, t, i, j] == masks[v, t, int(y / 2), int(x / 2)]

    def test_boxes_of_masks(self):
        masks = discs(12, 20, 30).astype(np.uint8)
        masks[0, 2, 2] = 1  # apart from the disc
        boxes = box_masks(masks)
        for mask, box in zip(masks, boxes, strict=True):
            rows, columns = np.nonzero(mask)
            expected = np.zeros_like(mask)
            if len(rows):
                expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
            assert np.array_equal(box, expected)


class TestReading:
    def test_masks_of_the_nearest_frame(self, file):
        tubes = reader(file)
        assert (tubes.source, tubes.parameters, tubes.videos) == ("test", {"side": 30}, 3)
        assert tubes.side == 30
        asked = np.array([[0.0, 0.019, 0.021], [0.51, 1.0, 99.0]])
        found = tubes.masks("b.mp4", asked)
        assert found.shape == (2, 3, 30, 40)
        assert found.dtype == np.uint8
        masks = discs(40, 30, 40, 1)
        for v, t in np.ndindex(2, 3):
            frame = np.abs(np.arange(40) / 25 - asked[v, t]).argmin()
            assert np.array_equal(found[v, t], masks[frame])
            assert tubes.tracked("b.mp4", asked)[v, t] == masks[frame].any()

    def test_a_video_without_an_object_is_not_missing(self, file):
        tubes = reader(file)
        row = int(tubes.rows(["empty.mp4"])[0])
        assert row >= 0
        assert not tubes.tracked(row, np.arange(5.0)).any()
        assert not tubes.masks(row, np.arange(5.0)).any()
        assert tubes.rows(["broken.mp4", "no.mp4"]).tolist() == [-1, -1]
        assert not tubes.tracked(-1, np.zeros((2, 3))).any()
        with pytest.raises(KeyError, match=r"no tube of no\.mp4"):
            tubes.masks("no.mp4", np.zeros(1))

    def test_pickled_it_is_small_and_reads_the_same(self, file):
        tubes = reader(file)
        expected = tubes.masks(0, np.arange(9) / 10)
        assert isinstance(tubes._opened()["packed"], np.memmap)
        data = pickle.dumps(tubes)
        assert len(data) < 1000
        assert np.array_equal(pickle.loads(data).masks(0, np.arange(9) / 10), expected)

    def test_a_folder_of_shards(self, tmp_path):
        for part in range(3):
            made = [tube(f"{part}{i}.mp4", discs(10, 20, 20, 2 * part + i)) for i in range(2)]
            write_tubes(tmp_path / "in" / f"{part}.parquet", tube_table(made), source="x")
        tubes = TubeFile(tmp_path / "in", cache_dir=tmp_path)
        for seed, name in enumerate(["00", "01", "10", "11", "20", "21"]):
            found = tubes.masks(f"{name}.mp4", np.arange(10) / 25)
            assert np.array_equal(found, discs(10, 20, 20, seed))


class TestBadFiles:
    def test_none_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no tube file .*recipes/jobs/track\.yaml"):
            reader(tmp_path / "no.parquet")
        with pytest.raises(FileNotFoundError, match=r"no \*\.parquet in the folder"):
            TubeFile(tmp_path)

    @pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
    def test_truncated(self, file, keep):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
        with pytest.raises(ValueError, match=r"tubes\.parquet is not a whole Parquet file"):
            reader(file)
        assert not list((file.parent / "cache").glob("*"))

    def test_a_missing_shard_names_its_videos(self, tmp_path):
        for part in range(2):
            made = [tube(f"{part}{i}.mp4", discs(10, 20, 20)) for i in range(2)]
            write_tubes(tmp_path / "in" / f"{part}.parquet", tube_table(made), source="x")
        (tmp_path / "in" / "1.parquet").unlink()
        tubes = TubeFile(tmp_path / "in", cache_dir=tmp_path)
        table = pa.table({"path": ["00.mp4", "01.mp4", "10.mp4", "11.mp4"]})
        manifest = Manifest.__new__(Manifest)
        manifest.table, manifest.root = table, tmp_path
        with pytest.raises(ValueError, match=r"2 of 4 training videos(.|\n)*11\.mp4: not in the f"):
            tubes.covering(manifest, name="training", max_missing=0.4)
        rows, said = tubes.covering(manifest, max_missing=0.5)
        assert rows.tolist() == [0, 1, -1, -1]
        assert "2 of 4" in said

    def changed(self, file: Path, **columns: object) -> Path:
        table = pq.read_table(file)
        for name, change in columns.items():
            values = table.column(name).to_pylist()
            values[1] = change(values[1]) if callable(change) else change
            place = table.column_names.index(name)
            kind = table.schema.field(name).type
            table = table.set_column(place, name, pa.array(values, kind))
        pq.write_table(table, file)
        return file

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"masks": lambda b: b[:-4]}, r"a\.mp4: its masks cannot be read: their bytes are dam"),
            ({"masks": b""}, r"a\.mp4: its masks cannot be read"),
            ({"height": 40}, r"a\.mp4: its masks hold \d+ pixels"),
            ({"width": 0}, r"a\.mp4: its areas go up to"),
            ({"area": lambda a: a[:-1]}, r"a\.mp4 has 20 times and 19 areas"),
            ({"area": lambda a: [9, *a[1:]]}, r"a\.mp4: its masks hold"),
            ({"area": lambda a: [10**6, *a[1:]]}, r"areas go up to 1000000"),
            ({"time": lambda t: t[::-1]}, r"a\.mp4: its times are not finite or do not ascend"),
            ({"path": "b.mp4"}, r"b\.mp4 has two rows"),
            ({"height": None}, r"a\.mp4 has no value in column height"),
        ],
    )
    def test_a_wrong_row_is_named(self, file, columns, message):
        with pytest.raises(ValueError, match=message):
            reader(self.changed(file, **columns))

    def test_another_kind_of_file(self, tmp_path):
        pq.write_table(pa.table({"path": ["x"]}), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="has no column time, area, height, width, masks"):
            reader(tmp_path / "x.parquet")
        write_tubes(tmp_path / "y.parquet", tube_table([]), source="x")
        with pytest.raises(ValueError, match="holds no video that was looked at"):
            reader(tmp_path / "y.parquet")
        table = pq.read_table(tmp_path / "y.parquet")
        pq.write_table(table.replace_schema_metadata({"lightning_vssl.tubes": "9"}),
                       tmp_path / "y.parquet")  # fmt: skip
        with pytest.raises(ValueError, match="tube format 9; this version reads 1"):
            reader(tmp_path / "y.parquet")

    def test_shards_of_two_jobs(self, tmp_path):
        made = tube_table([tube("a.mp4", discs(5, 9, 9))])
        write_tubes(tmp_path / "a.parquet", made, source="one")
        write_tubes(tmp_path / "b.parquet", made, source="other")
        with pytest.raises(ValueError, match="made in different ways"):
            TubeFile(tmp_path, cache_dir=tmp_path)

    @pytest.mark.parametrize(
        "wrong",
        [
            Tube("x.mp4", np.zeros(3), np.zeros((2, 4, 4), bool)),
            Tube("x.mp4", np.zeros(2), np.zeros((2, 4, 4), bool)),
            Tube("x.mp4", np.array([0, np.nan]), np.zeros((2, 4, 4), bool)),
        ],
    )
    def test_writing_refuses(self, wrong):
        with pytest.raises(ValueError, match=r"^x\.mp4: time"):
            tube_table([wrong])


RED = (200, 0, 0)


def red_square(frames: int, height: int, width: int, lost: range = range(0)) -> np.ndarray:
    """A pure red square on grey that moves by two pixels a frame, (F, H, W, 3)."""
    out = np.full((frames, height, width, 3), 90, np.uint8)
    for i in range(frames):
        if i not in lost:
            left, top = 2 * (i % ((width - 16) // 2)), 2 * (i % 5)
            out[i, top : top + 16, left : left + 16] = RED
    return out


def is_red(pixels: np.ndarray) -> np.ndarray:
    """Which pixels, (..., 3), are red, though they went through a codec."""
    return (pixels[..., 0].astype(int) - pixels[..., 2] > 60) & (pixels[..., 1] < 60)


LOST = range(70, 80)
FRAMES = 100


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos: a red square, lost for a while; a square for half a second; nothing at all."""
    root = tmp_path_factory.mktemp("videos")
    videos = {
        "long": red_square(FRAMES, 48, 64, LOST),
        "brief": red_square(60, 48, 64, range(12, 60)),
        "black": np.zeros((50, 48, 64, 3), np.uint8),
    }
    tubes = []
    for name, frames in videos.items():
        write_video(root / f"{name}.mp4", frames, options={"crf": "1"})
        tubes.append(tube(f"{name}.mp4", is_red(frames)))
    write_tubes(root / "tubes.parquet", tube_table(tubes), source="red")
    return root


def dataset(collection: Path, tmp_path: Path, clips, window, **settings) -> VideoDataset:
    names = [Entry(f"{name}.mp4") for name in ("long", "brief", "black")]
    manifest = build_manifest(names, collection, (), cache_dir=tmp_path)
    tubes = TubeFile(collection / "tubes.parquet", cache_dir=tmp_path)
    return VideoDataset(manifest, clips, window, tubes=tubes, **settings)


def pixels_of(sample) -> np.ndarray:
    return sample["video"].permute(0, 1, 3, 4, 2).numpy()


class TestSamples:
    def test_masks_are_the_red_pixels(self, collection, tmp_path):
        data = dataset(collection, tmp_path, TrackedPair(8, 2), WholeFrame((48, 64)))
        for epoch in range(8):
            sample = data[epoch, 0]
            assert sample["tracked"].tolist() == [True, True]
            assert sample["mask"].dtype == torch.uint8
            assert sample["mask"].shape == (2, 8, 48, 64)
            red = is_red(pixels_of(sample))
            assert red.any(axis=(2, 3)).all()
            assert np.array_equal(sample["mask"].numpy() > 0, red)

    @pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.3, 0.4)])
    def test_any_window_cuts_both_alike(self, collection, tmp_path, ratio):
        window = RandomResizedCrop(48, scale=(0.2, 0.9), ratio=ratio)
        data = dataset(collection, tmp_path, TrackedSpeeds(6), window)
        seen = 0
        for epoch in range(12):
            sample = data[epoch, 0]
            red, mask = is_red(pixels_of(sample)), sample["mask"].numpy() > 0
            assert mask.shape == (3, 6, 48, 48)
            assert sample["tracked"].tolist() == mask.any(axis=(1, 2, 3)).tolist()
            both = (red & mask).sum(axis=(1, 2, 3))
            either = (red | mask).sum(axis=(1, 2, 3))
            large = mask.sum(axis=(1, 2, 3)) > 6 * 100
            assert (both[large] / either[large] > 0.85).all()  # but for blurred edges
            seen += large.sum()
        assert seen > 20

    def test_masks_keep_their_own_resolution(self, collection, tmp_path):
        data = dataset(collection, tmp_path, CentreClip(4), WholeFrame((96, 144)))
        assert data.mask_shape == (48, 72)
        assert data[0]["mask"].shape == (1, 4, 48, 72)
        data = dataset(collection, tmp_path, CentreClip(4), WholeFrame((24, 20)))
        assert data[0]["mask"].shape == (1, 4, 24, 20)

    def test_boxes_and_middle_frames(self, collection, tmp_path):
        settings = TrackedPair(8, 2), WholeFrame((48, 64))
        each = dataset(collection, tmp_path, *settings)
        boxes = dataset(collection, tmp_path, *settings, tube_form="box")
        middle = dataset(collection, tmp_path, *settings, tube_form="middle")
        for epoch in range(3):
            mask = each[epoch, 0]["mask"]
            assert torch.equal(boxes[epoch, 0]["mask"], mask)  # it is a square
            assert torch.equal(middle[epoch, 0]["mask"], mask[:, 4:5].expand(2, 8, 48, 64))
        with pytest.raises(ValueError, match="tube_form='each'"):
            dataset(collection, tmp_path, *settings, tube_form="each")

    @pytest.mark.parametrize("row", [1, 2])
    def test_a_video_without_a_usable_tube_falls_back(self, collection, tmp_path, row):
        data = dataset(collection, tmp_path, TrackedPair(8, 2), WholeFrame((48, 64)))
        starts = set()
        for epoch in range(20):
            sample = data[epoch, row]
            assert sample["tracked"].tolist() == [False, False]
            assert not sample["mask"].any()
            assert sample["video"].shape == (2, 8, 3, 48, 64)
            starts |= set(sample["time"][:, 0].tolist())
        assert len(starts) > 15  # anywhere

    def test_a_shorter_tube_may_do(self, collection, tmp_path):
        clips = TrackedPair(4, 2, min_tracked=10)
        data = dataset(collection, tmp_path, clips, WholeFrame((48, 64)))
        for epoch in range(10):
            sample = data[epoch, 1]
            assert sample["tracked"].all()
            assert (sample["time"] < 12 / 25).all()

    def test_other_samplers_say_what_they_found(self, collection, tmp_path):
        data = dataset(collection, tmp_path, RandomClip(16, 1, clips=4), WholeFrame((48, 64)))
        seen = set()
        for epoch in range(20):
            sample = data[epoch, 0]
            inside = ~np.isin((sample["time"].numpy() * 25).round(), list(LOST)).any(axis=1)
            assert sample["tracked"].tolist() == inside.tolist()
            assert sample["mask"].flatten(1).any(1).tolist() == inside.tolist()
            seen |= set(inside.tolist())
        assert seen == {True, False}

    def test_crops_of_a_clip_share_its_frames(self, collection, tmp_path):
        data = dataset(collection, tmp_path, CentreClip(4), ThreeCrops(48))
        sample = data[0]
        assert sample["mask"].shape == (3, 4, 48, 48)
        red = is_red(pixels_of(sample))
        assert sample["tracked"].tolist() == red.any(axis=(1, 2, 3)).tolist()

    def test_masks_of_another_size_are_refused(self, collection, tmp_path):
        frames = red_square(100, 48, 64)
        turned = is_red(frames).transpose(0, 2, 1)
        made = [tube(f"{name}.mp4", turned) for name in ("long", "brief", "black")]
        write_tubes(tmp_path / "t.parquet", tube_table(made), source="x")
        data = dataset(collection, tmp_path, TrackedPair(4), WholeFrame((48, 64)))
        wrong = VideoDataset(
            data.manifest, data.clips, data.window,
            tubes=TubeFile(tmp_path / "t.parquet", cache_dir=tmp_path),
        )  # fmt: skip
        message = r"long\.mp4 is shown at 64 x 48 pixels, and its masks in .* are 48 x 64"
        with pytest.raises(ValueError, match=message):
            wrong[0]
        half = [tube(f"{n}.mp4", shrink_masks(is_red(frames), 31)) for n in ("long", "brief")]
        write_tubes(tmp_path / "h.parquet", tube_table(half), source="x")  # a smaller one will do
        fine = VideoDataset(
            data.manifest, data.clips, data.window, max_missing=0.5,
            tubes=TubeFile(tmp_path / "h.parquet", cache_dir=tmp_path),
        )  # fmt: skip
        assert fine[0]["tracked"].all()
        assert "1 of 3" in fine.untracked
        sample = fine[2]  # not in the file
        assert not sample["tracked"].any()
        assert sample["mask"].shape == (2, 4, 31, 41)

    @pytest.mark.parametrize("clips", [TrackedPair(4, distance="curriculum"), TrackedSpeeds(4)])
    def test_the_same_with_any_number_of_workers(self, collection, tmp_path, clips):
        data = dataset(collection, tmp_path, clips, WholeFrame((24, 32)))
        items = [(epoch, row) for epoch in (0, 50) for row in range(3)]
        found = [
            list(DataLoader(data, batch_size=2, sampler=items, num_workers=workers))
            for workers in (0, 2)
        ]
        for alone, shared in zip(*found, strict=True):
            assert alone.keys() == shared.keys()
            assert all(torch.equal(alone[name], shared[name]) for name in alone)
            assert alone["tracked"].dtype == torch.bool

    def test_the_curriculum_follows_the_epoch(self, collection, tmp_path):
        clips = TrackedPair(4, distance="curriculum", relax=10)
        data = dataset(collection, tmp_path, clips, WholeFrame((24, 32)))
        for epoch, most in ((0, 0.1), (4, 0.5), (9, 1.0)):
            gaps = []
            for later in range(epoch, epoch + 100, 100 if epoch < 9 else 4):
                time = data[later, 0]["time"]
                gaps.append(float((time[0, 0] - time[1, 0]).abs()))
            assert max(gaps) <= most * (FRAMES - 4) / 25 + 1e-6
        assert max(gaps) > 2  # of 3.84 seconds

    def test_without_tubes_nothing_is_constrained(self, collection, tmp_path):
        data = dataset(collection, tmp_path, TrackedPair(4), WholeFrame((24, 32)))
        plain = VideoDataset(data.manifest, data.clips, data.window)
        sample = plain[0]
        assert "mask" not in sample
        assert "tracked" not in sample
        assert sample["video"].shape == (2, 4, 3, 24, 32)


def test_ten_seconds_take_less_than_20_kilobytes():
    """A moving object of a fifth of the frame, its outline rough, at 12.5 masks a second."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:256, 0:340]
    angle = np.arctan2(y - 128, x - 170)
    masks = np.zeros((125, 256, 340), bool)
    for i in range(125):
        rough = 1 + 0.15 * sum(np.sin(k * angle + rng.uniform(0, 0.6)) for k in (3, 5, 8)) / 3
        distance = np.hypot(y - 128 - 30 * np.sin(i / 9), x - 170 - 60 * np.cos(i / 14))
        masks[i] = distance < 72 * rough
    assert 0.15 < masks.mean() < 0.25
    packed = pack_masks(shrink_masks(masks, 64))
    assert len(packed) < 20_000
    assert re.fullmatch(r"\d+", json.dumps(len(packed)))
