import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.data.sampler import KeyedSampler


class Echo(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(item)


def epoch(sampler: KeyedSampler, number: int) -> list[tuple[int, int]]:
    sampler.set_epoch(number)
    return list(sampler)


def test_an_epoch_is_a_permutation_of_its_own():
    sampler = KeyedSampler(50, seed=3)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert sorted(index for _, index in first) == list(range(50))
    assert {number for number, _ in second} == {1}
    assert [index for _, index in first] != [index for _, index in second]
    assert epoch(sampler, 0) == first
    assert epoch(KeyedSampler(50, seed=4), 0) != first


def test_the_global_generators_play_no_part():
    torch.manual_seed(0)
    np.random.seed(0)
    first = epoch(KeyedSampler(50), 2)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    np.random.seed(1)
    assert epoch(KeyedSampler(50), 2) == first
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_global_batch_is_the_same_whatever_the_ranks(ranks):
    whole = list(DataLoader(Echo(), batch_size=12, sampler=KeyedSampler(50), drop_last=True))
    shares = [
        DataLoader(
            Echo(),
            batch_size=12 // ranks,
            sampler=KeyedSampler(50, ranks=ranks, rank=rank),
            drop_last=True,
        )
        for rank in range(ranks)
    ]
    batches = list(zip(*shares, strict=True))
    assert len(batches) == len(whole) == 4
    for batch, parts in zip(whole, batches, strict=True):
        together = torch.stack(parts, dim=1).flatten(0, 1)  # rank r holds places r, r + ranks, ...
        assert torch.equal(together, batch)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [48, 50, 3])
def test_all_ranks_have_the_same_count(size, drop_last):
    shares = [
        epoch(KeyedSampler(size, ranks=3, rank=rank, drop_last=drop_last), 1) for rank in range(3)
    ]
    counts = {len(share) for share in shares}
    assert counts == {size // 3 if drop_last else -(-size // 3)}
    seen = {index for share in shares for _, index in share}
    assert len(seen) == (size // 3 * 3 if drop_last else size)


@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_gives_the_rest_of_that_epoch_alone(ranks):
    for rank in range(ranks):
        whole = [epoch(KeyedSampler(50, ranks=ranks, rank=rank), number) for number in range(3)]
        sampler = KeyedSampler(50, ranks=ranks, rank=rank)
        sampler.resume(1, 24)
        assert list(sampler) == whole[1][24 // ranks :]  # before any set_epoch
        assert epoch(sampler, 1) == whole[1][24 // ranks :]
        assert len(sampler) == 50 // ranks  # Trainer counts whole epochs
        assert epoch(sampler, 2) == whole[2]
        assert epoch(sampler, 0) == whole[0]


def test_too_few_videos():
    with pytest.raises(ValueError, match="no video"):
        KeyedSampler(0)
    with pytest.raises(ValueError, match="fewer videos than ranks=3"):
        KeyedSampler(2, ranks=3)
