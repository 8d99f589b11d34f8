"""J and F in two gloo processes: sequences are dealt out, and the numbers are one process's."""

import pytest
import torch

from lightning_vssl.nn.gather import rank, world_size
from tests.ddp.pool import TwoProcesses


def measure(objects: tuple[int, ...]) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """The numbers of drawn sequences, and number and objects of each sequence."""
    from lightning_vssl.data.sequences import SequenceSampler
    from lightning_vssl.metrics.segmentation import RegionAndContour

    metric = RegionAndContour()
    for number in SequenceSampler([6] * len(objects), ranks=world_size(), rank=rank()):
        noise = torch.Generator().manual_seed(number)
        truth = torch.randint(0, objects[number] + 1, (6, 9, 12), generator=noise).byte()
        kept = torch.rand(truth.shape, generator=noise) < 0.8
        metric.update(truth, torch.where(kept, truth, 0), number)
    found = metric.compute()
    return found, [(one.index, len(one.region)) for one in metric.sequences]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("objects", [(1, 3, 2), (3,)])
def test_two_processes_equal_one(two_processes: TwoProcesses, objects: tuple[int, ...]) -> None:
    """Also where one of them has no sequence at all."""
    alone = measure(objects)
    assert 0.5 < alone[0]["J_mean"] < 1
    assert alone[1] == list(enumerate(objects))
    for found in two_processes(measure, objects):
        assert found[0] == pytest.approx(alone[0])
        assert found[1] == alone[1]
