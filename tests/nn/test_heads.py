import pytest
import torch
from torch import nn

from lightning_vssl.nn.heads import MLP


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_papers_heads() -> None:
    assert count(MLP(512, (), 128)) == 512 * 128 + 128
    assert count(MLP(2048, (2048,), 128)) == 2048 * 2048 + 2048 + 2048 * 128 + 128
    # CVRL, ConST-CL: 12.86 M; the biases before the norms are 6,144.
    cvrl = MLP(2048, (2048, 2048, 2048), 128, norm="batch", bias=False)
    assert count(cvrl) == 12_857_472
    assert count(MLP(2048, (2048, 2048, 2048), 128, norm="batch")) - count(cvrl) == 6_144
    # BYOL's projector on VITO's 3072 features: 13.64 M.
    assert round(count(MLP(3072, (4096,), 256, "batch", output_bias=False)) / 1e6, 2) == 13.64


def test_against_the_layers_by_hand() -> None:
    torch.manual_seed(0)
    head = MLP(3, (5, 4), 2, norm="batch").double()
    x = torch.randn(6, 3).double()
    weights = dict(head.named_parameters())
    h = x
    for linear, norm in ((0, 1), (3, 4)):
        h = h @ weights[f"layers.{linear}.weight"].T + weights[f"layers.{linear}.bias"]
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        h = h * weights[f"layers.{norm}.weight"] + weights[f"layers.{norm}.bias"]
        h = h.clamp(min=0)
    expected = h @ weights["layers.6.weight"].T + weights["layers.6.bias"]
    assert torch.allclose(head(x), expected, atol=1e-12)


def test_linear_head_takes_any_leading_shape() -> None:
    assert MLP(3, (), 2)(torch.zeros(4, 5, 3)).shape == (4, 5, 2)


def test_errors() -> None:
    with pytest.raises(ValueError, match="3 numbers; got shape"):
        MLP(3)(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="at least 1"):
        MLP(3, (0,))
    with pytest.raises(ValueError, match="'layer'"):
        MLP(3, norm="layer")  # type: ignore[arg-type]
