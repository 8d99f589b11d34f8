"""Attention pooling against Eq. 2 in loops; its start, its ablation, its way through a file."""

import pytest
import torch

from lightning_vssl.nn.attention_pool import AttentionPool, average_masks

MAPS = [torch.randn(2, 3, 4, 5).double(), torch.randn(2, 6, 2, 3).double()]


def awake(pool):
    for scale in pool.scales:
        torch.nn.init.normal_(scale[-1].weight)
    return pool


def test_equals_equation_2_in_loops():
    pool = awake(AttentionPool((3, 6), hidden=7).double())
    pooled, masks = pool(MAPS)
    assert pooled.shape == (2, 9)
    start = 0
    for scale, m, mask in zip(pool.scales, MAPS, masks, strict=True):
        first, _, last = scale
        for b in range(2):
            scores = {}
            for i in range(m.shape[2]):
                for j in range(m.shape[3]):
                    hidden = (first.weight @ m[b, :, i, j] + first.bias).clamp(min=0)
                    scores[i, j] = (last.weight[0] @ hidden).exp()
            total = sum(scores.values())
            expected = sum(score / total * m[b, :, i, j] for (i, j), score in scores.items())
            found = pooled[b, start : start + m.shape[1]]
            assert torch.allclose(found, expected, atol=1e-12)
            assert mask[b, 1, 2].item() == pytest.approx((scores[1, 2] / total).item(), rel=1e-12)
        start += m.shape[1]


def test_starts_as_the_average_and_learns():
    pool = AttentionPool((3, 6), hidden=7).double()
    mean = AttentionPool((3, 6), hidden=None).double()
    pooled, masks = pool(MAPS)
    averaged, even = mean(MAPS)
    assert torch.allclose(pooled, averaged, atol=1e-12)
    assert torch.allclose(masks[0], even[0])
    assert list(mean.parameters()) == []
    pooled[:, 0].sum().backward()
    assert pool.scales[0][-1].weight.grad.abs().max() > 0
    assert pool.scales[1][-1].weight.grad.abs().max() == 0  # scales are independent


def test_masks_are_float32_under_autocast():
    pool = awake(AttentionPool((3,), hidden=7))
    with torch.autocast("cpu", torch.bfloat16):
        pooled, (mask,) = pool([MAPS[0].float()])
    assert mask.dtype == torch.float32
    assert torch.allclose(mask.sum((1, 2)), torch.ones(2), atol=1e-6)
    assert torch.isfinite(pooled).all()


def test_config_rebuilds_it():
    pool = AttentionPool((3, 6), hidden=7)
    assert pool.config == {
        "class_path": "lightning_vssl.nn.attention_pool.AttentionPool",
        "init_args": {"channels": [3, 6], "hidden": 7},
    }
    assert AttentionPool(**pool.config["init_args"]).out_features == 9


def test_average_masks():
    fine, coarse = torch.rand(2, 4, 4), torch.full((2, 1, 1), 0.5)
    found = average_masks([fine, coarse], (4, 4))
    assert torch.allclose(found, (fine + 0.5) / 2)
    assert average_masks([fine, coarse], (9, 12)).shape == (2, 9, 12)


@pytest.mark.parametrize("arguments", [((),), ((3, 0),), ((3,), 0)])
def test_refused_widths(arguments):
    with pytest.raises(ValueError, match="channels"):
        AttentionPool(*arguments)


def test_other_maps_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 6\]"):
        AttentionPool((3, 6))(MAPS[:1])
