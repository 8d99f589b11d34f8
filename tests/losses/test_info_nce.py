"""InfoNCE and NT-Xent against loops over Python floats."""

import math

import pytest
import torch
from torch import Tensor

from lightning_vssl.losses.info_nce import info_nce, info_nce_logits, nt_xent

GRID = [(b, d, t) for b in (1, 2, 5) for d in (1, 3, 16) for t in (0.07, 0.2, 1.0)]


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.hypot(*a.tolist()) / math.hypot(*b.tolist())


def one_term(positive: float, negatives: list[float], temperature: float) -> float:
    weights = [math.exp(s / temperature) for s in [positive, *negatives]]
    return -math.log(weights[0] / math.fsum(weights))


def slow_info_nce(query: Tensor, key: Tensor, negatives: Tensor, t: float, keep: Tensor) -> float:
    terms = []
    for i in range(len(query)):
        others = [cosine(query[i], negatives[n]) for n in range(len(negatives)) if keep[i, n]]
        terms.append(one_term(cosine(query[i], key[i]), others, t))
    return sum(terms) / len(terms)


def slow_nt_xent(a: Tensor, b: Tensor, t: float) -> float:
    total = 0.0
    for one, two in ((a, b), (b, a)):
        for i in range(len(a)):
            others = [v[j] for v in (one, two) for j in range(len(a)) if j != i]
            assert len(others) == 2 * (len(a) - 1)
            negatives = [cosine(one[i], v) for v in others]
            total += one_term(cosine(one[i], two[i]), negatives, t)
    return total / len(a)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize(("batch", "dim", "temperature"), GRID)
@pytest.mark.parametrize("negatives", [0, 1, 7])
def test_info_nce(batch: int, dim: int, temperature: float, negatives: int) -> None:
    q, k, n = draw(batch, dim), draw(batch, dim, seed=1), draw(negatives, dim, seed=2)
    keep = torch.ones(batch, negatives, dtype=torch.bool)
    expected = slow_info_nce(q, k, n, temperature, keep)
    assert info_nce(q, k, n, temperature).item() == pytest.approx(expected, abs=1e-12)


def test_invalid_negatives_are_left_out() -> None:
    q, k, n = draw(4, 3), draw(4, 3, seed=1), draw(6, 3, seed=2)
    keep = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) > 0.5
    keep[0] = False
    expected = slow_info_nce(q, k, n, 0.1, keep)
    assert info_nce(q, k, n, 0.1, keep).item() == pytest.approx(expected, abs=1e-12)
    q.requires_grad_()
    info_nce(q, k, n, 0.1, keep).backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()
    assert torch.equal(q.grad[0], torch.zeros(3, dtype=torch.float64))  # no negative: loss 0


@pytest.mark.parametrize(("batch", "dim", "temperature"), GRID)
def test_nt_xent(batch: int, dim: int, temperature: float) -> None:
    a, b = draw(batch, dim), draw(batch, dim, seed=1)
    expected = slow_nt_xent(a, b, temperature)
    assert nt_xent(a, b, temperature).item() == pytest.approx(expected, abs=1e-12)
    assert nt_xent(b, a, temperature).item() == pytest.approx(expected, abs=1e-12)


def test_closed_forms() -> None:
    eye = torch.eye(8, dtype=torch.float64)
    t = 0.2
    # Positive 1, the rest orthogonal.
    assert info_nce(eye[:2], eye[:2], eye[2:], t).item() == pytest.approx(
        math.log(1 + 6 * math.exp(-1 / t)), abs=1e-14
    )
    assert nt_xent(eye, eye, t).item() == pytest.approx(
        2 * math.log(1 + 14 * math.exp(-1 / t)), abs=1e-14
    )
    # Collapse: everything alike.
    same = torch.ones(8, 8, dtype=torch.float64)
    assert nt_xent(same, same, t).item() == pytest.approx(2 * math.log(15), abs=1e-12)


def test_gradients() -> None:
    a, b, n = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_(), draw(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, 0.5), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, n, 0.5), (a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_whatever_the_autocast(dtype: torch.dtype) -> None:
    q, k, n = (draw(4, 32, seed=s).to(dtype) for s in range(3))
    outside = info_nce(q.float(), k.float(), n.float(), 0.07)
    outside_nt = nt_xent(q.float(), k.float(), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = info_nce_logits(q, k, n, 0.07)
        assert logits.dtype == torch.float32
        assert torch.equal(info_nce(q, k, n, 0.07), outside)
        assert torch.equal(nt_xent(q, k, 0.1), outside_nt)


def test_float16_does_not_overflow() -> None:
    big = torch.full((2, 512), 300.0, dtype=torch.float16)  # the sum of squares exceeds float16
    big[1] *= -1
    expected = 2 * math.log1p(2 * math.exp(-2 / 0.1))
    assert nt_xent(big, big, 0.1).item() == pytest.approx(expected, abs=1e-6)


def test_errors() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        info_nce(x, x, x, 0)
    with pytest.raises(ValueError, match="one width"):
        info_nce(x, x, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="query and key"):
        info_nce(x, torch.zeros(3, 3), x)
    with pytest.raises(ValueError, match=r"valid must be \(2, 2\)"):
        info_nce(x, x, x, valid=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="a and b"):
        nt_xent(x, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2-D"):
        nt_xent(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
