"""Saliency that needs no training: what moves by itself, and what has a colour of its own.

The frames before and behind are laid over a frame along the motion of the camera (an affine map
found by robust least squares); what then still differs moves by itself. Where nothing does, colours
that the border of the frame lacks take its place. The spectral residual of each frame (Hou and
Zhang 2007) adds a little. Colours of what was found so far, against those around it, then draw its
outline. Motion and colour together find a foreground in FAME (Ding et al. 2022) and in Papazoglou
and Ferrari (2013), by other means.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lightning_vssl.tracking.saliency import Saliency

_LEVELS = ((16, 5), (32, 3))  # short side and steps of the search for the camera's motion
_AMENDS = 2  # steps on the finest level for maps that were put together
_NOISE = 2 / 255  # of a pixel's grey
_FAINT = 0.02  # slope of grey a pixel, under which a difference says little about motion
_TEXTURE = 2.5  # motion counts from so many times the median of its frame
_BORDER = 0.08  # width of the border, in short sides
_SPREAD = 0.5  # standard deviation of the middle, in sides of the frame
_BINS = 12  # of each of three colour axes
_BLUR = 0.8  # of the colour counts, in bins
_SURE = 0.02  # share of the frame whose motion says how far motion can be trusted
_SEED = 0.5  # what the colours of the object are taken from
_HALF = 0.35  # evidence of the place alone that makes it salient
_SPECTRAL = 0.3  # weight of the spectral residual against the place
_PLAIN = 1.2  # spectral residual, in means of its frame, that says nothing
_COLOUR = 0.6  # weight of the colours against the place
_CLIP = 2.5  # most that a colour can say, in nats
_ROUNDS = 2
_AT_ONCE = 32  # pairs of frames that fit a processor's cache
_COUNTED = 64  # frames at most whose colours are counted


@dataclass(frozen=True)
class MotionSaliency(Saliency):
    """Motion against the camera's, and colour contrast; for videos, not for single pictures.

    Args:
        lag: Frames between two that are compared. A slow object needs a longer time than two
            frames of 25 a second.
        still: Motion that counts half, in pixels of the working size during the lag.
        steady: Frames before and behind over which motion is averaged.
        contrast: Weight of colours that the border lacks, where nothing moves, in [0, 1].
        centre: Weight of the middle of the frame, in [0, 1].
        short_side: Working size: pixels that the frame's short side is scaled down to.

    Raises:
        ValueError: If a number is out of its range.
    """

    lag: int = 3
    still: float = 0.25
    steady: int = 3
    contrast: float = 0.4
    centre: float = 0.4
    short_side: int = 64

    def __post_init__(self) -> None:
        if self.lag < 1 or self.steady < 0 or not self.still > 0:
            raise ValueError(
                f"lag={self.lag}, steady={self.steady}, still={self.still}: 1 or more frames, 0 or "
                "more frames, above 0 pixels"
            )
        if not (0 <= self.contrast <= 1 and 0 <= self.centre <= 1):
            raise ValueError(f"contrast={self.contrast}, centre={self.centre}: each 0 to 1")
        if self.short_side < 16:
            raise ValueError(f"short_side={self.short_side}: 16 or more")

    @property
    def settings(self) -> dict[str, object]:
        """The settings."""
        return asdict(self)

    @torch.no_grad()
    def __call__(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tensor:
        """Finds what is salient; see `Saliency.__call__`. Maps are of the working size."""
        pixels = _small(frames.cpu().float() / 255, self.short_side)
        grey = pixels.mean(1)  # (F, h, w)
        motion = self._motion(grey)
        bins = _colour_bins(pixels)
        seed = self._seed(motion, bins)
        place = torch.log((_mean(seed) + 0.02) / _HALF)
        place = place + _SPECTRAL * torch.log(spectral_residual(grey) / _PLAIN).clamp(-1.5, 1.5)
        maps = seed
        for _ in range(_ROUNDS):
            few, some = bins[:: -(-len(bins) // _COUNTED)], maps[:: -(-len(bins) // _COUNTED)]
            inside = _counts(few, (some - _SEED).clamp(min=0))
            outside = _counts(few, (1 - some) * (0.1 + _neighbourhood(some)))
            says = torch.log((inside + 1e-5) / (outside + 1e-5)).clamp(-_CLIP, _CLIP)
            maps = torch.sigmoid(_mean(place + _COLOUR * says[bins]))
        return maps

    def _motion(self, grey: Tensor) -> Tensor:
        """How surely each pixel moves by itself, (F, h, w) in [0, 1)."""
        lag = min(self.lag, len(grey) - 1)
        if lag < 1:
            return torch.zeros_like(grey)
        early, late = grey[:-lag], grey[lag:]
        speed = torch.full_like(grey, torch.inf)
        for first in range(0, len(early), _AT_ONCE):
            a, b = early[first : first + _AT_ONCE], late[first : first + _AT_ONCE]
            forth, back = camera_motion(grey[first : first + len(a) + lag], lag)
            for start, left in (
                (first, _speed(a, b, forth)),
                (first + lag, _speed(b, a, back)),
            ):
                part = speed[start : start + len(left)]
                torch.minimum(part, left, out=part)
        # By the smaller of both: what comes into sight behind an object differs to one side alone.
        speed[speed.isinf()] = 0
        least = _TEXTURE * speed.flatten(1)[:, ::3].median(1).values
        half = least.clamp(min=self.still)[:, None, None]
        sure = speed.square() / (speed.square() + half.square())
        width = min(2 * self.steady + 1, len(sure))
        steady = ndimage.uniform_filter1d(sure.numpy(), width, axis=0, mode="nearest")
        return torch.from_numpy(steady)

    def _seed(self, motion: Tensor, bins: Tensor) -> Tensor:
        """What is salient by its motion, or its contrast with the border, (F, h, w) in [0, 1]."""
        height, width = motion.shape[-2:]
        rows, columns = (torch.arange(side).add(0.5) / side - 0.5 for side in (height, width))
        away = rows.square()[:, None] + columns.square()
        middle = torch.exp(-away / (2 * _SPREAD**2))  # (h, w)
        edge = max(1, round(_BORDER * min(height, width)))
        border = torch.ones(height, width)
        border[edge:-edge, edge:-edge] = 0
        some = slice(None, None, -(-len(bins) // _COUNTED))
        outer = _counts(bins[some], border * (1 - motion[some]))
        inner = _counts(bins[some], ((1 - border) * middle).expand_as(motion[some]))
        contrast = ((inner - outer) / (inner + outer + 1e-6)).clamp(min=0)[bins]
        most = max(1, round(_SURE * height * width))
        trust = motion.flatten(1).topk(most, dim=1).values.mean()
        seed = 1 - (1 - motion) * (1 - self.contrast * (1 - trust) * _mean(contrast))
        return seed * (1 - self.centre + self.centre * middle)


def spectral_residual(grey: Tensor) -> Tensor:
    """What the amplitudes of a picture do not let expect (Hou and Zhang 2007).

    Args:
        grey: (F, h, w) of about 64 pixels, as in the paper.

    Returns:
        (F, h, w), in means of each picture; 0 or more.
    """
    spectrum = torch.fft.fft2(grey)
    size = spectrum.abs().add(1e-8).log()
    found = torch.fft.ifft2(torch.polar((size - _mean(size)).exp(), spectrum.angle())).abs()
    blurred = ndimage.gaussian_filter(found.square().numpy(), (0, 2.5, 2.5), mode="nearest")
    smooth = torch.from_numpy(blurred).clamp(min=1e-12)
    return smooth / smooth.mean((1, 2), keepdim=True)


def camera_motion(pictures: Tensor, lag: int = 1) -> tuple[Tensor, Tensor]:
    """Finds the affine map of most of a picture onto a later one (Gauss-Newton, coarse to fine).

    Maps from each picture to the next are put together and then set right: over a longer time a
    camera moves too far for the search. Weights of Geman and McClure leave out what does not
    follow the rest.

    Args:
        pictures: (F, h, w) grey, in [0, 1], in the order of the video.
        lag: From which to which: at least 1, less than F.

    Returns:
        Two times (F - lag, 2, 3), in the coordinates of `torch.nn.functional.affine_grid` (-1 to
        1, x before y): where a place of a picture is found ``lag`` pictures on, and the other way.
    """
    maps = torch.eye(2, 3).repeat(len(pictures) - 1, 1, 1)
    for short_side, steps in _LEVELS:
        small = _small(pictures[:, None], short_side)[:, 0]
        for _ in range(steps):
            maps = maps + _step(small[:-1], small[1:], maps)
    full = _full(maps)
    onward = full[: len(full) - lag + 1]
    for later in range(1, lag):
        onward = full[later : len(full) - lag + 1 + later] @ onward
    maps = onward[:, :2]
    for _ in range(_AMENDS if lag > 1 else 0):
        maps = maps + _step(small[:-lag], small[lag:], maps)
    return maps, torch.linalg.inv(_full(maps))[:, :2]


def _full(maps: Tensor) -> Tensor:
    """Maps (P, 2, 3) as (P, 3, 3)."""
    return torch.cat([maps, maps.new_tensor([[[0.0, 0, 1]]]).expand(len(maps), 1, 3)], dim=1)


def _step(first: Tensor, second: Tensor, maps: Tensor) -> Tensor:
    """One step of the search, (P, 2, 3)."""
    height, width = first.shape[-2:]
    places = _places(height, width)
    found = maps @ places  # (P, 2, h * w)
    seen = _sampled(second, found)
    across = functional.pad(seen[:, 1:-1, 2:] - seen[:, 1:-1, :-2], (1, 1, 1, 1)) * width / 4
    down = functional.pad(seen[:, 2:, 1:-1] - seen[:, :-2, 1:-1], (1, 1, 1, 1)) * height / 4
    left = (first - seen).flatten(1)  # (P, h * w)
    spread = 1.5 * left[:, ::3].abs().median(1, keepdim=True).values + _NOISE
    inside = found.abs().amax(1) < 1
    weights = inside * (spread.square() / (spread.square() + left.square())).square()
    slopes = torch.stack([across, down], dim=1).flatten(2)  # (P, 2, h * w)
    table = (slopes[:, :, None] * places).flatten(1, 2)  # (P, 6, h * w)
    weighted = table * weights[:, None]
    normal = weighted @ table.mT  # (P, 6, 6)
    normal = normal + torch.diag_embed(1e-3 * normal.diagonal(dim1=1, dim2=2) + 1e-6)
    step: Tensor = torch.linalg.solve(normal, weighted @ left[..., None])
    return step.reshape(-1, 2, 3)


def _places(height: int, width: int) -> Tensor:
    """X and y of the pixels' middles, -1 to 1, and 1, (3, h * w)."""
    rows, columns = (torch.arange(n).add(0.5) * 2 / n - 1 for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)]).flatten(1)


