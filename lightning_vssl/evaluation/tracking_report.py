"""What tracking leaves behind beside its number: a table of the sequences and curves.

Also scores the result files of any tracker, of this library or another:

    score_files(OTB("data/otb").sequences("test"), TrackFiles(Path("results/OTB2015/KCF"), "otb"),
                OnePassEvaluation())
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.track_files import TrackFiles
from lightning_vssl.metrics.tracking import PIXELS, AnnotatedTrack, TrackingMetric

TABLE = "sequences.csv"
CURVES = "curves.png"

Curves = Mapping[str, tuple[Tensor, Tensor]]

_AXES = {
    "success": ("overlap above", "success"),
    "precision": ("pixels between centres at most", "precision"),
    "normalised_precision": ("share of the object's size at most", "normalised precision"),
}


def score_files(
    sequences: Iterable[AnnotatedTrack], files: TrackFiles, metric: TrackingMetric
) -> dict[str, float]:
    """Scores what a tracker wrote.

    Args:
        sequences: With their true boxes.
        files: Where its boxes stand.
        metric: What is measured; afterwards it holds the table and the curves.

    Returns:
        Shares in [0, 1] by name.

    Raises:
        FileNotFoundError: If a sequence has no file.
        ValueError: If a file is wrong, or has not as many boxes as the sequence has frames.
    """
    for sequence in sequences:
        metric.update(sequence, files.read(sequence.name))
    scores: dict[str, float] = metric.compute()
    return scores


def write_report(folder: Path, metric: TrackingMetric, label: str) -> None:
    """Writes the table and the curves of a metric that was computed; for one process.

    Args:
        folder: Gets ``sequences.csv`` and ``curves.png``.
        metric: After ``compute``.
        label: Names the tracker in the picture.

    Raises:
        OSError: If a file cannot be written.
    """
    write_table(folder / TABLE, metric.table)
    draw_curves(folder / CURVES, {label: metric.curves})


def write_table(file: Path, table: Mapping[str, Mapping[str, float]]) -> None:
    """Writes a line for each sequence, the shares in percent.

    Args:
        file: A CSV file.
        table: Of each sequence its numbers, ``frames`` among them.

    Raises:
        OSError: If the file cannot be written.
    """
    columns = list(next(iter(table.values())))
    with whole_file(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["sequence", *columns])
        for name, row in table.items():
            cells = (f"{row[c]:.0f}" if c == "frames" else f"{100 * row[c]:.3f}" for c in columns)
            writer.writerow([name, *cells])


def draw_curves(file: Path, trackers: Mapping[str, Curves]) -> None:
    """Draws the curves of one or more trackers, best first.

    The legend gives the mean of a success or normalised curve, and the precision at 20 pixels.

    Args:
        file: A PNG file.
        trackers: By its name, the curves of each.

    Raises:
        OSError: If the file cannot be written.
    """
    names = list(next(iter(trackers.values())))
    figure = Figure(figsize=(4.5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        heads = {tracker: _head(name, curves) for tracker, curves in trackers.items()}
        for tracker in sorted(trackers, key=lambda tracker: -heads[tracker]):
            thresholds, shares = trackers[tracker][name]
            text = f"{tracker} {100 * heads[tracker]:.1f}"
            axes.plot(thresholds.numpy(), 100 * shares.numpy(), label=text)
        below, title = _AXES[name]
        axes.set(xlabel=below, ylabel="% of frames", title=title, ylim=(0, 102))
        axes.set_xlim(float(thresholds[0]), float(thresholds[-1]))
        if name == "precision":
            axes.axvline(PIXELS, color="grey", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    with whole_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _head(name: str, curves: Curves) -> float:
    """The number that stands for a curve."""
    shares = curves[name][1]
    return float(shares[PIXELS]) if name == "precision" else float(shares.mean())
