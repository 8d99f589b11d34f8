"""Films of what a tracker follows, written beside the run."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_vssl.data.film import write_film
from lightning_vssl.data.sequences import TrackedSequence

_TRUE = (60, 220, 90)
_TRACKED = (255, 60, 160)


def draw_boxes(
    frames: Iterable[Tensor],
    true: Tensor,
    tracked: Tensor,
    numbers: Sequence[int] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Draws the true and the tracked box on every frame.

    Args:
        frames: (3, H, W) uint8 each.
        true: xyxy in pixels, (F, 4), green; not drawn where NaN.
        tracked: The same, pink.
        numbers: The frames' numbers in their sequence, from 0, written in the corner; None counts.

    Yields:
        (H, W, 3) uint8.
    """
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        pen = ImageDraw.Draw(picture)
        width = max(2, picture.height // 180)
        for boxes, colour in ((true, _TRUE), (tracked, _TRACKED)):
            x1, y1, x2, y2 = boxes[number].tolist()
            if x1 <= x2 and y1 <= y2:  # false of NaN
                pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=width)
        shown = number if numbers is None else numbers[number]
        pen.text((4, 3), f"{shown + 1}", fill=(255, 255, 255), stroke_width=1, stroke_fill=0)
        yield np.asarray(picture)


class TrackedBoxes(Callback):
    """Writes ``tracked_boxes/<sequence>.mp4`` of tests: the true box green, the tracked one pink.

    Beside each film lies a picture of the same name, of frames evenly spread over the sequence.

    Args:
        sequences: How many sequences of each process are shown, the first ones; None for all.
        fps: Frames per second of the films.
        columns: Frames of a picture.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, sequences: int | None = 8, fps: float = 25.0, columns: int = 6) -> None:
        if (sequences is not None and sequences < 1) or fps <= 0 or columns < 1:
            raise ValueError(
                "sequences and columns must be at least 1 and fps above 0; got "
                f"{sequences}, {columns} and {fps}"
            )
        self.sequences = sequences
        self.fps = fps
        self.columns = columns

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the film of a sequence.

        Raises:
            TypeError: If the evaluation tracks nothing.
        """
        if self.sequences is not None and batch_idx >= self.sequences:
            return
        tracked = outputs.get("predicted") if isinstance(outputs, dict) else None
        if not isinstance(batch, TrackedSequence) or not isinstance(tracked, Tensor):
            raise TypeError(
                "TrackedBoxes shows what a tracker follows; the evaluation of this run returns no "
                "`predicted` boxes of sequences. Take the callback out of the recipe"
            )
        folder = Path(trainer.default_root_dir) / "tracked_boxes"
        drawn = draw_boxes(batch.frames.frames(), batch.boxes, tracked)
        write_film(folder / f"{batch.name}.mp4", drawn, self.fps)
        self._picture(batch, tracked).save(folder / f"{batch.name}.png")

    def _picture(self, sequence: TrackedSequence, tracked: Tensor) -> Image.Image:
        """Frames side by side."""
        count = min(self.columns, len(sequence))
        chosen = torch.linspace(0, len(sequence) - 1, count).round().long()
        numbers = [int(t) for t in chosen]
        frames = (sequence.frames.frame(number) for number in numbers)
        drawn = list(draw_boxes(frames, sequence.boxes[chosen], tracked[chosen], numbers))
        return Image.fromarray(np.concatenate(drawn, axis=1))
