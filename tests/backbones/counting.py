"""Counts of parameters and multiply-adds, without doing the arithmetic."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_vssl.backbones import Backbone


def count(make: Callable[[], Backbone], *size: int) -> tuple[int, int, tuple[int, ...]]:
    """Parameters, multiply-adds for one clip of size T, H, W, and the shape of the last map."""
    with torch.device("meta"):
        network = make().eval()
        clip = torch.zeros(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        out = network(clip)
    parameters = sum(p.numel() for p in network.parameters())
    return parameters, counter.get_total_flops() // 2, tuple(out.shape)
