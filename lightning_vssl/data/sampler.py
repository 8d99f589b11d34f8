"""The order in which training visits the videos."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from lightning_vssl.nn.keyed import sample_key


class KeyedSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index): a permutation that depends on (seed, epoch) alone.

    Position p of the permutation goes to rank ``p % ranks``, so a batch gathered over the ranks
    holds the same samples whatever their number. The epoch travels with the index because workers
    that live through the whole run never see the sampler. Being a `DistributedSampler`, it is left
    as it is by Trainer, which would shard any other sampler a second time.

    Args:
        size: Videos in the dataset.
        seed: Seed of the permutations.
        ranks: Processes that share the epoch.
        rank: This process, from 0.
        drop_last: Leave out the ``size % ranks`` last positions; otherwise the first ones are
            visited twice, so that every rank has the same count.
    """

    def __init__(
        self, size: int, *, seed: int = 0, ranks: int = 1, rank: int = 0, drop_last: bool = True
    ) -> None:
        if size < 1:
            raise ValueError(f"size={size}: the dataset has no video")
        if drop_last and size < ranks:
            raise ValueError(f"size={size}: fewer videos than ranks={ranks}")
        super().__init__(
            range(size),  # type: ignore[arg-type]  # its length is all that is read
            num_replicas=ranks,
            rank=rank,
            seed=seed,
            drop_last=drop_last,
        )
        self.size = size
        self._start = (-1, 0)

    def resume(self, epoch: int, samples: int) -> None:
        """Starts one epoch late; all other epochs are whole.

        It becomes the current epoch at once: on a resume Trainer opens the loader, and its workers
        begin to read, before it calls `set_epoch`.

        Args:
            epoch: The epoch that was under way.
            samples: What all ranks together had taken from it.
        """
        self._start = (epoch, samples)
        self.set_epoch(epoch)

    def order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The permutation of an epoch over all ranks, cut or extended to a multiple of them."""
        key = sample_key(self.seed, epoch, -1) & ((1 << 64) - 1)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(self.size)
        return np.resize(order, self.total_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields this rank's share of the epoch that `set_epoch` named."""
        epoch = self.epoch  # as it is now: it may be set anew while workers read ahead
        late, samples = self._start
        order = self.order(epoch)[samples if epoch == late else 0 :]
        for index in order[self.rank :: self.num_replicas]:
            yield epoch, int(index)

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch, also in one that starts late."""
        return self.num_samples
