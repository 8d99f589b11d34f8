import numpy as np
import torch

from lightning_vssl.nn.keyed import bits, sample_key, uniform


def splitmix64(state: int, n: int) -> list[int]:
    """The generator as Steele et al. print it, on Python integers."""
    mask, out = (1 << 64) - 1, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_published_vector() -> None:
    # The first outputs of splitmix64 from seed 1234567, as in its test vectors.
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]


def test_bits_are_splitmix64() -> None:
    keys = [0, 1, -1, 1234567, sample_key(3, 2, 1), -(1 << 63)]
    for stream in (0, 5, 79):
        words = bits(torch.tensor(keys), 7, stream).tolist()
        for key, row in zip(keys, words, strict=True):
            (start,) = splitmix64(key + 0x9E3779B97F4A7C15 * stream, 1)
            assert [w & ((1 << 64) - 1) for w in row] == splitmix64(start, 7)


def test_uniform_takes_the_upper_bits() -> None:
    key = torch.tensor([sample_key(0, 0, i) for i in range(5)])
    words = bits(key, 4, 2).numpy().view(np.uint64)
    assert np.array_equal(uniform(key, 4, 2, torch.float64).numpy(), (words >> 11) * 2.0**-53)
    singles = (words >> 40).astype(np.float32) * np.float32(2.0**-24)
    assert np.array_equal(uniform(key, 4, 2).numpy(), singles)


def test_a_draw_does_not_depend_on_the_rest_of_the_batch() -> None:
    key = torch.tensor([sample_key(1, 2, i) for i in range(8)])
    together = uniform(key, 6, 3)
    for i in range(8):
        assert torch.equal(uniform(key[i : i + 1], 6, 3)[0], together[i])
    assert torch.equal(uniform(key, 4, 3), together[:, :4])


def test_keys_differ_by_seed_epoch_and_index() -> None:
    keys = {sample_key(s, e, i) for s in range(5) for e in range(20) for i in range(200)}
    assert len(keys) == 5 * 20 * 200
    assert all(-(1 << 63) <= key < 1 << 63 for key in keys)


def test_uniform_looks_uniform_and_streams_independent() -> None:
    key = torch.tensor([sample_key(0, 0, i) for i in range(20_000)])
    a, b = uniform(key, 2, 0, torch.float64), uniform(key, 2, 1, torch.float64)
    everything = torch.cat([a, b], dim=1)  # (N, 4)
    error = len(key) ** -0.5
    assert ((everything.mean(0) - 0.5).abs() < 4 * error * 12**-0.5).all()
    correlation = torch.corrcoef(everything.T) - torch.eye(4)
    assert (correlation.abs() < 4.5 * error).all()
    counts = torch.histc(a.flatten(), bins=16, min=0, max=1)
    expected = a.numel() / 16
    assert ((counts - expected).square() / expected).sum() < 45  # chi2, 15 degrees: p about 1e-4
    assert everything.min() >= 0
    assert everything.max() < 1
