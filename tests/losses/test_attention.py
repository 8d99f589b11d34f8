"""PreViTS's attention loss against loops in Python floats, and the masks' way to a map's size."""

import math

import pytest
import torch
from torch import Tensor

from lightning_vssl.losses.attention import attention_loss, tube_target


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def slow_loss(cam: Tensor, target: Tensor, valid: Tensor) -> float:
    """Eq. 5 by the letter, the mean over the samples with a mask."""
    terms = []
    for b in range(len(cam)):
        g, m = cam[b].flatten().tolist(), target[b].flatten().tolist()
        if not valid[b] or not any(m):
            continue
        dot = math.fsum(x * y for x, y in zip(g, m, strict=True))
        lengths = math.hypot(*g) * math.hypot(*m)
        terms.append(1 - (dot / lengths if lengths else 0.0))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("space", [(7, 7), (2, 7, 7)])
@pytest.mark.parametrize("valid", [(1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 1, 0)])
@pytest.mark.parametrize("empty", [False, True])
def test_equals_loops(space: tuple[int, ...], valid: tuple[int, ...], empty: bool) -> None:
    cam, target = draw(4, *space, seed=0), draw(4, *space, seed=1)
    cam[draw(4, *space, seed=2) < 0.5] = 0
    if empty:
        cam[3], target[1] = 0, 0
    flags = torch.tensor(valid, dtype=torch.bool)
    found = attention_loss(cam, target, flags)
    assert found.item() == pytest.approx(slow_loss(cam, target, flags), abs=1e-12)


def test_gradients_equal_finite_differences() -> None:
    cam, target = draw(3, 2, 2, 3, seed=0), draw(3, 2, 2, 3, seed=1)
    valid = torch.tensor([True, False, True])
    loss = lambda x: attention_loss(x, target, valid)  # noqa: E731
    assert torch.autograd.gradcheck(loss, cam.requires_grad_(), atol=1e-8)


def test_bounds() -> None:
    target = torch.zeros(2, 4, 4)
    target[:, :2] = 1
    every = torch.ones(2, dtype=torch.bool)
    assert attention_loss(5 * target, target, every).item() == pytest.approx(0, abs=1e-6)
    assert attention_loss(1 - target, target, every).item() == 1


def test_an_empty_map_has_a_cosine_of_0_and_no_gradient() -> None:
    cam, target = draw(2, 3, 3, seed=0), draw(2, 3, 3, seed=1)
    cam[0] = 0
    cam.requires_grad_()
    loss = attention_loss(cam, target, torch.tensor([True, True]))
    loss.backward()
    alone = attention_loss(cam[1:].detach(), target[1:], torch.tensor([True]))
    assert loss.item() == pytest.approx((1 + alone.item()) / 2, abs=1e-12)
    assert not cam.grad[0].any()
    assert cam.grad[1].any()
    assert cam.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15])
def test_the_size_of_a_map_does_not_matter(scale: float) -> None:
    # In float32 the squares of 1e-30 are 0 and those of 1e20 infinite.
    cam, target = draw(3, 2, 7, 7, seed=0).float(), draw(3, 2, 7, 7, seed=1).float()
    every = torch.ones(3, dtype=torch.bool)
    small = (cam * scale).requires_grad_()
    loss = attention_loss(small, target, every)
    loss.backward()
    assert loss.item() == pytest.approx(attention_loss(cam, target, every).item(), abs=1e-6)
    plain = cam.clone().requires_grad_()
    attention_loss(plain, target, every).backward()
    assert torch.allclose(small.grad * scale, plain.grad, rtol=1e-4, atol=1e-8)


def test_what_has_no_mask_has_no_say_and_no_gradient() -> None:
    valid = torch.tensor([True, False, True, True])
    losses = []
    for junk in (0.0, torch.nan, torch.inf, 1e30):
        cam, target = draw(4, 3, 3, seed=0), draw(4, 3, 3, seed=1)
        cam[1], target[1], target[2] = junk, junk, 0.0  # an empty target is no mask either
        cam.requires_grad_()
        loss = attention_loss(cam, target, valid)
        loss.backward()
        losses.append(loss.item())
        assert not cam.grad[1:3].any()
        assert cam.grad.isfinite().all()
        assert cam.grad[0].any()
    assert len(set(losses)) == 1
    assert losses[0] == pytest.approx(slow_loss(cam, target, valid), abs=1e-12)


