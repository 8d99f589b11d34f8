"""The loss of action localisation against loops over Python floats."""

import math

import pytest
import torch
from torch import Tensor

from lightning_vssl.losses.actions import action_loss


def scene() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * 3
    labels = (torch.rand(3, 4, 5, generator=generator) < 0.4).double()
    present = torch.rand(3, 4, generator=generator) < 0.6
    return logits, labels, present


@pytest.mark.parametrize("classes", ["sum", "mean"])
def test_equals_loops(classes: str) -> None:
    logits, labels, present = scene()
    boxes = []
    for b in range(3):
        for n in range(4):
            if not present[b, n]:
                continue
            losses = []
            for z, y in zip(logits[b, n].tolist(), labels[b, n].tolist(), strict=True):
                p = 1 / (1 + math.exp(-z))
                losses.append(-math.log(p) if y else -math.log(1 - p))
            boxes.append(sum(losses) / (5 if classes == "mean" else 1))
    assert 3 < len(boxes) < 12
    found = action_loss(logits, labels, present, classes)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(sum(boxes) / len(boxes), abs=1e-12)


def test_what_does_not_exist_has_no_say() -> None:
    logits, labels, present = scene()
    expected = action_loss(logits, labels, present)
    logits = logits.masked_fill(~present[..., None], torch.nan).requires_grad_()
    labels = labels.masked_fill(~present[..., None], torch.nan)
    loss = action_loss(logits, labels, present)
    assert torch.equal(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[~present] == 0).all()
    assert (logits.grad[present] != 0).all()


def test_clips_without_a_box_give_zero_and_a_gradient_of_zero() -> None:
    logits, labels, present = scene()
    logits.requires_grad_()
    loss = action_loss(logits, labels, torch.zeros_like(present))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.full((1, 1, 5000), -4.0, dtype=torch.float16)
    loss = action_loss(logits, torch.zeros(1, 1, 5000), torch.ones(1, 1, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(5000 * math.log1p(math.exp(-4)), rel=1e-5)


def test_shapes_and_names_that_do_not_fit() -> None:
    logits, labels, present = scene()
    with pytest.raises(ValueError, match=r"present \(B, N\)"):
        action_loss(logits, labels, present[:, :3])
    with pytest.raises(ValueError, match="logits and labels must be"):
        action_loss(logits, labels[..., :4], present)
    with pytest.raises(ValueError, match="classes must be sum or mean"):
        action_loss(logits, labels, present, "none")  # type: ignore[arg-type]
