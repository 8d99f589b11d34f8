import json
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lightning_vssl.data.boxes import (
    SCALE,
    BoxFile,
    VideoBoxes,
    box_table,
    cut_boxes,
    write_boxes,
)
from lightning_vssl.data.clips import ClipPair, UniformClips
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.manifest import Entry, Manifest, build_manifest
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.data.video_files import video_name
from lightning_vssl.data.windows import RandomResizedCrop, ThreeCrops, WholeFrame

NAN = float("nan")


def video(
    path: str, times: list[float], boxes: list[list[list[float]]], error: str = ""
) -> VideoBoxes:
    """Boxes as nested lists, ragged; the table's rows are padded with NaN."""
    most = max((len(frame) for frame in boxes), default=0)
    padded = np.full((len(times), most, 4), np.nan)
    for t, frame in enumerate(boxes):
        padded[t, : len(frame)] = np.array(frame).reshape(-1, 4)
    return VideoBoxes(path, np.array(times), padded, error)


A = [0.1, 0.2, 0.5, 0.6]
B = [0.0, 0.0, 1.0, 1.0]
C = [0.25, 0.5, 0.75, 0.875]
VIDEOS = [
    video("b.mp4", [0.25, 0.75], [[A, B], [C]]),
    video("a.mp4", [0.0], [[C]]),
    video("c.mp4", [0.5, 1.5, 2.5], [[], [A, B, C], []]),
    video("broken.mp4", [], [], "no key frame"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "boxes.parquet"
    write_boxes(path, box_table(VIDEOS), source="slic", parameters={"segments": 16})
    return path


def reader(path: Path) -> BoxFile:
    return BoxFile(path, cache_dir=path.parent / "cache")


def floats(own: Path, **columns: list[object]) -> Path:
    """A user's own file of one video with float coordinates."""
    given: dict[str, list[object]] = {
        "path": ["mine.mp4"],
        "time": [[0.0, 0.5]],
        "count": [[1, 1]],
        "boxes": [[*A, *C]],
    }
    pq.write_table(pa.table({**given, **columns}), own)
    return own


def close(found: np.ndarray, expected: list[object]) -> bool:
    return np.allclose(found, np.array(expected, np.float64), atol=1 / SCALE, equal_nan=True)


class TestReading:
    def test_boxes_of_the_nearest_frame(self, file):
        boxes = reader(file)
        assert (boxes.source, boxes.parameters) == ("slic", {"segments": 16})
        assert (boxes.limit, boxes.videos) == (3, 3)
        none = [NAN] * 4
        found = boxes.for_frames("b.mp4", np.array([[0.0, 0.49, 0.5], [0.51, 0.75, 9.0]]))
        assert found.shape == (2, 3, 3, 4)
        assert found.dtype == np.float32
        first, second = [A, B, none], [C, none, none]
        assert close(found, [[first, first, first], [second, second, second]])
        found = boxes.for_frames("c.mp4", np.array([[0.5, 1.4, 2.2]]))
        assert close(found, [[[none] * 3, [A, B, C], [none] * 3]])

    def test_against_a_loop(self, tmp_path):
        rng = np.random.default_rng(0)
        made = []
        for i in range(30):
            times = np.cumsum(rng.uniform(0.1, 0.9, size=rng.integers(1, 9)))
            low = rng.uniform(0, 0.5, size=(len(times), 5, 2))
            boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, size=low.shape)], axis=2)
            boxes[rng.random(boxes.shape[:2]) < 0.3] = np.nan
            made.append(VideoBoxes(f"{rng.integers(10**9)}-{i}.mp4", times, boxes))
        for part in range(3):  # shards
            write_boxes(tmp_path / f"{part}.parquet", box_table(made[part::3]), source="x")
        boxes = reader(tmp_path)
        for entry in made:
            asked = rng.uniform(-1, 9, size=(2, 4))
            found = boxes.for_frames(entry.path, asked)
            for v, t in np.ndindex(2, 4):
                frame = entry.boxes[np.abs(entry.time - asked[v, t]).argmin()]
                kept = frame[~np.isnan(frame).any(axis=1)]
                assert np.allclose(found[v, t, : len(kept)], kept, atol=1 / SCALE)
                assert np.isnan(found[v, t, len(kept) :]).all()

    def test_floats_are_taken_too(self, tmp_path):
        for kind in (pa.float16(), pa.float32(), pa.float64()):
            own = floats(tmp_path / f"{kind}.parquet", boxes=pa.array([[*C, *C]], pa.list_(kind)))
            boxes = reader(own)
            assert boxes.source == "unknown"
            assert close(boxes.for_frames("mine.mp4", np.zeros((1, 1))), [[[C]]])

    def test_rows_of_one_video_are_joined(self, tmp_path):
        parts = [
            video("x.mp4", [3.0, 4.0], [[A], [B, C]]),
            video("y.mp4", [0.0], [[B]]),
            video("x.mp4", [1.0], [[C]]),
        ]
        write_boxes(tmp_path / "x.parquet", box_table(parts), source="x")
        boxes = reader(tmp_path / "x.parquet")
        found = boxes.for_frames("x.mp4", np.array([[1.0, 3.0, 4.0]]))
        none = [NAN] * 4
        assert close(found, [[[C, none], [A, none], [B, C]]])
        parts[2] = video("x.mp4", [3.0], [[C]])
        write_boxes(tmp_path / "x.parquet", box_table(parts), source="x")
        with pytest.raises(ValueError, match=r"x\.mp4 has two rows for the frame at 3\.000 s"):
            reader(tmp_path / "x.parquet")

    def test_pickled_it_is_small_and_reads_the_same(self, file):
        boxes = reader(file)
        expected = boxes.for_frames(0, np.zeros((1, 2)))
        assert isinstance(boxes._opened()[3], np.memmap)
        packed = pickle.dumps(boxes)
        assert len(packed) < 1000
        found = pickle.loads(packed).for_frames(0, np.zeros((1, 2)))
        assert np.array_equal(found, expected, equal_nan=True)

    def test_a_changed_file_is_read_anew(self, file):
        assert reader(file).limit == 3
        write_boxes(file, box_table([video("z.mp4", [0.0, 1.0], [[A], []])]), source="y")
        boxes = reader(file)
        assert (boxes.limit, boxes.videos, boxes.source) == (1, 1, "y")

    def test_a_video_without_boxes(self, file):
        boxes = reader(file)
        assert boxes.rows(["a.mp4", "no.mp4", "broken.mp4", "c.mp4"]).tolist() == [0, -1, -1, 2]
        assert np.isnan(boxes.for_frames(-1, np.zeros((2, 3)))).all()
        with pytest.raises(KeyError, match=r"no boxes of no\.mp4"):
            boxes.for_frames("no.mp4", np.zeros((1, 1)))

    def test_names(self):
        assert video_name("class/x.mp4", Path("/data")) == "class/x.mp4"
        assert video_name("/data/class/x.mp4", Path("/data")) == "class/x.mp4"
        assert video_name("/database/x.mp4", Path("/data")) == "/database/x.mp4"


