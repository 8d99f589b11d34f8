"""Frame-mAP: each corner by hand, and a slow reference in loops on random files."""

import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_vssl.metrics.action_rows import EVALUATED, ActionRows, read_action_rows
from lightning_vssl.metrics.detection import (
    DetectionMetric,
    DetectionTask,
    average_precision,
    files_frame_map,
    frame_map,
)

Row = tuple[str, float, float, float, float, float, int, float]
VARIANTS = ("activitynet", "slowfast", "mmaction2")
BOX = (0.0, 0.0, 0.4, 0.4)


def table(rows: Sequence[Sequence[object]]) -> ActionRows:
    """Rows (video, second) or (video, second, (x1, y1, x2, y2), action, last)."""
    names = tuple(dict.fromkeys(str(row[0]) for row in rows))
    boxes = [row[2] if len(row) > 2 else (np.nan,) * 4 for row in rows]
    return ActionRows(
        videos=names,
        video=np.array([names.index(str(row[0])) for row in rows], np.int64),
        second=np.array([row[1] for row in rows], np.float64),
        box=np.array(boxes, np.float64).reshape(-1, 4),
        action=np.array([row[3] if len(row) > 2 else 0 for row in rows], np.int64),
        score=np.array([row[4] if len(row) > 4 else 1.0 for row in rows], np.float64),
        source="a test",
        line=np.arange(1, 1 + len(rows)),
    )


def shifted(by: float, box: tuple[float, ...] = BOX) -> tuple[float, ...]:
    return box[0] + by, box[1], box[2] + by, box[3]


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_overlap_of_exactly_a_half_counts(variant: str) -> None:
    truth = table([("a", 902, (0, 0, 1, 1), 1, 0)])
    half = table([("a", 902, (0, 0, 0.5, 1), 1, 0.9)])
    less = table([("a", 902, (0, 0, 0.4999, 1), 1, 0.9)])
    assert frame_map(truth, half, variant=variant).mean == 1
    assert frame_map(truth, less, variant=variant).mean == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_detection_looks_at_its_best_box_alone(variant: str) -> None:
    # The second detection overlaps both true boxes enough, but most the one that is taken.
    truth = table([("a", 902, BOX, 1, 0), ("a", 902, shifted(0.08), 1, 1)])
    found = table([("a", 902, BOX, 1, 0.9), ("a", 902, shifted(0.03), 1, 0.8)])
    assert frame_map(truth, found, variant=variant).mean == 0.5
    other = table([("a", 902, BOX, 1, 0.9), ("a", 902, shifted(0.05), 1, 0.8)])
    assert frame_map(truth, other, variant=variant).mean == 1


def test_fifty_rows_of_a_frame_across_all_actions() -> None:
    truth = table([("a", 902, BOX, 1, 0), ("a", 902, BOX, 3, 0)])
    crowd = [("a", 902, shifted(0.5), 3, 0.5 + i / 1000) for i in range(50)]
    found = table([*crowd, ("a", 902, BOX, 1, 0.4), ("a", 902, BOX, 3, 0.9)])
    assert frame_map(truth, found).average_precision[1] == 0  # cut off by rows of another action
    assert frame_map(truth, found, variant="slowfast").average_precision[1] == 1
    assert frame_map(truth, found, variant="mmaction2").average_precision[1] == 1
    unknown = [(*row[:3], 2, row[4]) for row in crowd]  # 2 is not evaluated: it takes no place
    found = table([*unknown, ("a", 902, BOX, 1, 0.4)])
    assert frame_map(truth, found).average_precision[1] == 1


