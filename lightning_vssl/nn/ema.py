"""A network that follows another one: exponential moving averages of weights."""

import math
from typing import Literal

import torch
from torch import Tensor, nn


def _pairs(target: nn.Module, online: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    theirs = dict(online.named_parameters())
    ours = dict(target.named_parameters())
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(
            "target and online must have the same parameters; only one of them has: "
            + ", ".join(odd[:10])
            + ("" if len(odd) <= 10 else f" and {len(odd) - 10} more")
            + ". Make the target with copy.deepcopy(online)."
        )
    return list(ours.values()), [theirs[name] for name in ours]


@torch.no_grad()
def update_ema(
    target: nn.Module,
    online: nn.Module,
    momentum: float = 0.999,
    buffers: Literal["keep", "copy"] = "keep",
) -> None:
    """Moves the target's parameters towards the online ones: ``m * target + (1 - m) * online``.

    One fused call for all parameters. Call it once per optimiser step, after the step and before
    any checkpoint, that is in ``optimizer_step`` after ``super().optimizer_step(...)``.

    Args:
        target: The averaged network, changed in place.
        online: The trained network, of the same architecture.
        momentum: m in [0, 1]; MoCo's and RSPNet's 0.999. 0 copies, 1 changes nothing.
        buffers: ``"keep"`` leaves the target's buffers (statistics of batch norm) to its own
            forward passes in train mode, as MoCo, RSPNet, BYOL and DetCon do. ``"copy"`` copies
            the online ones, for a target that runs in eval mode. They are never averaged.

    Raises:
        ValueError: If ``momentum`` is outside of [0, 1], ``buffers`` is neither value, or the
            parameters do not match by name.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1]; got {momentum}.")
    if buffers not in ("keep", "copy"):
        raise ValueError(f'buffers must be "keep" or "copy"; got {buffers!r}.')
    ours, theirs = _pairs(target, online)
    if ours:
        torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
    if buffers == "copy":
        theirs_by_name = dict(online.named_buffers())
        for name, buffer in target.named_buffers():
            buffer.copy_(theirs_by_name[name])


def cosine_momentum(step: int, total: int, base: float = 0.99) -> float:
    """Raises the momentum from ``base`` to 1 along half a cosine (BYOL, appendix; VITO).

    ``1 - (1 - base) * (1 + cos(pi * step / total)) / 2``

    Args:
        step: Optimiser steps taken, from 0; beyond ``total`` the result stays 1.
        total: Optimiser steps of the whole run.
        base: The first value, in [0, 1]: BYOL's 0.99 for 100 and 300 epochs, 0.996 for 1000.

    Returns:
        The momentum, a plain float.

    Raises:
        ValueError: If ``total`` is not positive, ``step`` negative or ``base`` outside of [0, 1].
    """
    if total < 1 or step < 0:
        raise ValueError(f"total must be at least 1 and step at least 0; got {total=}, {step=}.")
    if not 0.0 <= base <= 1.0:
        raise ValueError(f"base must lie in [0, 1]; got {base}.")
    progress = min(step / total, 1.0)
    return float(1.0 - (1.0 - base) * (1.0 + math.cos(math.pi * progress)) / 2.0)