class TestBadFiles:
    @pytest.mark.parametrize(
        ("box", "message"),
        [
            ([0.2, 0.2, 1.5, 0.6], "reaches outside [0, 1]"),
            ([-0.2, 0.2, 0.5, 0.6], "reaches outside [0, 1]"),
            ([20.0, 20.0, 150.0, 60.0], "reaches outside [0, 1]"),
            ([0.5, 0.2, 0.2, 0.6], "is reversed"),
            ([0.2, 0.6, 0.5, 0.2], "is reversed"),
            ([0.2, 0.2, 0.2, 0.6], "has no area"),
            ([0.2, 0.2, 0.200001, 0.6], "has no area"),
            ([0.2, NAN, 0.4, 0.6], "is not finite"),
            ([0.2, 0.1, float("inf"), 0.6], "is not finite"),
        ],
    )
    def test_a_bad_box(self, tmp_path, box, message):
        own = floats(tmp_path / "own.parquet", boxes=[[*A, *box]])
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            reader(own)
        text = str(caught.value)
        numbers = ", ".join(f"{number:g}" for number in box)
        assert f"{own}: mine.mp4, 0.500 s: the box ({numbers}) " in text
        assert "write_boxes" in text
        with pytest.raises(ValueError, match=re.escape(message)):
            box_table([video("mine.mp4", [0.0, 0.5], [[A], [box]])])

    def test_several_bad_boxes_are_counted(self, tmp_path):
        own = floats(tmp_path / "own.parquet", boxes=[[*([0.5] * 4), *([NAN] * 4)]])
        with pytest.raises(
            ValueError, match=r"0\.000 s.*has no area \(and 1 more boxes are wrong\)"
        ):
            reader(own)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"count": [[1]]}, "mine.mp4 has 2 times and 1 counts"),
            ({"count": [[1, 2]]}, "has 8 coordinates, and its counts ask for 12"),
            ({"count": [[-1, 3]]}, "has -1 boxes in one of its frames"),
            ({"time": [[0.5, 0.5]]}, "do not ascend (0.500, then 0.500 s)"),
            ({"time": [[0.5, NAN]]}, "has a frame at nan seconds"),
            ({"time": [[0, 1]]}, "column time holds list<"),
            ({"path": [3]}, "column path holds int64, not strings"),
            ({"boxes": [0.5]}, "column boxes holds double, not lists of uint16 or floats"),
            ({"path": [None]}, "column path holds null"),
            ({"time": pa.array([None], pa.list_(pa.float64()))}, "row 0 (mine.mp4) has no value"),
            ({"boxes": [[*A, 0.1, None, 0.2, 0.3]]}, "column boxes has a list with an empty place"),
            ({"count": [[0, 0]], "boxes": pa.array([[]], pa.list_(pa.float32()))}, "has a box"),
        ],
    )
    def test_columns_that_do_not_fit(self, tmp_path, columns, message):
        own = floats(tmp_path / "own.parquet", **columns)
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            reader(own)
        assert str(own) in str(caught.value)

    def test_missing_columns(self, tmp_path):
        own = tmp_path / "own.parquet"
        pq.write_table(pa.table({"path": ["a"], "bbox": [[0.1]]}), own)
        with pytest.raises(ValueError, match="no column time, count, boxes; its columns are path"):
            reader(own)

    def test_no_rows(self, tmp_path):
        write_boxes(tmp_path / "none.parquet", box_table([]), source="x")
        with pytest.raises(ValueError, match="holds no video with boxed frames"):
            reader(tmp_path / "none.parquet")

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"recipes/jobs/boxes\.yaml makes one"):
            reader(tmp_path / "none.parquet")
        with pytest.raises(FileNotFoundError, match=r"no \*\.parquet in the folder"):
            reader(tmp_path)
        (tmp_path / "text.parquet").write_text("no table")
        with pytest.raises(ValueError, match="is not a Parquet file"):
            reader(tmp_path / "text.parquet")

    def test_shards_of_two_sources(self, tmp_path):
        for name in ("a", "b"):
            table = box_table([video(f"{name}.mp4", [0.0], [[A]])])
            write_boxes(tmp_path / f"{name}.parquet", table, source=name)
        with pytest.raises(ValueError, match="were made in different ways"):
            reader(tmp_path)

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"x: time must be \(F,\) and boxes \(F, N, 4\)"):
            box_table([VideoBoxes("x", np.zeros(2), np.zeros((1, 3, 4)))])

    def test_a_write_that_fails_leaves_nothing(self, file, monkeypatch):
        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        before = file.read_bytes()
        monkeypatch.setattr(pq, "write_table", full)
        with pytest.raises(OSError, match="No space"):
            write_boxes(file, box_table(VIDEOS), source="x")
        assert file.read_bytes() == before
        assert [p.name for p in file.parent.iterdir()] == [file.name]


