"""How well a heat map finds an object: overlap with its true mask, and how much of the heat is in.

A map that is high in the middle of the picture finds most objects, since people film them there.
So every number has a floor: what a Gaussian in the middle of the frame reaches that knows nothing
of the picture.
"""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each
from lightning_vssl.nn.grad_cam import resize_cam

VOID = 255


def _flat(heat: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heat (B, N) in float64, where the object is, and what counts at all."""
    if heat.dim() < 2 or heat.shape != mask.shape:
        raise ValueError(
            f"heat and mask must be (B, *S) alike; got {tuple(heat.shape)} and {tuple(mask.shape)}"
        )
    flags = mask.flatten(1)
    counts = (
        torch.ones_like(flags, dtype=torch.bool) if flags.dtype == torch.bool else flags != VOID
    )
    there = (flags != 0) & counts
    values = torch.where(counts, heat.flatten(1).double().clamp(min=0), 0)
    blank = (values == 0).all(1, keepdim=True)
    return torch.where(blank & counts, 1, values), there, counts


def _unless_empty(values: Tensor, there: Tensor) -> Tensor:
    return torch.where(there.any(1), values, torch.nan)


def heat_iou(heat: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of the mask and of where the heat is high.

    High is at least ``threshold`` times the largest value of that map, as Grad-CAM (section 4.1)
    marks objects, with 0.15 there.

    Args:
        heat: (B, *S), finite; what is negative counts as 0. A map without heat counts as uniform.
        mask: (B, *S), the true mask, bool or integers: 0 background, 255 void (not counted),
            anything else object.
        threshold: Share of the maximum, in (0, 1].

    Returns:
        (B,) float64 in [0, 1], over all of S at once; NaN where the mask is empty.

    Raises:
        ValueError: If the shapes differ or the threshold is out of its range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1]; got {threshold}")
    values, there, counts = _flat(heat, mask)
    high = (values >= threshold * values.amax(1, keepdim=True)) & counts
    both, either = (high & there).sum(1), (high | there).sum(1)
    return _unless_empty(both.double() / either.clamp(min=1), there)


def equal_area_iou(heat: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of the mask and of the hottest places, as many as the mask has.

    Free of a threshold: it asks where the heat is, not how fast it falls off. Places of equal heat
    share evenly what area is left for them.

    Args:
        heat: (B, *S), as for `heat_iou`.
        mask: (B, *S), as for `heat_iou`.

    Returns:
        (B,) float64 in [0, 1]; NaN where the mask is empty. A uniform map reaches a / (2 - a) on
        an object that takes the share a of the picture.

    Raises:
        ValueError: If the shapes differ.
    """
    values, there, counts = _flat(heat, mask)
    values = torch.where(counts, values, -1)  # void places are the last ones
    area = there.sum(1, keepdim=True)
    ordered = values.sort(dim=1, descending=True).values
    last = ordered.gather(1, (area - 1).clamp(min=0))  # heat of the last place that fits
    above, level = values > last, values == last
    share = (area - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)
    both = ((above & there).double() + share * (level & there)).sum(1)
    return _unless_empty(both / (2 * area[:, 0] - both).clamp(min=1e-12), there)


def heat_inside(heat: Tensor, mask: Tensor) -> Tensor:
    """Share of the heat that lies inside the mask.

    Args:
        heat: (B, *S), as for `heat_iou`.
        mask: (B, *S), as for `heat_iou`.

    Returns:
        (B,) float64 in [0, 1]; NaN where the mask is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    values, there, _ = _flat(heat, mask)
    return _unless_empty((values * there).sum(1) / values.sum(1), there)


def heat_lift(heat: Tensor, mask: Tensor) -> Tensor:
    """Share of the heat inside the mask, over the mask's share of the area.

    Args:
        heat: (B, *S), as for `heat_iou`.
        mask: (B, *S), as for `heat_iou`.

    Returns:
        (B,) float64, not negative: 1 for a uniform map, at most one over the mask's share; NaN
        where the mask is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    _, there, counts = _flat(heat, mask)
    share = there.sum(1).double() / counts.sum(1).clamp(min=1)
    return heat_inside(heat, mask) / share


def centred_gaussian(size: tuple[int, int], sigma: float) -> Tensor:
    """A Gaussian in the middle of a frame, round in units of the sides.

    Args:
        size: Height and width.
        sigma: Standard deviation as a share of the side, above 0; the same for both sides.

    Returns:
        (h, w) float64, of largest value 1.

    Raises:
        ValueError: If ``sigma`` is not positive or a side is below 1.
    """
    if sigma <= 0 or min(size) < 1:
        raise ValueError(f"sigma must be positive and sides at least 1; got {sigma} and {size}")
    rows, columns = (_bell(side, torch.tensor([[sigma * side]]).double())[0] for side in size)
    return rows[:, None] * columns


def _bell(side: int, sigma: Tensor) -> Tensor:
    """Gaussians over a side's cells, (B, side), of largest value 1; sigma (B, 1) in cells."""
    offset = torch.arange(side, dtype=torch.float64, device=sigma.device) - (side - 1) / 2
    square = offset.square()
    return (-(square - square.min()) / (2 * sigma.square())).exp()


def _spread(profile: Tensor) -> Tensor:
    """Standard deviation in cells of profiles (B, side), (B, 1)."""
    place = torch.arange(profile.shape[1], dtype=torch.float64, device=profile.device)
    total = profile.sum(1, keepdim=True)
    mean = (profile * place).sum(1, keepdim=True) / total
    return ((profile * (place - mean).square()).sum(1, keepdim=True) / total).sqrt()


def _bell_like(profile: Tensor) -> Tensor:
    """The centred bell whose spread within the frame is that of the profile, by bisection."""
    side = profile.shape[1]
    wanted = _spread(profile)
    low, high = torch.full_like(wanted, -7.0), torch.full_like(wanted, 7.0)  # log of sigma / side
    for _ in range(50):
        middle = (low + high) / 2
        wider = _spread(_bell(side, middle.exp() * side)) < wanted
        low, high = torch.where(wider, middle, low), torch.where(wider, high, middle)
    return _bell(side, high.exp() * side)


def gaussian_like(heat: Tensor) -> Tensor:
    """For every heat map the centred Gaussian as wide and as high as the heat spreads.

    Its standard deviations along height and width, measured within the frame, are those of the
    heat about its own centre, all frames taken together: it differs from the heat by where it is
    and by its shape, not by how concentrated it is. Where the heat is as wide as a uniform map or
    wider, as when it sits at the borders, it is flat to a millionth, and still highest in the
    middle.

    Args:
        heat: (B, h, w), or (B, T, h, w), finite; what is negative counts as 0, a map without heat
            as uniform.

    Returns:
        Of the shape of ``heat``, float64, the same in all frames.

    Raises:
        ValueError: If ``heat`` has another number of dimensions.
    """
    if heat.dim() not in (3, 4):
        raise ValueError(f"heat must be (B, h, w) or (B, T, h, w); got {tuple(heat.shape)}")
    values = heat.double().clamp(min=0)
    flat = values if heat.dim() == 3 else values.sum(1)  # (B, h, w)
    flat = torch.where((flat == 0).all(2).all(1)[:, None, None], 1, flat)
    rows, columns = _bell_like(flat.sum(2)), _bell_like(flat.sum(1))
    bell = rows[:, :, None] * columns[:, None]  # (B, h, w)
    return bell if heat.dim() == 3 else bell[:, None].expand(heat.shape)


Floor = Literal["spread"] | float


class HeatLocalisation(Metric):
    """Where heat maps are, against true masks, and what a blind Gaussian reaches.

    ``update`` takes maps, masks and the manifest's rows; ``compute`` gives the means over samples
    of ``iou`` (`heat_iou`), ``area_iou`` (`equal_area_iou`), ``inside`` (`heat_inside`) and
    ``lift`` (`heat_lift`), and the same of the floor as ``floor_iou`` and so on. A row seen twice
    counts once; a sample with an empty mask has no numbers and is left out.

    Args:
        threshold: Of `heat_iou`, in (0, 1].
        floor: ``spread``: for every map the centred Gaussian of the same spread
            (`gaussian_like`); a number: one `centred_gaussian` of that sigma, as a share of the
            sides, for all.

    Attributes:
        samples: How many samples the last ``compute`` counted, over all ranks.
        undefined: How many had an empty mask.
        blank: How many of those counted had a map without any heat, taken for uniform.
        values: The numbers of every sample of the last ``compute``, (samples,) float64 each, by
            name, in the order of ``rows``: for paired comparisons.
        rows: Their rows of the manifest, ascending, (samples,).

    Raises:
        ValueError: If the threshold or the floor is out of its range.
    """

    is_differentiable = False
    full_state_update = False

    numbers: list[Tensor]
    index: list[Tensor]

    def __init__(self, threshold: float = 0.5, floor: Floor = "spread") -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1]; got {threshold}")
        if floor != "spread" and (isinstance(floor, str) or floor <= 0):
            raise ValueError(f"floor must be spread or a sigma above 0; got {floor!r}")
        self.threshold = threshold
        self.floor: Floor = floor
        self.samples = self.undefined = self.blank = 0
        self.values: dict[str, Tensor] = {}
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.add_state("numbers", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers."""
        own = ("iou", "area_iou", "inside", "lift")
        return (*own, *(f"floor_{name}" for name in own))

    def update(self, heat: Tensor, mask: Tensor, index: Tensor) -> None:
        """Adds samples.

        Args:
            heat: Maps of any size, (B, h', w') or (B, T', h', w'), scaled linearly to the mask's.
            mask: (B, h, w) or (B, T, h, w), as for `heat_iou`.
            index: Rows of the manifest, (B,) int64: one map for each.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if index.shape != heat.shape[:1] or len(mask) != len(heat):
            raise ValueError(
                f"heat, mask and index must be of as many samples; got {tuple(heat.shape)}, "
                f"{tuple(mask.shape)} and {tuple(index.shape)}"
            )
        large = resize_cam(heat.detach().double(), tuple(mask.shape[1:]))
        if self.floor == "spread":
            blind = gaussian_like(large)
        else:
            height, width = mask.shape[-2:]
            blind = centred_gaussian((height, width), float(self.floor)).to(large)
            blind = blind.expand(large.shape)
        found = [number for x in (large, blind) for number in self._measure(x, mask)]
        blank = (large <= 0).flatten(1).all(1).double()
        self.numbers.append(torch.stack([*found, blank], dim=1))  # (B, 9)
        self.index.append(index)

    def _measure(self, heat: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (
            heat_iou(heat, mask, self.threshold),
            equal_area_iou(heat, mask),
            heat_inside(heat, mask),
            heat_lift(heat, mask),
        )

    def compute(self) -> dict[str, float]:
        """The means over samples; sets the attributes.

        Raises:
            ValueError: If no sample has a mask.
        """
        if len(self.index) == 0:
            raise ValueError("no maps were added: nothing to compare")
        index = dim_zero_cat(self.index)
        keep = first_of_each(index)
        keep = keep[index[keep].argsort()]
        numbers = dim_zero_cat(self.numbers)[keep]
        masked = ~numbers[:, 0].isnan()
        self.undefined = int((~masked).sum())
        self.samples = int(masked.sum())
        if self.samples == 0:
            raise ValueError(f"all of the {self.undefined} masks are empty: nothing to find")
        self.rows, numbers = index[keep][masked], numbers[masked]
        self.blank = int(numbers[:, -1].sum())
        self.values = dict(zip(self.names, numbers[:, :-1].unbind(1), strict=True))
        return {name: float(value.mean()) for name, value in self.values.items()}
