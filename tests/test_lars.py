"""LARS against its definition, worked out by hand and in float64, and against timm's."""

import io
import math

import pytest
import torch
from timm.optim import Lars
from torch import nn

from lightning_vssl.optim import LARS, Cosine, lambda_lr, parameter_groups


def three_parts():
    """A kernel (3, 4), a zero kernel (0, 0), a bias 2 and the scale 5 of a norm."""
    kernel, zero = nn.Linear(2, 1), nn.Linear(2, 1, bias=False)
    norm = nn.BatchNorm1d(1)
    with torch.no_grad():
        kernel.weight.copy_(torch.tensor([[3.0, 4.0]]))
        kernel.bias.fill_(2.0)
        zero.weight.zero_()
        norm.weight.fill_(5.0)
    norm.bias.requires_grad_(False)
    return nn.ModuleDict({"kernel": kernel, "zero": zero, "norm": norm}).double()


def test_three_steps_by_hand():
    # lr 1, trust 0.1, decay 0.5, momentum 0.5.
    net = three_parts()
    optimizer = LARS(parameter_groups(net), lr=1.0, momentum=0.5, weight_decay=0.5, trust=0.1)
    kernel, zero = net["kernel"], net["zero"]

    def step(on_kernel, on_zero, on_bias, on_scale):
        kernel.weight.grad = torch.tensor([on_kernel]).double()
        zero.weight.grad = torch.tensor([on_zero]).double()
        kernel.bias.grad = torch.tensor([on_bias]).double()
        net["norm"].weight.grad = torch.tensor([on_scale]).double()
        optimizer.step()

    # Step 1. Kernel: u = (1.5, -2) + 0.5 (3, 4) = (3, 0), |p| / |u| = 5 / 3, adapted (0.5, 0);
    # p = (2.5, 4). Zero kernel: |p| = 0, u = g. Bias and scale: plain, no decay.
    step([1.5, -2.0], [0.25, 0.5], 1.0, -2.0)
    assert kernel.weight.tolist() == [pytest.approx([2.5, 4.0], abs=1e-15)]
    assert zero.weight.tolist() == [[-0.25, -0.5]]
    assert kernel.bias.tolist() == [1.0]
    assert net["norm"].weight.tolist() == [7.0]
    # Step 2. Kernel: g = -0.5 p, so u = 0, ratio 1; m = 0.5 (0.5, 0) = (0.25, 0), p = (2.25, 4).
    # Zero kernel, no longer zero: u = (-0.125, -0.25) + g = (0, 0.5), |p| = sqrt(0.3125), so
    # adapted (0, 0.1 sqrt(0.3125)); m = (0.125, 0.25) + that.
    step([-1.25, -2.0], [0.125, 0.75], 0.0, 0.0)
    length = 0.1 * math.sqrt(0.3125)
    assert kernel.weight.tolist() == [pytest.approx([2.25, 4.0], abs=1e-15)]
    expected = [-0.375, -0.75 - length]
    assert zero.weight.tolist() == [pytest.approx(expected, abs=1e-15)]
    assert kernel.bias.tolist() == [0.5]
    assert net["norm"].weight.tolist() == [8.0]
    # Step 3. Kernel: u = (0, -3) + (1.125, 2) + (-1.125, -3) = (0, -4); |p| = sqrt(21.0625).
    step([-1.125, -6.0], [0.0, 0.0], 4.0, 4.0)
    moved = 0.1 * math.sqrt(2.25**2 + 16)
    assert kernel.weight.tolist() == [pytest.approx([2.25 - 0.125, 4.0 + moved], abs=1e-14)]
    assert kernel.bias.tolist() == [-3.75]
    assert net["norm"].weight.tolist() == [4.5]


def slow(parameters, gradients, adapted, lr, momentum, decay, trust):
    """The definition, one parameter after another, in float64."""
    moments = [torch.zeros_like(p) for p in parameters]
    for step in gradients:
        for i, g in enumerate(step):
            p = parameters[i]
            u = g + (decay if adapted[i] else 0.0) * p
            if adapted[i] and p.norm() > 0 and u.norm() > 0:
                u = u * (trust * p.norm() / u.norm())
            moments[i] = momentum * moments[i] + u
            parameters[i] = p - lr * moments[i]
    return parameters


def test_ten_steps_equal_the_slow_definition():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 2)).double()
    names = [name for name, _ in net.named_parameters()]
    start = [p.detach().clone() for p in net.parameters()]
    gradients = [[torch.randn_like(p) * 0.01 for p in start] for _ in range(10)]
    optimizer = LARS(parameter_groups(net), lr=2.0, momentum=0.9, weight_decay=0.03, trust=0.01)
    for step in gradients:
        for p, g in zip(net.parameters(), step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    adapted = [name in ("0.weight", "2.weight") for name in names]
    wanted = slow(start, gradients, adapted, 2.0, 0.9, 0.03, 0.01)
    for ours, theirs in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("decay", "apart"), [(1e-6, 2e-4), (0.01, 0.3)])
def test_timms_parts_from_the_definition_where_decay_is_large(decay, apart):
    # Gradients of length 0.01 at a kernel of length 1: decay over gradient is 1e-4, and 1.
    torch.manual_seed(0)
    start = nn.functional.normalize(torch.randn(64, 64).double().flatten(), dim=0).view(64, 64)
    gradient = 0.01 * nn.functional.normalize(torch.randn(4096).double(), dim=0).view(64, 64)
    moved = []
    for kind in (LARS, Lars):
        p = nn.Parameter(start.clone())
        p.grad = gradient.clone()
        kind([p], lr=1.0, momentum=0.9, weight_decay=decay).step()
        moved.append(float((p.detach() - start).norm()))
    assert moved[0] == pytest.approx(1e-3, rel=1e-9)  # trust |p|, whatever the gradient
    assert moved[1] < moved[0]
    assert abs(1 - moved[1] / moved[0]) < apart
    if decay > 1e-3:
        assert abs(1 - moved[1] / moved[0]) > 0.1


def test_a_decay_of_zero_everywhere_still_adapts():
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    p.grad = torch.tensor([0.0, 7.0])
    LARS([p], lr=1.0, weight_decay=0.0, trust=0.1).step()
    assert p.tolist() == pytest.approx([3.0, 3.5])


def test_what_has_no_gradient_stays_and_the_schedule_reaches_every_group():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = LARS(parameter_groups(net), lr=1.0)
    lambda_lr(optimizer, Cosine(warmup_epochs=1), 4, 8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_a_saved_run_goes_on_as_the_other():
    def made():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        return net, LARS(parameter_groups(net), lr=0.5)

    def steps(net, optimizer, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    whole, first = made(), made()
    steps(*whole, range(4))
    steps(*first, range(2))
    file = io.BytesIO()
    torch.save([first[0].state_dict(), first[1].state_dict()], file)
    file.seek(0)
    net_state, optimizer_state = torch.load(file, weights_only=True)
    net, optimizer = made()
    net.load_state_dict(net_state)
    optimizer.load_state_dict(optimizer_state)
    steps(net, optimizer, range(2, 4))
    for ours, theirs in zip(net.parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -1e-6}, {"trust": 0.0}]
)
def test_wrong_values_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        LARS([nn.Parameter(torch.ones(1))], **wrong)