def listed(root: Path, *names: str) -> Manifest:
    table = {"path": names, "label": [-1] * len(names)}
    zeros = dict.fromkeys(("start", "end", "rate", "size", "mtime", "frames"), [0.0] * len(names))
    return Manifest(pa.table({**table, **zeros}), root)


class TestCovering:
    def test_all_there(self, file, tmp_path):
        rows, warning = reader(file).covering(listed(tmp_path, "c.mp4", f"{tmp_path}/a.mp4"))
        assert rows.tolist() == [2, 0]
        assert warning == ""

    def test_too_few_there(self, file, tmp_path):
        manifest = listed(tmp_path, "c.mp4", "no.mp4", "broken.mp4", "a.mp4")
        with pytest.raises(ValueError, match="2 of 4 listed videos have no boxes") as caught:
            reader(file).covering(manifest, max_missing=0.4)
        text = str(caught.value)
        assert "no.mp4: not in the file\n  broken.mp4: no key frame" in text
        assert "More than max_missing=0.4 allows. The file names videos such as a.mp4" in text
        rows, warning = reader(file).covering(manifest, name="training", max_missing=0.5)
        assert rows.tolist() == [2, -1, -1, 0]
        assert "2 of 4 training videos" in warning

    def test_none_there_is_always_an_error(self, file, tmp_path):
        names = [f"no{i:02d}.mp4" for i in range(14)]
        with pytest.raises(ValueError, match="14 of 14") as caught:
            reader(file).covering(listed(tmp_path, *names), max_missing=1.0)
        assert "no09.mp4" in str(caught.value)
        assert "no10.mp4" not in str(caught.value)
        assert "and 4 more" in str(caught.value)


