"""Following objects by their heat in two processes: the numbers of one."""

import pytest

from lightning_vssl.metrics.heat_tracking import HeatTracking
from lightning_vssl.nn.gather import rank, world_size
from tests.ddp.pool import TwoProcesses
from tests.metrics.test_heat_tracking import sequences


def numbers(mine: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, object]:
    metric = HeatTracking()
    parts = list(sequences())
    for index in range(3) if world_size() == 1 else mine[rank()]:
        number, heat, truth = parts[index]
        metric.update(heat, truth, number)
    found = metric.compute()
    return {**found, "other": metric.sensitivity(), "rows": metric.sequences()}


@pytest.mark.parametrize("mine", [((0, 2), (1,)), ((0, 1, 2), ()), ((2, 0), (1, 0))])
def test_two_processes_count_each_sequence_once(
    two_processes: TwoProcesses, mine: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    alone = numbers(mine)
    assert two_processes(numbers, mine) == [alone, alone]
