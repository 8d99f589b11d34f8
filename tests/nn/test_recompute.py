"""Recomputed activations: the same loss, gradients and running statistics as the plain pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vssl.nn.recompute import in_parts, norms_by_batch, recompute


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.BatchNorm1d(3)
    ).double()


def rows(n: int = 12) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gradients_and_statistics_are_those_of_the_plain_pass() -> None:
    plain, again = net(), net()
    plain(rows()).square().sum().backward()
    recompute(again, again, rows()).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b[1]), name  # also how often they were updated


def test_a_norm_in_eval_mode_reads_its_statistics_both_times() -> None:
    plain, again = net().eval(), net().eval()
    for model in (plain, again):
        model[1].running_mean.fill_(0.3)
    plain(rows()).square().sum().backward()
    recompute(again, again, rows()).square().sum().backward()
    assert torch.equal(plain[0].weight.grad, again[0].weight.grad)


def test_nothing_is_recomputed_without_gradients() -> None:
    model, calls = net(), []
    with torch.no_grad():
        recompute(model, lambda x: calls.append(1) or model(x), rows())
    assert calls == [1]


class Batchwise(nn.Module):
    """A loss over all rows at once."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def encode(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        made = self.net(x) * scale
        return made, made.sum(1)

    def loss(self, x: Tensor, parts: int) -> Tensor:
        z, total = in_parts(self, self.encode, parts, x, torch.ones(len(x), 1).double())
        return (z @ z.T).logsumexp(1).mean() + total.square().mean()


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_equal_the_batch_in_one_piece(parts: int) -> None:
    whole, cut = Batchwise().eval(), Batchwise().eval()
    expected, found = whole.loss(rows(), 1), cut.loss(rows(), parts)
    expected.backward()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-14)


def test_in_training_a_norm_sees_one_part_at_a_time() -> None:
    whole, cut = Batchwise(), Batchwise()
    expected = torch.cat([copy.deepcopy(whole.net)(part) for part in rows().split(4)])
    made, _ = in_parts(cut, cut.encode, 3, rows(), torch.ones(12, 1).double())
    assert torch.allclose(made, expected, atol=1e-14)
    made.sum().backward()
    assert int(cut.net[1].num_batches_tracked) == 3  # not 6


def test_parts_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="parts=5 does not divide the 12 samples"):
        Batchwise().loss(rows(), 5)


class _Saved(TorchDispatchMode):
    """Counts matrix products, to see that the backward pass makes activations again."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.products += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


def test_the_forward_pass_runs_twice() -> None:
    for parts, products in ((1, 2), (2, 8)):  # two layers; with two parts, twice each
        model = Batchwise().eval()
        with _Saved() as seen:
            model.loss(rows(), parts).backward()
        assert seen.products == products


def test_norms_by_batch_are_those_of_training_and_leave_no_trace() -> None:
    model = net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, wanted = model(rows()), net().train()(rows())
    with norms_by_batch(model):
        found = model(rows())
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, plain)
    assert torch.equal(model(rows()), plain)
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
