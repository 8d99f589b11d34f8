"""Clips of tracked sequences: some frames of one object, and its box in each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from lightning_vssl.data.boxes import cut_boxes
from lightning_vssl.data.clips import Clips
from lightning_vssl.data.sequences import TrackedSequence, UnreadableFrame
from lightning_vssl.data.unreadable import TooManyUnreadable, Unreadable, stand_ins
from lightning_vssl.data.windows import Rectangles, Windows
from lightning_vssl.nn.keyed import sample_key

Numbers = npt.NDArray[np.int64]


class TrajectoryClips(Dataset[dict[str, Tensor]]):
    """Clips whose first frame shows the object, whole frames on a fixed square or cut from them.

    Frames are stretched to the square, which leaves the overlap of boxes as it is. A sample is a
    dict: ``video`` (1, T, 3, S, S) uint8; ``boxes`` (1, T, 1, 4) float32, xyxy in pixels of
    ``video``, NaN where the object is not seen; ``key``; ``index``, its number in the list;
    ``replaced`` () bool.

    Pretraining takes ``clips`` and ``window`` as it does of any video. What they draw is moved as
    little as needed for the first frame to show the object, and for its box there to lie inside the
    window (a larger box fills it); the window is then rounded to whole pixels of the frame. Boxes
    are cut to it, and NaN where none of it is left.

    ``train``: one clip a sequence, anywhere, indexed by (epoch, index); a draw depends on the
    seed, the epoch and the index alone. Where a frame of it cannot be read, a clip of another
    sequence that the key names takes its place, and ``replaced`` is set: such sequences are logged,
    by that frame, and counted, as `lightning_vssl.data.dataset.VideoDataset` does with videos. In
    tests such a frame raises. ``test``: every sequence is cut into clips one behind the
    other; those whose first frame does not show the object are left out. A sequence shorter than a
    clip is held at its last frame, whose box then counts no more; frames that ``clips`` repeats
    (CtP's clip does at the end of a short video) keep their box.

    Args:
        sequences: What clips are taken from; those without a single box are left out.
        kind: Which clips.
        frames: Frames T of a clip.
        step: Frames from one to the next.
        size: Side S of the square in pixels.
        clips: Frames of a training clip, one clip a sample; None for ``frames`` and ``step``. The
            rate of the frames is not known: they count as one a second.
        window: Crop of a training clip; None for whole frames.
        max_unreadable: Share of the sequences, in [0, 1], that may turn out to have a frame that
            cannot be read before training stops.
        seed: The run's seed.

    Raises:
        ValueError: If a number is out of range, ``clips`` or ``window`` take several of a sample,
            or no sequence shows its object.
    """

    def __init__(
        self,
        sequences: Sequence[TrackedSequence],
        *,
        kind: Literal["train", "test"],
        frames: int = 16,
        step: int = 1,
        size: int = 112,
        clips: Clips | None = None,
        window: Windows | None = None,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        for name, value in (("frames", frames), ("step", step), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if clips is not None and clips.shape[0] != 1:
            raise ValueError(
                f"clips={clips} takes {clips.shape[0]} clips of a sample: one is meant"
            )
        if window is not None and window.crops != 1:
            raise ValueError(f"window={window} takes {window.crops} crops of a clip: one is meant")
        self.kind = kind
        self.frames = frames
        self.step = step
        self.size = size
        self.clips = clips
        self.window = window
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
        return self._clip(self.sequences[number], first + self.step * np.arange(self.frames), None)

    def _read(self, index: int, key: int) -> tuple[int, dict[str, Tensor]]:
        """A clip of a sequence, or of the first readable one of those that the key names."""
        for number in stand_ins(index, len(self.sequences), key):
            sequence = self.sequences[number]
            rng = np.random.Generator(np.random.Philox(key=key & ((1 << 64) - 1)))
            try:
                return number, self._clip(sequence, self._drawn(sequence, rng), rng)
            except UnreadableFrame as error:
                self.unreadable.note(number, error)
        raise TooManyUnreadable(f"none of the {len(self.sequences)} sequences can be read")

    def _drawn(self, sequence: TrackedSequence, rng: np.random.Generator) -> Numbers:
        """Frames of a training clip, (T,), of which the first shows the object.

        They may reach beyond the end.
        """
        if self.clips is not None:
            wanted = self.clips.sample(np.arange(len(sequence), dtype=np.float64), rng)[0]
            seen = _seen(sequence, 0, len(sequence), 1)
            moved: Numbers = wanted - wanted[0] + seen[np.abs(seen - wanted[0]).argmin()]
            return moved
        last = max(0, len(sequence) - 1 - self.step * (self.frames - 1))
        seen = _seen(sequence, 0, last + 1, 1)  # in time for a whole clip
        if not len(seen):  # shown only later: the clip is held at its end
            seen = _seen(sequence, 0, len(sequence), 1)
        first = int(rng.choice(seen))
        return first + self.step * np.arange(self.frames)

    def _clip(
        self, sequence: TrackedSequence, wanted: Numbers, rng: np.random.Generator | None
    ) -> dict[str, Tensor]:
        """The pixels and boxes of a clip; held at the last frame, whose box then counts no more.

        Args:
            sequence: Where it is from.
            wanted: Its frames, (T,).
            rng: Draws the window, if there is one; None for a whole frame.
        """
        shown = np.minimum(wanted, len(sequence) - 1)
        boxes = sequence.boxes.numpy()[shown]  # (T, 4)
        boxes[wanted != shown] = np.nan
        pictures = [sequence.frames.frame(int(t)) for t in shown]
        height, width = pictures[0].shape[-2:]
        if rng is None or self.window is None:
            size, part = (self.size, self.size), np.array([0, 0, width, height])
            boxes = boxes * np.array([self.size / width, self.size / height] * 2)
        else:
            size = self.window.shape
            drawn = self.window.sample(height, width, 1, rng)[0]
            part = _moved(drawn, boxes[0], height, width).round().astype(np.int64)
            shares = boxes / np.array([width, height] * 2)
            boxes = cut_boxes(shares[None, :, None], part[None], (height, width), size)[0, :, 0]
        x0, y0, x1, y1 = part.tolist()
        return {
            "video": _scaled([picture[:, y0:y1, x0:x1] for picture in pictures], size)[None],
            "boxes": torch.from_numpy(boxes.astype(np.float32))[None, :, None],
        }


def _scaled(pictures: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Stretches frames (3, h, w) to a size, (T, 3, H, W) uint8, antialiased.

    One by one: 16 frames of 1,080 rows would take 400 MB at once, in every worker.
    """
    scaled = [
        functional.interpolate(
            picture[None].float(), size, mode="bilinear", align_corners=False, antialias=True
        )
        for picture in pictures
    ]
    return torch.cat(scaled).round().clamp(0, 255).byte()


def _moved(window: Rectangles, box: npt.NDArray[np.float64], height: int, width: int) -> Rectangles:
    """Moves a window as little as needed for a box to lie in it, or, if larger, to fill it.

    Args:
        window: xyxy in pixels of the frame, (4,).
        box: The same, (4,).
        height: Height of the frame in pixels.
        width: Its width.
    """
    side = window[2:] - window[:2]
    ends = box[2:] - side, box[:2]  # where the window may start, either way round
    start = np.clip(window[:2], np.minimum(*ends), np.maximum(*ends))
    start = np.clip(start, 0, np.array([width, height]) - side)
    return np.concatenate([start, start + side])


def _seen(sequence: TrackedSequence, start: int, stop: int, step: int) -> Numbers:
    """Every ``step``-th frame, of those that show the object."""
    numbers = np.arange(start, stop, step)
    kept: Numbers = numbers[~sequence.boxes[numbers].isnan().any(1).numpy()]
    return kept