def test_no_mask_at_all_is_a_loss_of_0_with_gradients_of_0() -> None:
    cam = draw(2, 3, 3, seed=0).requires_grad_()
    loss = attention_loss(cam, draw(2, 3, 3, seed=1), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert cam.grad is not None
    assert not cam.grad.any()


def test_a_broken_map_is_not_taken_for_an_empty_one() -> None:
    cam = draw(2, 3, 3, seed=0)
    cam[0, 0, 0] = torch.nan
    loss = attention_loss(cam, draw(2, 3, 3, seed=1), torch.tensor([True, True]))
    assert loss.isnan()


def test_half_precision_is_lifted() -> None:
    cam, target = draw(2, 5, 5, seed=0), draw(2, 5, 5, seed=1)
    every = torch.ones(2, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_loss(cam.half(), target.float(), every)
    assert found.dtype == torch.float32
    expected = slow_loss(cam.half().double(), target, every)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def slow_target(mask: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Share of object in each cell, where the sizes divide."""
    batch, *whole = mask.shape
    t, h, w = (a // b for a, b in zip(whole, size, strict=True))
    out = torch.zeros(batch, *size)
    for b in range(batch):
        for i in range(size[0]):
            for j in range(size[1]):
                for k in range(size[2]):
                    cell = mask[b, i * t : i * t + t, j * h : j * h + h, k * w : k * w + w]
                    here = [v not in (0, 255) for v in cell.flatten().tolist()]
                    out[b, i, j, k] = sum(here) / len(here)
    return out


def test_target_is_the_share_of_object_in_each_cell() -> None:
    mask = torch.randint(0, 4, (2, 8, 12, 20), generator=torch.Generator().manual_seed(0))
    mask[mask == 3] = 255
    mask = mask.to(torch.uint8)
    found = tube_target(mask, (2, 3, 5))
    assert found.dtype == torch.float32
    assert torch.allclose(found, slow_target(mask, (2, 3, 5)), atol=1e-6)
    flat = tube_target(mask, (3, 5))
    assert torch.allclose(flat, slow_target(mask, (1, 3, 5))[:, 0], atol=1e-6)
    assert torch.equal(tube_target((mask == 1) | (mask == 2), (2, 3, 5)), found)


def test_official_target_is_the_middle_frame_with_aligned_corners_repeated() -> None:
    mask = (draw(2, 16, 13, 19, seed=0) > 0.6).to(torch.uint8)
    found = tube_target(mask, (3, 4, 7), form="official")
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(tube_target(mask, (4, 7), form="official"), found[:, 0])
    for b in range(2):
        for i in range(4):
            for j in range(7):
                y, x = i * 12 / 3, j * 18 / 6  # corners on corners
                assert x == int(x)
                assert y == int(y)
                assert found[b, 0, i, j] == mask[b, 8, int(y), int(x)]
    between = tube_target(mask, (5, 7), form="official")[0, 1, 2]
    y = 1 * 12 / 4
    assert between == mask[0, 8, int(y), 6]
    half = tube_target(mask[:, :, :2], (3, 19), form="official")[:, 1]
    assert torch.allclose(half, mask[:, 8, :2].float().mean(1))


def test_a_map_finer_than_the_mask_repeats_it() -> None:
    mask = (draw(1, 2, 4, 4, seed=0) > 0.5).to(torch.uint8)
    found = tube_target(mask, (4, 8, 8))
    expected = mask.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(found, expected.float())


def test_refused() -> None:
    mask = torch.ones(2, 4, 8, 8)
    with pytest.raises(ValueError, match="mask must be"):
        tube_target(mask[0], (2, 2))
    with pytest.raises(ValueError, match="size must be"):
        tube_target(mask, (2,))
    with pytest.raises(ValueError, match="size must be"):
        tube_target(mask, (0, 2, 2))
    with pytest.raises(ValueError, match="form"):
        tube_target(mask, (2, 2), form="soft")
    with pytest.raises(ValueError, match="alike"):
        attention_loss(mask, mask[..., 0], torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        attention_loss(mask, mask, torch.ones(2))
