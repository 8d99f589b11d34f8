"""SiamFC's training step on two ranks equals one process, with either loss."""

import functools

import pytest
import torch
from torch import Tensor

from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from tests.ddp.pool import TwoProcesses


def step(loss: str, broken: bool = False) -> dict[str, Tensor]:
    """Loss and gradients of one step over four pairs, of which each rank holds its share."""
    from lightning_vssl.evaluation.tracking import SiamFC
    from lightning_vssl.losses import response
    from lightning_vssl.tracking.siamese import SiameseSearch
    from tests.evaluation.small import OneLayer

    torch.manual_seed(0)
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    search = SiameseSearch(exemplar=9, search=31)
    model = SiamFC(
        optimizer=sgd,
        backbone=OneLayer(dims=2),
        channels=5,
        scale=0.1,
        loss=loss,
        radius=4.0,
        search=search,
    ).double()
    model.train()
    model.log = lambda *_, **__: None
    model.note_input = lambda _: None
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(4, 2, 3, 1, 31, 31, dtype=torch.float64, generator=generator)
    rows = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    whole = response.all_reduce_sum
    if broken:
        response.all_reduce_sum = lambda x: world_size() * x  # as if all ranks weighed the same
    try:
        loss_value = model.training_step({"views": views[rows]}, 0)
        loss_value.backward()
    finally:
        response.all_reduce_sum = whole
    found = {"loss": loss_value.detach()}
    found |= {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key: all_reduce_sum(value) / world_size() for key, value in found.items()}


@pytest.mark.parametrize("loss", ["balanced", "focal"])
def test_two_ranks_equal_one_process(two_processes: TwoProcesses, loss: str) -> None:
    one = step(loss)
    assert len(one) == 9  # the loss; norm, convolution and two head convolutions, two each
    assert max(value.abs().max() for key, value in one.items() if key != "loss") > 1e-3
    for seen in two_processes(step, loss):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for key, expected in one.items():
            assert torch.allclose(seen[key], expected, rtol=0, atol=1e-12), key


def test_weights_summed_per_rank_would_differ(two_processes: TwoProcesses) -> None:
    one, seen = step("focal"), two_processes(step, "focal", True)[0]
    assert isinstance(seen, dict)
    assert max((seen[key] - one[key]).abs().max().item() for key in one) > 1e-6
