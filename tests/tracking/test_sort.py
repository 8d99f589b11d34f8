"""The filter against a loop of its equations and a step by hand; association against all ways."""

import itertools

import numpy as np
import pytest

from lightning_vssl.tracking.sort import (
    Sort,
    associate,
    box_iou,
    mask_iou,
    predict,
    to_boxes,
    to_measurement,
    update,
)


def filled(box, height=40, width=60):
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def slow_step(x, P, z):
    """Kalman's equations for one track as textbooks print them, with an explicit inverse."""
    F = np.eye(7)
    for i in range(3):
        F[i, i + 4] = 1
    H = np.eye(4, 7)
    Q = np.diag([1, 1, 1, 1, 1e-2, 1e-2, 1e-4])
    R = np.diag([1.0, 1, 10, 10])
    if x[2] + x[6] <= 0:
        x = np.array([*x[:6], 0.0])
    x, P = F @ x, F @ P @ F.T + Q
    if z is None:
        return x, P
    K = P @ H.T @ np.linalg.inv(H @ P @ H.T + R)
    return x + K @ (z - H @ x), (np.eye(7) - K @ H) @ P


START = np.diag([10.0, 10, 10, 10, 1e4, 1e4, 1e4])


def test_one_step_by_hand():
    # x: variance 10 + 10000 + 1 = 10011 when foreseen, gain 10011 / 10012; its velocity shares
    # 10000 with it, gain 10000 / 10012. The box seen is 2 to the right of the one before.
    state = np.array([[20.0, 30, 100, 1, 0, 0, 0]])
    state, spread = predict(state, START[None])
    np.testing.assert_allclose(spread[0, 0, [0, 4]], [10011, 10000])
    state, spread = update(state, spread, np.array([[22.0, 30, 100, 1]]))
    np.testing.assert_allclose(state[0, [0, 4]], [20 + 2 * 10011 / 10012, 2 * 10000 / 10012])
    np.testing.assert_allclose(state[0, [1, 2, 3, 5, 6]], [30, 100, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(spread[0, 0, 0], 10011 / 10012)


def test_stacked_filter_equals_a_loop_over_tracks():
    rng = np.random.default_rng(0)
    seen = rng.uniform([0, 0, 50, 0.5], [400, 400, 4000, 2], (3, 4))
    state = np.concatenate([seen, np.zeros((3, 3))], axis=1)
    spread = np.repeat(START[None], 3, 0)
    slow = [(row.copy(), START.copy()) for row in state]
    for step in range(12):
        state, spread = predict(state, spread)
        seen = seen + rng.normal(size=(3, 4)) * [4, 4, 60, 0.02]
        known = [i for i in range(3) if (step + i) % 4]  # the others go unseen
        state[known], spread[known] = update(state[known], spread[known], seen[known])
        slow = [slow_step(*slow[i], seen[i] if i in known else None) for i in range(3)]
    np.testing.assert_allclose(state, [x for x, _ in slow], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(spread, [P for _, P in slow], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(spread, spread.swapaxes(1, 2), atol=1e-9)


def test_an_area_does_not_shrink_below_nothing():
    state = np.array([[0.0, 0, 5, 1, 0, 0, -9]])
    moved, _ = predict(state, START[None])
    assert moved[0, 2] == 5
    assert moved[0, 6] == 0
    assert state[0, 6] == -9  # what was given stays


def test_boxes_and_measurements_are_inverse():
    boxes = np.array([[1.0, 2, 11, 42], [0, 0, 3, 1]])
    seen = to_measurement(boxes)
    np.testing.assert_allclose(seen, [[6, 22, 400, 0.25], [1.5, 0.5, 3, 3]])
    np.testing.assert_allclose(to_boxes(seen), boxes)


def test_overlap_of_boxes_is_that_of_their_masks():
    rng = np.random.default_rng(1)
    low = rng.integers(0, 20, (12, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 20, (12, 2))], axis=1)
    masks = np.stack([filled(box) for box in boxes])
    by_hand = [[(a & b).sum() / (a | b).sum() for b in masks[5:]] for a in masks[:5]]
    first, second = boxes[:5].astype(float), boxes[5:].astype(float)
    np.testing.assert_allclose(box_iou(first, second), by_hand, rtol=1e-12)
    np.testing.assert_allclose(mask_iou(masks[:5], masks[5:]), by_hand, rtol=1e-12)
    empty = np.zeros((1, 4, 4), bool)
    assert mask_iou(empty, empty) == 0


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 5), (0, 3), (3, 0)])
def test_association_finds_the_largest_sum(shape):
    rng = np.random.default_rng(sum(shape))
    for _ in range(20):
        overlap = rng.uniform(size=shape)
        small, large = sorted(shape)
        if shape[0] <= shape[1]:
            ways = (list(enumerate(p)) for p in itertools.permutations(range(large), small))
        else:
            ways = (
                [(i, j) for j, i in enumerate(p)]
                for p in itertools.permutations(range(large), small)
            )
        best = max(sum(overlap[i, j] for i, j in way) for way in ways)
        tracks, found = associate(overlap, 0.0)
        assert overlap[tracks, found].sum() == pytest.approx(best)
        assert len(set(tracks)) == len(set(found)) == small


