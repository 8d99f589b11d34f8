"""What every job shares: shards, going on where a run stopped, one file at the end.

`lightning-vssl predict --config recipes/jobs/<job>.yaml` runs a job over a data module's videos.
A worker reads one whole video and returns a small record; ``predict_step`` leaves it as it is or
runs a network on the accelerator; the records of a shard of consecutive videos are written as one
Parquet file, whole or not at all. A run that was killed goes on with the shards that are missing,
on any number of processes, and loses at most one shard of each. When all are there they are joined,
in the order of the list, into the job's file.

Shards are dealt to the processes beforehand and no process waits for another while it works: steps
and writers communicate nothing. The process that finds all shards written joins them; should two
find so at once, both write the same bytes.
"""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.whole import Record, ShardSampler, WholeVideos, Work, shards_of

_log = logging.getLogger(__name__)

Shards = list[tuple[int, int]]

_FORMAT = "1"


class Job(LightningModule, ABC):
    """Works on every listed video of a split.

    A job gives `work`, `table` and `description`, and `finish` if something is left for the
    accelerator. It writes into ``trainer.default_root_dir``: ``<name>.parquet`` when all is done,
    ``shards/`` on the way, and ``job.json``, which says of what.

    Args:
        name: What the job's file is called.
        split: Videos of which split.
        shard_size: Videos of a shard: what a killed run may lose, times its processes.

    Raises:
        ValueError: If ``split`` is none, or ``shard_size`` is below 1.
    """

    def __init__(
        self, name: str, *, split: Literal["train", "val", "test"], shard_size: int
    ) -> None:
        super().__init__()
        if split not in ("train", "val", "test"):
            raise ValueError(f"split={split!r}: choose 'train', 'val' or 'test'")
        if shard_size < 1:
            raise ValueError(f"shard_size={shard_size}: must be 1 or more")
        self.name = name
        self.split = split
        self.shard_size = shard_size
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have no shard
        self.manifest: Manifest | None = None

    @property
    @abstractmethod
    def work(self) -> Work:
        """What a worker does with a video; it is pickled."""

    @abstractmethod
    def description(self) -> Mapping[str, object]:
        """Every setting that the result depends on, plain data: a run with others is another."""

    @abstractmethod
    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """The rows of the job's file for these videos."""

    def settled(self, manifest: Manifest) -> npt.NDArray[np.bool_] | None:
        """Rows that are decided without a look at the video, (N,) bool, or None for none."""
        return None

    def finish(self, record: Record) -> Record:
        """Does on the accelerator what is left to do with a video that was read."""
        return record

    @property
    def folder(self) -> Path:
        """Where the job writes."""
        return Path(self.trainer.default_root_dir)

    @property
    def file(self) -> Path:
        """The job's file: there when all is done."""
        return self.folder / f"{self.name}.parquet"

    def shard(self, shard: tuple[int, int]) -> Path:
        """The file of a shard: it names its first row and the first behind it."""
        return self.folder / "shards" / f"{shard[0]:09d}-{shard[1]:09d}.parquet"

    def configure_callbacks(self) -> list[Callback]:
        """The writer."""
        return [ShardWriter()]

    def video_loader(self, manifest: Manifest, workers: int, prefetch: int) -> DataLoader[Record]:
        """This process's videos, without what is done; called by the data module.

        Args:
            manifest: All listed videos, those that cannot be read too.
            workers: Processes that read videos.
            prefetch: Videos that each holds ready.

        Raises:
            ValueError: If the folder holds what another job, or another list, has left.
        """
        self.manifest = manifest
        found: Shards | str = self._left() if self.trainer.is_global_zero else []
        left = self.trainer.strategy.broadcast(found)
        if isinstance(left, str):
            raise ValueError(left)
        sampler = ShardSampler(left, ranks=self.trainer.world_size, rank=self.trainer.global_rank)
        return DataLoader(
            WholeVideos(manifest, self.work, self.settled(manifest)),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
        )

    def on_predict_start(self) -> None:
        """Keeps no record in memory: the writer has them."""
        self.trainer.predict_loop.return_predictions = False

    def predict_step(self, batch: Record, batch_idx: int) -> Record:
        """Finishes one video's record."""
        return batch if batch["error"] else self.finish(batch)

    def join(self) -> bool:
        """Makes the job's file if all shards are there; a job may make more of it.

        Returns:
            Whether the job's file is there.
        """
        if self.manifest is None or self.file.is_file():
            return self.file.is_file()
        shards = [self.shard(s) for s in shards_of(len(self.manifest), self.shard_size)]
        if not all(shard.is_file() for shard in shards):
            return False
        schema = pq.read_schema(shards[0])
        with (
            whole_file(self.file) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for shard in shards:
                writer.write_table(pq.read_table(shard))
        return True

    def _left(self) -> Shards | str:
        """The shards that are not done, or why this folder will not do."""
        assert self.manifest is not None
        wrong = self._claim()
        if wrong:
            return wrong
        for temporary in (*self.folder.glob(".*.tmp"), *(self.folder / "shards").glob(".*.tmp")):
            temporary.unlink(missing_ok=True)
        if self.file.is_file():
            self.join()
            return []
        shards = shards_of(len(self.manifest), self.shard_size)
        left = [shard for shard in shards if not self.shard(shard).is_file()]
        if len(left) < len(shards):
            _log.warning("going on: %d of %d shards are done", len(shards) - len(left), len(shards))
        if not left:
            self.join()
        return left

    def _claim(self) -> str:
        """Notes in the folder whose it is; says why it is another's."""
        assert self.manifest is not None
        digest = hashlib.blake2b(digest_size=16)
        for name in ("path", "start", "end"):
            digest.update(repr(self.manifest.table.column(name).to_pylist()).encode())
        about = {
            "job": type(self).__name__,
            "format": _FORMAT,
            "split": self.split,
            "shard_size": self.shard_size,
            "videos": len(self.manifest),
            "list": digest.hexdigest(),
            **self.description(),
        }
        about = json.loads(json.dumps(about))
        file = self.folder / "job.json"
        if not file.is_file():
            with whole_file(file) as temporary:
                temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            return ""
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {before.get(name)} and is {about.get(name)}"
            for name in {**before, **about}
            if before.get(name) != about.get(name)
        ]
        if not changed:
            return ""
        return (
            f"{self.folder} holds a job with other settings ({'; '.join(changed)}): choose another "
            "--trainer.default_root_dir, or delete the folder to start afresh"
        )


