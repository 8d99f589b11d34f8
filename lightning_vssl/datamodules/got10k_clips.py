"""GOT-10k as clips of a fixed length, for networks that see a whole trajectory at once (CtP)."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.data.clips import Clips
from lightning_vssl.data.sampler import KeyedSampler
from lightning_vssl.data.trajectories import TrajectoryClips
from lightning_vssl.data.windows import Windows
from lightning_vssl.datamodules.got10k import GOT10k

Loader = DataLoader[dict[str, Tensor]]


class GOT10kClips(LightningDataModule):
    """Trains on a clip of each training sequence, tests on all clips of val.

    Batches hold `lightning_vssl.data.trajectories.TrajectoryClips`'s samples stacked: ``video``
    (B, 1, T, 3, S, S) uint8, ``boxes`` (B, 1, T, 1, 4), ``key``, ``index``, ``replaced``.
    Validation and tests both read val: the boxes of test are withheld. ``clips`` and ``window`` are
    for pretraining, and leave validation and tests as they are.

    Args:
        root: Folder of GOT-10k; see `lightning_vssl.datamodules.got10k.GOT10k`.
        frames: Frames of a clip.
        step: Frames from one to the next.
        size: Side of the clips in pixels; whole frames are stretched to it.
        clips: Frames of a training clip; None for ``frames`` every ``step``. CtP's pretraining
            (Table 1) takes `lightning_vssl.data.clips.JitteredClip`.
        window: Crop of a training clip; None for whole frames. CtP's pretraining takes
            `lightning_vssl.data.windows.ScaleCrop`.
        batch_size: Clips per step over all processes together.
        num_workers: Processes per training process that read frames.
        prefetch_factor: Batches that each of them holds ready.
        max_unreadable: Share of the training sequences, in [0, 1], that may have broken frames.
        seed: Where every draw starts.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """

    def __init__(
        self,
        root: Path,
        *,
        frames: int = 16,
        step: int = 1,
        size: int = 112,
        clips: Clips | None = None,
        window: Windows | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        max_unreadable: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.root = Path(root).expanduser()
        self.frames = frames
        self.step = step
        self.size = size
        self.clips = clips
        self.window = window
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.max_unreadable = max_unreadable
        self.seed = seed
        self._sequences = GOT10k(self.root)
        self._train: TrajectoryClips | None = None
        self._val: TrajectoryClips | None = None
        self._sampler: KeyedSampler | None = None
        self._resume: tuple[int, int] | None = None

    @property
    def unreadable(self) -> int:
        """Training sequences that a frame of could not be read, so far, in this process."""
        return 0 if self._train is None else len(self._train.unreadable.numbers)

    def setup(self, stage: str) -> None:
        """Reads the annotations that a stage needs.

        Raises:
            FileNotFoundError: If official files are missing.
            ValueError: If an annotation is wrong.
        """
        self._resume = None
        if stage == "fit":
            self._train = TrajectoryClips(
                self._sequences.sequences("train"),
                kind="train",
                frames=self.frames,
                step=self.step,
                size=self.size,
                clips=self.clips,
                window=self.window,
                max_unreadable=self.max_unreadable,
                seed=self.seed,
            )
        self._val = TrajectoryClips(
            self._sequences.sequences("val"),
            kind="test",
            frames=self.frames,
            step=self.step,
            size=self.size,
        )

    def train_dataloader(self) -> Loader:
        """Clips in an order that depends on (seed, epoch) alone.

        Raises:
            ValueError: If the batch does not divide by the processes, or is larger than an epoch.
        """
        if self._train is None:
            raise RuntimeError("no training clips yet: call setup('fit')")
        if self.batch_size > len(self._train):
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {len(self._train)} clips of an "
                "epoch, one a sequence: there would be no step"
            )
        ranks = 1 if self.trainer is None else self.trainer.world_size
        rank = 0 if self.trainer is None else self.trainer.global_rank
        self._sampler = KeyedSampler(len(self._train), seed=self.seed, ranks=ranks, rank=rank)
        if self._resume is not None:
            self._sampler.resume(*self._resume)
        return self._loader(self._train, self._sampler)

    def val_dataloader(self) -> Loader:
        """All clips of val, in order."""
        if self._val is None:
            raise RuntimeError("no clips yet: call setup('test')")
        return self._loader(self._val, None)

    def test_dataloader(self) -> Loader:
        """All clips of val, in order."""
        return self.val_dataloader()

    def _loader(self, clips: TrajectoryClips, sampler: KeyedSampler | None) -> Loader:
        ranks = 1 if self.trainer is None else self.trainer.world_size
        if self.batch_size % ranks:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide by the {ranks} processes of this "
                "run (it counts the clips of all of them together)"
            )
        workers = self.num_workers
        return DataLoader(
            clips,
            batch_size=self.batch_size // ranks,
            sampler=sampler,
            drop_last=sampler is not None,
            num_workers=workers,
            prefetch_factor=self.prefetch_factor if workers else None,
            persistent_workers=workers > 0 and sampler is not None,
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, int]:
        """Where training stands: the epoch, and the clips all processes took from it."""
        batches = 0 if self.trainer is None else self.trainer.num_training_batches
        if self.trainer is None or self._train is None or not 0 < batches < float("inf"):
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
