"""A step of action localisation on two ranks equals one process; so do its number and its file."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from tests.ddp.norm import swap_norms
from tests.ddp.pool import TwoProcesses


def step(head: str, local_count: bool = False) -> dict[str, Tensor]:
    """Loss and gradients over six clips of one to three boxes, of which each rank has three."""
    from lightning_vssl.augment.jitter import JitteredViews
    from lightning_vssl.losses import actions
    from lightning_vssl.losses.actions import action_loss
    from tests.evaluation.people import people
    from tests.evaluation.small import PLAIN
    from tests.evaluation.test_localization import PLAIN_HEAD, SMALL, module

    model = module({"transformer": SMALL, "plain": PLAIN_HEAD}[head])
    model.build(7)
    model = model.double()
    swap_norms(model.backbone)
    clips = [people(9)[i] for i in (0, 3, 1, 2, 5, 8)]  # one, one, two | three, three, three boxes
    rows = slice(rank() * 6 // world_size(), (rank() + 1) * 6 // world_size())
    batch = JitteredViews(*PLAIN, scale=(0.8, 1.2))(default_collate(clips[rows]))
    boxes, labels = batch["boxes"][:, 0, 0], batch["box_labels"][:, 0]
    logits = model(batch["views"].double(), boxes.double())
    summed = actions.all_reduce_sum
    if local_count:
        actions.all_reduce_sum = lambda x: x * world_size()
    try:
        loss = action_loss(logits, labels, boxes.isfinite().all(-1))
    finally:
        actions.all_reduce_sum = summed
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: all_reduce_sum(value) / world_size() for name, value in found.items()}


@pytest.mark.parametrize("head", ["transformer", "plain"])
def test_two_ranks_equal_one_process(two_processes: TwoProcesses, head: str) -> None:
    one = step(head)
    assert len(one) > 5
    assert max(value.abs().max() for key, value in one.items() if key != "loss") > 1e-2
    for seen in two_processes(step, head):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for key, expected in one.items():
            assert torch.allclose(seen[key], expected, rtol=0, atol=1e-10), key


def test_a_mean_over_each_ranks_own_boxes_would_differ(two_processes: TwoProcesses) -> None:
    one, seen = step("plain"), two_processes(step, "plain", True)[0]
    assert isinstance(seen, dict)
    assert abs(seen["loss"] - one["loss"]).item() > 1e-3


def scored() -> dict[str, object]:
    """The number, and the rows of the predictions, of clips that a padding sampler deals out."""
    from tests.evaluation.people import people, task_of
    from tests.evaluation.test_localization import module

    clips = people(7)
    dealt = [*clips, clips[0]][rank() :: world_size()]  # the first clip twice
    model = module().eval()
    model.build(7)
    model.metric.task = task_of(clips)
    batch = model.view(default_collate(dealt))
    boxes = batch["boxes"][:, 0, 0]
    present = boxes.isfinite().all(-1)
    with torch.no_grad():
        scores = model(batch["views"], boxes)[present].sigmoid()
    model.metric.update(scores, batch["box_index"][present])
    number = model.metric.compute()["mAP"]
    rows = model.metric.rows
    assert rows is not None
    return {"mAP": number, "boxes": model.metric.boxes, "rows": len(rows), "scores": rows.score}


def test_the_number_and_the_predictions_are_those_of_one_process(
    two_processes: TwoProcesses,
) -> None:
    one = scored()
    assert (one["boxes"], one["rows"]) == (13, 91)
    for seen in two_processes(scored):
        assert isinstance(seen, dict)
        assert (seen["boxes"], seen["rows"]) == (13, 91)
        assert seen["mAP"] == pytest.approx(one["mAP"], abs=1e-9)
        assert seen["scores"] == pytest.approx(one["scores"], abs=1e-6)
