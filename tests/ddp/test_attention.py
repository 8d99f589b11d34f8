"""The attention loss over two ranks whose masks are spread unevenly, against one process."""

import pytest
import torch
from torch import Tensor, nn

from lightning_vssl.losses.attention import attention_loss
from lightning_vssl.metrics.localisation import HeatLocalisation
from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from lightning_vssl.nn.grad_cam import channel_weights, grad_cam
from lightning_vssl.nn.heads import MLP
from tests.ddp.pool import TwoProcesses


def step(valid: tuple[int, ...]) -> dict[str, Tensor]:
    """Loss and gradients over eight clips, of which each rank holds its share, averaged."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Conv3d(3, 6, 3, padding=1), MLP(6, (7,), 5)]).double()
    clips = torch.randn(8, 3, 2, 6, 6, dtype=torch.float64, generator=draw)
    keys = torch.randn(8, 5, dtype=torch.float64, generator=draw)
    target = torch.rand(8, 2, 6, 6, dtype=torch.float64, generator=draw)
    rows = slice(rank() * 8 // world_size(), (rank() + 1) * 8 // world_size())
    maps = net[0](clips[rows]).relu()
    pooled = maps.mean((2, 3, 4))
    score = (nn.functional.normalize(net[1](pooled), dim=1) * keys[rows]).sum(1)
    cam = grad_cam(maps, channel_weights(score, pooled, 72, create_graph=True))
    flags = torch.tensor(valid, dtype=torch.bool)[rows]
    loss = attention_loss(cam, target[rows], flags)
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {name: all_reduce_sum(value) / world_size() for name, value in found.items()}


@pytest.mark.parametrize(
    "valid", [(1, 1, 1, 1, 1, 0, 0, 0), (0, 0, 0, 0, 0, 1, 1, 0), (1,) * 8, (0,) * 8]
)
def test_two_ranks_equal_one_process(two_processes: TwoProcesses, valid: tuple[int, ...]) -> None:
    one = step(valid)
    assert len(one) >= 5
    largest = max(value.abs().max().item() for value in one.values())
    assert largest > 1e-2 if any(valid) else largest == 0
    for seen in two_processes(step, valid):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for name, expected in one.items():
            assert torch.allclose(seen[name], expected, rtol=0, atol=1e-12), name


def localised(rows: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """Heat maps of nine videos, each rank's rows of them; the last one has no object."""
    draw = torch.Generator().manual_seed(0)
    heat, mask = torch.rand(9, 5, 5, generator=draw), torch.rand(9, 15, 20, generator=draw) < 0.3
    mask[8] = False
    own = torch.tensor([n for part in rows for n in part] if world_size() == 1 else rows[rank()])
    metric = HeatLocalisation()
    for part in own.split(2):
        metric.update(heat[part], mask[part], part)
    found = metric.compute()
    return {**found, "samples": metric.samples, "undefined": metric.undefined}


def test_heat_maps_over_two_ranks_count_once(two_processes: TwoProcesses) -> None:
    rows = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 0, 2))  # as a sampler pads, and unevenly
    one = localised(rows)
    assert (one["samples"], one["undefined"]) == (8, 1)
    for seen in two_processes(localised, rows):
        assert seen == pytest.approx(one, abs=1e-12)
