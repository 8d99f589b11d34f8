"""Metrics of tracking over two gloo processes, one of them without a sequence, against one."""

import pytest
import torch
from torch import distributed

from lightning_vssl.metrics.tracking import AverageOverlap, OnePassEvaluation
from lightning_vssl.metrics.trajectory import TrajectoryOverlap
from tests.metrics.test_tracking import Sequence, random_boxes


def in_parts(numbers_of_rank):
    """Every rank adds its own sequences; the metric gathers."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    one, overlap = OnePassEvaluation(), AverageOverlap()
    for number in numbers_of_rank[rank]:
        frames = 10 + 7 * number
        truth = random_boxes(frames, number)
        predicted = torch.lerp(truth, random_boxes(frames, 50 + number), 0.2)
        sequence = Sequence(f"sequence-{number}", truth, torch.arange(frames) % 3, (60, 60))
        one.update(sequence, predicted)
        overlap.update(sequence, predicted)
    found = {**one.compute(), **overlap.compute()}
    return found, one.table, overlap.table, one.curves["precision"][1].tolist()


@pytest.mark.parametrize(
    "parts", [[[0, 3], [4, 1, 2]], [[], [0, 1, 2, 3, 4]], [[0, 1, 2], [2, 3, 4]]]
)
def test_two_processes_find_what_one_finds(two_processes, parts):
    alone = in_parts([range(5)])
    for rank in two_processes(in_parts, parts):
        assert rank == alone


def clips_in_parts(numbers_of_rank):
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    metric = TrajectoryOverlap()
    for number in numbers_of_rank[rank]:
        truth = random_boxes(8, number)[None]
        truth[0, 3] = torch.nan
        predicted = random_boxes(8, 50 + number)[None]
        metric.update(predicted, truth, torch.tensor([number]))
    return metric.compute(), metric.clips, metric.frames


@pytest.mark.parametrize(
    "parts", [[[0, 3], [4, 1, 2]], [[], [0, 1, 2, 3, 4]], [[0, 1], [2, 3, 4, 0]]]
)
def test_trajectories_of_two_processes_are_those_of_one(two_processes, parts):
    alone = clips_in_parts([range(5)])
    assert alone[1:] == (5, 30)
    assert two_processes(clips_in_parts, parts) == [alone, alone]
