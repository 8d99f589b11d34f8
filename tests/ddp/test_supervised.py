"""Supervised's step on two ranks equals one process."""

import functools

import torch
from torch import Tensor, nn

from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from lightning_vssl.nn.keyed import sample_key
from tests.ddp.norm import swap_norms
from tests.ddp.pool import TwoProcesses


def step() -> dict[str, Tensor]:
    """Loss and gradients of one step over four clips, of which each rank holds its share."""
    from lightning_vssl.augment.views import FineTuneViews
    from lightning_vssl.backbones import R3D18
    from lightning_vssl.methods.supervised import Supervised

    torch.manual_seed(0)
    method = Supervised(
        backbone=R3D18(width=4, depth=(1, 1, 1, 1)),
        augment=FineTuneViews(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        dropout=0.0,
    )
    method.build(5)
    method.double()
    nn.init.normal_(method.head.weight, std=0.5)
    swap_norms(method)
    video = torch.randint(0, 256, (4, 1, 8, 3, 32, 32), dtype=torch.uint8)
    rows = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    batch = {
        "video": video[rows],
        "key": torch.tensor([sample_key(0, 0, i) for i in range(4)])[rows],
        "index": torch.arange(4)[rows],
        "label": torch.tensor([0, 3, 1, 4])[rows],
    }
    batch = method.augment(batch)
    batch["views"] = batch["views"].double()
    loss = method._step(batch)["loss"]
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {name: all_reduce_sum(value) / world_size() for name, value in found.items()}


def test_two_ranks_equal_one_process(two_processes: TwoProcesses) -> None:
    one = step()
    assert len(one) > 10
    assert max(value.abs().max() for name, value in one.items() if name != "loss") > 1e-3
    for seen in two_processes(step):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for name, expected in one.items():
            assert torch.allclose(seen[name], expected, rtol=0, atol=1e-10), name