def test_a_box_without_area_takes_a_place_and_is_left_out_then() -> None:
    truth = table([("a", 902, BOX, 1, 0)])
    flat = [("a", 902, (0.1, 0.1, 0.1, 0.9), 1, 0.9)] * 49
    found = table([*flat, ("a", 902, BOX, 1, 0.5), ("a", 902, BOX, 1, 0.4)])
    assert frame_map(truth, found).mean == 1
    assert frame_map(truth, table([flat[0], *flat, ("a", 902, BOX, 1, 0.5)])).mean == 0
    assert frame_map(truth, found, variant="slowfast").mean == 1
    assert frame_map(truth, found, variant="mmaction2").mean == pytest.approx(1 / 50)
    reversed_ = table([("a", 902, (0.4, 0, 0, 0.4), 1, 0.9), ("a", 902, BOX, 1, 0.5)])
    assert frame_map(truth, reversed_).mean == 1
    with pytest.raises(ValueError, match=r"line 1: the box .* is reversed"):
        frame_map(truth, reversed_, variant="mmaction2")


def test_detections_in_frames_that_are_not_listed() -> None:
    truth = [("a", 902, BOX, 1, 0)]
    found = table([("a", 903, BOX, 1, 0.9), ("a", 902, BOX, 1, 0.8)])
    assert frame_map(table(truth), found).mean == 1
    assert frame_map(table(truth), found, variant="slowfast").mean == 0.5
    assert frame_map(table(truth), found, variant="mmaction2").mean == 1
    for listed in (("a", 903), ("a", 903, BOX, 2, 0)):  # nobody acts there, or not as evaluated
        assert frame_map(table([*truth, listed]), found).mean == 0.5
        assert frame_map(table([*truth, listed]), found, variant="mmaction2").mean == 1


def test_excluded_frames() -> None:
    truth = table([("a", 902, BOX, 1, 0), ("a", 903, BOX, 1, 0)])
    found = table([("a", 902, BOX, 1, 0.8), ("a", 903, shifted(0.5), 1, 0.9)])
    excluded = table([("a", 903), ("b", 902)])
    results = {v: frame_map(truth, found, variant=v, excluded=excluded) for v in VARIANTS}
    assert {v: result.mean for v, result in results.items()} == {
        "activitynet": 1,
        "slowfast": 1,
        "mmaction2": 0.5,  # what was excluded is missed
    }
    assert [result.truth[1] for result in results.values()] == [1, 1, 2]
    assert frame_map(truth, found).mean == pytest.approx(0.25)


def test_actions_without_truth_or_without_detections() -> None:
    truth = table([("a", 902, BOX, 1, 0), ("a", 902, BOX, 3, 0)])
    found = table([("a", 902, BOX, 1, 0.8), ("a", 902, BOX, 4, 0.9)])
    result = frame_map(truth, found)
    assert result.mean == 0.5
    assert result.average_precision[3] == 0
    assert np.isnan(result.average_precision[4])
    assert list(result.average_precision) == list(EVALUATED)
    assert (result.frames, result.truth[1], result.truth[4]) == (1, 1, 0)
    assert frame_map(truth, found, variant="slowfast").mean == 0.5
    assert frame_map(truth, found, variant="mmaction2").mean == 1
    nothing = found.take(np.zeros(2, np.bool_))
    assert frame_map(truth, nothing).mean == 0


def test_slowfast_takes_detections_as_the_file_has_them() -> None:
    truth = table([("a", 902, BOX, 1, 0), ("b", 902, BOX, 1, 0)])
    rows = [("a", 902, shifted(0.01), 1, 0.3), ("a", 902, BOX, 1, 0.9), ("b", 902, BOX, 1, 0.5)]
    assert frame_map(truth, table(rows)).mean == 1
    # The first row takes the box with 0.3; the better one is wrong with 0.9.
    assert frame_map(truth, table(rows), variant="slowfast").mean == pytest.approx(2 / 3)


