"""Shuffled batch norm (He et al. 2020, MoCo, section 3.3).

A batch norm that sees one rank's samples alone tells them apart from those of other ranks by its
statistics, and a query finds its key by these. So the keys are encoded in another distribution
over the ranks than the queries, and brought back.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_vssl.nn.gather import gather, rank, world_size
from lightning_vssl.nn.keyed import bits


def shuffle_order(key: Tensor, stream: int) -> Tensor:
    """A permutation of the samples of all ranks, the same on every rank.

    It follows from the samples' keys alone: a run that is resumed shuffles like one that was
    never stopped, whatever the state of any generator.

    Args:
        key: Keys of all samples, (N,) int64, in the order of ranks.
        stream: The sequence of the keyed generator to draw from.

    Returns:
        (N,) int64: place i takes sample ``order[i]``.
    """
    return bits(key, 1, stream)[:, 0].argsort(stable=True)


@torch.no_grad()
def encode_shuffled(
    encode: Callable[[Tensor], Tensor], x: Tensor, key: Tensor, stream: int
) -> Tensor:
    """Encodes samples that have changed their ranks, and brings the codes back; no gradient.

    Each rank sends every sample to the one rank that encodes it, which is B of them, not a gather
    of all clips on all ranks as in the official code; only the codes are gathered. The counts are
    wanted on the host: one synchronisation. With one process ``x`` is encoded as it is.

    Args:
        encode: Takes (B, ...), returns (B, D).
        x: This rank's samples, (B, ...); B is the same on every rank.
        key: Their keys, (B,) int64.
        stream: The sequence of the keyed generator to draw the permutation from.

    Returns:
        Codes of this rank's samples, (B, D).

    Raises:
        ValueError: If ``key`` has not one row for each of ``x``.
    """
    if key.shape != x.shape[:1]:
        raise ValueError(
            f"key must be one number for each of the {len(x)} samples; got {tuple(key.shape)}."
        )
    if world_size() == 1:
        return encode(x)
    order = shuffle_order(gather(key).cpu(), stream)  # (N,)
    codes = gather(encode(_exchange(x, order)))  # (N, D), place by place
    own = torch.arange(rank() * len(x), (rank() + 1) * len(x))
    return codes[order.argsort()[own].to(codes.device)]


def _exchange(x: Tensor, order: Tensor) -> Tensor:
    """Samples that this rank's places take, (B, ...), from the ranks that have them."""
    size, here, ranks = len(x), rank(), world_size()
    places = order.view(ranks, size)  # row r: the samples that rank r encodes
    home = places // size  # the rank that has each
    sent = [(places[r][home[r] == here] - here * size) for r in range(ranks)]
    outgoing = x[torch.cat(sent).to(x.device)].contiguous()
    incoming = torch.empty_like(outgoing)
    taken = home[here].bincount(minlength=ranks).tolist()
    dist.all_to_all_single(incoming, outgoing, taken, [len(rows) for rows in sent])
    arrival = home[here].argsort(stable=True)  # they come rank by rank, in the order of places
    return incoming[arrival.argsort().to(x.device)]
