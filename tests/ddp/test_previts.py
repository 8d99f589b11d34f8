"""PreViTS' steps on two ranks: as in test_moco.py, with masks unevenly spread over the ranks."""

import pytest

from tests.ddp.momentum import as_two_ranks, steps
from tests.ddp.pool import TwoProcesses
from tests.ddp.test_moco import largest

CASES = [
    ("PreViTS of frames", {}),
    ("PreViTS of frames", {"hidden": (12,), "cam": "minmax", "official": True}),
    ("PreViTS of clips", {"target": "official"}),
    ("PreViTS of clips", {"attention": "double"}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_two_ranks_equal_one_process(
    two_processes: TwoProcesses, name: str, options: dict[str, object]
) -> None:
    one = steps(name, options, "global")
    assert 0 < one["attention 0"] < 1
    for seen in two_processes(steps, name, options, "global"):
        assert max(largest(seen, one).values()) < 1e-10


@pytest.mark.parametrize(("name", "options"), CASES[1:3], ids=str)
def test_norms_per_rank_and_shuffled_keys_are_those_made_by_hand(
    two_processes: TwoProcesses, name: str, options: dict[str, object]
) -> None:
    by_hand = as_two_ranks(name, options)
    for seen in two_processes(steps, name, options, "rank"):
        assert max(largest(seen, by_hand).values()) < 1e-10


def test_a_mean_over_each_ranks_own_masks_would_differ(two_processes: TwoProcesses) -> None:
    """The first rank has two samples with a tube, the second three."""
    name, options = CASES[0]
    one = steps(name, options, "global")
    apart = largest(two_processes(steps, name, options, "global", "count")[0], one)
    assert apart["instance 0"] < 1e-10
    assert apart["attention 0"] > 1e-3
    assert max(value for key, value in apart.items() if key.startswith("gradient 0")) > 1e-4
