"""Targets and loss against the paper's formulas, written out with loops in float64."""

import math

import pytest
import torch

from lightning_vssl.losses.trajectory import SIGMA, decode, encode, trajectory_loss


def _boxes(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    low = torch.rand(*shape, 2, dtype=torch.float64) * 60
    return torch.cat([low, low + 5 + torch.rand(*shape, 2, dtype=torch.float64) * 40], -1)


def _slow_target(box: list[float], query: list[float]) -> list[float]:
    def xywh(b: list[float]) -> tuple[float, float, float, float]:
        return (b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]

    x, y, w, h = xywh(box)
    qx, qy, qw, qh = xywh(query)
    return [
        (x - qx) / SIGMA[0],
        (y - qy) / SIGMA[1],
        math.log(w / qw) / SIGMA[2],
        math.log(h / qh) / SIGMA[3],
    ]


def test_targets_equal_the_formulas():
    boxes = _boxes(2, 3, 4)
    targets = encode(boxes, boxes[:, :, 0])
    for b in range(2):
        for k in range(3):
            for t in range(4):
                slow = _slow_target(boxes[b, k, t].tolist(), boxes[b, k, 0].tolist())
                assert targets[b, k, t].tolist() == pytest.approx(slow, abs=1e-12)


def test_first_frame_has_target_zero():
    boxes = _boxes(2, 3, 4)
    assert torch.equal(encode(boxes, boxes[:, :, 0])[:, :, 0], torch.zeros(2, 3, 4).double())


def test_decode_is_the_inverse_of_encode():
    boxes = _boxes(2, 3, 4)
    query = boxes[:, :, 0]
    torch.testing.assert_close(decode(encode(boxes, query), query), boxes)


def test_sides_are_at_least_one_pixel():
    query = torch.tensor([[10.0, 10.0, 10.0, 30.0]])
    boxes = torch.tensor([[[10.0, 10.0, 12.0, 30.0]]])
    target = encode(boxes, query)[0, 0]
    assert target[2].item() == pytest.approx(math.log(2) / 0.04, rel=1e-6)


def test_loss_equals_loops():
    torch.manual_seed(1)
    predicted = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 2
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 2
    weights = torch.rand(2, 3, 4, dtype=torch.float64)
    sums = [0.0, 0.0]
    for b in range(2):
        for k in range(3):
            for t in range(4):
                for c in range(4):
                    d = abs(predicted[b, k, t, c].item() - target[b, k, t, c].item())
                    smooth = 0.5 * d * d if d < 1 else d - 0.5
                    sums[c // 2] += smooth * weights[b, k, t].item()
    centre, size = trajectory_loss(predicted, target, weights, weights.sum())
    total = weights.sum().item()
    assert centre.item() == pytest.approx(sums[0] / total, abs=1e-12)
    assert size.item() == pytest.approx(sums[1] / total, abs=1e-12)


def test_frames_of_weight_zero_do_not_count():
    predicted, target = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    target[0, 0, 1] = 100.0
    weights = torch.tensor([[[1.0, 0.0]]])
    centre, size = trajectory_loss(predicted, target, weights, weights.sum())
    assert centre.item() == 0
    assert size.item() == 0


def test_nothing_to_count_gives_zero_not_nan():
    zero = torch.zeros(1, 1, 2, 4, requires_grad=True)
    weights = torch.zeros(1, 1, 2)
    centre, size = trajectory_loss(zero, torch.ones(1, 1, 2, 4), weights, weights.sum())
    (centre + size).backward()
    assert (centre + size).item() == 0
    assert torch.equal(zero.grad, torch.zeros_like(zero))


def test_half_precision_is_computed_in_float32():
    predicted = torch.full((1, 1, 1, 4), 2.0, dtype=torch.bfloat16)
    centre, _ = trajectory_loss(
        predicted, torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1), torch.tensor(1.0)
    )
    assert centre.dtype == torch.float32
