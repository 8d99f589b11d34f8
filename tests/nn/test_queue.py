import pytest
import torch

from lightning_vssl.nn.queue import Queue


def test_first_keys_are_unit_vectors_that_all_ranks_agree_on() -> None:
    state = torch.get_rng_state()
    queue = Queue(16, 32, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(Queue(16, 32, seed=1).keys, queue.keys)
    assert not torch.equal(Queue(16, 32, seed=2).keys, queue.keys)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(32))


def test_first_in_first_out() -> None:
    queue = Queue(2, 6)
    written: list[torch.Tensor] = list(queue.keys.clone())
    for step in range(7):
        new = torch.full((2, 2), float(step)) + torch.tensor([[0.0], [0.5]])
        queue.enqueue(new)
        written = (written + list(new))[-6:]
        oldest_first = torch.roll(queue.keys, -int(queue.pointer), 0)
        assert torch.equal(oldest_first, torch.stack(written))
    assert queue.pointer.item() == 14 % 6


def test_state_dict_continues_the_queue() -> None:
    queue = Queue(3, 8, seed=4)
    batches = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    for batch in batches[:3]:
        queue.enqueue(batch)
    state = {name: value.clone() for name, value in queue.state_dict().items()}
    assert set(state) == {"keys", "pointer"}
    other = Queue(3, 8, seed=5)
    other.load_state_dict(state)
    for batch in batches[3:]:
        queue.enqueue(batch)
        other.enqueue(batch)
    assert torch.equal(queue.keys, other.keys)
    assert torch.equal(queue.pointer, other.pointer)


def test_enqueue_before_backward_is_safe() -> None:
    queue = Queue(3, 4)
    query = torch.randn(2, 3, dtype=torch.float32, requires_grad=True)
    negatives = queue.negatives()
    before = negatives.clone()
    logits = query @ negatives.T
    queue.enqueue(torch.zeros(2, 3, requires_grad=True))
    logits.sum().backward()
    assert query.grad is not None
    assert torch.equal(query.grad, before.sum(0).expand(2, 3))
    assert not queue.keys.requires_grad


def test_half_precision_keys_are_stored_in_float32() -> None:
    queue = Queue(3, 4)
    queue.enqueue(torch.ones(2, 3, dtype=torch.bfloat16))
    assert queue.keys.dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "batch", "sizes", "batches"),
    [(10, 4, "8 or 12", "2 or 5"), (65535, 256, "65280 or 65536", "255 or 257"), (4, 6, "6", "4")],
)
def test_misfit_names_what_fits(size: int, batch: int, sizes: str, batches: str) -> None:
    with pytest.raises(ValueError, match=f"fit: {sizes};.*batches that fit: {batches}\\."):
        Queue(1, size).enqueue(torch.zeros(batch, 1))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3\); got \(2, 4\)"):
        Queue(3, 4).enqueue(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="empty"):
        Queue(3, 4).enqueue(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="at least 1"):
        Queue(0, 4)