def test_equal_scores_of_a_frame_follow_the_heap_and_of_frames_the_last_one() -> None:
    truth = table([("a", 902, BOX, 1, 0), ("b", 902, BOX, 1, 0)])
    better, worse = ("a", 902, BOX, 1, 0.5), ("a", 902, shifted(0.05), 1, 0.5)
    tied = [better, worse, ("b", 902, shifted(0.5), 1, 0.5)]
    # On the heap the row of lower coordinates lies first, whichever way round they came; it takes
    # the box. Between frames the last one leads: b's miss, then a's second, then its hit.
    assert frame_map(truth, table(tied)).mean == pytest.approx(1 / 3 / 2)
    assert frame_map(truth, table([worse, better, tied[2]])).mean == pytest.approx(1 / 3 / 2)
    assert frame_map(truth, table([tied[2], better, worse])).mean == pytest.approx(1 / 2 / 2)


def test_seconds_with_fractions_are_frames_of_their_own() -> None:
    truth = table([("a", 12.25, BOX, 1, 0), ("a", 12.75, BOX, 1, 0)])
    found = table([("a", 12.250000004, BOX, 1, 0.9), ("a", 12, BOX, 1, 0.95)])
    assert frame_map(truth, found).mean == 0.5


def test_average_precision_at_all_points() -> None:
    # Hits at ranks 1, 3, 4 of five, four to find: precision 1, 2/3, 3/4; the envelope 1, 3/4, 3/4.
    right = [True, False, True, True, False]
    assert average_precision([0.9, 0.8, 0.7, 0.6, 0.5], right, 4) == pytest.approx(2.5 / 4)
    assert average_precision([], [], 3) == 0
    with pytest.raises(ValueError, match="3 of 5 are right, of 2"):
        average_precision([0.9, 0.8, 0.7, 0.6, 0.5], right, 2)
    with pytest.raises(ValueError, match="must be"):
        average_precision([0.5], right, 4)


def test_wrong_arguments() -> None:
    truth = table([("a", 902, BOX, 1, 0)])
    with pytest.raises(ValueError, match="variant='coco'"):
        frame_map(truth, truth, variant="coco")
    with pytest.raises(ValueError, match="iou=0"):
        frame_map(truth, truth, iou=0)
    with pytest.raises(ValueError, match="has no box of the 1 actions"):
        frame_map(truth, truth, [3])
    with pytest.raises(ValueError, match="actions must be"):
        frame_map(truth, truth, [])


# --- against loops ------------------------------------------------------------------------------


Entry = tuple[float, ...]  # score, action, y1, x1, y2, x2
Frame = tuple[str, float]


def of_frames(rows: list[Row], cap: int, variant: str) -> dict[Frame, list[Entry]]:
    """The evaluated rows of each frame, as each reader leaves them."""
    frames: dict[Frame, list[Entry]] = {}
    for video, second, x1, y1, x2, y2, action, last in rows:
        if action not in EVALUATED:
            continue
        here = frames.setdefault((video, second), [])
        entry = (last, action, y1, x1, y2, x2)
        if variant != "activitynet":
            here.append(entry)
        elif not cap or len(here) < cap:
            heapq.heappush(here, entry)
        elif last > here[0][0]:
            heapq.heapreplace(here, entry)
    if variant != "slowfast":
        frames = {at: sorted(rows, key=lambda row: -row[0]) for at, rows in frames.items()}
    return frames


def overlap(a: Entry, b: Entry, number: type) -> float:
    (y1, x1, y2, x2), (v1, u1, v2, u2) = (map(number, c[2:]) for c in (a, b))
    high, wide = max(min(y2, v2) - max(y1, v1), 0), max(min(x2, u2) - max(x1, u1), 0)
    shared = np.float64(high) * np.float64(wide)  # as mmaction2 has it beside single areas
    union = (y2 - y1) * (x2 - x1) + (v2 - v1) * (u2 - u1) - shared
    return float(shared / union) if union > 0 else 0.0


