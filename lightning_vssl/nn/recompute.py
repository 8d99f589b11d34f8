"""Activations that are forgotten in the forward pass and made again in the backward pass.

The gradients are those of the ordinary pass. What is recomputed must not count twice: while it
runs for the second time, batch norms leave their running statistics as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Out = TypeVar("Out")


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, batch norms normalise by the batch, as in training, but do not note what they saw.

    Args:
        module: Holds the batch norms; those in eval mode are left alone.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept: list[tuple[nn.modules.batchnorm._BatchNorm, float | None, Tensor]] = []
    for norm in norms:
        if norm.training and norm.num_batches_tracked is not None:
            kept.append((norm, norm.momentum, norm.num_batches_tracked.clone()))
            norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


@contextmanager
def norms_by_batch(module: nn.Module) -> Iterator[None]:
    """Within it, batch norms of a module in eval mode normalise by the batch, and note nothing.

    Args:
        module: Holds the batch norms, which are back in eval mode afterwards.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
    try:
        with frozen_statistics(module):
            yield
    finally:
        for norm in norms:
            norm.eval()


def recompute(module: nn.Module, function: Callable[..., Out], *inputs: Tensor) -> Out:
    """Calls a function without keeping its activations (Chen et al. 2016).

    Args:
        module: Holds every batch norm that the function runs.
        function: Takes the inputs; deterministic but for torch's global generator, the state of
            which is kept.
        inputs: What it takes.

    Returns:
        What it returns. Where gradients are off, nothing is different from a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(module)

    result: Out = checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
    return result


def in_parts(
    module: nn.Module,
    function: Callable[..., tuple[Tensor, ...]],
    parts: int,
    *inputs: Tensor,
) -> tuple[Tensor, ...]:
    """Runs a function over a batch in parts, keeping the activations of none of them.

    For contrastive batches that do not fit into memory: the outputs of all parts stand in the
    loss together, and the backward pass makes one part's activations at a time (the gradient
    cache of Gao et al. 2021). Loss and gradients are those of the batch in one piece, except that
    a batch norm in training sees one part at a time. It costs one more forward pass.

    Args:
        module: Holds every batch norm that the function runs.
        function: Takes the inputs' rows of a part and returns tensors with as many rows.
        parts: Into how many parts the rows go; 1 is a plain call.
        inputs: Tensors with the same number of rows.

    Returns:
        The function's outputs, with all rows.

    Raises:
        ValueError: If ``parts`` does not divide the number of rows.
    """
    if parts == 1:
        return function(*inputs)
    rows = len(inputs[0])
    if parts < 1 or rows % parts:
        raise ValueError(
            f"parts={parts} does not divide the {rows} samples that each process has of a batch"
        )
    split = [torch.split(x, rows // parts) for x in inputs]
    found = [recompute(module, function, *part) for part in zip(*split, strict=True)]
    return tuple(torch.cat(outputs) for outputs in zip(*found, strict=True))
