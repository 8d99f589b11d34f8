"""Boxes with actions as data: what is checked, what is one box, and predictions on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_vssl.data.action_boxes import key_frames, read_boxes, write_predictions
from lightning_vssl.metrics.action_rows import EVALUATED, read_action_rows
from lightning_vssl.metrics.detection import DetectionMetric, DetectionTask, files_frame_map

ACTIONS = {1: "bend", 12: "stand", 80: "watch"}
ROWS = """b,0904,0.1,0.1,0.5,0.9,12,0
a,0902,0.0,0.0,0.4,0.4,80,1
a,0902,0.5,0.0,1.000,0.4,12,0
a,0902,0.0,0.0,0.4,0.4,12,1
a,0903
b,0904,0.1,0.1,0.5,0.9,1,0
b,0903.5,0.2,0.2,0.3,0.3,1,7
"""


def written(folder: Path, text: str, name: str = "rows.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_rows_of_a_box_become_one_with_several_actions(tmp_path: Path) -> None:
    frames = key_frames(read_boxes(written(tmp_path, ROWS), ACTIONS), 80)
    assert [frames.videos[v] for v in frames.video] == ["b", "b", "a"]
    assert frames.second.tolist() == [903.5, 904, 902]
    assert frames.first.tolist() == [0, 1, 2, 4]
    assert frames.boxes.box[2:, 0].tolist() == [0, 0.5]  # of a frame in the file's order
    assert frames.boxes.line.tolist() == [7, 1, 2, 3]
    assert frames.boxes.score.tolist() == [1] * 4
    shown = [np.flatnonzero(row) + 1 for row in frames.labels]
    assert [row.tolist() for row in shown] == [[1], [1, 12], [12, 80], [12]]
    assert frames.labels.shape == (4, 80)


def test_detected_persons_keep_their_score(tmp_path: Path) -> None:
    file = written(tmp_path, "a,0902,0,0,0.4,0.4,,0.9\na,0902,0.5,0,1,0.4,,0.25\n")
    frames = key_frames(read_boxes(file, ACTIONS, detected=True), 80, detected=True)
    assert frames.boxes.score.tolist() == [0.9, 0.25]
    assert not frames.labels.any()
    with pytest.raises(ValueError, match=r"line 1: .* without an action has none of the 3 actions"):
        read_boxes(file, ACTIONS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,0902,0.1,0.2,1.2,0.4,12,0", "reaches outside the frame"),
        ("a,0902,-0.1,0.2,0.3,0.4,12,0", "reaches outside the frame"),
        ("a,0902,0.3,0.2,0.1,0.4,12,0", "is reversed or has no area"),
        ("a,0902,0.3,0.2,0.5,0.2,12,0", "is reversed or has no area"),
        ("a,0902,0.1,0.2,0.3,0.4,13,0", "of action 13 has none of the 3 actions"),
        ("a,0902,0.1,nan,0.3,0.4,12,0", "y1 is 'nan'"),
    ],
)
def test_a_bad_box_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    file = written(tmp_path, f"a,0901\na,0902,0,0,1,1.0009,12,0\n{line}\n")
    with pytest.raises(ValueError, match=f"line 3: .*{said}|line 3: {said}") as raised:
        read_boxes(file, ACTIONS)
    assert str(file) in str(raised.value)


def test_a_detectors_score_is_a_probability(tmp_path: Path) -> None:
    file = written(tmp_path, "a,0902,0,0,1,1,,9\n")
    with pytest.raises(ValueError, match="score outside 0 to 1"):
        read_boxes(file, ACTIONS, detected=True)


def test_predictions_come_back_and_give_the_same_number(tmp_path: Path) -> None:
    source = written(tmp_path, ROWS)
    truth = read_boxes(source, ACTIONS)
    frames = key_frames(truth, 80)
    metric = DetectionMetric(DetectionTask(truth, frames.boxes))
    scores = torch.rand(4, 80, generator=torch.Generator().manual_seed(0))
    metric.update(scores, torch.arange(4))
    found = metric.compute()["mAP"]
    assert metric.rows is not None
    file = tmp_path / "deep" / "predictions.csv"
    write_predictions(file, metric.rows)
    lines = file.read_text().splitlines()
    assert len(lines) == 4 * 60
    assert lines[0].startswith("b,903.500000,0.2,0.2,0.3,0.3,1,0.")
    assert lines[60].startswith("b,0904,0.1,0.1,0.5,0.9,1,0.")
    back = read_action_rows(file)
    assert np.array_equal(back.box, metric.rows.box)
    assert np.array_equal(back.score.astype(np.float32), scores[:, np.array(EVALUATED) - 1].ravel())
    assert files_frame_map(source, file).mean == found
    assert 0 < found < 1
    assert [p.name for p in file.parent.iterdir()] == ["predictions.csv"]
    with pytest.raises(ValueError, match="needs a box and an action"):
        write_predictions(file, truth)
    assert file.read_text().splitlines() == lines