def _speed(here: Tensor, other: Tensor, maps: Tensor) -> Tensor:
    """Motion left between pictures (P, h, w) and others seen along maps (P, 2, 3), in pixels.

    The difference of grey by its slope, over three by three pixels; infinite where the other does
    not reach.
    """
    places = maps @ _places(*here.shape[-2:])
    across = functional.pad(here[:, :, 2:] - here[:, :, :-2], (1, 1)) / 2
    down = functional.pad(here[:, 2:] - here[:, :-2], (0, 0, 1, 1)) / 2
    slope = across.square() + down.square()
    change = (here - _sampled(other, places)).abs() * slope.sqrt()
    speed = _mean(change) / (_mean(slope) + _FAINT**2)
    return speed.masked_fill_((places.abs().amax(1) > 1).view_as(speed), torch.inf)


def _sampled(pictures: Tensor, places: Tensor) -> Tensor:
    """Pictures (P, h, w) at places (P, 2, h * w)."""
    grid = places.mT.reshape(len(pictures), *pictures.shape[-2:], 2)
    return functional.grid_sample(
        pictures[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )[:, 0]


def _small(pictures: Tensor, short_side: int) -> Tensor:
    """Pictures (P, C, h, w) scaled down to a short side."""
    height, width = pictures.shape[-2:]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pictures
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return functional.interpolate(pictures, size, mode="area")


def _mean(pictures: Tensor) -> Tensor:
    """Mean over three by three pixels of (P, h, w); the border is repeated."""
    wide = functional.pad(pictures[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _neighbourhood(pictures: Tensor) -> Tensor:
    """Mean over about a third of the short side, of (P, h, w)."""
    height, width = pictures.shape[-2:]
    coarse = functional.avg_pool2d(pictures[:, None], 4, ceil_mode=True, count_include_pad=False)
    wide = functional.pad(coarse, (2, 2, 2, 2), mode="replicate")
    means = functional.avg_pool2d(wide, 5, stride=1)
    return functional.interpolate(means, (height, width), mode="nearest")[:, 0]


def _colour_bins(pixels: Tensor) -> Tensor:
    """Number of the colour of each pixel, (F, h, w), of (F, 3, h, w) in [0, 1]."""
    red, green, blue = pixels.unbind(1)
    light = (red + green + blue) * (_BINS / 3)
    # Colours are seldom vivid, so these two axes are cut twice and three times as fine.
    warm = (red - blue) * _BINS + _BINS / 2
    leafy = (2 * green - red - blue) * (0.75 * _BINS) + _BINS / 2
    found = [axis.clamp_(0, _BINS - 0.5).int() for axis in (light, warm, leafy)]
    return (found[0] * _BINS + found[1]) * _BINS + found[2]


def _counts(bins: Tensor, weights: Tensor) -> Tensor:
    """Shares of the colours, (bins,), blurred; all 0 where nothing has a weight."""
    counts = np.bincount(bins.numpy().ravel(), weights.numpy().ravel(), minlength=_BINS**3)
    cube = counts.reshape(_BINS, _BINS, _BINS)
    blurred = ndimage.gaussian_filter(cube, _BLUR, mode="constant")
    return torch.from_numpy(blurred.ravel() / (blurred.sum() + 1e-9)).float()
