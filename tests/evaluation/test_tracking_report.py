import csv

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.data.track_files import TrackFiles
from lightning_vssl.evaluation.tracking_report import (
    draw_curves,
    score_files,
    write_report,
)
from lightning_vssl.metrics.tracking import AverageOverlap, OnePassEvaluation
from tests.metrics.test_tracking import Sequence, random_boxes, repeated


def sequences():
    return [Sequence(f"one-{n}", random_boxes(30 + n, n)) for n in range(3)]


def noisy(sequence, share=0.1):
    return torch.lerp(sequence.boxes, random_boxes(len(sequence.boxes), 99), share)


@pytest.mark.parametrize("layout", ["otb", "got10k"])
@pytest.mark.parametrize("kind", [OnePassEvaluation, AverageOverlap])
def test_result_files_score_what_was_scored_in_memory(tmp_path, layout, kind):
    files, direct = TrackFiles(tmp_path, layout), kind()
    for sequence in sequences():
        files.write(sequence.name, noisy(sequence))
        direct.update(sequence, noisy(sequence))
    assert score_files(sequences(), files, kind()) == pytest.approx(direct.compute(), abs=1e-12)


def test_a_short_result_file_is_named_and_a_missing_one_too(tmp_path):
    files = TrackFiles(tmp_path, "otb")
    files.write("one-0", noisy(sequences()[0])[:20])
    with pytest.raises(ValueError, match=r"one-0: a tracker must give .* 30 frames"):
        score_files(sequences(), files, OnePassEvaluation())
    files.write("one-0", noisy(sequences()[0]))
    with pytest.raises(FileNotFoundError, match=r"one-1\.txt"):
        score_files(sequences(), files, OnePassEvaluation())


def test_the_table_has_a_line_for_each_sequence_in_percent(tmp_path):
    metric = OnePassEvaluation()
    truth = repeated((10, 10, 20, 20), 10)
    metric.update(Sequence("b", truth), truth)
    metric.update(Sequence("a, really", truth), repeated((200, 10, 20, 20), 10))
    metric.compute()
    write_report(tmp_path / "new", metric, "ours")
    with (tmp_path / "new" / "sequences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sequence"], row["frames"]) for row in rows] == [("a, really", "10"), ("b", "10")]
    assert [row["precision"] for row in rows] == ["10.000", "100.000"]
    assert rows[1]["success"] == "95.238"


def test_curves_become_a_picture_with_a_line_for_each_tracker(tmp_path):
    metrics = {}
    for name, share in (("near", 0.05), ("far", 0.6)):
        metrics[name] = OnePassEvaluation()
        for sequence in sequences():
            metrics[name].update(sequence, noisy(sequence, share))
        metrics[name].compute()
    one = {"near": metrics["near"].curves}
    draw_curves(tmp_path / "one.png", one)
    draw_curves(tmp_path / "two.png", {name: m.curves for name, m in metrics.items()})
    pictures = [np.array(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in ("one", "two")]
    assert pictures[0].shape == (600, 2025, 3)
    # matplotlib's first two colours; the second is there only if there is a second tracker.
    colours = np.array([[31, 119, 180], [255, 127, 14]])
    seen = [[(np.abs(p.astype(int) - c).sum(2) < 30).sum() for c in colours] for p in pictures]
    assert seen[0][0] > 1000
    assert seen[0][1] == 0
    assert min(seen[1]) > 1000
