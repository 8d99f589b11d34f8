import copy
import math

import pytest
import torch
from torch import nn

from lightning_vssl.nn.ema import cosine_momentum, update_ema


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False)).double()
    made(torch.randn(5, 3).double())  # moves the norm's statistics
    return made


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.99, 0.999, 1.0])
def test_exact_in_float64(momentum: float) -> None:
    target, online = net(0), net(1)
    before = copy.deepcopy(target.state_dict())
    theirs = copy.deepcopy(online.state_dict())
    update_ema(target, online, momentum)
    names = {name for name, _ in target.named_parameters()}
    for name, value in target.state_dict().items():
        if name in names:
            expected = momentum * before[name] + (1 - momentum) * theirs[name]
            assert torch.allclose(value, expected, rtol=0, atol=1e-15)
        else:
            assert torch.equal(value, before[name])
    for name, value in online.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_many_steps_are_the_geometric_sum() -> None:
    target, online = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(target.weight)
    expected = 0.0
    for step in range(1, 101):
        nn.init.constant_(online.weight, float(step))
        update_ema(target, online, 0.9)
        expected = sum(0.1 * 0.9 ** (step - s) * s for s in range(1, step + 1))
    assert target.weight.item() == pytest.approx(expected, abs=1e-11)


def test_edges_are_exact() -> None:
    target, online = net(0), net(1)
    before = copy.deepcopy(target)
    update_ema(target, online, 1.0)
    for a, b in zip(target.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
    update_ema(target, online, 0.0)
    for a, b in zip(target.parameters(), online.parameters(), strict=True):
        assert torch.equal(a, b)


def test_buffers_may_be_copied() -> None:
    target, online = net(0), net(1)
    assert not torch.equal(target[1].running_mean, online[1].running_mean)
    update_ema(target, online, 0.9, buffers="copy")
    for a, b in zip(target.buffers(), online.buffers(), strict=True):
        assert torch.equal(a, b)


def test_no_gradient_and_no_aliasing() -> None:
    target, online = net(0), net(1)
    update_ema(target, online, 0.0)
    assert all(p.grad_fn is None for p in target.parameters())
    with torch.no_grad():
        online[0].weight.add_(1.0)
    assert not torch.equal(target[0].weight, online[0].weight)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]; got 1.5"):
        update_ema(net(0), net(1), 1.5)
    with pytest.raises(ValueError, match=r"only one of them has: 2\.bias"):
        update_ema(net(0), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="'mean'"):
        update_ema(net(0), net(1), 0.5, buffers="mean")  # type: ignore[arg-type]


def test_cosine_momentum() -> None:
    assert cosine_momentum(0, 100, 0.99) == pytest.approx(0.99, abs=1e-15)
    assert cosine_momentum(50, 100, 0.99) == pytest.approx(0.995, abs=1e-15)
    assert cosine_momentum(100, 100, 0.99) == 1.0
    assert cosine_momentum(101, 100, 0.99) == 1.0
    for step in range(0, 101, 7):
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * step / 100) + 1) / 2
        assert cosine_momentum(step, 100, 0.996) == pytest.approx(expected, abs=1e-15)
    assert type(cosine_momentum(3, 10)) is float


@pytest.mark.parametrize(("step", "total", "base"), [(-1, 10, 0.9), (0, 0, 0.9), (0, 10, 1.1)])
def test_cosine_momentum_refuses(step: int, total: int, base: float) -> None:
    with pytest.raises(ValueError, match="must"):
        cosine_momentum(step, total, base)
