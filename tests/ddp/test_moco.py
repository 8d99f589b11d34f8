"""MoCo's and RSPNet's steps on two ranks: equal to one process where norms see the global batch,
and to the paper's shuffled norms by hand where they see one rank's share.
"""

import pytest
import torch
from torch import Tensor

from lightning_vssl.nn.gather import rank, world_size
from lightning_vssl.nn.keyed import sample_key
from lightning_vssl.nn.shuffle import encode_shuffled, shuffle_order
from tests.ddp.momentum import as_two_ranks, steps
from tests.ddp.pool import TwoProcesses

CASES = [
    ("MoCo of frames", {}),
    ("MoCo of clips", {"hidden": (12,), "temperature": 0.2}),
    ("RSPNet", {"speed_temperature": 0.07}),
]


def largest(seen: dict[str, Tensor], one: dict[str, Tensor]) -> dict[str, float]:
    assert seen.keys() == one.keys()
    return {name: (seen[name] - one[name]).abs().max().item() for name in one}


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_two_ranks_equal_one_process(
    two_processes: TwoProcesses, name: str, options: dict[str, object]
) -> None:
    one = steps(name, options, "global")
    assert one["pointer"].item() == 18 % 12
    gradients = [value.abs().max() for key, value in one.items() if key.startswith("gradient")]
    assert len(gradients) > 20
    assert max(gradients) > 1e-2
    for seen in two_processes(steps, name, options, "global"):
        assert max(largest(seen, one).values()) < 1e-10


def test_a_queue_per_rank_would_differ(two_processes: TwoProcesses) -> None:
    name, options = CASES[0]
    one = steps(name, options, "global")
    seen = two_processes(steps, name, options, "global", "queue")[0]
    apart = largest(seen, one)
    assert apart["loss 0"] < 1e-10  # the first queue is the same on both
    assert min(apart["queue 0"], apart["loss 1"]) > 1e-3


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_norms_per_rank_and_shuffled_keys_are_those_made_by_hand(
    two_processes: TwoProcesses, name: str, options: dict[str, object]
) -> None:
    by_hand = as_two_ranks(name, options)
    for seen in two_processes(steps, name, options, "rank"):
        assert max(largest(seen, by_hand).values()) < 1e-10


def test_keys_that_stay_with_their_rank_would_differ(two_processes: TwoProcesses) -> None:
    name, options = CASES[0]
    seen = two_processes(steps, name, options, "rank")[0]
    stay, one = as_two_ranks(name, options, shuffled=False), steps(name, options, "global")
    assert largest(seen, stay)["loss 0"] > 1e-4
    assert largest(seen, stay)["queue 0"] > 1e-3
    assert largest(seen, one)["queue 0"] > 1e-3


def travels(size: int, stream: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples this rank encodes, and what comes back to it."""
    total = world_size() * size
    keys = torch.tensor([sample_key(5, 0, i) for i in range(total)])
    mine = torch.arange(rank() * size, (rank() + 1) * size)
    x = torch.stack([mine, 10 * mine], dim=1).view(size, 2, 1).half()
    here: list[Tensor] = []

    def encode(some: Tensor) -> Tensor:
        here.append(some[:, 0, 0].long())
        return some.flatten(1).double() + 0.5

    back = encode_shuffled(encode, x, keys[mine], stream)
    return here[0], back, shuffle_order(keys, stream)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_every_sample_is_encoded_once_where_the_order_says_and_comes_home(
    two_processes: TwoProcesses, size: int
) -> None:
    orders = []
    for stream in range(66, 72):
        both = two_processes(travels, size, stream)
        order = both[0][2]
        assert torch.equal(order, both[1][2])
        assert torch.equal(torch.cat([both[0][0], both[1][0]]), order)
        for number, (_, back, _) in enumerate(both):
            mine = torch.arange(number * size, (number + 1) * size).double()
            assert torch.equal(back, torch.stack([mine, 10 * mine], dim=1) + 0.5)
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) > 1
