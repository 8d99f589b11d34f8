"""A bar for a terminal, lines for a log."""

import math
import sys
import time
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor


def progress_bar(
    kind: Literal["auto", "rich", "log"] = "auto",
    every_n_seconds: float = 30.0,
    refresh_rate: int = 1,
) -> ProgressBar:
    """Makes the bar that suits where the output goes.

    In a recipe: ``class_path: lightning_vssl.callbacks.progress.progress_bar``.

    Args:
        kind: ``"auto"`` takes Lightning's rich bar when the standard output is a terminal and
            `LogProgress` otherwise, such as in a SLURM log; ``"rich"`` and ``"log"`` insist.
        every_n_seconds: Seconds between the lines of a log.
        refresh_rate: Batches between refreshes of the bar.

    Returns:
        The callback.

    Raises:
        ValueError: If ``kind`` is none of the three.
    """
    if kind not in ("auto", "rich", "log"):
        raise ValueError(f'kind must be "auto", "rich" or "log"; got {kind!r}.')
    if kind == "rich" or (kind == "auto" and sys.stdout.isatty()):
        return RichProgressBar(refresh_rate=refresh_rate)
    return LogProgress(every_n_seconds)


def duration(seconds: float) -> str:
    """Writes a time span for people: ``47 s``, ``3 min 20 s``, ``5 h 07 min``, ``2 d 03 h``.

    Args:
        seconds: At least 0; infinity and NaN become ``?``.

    Returns:
        The text.
    """
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def _clips(batch: object) -> int:
    """Clips in a batch: B times V."""
    if not isinstance(batch, dict):
        return 0
    for name in ("views", "video"):
        pixels = batch.get(name)
        if isinstance(pixels, Tensor) and pixels.ndim >= 2:
            return pixels.shape[0] * pixels.shape[1]
    return 0


class LogProgress(ProgressBar):
    """Plain lines at intervals, for output that goes to a file: no carriage returns, no colours.

    A line says the time, epoch, step of all steps, the loss, what the method shows in its bar,
    clips per second since the last line over all ranks, and the time left. Rank 0 alone prints.

    Args:
        every_n_seconds: Seconds between lines; the first and the last batch of a run, of a
            validation, test or prediction always get one.

    Raises:
        ValueError: If ``every_n_seconds`` is negative.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        if every_n_seconds < 0:
            raise ValueError(f"every_n_seconds must be at least 0; got {every_n_seconds}.")
        self.every_n_seconds = every_n_seconds
        self._enabled = True
        self._start = (0.0, 0)  # when training began, at which step
        self._last = 0.0  # when the last line was printed
        self._clips = 0  # clips since then

    def enable(self) -> None:
        """Prints again."""
        self._enabled = True

    def disable(self) -> None:
        """Prints nothing more."""
        self._enabled = False

    def _say(self, text: str) -> None:
        if self._enabled:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)

    def _due(self) -> bool:
        return self._enabled and time.monotonic() - self._last >= self.every_n_seconds

    def _restart(self) -> None:
        self._last, self._clips = time.monotonic(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says how long the run is."""
        total = trainer.estimated_stepping_batches
        self._start = (time.monotonic(), trainer.global_step)
        self._last, self._clips = -math.inf, 0
        where = f"from step {trainer.global_step} " if trainer.global_step else ""
        self._say(
            f"training {where}to step {total:.0f}, {trainer.num_training_batches} batches an epoch,"
            f" {trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
        )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Prints a line when it is time, or the run is at its end."""
        self._clips += _clips(batch)
        step, total = trainer.global_step, float(trainer.estimated_stepping_batches)
        if not (self._due() or (self._enabled and step >= total)):
            return
        now = time.monotonic()
        parts = [f"epoch {trainer.current_epoch}", f"step {step}/{total:.0f}"]
        parts += self._metrics(trainer, outputs)
        begun, first = self._start
        since = now - (self._last if math.isfinite(self._last) else begun)
        if self._clips and since > 0:
            parts.append(f"{self._clips * trainer.world_size / since:.1f} clips/s")
        if step > first:
            left = (now - begun) / (step - first) * (total - step)
            parts.append(f"{duration(left)} left")
        self._say("  ".join(parts))
        self._restart()

    def _metrics(self, trainer: Trainer, outputs: object) -> list[str]:
        shown = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
        if not any("loss" in name for name in shown):
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if isinstance(loss, torch.Tensor):
                shown = {"loss": float(loss), **shown}
        return [f"{name} {value:.4g}" for name, value in shown.items()]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says how long it took."""
        begun, first = self._start
        steps = trainer.global_step - first
        self._say(f"trained {steps} steps in {duration(time.monotonic() - begun)}")

    def _evaluated(
        self, stage: str, batch_idx: int, dataloader_idx: int, totals: list[int | float]
    ) -> None:
        total = totals[dataloader_idx]
        if batch_idx == 0 or batch_idx + 1 == total or self._due():
            self._say(f"{stage}: batch {batch_idx + 1}/{total:.0f}")
            self._restart()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints a line when it is time."""
        if not trainer.sanity_checking:
            totals = _list(trainer.num_val_batches)
            self._evaluated("validation", batch_idx, dataloader_idx, totals)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints a line when it is time."""
        self._evaluated("test", batch_idx, dataloader_idx, _list(trainer.num_test_batches))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints a line when it is time."""
        self._evaluated("predict", batch_idx, dataloader_idx, _list(trainer.num_predict_batches))


def _list(totals: int | float | list[int | float]) -> list[int | float]:
    return totals if isinstance(totals, list) else [totals]
