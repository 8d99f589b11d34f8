"""CtP's step on two ranks equals one process; its mean counts frames over all ranks."""

import functools

import pytest
import torch
from torch import Tensor, nn

from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from lightning_vssl.nn.keyed import sample_key
from tests.ddp.norm import swap_norms
from tests.ddp.pool import TwoProcesses


class Uneven(nn.Module):
    """Leaves out frames of the first two samples, so that the ranks' counts differ."""

    def __init__(self, augment: nn.Module) -> None:
        super().__init__()
        self.augment = augment

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = self.augment(batch)
        weights = batch["trajectory_weights"].clone()
        weights[batch["index"] < 2, :, 5:] = 0
        return {**batch, "trajectory_weights": weights}


def step(own_count: bool = False, cycle: bool = False) -> dict[str, Tensor]:
    """Loss and gradients of one step over four clips, of which each rank holds its share."""
    from lightning_vssl.augment.label_sources import CycleTracks
    from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
    from lightning_vssl.augment.trajectories import LabelSource
    from lightning_vssl.backbones import R3D18
    from lightning_vssl.methods import ctp

    torch.manual_seed(0)
    patches = PatchTracks(scales=(9, 14), speed=1.7)
    tracks: LabelSource = CycleTracks(patches) if cycle else patches
    method = ctp.CtP(
        backbone=R3D18(width=4, depth=(1, 1, 1, 1), last_stride=1),
        augment=Uneven(CatchThePatch(tracks=tracks)),
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        hidden_channels=8,
    ).double()
    nn.init.normal_(method.head.fc1.weight, std=0.05)  # gradients far above rounding
    nn.init.normal_(method.head.pred_head.weight, std=0.05)
    swap_norms(method)
    video = torch.randint(0, 256, (4, 1, 16, 3, 32, 32), dtype=torch.uint8)
    rows = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    batch = {
        "video": video[rows],
        "key": torch.tensor([sample_key(0, 0, i) for i in range(4)])[rows],
        "index": torch.arange(4)[rows],
    }
    batch = method.augment(batch)
    batch["views"] = batch["views"].double()
    if cycle:  # the network labels the clips of rank 0, and none of rank 1
        assert batch["own_labels"].tolist() == [True, True, False, False][rows]
    if own_count:  # what a mean per rank would do
        ctp.all_reduce_sum = lambda x: x * world_size()
    try:
        loss = method._step(batch)["loss"]
    finally:
        ctp.all_reduce_sum = all_reduce_sum
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {name: all_reduce_sum(value) / world_size() for name, value in found.items()}


@pytest.mark.parametrize("cycle", [False, True], ids=["pre-set", "cycle"])
def test_two_ranks_equal_one_process(two_processes: TwoProcesses, cycle: bool) -> None:
    one = step(False, cycle)
    assert len(one) > 10
    assert max(value.abs().max() for name, value in one.items() if name != "loss") > 1e-3
    for seen in two_processes(step, False, cycle):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for name, expected in one.items():
            assert torch.allclose(seen[name], expected, rtol=0, atol=1e-10), name


def test_a_mean_per_rank_would_differ(two_processes: TwoProcesses) -> None:
    seen = two_processes(step, True)[0]
    assert isinstance(seen, dict)
    assert abs(seen["loss"] - step()["loss"]).item() > 1e-3