class TestCutting:
    def test_by_hand(self):
        # A frame of 200 x 100; the window is its right half, shown at twice its size.
        shares = np.array([[[[0.5, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 2 / 3], [NAN] * 4]]])
        found = cut_boxes(shares, np.array([[100.0, 0, 200, 100]]), (100, 200), (200, 200))
        assert found.dtype == np.float32
        expected = [[0, 0, 200, 200], [0, 100, 100, 400 / 3], [NAN] * 4]
        assert np.allclose(found[0, 0], expected, atol=1e-4, equal_nan=True)

    def test_two_pixels_are_kept_and_less_is_not(self):
        window, frame = np.array([[50.0, 0, 100, 50]]), (100, 100)
        for edge, kept in ((0.52, True), (0.5199, False), (0.5, False), (0.3, False)):
            shares = np.array([[[[0.0, 0.0, edge, 0.5]]]])
            found = cut_boxes(shares, window, frame, (50, 50))
            assert np.isfinite(found).all() == kept, edge
        high = np.array([[[[0.5, 0.1, 1.0, 0.11]]]])  # 1 pixel high
        assert np.isnan(cut_boxes(high, window, frame, (50, 50))).all()

    def test_each_clip_has_its_window(self):
        shares = np.tile(np.array([0.2, 0.2, 0.8, 0.8]), (2, 3, 1, 1))
        windows = np.array([[0.0, 0, 10, 10], [5, 5, 10, 10]])
        found = cut_boxes(shares, windows, (10, 10), (20, 40))
        assert np.allclose(found[0], [8, 4, 32, 16])
        assert np.allclose(found[1], [0, 0, 24, 12])


