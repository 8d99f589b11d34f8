import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_vssl.metrics.accuracy import VideoAccuracy, rank_of_label


def test_topk_equals_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 9, generator=generator)
    labels = torch.randint(9, (200,), generator=generator)
    metric = VideoAccuracy(topk=(1, 3))
    for part in torch.arange(200).split(33):
        metric.update(scores[part], labels[part], part)
    measured = metric.compute()
    for k in (1, 3):
        expected = multiclass_accuracy(scores, labels, 9, average="micro", top_k=k)
        assert measured[k][0] == pytest.approx(expected.item())


def test_a_video_that_comes_twice_counts_once():
    scores = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    metric = VideoAccuracy(topk=(1,))
    metric.update(scores, torch.tensor([0, 1, 1]), torch.tensor([5, 6, 6]))
    metric.update(scores[:1], torch.tensor([0]), torch.tensor([5]))
    assert metric.compute()[1] == [0.5]
    assert metric.videos == 2


def test_classifiers_are_scored_side_by_side():
    scores = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])  # (G, B, C)
    metric = VideoAccuracy(classifiers=2, topk=(1, 2))
    metric.update(scores, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert metric.compute()[1] == [0.5, 0.0]
    assert metric.compute()[2] == [1.0, 1.0]


def test_equal_scores_rank_as_an_arg_max_and_nan_is_wrong():
    labels = torch.tensor([0, 1, 2])
    assert rank_of_label(torch.zeros(3, 3), labels).tolist() == [0, 1, 2]
    assert rank_of_label(torch.full((3, 3), torch.nan), labels).tolist() == [3, 3, 3]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), got -1"):
        rank_of_label(torch.zeros(2, 3), torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match="do not fit"):
        rank_of_label(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="from 2 classifiers, got 1"):
        VideoAccuracy(classifiers=2).update(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([0]))
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="no videos were added"),
    ):
        VideoAccuracy().compute()
