"""Whole videos for long preprocessing: one item is one video, worked on where it is read.

A job (`lightning_vssl.jobs`) takes the listed videos of a data module in shards of consecutive
rows. A shard is the unit that is written, skipped and repeated, so what a shard holds depends on
the list alone: not on the number of processes, nor on what an earlier run had done.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Manifest

Record = dict[str, Tensor | int | str]
"""What a worker returns of a video: ``row`` () int, ``error`` (empty, or why it could not be read)
and, without an error, what the job's work found."""

Span = tuple[float, float]
Work = Callable[[VideoReader, Span], dict[str, Tensor]]
"""A job's work on a video, in a worker: takes the open video and the seconds that its row uses (the
first, and the first no longer used), returns tensors. It may raise UnreadableVideo."""


@runtime_checkable
class VideoJob(Protocol):
    """What a data module needs to know of a model that works on whole videos."""

    split: Literal["train", "val", "test"]

    def video_loader(self, manifest: Manifest, workers: int, prefetch: int) -> DataLoader[Record]:
        """The videos that this process is to work on, out of all that are listed."""


class WholeVideos(Dataset[Record]):
    """Works on the videos of a manifest, one an item. A broken video is an item with an error.

    Args:
        manifest: All listed videos; rows that cannot be read are not opened.
        work: What is done with each.
        settled: Rows that need no look at the video, (N,): their record has no error and nothing
            that was found. None for none.
    """

    def __init__(
        self, manifest: Manifest, work: Work, settled: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self.manifest = manifest
        self.work = work
        self._settled = settled
        self._readable = manifest.readable
        self._reasons = manifest.table.column("reason").combine_chunks()

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Record:
        """Works on one video.

        Args:
            row: Row of the manifest.
        """
        if self._settled is not None and self._settled[row]:
            return {"row": row, "error": ""}
        if not self._readable[row]:
            return {"row": row, "error": self._reasons[row].as_py() or "unreadable"}
        try:
            with self.manifest.open(row) as reader:
                found = self.work(reader, self.manifest.span(row))
        except UnreadableVideo as error:
            return {"row": row, "error": error.reason or "unreadable"}
        except Exception as error:
            error.add_note(f"while working on {self.manifest.path(row)}")
            raise
        return {"row": row, "error": "", **found}


class ShardSampler(DistributedSampler[int]):
    """Rows of the shards that one process works on: every ``ranks``-th of those not done.

    A `DistributedSampler`, because Trainer shards any other one a second time.

    Args:
        shards: First row of each shard not done, and the first row behind it.
        ranks: Processes of the run.
        rank: This process, from 0.
    """

    def __init__(self, shards: Sequence[tuple[int, int]], *, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(
            range(max(ranks, 1)),  # type: ignore[arg-type]  # nothing of it is used
            num_replicas=ranks,
            rank=rank,
            shuffle=False,
        )
        self.shards = tuple(shards[rank::ranks])

    def __iter__(self) -> Iterator[int]:
        """Yields rows in order."""
        for first, last in self.shards:
            yield from range(first, last)

    def __len__(self) -> int:
        return sum(last - first for first, last in self.shards)


def shards_of(rows: int, size: int) -> list[tuple[int, int]]:
    """Cuts rows into shards.

    Args:
        rows: How many there are.
        size: Rows of a shard; the last may have fewer.

    Returns:
        (first row, first row behind) of each.
    """
    firsts = np.arange(0, rows, size).tolist()
    return [(first, min(first + size, rows)) for first in firsts]