class TestSamples:
    """Samples of the built-in videos carry their boxes, cut as the pixels are."""

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("demo")
        return make_demo(root, "demo", videos=16, workers=1, progress=False)

    @pytest.fixture(scope="class")
    @classmethod
    def manifest(cls, root: Path) -> Manifest:
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.mp4"))[:4]
        entries = [Entry(file) for file in files]
        return build_manifest(entries, root, cache_dir=root / "c", workers=0, progress=False)

    @pytest.fixture
    def made(self, manifest: Manifest, tmp_path: Path) -> tuple[BoxFile, list[VideoBoxes]]:
        rng = np.random.default_rng(1)
        videos = []
        for row in range(1, 4):  # row 0 has none
            low = rng.uniform(0, 0.6, size=(6, 3, 2))
            boxes = np.concatenate([low, low + rng.uniform(0.05, 0.4, size=low.shape)], axis=2)
            name = manifest.table.column("path")[row].as_py()
            videos.append(VideoBoxes(name, 0.01 + 0.37 * np.arange(6), boxes))
        write_boxes(tmp_path / "boxes.parquet", box_table(videos), source="x")
        return reader(tmp_path / "boxes.parquet"), videos

    @pytest.mark.parametrize(
        ("clips", "window"),
        [
            (ClipPair(4, 3), RandomResizedCrop(48, independent=True)),
            (UniformClips(4, 2, clips=2), ThreeCrops(64)),
            (UniformClips(4, 2, clips=2), WholeFrame((32, 40))),
        ],
        ids=("random", "three", "whole"),
    )
    def test_equal_a_hand_computation(self, manifest, made, clips, window):
        boxes, videos = made
        with pytest.raises(ValueError, match="1 of 4"):
            VideoDataset(manifest, clips, window, boxes=boxes)
        dataset = VideoDataset(manifest, clips, window, boxes=boxes, max_missing=0.25)
        assert "1 of 4" in dataset.unboxed
        plain = VideoDataset(manifest, clips, window)
        height, width = window.shape
        for row in range(1, 4):
            sample = dataset[(1, row)]
            found = sample.pop("boxes")
            same = plain[(1, row)]
            assert sample.keys() == same.keys()
            assert all(torch.equal(sample[name], same[name]) for name in same)
            assert found.dtype == torch.float32
            assert found.shape == (*sample["time"].shape, 3, 4)
            size = [int(manifest.column(name)[row]) for name in ("width", "height")]
            for v, t, n in np.ndindex(*found.shape[:3]):
                x0, y0, x1, y1 = sample["crop"][v].tolist()
                truth = videos[row - 1]
                near = int(np.abs(truth.time - float(sample["time"][v, t])).argmin())
                a = truth.boxes[near, n] * (*size, *size)
                scale = width / (x1 - x0), height / (y1 - y0)
                expected = [
                    min(max((a[0] - x0) * scale[0], 0), width),
                    min(max((a[1] - y0) * scale[1], 0), height),
                    min(max((a[2] - x0) * scale[0], 0), width),
                    min(max((a[3] - y0) * scale[1], 0), height),
                ]
                if min(expected[2] - expected[0], expected[3] - expected[1]) < 2:
                    expected = [NAN] * 4
                assert np.allclose(found[v, t, n], expected, atol=0.02, equal_nan=True)
        assert torch.isnan(dataset[(1, 0)]["boxes"]).all()

    def test_workers_give_the_same(self, manifest, made):
        boxes, _ = made
        dataset = VideoDataset(
            manifest, ClipPair(4, 3), WholeFrame((32, 40)), boxes=boxes, max_missing=0.25
        )
        found = []
        for workers in (0, 2):
            loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=workers)
            found.append(torch.cat([batch["boxes"] for batch in loader]))
            assert found[-1].shape == (4, 2, 4, 3, 4)
        assert torch.equal(found[0].nan_to_num(-1), found[1].nan_to_num(-1))


def test_metadata_is_plain(file):
    metadata = pq.read_schema(file).metadata
    assert metadata[b"lightning_vssl.boxes"] == b"1"
    assert json.loads(metadata[b"lightning_vssl.boxes.parameters"]) == {"segments": 16}