def test_the_gate_undoes_pairs():
    tracks, found = associate(np.array([[0.29, 0.0], [0.0, 0.3]]), 0.3)
    assert tracks.tolist() == [1]
    assert found.tolist() == [1]


def test_two_that_pass_each_other_keep_their_numbers():
    # Where they meet, each box overlaps the other's last place more than its own next one does.
    sort = Sort(max_age=3)
    names = []
    for t in range(40):
        right = np.array([5.0 * t, 0, 5.0 * t + 40, 30])
        left = np.array([200 - 5.0 * t, 8, 240 - 5.0 * t, 38])
        names.append(
            sort(np.stack([right, left] if t % 2 else [left, right]))[:: 1 if t % 2 else -1]
        )
    assert np.ptp(np.array(names), axis=0).tolist() == [0, 0]
    assert names[0][0] != names[0][1]


@pytest.mark.parametrize(("gap", "same"), [(3, True), (4, False)])
def test_a_track_outlives_max_age_unseen_frames(gap, same):
    sort = Sort(max_age=3)
    box = np.array([[10.0, 10, 40, 40]])
    first = [sort(box)[0] for _ in range(5)][-1]
    for _ in range(gap):
        assert sort(np.empty((0, 4))).shape == (0,)
    assert (sort(box)[0] == first) == same


def test_masks_tell_apart_what_boxes_do_not():
    # A ring and the disc in it have the same box; their masks do not overlap.
    y, x = np.mgrid[:40, :60]
    away = np.hypot(y - 20, x - 30)
    ring, cross = (away < 15) & (away >= 12), (away < 15) & (abs(y - 20) < 2)
    box = np.array([[15.0, 5, 45, 35]] * 2)
    sort = Sort(mask_weight=1.0, gate=0.1)
    first = sort(box, np.stack([ring, cross]))
    assert sort(box, np.stack([cross, ring])).tolist() == first[::-1].tolist()


def test_the_last_mask_moves_with_the_filter():
    # At 4 pixels a frame and a width of 5, a mask overlaps the one before by a ninth.
    sort = Sort(mask_weight=1.0, gate=0.3, scale=10.0)
    names = []
    x = 2
    for step in (0, 1, 2, 3, *[4] * 9):
        x += step
        box = (x, 10, x + 5, 20)
        names.append(int(sort(10.0 * np.array([box], float), filled(box)[None])[0]))
    assert len(set(names)) == 1
    jump = (x + 8, 10, x + 13, 20)
    assert sort(10.0 * np.array([jump], float), filled(jump)[None])[0] != names[0]


@pytest.mark.parametrize(
    "wrong", [{"gate": 1.2}, {"mask_weight": -0.1}, {"max_age": -1}, {"scale": 0.0}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sort(**wrong)
