"""Which part of the picture a clip shows.

A window is a small frozen dataclass. ``sample(height, width, clips, rng)`` takes the size of the
video's frames as displayed and returns one rectangle per clip, xyxy in pixels of the video, which
the reader scales to ``size``. "Resize, then crop" is the same as one rectangle of the original
taken to the size of the crop, and costs one conversion.

A window that takes several crops of each clip (`ThreeCrops`) says so in ``crops``: it returns
``clips * crops`` rectangles, the crops of one clip after another, and the dataset repeats each
clip's frames as often.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

Rectangles = npt.NDArray[np.float64]
Interpolation = Literal["bilinear", "bicubic"]
"""How a rectangle is scaled, antialiased in either case."""


class Windows(ABC):
    """Chooses rectangles. Concrete windows are the dataclasses below."""

    crops: ClassVar[int] = 1
    """Rectangles per clip."""

    interpolation: Interpolation = "bilinear"
    """How they are scaled."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(H, W) of a frame of the sample, in pixels."""

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) that a rectangle of such a video is scaled to: ``shape``, but for a canvas."""
        return self.shape

    @abstractmethod
    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles.

        Args:
            height: Height of the video as displayed, in pixels.
            width: Its width.
            clips: Clips of the sample.
            rng: The source of every draw.

        Returns:
            (clips * crops, 4) xyxy, inside [0, width] x [0, height].
        """


