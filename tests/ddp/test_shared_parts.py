"""Two gloo processes against one, in float64: gather, queue, losses, gradients, EMA."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_vssl.losses.info_nce import info_nce, nt_xent
from lightning_vssl.nn.ema import update_ema
from lightning_vssl.nn.gather import all_reduce_sum, gather, gather_uneven, rank, world_size
from lightning_vssl.nn.heads import MLP
from lightning_vssl.nn.queue import Queue
from tests.ddp.norm import GlobalBatchNorm, swap_norms
from tests.ddp.pool import TwoProcesses

BATCH, WIDTH, DIM, STEPS = 8, 6, 5, 4
TOLERANCE = 1e-10


def share(x: Tensor) -> Tensor:
    """The rows of this rank; all of them with one process."""
    rows = x.shape[0] // world_size()
    return x[rank() * rows : (rank() + 1) * rows]


def difference(a: object, b: object) -> float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        return float((a.double() - b.double()).abs().max())
    assert isinstance(a, dict)
    assert isinstance(b, dict)
    assert a.keys() == b.keys()
    return max(difference(a[name], b[name]) for name in a)


# --- gather ---------------------------------------------------------------------------------


def gathers() -> dict[str, Tensor]:
    x = share(torch.arange(12.0, dtype=torch.float64).reshape(4, 3)).requires_grad_()
    everything = gather(x)
    weights = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).cos()
    # Each rank's loss differs: its gradient must be the sum over both.
    ((everything * weights).sum() * (1 + rank())).backward()
    labels = share(torch.tensor([7, 5, 3, 1]))
    uneven = gather_uneven(torch.full((1 + 2 * rank(), 2), float(rank()), dtype=torch.float64))
    none = gather_uneven(torch.zeros((0, 2)))
    assert x.grad is not None
    return {
        "rows": everything.detach(),
        "grad": x.grad,
        "labels": gather(labels),
        "flags": gather(labels > 3).to(torch.int64),
        "sum": all_reduce_sum(torch.tensor(1 + rank())),
        "uneven": uneven,
        "none": torch.tensor(none.shape),
    }


def test_gather_and_sum(two_processes: TwoProcesses) -> None:
    rows = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    for number, seen in enumerate(two_processes(gathers)):
        assert isinstance(seen, dict)
        assert torch.equal(seen["rows"], rows)
        assert torch.allclose(seen["grad"], 3 * rows.cos()[2 * number : 2 * number + 2])
        assert seen["labels"].tolist() == [7, 5, 3, 1]
        assert seen["flags"].tolist() == [1, 1, 0, 0]
        assert seen["sum"].item() == 3
        assert seen["uneven"].tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
        assert seen["none"].tolist() == [0, 2]


def uneven_mean(counts: tuple[int, ...]) -> tuple[float, float]:
    """The documented mean over ranks with different counts: value and gradient of a factor."""
    x = torch.arange(float(sum(counts)), dtype=torch.float64)
    start = sum(counts[: rank()]) if world_size() > 1 else 0
    mine = x[start : start + counts[rank()]] if world_size() > 1 else x
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    total = all_reduce_sum(torch.tensor(float(len(mine)), dtype=torch.float64))
    loss = world_size() * (factor * mine).sum() / total
    loss.backward()
    assert factor.grad is not None
    return loss.item(), factor.grad.item()


def test_mean_with_different_counts(two_processes: TwoProcesses) -> None:
    answers = two_processes(uneven_mean, (3, 7))
    mean, gradient = uneven_mean((10,))
    assert sum(a[0] for a in answers) / 2 == pytest.approx(mean, abs=1e-12)
    assert sum(a[1] for a in answers) / 2 == pytest.approx(gradient, abs=1e-12)


# --- contrastive steps ----------------------------------------------------------------------


def make_net() -> nn.Module:
    torch.manual_seed(0)
    net = MLP(WIDTH, (7,), DIM, norm="batch").double()
    return swap_norms(net)


def average_gradients(net: nn.Module) -> None:
    """What DistributedDataParallel does."""
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad = all_reduce_sum(parameter.grad) / world_size()


def result(losses: list[Tensor], net: nn.Module) -> dict[str, Tensor]:
    return {
        "loss": all_reduce_sum(torch.stack(losses)) / world_size(),
        **{f"grad {n}": p.grad for n, p in net.named_parameters() if p.grad is not None},
        **{n: p.detach() for n, p in net.named_parameters()},
    }


def step(loss: Tensor, net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    average_gradients(net)
    optimizer.step()
    return loss.detach()


def moco_steps(keys_with_gradient: bool) -> dict[str, Tensor]:
    """MoCo on random vectors: query net, EMA net, gathered queue that wraps round."""
    net = make_net()
    teacher = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    queue = Queue(DIM, 3 * BATCH, seed=3).double()
    noise = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(STEPS):
        a, b = torch.randn(2, BATCH, WIDTH, generator=noise, dtype=torch.float64)
        query = net(share(a))
        with torch.set_grad_enabled(keys_with_gradient):
            key = teacher(share(b))
        loss = info_nce(query, key, queue.negatives(), 0.07)
        queue.enqueue(torch.nn.functional.normalize(key, dim=1))
        losses.append(step(loss, net, optimizer))
        update_ema(teacher, net, 0.9)
    teachers = {f"teacher {n}": p.detach() for n, p in teacher.named_parameters()}
    queues = {"keys": queue.keys, "pointer": queue.pointer}
    return {**result(losses, net), **teachers, **queues}


def nt_xent_steps() -> dict[str, Tensor]:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    noise = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(STEPS):
        a, b = torch.randn(2, BATCH, WIDTH, generator=noise, dtype=torch.float64)
        losses.append(step(nt_xent(net(share(a)), net(share(b)), 0.1), net, optimizer))
    return result(losses, net)


def in_batch_steps(detach: bool) -> dict[str, Tensor]:
    """InfoNCE against the keys of all other videos on all ranks, gradients to both sides."""
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    noise = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, BATCH, WIDTH, generator=noise, dtype=torch.float64)
    query, key = net(share(a)), net(share(b))
    keys = gather(key.detach() if detach else key)
    own = rank() * len(key) + torch.arange(len(key))
    valid = own[:, None] != torch.arange(BATCH)
    return result([step(info_nce(query, key, keys, 0.2, valid), net, optimizer)], net)


@pytest.mark.parametrize("keys_with_gradient", [False, True])
def test_moco_equals_one_process(two_processes: TwoProcesses, keys_with_gradient: bool) -> None:
    one = moco_steps(keys_with_gradient)
    assert one["pointer"].item() == BATCH * STEPS % (3 * BATCH)
    for seen in two_processes(moco_steps, keys_with_gradient):
        assert difference(seen, one) < TOLERANCE


def test_nt_xent_equals_one_process(two_processes: TwoProcesses) -> None:
    one = nt_xent_steps()
    for seen in two_processes(nt_xent_steps):
        assert difference(seen, one) < TOLERANCE


def test_info_nce_within_the_batch_equals_one_process(two_processes: TwoProcesses) -> None:
    one = in_batch_steps(False)
    for seen in two_processes(in_batch_steps, False):
        assert difference(seen, one) < TOLERANCE


def test_detaching_the_gather_breaks_the_equality(two_processes: TwoProcesses) -> None:
    """The check of the checks: same loss, other gradients."""
    one = in_batch_steps(False)
    for seen in two_processes(in_batch_steps, True):
        assert isinstance(seen, dict)
        assert difference(seen["loss"], one["loss"]) < TOLERANCE
        gradients = [n for n in one if n.startswith("grad")]
        assert max(difference(seen[n], one[n]) for n in gradients) > 1e-3


def detached_nt_xent_steps() -> dict[str, Tensor]:
    import lightning_vssl.losses.info_nce as module

    module.gather = lambda x: gather(x.detach())
    try:
        return nt_xent_steps()
    finally:
        module.gather = gather


def test_detaching_the_gather_breaks_nt_xent(two_processes: TwoProcesses) -> None:
    one = nt_xent_steps()
    for seen in two_processes(detached_nt_xent_steps):
        assert difference(seen, one) > 1e-3


# --- queue ----------------------------------------------------------------------------------


def queue_misfit() -> str:
    queue = Queue(2, 9)
    try:
        queue.enqueue(torch.zeros(2, 2))
    except ValueError as error:
        return str(error)
    return ""


def test_queue_counts_the_global_batch(two_processes: TwoProcesses) -> None:
    for seen in two_processes(queue_misfit):
        assert isinstance(seen, str)
        assert "size 9 is not a multiple of the global batch 4" in seen
        assert "8 or 12" in seen
        assert "3 or 9" in seen


# --- the swapped norm -----------------------------------------------------------------------


def norm_of_shares() -> Tensor:
    norm = nn.BatchNorm3d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.3, 0.0, -1.0]))
    x = torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(1)).double() * 3 + 1
    layer = GlobalBatchNorm(norm) if world_size() > 1 else norm
    return gather(layer(share(x))).detach()


def test_global_batch_norm_equals_batch_norm(two_processes: TwoProcesses) -> None:
    one = norm_of_shares()
    for seen in two_processes(norm_of_shares):
        assert difference(seen, one) < 1e-12


# --- the pool itself ------------------------------------------------------------------------


def fail_on_rank_one() -> None:
    if rank() == 1:
        raise RuntimeError("as planned")
    gather(torch.zeros(1))  # would wait for ever


def test_a_failing_rank_is_reported_and_the_pool_goes_on(two_processes: TwoProcesses) -> None:
    with pytest.raises(AssertionError, match="as planned"):
        two_processes(fail_on_rank_one)
    assert two_processes(rank) == [0, 1]