def judged(boxes: list[Entry], guesses: list[Entry], number: type) -> list[tuple[float, bool]]:
    """Score of each detection of an action in a frame, and whether it is right."""
    taken, results = [False] * len(boxes), []
    for guess in guesses:
        overlaps = [overlap(guess, box, number) for box in boxes]
        best = overlaps.index(max(overlaps)) if boxes else -1
        right = bool(boxes) and overlaps[best] >= 0.5 and not taken[best]
        if right:
            taken[best] = True
        results.append((number(guess[0]), right))
    return results


def area(results: list[tuple[float, bool]], total: int) -> float:
    results = [results[i] for i in np.argsort([r[0] for r in results], kind="stable")[::-1]]
    precision = np.cumsum([right for _, right in results]) / np.arange(1, 1 + len(results))
    return sum(max(precision[i:]) for i, (_, right) in enumerate(results) if right) / total


def reference(truth: list[Row], found: list[Row], excluded: set[Frame], variant: str) -> float:
    """The definition in loops over dicts of lists."""
    theirs = variant == "mmaction2"
    number = np.float32 if theirs else float
    true, guessed = of_frames(truth, 0, variant), of_frames(found, 50, variant)
    listed = {(row[0], row[1]) for row in truth}
    numbers = []
    for action in EVALUATED:
        total = sum(r[6] == action and (theirs or (r[0], r[1]) not in excluded) for r in truth)
        results: list[tuple[float, bool]] = []
        for at in true if theirs else guessed:
            if at not in excluded and (variant != "activitynet" or at in listed):
                boxes = [row for row in true.get(at, []) if row[1] == action]
                guesses = [g for g in guessed.get(at, []) if g[1] == action]
                guesses = [g for g in guesses if theirs or (g[4] > g[2] and g[5] > g[3])]
                results += judged(boxes, guesses, number)
        if total and (results or not theirs):
            numbers.append(area(results, total))
    return float(np.mean(numbers))


def drawn(seed: int, *, ties: bool) -> tuple[list[Row], list[Row], set[tuple[str, float]]]:
    """Random files: unlisted and excluded frames, ignored actions, flat boxes, crowds."""
    rng = np.random.default_rng(seed)

    def box() -> list[float]:
        corner, extent = rng.random(2) * 0.5, 0.2 + rng.random(2) * 0.3
        return np.round(np.concatenate([corner, corner + extent]), 1 if ties else 3).tolist()

    truth: list[Row] = []
    found: list[Row] = []
    frames = [(video, 902.0 + t) for video in "ab" for t in range(5)]
    for video, second in frames:
        people = [box() for _ in range(rng.integers(0, 4))]
        for person, where in enumerate(people):
            actions = rng.choice([1, 2, 3, 12], rng.integers(1, 4), replace=False)
            truth += [(video, second, *where, int(n), float(person)) for n in actions]
        near = [np.clip(np.add(p, rng.normal(0, 0.04, 4)), 0, 1).round(3).tolist() for p in people]
        guesses = people if ties else near
        for where in [*guesses, *(box() for _ in range(rng.integers(0, 25)))]:
            if rng.random() < 0.1:
                where[2] = where[0]
            for action in rng.choice([1, 2, 3, 12], rng.integers(1, 4), replace=False):
                score = float(rng.integers(1, 5)) / 4 if ties else float(rng.random())
                found.append((video, second, *where, int(action), score))
    found = [found[i] for i in rng.permutation(len(found))]
    return truth, found, {frame for frame in frames if rng.random() < 0.2}


def saved(file: Path, rows: Sequence[Sequence[object]]) -> Path:
    file.write_text("".join(",".join(map(repr, r)).replace("'", "") + "\n" for r in rows))
    return file


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_files_against_loops(tmp_path: Path, variant: str, ties: bool, seed: int) -> None:
    truth, found, excluded = drawn(seed, ties=ties)
    result = files_frame_map(
        saved(tmp_path / "truth.csv", truth),
        saved(tmp_path / "found.csv", found),
        excluded=saved(tmp_path / "excluded.csv", sorted(excluded)),
        variant=variant,
    )
    expected = reference(truth, found, excluded, variant)
    assert 0 < expected < 1
    assert result.mean == pytest.approx(expected, abs=1e-12)


