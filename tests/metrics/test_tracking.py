import math

import numpy as np
import pytest
import torch

from lightning_vssl.metrics.tracking import (
    AverageOverlap,
    OnePassEvaluation,
    as_written,
    box_overlaps,
    inside_frame,
    one_pass,
    visible_overlaps,
)


def boxes(*rows):
    """From left, top, width, height to xyxy."""
    table = torch.tensor(rows, dtype=torch.float64)
    return torch.cat([table[:, :2], table[:, :2] + table[:, 2:]], dim=1)


class Sequence:
    """What a metric asks of a sequence."""

    def __init__(self, name, boxes, cover=None, size=(400, 400)):
        self.name, self.boxes, self.cover, self.size = name, boxes, cover, size


def random_boxes(frames, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(frames, 4, generator=generator, dtype=torch.float64) * 40 + 1
    return boxes(*table.tolist())


def repeated(row, frames=4):
    return boxes(*[row] * frames)


def loop_overlap(a, b):
    """Of two boxes of whole numbers, by counting pixels."""
    cells = [
        {(x, y) for x in range(int(r[0]), int(r[2])) for y in range(int(r[1]), int(r[3]))}
        for r in (a.tolist(), b.tolist())
    ]
    both, either = len(cells[0] & cells[1]), len(cells[0] | cells[1])
    return both / either if either else 0.0


def loop_curves(predicted, truth):
    """The definition, frame by frame and threshold by threshold; the first box is the true one."""
    frames = len(truth)
    success, precision, normalised = np.zeros(21), np.zeros(51), np.zeros(51)
    for t in range(frames):
        p = truth[0].tolist() if t == 0 else predicted[t].tolist()
        g = truth[t].tolist()
        width = max(0.0, min(p[2], g[2]) - max(p[0], g[0]))
        height = max(0.0, min(p[3], g[3]) - max(p[1], g[1]))
        areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (p, g)]
        overlap = width * height / (sum(areas) - width * height)
        dx, dy = (((g[k] + g[k + 2]) - (p[k] + p[k + 2])) / 2 for k in range(2))
        relative = math.hypot(dx / max(1, g[2] - g[0]), dy / max(1, g[3] - g[1]))
        for k in range(21):
            success[k] += overlap > k / 20
        for k in range(51):
            precision[k] += math.hypot(dx, dy) <= k
            normalised[k] += relative <= k / 100
    return success / frames, precision / frames, normalised / frames


def test_overlaps_are_those_of_counted_pixels():
    generator = torch.Generator().manual_seed(1)
    table = torch.randint(0, 9, (300, 8), generator=generator)
    a, b = boxes(*table[:, :4].tolist()), boxes(*table[:, 4:].tolist())
    counted = [loop_overlap(x, y) for x, y in zip(a, b, strict=True)]
    assert torch.equal(box_overlaps(a, b), torch.tensor(counted, dtype=torch.float64))
    assert 0 < sum(value == 0 for value in counted) < 300


def test_curves_are_those_of_a_loop_over_frames_and_thresholds():
    for seed in range(20):
        truth, predicted = random_boxes(97, seed), random_boxes(97, 100 + seed)
        predicted = torch.lerp(truth, predicted, 0.3)
        found = one_pass(predicted, truth)
        for curve, wanted in zip(found, loop_curves(predicted, truth), strict=True):
            assert curve.tolist() == pytest.approx(wanted.tolist(), abs=1e-12)


def test_perfect_boxes_have_a_success_of_20_21sts():
    truth = random_boxes(50, 3)
    for convention in ("got10k", "pysot"):
        scores = one_pass(truth, truth, convention).scores(convention)
        assert scores["success"] == pytest.approx(20 / 21, abs=1e-12)
        assert scores["precision"] == scores["success_rate"] == 1
        assert scores["normalised_precision"] == 1  # also at a distance of 0


def test_an_overlap_must_exceed_its_threshold():
    truth = repeated((10, 10, 20, 20))
    half = repeated((10, 10, 10, 20))  # an overlap of exactly 0.5, centres 5 apart
    curves = one_pass(half, truth)
    # The first of the four frames counts as perfect; the others exceed 0 to 0.45, and not 0.5.
    assert curves.success.tolist() == [1.0] * 10 + [0.25] * 10 + [0]
    assert curves.precision.tolist() == [0.25] * 5 + [1.0] * 46
    assert curves.normalised.tolist() == [0.25] * 25 + [1.0] * 26


