"""Frame-mAP in two processes: the number of one, whoever has which boxes."""

import pytest
import torch

from lightning_vssl.metrics.detection import DetectionMetric
from lightning_vssl.nn.gather import rank, world_size
from tests.ddp.pool import TwoProcesses
from tests.metrics.test_detection import task


def number(shares: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, object]:
    metric = DetectionMetric(task())
    scores = torch.rand(12, 80, generator=torch.Generator().manual_seed(0))
    for box in range(12) if world_size() == 1 else shares[rank()]:
        metric.update(scores[box][None], torch.tensor([box]))
    found = metric.compute()
    assert metric.rows is not None
    return {**found, "boxes": metric.boxes, "scores": metric.rows.score.tolist()}


@pytest.mark.parametrize(
    "shares",
    [
        ((0, 2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11)),
        ((11, *range(9)), (9, 10, 11, 0)),  # two boxes seen twice
        (tuple(range(12)), ()),  # a rank without boxes
    ],
)
def test_two_processes_count_each_box_once(
    two_processes: TwoProcesses, shares: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    alone = number(shares)
    assert 0 < float(str(alone["mAP"])) < 1
    assert two_processes(number, shares) == [alone, alone]
