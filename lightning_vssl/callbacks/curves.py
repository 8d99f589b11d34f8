"""Training loss and held-out accuracy over the epochs, beside those of other runs."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_vssl.data.atomic import whole_file

Curve = list[tuple[int, float]]
"""Epochs, counted from 1, and a number of each; ascending."""

NUMBERS = "metrics.csv"
_NEEDED = ("epoch", "step")


def read_curve(file: Path, column: str) -> Curve:
    """Reads what a run logged.

    Args:
        file: The run's ``metrics.csv``.
        column: Which of its numbers, for instance ``train/loss``.

    Returns:
        The mean of what was logged in each epoch; empty if nothing was. What ``validate`` added
        later, under step 0, is no part of it.

    Raises:
        ValueError: If the file is no table of a run, or a line of it holds no number.
    """
    found: dict[int, list[float]] = defaultdict(list)
    latest = 0
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if any(name not in (reader.fieldnames or ()) for name in _NEEDED):
            raise ValueError(f"{file} is no {NUMBERS} of a run: it has no column epoch or step")
        for row in reader:
            if not (row.get(column) and row["epoch"]):
                continue
            try:
                epoch, step, value = int(row["epoch"]), int(row["step"]), float(row[column])
            except ValueError:
                raise ValueError(
                    f"{file}, line {reader.line_num}: {row[column]!r} ({column}), {row['epoch']!r} "
                    f"(epoch) or {row['step']!r} (step) is not a number; was the run killed while "
                    "it wrote?"
                ) from None
            if step >= latest:
                found[epoch + 1].append(value)
                latest = step
    return [(epoch, sum(values) / len(values)) for epoch, values in sorted(found.items())]


def draw_curves(
    losses: Mapping[str, Curve], accuracies: Mapping[str, Curve], *, accuracy: str
) -> Figure:
    """Draws the curves of several runs, a colour for each.

    Args:
        losses: Training losses, by the name of the run.
        accuracies: Accuracies of held-out videos in percent, by the same names.
        accuracy: What is written at their axis.

    Returns:
        Two axes: training loss on the left, accuracy on the right.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in losses.items():
        left.plot(*_columns(curve), marker="o", markersize=2, label=name)
    for name, curve in accuracies.items():
        best = f"{name}, last {curve[-1][1]:.1f}" if curve else name
        right.plot(*_columns(curve), marker="o", markersize=3, label=best)
    left.set(xlabel="epoch", ylabel="training loss")
    highest = max((value for curve in losses.values() for _, value in curve), default=1.0)
    left.set_ylim(0, 1.05 * highest or 1.0)
    right.set(xlabel="epoch", ylabel=f"{accuracy} of held-out videos, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlim(left.get_xlim())
    return figure


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [epoch for epoch, _ in curve], [value for _, value in curve]


class LearningCurves(Callback):
    """Writes ``curves.png``: training loss and held-out accuracy, pretrained beside scratch.

    Figure 1 of CtP's supplement, where the classifier is tested every 10 epochs
    (``trainer.check_val_every_n_epoch``). The numbers are read from ``metrics.csv`` of this run and
    of the others, so that a resumed run draws all of its epochs. Written after every validation.

    Args:
        others: Folders of other runs, finished or not, by the names to draw them under.
        name: What this run is called.
        loss: Column of the training loss; drawn is its mean over each epoch.
        accuracy: Column of the accuracy.
    """

    def __init__(
        self,
        others: dict[str, Path] | None = None,
        name: str = "this run",
        loss: str = "train/loss",
        accuracy: str = "val/top1",
    ) -> None:
        super().__init__()
        self.others = {key: Path(folder) for key, folder in (others or {}).items()}
        self.name = name
        self.loss = loss
        self.accuracy = accuracy
        self._logger: CSVLogger | None = None
        if name in self.others:
            raise ValueError(f"others has a run called {name!r}, like this one; set another name")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the files.

        Raises:
            FileNotFoundError: If another run has left no numbers.
        """
        for key, folder in self.others.items():
            if not (folder / NUMBERS).is_file():
                raise FileNotFoundError(
                    f"LearningCurves: {folder} (others: {key}) holds no {NUMBERS}; give the folder "
                    "of a run, such as runs/ucf101_finetune/seed0"
                )
        kept = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        self._logger = kept[0] if kept else None
        if stage == "fit" and not kept:
            rank_zero_warn(f"LearningCurves draws nothing: this run keeps no {NUMBERS} (logger)")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what is there so far."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws all of it."""
        self._write(trainer, say=True)

    def _write(self, trainer: Trainer, *, say: bool = False) -> None:
        if self._logger is None or not trainer.is_global_zero:
            return
        self._logger.save()  # it holds the last rows back
        files = {self.name: Path(self._logger.log_dir) / NUMBERS}
        if not files[self.name].is_file():
            return
        files |= {key: folder / NUMBERS for key, folder in self.others.items()}
        try:
            losses = {key: read_curve(file, self.loss) for key, file in files.items()}
            accuracies = {key: read_curve(file, self.accuracy) for key, file in files.items()}
        except (ValueError, OSError) as error:
            rank_zero_warn(f"LearningCurves draws nothing this time: {error}")
            return
        figure = draw_curves(losses, accuracies, accuracy=self.accuracy.rpartition("/")[2])
        path = Path(trainer.default_root_dir) / "curves.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        if say:
            rank_zero_info(f"training loss and held-out accuracy: {path}")