def test_a_distance_of_20_pixels_is_precise():
    truth = repeated((100, 100, 10, 10))
    for shift, precise in (((12, 16), 1.0), ((20, 0), 1.0), ((20.001, 0), 0.25), ((12, 17), 0.25)):
        moved = repeated((100 + shift[0], 100 + shift[1], 10, 10))
        assert one_pass(moved, truth).scores()["precision"] == precise


def test_the_first_frame_is_the_true_one_but_for_pysot():
    truth = repeated((10, 10, 20, 20), 2)
    predicted = boxes((200, 200, 5, 5), (200, 200, 5, 5))
    assert one_pass(predicted, truth).success[0] == 0.5
    assert one_pass(predicted, truth).precision[0] == 0.5
    assert one_pass(predicted, truth, "pysot").success[0] == 0
    assert one_pass(predicted, truth, "pysot").precision[50] == 0


def test_true_boxes_without_size_are_missed_and_in_pysot_precise():
    truth = boxes((10, 10, 20, 20), (10, 10, 20, 20), (-1, -1, 0, 0), (-1, 5, 30, 20))
    predicted = repeated((10, 10, 20, 20))
    ours, pysot = one_pass(predicted, truth), one_pass(predicted, truth, "pysot")
    # Overlaps 1, 1, 0 and 380 / 620; distances 0, 0, 29.7 and 20 / 2 ** 0.5 or so.
    assert ours.success[0] == 0.75
    assert ours.precision[0] == 0.5
    assert ours.precision[29] == 0.75
    # pysot: the third has left and top 0 counted from 1, no size and its centre at -0.5: missed,
    # precise. The fourth's left is 0, its centre is not: missed, and judged by its distance.
    assert pysot.success[0] == 0.5
    assert pysot.precision[0] == 0.75
    assert pysot.precision[50] == 1


def test_true_boxes_that_are_absent_are_missed():
    truth = repeated((10, 10, 20, 20))
    truth[2] = torch.nan
    predicted = repeated((10, 10, 20, 20))
    ours, pysot = one_pass(predicted, truth), one_pass(predicted, truth, "pysot")
    assert ours.success[0] == ours.precision[50] == ours.normalised[50] == 0.75
    assert pysot.success[0] == 0.75
    assert pysot.precision[0] == 1


def test_normalised_precision_is_the_mean_or_the_value_at_a_fifth():
    truth = repeated((10, 10, 40, 20))
    moved = repeated((20, 10, 40, 20))  # a quarter of the width
    curves = one_pass(moved, truth)
    assert curves.scores()["normalised_precision"] == pytest.approx((25 * 0.25 + 26) / 51)
    pysot = one_pass(moved, truth, "pysot")
    assert pysot.scores("pysot")["normalised_precision"] == 0
    small = repeated((10, 10, 0.5, 0.25))  # sizes below a pixel count as one
    near = boxes((10, 10, 0.5, 0.25), *[(10.3, 10, 0.5, 0.25)] * 3)
    assert one_pass(near, small).normalised[[29, 31]].tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (repeated((1, 1, 2, 2), 3), r"one box for each of the 4 frames, .* got \(3, 4\)"),
        (repeated((1, 1, math.nan, 2)), "the box of frame 0 must be finite"),
        (repeated((1, 1, math.inf, 2)), "the box of frame 0 must be finite"),
        (boxes((1, 1, 2, 2), (1, 1, 2, 2), (1, 1, -2, 2), (1, 1, 2, 2)), "the box of frame 2"),
    ],
)
def test_boxes_that_cannot_be_judged_are_refused(predicted, message):
    truth = repeated((1, 1, 2, 2))
    with pytest.raises(ValueError, match=message):
        one_pass(predicted, truth)
    with pytest.raises(ValueError, match=message):
        visible_overlaps(predicted, truth, torch.ones(4), (50, 50))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_other_wrong_arguments_are_refused():
    truth = repeated((1, 1, 2, 2))
    with pytest.raises(ValueError, match="convention must be got10k or pysot, got 'vot'"):
        one_pass(truth, truth, "vot")
    with pytest.raises(ValueError, match="convention must be got10k or pysot, got 'vot'"):
        OnePassEvaluation("vot")
    with pytest.raises(ValueError, match=r"true boxes must be \(F, 4\)"):
        one_pass(truth[:0], truth[:0])
    with pytest.raises(ValueError, match="4 frames and 3 labels of cover"):
        visible_overlaps(truth, truth, torch.ones(3), (50, 50))
    with pytest.raises(ValueError, match="no sequence was added"):
        AverageOverlap().compute()
    hidden = AverageOverlap()
    hidden.update(Sequence("one", truth, torch.zeros(4)), truth)
    with pytest.raises(ValueError, match="no frame behind the first one shows its object"):
        hidden.compute()


