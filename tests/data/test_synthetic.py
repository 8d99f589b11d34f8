"""The built-in videos: the same pixels from the same seed, true labels, exact annotation."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lightning_vssl.data.synthetic import MOTIONS, OBJECTS, compose, draw, labels, render

SMALL = {"size": (64, 72), "frames": 12}


def digest(drawn) -> str:
    return hashlib.sha256(drawn.frames.tobytes() + drawn.masks.tobytes()).hexdigest()[:16]


def find(motion, kind=None, split="train", seed=0, start=0):
    """The next index whose main object moves (and looks) so."""
    for index in range(start, start + 4096):
        found = labels(seed, index, split)
        if found[0] == MOTIONS.index(motion) and kind in (None, OBJECTS[found[1]]):
            return index
    raise AssertionError("no such video")


def alone(scene):
    """The scene without the other objects."""
    return replace(
        scene,
        shapes=scene.shapes[:1],
        tracks=scene.tracks[:1],
        front=scene.front[:1],
        lights=scene.lights[:2],
    )


def centroids(masks, scene):
    """Mass centres of object 1 on the torus, unwrapped over time, (T, 2) as (x, y)."""
    path = []
    for axis, length in ((2, scene.width), (1, scene.height)):
        angle = 2 * np.pi * (np.arange(length) + 0.5) / length
        mass = (masks == 1).sum(axis=3 - axis)  # (T, length)
        path.append(np.unwrap(np.angle(mass @ np.exp(1j * angle))) * length / (2 * np.pi))
    return np.stack(path, axis=1)


@pytest.mark.parametrize(
    ("seed", "index", "split", "borders", "expected"),
    [
        (0, 0, "train", "wrap", "9f2b01751a264d48"),
        (0, 0, "test", "wrap", "85120fe4bb41be33"),
        (7, 99_999, "train", "wrap", "cd851047f49f8e95"),
        (0, 2, "train", "bounce", "038aa2cb42002736"),
    ],
)
def test_same_seed_same_pixels_on_every_machine(seed, index, split, borders, expected):
    drawn = draw(seed, index, split, borders=borders, **SMALL)
    assert digest(drawn) == expected
    assert digest(draw(seed, index, split, borders=borders, **SMALL)) == expected


def test_every_index_seed_and_split_is_another_video():
    names = [(0, 0, "train"), (0, 1, "train"), (1, 0, "train"), (0, 0, "test"), (2**40, 0, "train")]
    assert len({digest(draw(*name, **SMALL)) for name in names}) == len(names)


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_are_balanced_and_independent(split):
    pairs = np.array([labels(3, index, split) for index in range(4800)])
    table = np.zeros((len(MOTIONS), len(OBJECTS)), int)
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    assert (table == 100).all()
    assert (np.sort(pairs[:, 0].reshape(-1, 8), axis=1) == np.arange(8)).all()
    # The order itself says nothing: motion against place in the row, object against the last one.
    place = np.tile(np.arange(8), 600)
    for a, b in (
        (pairs[:, 0], place),
        (pairs[1:, 1], pairs[:-1, 1]),
        (pairs[1:, 1], pairs[:-1, 0]),
    ):
        counts = np.zeros((8, 8), int)
        np.add.at(counts, (a, b), 1)
        counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
        assert stats.chi2_contingency(counts).pvalue > 1e-4
    assert not (pairs[:48] == [labels(4, index, split) for index in range(48)]).all()


def test_no_frame_of_the_tracks_tells_the_motion():
    # Position, size, orientation of the main object at the first, a middle and the last frame:
    # one law for all motions, and the one that the module states.
    rows: dict[int, list[list[float]]] = {motion: [] for motion in range(8)}
    for index in range(1600):
        scene = compose(5, index, "train", size=(96, 128), frames=60)
        track = scene.tracks[0]
        for t in (0, 17, 59):
            size = (np.log(track.radius[t] / 96) - np.log(0.14)) / np.log(0.31 / 0.14)
            at = [track.x[t] / 128 % 1, track.y[t] / 96 % 1, track.angle[t] / (2 * np.pi) % 1, size]
            rows[scene.motion].append([*at, len(scene.shapes), scene.lights[0]])
    table = np.array([rows[motion] for motion in range(8)]).reshape(8, 200, 3, 6)
    for t in range(3):
        for law in range(4):
            for motion in range(8):
                assert stats.kstest(table[motion, :, t, law], "uniform").pvalue > 1e-4
        for law in (4, 5):
            assert stats.kruskal(*table[:, :, t, law]).pvalue > 1e-4


def test_splits_share_no_instance_texture_or_background():
    seen: dict[str, set[bytes]] = {}
    for split in ("train", "test"):
        parts: set[bytes] = set()
        for index in range(24):
            scene = compose(0, index, split, size=(48, 48), frames=1)
            for shape in scene.shapes:
                assert {knob % 2 for knob in shape.knobs} == {0 if split == "train" else 1}
                parts.add(repr(shape).encode())
            bare = replace(scene, shapes=(), tracks=(), front=(), lights=scene.lights[:1])
            parts.add(render_background(bare))
            parts.add(render(alone(scene)).frames.tobytes())
        seen[split] = parts
    assert len(seen["train"]) >= 72
    assert not seen["train"] & seen["test"]


def render_background(scene) -> bytes:
    from lightning_vssl.data.synthetic_scenes import Draws, _background

    part = 0 if scene.split == "train" else 1
    return _background(scene, Draws(scene.seed, part, 5, scene.index)).tobytes()


def bounds(rows, columns):
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("index", range(6))
def test_boxes_and_cover_agree_with_masks_of_whole_objects(index):
    scene = compose(1, index, "train", borders="bounce", **SMALL)
    drawn, whole = render(scene), render(alone(scene))
    for t in range(scene.frames):
        box = bounds(*np.nonzero(whole.masks[t]))
        assert drawn.boxes[t, 0].tolist() == box
        seen = np.nonzero(drawn.masks[t] == 1)
        assert drawn.visible[t, 0].tolist() == bounds(*seen)
        share = len(seen[0]) / whole.masks[t].sum()
        assert drawn.cover[t, 0] == pytest.approx(share, abs=1e-6)
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 72
        assert box[3] <= 64


def test_another_object_passes_over_the_followed_one():
    least, most = [], []
    for index in range(24):
        scene = compose(2, index, "train", borders="bounce", size=(96, 96), frames=48)
        if len(scene.shapes) > 1 and OBJECTS[scene.object] != "Ring":
            cover = render(scene).cover[:, 0]
            least.append(cover.min())
            most.append(cover.max())
    assert len(least) >= 8
    assert np.median(least) < 0.9
    assert np.median(most) > 0.98


def test_on_a_torus_boxes_belong_to_the_copy_whose_centre_is_in_the_frame():
    crossing = 0
    for index in (find("MoveLeft"), find("MoveDown"), find("MoveRight", start=40)):
        scene = alone(compose(0, index, "train", size=(64, 64), frames=60))
        drawn = render(scene)
        middle = (drawn.boxes[:, 0, :2] + drawn.boxes[:, 0, 2:]) / 2
        assert ((middle >= -5) & (middle <= 69)).all()
        assert np.isclose(drawn.cover[:, 0], 1).all()
        for t in range(scene.frames):
            # Shift the torus so that the object lies in the middle: one piece, whose box is known.
            x, y = (int(np.floor(value[t])) for value in (scene.tracks[0].x, scene.tracks[0].y))
            shifted = np.roll(drawn.masks[t], (32 - y, 32 - x), axis=(0, 1))
            rows, columns = np.nonzero(shifted)
            rows, columns = rows + y % 64 - 32, columns + x % 64 - 32  # of the one piece
            box = bounds(rows, columns)
            assert drawn.boxes[t, 0].tolist() == box
            inside = (rows >= 0) & (rows < 64) & (columns >= 0) & (columns < 64)
            assert drawn.visible[t, 0].tolist() == bounds(rows[inside], columns[inside])
            crossing += int(not inside.all())
    assert crossing > 20


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_motion_label_is_true_in_every_clip(motion):
    start = 0
    for _ in range(3):
        index = find(motion, "Triangle", start=start)
        start = index + 1
        scene = alone(compose(0, index, "train", size=(96, 96), frames=64))
        masks = render(scene).masks
        path = centroids(masks, scene)
        area = (masks == 1).sum(axis=(1, 2)).astype(float)
        for stride in (1, 2):
            for first in range(0, 64 - 15 * stride, 7):
                clip = slice(first, first + 15 * stride + 1, stride)
                check_motion(motion, path[clip], area[clip], turns(masks[clip], path[clip]))


def turns(masks, path):
    """Turn of a triangle from frame to frame, in degrees, clockwise as seen, (T - 1,)."""
    height, width = masks.shape[1:]
    angles = []
    for mask, (x, y) in zip(masks, path, strict=True):
        dx = (np.arange(width) + 0.5 - x + width / 2) % width - width / 2
        dy = (np.arange(height) + 0.5 - y + height / 2) % height - height / 2
        z = dx[None, :] + 1j * dy[:, None]
        angles.append(np.angle((z**3 * (mask == 1)).sum()))  # threefold: three times the angle
    return np.degrees(np.angle(np.exp(1j * np.diff(angles)))) / 3


def check_motion(motion, path, area, turn):
    stepped = np.diff(path, axis=0)
    moved = path[-1] - path[0]
    shift = 3.0 if motion == "Grow" else 0.7  # a triangle's mass is not at its centre
    still = np.abs(stepped).max() < shift
    direction = {"MoveLeft": (-1, 0), "MoveRight": (1, 0), "MoveUp": (0, -1), "MoveDown": (0, 1)}
    if motion in direction:
        along = stepped @ np.array(direction[motion])
        assert (along > 0.3).all()
        assert moved @ np.array(direction[motion]) > 0.12 * 96
        assert np.abs(stepped @ np.array(direction[motion])[::-1]).max() < 0.5
    elif motion == "Oscillate":
        # To and fro at least once in any clip, and no further than its reach.
        axis = np.linalg.svd(stepped)[2][0]
        speed = stepped @ axis
        assert speed.max() > 1
        assert speed.min() < -1
        assert np.ptp(path @ axis) < 0.3 * 96
        assert np.ptp(path @ axis) > 0.1 * 96
    else:
        assert still
    if motion == "Grow":
        growth = np.diff(np.log(area))
        assert (growth > 0).sum() >= 0.65 * len(growth)
        assert np.median(growth) > 0.01
    else:
        assert np.abs(np.diff(np.log(area))).max() < 0.15
    if motion == "TurnClockwise":
        stride = 2 if np.median(turn) > 9.5 else 1
        assert (turn > 3).all()
        assert 4.5 <= np.median(turn) / stride <= 9.5
    else:
        assert np.abs(np.median(turn)) < 1.5


@pytest.mark.slow
def test_floors_motion_is_not_in_colours_or_single_frames_but_is_in_differences():
    def features(split, count):
        found: dict[str, list[np.ndarray]] = {"colours": [], "frame": [], "change": []}
        motions = []
        for index in range(count):
            drawn = draw(11, index, split, size=(64, 64), frames=32)
            clip = drawn.frames[::2] >> 4
            bins = np.concatenate(
                [np.bincount(clip[..., c].ravel(), minlength=16) for c in range(3)]
            )
            small = drawn.frames[::2, ::4, ::4].mean(axis=-1)
            found["colours"].append(bins / bins.sum())
            found["frame"].append(small[8].ravel())
            change = np.abs(np.diff(small, axis=0))
            found["change"].append(np.sort(change.mean(axis=0).ravel()))
            motions.append(drawn.motion)
        return {name: np.array(rows) for name, rows in found.items()}, np.array(motions)

    train, known = features("train", 240)
    test, wanted = features("test", 120)
    right = {}
    for name in train:
        mean = train[name].mean(axis=0)
        a, b = train[name] - mean, test[name] - mean
        a /= np.linalg.norm(a, axis=1, keepdims=True)
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        near = np.argsort(-(b @ a.T), axis=1)[:, :20]
        votes = np.array([np.bincount(known[row], minlength=8).argmax() for row in near])
        right[name] = (votes == wanted).mean()
    assert right["colours"] <= 0.175
    assert right["frame"] <= 0.175
    assert right["change"] >= 0.25


def test_knows_what_it_cannot_draw():
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, got 16 x 64"):
        compose(0, 0, "train", size=(16, 64))
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        compose(0, 0, "train", frames=0)
    with pytest.raises(ValueError, match="fps must be above 0, got nan"):
        compose(0, 0, "train", fps=float("nan"))
    with pytest.raises(ValueError, match="index must be at least 0, got -1"):
        labels(0, -1, "train")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        labels(0, 0, "val")
