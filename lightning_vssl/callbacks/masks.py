"""Masks that an evaluation found, written beside the run: files for DAVIS's tools, and films."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.film import write_film
from lightning_vssl.data.masks import davis_palette, write_mask
from lightning_vssl.data.sequences import FrameSequence

_OPACITY = 0.5


def draw_masks(frames: Iterable[Tensor], masks: Iterable[Tensor]) -> Iterator[NDArray[np.uint8]]:
    """Lays masks over frames, each object in its colour of DAVIS's palette, its edge in full.

    Args:
        frames: (3, H, W) uint8 each.
        masks: Ids, (H, W) uint8 each; 0 is left clear.

    Yields:
        (H, W, 3) uint8.
    """
    palette = torch.tensor(davis_palette(), dtype=torch.uint8).reshape(256, 3)
    for frame, ids in zip(frames, masks, strict=True):
        there = torch.nn.functional.pad(ids[None].float(), (1, 1, 1, 1), mode="replicate")[0]
        edge = torch.zeros_like(ids, dtype=torch.bool)
        for near in (there[:-2, 1:-1], there[2:, 1:-1], there[1:-1, :-2], there[1:-1, 2:]):
            edge |= near != ids
        weight = torch.where(edge, 1.0, _OPACITY).masked_fill(ids == 0, 0.0)[..., None]
        picture = torch.lerp(frame.permute(1, 2, 0).float(), palette[ids.long()].float(), weight)
        yield picture.round().to(torch.uint8).numpy()


def _found(batch: object, outputs: object, who: str) -> tuple[str, FrameSequence, Tensor]:
    """Name, frames and masks of the sequence that was followed."""
    frames = getattr(batch, "frames", None)
    masks = outputs.get("masks") if isinstance(outputs, dict) else None
    if not isinstance(frames, FrameSequence) or not isinstance(masks, Tensor):
        raise TypeError(
            f"{who} writes the masks of sequences, and the evaluation of this run returns none: "
            "take the callback out of the recipe"
        )
    return frames.name, frames, masks


class SavedMasks(Callback):
    """Writes the masks of tests as DAVIS's official tools read them.

    ``<folder>/<sequence>/<frame>.png`` in the run's folder, ids with the official palette: what
    ``evaluation_method.py --task semi-supervised --results_path`` of davis2017-evaluation takes.

    Args:
        folder: Name of the folder.
    """

    def __init__(self, folder: str = "masks") -> None:
        self.folder = folder

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the masks of a sequence.

        Raises:
            TypeError: If the evaluation follows no masks.
            OSError: If a file cannot be written.
        """
        name, frames, masks = _found(batch, outputs, type(self).__name__)
        folder = Path(trainer.default_root_dir) / self.folder / name
        for file, ids in zip(frames.files, masks, strict=True):
            write_mask(folder / f"{file.stem}.png", ids.numpy())


class MaskFilms(Callback):
    """Writes ``mask_films/<sequence>.mp4`` of tests: the frames under the masks that were found.

    Beside each film lies a picture of the same name, of frames evenly spread over the sequence.

    Args:
        sequences: How many sequences of each process are shown, the first ones; None for all.
        fps: Frames per second of the films.
        columns: Frames of a picture.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, sequences: int | None = 8, fps: float = 24.0, columns: int = 6) -> None:
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
        """Writes the film and the picture of a sequence.

        Raises:
            TypeError: If the evaluation follows no masks.
            OSError: If a file cannot be written.
        """
        if self.sequences is not None and batch_idx >= self.sequences:
            return
        name, frames, masks = _found(batch, outputs, type(self).__name__)
        folder = Path(trainer.default_root_dir) / "mask_films"
        write_film(folder / f"{name}.mp4", draw_masks(frames.frames(), masks), self.fps)
        chosen = torch.linspace(0, len(frames) - 1, min(self.columns, len(frames))).round().long()
        shown = draw_masks((frames.frame(int(t)) for t in chosen), masks[chosen])
        with whole_file(folder / f"{name}.png") as temporary:
            Image.fromarray(np.concatenate(list(shown), axis=1)).save(temporary, "PNG")
