"""Success, precision and AO beside the GOT-10k toolkit, on result files of the size of OTB-2015.

    PYTHONPATH=<folder with got10k> python benchmarks/tracking_metrics.py

The toolkit (MIT licence) is not a dependency: unpack github.com/got-10k/toolkit, with shapely, six
and wget beside it. Made up are 100 sequences with the frames of OTB-2015 (59,040) and 180 of 100
frames for GOT-10k: true boxes that wander in whole pixels, and a tracker that drifts from them,
written in the toolkit's format. In one process, in turns: the formulas alone on boxes in memory,
and from the files to the numbers. Reported: the largest difference of any number, of the whole
and of every sequence; processor seconds (median), which a busy machine does not stretch; frames a
second; the ratio. Last, what perfect boxes score.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from got10k.experiments.lasot import ExperimentLaSOT
from got10k.utils.metrics import center_error, normalized_center_error, rect_iou
from torch import Tensor

from lightning_vssl.data.track_files import TrackFiles
from lightning_vssl.datamodules.otb import official_sequences
from lightning_vssl.evaluation.tracking_report import score_files
from lightning_vssl.metrics.tracking import AverageOverlap, OnePassEvaluation, TrackingMetric

SIZE = (480, 640)


@dataclass(frozen=True)
class MadeUp:
    """A sequence without frames."""

    name: str
    boxes: Tensor
    predicted: Tensor
    cover: Tensor
    size: tuple[int, int] = SIZE


def made_up(name: str, frames: int, seed: int) -> MadeUp:
    """Boxes that wander, and a tracker that drifts and loses the object now and then."""
    generator = np.random.default_rng(seed)
    table = np.empty((frames, 4))
    table[:, 2:] = np.clip(60 + generator.normal(0, 2, (frames, 2)).cumsum(0), 8, 300)
    table[:, :2] = np.clip(200 + generator.normal(0, 4, (frames, 2)).cumsum(0), -20, 470)
    table = table.round()
    drift = generator.normal(0, 1.5, (frames, 4)).cumsum(0) * (generator.random() < 0.7)
    found = table + drift + generator.normal(0, 2, (frames, 4))
    found[:, 2:] = found[:, 2:].clip(1)
    truth, predicted = (
        torch.from_numpy(np.c_[t[:, :2], t[:, :2] + t[:, 2:]]) for t in (table, found)
    )
    cover = torch.from_numpy(generator.integers(0, 9, frames))
    return MadeUp(name, truth, predicted, cover)


def corners(boxes: Tensor, first: int) -> np.ndarray:
    """Left, top, width, height as they stand in a file."""
    table = boxes.numpy()
    return np.c_[table[:, :2] + first, table[:, 2:] - table[:, :2]].round(3)


class Toolkit:
    """The GOT-10k toolkit's formulas, in the order of its reports."""

    def __init__(self) -> None:
        self.curves = ExperimentLaSOT.__new__(ExperimentLaSOT)
        self.curves.nbins_iou, self.curves.nbins_ce, self.curves.nbins_nce = 21, 51, 51

    def one_pass(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Success, precision, normalised precision: of each sequence, then of all."""
        rows = []
        for boxes, anno in pairs:
            boxes = boxes.copy()
            boxes[0] = anno[0]
            found = (f(boxes, anno) for f in (rect_iou, center_error, normalized_center_error))
            rows.append(np.concatenate(self.curves._calc_curves(*found)))
        table = np.stack([*rows, np.mean(rows, axis=0)])
        return np.c_[table[:, :21].mean(1), table[:, 21 + 20], table[:, 72:].mean(1)]

    def overlap(self, pairs: list[tuple[np.ndarray, np.ndarray]], covers: list) -> np.ndarray:
        """AO, SR at 0.5 and 0.75: of each sequence, then of all."""
        kept = []
        for (boxes, anno), cover in zip(pairs, covers, strict=True):
            overlaps = rect_iou(boxes[1:].copy(), anno[1:].copy(), bound=(SIZE[1], SIZE[0]))
            kept.append(overlaps[cover[1:] > 0])
        kept.append(np.concatenate(kept))
        return np.array([[t.mean(), (t > 0.5).mean(), (t > 0.75).mean()] for t in kept])


def ours(metric: TrackingMetric, sequences: list[MadeUp], names: tuple[str, ...]) -> np.ndarray:
    """The same table from this library."""
    for sequence in sequences:
        metric.update(sequence, sequence.predicted)
    return table_of(metric, metric.compute(), sequences, names)


def table_of(
    metric: TrackingMetric, whole: dict, sequences: list[MadeUp], names: tuple[str, ...]
) -> np.ndarray:
    rows = [metric.table[sequence.name] for sequence in sequences]
    return np.array([[row[name] for name in names] for row in [*rows, whole]])


def timed(functions: dict[str, Callable[[], np.ndarray]], repeats: int) -> dict[str, tuple]:
    """Result and median of the seconds of each, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.process_time()
            results[name] = function()
            seconds[name].append(time.process_time() - began)
    return {name: (results[name], statistics.median(seconds[name])) for name in functions}


def compare(title: str, frames: int, functions: dict, repeats: int) -> dict[str, float]:
    found = timed(functions, repeats)
    (mine, fast), (theirs, slow) = found["ours"], found["toolkit"]
    difference = float(np.abs(mine - theirs).max())
    print(
        f"{title:28s} toolkit {slow * 1e3:8.1f} ms ({frames / slow / 1e6:5.2f} M frames/s)  "
        f"ours {fast * 1e3:8.1f} ms ({frames / fast / 1e6:5.2f} M frames/s)  "
        f"ratio {slow / fast:5.2f}  largest difference {difference:.1e}"
    )
    return {"toolkit": slow, "ours": fast, "ratio": slow / fast, "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)

    otb = [made_up(row.name, row.frames, n) for n, row in enumerate(official_sequences())]
    got10k = [made_up(f"GOT-10k_Val_{n:06d}", 100, 1000 + n) for n in range(1, 181)]
    peer, results = Toolkit(), {}
    names = ("success", "precision", "normalised_precision")
    scores = ("ao", "sr50", "sr75")
    covers = [sequence.cover.numpy() for sequence in got10k]
    with tempfile.TemporaryDirectory() as folder:
        files = {n: TrackFiles(Path(folder) / n, n) for n in ("otb", "got10k")}
        for layout, sequences in (("otb", otb), ("got10k", got10k)):
            for sequence in sequences:
                files[layout].write(sequence.name, sequence.predicted)

        def read(layout: str, sequences: list[MadeUp]) -> list[tuple[np.ndarray, np.ndarray]]:
            first = files[layout].first
            return [
                (
                    np.loadtxt(files[layout].boxes_file(s.name), delimiter=","),
                    corners(s.boxes, first),
                )
                for s in sequences
            ]

        def scored(layout: str, sequences: list[MadeUp], columns: tuple[str, ...]) -> np.ndarray:
            metric = OnePassEvaluation() if layout == "otb" else AverageOverlap()
            whole = score_files(sequences, files[layout], metric)
            return table_of(metric, whole, sequences, columns)

        inside = [(corners(s.predicted, 1), corners(s.boxes, 1)) for s in otb]
        within = [(corners(s.predicted, 0), corners(s.boxes, 0)) for s in got10k]
        many, few = sum(len(s.boxes) for s in otb), sum(len(s.boxes) for s in got10k)
        results["otb formulas"] = compare(
            "OTB, formulas",
            many,
            {
                "toolkit": lambda: peer.one_pass(inside),
                "ours": lambda: ours(OnePassEvaluation(), otb, names),
            },
            options.repeats,
        )
        results["otb files"] = compare(
            "OTB, from result files",
            many,
            {
                "toolkit": lambda: peer.one_pass(read("otb", otb)),
                "ours": lambda: scored("otb", otb, names),
            },
            options.repeats,
        )
        results["got10k formulas"] = compare(
            "GOT-10k, formulas",
            few,
            {
                "toolkit": lambda: peer.overlap(within, covers),
                "ours": lambda: ours(AverageOverlap(), got10k, scores),
            },
            options.repeats,
        )
        results["got10k files"] = compare(
            "GOT-10k, from result files",
            few,
            {
                "toolkit": lambda: peer.overlap(read("got10k", got10k), covers),
                "ours": lambda: scored("got10k", got10k, scores),
            },
            options.repeats,
        )
    perfect = OnePassEvaluation()
    for sequence in otb:
        perfect.update(sequence, sequence.boxes)
    print(f"perfect boxes: {perfect.compute()}; 20/21 = {20 / 21:.6f}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"commit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}, 1 thread"
    )
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
