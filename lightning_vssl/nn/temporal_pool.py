"""From the frames of a clip to one vector: VITO's three poolings (NeurIPS 2023, appendix A.5).

An image network gives every frame a vector at each of its last two scales, averaged over space:
``early`` (block 3 of a ResNet-50, 1,024 numbers), which knows small patches, and ``late``
(block 4, 2,048 numbers). Averaging forgets the order of the frames; both others keep the two halves
of the clip apart at the early scale, so that a linear layer behind them sees differences in time.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Pooling = Literal["average", "multiscale", "multiscale_attention"]


def average_frames(late: Tensor) -> Tensor:
    """Averages over the frames (A.5, method 1).

    Args:
        late: (N, L, C).

    Returns:
        (N, C).
    """
    return late.mean(1)


def attend_frames(frames: Tensor, weight: Tensor) -> Tensor:
    """Sums the frames, each by a weight read from itself (A.5, method 3).

    ``w_t = tanh(W z_t)`` and ``v = sum_t w_t z_t``. The weights are not normalised: they lie
    between -1 and 1, a frame may be subtracted, and a longer clip gives a longer vector.

    Args:
        frames: z, (N, L, C).
        weight: W, (C,).

    Returns:
        (N, C).
    """
    weights = torch.tanh(frames @ weight)  # (N, L)
    return torch.einsum("nl,nlc->nc", weights, frames)


def halves(early: Tensor) -> Tensor:
    """Cuts clips in the middle.

    Args:
        early: (N, L, C), L even.

    Returns:
        (N, 2, L/2, C), the earlier half first.

    Raises:
        ValueError: If the number of frames is odd.
    """
    if early.shape[1] % 2:
        raise ValueError(
            f"the multi-scale poolings cut clips in two halves of as many frames; got "
            f"{early.shape[1]} frames: give the data clips with an even number"
        )
    return torch.stack(early.chunk(2, dim=1), dim=1)


def multiscale_average(early: Tensor, late: Tensor) -> Tensor:
    """Averages the early scale over each half, the late one over the clip (A.5, method 2).

    Args:
        early: (N, L, D), L even.
        late: (N, L, C).

    Returns:
        (N, 2 D + C): first half, second half, clip; 4,096 numbers in a ResNet-50.

    Raises:
        ValueError: If the number of frames is odd.
    """
    return torch.cat([halves(early).mean(2).flatten(1), average_frames(late)], dim=1)


def multiscale_attention(
    early: Tensor, late: Tensor, early_weight: Tensor, late_weight: Tensor
) -> Tensor:
    """As `multiscale_average`, with the sums of `attend_frames` for the means (A.5, method 3).

    Args:
        early: (N, L, D), L even.
        late: (N, L, C).
        early_weight: W of the early scale, (D,), the same for both halves.
        late_weight: W of the late scale, (C,).

    Returns:
        (N, 2 D + C).

    Raises:
        ValueError: If the number of frames is odd.
    """
    parts = [attend_frames(half, early_weight) for half in halves(early).unbind(1)]
    return torch.cat([*parts, attend_frames(late, late_weight)], dim=1)


class TemporalPool(nn.Module):
    """One of the poolings over both scales, with its weights where it has some.

    The paper does not say how W starts: here as torch's linear layers, uniform within
    ``1 / sqrt(C)``. It says "W in R^(C x 1)" and so no bias.

    Args:
        early: Channels of the early scale.
        late: Channels of the late scale.
        pooling: ``multiscale`` or ``multiscale_attention``; ``average`` uses the late scale alone.

    Attributes:
        out_features: Width of the result.

    Raises:
        ValueError: If ``pooling`` is none of those named.
    """

    def __init__(self, early: int, late: int, pooling: Pooling) -> None:
        super().__init__()
        check_pooling(pooling)
        self.channels = early, late
        self.pooling: Pooling = pooling
        self.out_features = late if pooling == "average" else 2 * early + late
        self.early_weight, self.late_weight = (
            nn.Parameter(torch.empty(width).uniform_(-(width**-0.5), width**-0.5))
            if pooling == "multiscale_attention"
            else None
            for width in self.channels
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Pools clips.

        Args:
            frames: Both scales of every frame, one behind the other, (N, L, early + late).

        Returns:
            (N, out_features).

        Raises:
            ValueError: If the number of frames is odd and halves are needed.
        """
        early, late = torch.split(frames, list(self.channels), dim=2)
        if self.early_weight is not None and self.late_weight is not None:
            return multiscale_attention(early, late, self.early_weight, self.late_weight)
        if self.pooling == "multiscale":
            return multiscale_average(early, late)
        return average_frames(late)


def check_pooling(pooling: str) -> None:
    """Refuses an unknown pooling.

    Raises:
        ValueError: If it is none of `Pooling`.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