class ShardWriter(Callback):
    """Writes the records of a job, one shard at a time; each process its own."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._shards: Shards = []
        self.videos = 0
        self.failed = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the shards of this process."""
        loader = trainer.predict_dataloaders
        sampler = loader.sampler if isinstance(loader, DataLoader) else None
        batches = getattr(loader, "batch_sampler", None)
        sampler = getattr(batches, "sampler", None) or sampler
        if not isinstance(sampler, ShardSampler) or not isinstance(pl_module, Job):
            raise TypeError("a ShardWriter writes what a Job reads by its video_loader")
        self._shards = list(sampler.shards)
        self._records, self.videos, self.failed = [], 0, 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a record, and writes its shard when it is the last."""
        assert isinstance(pl_module, Job)
        assert isinstance(outputs, dict)
        assert pl_module.manifest is not None
        self._records.append(outputs)
        self.videos += 1
        if outputs["error"]:
            self.failed += 1
            path = pl_module.manifest.path(int(outputs["row"]))
            _log.warning("cannot read %s: %s; it is recorded so", path, outputs["error"])
        shard = self._shards[0]
        if len(self._records) == shard[1] - shard[0]:
            table = pl_module.table(self._records, pl_module.manifest)
            with whole_file(pl_module.shard(shard)) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            del self._shards[0]
            self._records = []

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the shards if all are there."""
        assert isinstance(pl_module, Job)
        pl_module.join()
        if self.failed:
            _log.warning("%d of %d videos could not be read", self.failed, self.videos)
        if self._records:
            _log.warning("%d videos of a shard cut short are not kept", len(self._records))
