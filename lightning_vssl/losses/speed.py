"""Relative speed: of two clips, the one that plays as fast as the query is nearer to it.

Chen, Huang, He, Long, Zeng, Wen, Tan, Gan, "RSPNet: relative speed perception for unsupervised
video representation learning", AAAI 2021; Chen et al., "PreViTS", WACV 2023, Eq. 2.
"""

import torch
from torch import Tensor

from lightning_vssl.losses.info_nce import unit


def speed_ranking(
    query: Tensor, same: Tensor, other: Tensor, margin: float = 0.15, temperature: float = 1.0
) -> Tensor:
    """Ranks two clips by their similarity to the query (PreViTS, Eq. 2).

    ``mean(max(0, margin - (q.s - q.o))) / temperature`` on unit vectors, in float32 (float64 stays
    float64) whatever the autocast. ``margin`` is a difference of cosines, whatever the
    temperature, which scales the loss alone. RSPNet's released code divides the cosines by 0.07
    and asks for a margin of 2.0 between those: ``margin=0.14, temperature=0.07`` here. A margin of
    0.15 on divided cosines would be met at once.

    Args:
        query: (B, D).
        same: Clips at the query's speed, (B, D).
        other: Clips at another speed, (B, D).
        margin: In [0, 2]; the paper's 0.15.
        temperature: Above 0; 1 is the loss as printed.

    Returns:
        The loss, () float32 or float64, the mean over this rank's queries.

    Raises:
        ValueError: If a shape or a number does not fit.
    """
    if not 0 <= margin <= 2:
        raise ValueError(
            f"margin must be a difference of cosines, in [0, 2]; got {margin}. A margin on "
            "similarities divided by a temperature is to be multiplied by it."
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    if query.ndim != 2 or not query.shape == same.shape == other.shape:
        raise ValueError(
            "query, same and other must be (B, D) alike; got "
            f"{tuple(query.shape)}, {tuple(same.shape)} and {tuple(other.shape)}."
        )
    with torch.autocast(query.device.type, enabled=False):
        q = unit(query)
        gap = (q * (unit(same) - unit(other))).sum(dim=1)  # (B,)
        return (margin - gap).clamp(min=0).mean() / temperature
