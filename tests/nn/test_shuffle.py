"""The shuffle of keys over ranks; with two of them: tests/ddp/test_moco.py."""

import pytest
import torch

from lightning_vssl.nn.keyed import sample_key
from lightning_vssl.nn.shuffle import encode_shuffled, shuffle_order


def keys(count=64, epoch=0):
    return torch.tensor([sample_key(0, epoch, i) for i in range(count)])


def test_order_is_a_permutation_that_follows_from_the_keys_alone():
    order = shuffle_order(keys(), 66)
    assert order.sort().values.tolist() == list(range(64))
    torch.manual_seed(3)
    assert torch.equal(shuffle_order(keys(), 66), order)
    assert not torch.equal(shuffle_order(keys(), 67), order)
    assert not torch.equal(shuffle_order(keys(epoch=1), 66), order)
    # Given in another order, the same samples meet in the same places.
    turned = torch.arange(63, -1, -1)
    assert torch.equal(turned[shuffle_order(keys()[turned], 66)], order)


def test_any_place_is_as_likely_as_any_other():
    """Over 4,000 shuffles of 8: how often sample i is in place j, chi-squared, 49 degrees."""
    counts = torch.zeros(8, 8)
    for epoch in range(4000):
        counts[torch.arange(8), shuffle_order(keys(8, epoch), 66)] += 1
    assert ((counts - 500).square() / 500).sum() < 85.4  # p = 0.001


def test_equal_keys_keep_their_order():
    assert shuffle_order(torch.full((5,), 7), 66).tolist() == [0, 1, 2, 3, 4]


def test_one_process_encodes_as_it_is_and_without_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    seen = []
    found = encode_shuffled(lambda some: seen.append(some) or some * 2, x, keys(4), 66)
    assert seen[0] is x
    assert torch.equal(found, 2 * x)
    assert not found.requires_grad


def test_a_key_for_each_sample():
    with pytest.raises(ValueError, match="one number for each of the 4 samples"):
        encode_shuffled(lambda x: x, torch.zeros(4, 2), keys(3), 66)
