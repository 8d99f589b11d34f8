"""The ranking of speeds against its formula in loops, in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_vssl.losses.speed import speed_ranking


def slow(query, same, other, margin, temperature):
    def cosine(a, b):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    rows = zip(query.tolist(), same.tolist(), other.tolist(), strict=True)
    losses = [max(0.0, margin - (cosine(q, s) - cosine(q, o))) / temperature for q, s, o in rows]
    return sum(losses) / len(losses)


def vectors(count=6, dim=5, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(3, count, dim, dtype=dtype).unbind()


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("margin", [0.0, 0.15, 1.9])
def test_equals_loops(margin, temperature):
    q, s, o = vectors()
    found = speed_ranking(q, s, o, margin, temperature)
    assert found.item() == pytest.approx(slow(q, s, o, margin, temperature), rel=1e-12)


def test_the_released_codes_logits():
    """Cosines over 0.07 and a margin of 2.0 between them, by torch's own ranking loss."""
    q, s, o = (F.normalize(x, dim=1) for x in vectors())
    pair, odd = (q * s).sum(1) / 0.07, (q * o).sum(1) / 0.07
    expected = F.margin_ranking_loss(pair, odd, torch.ones(6), margin=2.0)
    assert speed_ranking(q, s, o, margin=0.14, temperature=0.07).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def test_met_by_the_margin_costs_nothing_and_pulls_nowhere():
    q = torch.tensor([[1.0, 0.0]], requires_grad=True)
    near, far = torch.tensor([[1.0, 0.1]]), torch.tensor([[0.1, 1.0]])
    loss = speed_ranking(q, near, far)
    loss.backward()
    assert loss.item() == 0
    assert not q.grad.any()
    assert speed_ranking(q, far, near).item() > 0.15
    assert speed_ranking(q, near, near).item() == pytest.approx(0.15)


def test_float32_under_autocast():
    q, s, o = vectors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = speed_ranking(q, s, o)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow(q, s, o, 0.15, 1.0), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 2.14}, "divided by a temperature is to be multiplied"),
        ({"margin": -0.1}, "margin must be"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_numbers_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        speed_ranking(*vectors(), **options)


def test_shapes_that_do_not_fit():
    q, s, o = vectors()
    with pytest.raises(ValueError, match=r"must be \(B, D\) alike"):
        speed_ranking(q, s, o[:3])
