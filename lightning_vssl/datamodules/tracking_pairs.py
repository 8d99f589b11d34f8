"""Pairs of crops to train a Siamese tracker with, and whole sequences to test it on."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.data.pairs import BoxLimits, PairDataset
from lightning_vssl.data.sampler import KeyedSampler
from lightning_vssl.data.sequences import TrackedSequence
from lightning_vssl.data.track_files import KeepsTracks, TrackFiles
from lightning_vssl.datamodules.sequences import SequenceDataModule


class TrackingPairs(LightningDataModule):
    """Trains on pairs out of one data set and tests on the sequences of another.

    Training batches are dicts on the CPU, the samples of
    `lightning_vssl.data.pairs.PairDataset` stacked: ``video`` (B, 2, T, 3, S, S) uint8,
    ``boxes`` (B, 2, 1, 1, 4), ``key``, ``index``, ``replaced``. Tests walk the other data set's own
    loader.

    Args:
        train: Where pairs come from: its ``train`` sequences, for instance GOT-10k's.
        test: What is tracked in tests, for instance OTB; None for ``train``'s own.
        samples: Pairs in an epoch; None for one a sequence.
        exemplar: Side of the exemplar crop in pixels.
        search: Side of the search crop in tracking.
        margin: Pixels by which a training crop is narrower on each side.
        stretch: Largest change of scale of a window.
        context: Share of the box's half perimeter by which windows are wider than boxes.
        gap: The two frames of a pair are less than this apart.
        neighbours: Frames n on each side of a clip's middle one: 0 for image networks.
        limits: Which boxes are good enough; None for the port's.
        max_unreadable: Share of the training sequences, in [0, 1], that may have broken frames.
        batch_size: Pairs per step over all processes together.
        num_workers: Processes per training process that read pictures.
        prefetch_factor: Batches that each of them holds ready.
        seed: Where every draw starts.
    """

    def __init__(
        self,
        # jsonargparse loses the options of a class that is given as SequenceDataModule[...].
        train: SequenceDataModule,  # type: ignore[type-arg]
        test: SequenceDataModule | None = None,  # type: ignore[type-arg]
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
        batch_size: int = 8,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._train: SequenceDataModule[TrackedSequence] = train
        self._test: SequenceDataModule[TrackedSequence] = train if test is None else test
        self.train = _described(self._train)  # stored beside the number
        self.test = _described(self._test)
        self.samples = samples
        self.exemplar = exemplar
        self.search = search
        self.margin = margin
        self.stretch = stretch
        self.context = context
        self.gap = gap
        self.neighbours = neighbours
        self.limits = limits if limits is not None else BoxLimits()
        self.max_unreadable = max_unreadable
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.seed = seed
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._pairs: PairDataset | None = None
        self._sampler: KeyedSampler | None = None
        self._resume: tuple[int, int] | None = None

    @property
    def unreadable(self) -> int:
        """Training sequences that a frame of could not be read, so far, in this process."""
        return 0 if self._pairs is None else len(self._pairs.unreadable.numbers)

    def prepare_data(self) -> None:
        """Lets both data sets make what they keep on disk."""
        self._train.prepare_data()
        if self._test is not self._train:
            self._test.prepare_data()

    def setup(self, stage: str) -> None:
        """Reads the annotations that a stage needs.

        Raises:
            FileNotFoundError: If official files are missing.
            ValueError: If an annotation is wrong.
        """
        self._test.trainer = self._train.trainer = self.trainer  # they ask it for their rank
        self._resume = None
        if stage == "fit":
            self._pairs = PairDataset(
                self._train.sequences("train"),
                samples=self.samples,
                exemplar=self.exemplar,
                search=self.search,
                margin=self.margin,
                stretch=self.stretch,
                context=self.context,
                gap=self.gap,
                neighbours=self.neighbours,
                limits=self.limits,
                max_unreadable=self.max_unreadable,
                seed=self.seed,
            )
        else:
            self._test.setup(stage)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Pairs in an order that depends on (seed, epoch) alone.

        Raises:
            ValueError: If the batch does not divide by the processes, or is larger than an epoch.
        """
        if self._pairs is None:
            raise RuntimeError("no training pairs yet: call setup('fit')")
        ranks = 1 if self.trainer is None else self.trainer.world_size
        rank = 0 if self.trainer is None else self.trainer.global_rank
        if self.batch_size % ranks or self.batch_size > len(self._pairs):
            raise ValueError(
                f"batch_size={self.batch_size} counts all processes: it must divide by the {ranks} "
                f"of this run and be no more than the {len(self._pairs)} pairs of an epoch"
            )
        self._sampler = KeyedSampler(len(self._pairs), seed=self.seed, ranks=ranks, rank=rank)
        if self._resume is not None:
            self._sampler.resume(*self._resume)
        workers = self.num_workers
        return DataLoader(
            self._pairs,
            batch_size=self.batch_size // ranks,
            sampler=self._sampler,
            drop_last=True,
            num_workers=workers,
            prefetch_factor=self.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def test_dataloader(self) -> DataLoader[TrackedSequence]:
        """The sequences to track, one at a time."""
        return self._test.test_dataloader()

    def predict_dataloader(self) -> DataLoader[TrackedSequence]:
        """As `test_dataloader`."""
        return self.test_dataloader()

    def track_files(self, folder: Path) -> TrackFiles:
        """What a tracker found in the sequences tested, in their toolkit's layout.

        Raises:
            TypeError: If their data module knows none.
        """
        if not isinstance(self._test, KeepsTracks):
            raise TypeError(f"{type(self._test).__name__} keeps no result files")
        return self._test.track_files(folder)

    def state_dict(self) -> dict[str, int]:
        """Where training stands: the epoch, and the pairs all processes took from it."""
        batches = 0 if self.trainer is None else self.trainer.num_training_batches
        if self.trainer is None or self._pairs is None or not 0 < batches < float("inf"):
            return {}
        total = cast(_ProcessedTracker, self.trainer.fit_loop.epoch_loop.batch_progress.total)
        epoch, batch = divmod(total.processed, int(batches))
        return {"epoch": epoch, "samples": batch * self.batch_size}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Goes on where `state_dict` stood, also in the middle of an epoch."""
        if not state_dict:
            return
        self._resume = (state_dict["epoch"], state_dict["samples"])
        if self._sampler is not None:
            self._sampler.resume(*self._resume)


def _described(module: SequenceDataModule[TrackedSequence]) -> dict[str, object]:
    """Class and plain settings of a data module, as far as they concern the data."""
    aside = {*vars(LightningDataModule()), "cache_dir"}
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, int | float | str | Path)
        if name not in aside and not name.startswith("allow_zero_length")
    }
    return {"class": type(module).__name__, **settings}
