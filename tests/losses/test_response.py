"""Labels and losses of response maps against hand-made maps and slow loops in float64."""

import math

import pytest
import torch

from lightning_vssl.losses.response import (
    balanced_response_loss,
    focal_response_loss,
    response_labels,
)


class TestLabels:
    def test_are_a_diamond_of_thirteen_cells(self):
        labels = response_labels((17, 17), 2)  # radius 16, stride 8
        assert labels[6:11, 6:11].tolist() == [
            [0, 0, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
            [0, 1, 1, 1, 0],
            [0, 0, 1, 0, 0],
        ]
        assert labels.sum() == 13

    def test_are_a_disc_in_the_paper(self):
        labels = response_labels((17, 17), 2.5, distance="l2")
        assert labels[6:11, 6:11].tolist() == [
            [0, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
            [0, 1, 1, 1, 0],
        ]

    def test_lie_around_the_middle_of_an_even_map(self):
        labels = response_labels((16, 16), 2)  # VFS: exemplars of 120 pixels
        assert labels[6:10, 6:10].tolist() == [
            [0, 1, 1, 0],
            [1, 1, 1, 1],
            [1, 1, 1, 1],
            [0, 1, 1, 0],
        ]
        assert labels.sum() == 12

    @pytest.mark.parametrize(("size", "radius"), [((4, 4), 0), ((3, 3), 2)])
    def test_of_one_kind_alone_are_refused(self, size, radius):
        with pytest.raises(ValueError, match="needs both kinds"):
            response_labels(size, radius)

    def test_unknown_distance(self):
        with pytest.raises(ValueError, match="distance must be l1 or l2, got 'max'"):
            response_labels((5, 5), 1, distance="max")


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    responses = 4 * torch.randn(3, 5, 7, dtype=torch.float64, generator=generator)
    return responses, response_labels((5, 7), 1).double()


class TestBalanced:
    def test_equals_a_loop(self, drawn):
        responses, labels = drawn
        total = 0.0
        for one in responses.tolist():
            sides = {0: [], 1: []}
            for values, truths in zip(one, labels.tolist(), strict=True):
                for value, truth in zip(values, truths, strict=True):
                    sign = 1 if truth else -1
                    sides[int(truth)].append(math.log(1 + math.exp(-sign * value)))
            total += sum(sum(losses) / len(losses) / 2 for losses in sides.values())
        assert balanced_response_loss(responses, labels).item() == pytest.approx(total / 3)

    def test_of_no_opinion_is_log_two(self, drawn):
        _, labels = drawn
        assert balanced_response_loss(torch.zeros(2, 5, 7), labels.float()).item() == (
            pytest.approx(math.log(2))
        )


class TestFocal:
    @pytest.mark.parametrize("gamma", [0.0, 2.0])
    def test_equals_a_loop(self, drawn, gamma):
        responses, labels = drawn
        losses, weights = [], []
        for one in responses.tolist():
            for values, truths in zip(one, labels.tolist(), strict=True):
                for value, truth in zip(values, truths, strict=True):
                    p = 1 / (1 + math.exp(-value))
                    p = p if truth else 1 - p
                    weights.append((1 - p) ** gamma)
                    losses.append(-weights[-1] * math.log(p))
        found = focal_response_loss(responses, labels, gamma).item()
        assert found == pytest.approx(sum(losses) / sum(weights))

    def test_gradient_is_right_and_finite_where_all_is_certain(self, drawn):
        responses, labels = drawn
        assert torch.autograd.gradcheck(
            lambda r: focal_response_loss(r, labels), responses.clone().requires_grad_()
        )
        sure = (60 * (2 * labels - 1)).expand(2, -1, -1).clone().requires_grad_()
        focal_response_loss(sure, labels).backward()
        assert torch.isfinite(sure.grad).all()
