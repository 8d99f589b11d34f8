"""Labels of one frame carried to the next ones by the likeness of features.

Each place of a frame asks the places of the frames before it that look most like it, and takes the
weighted mean of their labels: VFS (Xu and Wang, ICCV 2021), CRW (Jabri et al., NeurIPS 2020). Only
places near it are asked, so likenesses are computed tile by tile for a tile's neighbourhood: memory
and time follow the window, not the frame.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Begin = Literal["window", "whole"]
Early = Literal["fewer", "repeat"]

_QUERIES = 512  # at once, where the whole frame is asked


class Matches(NamedTuple):
    """The places most like each query.

    Attributes:
        likeness: (H, W, k), cosine where features have length 1; -inf where there were fewer.
        place: (H, W, k) int64: frame * H * W + row * W + column.
    """

    likeness: Tensor
    place: Tensor


def match_window(
    query: Tensor, keys: Sequence[Tensor], *, radius: float, top: int, tile: int = 8
) -> Matches:
    """The places of some frames most like each place of another, among those near it.

    For a tile of queries the likenesses to all that the window of one of them holds are computed;
    each place's best over the frames picks ``top`` places, and of their T values each the ``top``
    best are taken, which are the best of all.

    Args:
        query: Features of the frame that asks, (H, W, C).
        keys: Features of the frames that are asked, T of (H, W, C).
        radius: Places less than this far away, in cells, are asked; a circle.
        top: How many to find.
        tile: Side of a tile in cells. It changes the speed, not the result.

    Returns:
        The ``top`` best over all frames together, the best first.
    """
    height, width, _ = query.shape
    top = min(top, len(keys) * height * width)
    reach = math.ceil(radius) - 1  # the farthest whole distance
    likeness = query.new_empty(height, width, top)
    place = torch.empty(height, width, top, dtype=torch.int64, device=query.device)
    rows, columns = (torch.arange(n, device=query.device) for n in (height, width))
    for x in range(0, width, tile):
        across, wide = slice(x, x + tile), slice(max(0, x - reach), x + tile + reach)
        strip = torch.stack([key[:, wide] for key in keys])  # (T, H, w, C)
        for y in range(0, height, tile):
            down, high = slice(y, y + tile), slice(max(0, y - reach), y + tile + reach)
            dy = (rows[high, None] - rows[None, down]).square()  # (h, a)
            dx = (columns[wide, None] - columns[None, across]).square()  # (w, b)
            far = dy[:, None, :, None] + dx[:, None] >= radius**2  # (h, w, a, b)
            own = (rows[high, None] * width + columns[wide]).flatten()  # (h * w)
            asked = query[down, across]  # (a, b, C)
            found = _best(
                asked.flatten(0, 1), strip[:, high].flatten(1, 2), far.flatten(2).flatten(0, 1), top
            )
            likeness[down, across] = found[0].reshape(*asked.shape[:2], top)
            frame, cell = found[1]
            place[down, across] = (frame * height * width + own[cell]).reshape(
                *asked.shape[:2], top
            )
    return Matches(likeness, place)


def _best(
    query: Tensor, keys: Tensor, far: Tensor, top: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The best of (T, N, C) keys for (Q, C) queries, where (N, Q) ``far`` does not rule them out.

    Returns:
        Likeness (Q, top), and frame and number of the key.
    """
    frames, cells, _ = keys.shape
    likeness = torch.bmm(keys, query.t().expand(frames, -1, -1))  # (T, N, Q)
    highest = likeness.amax(0).masked_fill_(far, -math.inf).t()  # (Q, N)
    best = highest.topk(min(top, cells), dim=1)
    chosen = likeness.gather(1, best.indices.t().expand(frames, -1, -1))  # (T, k, Q)
    chosen = chosen.masked_fill_(best.values.t().isinf(), -math.inf)
    chosen = chosen.permute(2, 1, 0).flatten(1)  # (Q, k * T)
    chosen = F.pad(chosen, (0, max(0, top - chosen.shape[1])), value=-math.inf)
    values, index = chosen.topk(top, dim=1)
    index = index.clamp(max=best.indices.shape[1] * frames - 1)  # what fills up has no weight
    cell = best.indices.gather(1, index // frames)
    return values, (index % frames, cell)


def match_whole(query: Tensor, keys: Sequence[Tensor], *, top: int) -> Matches:
    """The places of some frames most like each place of another, wherever they are.

    Args:
        query: Features of the frame that asks, (H, W, C).
        keys: Features of the frames that are asked, T of (H, W, C).
        top: How many to find.

    Returns:
        The ``top`` best over all frames together, the best first.
    """
    height, width, channels = query.shape
    asked = query.reshape(-1, channels)
    per_frame = min(top, height * width)
    values, places = [], []
    for number, key in enumerate(keys):
        flat = key.reshape(-1, channels).t()
        found = [(part @ flat).topk(per_frame, dim=1) for part in torch.split(asked, _QUERIES)]
        values.append(torch.cat([one.values for one in found]))
        places.append(torch.cat([one.indices for one in found]) + number * height * width)
    best = torch.cat(values, 1).topk(min(top, len(keys) * height * width), dim=1)
    place = torch.cat(places, 1).gather(1, best.indices)
    return Matches(best.values.reshape(height, width, -1), place.reshape(height, width, -1))


def join(first: Matches, second: Matches, shift: int, top: int) -> Matches:
    """The best of both, where the second's places count on from ``shift``."""
    best = torch.cat([first.likeness, second.likeness], -1).topk(top, dim=-1)
    place = torch.cat([first.place, second.place + shift], -1).gather(-1, best.indices)
    return Matches(best.values, place)


@dataclass(frozen=True)
class LabelPropagation:
    """How labels are carried along; the defaults are VFS's for a ResNet-50.

    Args:
        context: Frames before the present one that are asked, besides the first.
        begin: Where the first frame is asked: in the window, as the others (VFS), or all of it
            (CRW).
        early: While fewer than ``context`` frames have passed: ask those there are (``fewer``:
            VFS; the first is then asked twice, and so counts double), or fill up with copies of the
            first (``repeat``: CRW).
        radius: Places less than this far away are asked, in cells; None for the whole frame.
        top: Places that vote.
        temperature: Of the softmax over these.
        tile: Side of the tiles in cells; see `match_window`.

    Raises:
        ValueError: If an option is unknown or a number is not above 0.
    """

    context: int = 20
    begin: Begin = "window"
    early: Early = "fewer"
    radius: float | None = 18.0
    top: int = 10
    temperature: float = 0.07
    tile: int = 8

    def __post_init__(self) -> None:
        for name, kind in (("begin", Begin), ("early", Early)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be {' or '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        for name in ("context", "radius", "top", "temperature", "tile"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def match(self, query: Tensor, first: Tensor, recent: Sequence[Tensor]) -> Matches:
        """The places most like each place of a frame.

        Likenesses are taken in the features' own precision whatever the autocast: rounded to
        bfloat16, a tenth of the places would vote otherwise.

        Args:
            query: Features of the frame, (H, W, C).
            first: Features of the first frame, alike; its places come first.
            recent: Features of the frames that are asked besides it, in order.

        Returns:
            The ``top`` best.
        """
        with torch.autocast(query.device.type, enabled=False):
            return self._match(query, first, recent)

    def _match(self, query: Tensor, first: Tensor, recent: Sequence[Tensor]) -> Matches:
        keys = [first, *recent]
        if self.radius is None:
            return match_whole(query, keys, top=self.top)
        if self.begin == "window":
            return match_window(query, keys, radius=self.radius, top=self.top, tile=self.tile)
        whole = match_whole(query, [first], top=self.top)
        near = match_window(query, recent, radius=self.radius, top=self.top, tile=self.tile)
        return join(whole, near, query.shape[0] * query.shape[1], self.top)

    def vote(self, matches: Matches, labels: Sequence[Tensor]) -> Tensor:
        """The weighted mean of the matches' labels.

        Args:
            matches: The places.
            labels: Labels of the frames that were asked, (H, W, K) each.

        Returns:
            (H, W, K).
        """
        weights = (matches.likeness / self.temperature).softmax(-1)  # (H, W, k)
        asked = torch.stack(list(labels)).flatten(0, 2)[matches.place]  # (H, W, k, K)
        return (weights.unsqueeze(-1) * asked).sum(-2)

    def __call__(self, features: Iterable[Tensor], labels: Tensor) -> Iterator[Tensor]:
        """Carries the first frame's labels through a sequence.

        Args:
            features: Of each frame, (H, W, C) of length 1, in order; frames beyond the context are
                let go.
            labels: Of the first frame, (H, W, K).

        Yields:
            Labels of each frame, (H, W, K), soft; the first frame's are those given.
        """
        recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.context)
        first: Tensor | None = None
        for query in features:
            if first is None:
                first, found = query, labels
                if self.early == "repeat":
                    recent.extend([(first, labels)] * self.context)
            else:
                seen, told = zip(*recent, strict=True)
                found = self.vote(self.match(query, first, seen), [labels, *told])
            recent.append((query, found))
            yield found
