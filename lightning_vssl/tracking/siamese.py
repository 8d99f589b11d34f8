"""How a Siamese tracker follows a box: windows with context, scale search, cosine window.

Bertinetto et al., "Fully-convolutional Siamese networks for object tracking" (SiamFC, ECCV
workshops 2016), section 2.3 to 3. Everything here is arithmetic on one target: it knows no network.

Coordinates are those of `lightning_vssl.data.sequences.TrackedSequence`: x and y run from the
picture's left and upper edge, so that the centre of the first pixel is 0.5.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_vssl.data.crops import context_side


@dataclass(frozen=True)
class SiameseSearch:
    """The numbers of the search. The defaults are the original's, which the PyTorch port has too.

    Attributes:
        exemplar: Side of the exemplar crop in pixels; odd in the original.
        search: Side of the search crop in pixels, at the same scale.
        context: Share of the box's half perimeter by which the exemplar window is wider than the
            box, on each axis; see
            `lightning_vssl.data.crops.context_side`.
        scales: Scales searched in each frame, odd.
        scale_step: Ratio of one scale to the next, above 1.
        scale_penalty: Multiplies the responses at all scales but the middle one, in (0, 1]. Where
            all responses are negative it favours the other scales, as in the original.
        scale_rate: Share of a change of scale that is taken over, in [0, 1].
        window: Weight of the cosine window against the response, in [0, 1].
        response: Pixels that the response map is scaled up to, per side. The original's 17 x 17
            cells become 16 times as many.
        response_step: Pixels of the search crop between two pixels of the enlarged response; None
            for what the network's stride makes it. VFS's tracker enlarges 18 x 18 cells to 272 and
            still counts half a pixel each (0.5), so that it moves 6 % too little.
        side_limits: Smallest and largest side of the search window relative to its first, as in
            the MATLAB original (0.2, 5); None for no limits, as in the port.
    """

    exemplar: int = 127
    search: int = 255
    context: float = 0.5
    scales: int = 3
    scale_step: float = 1.0375
    scale_penalty: float = 0.9745
    scale_rate: float = 0.59
    window: float = 0.176
    response: int = 272
    response_step: float | None = None
    side_limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.exemplar < self.search:
            raise ValueError(
                f"exemplar must be above 0 and below search, got {self.exemplar} and {self.search}"
            )
        if self.scales < 1 or self.scales % 2 == 0:
            raise ValueError(f"scales must be an odd number of at least 1, got {self.scales}")
        step, limits = self.response_step, self.side_limits
        for name, value, good in (
            ("context", self.context, self.context >= 0),
            ("scale_step", self.scale_step, self.scale_step > 1),
            ("scale_penalty", self.scale_penalty, 0 < self.scale_penalty <= 1),
            ("scale_rate", self.scale_rate, 0 <= self.scale_rate <= 1),
            ("window", self.window, 0 <= self.window <= 1),
            ("response", self.response, self.response >= 3),
            ("response_step", step, step is None or step > 0),
        ):
            if not good:
                raise ValueError(f"{name}={value} is out of range: see SiameseSearch")
        if limits is not None and not 0 < limits[0] <= 1 <= limits[1]:
            raise ValueError(f"side_limits must be a share up to 1 and one from 1, got {limits}")

    @property
    def factors(self) -> tuple[float, ...]:
        """The scales, ascending, 1 in the middle."""
        half = self.scales // 2
        return tuple(self.scale_step**power for power in range(-half, half + 1))


@dataclass(frozen=True)
class Target:
    """Where the target is.

    Attributes:
        centre: (x, y) in pixels.
        size: (width, height) in pixels.
        side: Side of its exemplar window in pixels.
        first_side: What that was in the first frame.
    """

    centre: tuple[float, float]
    size: tuple[float, float]
    side: float
    first_side: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box, xyxy in pixels."""
        (x, y), (width, height) = self.centre, self.size
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def start(box: tuple[float, float, float, float], search: SiameseSearch) -> Target:
    """The target in its first frame.

    Args:
        box: xyxy in pixels.
        search: The numbers of the search.

    Raises:
        ValueError: If the box has no area, or is not finite.
    """
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1 and all(math.isfinite(value) for value in box)):
        raise ValueError(
            f"the first box must have an area, to be followed; got {tuple(box)} (xyxy)"
        )
    width, height = x2 - x1, y2 - y1
    side = context_side(width, height, search.context)
    return Target(((x1 + x2) / 2, (y1 + y2) / 2), (width, height), side, side)


def cosine_window(size: int) -> Tensor:
    """Hann's window in two dimensions, 0 at the border, its sum 1.

    Args:
        size: Pixels per side.

    Returns:
        (size, size) float32.
    """
    line = torch.hann_window(size, periodic=False, dtype=torch.float64)
    window = torch.outer(line, line)
    return (window / window.sum()).float()


@dataclass(frozen=True)
class Peak:
    """Where the response is highest.

    Attributes:
        factor: The scale at which it is.
        offset: (x, y) from the middle of the search crop, in its pixels.
    """

    factor: float
    offset: tuple[float, float]


def find_peak(responses: Tensor, search: SiameseSearch, stride: int, window: Tensor) -> Peak:
    """Finds the target in the responses at all scales (section 2.3; the port's order of steps).

    Responses are enlarged and those of changed scales penalised; the scale with the highest one is
    taken; its map is shifted to 0, brought to sum 1, and mixed with the cosine window.

    Args:
        responses: (S, R, R), one map a scale of ``search.factors``.
        search: The numbers of the search.
        stride: Pixels of the search crop between two cells.
        window: `cosine_window` of ``search.response`` pixels, on the responses' device.

    Raises:
        ValueError: If a response is not finite.
    """
    count, cells, _ = responses.shape
    size = (search.response, search.response)
    large = functional.interpolate(responses[None].float(), size=size, mode="bicubic")[0]
    penalty = large.new_full((count, 1, 1), search.scale_penalty)
    penalty[count // 2] = 1
    large = large * penalty
    best = large.amax((1, 2)).argmax()
    response = large[best]
    response = response - response.min()
    response = response / (response.sum() + 1e-16)
    mixed = (1 - search.window) * response + search.window * window
    scale, place, sane = torch.stack(
        [best, mixed.argmax(), torch.isfinite(large).all().long()]
    ).tolist()  # the one time that the device is waited for
    if not sane:
        raise ValueError("the network's response is not finite: check its weights and precision")
    row, column = divmod(int(place), search.response)
    step = search.response_step
    if step is None:
        step = stride * cells / search.response
    middle = (search.response - 1) / 2
    return Peak(search.factors[int(scale)], ((column - middle) * step, (row - middle) * step))


def moved(target: Target, peak: Peak, search: SiameseSearch) -> Target:
    """The target in the next frame.

    Args:
        target: Where it was, and the crop's window with it.
        peak: Where it was found in that crop.
        search: The numbers of the search.
    """
    pixel = target.side * peak.factor / search.exemplar  # of the picture, per pixel of the crop
    x, y = (c + pixel * d for c, d in zip(target.centre, peak.offset, strict=True))
    change = 1 - search.scale_rate + search.scale_rate * peak.factor
    if search.side_limits is not None:
        low, high = (limit * target.first_side for limit in search.side_limits)
        change = min(max(change, low / target.side), high / target.side)
    width, height = target.size
    return Target(
        (x, y), (width * change, height * change), target.side * change, target.first_side
    )