@pytest.mark.parametrize("metric", [OnePassEvaluation(), AverageOverlap()])
def test_messages_name_the_sequence(metric):
    truth = repeated((1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"car-3: a tracker must give one box .* got \(3, 4\)"):
        metric.update(Sequence("car-3", truth), truth[:3])
    withheld = truth.clone()
    withheld[1:] = torch.nan
    with pytest.raises(ValueError, match="car-3: the true boxes are withheld"):
        metric.update(Sequence("car-3", withheld), truth)
    with pytest.raises(ValueError, match="at most 64 bytes"):
        metric.update(Sequence("c" * 65, truth), truth)


def test_sequences_weigh_the_same_and_count_once():
    metric = OnePassEvaluation()
    truth = repeated((10, 10, 20, 20), 40)
    far = repeated((200, 200, 20, 20), 40)
    metric.update(Sequence("short", truth[:2]), truth[:2])
    metric.update(Sequence("Größe", truth), far)
    metric.update(Sequence("short", truth[:2]), truth[:2])
    scores = metric.compute()
    assert list(metric.table) == ["Größe", "short"]
    assert [row["frames"] for row in metric.table.values()] == [40, 2]
    assert scores["precision"] == pytest.approx((1 / 40 + 1) / 2)
    assert metric.table["short"]["success"] == pytest.approx(20 / 21)
    assert metric.table["Größe"]["success"] == pytest.approx(20 / 21 / 40)
    thresholds, shares = metric.curves["success"]
    assert float(shares.mean()) == pytest.approx(scores["success"])
    assert thresholds[[0, 10, 20]].tolist() == [0, 0.5, 1]
    assert float(metric.curves["precision"][1][20]) == pytest.approx(scores["precision"])


def test_boxes_are_judged_as_they_are_written():
    truth = repeated((10, 10, 20, 20), 2)
    nearly = truth.clone()
    nearly[1] += torch.tensor([20.0004, 0, 20.0004, 0])
    rounded, exact = OnePassEvaluation(), OnePassEvaluation(rounded=False)
    rounded.update(Sequence("one", truth), nearly)
    exact.update(Sequence("one", truth), nearly)
    assert rounded.compute()["precision"] == 1
    assert exact.compute()["precision"] == 0.5
    assert as_written(nearly)[1].tolist() == [30, 10, 50, 30]


def test_got10k_shifts_boxes_into_the_frame_and_keeps_their_size():
    found = inside_frame(
        boxes((-10, 5, 30, 10), (90, 5, 30, 10), (40, -5, 10, 10), (150, 5, 30, 10)), (50, 100)
    )
    wanted = boxes((0, 5, 30, 10), (90, 5, 10, 10), (40, 0, 10, 10), (100, 5, 0, 10))
    assert torch.equal(found, wanted)


def test_average_overlap_drops_the_first_frame_and_unseen_ones():
    truth = repeated((10, 10, 20, 20), 6)
    truth[3] = torch.nan
    predicted = boxes(
        (90, 90, 5, 5),  # the first: not counted
        (10, 10, 20, 20),  # 1
        (10, 10, 10, 20),  # exactly 0.5: not above
        (90, 90, 5, 5),  # not seen: not counted
        (10, 10, 20, 15),  # exactly 0.75
        (10, 10, 20, 16),  # 0.8
    )
    cover = torch.tensor([8, 8, 1, 0, 8, 3])
    metric = AverageOverlap()
    metric.update(Sequence("long", truth, cover), predicted)
    scores = metric.compute()
    assert scores["ao"] == pytest.approx((1 + 0.5 + 0.75 + 0.8) / 4)
    assert scores["sr50"] == 0.75
    assert scores["sr75"] == 0.5
    assert metric.table["long"]["frames"] == 4
    assert cover.tolist() == [8, 8, 1, 0, 8, 3]
    # Frames are pooled: a sequence of one frame that is missed weighs a fifth.
    metric.update(Sequence("short", truth[:2]), predicted[[0, 0]])
    assert metric.compute()["ao"] == pytest.approx((1 + 0.5 + 0.75 + 0.8) / 5)
    assert [row["ao"] for row in metric.table.values()] == pytest.approx([3.05 / 4, 0])
    assert metric.curves["success"][1][[0, 50, 100]].tolist() == pytest.approx([0.8, 0.6, 0])
