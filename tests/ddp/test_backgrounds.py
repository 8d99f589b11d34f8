"""Accuracy by variant in two gloo processes against one: no row counts twice, none is lost."""

import torch

from lightning_vssl.nn.gather import rank, world_size
from tests.ddp.pool import TwoProcesses


def variants() -> tuple[dict[str, float], dict[str, int]]:
    """Seven rows of two variants, dealt as a distributed sampler does, the first one repeated."""
    from lightning_vssl.metrics.variants import VariantAccuracy

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 3, generator=generator)
    labels = torch.randint(0, 3, (7,), generator=generator)
    metric = VariantAccuracy(("original", "no_fg"), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    rows = torch.arange(8) % 7
    mine = rows[rank() :: world_size()]
    for row in mine.split(2):
        metric.update(scores[row], labels[row], row)
    return metric.compute(), metric.rows


def test_variants_of_two_processes_are_those_of_one(two_processes: TwoProcesses) -> None:
    alone = variants()
    assert alone[1] == {"original": 4, "no_fg": 3}
    for seen in two_processes(variants):
        assert seen == alone
