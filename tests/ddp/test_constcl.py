"""CVRL's and ConST-CL's steps on two ranks equal one process, with norms over the global batch."""

import functools

import pytest
import torch
from torch import Tensor

from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from lightning_vssl.nn.keyed import sample_key
from tests.ddp.norm import swap_norms
from tests.ddp.pool import TwoProcesses


def step(name: str, detached: bool = False) -> dict[str, Tensor]:
    """Loss and gradients of one step over four videos, of which each rank holds its share.

    Boxes are missing unevenly: the ranks' counts of regions differ.
    """
    from lightning_vssl.augment.regions import RandomBoxes, RegionViews
    from lightning_vssl.augment.views import VideoViews
    from lightning_vssl.backbones import PytorchvideoResNet, YResNet
    from lightning_vssl.losses import info_nce, regions
    from lightning_vssl.methods.constcl import ConSTCL
    from lightning_vssl.methods.cvrl import CVRL

    torch.manual_seed(0)
    size = {"width": 4, "depth": (1, 1, 1, 1)}
    heads = {"hidden": (12, 12), "projection": 6}
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    views = RegionViews(VideoViews(), RandomBoxes(count=3))
    if name == "CVRL":
        method = CVRL(PytorchvideoResNet(**size), views, sgd, **heads)
    else:
        context = 0 if name == "vanilla" else 1
        method = ConSTCL(
            YResNet(**size),
            views,
            sgd,
            context_length=context,
            local_weight=1.0,
            decoder_width=8,
            sampling="random",
            **heads,
        )
    method = method.double()
    for parameter_name, parameter in method.named_parameters():
        if parameter_name.endswith("norm_c.weight"):
            torch.nn.init.ones_(parameter)
    swap_norms(method)
    video = torch.randint(0, 256, (4, 2, 4, 3, 32, 32), dtype=torch.uint8)
    rows = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    batch = {
        "video": video[rows],
        "key": torch.tensor([sample_key(0, 0, i) for i in range(4)])[rows],
        "index": torch.arange(4)[rows],
        "time": torch.rand(4, 2, 4).double()[rows],
    }
    made = method.augment(batch)
    made["views"] = made["views"].double()
    made["boxes"][made["index"] == 0, 1] = torch.nan
    made["boxes"][made["index"] == 3, 0, :, 1] = torch.nan
    gathers = info_nce.gather, regions.gather
    if detached:
        for module, gather in zip((info_nce, regions), gathers, strict=True):
            module.gather = lambda x, gather=gather: gather(x.detach())
    try:
        loss = method._step(made)["loss"]
    finally:
        info_nce.gather, regions.gather = gathers
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return {key: all_reduce_sum(value) / world_size() for key, value in found.items()}


@pytest.mark.parametrize("name", ["CVRL", "ConST-CL", "vanilla"])
def test_two_ranks_equal_one_process(two_processes: TwoProcesses, name: str) -> None:
    one = step(name)
    assert len(one) > 30
    assert max(value.abs().max() for key, value in one.items() if key != "loss") > 1e-3
    for seen in two_processes(step, name):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for key, expected in one.items():
            assert torch.allclose(seen[key], expected, rtol=0, atol=1e-10), key


@pytest.mark.parametrize("name", ["CVRL", "ConST-CL"])
def test_a_detached_gather_would_differ(two_processes: TwoProcesses, name: str) -> None:
    one, seen = step(name), two_processes(step, name, True)[0]
    assert isinstance(seen, dict)
    assert abs(seen["loss"] - one["loss"]).item() < 1e-10  # the loss alone does not tell
    assert max((seen[key] - one[key]).abs().max().item() for key in one) > 1e-4
