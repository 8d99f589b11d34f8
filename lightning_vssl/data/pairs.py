"""Training pairs of a Siamese tracker: the same object in two frames of a sequence, cropped.

SiamFC (Bertinetto et al., ECCV workshops 2016), section 2.2 and 2.4. What the paper leaves open
follows its PyTorch port, with which VFS trains: which boxes are used, how far the windows move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_vssl.data.crops import context_side, crop_squares
from lightning_vssl.data.sequences import TrackedSequence, UnreadableFrame
from lightning_vssl.data.unreadable import Unreadable, stand_ins
from lightning_vssl.nn.keyed import sample_key

_WORD = (1 << 64) - 1
_TRIES = 100  # of a pair that is near enough, as in the port


@dataclass(frozen=True)
class BoxLimits:
    """Which boxes are good enough to train with; the defaults are the port's.

    Attributes:
        sides: Least and largest width and height in pixels.
        shares: The same as shares of the frame's width and height.
        aspect: Largest ratio of the longer side to the shorter one.
        cover: Least part of the object that is seen, relative to the sequence's best; only where
            the data set tells.
    """

    sides: tuple[float, float] = (20.0, 500.0)
    shares: tuple[float, float] = (0.01, 0.5)
    aspect: float = 4.0
    cover: float = 0.3

    def __post_init__(self) -> None:
        for name, (low, high) in (("sides", self.sides), ("shares", self.shares)):
            if not 0 <= low < high:
                raise ValueError(f"{name} must be two ascending numbers from 0, got {low}, {high}")
        if self.aspect < 1 or not 0 <= self.cover <= 1:
            raise ValueError(
                f"aspect must be at least 1 and cover in [0, 1], got {self.aspect} and {self.cover}"
            )

    def good(self, sequence: TrackedSequence) -> npt.NDArray[np.int64]:
        """The frames of a sequence that may be trained with, ascending."""
        height, width = sequence.frames.size
        boxes = sequence.boxes.numpy()
        sides = boxes[:, 2:] - boxes[:, :2]  # (F, 2); NaN compares as false
        shares = sides / (width, height)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = sides.max(1) / sides.min(1)
        kept = ((self.sides[0] <= sides) & (sides <= self.sides[1])).all(1)
        kept &= ((self.shares[0] <= shares) & (shares <= self.shares[1])).all(1)
        kept &= ratio <= self.aspect
        if sequence.cover is not None:
            cover = sequence.cover.numpy()
            kept &= cover > max(1.0, self.cover * cover.max())
        if sequence.absent is not None:
            kept &= ~sequence.absent.numpy()
        return np.flatnonzero(kept)


class PairDataset(Dataset[dict[str, Tensor]]):
    """An exemplar and a search picture of a sequence's object, both around the object's box.

    A sample is a dict: ``video`` (2, T, 3, S, S) uint8, first the exemplar's clip, then the search
    clip, S = ``search`` - 2 ``margin``, both at the scale at which the exemplar window has
    ``exemplar`` pixels; ``boxes`` (2, 1, 1, 4), the object's in pixels of ``video``; ``key``;
    ``index``, the sequence; ``replaced`` () bool. The exemplar is the middle of the first clip,
    ``exemplar`` pixels wide: the model cuts it out. The frames of a clip share the window of the
    middle one, and the sequence's first and last frame stand in for what is beyond them.

    It is indexed by (epoch, index), or by index alone for epoch 0; a sample depends on the seed,
    the epoch and the index alone. Sequence ``index % len(sequences)`` is drawn from; where it has
    no two good frames, or one that was drawn cannot be read, another one that the key names: then
    ``replaced`` is set. Sequences with a frame that cannot be read are logged, by that frame, and
    counted, as `lightning_vssl.data.dataset.VideoDataset` does with videos.

    Args:
        sequences: What is drawn from.
        samples: Pairs in an epoch; None for one a sequence (VFS). The original has 53,200.
        exemplar: Side of the exemplar crop in pixels.
        search: Side of the search crop in tracking.
        margin: Pixels by which a training crop is narrower on each side, half of which the windows
            move by, at most, on each axis.
        stretch: Largest change of scale, of each of the two windows.
        context: See `lightning_vssl.data.crops.context_side`.
        gap: The two frames are less than this apart.
        neighbours: Frames n on each side of a clip's middle one; T = 2n + 1.
        limits: Which boxes are good enough.
        max_unreadable: Share of the sequences, in [0, 1], that may turn out to have a frame that
            cannot be read before the run stops.
        seed: The run's seed.

    Raises:
        ValueError: If a number is out of range or there is no sequence.
    """

    def __init__(
        self,
        sequences: Sequence[TrackedSequence],
        *,
        samples: int | None = None,
        exemplar: int = 127,
        search: int = 255,
        margin: int = 8,
        stretch: float = 0.05,
        context: float = 0.5,
        gap: int = 100,
        neighbours: int = 0,
        limits: BoxLimits | None = None,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not sequences:
            raise ValueError("there is no sequence to draw pairs from")
        if not 0 <= margin < (search - exemplar) / 2:
            raise ValueError(
                f"margin must be 0 or more and leave the {exemplar} pixels of the exemplar and "
                f"some around it of search={search}; got {margin}"
            )
        if (
            not 0 <= stretch < 1
            or gap < 2
            or neighbours < 0
            or (samples is not None and samples < 1)
        ):
            raise ValueError(
                "stretch must be in [0, 1), gap at least 2, neighbours 0 or more, samples 1 or "
                f"more; got {stretch}, {gap}, {neighbours}, {samples}"
            )
        self.sequences = list(sequences)
        self.samples = len(self.sequences) if samples is None else samples
        self.exemplar = exemplar
        self.size = search - 2 * margin
        self.margin = margin
        self.stretch = stretch
        self.context = context
        self.gap = gap
        self.neighbours = neighbours
        self.limits = limits if limits is not None else BoxLimits()
        self.seed = seed
        self.unreadable = Unreadable(
            self._folder, len(self.sequences), limit=max_unreadable, what="sequences"
        )

    def __len__(self) -> int:
        return self.samples

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's pixels."""
        return 2 * (2 * self.neighbours + 1) * 3 * self.size**2

    def __getitem__(self, item: tuple[int, int] | int) -> dict[str, Tensor]:
        """Draws a pair.

        Args:
            item: (epoch, index), or an index of epoch 0.

        Raises:
            TooManyUnreadable: If more sequences have broken than ``max_unreadable`` allows.
            ValueError: If no sequence has two good frames that can be read.
        """
        epoch, index = item if isinstance(item, tuple) else (0, int(item))
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        key = sample_key(self.seed, epoch, index)
        asked = index % len(self.sequences)
        for number in stand_ins(asked, len(self.sequences), key):
            try:
                drawn = self._drawn(self.sequences[number], key)
            except UnreadableFrame as error:
                self.unreadable.note(number, error)
                continue
            if drawn is not None:
                return {
                    **drawn,
                    "key": torch.tensor(key),
                    "index": torch.tensor(number),
                    "replaced": torch.tensor(number != asked),
                }
        raise ValueError(
            f"none of the {len(self.sequences)} sequences has two frames that can be read and "
            f"whose boxes keep within {self.limits}: widen the limits"
        )

    def _folder(self, number: int) -> Path:
        return self.sequences[number].folder

    def _drawn(self, sequence: TrackedSequence, key: int) -> dict[str, Tensor] | None:
        """The pixels and boxes of a pair, or None where a sequence has no two good frames."""
        good = self.limits.good(sequence)
        if len(good) < 2:
            return None
        rng = np.random.Generator(np.random.Philox(key=key & _WORD))
        made = [self._clip(sequence, frame, rng) for frame in self._pair(good, rng)]
        return {
            "video": torch.stack([video for video, _ in made]),  # (2, T, 3, S, S)
            "boxes": torch.stack([box for _, box in made])[:, None, None],  # (2, 1, 1, 4)
        }

    def _pair(self, good: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[int, int]:
        """Two good frames less than ``gap`` apart, the earlier one first; one twice if need be."""
        for _ in range(_TRIES):
            first, second = np.sort(rng.choice(good, 2, replace=False)).tolist()
            if second - first < self.gap:
                return first, second
        return first, first

    def _clip(
        self, sequence: TrackedSequence, frame: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """A clip around a frame, (T, 3, S, S) uint8, and the box in it, (4,)."""
        x1, y1, x2, y2 = sequence.boxes[frame].tolist()
        scale = self.exemplar / context_side(x2 - x1, y2 - y1, self.context)
        scale *= 1 + rng.uniform(-self.stretch, self.stretch)  # crop pixels per picture pixel
        move = rng.uniform(-self.margin / 2, self.margin / 2, 2) / scale
        centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + move
        side = self.size / scale
        last = len(sequence) - 1
        reach = range(frame - self.neighbours, frame + self.neighbours + 1)
        crops = [
            crop_squares(
                sequence.frames.frame(min(max(t, 0), last)),
                torch.from_numpy(centre)[None],
                torch.tensor([side], dtype=torch.float64),
                self.size,
            )
            for t in reach
        ]
        corner = torch.from_numpy(np.tile(centre - side / 2, 2))
        box = ((sequence.boxes[frame] - corner) * scale).float()
        return torch.cat(crops).round().clamp(0, 255).byte(), box
