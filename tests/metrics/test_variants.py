"""Accuracy of each variant: against loops, with ties, classes that are none, repeated rows."""

import math

import pytest
import torch

from lightning_vssl.metrics.variants import VariantAccuracy, accuracy_by_variant, is_right


def test_right_answers_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (60, 7), generator=generator).double()  # many ties
    mapping = torch.tensor([0, 1, -1, 1, 2, -1, 0])
    for superclasses, classes in ((None, 7), (mapping, 3)):
        labels = torch.randint(0, classes, (60,), generator=generator)
        expected = []
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            best = row.index(max(row))
            told = best if superclasses is None else superclasses[best].item()
            expected.append(told == label)
        assert is_right(scores, labels, superclasses).tolist() == expected
        assert 0 < sum(expected) < 60


def test_a_class_that_is_none_is_wrong_and_so_is_a_score_that_is_no_number():
    scores = torch.tensor([[0.0, 1.0, 0.0], [math.nan, 1.0, 0.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([-1, 1, 1])
    assert is_right(scores, labels, torch.tensor([0, -1, 1])).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="do not fit"):
        is_right(scores, labels, torch.tensor([0, 1]))


def test_shares_by_variant():
    right = torch.tensor([True, False, True, True])
    shares = accuracy_by_variant(right, torch.tensor([0, 0, 2, 2]), 3).tolist()
    assert shares[0] == 0.5
    assert math.isnan(shares[1])
    assert shares[2] == 1


def test_each_row_counts_once_and_a_variant_without_rows_is_left_out():
    metric = VariantAccuracy(("original", "no_fg", "only_fg"), torch.tensor([0, 0, 1, 1, 2]))
    right, wrong = torch.eye(2)[1:], torch.eye(2)[:1]
    ones = torch.ones(2, dtype=torch.int64)
    metric.update(torch.cat([right, wrong]), ones, torch.tensor([0, 1]))
    metric.update(torch.cat([wrong, right]), ones, torch.tensor([0, 3]))  # row 0 again
    assert metric.compute() == {"original": 0.5, "no_fg": 1.0}
    assert metric.rows == {"original": 2, "no_fg": 1}
    with pytest.raises(ValueError, match="nothing was added"):
        VariantAccuracy(("original",), torch.tensor([0])).compute()
