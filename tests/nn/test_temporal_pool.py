import math

import pytest
import torch

from lightning_vssl.nn.temporal_pool import (
    TemporalPool,
    attend_frames,
    average_frames,
    multiscale_attention,
    multiscale_average,
)

# One clip of four frames: two numbers at the early scale, one at the late one.
EARLY = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, -2.0], [7.0, 4.0]]])
LATE = torch.tensor([[[2.0], [4.0], [6.0], [0.0]]])


def test_average_by_hand():
    assert average_frames(LATE).tolist() == [[3.0]]
    assert average_frames(EARLY).tolist() == [[4.0, 1.0]]


def test_multiscale_average_by_hand():
    # First half (2, 1), second half (6, 1), whole clip (3).
    assert multiscale_average(EARLY, LATE).tolist() == [[2.0, 1.0, 6.0, 1.0, 3.0]]


def test_attention_by_hand():
    # W z_t = atanh(w_t) for the weights w = (1/2, -1/2): the sum is (z_1 - z_2) / 2.
    half = math.atanh(0.5)
    frames = torch.tensor([[[1.0, 8.0], [-1.0, 2.0]]], dtype=torch.float64)
    weight = torch.tensor([half, 0.0], dtype=torch.float64)
    found = attend_frames(frames, weight)
    torch.testing.assert_close(found, torch.tensor([[1.0, 3.0]], dtype=torch.float64))


def test_the_weights_of_frames_are_not_normalised():
    # tanh(20) = 1 to 17 digits: the sum over four frames, not their mean.
    weight = torch.tensor([10.0], dtype=torch.float64)
    found = attend_frames(torch.full((1, 4, 1), 2.0, dtype=torch.float64), weight)
    assert found.item() == pytest.approx(8.0, rel=1e-12)


@pytest.mark.parametrize("frames", [2, 6])
def test_multiscale_attention_is_its_formula(frames):
    generator = torch.Generator().manual_seed(frames)
    early = torch.randn(3, frames, 4, dtype=torch.float64, generator=generator)
    late = torch.randn(3, frames, 5, dtype=torch.float64, generator=generator)
    w_early, w_late = (torch.randn(n, dtype=torch.float64, generator=generator) for n in (4, 5))
    found = multiscale_attention(early, late, w_early, w_late)
    assert found.shape == (3, 13)

    def by_loop(vectors, weight):
        total = [0.0] * len(weight)
        for vector in vectors.tolist():
            w = math.tanh(sum(a * b for a, b in zip(weight.tolist(), vector, strict=True)))
            total = [t + w * v for t, v in zip(total, vector, strict=True)]
        return total

    for row in range(3):
        first, second = early[row, : frames // 2], early[row, frames // 2 :]
        wanted = [*by_loop(first, w_early), *by_loop(second, w_early), *by_loop(late[row], w_late)]
        assert found[row].tolist() == pytest.approx(wanted, rel=1e-12)


def test_only_the_average_forgets_which_half_came_first():
    swapped_early, swapped_late = (x.roll(2, dims=1) for x in (EARLY, LATE))
    assert torch.equal(average_frames(swapped_late), average_frames(LATE))
    swapped = multiscale_average(swapped_early, swapped_late)
    assert not torch.equal(swapped, multiscale_average(EARLY, LATE))
    assert swapped.tolist() == [[6.0, 1.0, 2.0, 1.0, 3.0]]


def test_the_module_is_the_functions_and_its_widths_are_the_papers():
    both = torch.cat([EARLY, LATE], dim=2)
    assert torch.equal(TemporalPool(2, 1, "average")(both), average_frames(LATE))
    assert torch.equal(TemporalPool(2, 1, "multiscale")(both), multiscale_average(EARLY, LATE))
    torch.manual_seed(0)
    attention = TemporalPool(2, 1, "multiscale_attention")
    w_early, w_late = attention.early_weight, attention.late_weight
    wanted = multiscale_attention(EARLY, LATE, w_early, w_late)
    assert torch.equal(attention(both), wanted)
    attention(both).square().sum().backward()
    assert w_early.grad.abs().min() > 0
    assert w_late.grad.abs().min() > 0
    widths = [
        TemporalPool(1024, 2048, kind).out_features
        for kind in ("average", "multiscale", "multiscale_attention")
    ]
    assert widths == [2048, 4096, 4096]
    parameters = sum(
        p.numel() for p in TemporalPool(1024, 2048, "multiscale_attention").parameters()
    )
    assert parameters == 1024 + 2048


def test_bad_input():
    with pytest.raises(ValueError, match="got 3 frames: give the data clips with an even number"):
        multiscale_average(EARLY[:, :3], LATE[:, :3])
    with pytest.raises(ValueError, match="pooling must be one of average, multiscale, multisca"):
        TemporalPool(2, 1, "maximum")
