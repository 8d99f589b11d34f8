"""What one process sends to all: gathers and sums over ranks, differentiable.

With one process, or before ``torch.distributed`` is initialised, every function here is the
identity, so that losses and queues are written once.

A loss that a rank computes from gathered embeddings has gradients for the rows of every rank. The
backward of `gather` adds them up, so a rank's gradient is that of the *sum* of all ranks' losses.
DistributedDataParallel then averages the gradients of the parameters over ranks. Therefore: let
each rank return the mean of its own rows' losses, and the step equals that of one process with the
global batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns the number of processes, 1 when ``torch.distributed`` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's number, 0 when ``torch.distributed`` is not initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _all_gather(x: Tensor) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def _all_reduce(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        # (world * B, ...) -> the rows of this rank, summed over the losses of all ranks
        rows = grad.shape[0] // world_size()
        return _all_reduce(grad)[rank() * rows : (rank() + 1) * rows]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return _all_reduce(grad)


def gather(x: Tensor) -> Tensor:
    """Concatenates a tensor of every rank along its first dimension, in the order of ranks.

    Floating tensors that require a gradient get the sum of all ranks' gradients of their rows;
    every rank must then run backward, since that communicates too. Integers and booleans are
    gathered without a gradient.

    Args:
        x: (B, ...), the same shape and dtype on every rank.

    Returns:
        (world_size * B, ...); ``x`` itself with one process. Rows ``rank() * B`` and on are this
        rank's.

    Raises:
        ValueError: If ``x`` has no dimension.
    """
    if x.ndim == 0:
        raise ValueError(
            "x must have at least one dimension to gather along; got a scalar. Use x[None]."
        )
    if world_size() == 1:
        return x
    return _Gather.apply(x) if x.requires_grad else _all_gather(x.detach())  # type: ignore[no-untyped-call,no-any-return]


@torch.no_grad()
def gather_uneven(x: Tensor) -> Tensor:
    """Concatenates a tensor of every rank, the number of rows of which may differ; no gradient.

    Args:
        x: (B_rank, ...); shape after the first dimension and dtype equal on every rank. B_rank may
            be 0.

    Returns:
        (sum of B_rank, ...), in the order of ranks; ``x`` detached with one process.
    """
    if world_size() == 1:
        return x.detach()
    counts = gather(torch.tensor([x.shape[0]], device=x.device)).tolist()
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: x.shape[0]] = x.detach()
    parts = _all_gather(padded).reshape(len(counts), max(counts), *x.shape[1:])
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_sum(x: Tensor) -> Tensor:
    """Adds up a tensor over ranks; differentiable.

    The gradient of the result reaches every rank's ``x``, summed over the losses of all ranks. A
    mean whose count differs between ranks is ``world_size() * local_sum / all_reduce_sum(count)``
    on each rank: the average over ranks that DistributedDataParallel takes is then the global mean.

    Args:
        x: Any shape, the same on every rank.

    Returns:
        The sum, of the shape of ``x``; ``x`` itself with one process.
    """
    if world_size() == 1:
        return x
    return _AllReduceSum.apply(x) if x.requires_grad else _all_reduce(x.detach())  # type: ignore[no-untyped-call,no-any-return]
