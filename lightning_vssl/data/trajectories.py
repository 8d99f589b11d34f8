"""Clips of tracked sequences: some frames of one object, and its box in each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from lightning_vssl.data.sequences import TrackedSequence, UnreadableFrame
from lightning_vssl.data.unreadable import TooManyUnreadable, Unreadable, stand_ins
from lightning_vssl.nn.keyed import sample_key


class TrajectoryClips(Dataset[dict[str, Tensor]]):
    """Clips whose first frame shows the object, whole frames on a fixed square.

    Frames are stretched to the square, which leaves the overlap of boxes as it is. A sample is a
    dict: ``video`` (1, T, 3, S, S) uint8; ``boxes`` (1, T, 1, 4) float32, xyxy in pixels of
    ``video``, NaN where the object is not seen; ``key``; ``index``, its number in the list;
    ``replaced`` () bool.

    ``train``: one clip a sequence, anywhere, indexed by (epoch, index); a draw depends on the
    seed, the epoch and the index alone. Where a frame of it cannot be read, a clip of another
    sequence that the key names takes its place, and ``replaced`` is set: such sequences are logged,
    by that frame, and counted, as `lightning_vssl.data.dataset.VideoDataset` does with videos. In
    tests such a frame raises. ``test``: every sequence is cut into clips one behind the
    other; those whose first frame does not show the object are left out. A sequence shorter than a
    clip is held at its last frame, whose box then counts no more.

    Args:
        sequences: What clips are taken from; those without a single box are left out.
        kind: Which clips.
        frames: Frames T of a clip.
        step: Frames from one to the next.
        size: Side S of the square in pixels.
        max_unreadable: Share of the sequences, in [0, 1], that may turn out to have a frame that
            cannot be read before training stops.
        seed: The run's seed.

    Raises:
        ValueError: If a number is out of range or no sequence shows its object.
    """

    def __init__(
        self,
        sequences: Sequence[TrackedSequence],
        *,
        kind: Literal["train", "test"],
        frames: int = 16,
        step: int = 1,
        size: int = 112,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        for name, value in (("frames", frames), ("step", step), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.kind = kind
        self.frames = frames
        self.step = step
        self.size = size
        self.seed = seed
        self.sequences = [found for found in sequences if not found.boxes.isnan().all()]
        if not self.sequences:
            raise ValueError("no sequence shows its object in any frame: there is no clip to take")
        self.unreadable = Unreadable(
            self._folder, len(self.sequences), limit=max_unreadable, what="sequences"
        )
        self._places = [
            (number, int(first))
            for number, found in enumerate(self.sequences)
            for first in _seen(found, 0, len(found), frames * step)
        ]

    def __len__(self) -> int:
        return len(self.sequences) if self.kind == "train" else len(self._places)

    def __getitem__(self, item: tuple[int, int] | int) -> dict[str, Tensor]:
        """Reads a clip.

        Args:
            item: (epoch, index), or an index of epoch 0.

        Raises:
            UnreadableFrame: If a frame of a test clip cannot be read; names the file.
            TooManyUnreadable: If more sequences have broken than ``max_unreadable`` allows.
        """
        epoch, index = item if isinstance(item, tuple) else (0, int(item))
        key = sample_key(self.seed, epoch, index)
        row, clip = (index, self._place(index)) if self.kind == "test" else self._read(index, key)
        return {
            **clip,
            "key": torch.tensor(key),
            "index": torch.tensor(row),
            "replaced": torch.tensor(row != index),
        }

    def _folder(self, number: int) -> Path:
        return self.sequences[number].folder

    def _place(self, index: int) -> dict[str, Tensor]:
        """A test clip."""
        number, first = self._places[index]
        return self._clip(self.sequences[number], first)

    def _read(self, index: int, key: int) -> tuple[int, dict[str, Tensor]]:
        """A clip of a sequence, or of the first readable one of those that the key names."""
        for number in stand_ins(index, len(self.sequences), key):
            sequence = self.sequences[number]
            try:
                return number, self._clip(sequence, self._drawn(sequence, key))
            except UnreadableFrame as error:
                self.unreadable.note(number, error)
        raise TooManyUnreadable(f"none of the {len(self.sequences)} sequences can be read")

    def _clip(self, sequence: TrackedSequence, first: int) -> dict[str, Tensor]:
        """The pixels and boxes of the clip that starts at frame ``first``."""
        wanted = first + self.step * torch.arange(self.frames)
        shown = wanted.clamp(max=len(sequence) - 1)
        boxes = sequence.boxes[shown]  # (T, 4)
        boxes[wanted != shown] = torch.nan
        pictures = [sequence.frames.frame(int(t)) for t in shown]
        height, width = pictures[0].shape[-2:]
        scale = torch.tensor([self.size / width, self.size / height] * 2, dtype=torch.float64)
        return {
            "video": self._squares(pictures)[None],
            "boxes": (boxes * scale).float()[None, :, None],
        }

    def _drawn(self, sequence: TrackedSequence, key: int) -> int:
        """First frame of a training clip: one that shows the object, in time for a whole clip."""
        last = max(0, len(sequence) - 1 - self.step * (self.frames - 1))
        seen = _seen(sequence, 0, last + 1, 1)
        if not len(seen):  # shown only later: the clip is held at its end
            seen = _seen(sequence, 0, len(sequence), 1)
        rng = np.random.Generator(np.random.Philox(key=key & ((1 << 64) - 1)))
        return int(rng.choice(seen))

    def _squares(self, pictures: list[Tensor]) -> Tensor:
        """Stretches frames to the square, (T, 3, S, S) uint8, antialiased.

        One by one: 16 frames of 1,080 rows would take 400 MB at once, in every worker.
        """
        scaled = [
            functional.interpolate(
                picture[None].float(),
                (self.size, self.size),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            for picture in pictures
        ]
        return torch.cat(scaled).round().clamp(0, 255).byte()


def _seen(
    sequence: TrackedSequence, start: int, stop: int, step: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Every ``step``-th frame, of those that show the object."""
    numbers = np.arange(start, stop, step)
    kept: np.ndarray[tuple[int], np.dtype[np.int64]] = numbers[
        ~sequence.boxes[numbers].isnan().any(1).numpy()
    ]
    return kept