@dataclass(frozen=True)
class RandomResizedCrop(Windows):
    """A rectangle of random area and shape, as torchvision's transform of that name draws it.

    Up to ten tries to draw a rectangle that fits; then the largest centred one within ``ratio``.

    Args:
        size: Side of the square that it is scaled to.
        scale: Share of the picture's area, uniform between the two. Fine-tuning of RSPNet
            (0.25, 1), CVRL (0.3, 1), VITO (0.4, 1), AVID (0.08, 1).
        ratio: Width over height, between the two. CVRL (0.5, 2).
        log_ratio: Draw the logarithm of the ratio uniformly; otherwise, as CVRL, the ratio itself.
        independent: Every clip has its own rectangle; otherwise all clips of a sample share one.
        interpolation: How it is scaled. BYOL and VITO: ``bicubic``.
        shared: Where some clips share one, for each clip the one whose rectangle it takes; see
            `sources`. RSPNet (0, 1, 1).
    """

    size: int = 224
    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    log_ratio: bool = True
    independent: bool = True
    interpolation: Interpolation = "bilinear"
    shared: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_interpolation(self.interpolation)
        if self.shared is not None:
            sources(self.shared, len(self.shared))
            if not self.independent:
                raise ValueError(
                    f"shared={self.shared} with independent=False: all clips share one rectangle "
                    "then; leave out one of the two"
                )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: two shares of the area, 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: two ratios, 0 < low <= high")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size, self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        count = clips if self.independent else 1
        drawn = np.stack([self._one(height, width, rng) for _ in range(count)])
        taken = sources(self.shared, clips) if self.independent else (0,) * clips
        return drawn[list(taken)]

    def _one(self, height: int, width: int, rng: np.random.Generator) -> Rectangles:
        for _ in range(10):
            area, shape, down, right = rng.random(4)
            target = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = self._ratio(shape)
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
                return _box(left, top, w, h)
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return _box((width - w) // 2, (height - h) // 2, w, h)

    def _ratio(self, draw: float) -> float:
        low, high = self.ratio
        if self.log_ratio:
            return math.exp(math.log(low) + draw * (math.log(high) - math.log(low)))
        return low + draw * (high - low)


@dataclass(frozen=True)
class ScaleCrop(Windows):
    """CtP's pretraining crop: the short side to one of several lengths, then a random square.

    Args:
        size: Side of the square.
        short_sides: Lengths to draw from, uniformly; each at least ``size``.
        independent: Every clip has its own rectangle; otherwise all clips of a sample share one.
    """

    size: int = 112
    short_sides: tuple[int, ...] = (112, 128, 144)
    independent: bool = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not self.short_sides or min(self.short_sides) < self.size:
            raise ValueError(
                f"short_sides={self.short_sides}: at least one, none below size={self.size}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size, self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        count = clips if self.independent else 1
        drawn = np.empty((count, 4))
        for clip in range(count):
            short, down, right = rng.random(3)
            side = self.short_sides[int(short * len(self.short_sides))]
            resized = _short_side(height, width, side)
            drawn[clip] = _crop(height, width, resized, (self.size, self.size), (down, right))
        return drawn if self.independent else np.repeat(drawn, clips, axis=0)


@dataclass(frozen=True)
class SizeCrop(Windows):
    """CtP's crop for fine-tuning and testing: resize to an exact size, then a square.

    The sizes are for landscape frames; for portrait ones width and height are swapped. The shape
    of the picture is not kept.

    Args:
        size: Side of the square.
        sizes: (width, height) to draw from, uniformly; none with a side below ``size``. CtP's test
            takes (171, 128) alone.
        place: Where the square lies: ``random``, or in the ``centre``.
        independent: Every clip has its own rectangle; otherwise all clips of a sample share one.
    """

    size: int = 112
    sizes: tuple[tuple[int, int], ...] = ((149, 112), (171, 128), (192, 144))
    place: Literal["random", "centre"] = "random"
    independent: bool = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not self.sizes or min(min(pair) for pair in self.sizes) < self.size:
            raise ValueError(
                f"sizes={self.sizes}: at least one (width, height), no side below size={self.size}"
            )
        if self.place not in ("random", "centre"):
            raise ValueError(f"place={self.place!r}: choose random or centre")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size, self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        count = clips if self.independent else 1
        drawn = np.empty((count, 4))
        for clip in range(count):
            which, down, right = rng.random(3)
            long, short = self.sizes[int(which * len(self.sizes))]
            resized = (short, long) if width >= height else (long, short)
            place = (down, right) if self.place == "random" else None
            drawn[clip] = _crop(height, width, resized, (self.size, self.size), place)
        return drawn if self.independent else np.repeat(drawn, clips, axis=0)


@dataclass(frozen=True)
class CentreCrop(Windows):
    """The short side to ``resize``, then the square in the centre. Nothing is drawn.

    Args:
        resize: Length of the short side; at least ``size``. AVID and VITO: ``int(224 / 0.875)``.
        size: Side of the square.
        interpolation: How it is scaled. BYOL's test of images: ``bicubic``.
    """

    resize: int = 256
    size: int = 224
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_interpolation(self.interpolation)
        if self.resize < self.size:
            raise ValueError(f"resize={self.resize}: not below size={self.size}")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size, self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        resized = _short_side(height, width, self.resize)
        return np.tile(_crop(height, width, resized, (self.size, self.size), None), (clips, 1))


@dataclass(frozen=True)
class CentreSquare(Windows):
    """RSPNet's and PreViTS's test crop: the largest square in the centre. Nothing is drawn.

    Args:
        size: Side of the square that it is scaled to.
    """

    size: int = 112

    def __post_init__(self) -> None:
        _check_size(self.size)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size, self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        side = min(height, width)
        box = _box(round((width - side) / 2), round((height - side) / 2), side, side)
        return np.tile(box, (clips, 1))


@dataclass(frozen=True)
class ThreeCrops(Windows):
    """Three squares along the long side, for "10 clips x 3 crops". Nothing is drawn.

    The short side becomes ``size``; the squares are the left (or upper) one, the one in the
    centre, the right (or lower) one.

    Args:
        size: Side of the squares: CVRL and ConST-CL 256.
    """

    crops: ClassVar[int] = 3

    size: int = 256

    def __post_init__(self) -> None:
        _check_size(self.size)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size, self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        resized = _short_side(height, width, self.size)
        first, last = (0.0, 0.0), (math.nextafter(1.0, 0.0), math.nextafter(1.0, 0.0))
        square = (self.size, self.size)
        boxes = [_crop(height, width, resized, square, place) for place in (first, None, last)]
        return np.tile(np.stack(boxes), (clips, 1))  # (clips * 3, 4), crops of a clip together


@dataclass(frozen=True)
class WholeFrame(Windows):
    """The whole picture, scaled to ``size``; its shape is not kept. Nothing is drawn.

    Args:
        size: (height, width) that it is scaled to.
    """

    size: tuple[int, int] = (128, 171)

    def __post_init__(self) -> None:
        for side in self.size:
            _check_size(side)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        return np.tile(_box(0, 0, width, height), (clips, 1))


@dataclass(frozen=True)
class Canvas(Windows):
    """The whole picture in its own shape, in the upper left of a canvas. Nothing is drawn.

    The picture is scaled until it fills the canvas one way; what is left is filled. The rectangle
    that a sample calls ``crop`` is what the canvas shows, and reaches beyond the picture.

    Args:
        size: (height, width) of the canvas. ConST-CL on AVA (section 4.2): 400 pixels.
        fill: Value of the rest, 0 to 255. 128 is about zero once pixels are normalised.
    """

    size: tuple[int, int] = (400, 400)
    fill: int = 128

    def __post_init__(self) -> None:
        for side in self.size:
            _check_size(side)
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill={self.fill}: a pixel's value, 0 to 255")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the picture on the canvas."""
        scale = min(self.size[0] / height, self.size[1] / width)
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        return min(h, self.size[0]), min(w, self.size[1])

    def sample(self, height: int, width: int, clips: int, rng: np.random.Generator) -> Rectangles:
        """Chooses rectangles; see `Windows.sample`."""
        return np.tile(_box(0, 0, width, height), (clips, 1))


def sources(shared: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    """Tells from which clip of a sample each takes what is drawn by chance.

    Args:
        shared: For each clip the clip whose draws it takes: itself, or an earlier one that takes
            its own. (0, 1, 1): the last two share theirs. None: each its own. Of a sample with
            fewer clips the first numbers count.
        count: Clips of the sample.

    Returns:
        A number for each clip.

    Raises:
        ValueError: If it names too few clips, or a clip that does not draw.
    """
    if shared is None:
        return tuple(range(count))
    if len(shared) < count:
        raise ValueError(f"shared={shared}: one number per clip is needed, and there are {count}")
    if not all(
        0 <= source <= clip and shared[source] == source for clip, source in enumerate(shared)
    ):
        raise ValueError(
            f"shared={shared}: each number is that of the clip itself, or of an earlier one that "
            "shares with none before it"
        )
    return shared[:count]


def _box(left: float, top: float, width: float, height: float) -> Rectangles:
    return np.array([left, top, left + width, top + height], np.float64)


def _short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """(H, W) of the picture whose short side has become ``side``, rounded down."""
    if height <= width:
        return side, side * width // height
    return side * height // width, side


def _crop(
    height: int,
    width: int,
    resized: tuple[int, int],
    size: tuple[int, int],
    place: tuple[float, float] | None,
) -> Rectangles:
    """The part of a (height, width) picture that a crop of its resized form shows.

    Args:
        height: Height of the picture.
        width: Its width.
        resized: (H, W) of the resized picture.
        size: (H, W) of the crop, in pixels of the resized picture.
        place: Two numbers in [0, 1) that choose the whole pixel where the crop starts, downwards
            and to the right; None for the centre.
    """
    room = resized[0] - size[0], resized[1] - size[1]
    if place is None:
        top, left = round(room[0] / 2), round(room[1] / 2)
    else:
        top, left = int(place[0] * (room[0] + 1)), int(place[1] * (room[1] + 1))
    y, x = height / resized[0], width / resized[1]
    box = _box(left * x, top * y, size[1] * x, size[0] * y)
    return np.minimum(box, [width, height, width, height])  # a sum may round beyond the edge


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size={size}: must be 1 or more pixels")


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in get_args(Interpolation):
        raise ValueError(
            f"interpolation={interpolation!r}: choose {' or '.join(get_args(Interpolation))}"
        )
