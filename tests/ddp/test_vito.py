"""MoCLR's and VITO's steps on two ranks equal one process, with norms over the global batch.

What is gathered are target features, which carry no gradient: unlike CVRL's, the gather may be
detached.
"""

import functools

import pytest
import torch
from torch import Tensor

from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from tests.ddp.norm import swap_norms
from tests.ddp.pool import TwoProcesses


def step(name: str, broken: str = "") -> dict[str, Tensor]:
    """Loss and gradients of one step over four videos, of which each rank holds its share."""
    from lightning_vssl.augment.views import VideoViews
    from lightning_vssl.losses import info_nce
    from lightning_vssl.methods.vito import VITO, MoCLR
    from tests.methods.frames import FrameNet, frames

    torch.manual_seed(0)
    kind = MoCLR if name == "MoCLR" else VITO
    options = {"views": 2} if name != "VITO" else {"views": 3, "attention_hidden": 6}
    if name == "same view":
        options = {"views": 2, "negatives": "same", "scales": 3, "attention_hidden": 6}
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    augment = VideoViews(semantics="byol", saturation=0.2)
    method = kind(FrameNet(), augment, sgd, hidden=(12,), projection=6, **options).double()
    for attention in (method.attention, method.target["attention"]):
        for scale in attention.scales:
            torch.nn.init.normal_(scale[-1].weight)
    for parameter in method.target.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    if broken != "norms":
        swap_norms(method)
    rows = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    batch = {key: value[rows] for key, value in frames(4, method.views).items()}
    made = method.augment(batch)
    made["views"] = made["views"].double()
    gather = info_nce.gather
    if broken == "gather":
        info_nce.gather = lambda x: gather(x).flip(0)  # every rank takes another's rows for its own
    try:
        loss = method._step(made)["loss"]
    finally:
        info_nce.gather = gather
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return {key: all_reduce_sum(value) / world_size() for key, value in found.items()}


@pytest.mark.parametrize("name", ["MoCLR", "VITO", "same view"])
def test_two_ranks_equal_one_process(two_processes: TwoProcesses, name: str) -> None:
    one = step(name)
    assert len(one) > 15
    assert not any(key.startswith("target") for key in one)
    assert max(value.abs().max() for key, value in one.items() if key != "loss") > 1e-3
    for seen in two_processes(step, name):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for key, expected in one.items():
            assert torch.allclose(seen[key], expected, rtol=0, atol=1e-10), key


@pytest.mark.parametrize("broken", ["norms", "gather"])
def test_norms_per_rank_or_rows_in_another_order_would_differ(
    two_processes: TwoProcesses, broken: str
) -> None:
    one, seen = step("VITO"), two_processes(step, "VITO", broken)[0]
    assert isinstance(seen, dict)
    assert max((seen[key] - one[key]).abs().max().item() for key in one) > 1e-3
