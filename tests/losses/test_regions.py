"""ConST-CL's local loss against loops over Python floats, written from the paper."""

import math

import pytest
import torch
from torch import Tensor

from lightning_vssl.losses.regions import nearest_regions, region_info_nce


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.hypot(*a.tolist()) / math.hypot(*b.tolist())


def slow_loss(z: Tensor, h: Tensor, other: Tensor, valid: Tensor, there: Tensor, t: float) -> float:
    """Eq. 6 (with argmax, h'_j and sums over k): z from view a, h in a, ``other`` in view b."""
    videos, regions, _ = z.shape
    terms = []
    for b in range(videos):
        for i in range(regions):
            if not valid[b, i] or not there[b].any():
                continue
            likeness = [
                cosine(h[b, i], other[b, k]) if there[b, k] else -math.inf
                for k in range(other.shape[1])
            ]
            j = likeness.index(max(likeness))
            positive = math.exp(cosine(z[b, i], other[b, j]) / t)
            negatives = [
                math.exp(cosine(z[b, i], other[v, k]) / t)
                for v in range(videos)
                for k in range(other.shape[1])
                if v != b and there[v, k]
            ]
            terms.append(-math.log(positive / (positive + math.fsum(negatives))))
    return sum(terms) / len(terms) if terms else 0.0


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("videos", [1, 2, 5])
@pytest.mark.parametrize(("regions", "others"), [(1, 1), (4, 4), (3, 6)])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("holes", [False, True])
def test_equals_loops(
    videos: int, regions: int, others: int, temperature: float, holes: bool
) -> None:
    z, h = draw(videos, regions, 6, seed=0), draw(videos, regions, 6, seed=1)
    other = draw(videos, others, 6, seed=2)
    valid = torch.ones(videos, regions, dtype=torch.bool)
    there = torch.ones(videos, others, dtype=torch.bool)
    if holes:
        valid[0, -1] = False
        there[-1, 0] = False  # with one region, a video without any
    pairs = nearest_regions(h, other, there)
    found = region_info_nce(z, other, pairs, valid, there, temperature)
    expected = slow_loss(z, h, other, valid, there, temperature)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_what_is_missing_has_no_say_and_no_gradient() -> None:
    z, other = draw(3, 4, 5, seed=0), draw(3, 4, 5, seed=1)
    valid, there = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
    valid[1, 2] = there[0, 3] = False
    pairs = nearest_regions(z, other, there)
    losses = []
    for junk in (0.0, torch.nan, 1e30):
        a, b = z.clone(), other.clone()
        a[1, 2] = 0.0 if junk != junk else junk  # a missing region is pooled from somewhere
        b[0, 3] = junk
        a.requires_grad_()
        b.requires_grad_()
        loss = region_info_nce(a, b, pairs, valid, there)
        loss.backward()
        losses.append(loss.item())
        assert not a.grad[1, 2].any()
        assert torch.isfinite(a.grad).all()
    assert losses[0] == losses[1] == losses[2]


def test_no_region_at_all_is_a_loss_of_zero() -> None:
    z = draw(2, 3, 4, seed=0).requires_grad_()
    none = torch.zeros(2, 3, dtype=torch.bool)
    pairs = nearest_regions(z, z, none)
    loss = region_info_nce(z, z, pairs, none, none)
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()


def test_gradients_reach_predictions_and_targets() -> None:
    z, other = draw(3, 2, 4, seed=0), draw(3, 2, 4, seed=1)
    there = torch.ones(3, 2, dtype=torch.bool)
    pairs = nearest_regions(z, other, there)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return region_info_nce(a, b, pairs, there, there)

    assert torch.autograd.gradcheck(loss, (z.requires_grad_(), other.requires_grad_()))


def test_half_precision_is_computed_in_float32() -> None:
    z, other = draw(3, 2, 4, seed=0).bfloat16(), draw(3, 2, 4, seed=1).bfloat16()
    there = torch.ones(3, 2, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = region_info_nce(z, other, nearest_regions(z, other, there), there, there)
    exact = region_info_nce(
        z.double(), other.double(), nearest_regions(z.double(), other.double(), there), there, there
    )
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)


def test_bad_shapes_are_named() -> None:
    z, flags = draw(2, 3, 4, seed=0), torch.ones(2, 3, dtype=torch.bool)
    pairs = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="temperature must be positive"):
        region_info_nce(z, z, pairs, flags, flags, 0)
    with pytest.raises(ValueError, match=r"valid_targets \(B, M\); got .*'valid': \(2, 2\)"):
        region_info_nce(z, z, pairs, flags[:, :2], flags)
