import pytest
import torch

from lightning_vssl.nn.gather import all_reduce_sum, gather, gather_uneven, rank, world_size


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
    assert all_reduce_sum(x) is x
    assert torch.equal(gather_uneven(x), x)
    assert not gather_uneven(x).requires_grad
    assert (rank(), world_size()) == (0, 1)


def test_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match="scalar"):
        gather(torch.tensor(1.0))
