"""A queue of past keys that serve as negatives (He et al. 2020, MoCo, section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.nn.gather import gather


class Queue(nn.Module):
    """First in, first out: the keys of the last ``size / global batch`` steps of all ranks.

    Both buffers are persistent: a resumed run goes on with the queue it had.

    Attributes:
        keys: (size, dim) float32, one key per row, as enqueued. At first unit vectors of random
            direction, drawn from ``seed`` alone, so that all ranks agree.
        pointer: () int64, the row that the next key is written to, that is the oldest one.

    Args:
        dim: Width D of a key.
        size: Number of keys; MoCo's 65536 for images, RSPNet's 16384 for clips. It must be a
            multiple of the global batch, as in the official code, so that all keys live equally
            long.
        seed: Seed of the first keys.

    Raises:
        ValueError: If ``dim`` or ``size`` is not positive.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int = 65536, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or size < 1:
            raise ValueError(f"dim and size must be at least 1; got dim={dim}, size={size}.")
        self.dim = dim
        self.size = size
        noise = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(noise, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Tensor:
        """Returns the keys to compare with, (size, dim), as a copy outside of autograd.

        A copy, because `enqueue` writes in place and may run before the backward pass that still
        needs the values.
        """
        return self.keys.detach().clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys by those of all ranks, in the order of ranks.

        Args:
            keys: (B, dim) of this rank, unit length by custom; B is the same on every rank. No
                gradient is kept.

        Raises:
            ValueError: If ``keys`` is not (B, dim), or ``size`` is not a multiple of the global
                batch.
        """
        if keys.ndim != 2 or keys.shape[1] != self.dim:
            raise ValueError(f"keys must be (B, {self.dim}); got {tuple(keys.shape)}.")
        new = gather(keys.detach().to(self.keys.dtype))  # (B_global, D)
        count = new.shape[0]
        if count == 0 or self.size % count:
            raise ValueError(_misfit(self.size, count))
        rows = (self.pointer + torch.arange(count, device=self.pointer.device)) % self.size
        self.keys.index_copy_(0, rows, new)
        self.pointer.copy_((self.pointer + count) % self.size)

    def extra_repr(self) -> str:
        """Names the sizes."""
        return f"dim={self.dim}, size={self.size}"


def _misfit(size: int, batch: int) -> str:
    message = f"The queue's size {size} is not a multiple of the global batch {batch}."
    if batch == 0:
        return message + " The batch is empty."
    below, above = size // batch * batch, (size // batch + 1) * batch
    sizes = f"{below} or {above}" if below else f"{above}"
    fewer = max(n for n in range(1, min(batch, size) + 1) if size % n == 0)
    more = next((n for n in range(batch, size + 1) if size % n == 0), None)
    batches = f"{fewer} or {more}" if more else f"{fewer}"
    return (
        f"{message} Nearest sizes that fit: {sizes}; nearest global batches that fit: {batches}."
        " (drop_last must be on: a shorter last batch does not fit either.)"
    )
