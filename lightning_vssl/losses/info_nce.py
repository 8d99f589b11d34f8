"""Contrastive losses: InfoNCE against given negatives, NT-Xent within the global batch, and VITO's.

All vectors are L2-normalised here, and all of it runs in float32 (float64 stays float64) whatever
the autocast: at temperature 0.07 a bfloat16 cosine is off by up to 0.06 in the logits.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_vssl.nn.gather import gather, rank

Negatives = Literal["all", "same"]


def unit(x: Tensor) -> Tensor:
    """Brings vectors (..., D) to length 1, in float32 at least."""
    wide = x if x.dtype == torch.float64 else x.float()
    return F.normalize(wide, dim=-1)


def _check(temperature: float, **vectors: Tensor) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    shapes = {name: tuple(x.shape) for name, x in vectors.items()}
    if any(x.ndim != 2 for x in vectors.values()) or len({s[1] for s in shapes.values()}) != 1:
        raise ValueError(f"All vectors must be 2-D and of one width; got {shapes}.")


def info_nce_logits(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float = 0.07
) -> Tensor:
    """Cosines of each query with its key and with the negatives, over the temperature.

    Args:
        query: (B, D).
        key: (B, D), the positive of each query.
        negatives: (N, D), shared by all queries, for instance ``Queue.negatives()``.
        temperature: Above 0; 0.07 in MoCo v1, RSPNet and PreViTS, 0.2 in MoCo v2.

    Returns:
        (B, 1 + N) float32 or float64: column 0 is the positive.

    Raises:
        ValueError: If a shape or the temperature does not fit.
    """
    _check(temperature, query=query, key=key, negatives=negatives)
    if query.shape != key.shape:
        raise ValueError(
            f"query and key must have one shape; got {tuple(query.shape)} and {tuple(key.shape)}."
        )
    with torch.autocast(query.device.type, enabled=False):
        q = unit(query)
        positive = (q * unit(key)).sum(dim=1, keepdim=True)  # (B, 1)
        return torch.cat([positive, q @ unit(negatives).T], dim=1) / temperature


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    temperature: float = 0.07,
    valid: Tensor | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018; MoCo, Eq. 1), the mean over this rank's queries.

    ``-log exp(q.k / t) / (exp(q.k / t) + sum_n exp(q.n / t))`` on unit vectors. Gradients go
    wherever the arguments let them: pass keys from ``torch.no_grad`` and ``Queue.negatives()`` for
    MoCo, gathered embeddings with gradient for in-batch negatives.

    Args:
        query: (B, D).
        key: (B, D), the positive of each query.
        negatives: (N, D), shared by all queries.
        temperature: Above 0; 0.07 in MoCo v1, RSPNet and PreViTS.
        valid: (B, N) bool; False takes a negative out of a query's sum, such as views of the same
            video. None keeps all.

    Returns:
        The loss, () float32 or float64.

    Raises:
        ValueError: If a shape or the temperature does not fit.
    """
    logits = info_nce_logits(query, key, negatives, temperature)
    if valid is not None:
        if valid.shape != (query.shape[0], negatives.shape[0]):
            expected = (query.shape[0], negatives.shape[0])
            raise ValueError(f"valid must be {expected}; got {tuple(valid.shape)}.")
        keep = torch.cat([valid.new_ones(valid.shape[0], 1), valid], dim=1)
        logits = logits.masked_fill(~keep, -torch.inf)
    target = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target)


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent over the global batch, both directions added (CVRL, Eq. 1; SimCLR, Eq. 1).

    For view a of video i: the positive is b_i, the negatives are both views of the other videos of
    all ranks, 2 (B_global - 1) of them; likewise from b. Each rank returns the mean over its own
    videos of the *sum* of both directions, as the released CVRL and ConST-CL code does; SimCLR's
    mean over 2 B vectors is half of it. Gradients flow to both views and through the gather.

    Args:
        a: First views, (B, D) of this rank; row i of ``a`` and of ``b`` are one video.
        b: Second views, (B, D).
        temperature: Above 0; CVRL's 0.1.

    Returns:
        The loss, () float32 or float64.

    Raises:
        ValueError: If a shape or the temperature does not fit.
    """
    _check(temperature, a=a, b=b)
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape; got {tuple(a.shape)}, {tuple(b.shape)}.")
    with torch.autocast(a.device.type, enabled=False):
        one, two = unit(a), unit(b)
        all_one, all_two = gather(torch.stack([one, two], dim=1)).unbind(
            dim=1
        )  # (B_global, D) each
        own = rank() * a.shape[0] + torch.arange(a.shape[0], device=a.device)  # (B,) columns
        return _direction(one, all_two, all_one, own, temperature) + _direction(
            two, all_one, all_two, own, temperature
        )


def _direction(
    query: Tensor, other: Tensor, same: Tensor, own: Tensor, temperature: float
) -> Tensor:
    across = query @ other.T / temperature  # (B, B_global), the positive at column own
    within = (query @ same.T / temperature).scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(torch.cat([across, within], dim=1), own)


def multi_view_info_nce(
    online: Tensor, target: Tensor, temperature: float = 0.1, negatives: Negatives = "all"
) -> Tensor:
    """InfoNCE between all ordered pairs of views of a video (VITO, Eq. 3; MoCLR with two views).

    For views i and j of a video, i not j: the query is the online network's z_i, the positive the
    target network's z_j, and the negatives are target features of all *other* videos of all ranks;
    a further view of the same video is never one. Differs from the paper, which prints neither a
    temperature nor a normalisation: vectors are L2-normalised and divided by a temperature, as in
    MoCLR's and DetCon's practice; without, dot products of 256 numbers have no bound.

    The paper sums over pairs. Here it is the mean over the V (V - 1) pairs times 2, which is the
    sum where V = 2, so that the size of a gradient does not depend on the number of views.

    Args:
        online: Projections with gradient, (B, V, D) of this rank's videos.
        target: The target network's, (B, V, D); no gradient flows into them.
        temperature: Above 0.
        negatives: Which views of the other videos: ``all``, V (B_global - 1) of them, or the
            ``same`` view as the positive, B_global - 1.

    Returns:
        The loss, () float32 or float64, the mean over this rank's videos.

    Raises:
        ValueError: If a shape, the temperature or ``negatives`` does not fit, or there is but one
            video or one view.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    if negatives not in get_args(Negatives):
        raise ValueError(f"negatives must be all or same; got {negatives!r}.")
    if online.dim() != 3 or online.shape != target.shape or online.shape[1] < 2:
        raise ValueError(
            "online and target must be (B, V, D) alike, with at least two views; got "
            f"{tuple(online.shape)} and {tuple(target.shape)}."
        )
    videos, views, _ = online.shape
    with torch.autocast(online.device.type, enabled=False):
        z, own = unit(online), unit(target.detach())
        everyone = gather(own)  # (B_global, V, D)
        if len(everyone) < 2:
            raise ValueError("a batch of one video has no negatives; take at least two.")
        positive = torch.einsum("bid,bjd->bij", z, own) / temperature  # (B, V, V)
        row = rank() * videos + torch.arange(videos, device=z.device)
        mine = torch.arange(len(everyone), device=z.device) == row[:, None]  # (B, B_global)
        cosines = torch.einsum("bid,gvd->bigv", z, everyone) / temperature  # (B, V, B_global, V)
        cosines = cosines.masked_fill(mine[:, None, :, None], -torch.inf)
        over = (2, 3) if negatives == "all" else (2,)
        rest = cosines.logsumexp(over, keepdim=negatives == "all").flatten(2)  # (B, V, 1 or V)
        losses = torch.logaddexp(positive, rest) - positive  # (B, V, V): i, j
        pairs = ~torch.eye(views, dtype=torch.bool, device=z.device)
        return 2 * losses[:, pairs].mean()