def test_the_variants_differ() -> None:
    truth, found, excluded = drawn(0, ties=False)
    assert len({reference(truth, found, excluded, variant) for variant in VARIANTS}) == 3


# --- over batches -------------------------------------------------------------------------------


def task(count: int = 6) -> DetectionTask:
    rng = np.random.default_rng(0)
    rows = []
    for second in range(count):
        for person in range(2):
            where = tuple(shifted(0.5 * person))
            rows.append(("a", 902 + second, where, 1 + 2 * int(rng.integers(2)), person))
    truth = table(rows)
    boxes = table([(*row[:3], 0, 0.5 + person / 4) for row in rows for person in (row[4],)])
    return DetectionTask(truth, boxes)


def test_the_metric_is_the_number_of_its_rows() -> None:
    asked = task()
    scores = torch.rand(12, 80, generator=torch.Generator().manual_seed(0))
    metric = DetectionMetric(asked)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    metric.update(scores[order[:5]], order[:5])
    metric.update(torch.cat([scores[order[3:]], torch.rand(1, 80)]), torch.tensor([*order[3:], -1]))
    found = metric.compute()
    rows = [
        ("a", 902 + b // 2, tuple(asked.boxes.box[b]), n, float(scores[b, n - 1]))
        for b in range(12)
        for n in EVALUATED
    ]
    expected = frame_map(asked.truth, table(rows))
    assert found == {"mAP": expected.mean}
    assert 0 < expected.mean < 1
    assert metric.boxes == 12
    assert metric.rows is not None
    assert len(metric.rows) == 12 * 60
    assert metric.average_precision[3] == expected.average_precision[3]


def test_perfect_scores_and_the_detectors_confidence() -> None:
    asked = task()
    scores = torch.zeros(12, 80)
    scores[torch.arange(12), torch.from_numpy(asked.truth.action - 1)] = 1
    metric = DetectionMetric(asked, confidence=True)
    metric.update(scores, torch.arange(12))
    assert metric.compute() == {"mAP": 1.0}
    assert metric.rows is not None
    assert set(metric.rows.score[metric.rows.score > 0]) == {0.5, 0.75}
    metric.reset()
    metric.update(scores[:6], torch.arange(6))  # boxes never seen have no detection
    assert 0 < metric.compute()["mAP"] < 1


def test_the_metric_refuses() -> None:
    metric = DetectionMetric()
    metric.update(torch.zeros(1, 80), torch.tensor([12]))
    with pytest.raises(RuntimeError, match="no task yet"):
        metric.compute()
    metric.task = task()
    with pytest.raises(ValueError, match="box_index 12 of 12 boxes"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(M, C\)"):
        metric.update(torch.zeros(2, 80), torch.tensor([0]))
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="probabilities"):
            metric.update(torch.full((1, 80), bad), torch.tensor([0]))
    with pytest.raises(ValueError, match="variant"):
        DetectionMetric(variant="voc")
    with pytest.raises(ValueError, match="no boxes were added"):
        DetectionMetric(task()).predictions()
    with pytest.raises(RuntimeError, match="compute"):
        _ = DetectionMetric(task()).average_precision


def test_file_reading_is_the_only_difference(tmp_path: Path) -> None:
    truth, found, _ = drawn(5, ties=False)
    files = saved(tmp_path / "t.csv", truth), saved(tmp_path / "f.csv", found)
    labels = tmp_path / "map.pbtxt"
    labels.write_text('item {\n  name: "one"\n  id: 1\n}\n')
    rows = [read_action_rows(file) for file in files]
    assert files_frame_map(*files).mean == frame_map(*rows).mean
    assert files_frame_map(*files, labels=labels).mean == frame_map(*rows, [1]).mean
