"""The tracker on maps whose answer is known, and on what is no video of an object."""

import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_vssl.tracking import MotionSaliency, Saliency, Tracker

HEIGHT, WIDTH = 48, 64


class Given(Saliency):
    """Maps that are known beforehand."""

    short_side = 48
    settings: dict[str, object] = {"kind": "given"}  # noqa: RUF012

    def __init__(self, maps):
        self.maps = torch.as_tensor(maps, dtype=torch.float32)

    def __call__(self, frames, video="", numbers=()):
        return self.maps


def frames(count, height=HEIGHT, width=WIDTH):
    return torch.zeros(count, 3, height, width, dtype=torch.uint8)


def rectangle(maps, t, x, y, width, height, value=1.0):
    maps[t, max(y, 0) : y + height, max(x, 0) : x + width] = value


def two_objects(count=20):
    """A large one that moves to the right, a small one that stays."""
    maps = np.zeros((count, HEIGHT, WIDTH))
    for t in range(count):
        rectangle(maps, t, 2 + t, 10, 16, 20)
        rectangle(maps, t, 50, 2, 6, 6)
    return maps


def track(maps, **options):
    return Tracker(Given(maps), short_side=48, **options)(frames(len(maps)))


def test_the_largest_object_is_followed_alone():
    tracked = track(two_objects())
    assert tracked.masks.shape == (20, HEIGHT, WIDTH)
    assert tracked.masks.dtype == torch.bool
    assert tracked.boxes.dtype == torch.float32
    for t in range(20):
        assert tracked.boxes[t].tolist() == [2 + t, 10, 18 + t, 30]
        assert tracked.masks[t].sum() == 16 * 20
        assert tracked.masks[t, 10:30, 2 + t : 18 + t].all()
    assert tracked.found.all()


def test_boxes_are_those_of_the_masks():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    maps = np.stack([np.hypot(y - 20 - t, (x - 20 - t) / 2) < 7 + rng.random() for t in range(9)])
    tracked = track(maps)
    for mask, box in zip(tracked.masks.numpy(), tracked.boxes.tolist(), strict=True):
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        assert box == [columns.start, rows.start, columns.stop, rows.stop]


def test_where_it_is_lost_there_is_no_mask():
    maps = two_objects()
    maps[8:12, 10:30] = 0
    tracked = track(maps)
    lost = [t in range(8, 12) for t in range(20)]
    assert tracked.boxes[:, 0].isnan().tolist() == lost
    assert (~tracked.masks.flatten(1).any(1)).tolist() == lost
    assert tracked.found.tolist() == [not gone for gone in lost]
    short = track(maps, max_age=2)  # what comes back is another then
    assert short.found.sum() < tracked.found.sum()
    assert short.found[:8].all() != short.found[12:].all()


def test_first_is_the_largest_where_it_begins():
    maps = np.zeros((20, HEIGHT, WIDTH))
    for t in range(20):
        rectangle(maps, t, 4, 4, 8, 8)
        if t >= 5:
            rectangle(maps, t, 30, 10, 20, 20)
    assert track(maps).boxes[10].tolist() == [30, 10, 50, 30]
    assert not track(maps).found[0]
    first = track(maps, target="first")
    assert first.boxes[10].tolist() == [4, 4, 12, 12]
    assert first.found.all()


def test_a_surer_object_wins_over_one_as_large():
    maps = np.zeros((6, HEIGHT, WIDTH))
    for t in range(6):
        rectangle(maps, t, 4, 4, 10, 10, 0.6)
        rectangle(maps, t, 40, 4, 10, 10, 0.9)
    assert track(maps).boxes[0].tolist() == [40, 4, 50, 14]


def test_holes_are_filled_and_corners_connect():
    maps = two_objects(5)
    maps[:, 15:20, 9:12] = 0
    maps[0, 30, 18] = 1  # touches the corner of the first rectangle
    tracked = track(maps)
    assert tracked.masks[2].sum() == 16 * 20
    assert tracked.masks[0].sum() == 16 * 20 + 1
    open_side = two_objects(5)
    open_side[:, 10:20, 9:12] = 0  # a bay is no hole
    assert track(open_side).masks[2].sum() == 16 * 20 - 10 * 3


def test_a_hole_does_not_leak_over_time():
    maps = two_objects(3)
    maps[1, 15:20, 9:12] = 0
    maps[2] = 0  # the ground of the next frame lies beside the hole in the array
    assert track(maps, min_hits=1).masks[1].sum() == 16 * 20


def test_specks_and_whole_scenes_are_no_objects():
    maps = np.zeros((5, HEIGHT, WIDTH))
    maps[:, 3, 3] = 1
    assert not track(maps).found.any()
    maps[:] = 1
    assert not track(maps).found.any()
    assert track(maps, max_area=1.0).found.all()


def test_a_flash_is_no_track():
    maps = np.zeros((10, HEIGHT, WIDTH))
    rectangle(maps, slice(4, 6), 10, 10, 20, 20)
    assert not track(maps).found.any()
    assert track(maps, min_hits=2).found.tolist() == [t in (4, 5) for t in range(10)]


def test_a_single_frame_has_an_object():
    maps = np.zeros((1, HEIGHT, WIDTH))
    rectangle(maps, 0, 10, 10, 20, 20)
    assert track(maps).found.tolist() == [True]


def test_masks_have_the_size_of_the_frames():
    maps = two_objects()
    tracker = Tracker(Given(maps), short_side=24)
    tracked = tracker(frames(20, 96, 128))
    assert tracked.masks.shape == (20, 96, 128)
    for t in (0, 7, 19):
        true = torch.zeros(96, 128, dtype=torch.bool)
        true[20:60, 4 + 2 * t : 36 + 2 * t] = True
        both, either = (true & tracked.masks[t]).sum(), (true | tracked.masks[t]).sum()
        assert both / either > 0.85


@pytest.mark.parametrize(
    "shape", [(20, HEIGHT, HEIGHT), (19, HEIGHT, WIDTH), (20, 1, HEIGHT, WIDTH)]
)
def test_maps_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match="saliency maps"):
        Tracker(Given(np.zeros(shape)))(frames(20))


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(3, 8, 8)],
)
def test_what_are_no_frames_is_refused(wrong):
    with pytest.raises(ValueError, match="frames"):
        Tracker(MotionSaliency())(wrong)


def test_no_frames_give_no_masks():
    tracked = Tracker(MotionSaliency())(frames(0))
    assert tracked.masks.shape == (0, HEIGHT, WIDTH)
    assert tracked.boxes.shape == (0, 4)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_video_of_one_colour_has_no_object(value, count):
    tracked = Tracker(MotionSaliency())(torch.full((count, 3, 64, 80), value, dtype=torch.uint8))
    assert not tracked.found.any()
    assert not tracked.masks.any()
    assert tracked.boxes.isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"min_area": 0.5, "max_area": 0.4},
        {"max_regions": 0},
        {"min_hits": 0},
        {"short_side": 0},
        {"gate": 2.0},
        {"max_age": -1},
        {"target": "any"},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Tracker(MotionSaliency(), **wrong)


def test_settings_name_everything_and_it_travels():
    tracker = Tracker(MotionSaliency(lag=2), gate=0.25)
    assert tracker.settings["gate"] == 0.25
    assert tracker.settings["saliency.lag"] == 2
    video = torch.randint(0, 255, (8, 3, 40, 40), dtype=torch.uint8)
    copy = pickle.loads(pickle.dumps(tracker))
    assert copy.settings == tracker.settings
    assert torch.equal(copy(video).masks, tracker(video).masks)
