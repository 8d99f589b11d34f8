"""J and F: each trap of DAVIS's definitions by hand, and random masks against slow loops."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_vssl.metrics.segmentation import (
    RegionAndContour,
    score_frame,
    score_sequence,
    statistics,
    tolerance_radius,
)


def slow_contour(seg):
    """Contour by the definition, pixel by pixel."""
    height, width = seg.shape
    found = np.zeros_like(seg)
    for y in range(height):
        for x in range(width):
            near = []
            if x + 1 < width:
                near.append((y, x + 1))
            if y + 1 < height:
                near.append((y + 1, x))
            if x + 1 < width and y + 1 < height:
                near.append((y + 1, x + 1))
            found[y, x] = any(seg[place] != seg[y, x] for place in near)
    return found


def slow_scores(truth, mask, radius):
    """J and F of one object, (H, W) bool each, in float64."""
    union = (truth | mask).sum()
    j = (truth & mask).sum() / union if union else 1.0
    a, b = slow_contour(truth), slow_contour(mask)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = x**2 + y**2 <= radius**2
    if not a.any() and not b.any():
        return j, 1.0
    if not a.any() or not b.any():
        return j, 0.0
    precision = (b & ndimage.binary_dilation(a, disc)).sum() / b.sum()
    recall = (a & ndimage.binary_dilation(b, disc)).sum() / a.sum()
    total = precision + recall
    return j, 2 * precision * recall / total if total else 0.0


def blobs(rng, height, width, objects):
    """Smooth random ids; some objects may be missing, some touch the edges."""
    noise = ndimage.gaussian_filter(rng.standard_normal((objects + 1, height, width)), (0, 3, 3))
    return noise.argmax(0).astype(np.uint8)


@pytest.mark.parametrize("objects", [1, 3, 11])
@pytest.mark.parametrize("size", [(24, 35), (1, 17), (23, 1)])
@pytest.mark.parametrize("tolerance", [0.008, 4])
def test_equals_slow_loops(objects, size, tolerance):
    rng = np.random.default_rng(objects)
    for case in range(3):
        truth, mask = blobs(rng, *size, objects), blobs(rng, *size, objects)
        if case == 1:  # half of the frame alone, so that the edges of the region are inside
            truth[:, size[1] // 2 :] = mask[:, size[1] // 2 :] = 0
        if case == 2:  # nearly alike
            mask = np.roll(truth, 1, 0)
        void = rng.random(size) < 0.1 if case else None
        found = score_frame(truth, mask, objects, void=void, tolerance=tolerance)
        seen = np.ones(size, bool) if void is None else ~void
        radius = tolerance_radius(*size, tolerance)
        for k in range(objects):
            wanted = slow_scores((truth == k + 1) & seen, (mask == k + 1) & seen, radius)
            assert (found.region[k], found.contour[k]) == wanted


def test_objects_that_are_nowhere():
    empty, square = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    square[5:9, 4:12] = 1
    assert score_frame(empty, empty, 1) == (1, 1)
    assert score_frame(empty, square, 1) == (0, 0)
    assert score_frame(square, empty, 1) == (0, 0)
    assert score_frame(square, square, 2) == (pytest.approx([1, 1]), pytest.approx([1, 1]))


def test_what_fills_the_frame_has_no_contour():
    """Where both are everywhere, F is 1; J against one pixel less tells the difference."""
    full = np.ones((20, 30), np.uint8)
    less = full.copy()
    less[0, 0] = 0
    assert score_frame(full, full, 1) == (1, 1)
    assert score_frame(full, less, 1) == (pytest.approx(599 / 600), 0)


def test_contour_lies_before_the_object_on_one_side_and_on_it_on_the_other():
    """A pixel is outlined above, left, above left, and on itself: 4 pixels, not 9."""
    one = np.zeros((9, 9), np.uint8)
    one[4, 4] = 1
    assert slow_contour(one == 1).sum() == 4
    corner = np.zeros((9, 9), np.uint8)
    corner[8, 8] = 1  # the last pixel never is: 3 of 4 are left
    assert slow_contour(corner == 1).sum() == 3
    away = np.zeros((9, 9), np.uint8)
    away[4, 6] = 1
    # Two apart at a tolerance of 1: the columns at 3, 4 and 5, 6 are near where they meet.
    assert score_frame(one, away, 1, tolerance=1).contour[0] == 0.5


@pytest.mark.parametrize(("shift", "near"), [(8, True), (9, False)])
def test_edge_of_the_tolerance(shift, near):
    """Half planes: at 854 x 480 contours 8 pixels apart are one, 9 pixels are not."""
    assert tolerance_radius(480, 854) == 8
    truth, mask = np.zeros((480, 854), np.uint8), np.zeros((480, 854), np.uint8)
    truth[:, 400:], mask[:, 400 + shift :] = 1, 1
    assert score_frame(truth, mask, 1).contour[0] == float(near)


def test_tolerance_is_rounded_up():
    assert tolerance_radius(480, 910) == 9  # 8.23
    assert tolerance_radius(3, 4, 0.2) == 1
    assert tolerance_radius(480, 854, 3) == 3
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        tolerance_radius(480, 854, 0)


def test_statistics_by_hand():
    """Ten frames: quarters end at 1, 3, 6, 8 and 10 (3.25, 5.5 and 7.75 rounded)."""
    values = [0.9, 0.8, 0.7, 0.5, 0.4, 0.6, 0.5, 0.3, 0.2, 0.1]
    mean, recall, decay = statistics(values)
    assert mean == pytest.approx(0.5)
    assert recall == 0.4  # 0.5 itself is no hit
    assert decay == pytest.approx((0.9 + 0.8 + 0.7) / 3 - (0.3 + 0.2 + 0.1) / 3)


def test_quarters_share_a_frame():
    """Five frames: the first quarter is 1 and 2, the last 4 and 5."""
    assert statistics([1, 0.5, 0, 0.25, 0]).decay == 0.75 - 0.125
    assert statistics([0.7]).decay == 0


def test_statistics_without_numbers():
    mean, recall, decay = statistics([np.nan, 0.6, 0.8, np.nan])
    assert mean == pytest.approx(0.7)
    assert recall == 0.5  # of four frames
    assert decay == pytest.approx(0.6 - 0.8)
    assert all(np.isnan(value) for value in statistics([]))


def test_long_sequences_keep_their_quarters():
    """The official code loses the places above 255."""
    assert statistics(np.linspace(1, 0, 401)).decay == pytest.approx(0.75)


def moving(frames=6, objects=1):
    """Squares that go right, of ids 1 to K, (T, 12, 40)."""
    ids = np.zeros((frames, 4 * objects + 8, 40), np.uint8)
    for t in range(frames):
        for k in range(objects):
            ids[t, 4 * k + 2 : 4 * k + 5, 2 + 3 * t : 8 + 3 * t] = k + 1
    return ids


def test_first_and_last_frame_do_not_count():
    truth = moving()
    masks = truth.copy()
    masks[0] = masks[-1] = 0
    region, contour = score_sequence(list(truth), list(masks))
    assert region.shape == contour.shape == (1, 4)
    assert (region == 1).all()
    assert (contour == 1).all()


def test_ids_with_gaps_are_objects():
    """Of ids 1 and 3 the second is an object too: 1 while nowhere, 0 where it appears unseen."""
    truth = np.where(moving(objects=3) == 2, 0, moving(objects=3))
    masks = truth.copy()
    truth[2, 10:12, 0:2] = 2
    region, _ = score_sequence(list(truth), list(masks))
    assert region.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]


def test_objects_that_appear_later_are_background():
    truth = moving(objects=2)
    truth[0][truth[0] == 2] = 0
    masks = np.where(truth == 2, 0, truth)
    region, contour = score_sequence(list(truth), list(masks))
    assert region.tolist() == contour.tolist() == [[1, 1, 1, 1]]


def test_void_is_background_in_the_benchmark():
    truth, masks = moving(), moving()
    truth[2, 2:5, 20:24] = 255
    truth[0, 9, 9] = 255  # no object
    region, _ = score_sequence(list(truth), list(masks))
    assert region.tolist() == [[1, 1, 1, 1]]
    without = score_frame(truth[2], masks[2], 1, void=truth[2] == 255)
    assert without.region[0] == 1
    masks[2, 2:5, 20:24] = 1
    assert score_sequence(list(truth), list(masks))[0][0, 1] == 18 / (18 + 12)
    assert score_frame(truth[2], masks[2], 1, void=truth[2] == 255).region[0] == 1


def test_refused():
    truth = list(moving())
    with pytest.raises(ValueError, match="id 2, and the first frame's truth names 1"):
        score_sequence(truth, list(moving(objects=1) * 2))
    with pytest.raises(ValueError, match="no object"):
        score_sequence([np.zeros_like(truth[0]), *truth[1:]], truth)
    with pytest.raises(ValueError, match="got 6 and 5"):
        score_sequence(truth, truth[1:])
    with pytest.raises(ValueError, match="three frames"):
        score_sequence(truth[:2], truth[:2])
    with pytest.raises(ValueError, match="alike"):
        score_frame(truth[0], truth[0][1:], 1)  # a mask one pixel off
    with pytest.raises(ValueError, match="must be uint8"):
        score_frame(truth[0], truth[0].astype(int), 1)
    with pytest.raises(ValueError, match="objects must be"):
        score_frame(truth[0], truth[0], 255)
    with pytest.raises(ValueError, match="no sequence"):
        RegionAndContour().compute()


def test_metric_is_the_mean_over_objects():
    """Three objects of one sequence weigh as much as three sequences."""
    rng = np.random.default_rng(0)
    metric, rows = RegionAndContour(), []
    for index, objects in enumerate((1, 3, 2)):
        truth = moving(9, objects)
        masks = truth.copy()
        masks[rng.random(masks.shape) < 0.2] = 0
        metric.update(torch.from_numpy(truth), torch.from_numpy(masks), index)
        if index == 1:  # a sequence that comes twice
            metric.update(torch.from_numpy(truth), torch.from_numpy(masks), index)
        for k in range(1, objects + 1):
            j, f = zip(
                *(
                    slow_scores(truth[t] == k, masks[t] == k, tolerance_radius(*truth[t].shape))
                    for t in range(1, 8)
                ),
                strict=True,
            )
            rows.append([*statistics(j), *statistics(f)])
    found = metric.compute()
    means = np.mean(rows, axis=0)
    names = ["J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"]
    assert [found[name] for name in names] == pytest.approx(means)
    assert found["J&F"] == pytest.approx((means[0] + means[3]) / 2)
    assert [(one.index, len(one.region)) for one in metric.sequences] == [(0, 1), (1, 3), (2, 2)]
    assert metric.sequences[1].region[2].mean == pytest.approx(rows[3][0])
