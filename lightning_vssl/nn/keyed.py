"""Random numbers that are a pure function of a sample's key.

Every draw of this library starts from ``key``, an int64 hash of (seed, epoch, index) that the
dataset makes. A counter-based generator (the finaliser of splitmix64, Steele et al. 2014) turns
(key, stream, counter) into numbers: no state, no dependence on the rest of the batch, on the
device, on the number of workers or ranks.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Reinterprets an unsigned 64-bit integer as a signed one."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def sample_key(seed: int, epoch: int, index: int) -> int:
    """Hashes what names a sample into the key of all its random draws.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0. Validation and test use 0.
        index: The row of the manifest.

    Returns:
        A signed 64-bit integer.
    """
    state = 0
    for part in (seed, epoch, index):
        state = _mix((state + _GAMMA + (part & _MASK)) & _MASK)
    return _signed(state)


def _mix_tensor(value: Tensor) -> Tensor:
    # torch shifts int64 arithmetically: the mask makes it a logical shift.
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _signed(_MIX_1)
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _signed(_MIX_2)
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def bits(key: Tensor, n: int, stream: int) -> Tensor:
    """Draws ``n`` 64-bit words for every key.

    Args:
        key: Keys of the samples, (B,) int64.
        n: Words per sample.
        stream: Which of the sample's independent sequences to draw from. Two kinds of draw that
            must not depend on each other use two streams.

    Returns:
        Words, (B, n) int64, uniform over all 64-bit patterns.
    """
    start = _mix_tensor(key + _signed((_GAMMA * (stream + 1)) & _MASK))  # (B,)
    counter = torch.arange(1, n + 1, device=key.device, dtype=torch.int64) * _signed(_GAMMA)
    return _mix_tensor(start[:, None] + counter[None, :])  # (B, n)


def uniform(key: Tensor, n: int, stream: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``n`` numbers uniform on [0, 1) for every key.

    Args:
        key: Keys of the samples, (B,) int64.
        n: Numbers per sample.
        stream: The sequence to draw from, as in `bits`.
        dtype: ``torch.float32`` or ``torch.float64``.

    Returns:
        (B, n) numbers; the same whatever the other samples of the batch and the device.
    """
    words = bits(key, n, stream)
    if dtype == torch.float64:
        return ((words >> 11) & ((1 << 53) - 1)).to(dtype) * 2.0**-53
    return ((words >> 40) & ((1 << 24) - 1)).to(dtype) * 2.0**-24
