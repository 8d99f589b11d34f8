"""What the data sets of whole sequences share: OTB, GOT-10k, DAVIS."""

from abc import abstractmethod
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.data.sequences import SequenceSampler

SequenceSplit = Literal["train", "val", "test"]


class Walked(Protocol):
    """What a sequence must say of itself."""

    @property
    def name(self) -> str:
        """Names the sequence; no two of a split share it."""

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Walked)


class _Listed(Dataset[S]):
    """Sequences that were read; their frames were not."""

    def __init__(self, sequences: list[S]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, number: int) -> S:
        return self.sequences[number]


class SequenceDataModule(LightningDataModule, Generic[S]):
    """Sequences of one data set, for evaluations that walk them frame by frame.

    A loader yields sequences as they are, one at a time, and deals them to the processes of a run
    so that each is walked once: see `lightning_vssl.data.sequences.SequenceSampler`. There is
    nothing for workers to do, for a sequence reads its own frames ahead in a thread. All
    annotations of a split are read before its first frame, so that what is wrong with them is said
    at once. A data set adds `names` and `read`.

    Validation walks ``val``, tests and predictions ``test``, or the split that ``split`` names.

    Args:
        root: The data set's folder.
        split: The split that tests and predictions walk.
    """

    def __init__(self, root: Path, *, split: SequenceSplit = "test") -> None:
        super().__init__()
        if split not in ("train", "val", "test"):
            raise ValueError(f"split must be train, val or test; got {split!r}")
        self.root = Path(root).expanduser()
        self.split: SequenceSplit = split
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._read: dict[SequenceSplit, list[S]] = {}

    @abstractmethod
    def names(self, split: SequenceSplit) -> list[str]:
        """Names of a split's sequences, in the data set's order.

        Raises:
            FileNotFoundError: If official files are missing.
            ValueError: If the data set has no such split.
        """

    @abstractmethod
    def read(self, split: SequenceSplit, name: str) -> S:
        """One sequence, with its annotations, without its frames.

        Raises:
            FileNotFoundError: If official files are missing.
            ValueError: If an annotation is wrong; names the file and the line.
        """

    def sequences(self, split: SequenceSplit) -> list[S]:
        """All sequences of a split, read once.

        Raises:
            FileNotFoundError: If official files are missing.
            ValueError: If an annotation is wrong, or there is no sequence.
        """
        if split not in self._read:
            found = [self.read(split, name) for name in self.names(split)]
            if not found:
                raise ValueError(f"{type(self).__name__} has no {split} sequence in {self.root}")
            self._read[split] = found
        return self._read[split]

    def setup(self, stage: str) -> None:
        """Reads the annotations that a stage needs."""
        if stage in ("test", "predict"):
            self.sequences(self.split)
        elif stage == "validate":
            self.sequences("val")

    def val_dataloader(self) -> DataLoader[S]:
        """The sequences of ``val``."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[S]:
        """The sequences of ``split``."""
        return self._loader(self.split)

    def predict_dataloader(self) -> DataLoader[S]:
        """The sequences of ``split``."""
        return self._loader(self.split)

    def _loader(self, split: SequenceSplit) -> DataLoader[S]:
        ranks = 1 if self.trainer is None else self.trainer.world_size
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sequences = self.sequences(split)
        sampler = SequenceSampler([len(found) for found in sequences], ranks=ranks, rank=rank)
        return DataLoader(_Listed(sequences), batch_size=None, sampler=sampler)
