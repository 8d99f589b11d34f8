"""Drawing of the built-in videos: textured objects that move over a moving textured background.

Every video is a pure function of (seed, split, index). Numbers come from a counter-based hash
(the finaliser of splitmix64, Steele et al. 2014); textures, warps and blending are integer NumPy;
the few sines and exponentials are rounded to 2^-16 before use. The pixels are therefore the same on
every machine, whatever the version of NumPy or the width of its vector instructions.

One frame says nothing about the motion, by construction. At any frame the position of the main
object is uniform over the frame, its orientation uniform over the circle and the logarithm of its
size uniform over one range, jointly independent, for every motion:

* the frame is a torus, so a translation keeps a uniform position uniform (what leaves at one side
  enters at the other, at any time in full view);
* growth runs through the whole range of sizes in a sawtooth wave of uniform phase (slow growth,
  then three frames of return), whose value is uniform in the range at every frame;
* the oscillation swings about a uniform centre; rotation starts from a uniform angle.

Shapes, textures, colours, the other objects and the pan of the background are drawn without
looking at the motion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]
Borders = Literal["wrap", "bounce"]

MOTIONS: tuple[str, ...] = (
    "MoveLeft",
    "MoveRight",
    "MoveUp",
    "MoveDown",
    "TurnClockwise",
    "Grow",
    "Oscillate",
    "Rest",
)
"""Classes of motion of the main object; equally frequent, so chance is 12.5 %."""

OBJECTS: tuple[str, ...] = ("Disc", "Ring", "Square", "Triangle", "Star", "Cross")
"""Classes of shape of the main object; equally frequent, independent of the motion."""

SIZES: tuple[tuple[int, int], ...] = ((128, 128), (128, 144), (112, 128), (112, 112), (144, 128))
"""Default frame sizes, (height, width) in pixels."""

RATES: tuple[float, ...] = (15.0, 24.0, 25.0, 30.0)
"""Default frame rates, frames per second."""

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_SPLITS: dict[str, int] = {"train": 0, "test": 1}
_CELLS = len(MOTIONS) * len(OBJECTS)
_RADII = (0.14, 0.31)  # of the main object, in short sides of the frame
_RESET = 3  # frames in which a grown object returns to its smallest size

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


class Draws:
    """A stream of random numbers that depends on its name alone.

    Args:
        parts: Integers that name the stream, such as (seed, split, index, part).
    """

    def __init__(self, *parts: int) -> None:
        state = 0
        for part in parts:
            state = _mix((state + _GAMMA + (part & _MASK)) & _MASK)
        self._state = state

    def words(self, n: int) -> NDArray[np.uint64]:
        """Draws ``n`` uniform 64-bit words, (n,)."""
        counter = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        value = counter + np.uint64(self._state)
        self._state = (self._state + n * _GAMMA) & _MASK
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
        return value ^ (value >> np.uint64(31))

    def word(self) -> int:
        """Draws one uniform 64-bit word."""
        self._state = (self._state + _GAMMA) & _MASK
        return _mix(self._state)

    def below(self, n: int) -> int:
        """Draws an integer uniform on 0..n-1."""
        return (self.word() * n) >> 64

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draws a number uniform on [low, high)."""
        return low + (high - low) * (self.word() >> 11) * 2.0**-53

    def permutation(self, n: int) -> list[int]:
        """Draws an order of 0..n-1 (Fisher-Yates)."""
        order = list(range(n))
        for last in range(n - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


def labels(seed: int, index: int, split: Split) -> tuple[int, int]:
    """Looks up the labels of a video without drawing it.

    Eight videos in a row (from a multiple of 8) hold each motion once, 48 in a row (from a multiple
    of 48) each pair of a motion and an object once, in an order that depends on the seed.

    Args:
        seed: Seed of the collection.
        index: Number of the video in its split, from 0.
        split: ``"train"`` or ``"test"``.

    Returns:
        The motion (an index into `MOTIONS`) and the object (an index into `OBJECTS`).

    Raises:
        ValueError: If the index is negative or the split has another name.
    """
    if index < 0:
        raise ValueError(f"index must be at least 0, got {index}")
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    block, cell = divmod(index, _CELLS)
    row, column = divmod(cell, len(MOTIONS))
    motion = Draws(seed, _SPLITS[split], 1, block, row).permutation(len(MOTIONS))[column]
    # Each motion meets the objects in its own order: row by row, a different object.
    order = Draws(seed, _SPLITS[split], 2, block, motion).permutation(len(OBJECTS))
    return motion, order[row]


# --- tracks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """Where an object is, frame by frame.

    Attributes:
        x: Centre, pixels from the left edge, (T,); on a torus not yet reduced to the frame.
        y: Centre, pixels from the top edge, (T,).
        radius: Radius of the circle about the shape, pixels, (T,).
        angle: Orientation in radians, clockwise as seen, (T,).
    """

    x: Floats
    y: Floats
    radius: Floats
    angle: Floats


def _rounded(values: Sequence[float] | Floats) -> Floats:
    """Rounds to 2^-16, so that the last bit of a machine's sine changes nothing."""
    return np.rint(np.asarray(values, dtype=np.float64) * 65536.0) / 65536.0


def _sawtooth(phase: float) -> float:
    """Slow rise from 0 to 1 followed by a quick fall; ``phase`` in frames over the cycle of 60."""
    cycle = 60.0
    at = phase % cycle
    rise = cycle - _RESET
    return at / rise if at < rise else (cycle - at) / _RESET


def _main_track(draws: Draws, motion: str, frames: int, height: int, width: int) -> Track:
    """Draws the motion of the main object; see the module's head for the laws that are kept."""
    short = min(height, width)
    x, y = draws.uniform(0, width), draws.uniform(0, height)
    angle = draws.uniform(0, 2 * math.pi)
    size = draws.uniform()  # place in the logarithmic range of radii
    pace = draws.uniform()  # of whatever the motion is
    heading = draws.uniform(0, 2 * math.pi)
    time = np.arange(frames, dtype=np.float64)

    speed = (0.010 + 0.009 * pace) * short  # pixels per frame
    across = {"MoveLeft": -speed, "MoveRight": speed}.get(motion, 0.0)
    down = {"MoveUp": -speed, "MoveDown": speed}.get(motion, 0.0)
    xs, ys = x + across * time, y + down * time
    if motion == "Oscillate":
        reach = (0.09 + 0.04 * pace) * short
        period = draws.uniform(12.0, 16.0)
        start = draws.uniform()
        swing = _rounded([math.sin(2 * math.pi * (t / period + start)) for t in range(frames)])
        xs = xs + reach * float(_rounded([math.cos(heading)])[0]) * swing
        ys = ys + reach * float(_rounded([math.sin(heading)])[0]) * swing
    turn = math.radians(5.0 + 4.0 * pace) if motion == "TurnClockwise" else 0.0
    phase = size * 60.0
    places = [_sawtooth(phase + t) if motion == "Grow" else size for t in range(frames)]
    low, high = _RADII
    radii = _rounded([short * low * math.exp(math.log(high / low) * place) for place in places])
    return Track(xs, ys, radii, angle + turn * time)


def _other_track(draws: Draws, frames: int, height: int, width: int) -> Track:
    """Draws the slow drift of another, smaller object."""
    short = min(height, width)
    x, y = draws.uniform(0, width), draws.uniform(0, height)
    speed = draws.uniform(0.0, 0.003) * short
    heading = draws.uniform(0, 2 * math.pi)
    time = np.arange(frames, dtype=np.float64)
    return Track(
        x + speed * float(_rounded([math.cos(heading)])[0]) * time,
        y + speed * float(_rounded([math.sin(heading)])[0]) * time,
        np.full(frames, float(_rounded([draws.uniform(0.075, 0.11) * short])[0])),
        np.full(frames, draws.uniform(0, 2 * math.pi)),
    )


def _reflected(values: Floats, margin: float, length: int) -> Floats:
    """Folds a straight path into [margin, length - margin]: it bounces off the borders."""
    room = max(length - 2 * margin, 1.0)
    at = np.mod(values - margin, 2 * room)
    return np.asarray(margin + np.where(at < room, at, 2 * room - at))


def _bounced(track: Track, height: int, width: int) -> Track:
    """Keeps a path inside the frame; it sets out in its own direction."""
    margin = float(track.radius.max()) + 1.0

    def folded(values: Floats, length: int) -> Floats:
        room = max(length - 2 * margin, 1.0)
        start = margin + (float(values[0]) % length) / length * room
        return _reflected(values - values[0] + start, margin, length)

    return Track(folded(track.x, width), folded(track.y, height), track.radius, track.angle)


# --- textures -----------------------------------------------------------------------------------


def _triangle_wave(phase: Ints) -> Ints:
    """Triangle wave of period 512 with values 0..255."""
    at = phase & 511
    return np.asarray(np.minimum(at, 511 - at), dtype=np.int32)


def _noise(draws: Draws, size: int, cells: int, octaves: int) -> Ints:
    """Draws periodic value noise.

    Args:
        draws: Source of the lattice values.
        size: Side of the field in pixels.
        cells: Lattice cells per side in the coarsest octave.
        octaves: Number of octaves; each has twice the cells and half the amplitude of the last.

    Returns:
        (size, size) integers in 0..255, stretched to the whole range.
    """
    total = np.zeros((size, size), dtype=np.int32)
    for octave in range(octaves):
        n = cells << octave
        lattice = (draws.words(n * n) >> np.uint64(56)).astype(np.int32).reshape(n, n)
        at = np.arange(size, dtype=np.int32) * (n * 256) // size
        cell, part = at >> 8, at & 255
        weight = (part * part * (768 - 2 * part)) >> 16  # smooth step, 0..255
        after = (cell + 1) % n
        rows = lattice[cell] * (256 - weight[:, None]) + lattice[after] * weight[:, None]
        field = rows[:, cell] * (256 - weight) + rows[:, after] * weight
        # Shifted, so that the octaves' lattices do not line up.
        shift = (draws.below(size), draws.below(size))
        total += np.roll(field >> (10 + octave), shift, axis=(0, 1))
    low, high = int(total.min()), int(total.max())
    return np.asarray((total - low) * 255 // max(high - low, 1), dtype=np.int32)


def _spots(draws: Draws, size: int, cells: int) -> Ints:
    """Draws one round spot in every cell of a periodic, jittered grid; values 0..255."""
    jitter = (draws.words(2 * cells * cells) >> np.uint64(56)).astype(np.int32)
    jitter = jitter.reshape(2, cells, cells)
    at = np.arange(size, dtype=np.int32) * (cells * 256) // size  # 256 units a cell
    cell = at >> 8
    nearest = np.full((size, size), 1 << 20, dtype=np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = (cell + dy) % cells, (cell + dx) % cells
            spot = jitter[:, row[:, None], column[None, :]]  # (2, size, size)
            y = at[:, None] - ((cell + dy) << 8)[:, None] - spot[0]
            x = at[None, :] - ((cell + dx) << 8)[None, :] - spot[1]
            nearest = np.minimum(nearest, x * x + y * y)
    return np.asarray(np.clip(255 - (nearest >> 6), 0, 255), dtype=np.int32)


def _pattern(draws: Draws, size: int, fine: int) -> Ints:
    """Draws one of seven kinds of periodic pattern.

    Args:
        draws: Source of all choices.
        size: Side in pixels.
        fine: How many coarse features fit in a side.

    Returns:
        (size, size) integers in 0..255.
    """
    kind = draws.below(7)
    if kind == 0:  # clouds
        return _noise(draws, size, fine, 4)
    if kind == 1:  # grain
        return _noise(draws, size, 4 * fine, 2)
    if kind == 2:  # marble
        return _triangle_wave(_noise(draws, size, fine, 3) * (5 + draws.below(5)))
    if kind == 3:
        return _spots(draws, size, fine + 1 + draws.below(fine + 1))
    axis = np.arange(size, dtype=np.int32) * 512 // size
    warp = _noise(draws, size, fine, 3)
    if kind == 4:  # bricks: two warped square waves
        wave = 2 * fine
        across = _triangle_wave(axis * wave + 64)[None, :] + (warp >> 2)
        down = _triangle_wave(axis * wave + 64)[:, None] + (warp >> 2)
        joint = np.minimum(np.minimum(across, down) * 4, 255)
        return np.asarray((joint * 3 + warp) >> 2, dtype=np.int32)
    if kind == 5:  # checks
        wave = fine + draws.below(fine + 1)
        across = _triangle_wave(axis * wave + 19)[None, :] - 128
        down = _triangle_wave(axis * wave + 7)[:, None] - 128
        checks = np.clip(128 + ((across * down) >> 5), 0, 255)
        return np.asarray((checks * 3 + warp) >> 2, dtype=np.int32)
    a, b = draws.below(2 * fine + 1) - fine, draws.below(2 * fine) + 1  # stripes
    return _triangle_wave(axis[None, :] * a + axis[:, None] * b + warp * (1 + draws.below(3)))


def _colour(draws: Draws, light: int, vivid: int = 256) -> Ints:
    """Draws a colour of a given lightness (0..255, Rec. 601), (3,) int32.

    ``vivid`` scales its distance from grey, in 1/256.
    """
    rgb = np.array([80 + draws.below(130) for _ in range(3)], dtype=np.int32)
    now = int(77 * rgb[0] + 150 * rgb[1] + 29 * rgb[2]) >> 8
    rgb = rgb * light // max(now, 1)
    # What is lost to clipping goes to all channels: it greys the colour but keeps its lightness.
    clipped = np.minimum(rgb, 245)
    clipped = light + ((clipped - light) * vivid >> 8)
    lost = light - (int(77 * clipped[0] + 150 * clipped[1] + 29 * clipped[2]) >> 8)
    return np.asarray(np.clip(clipped + lost, 8, 250), dtype=np.int32)


def _texture(draws: Draws, size: int, fine: int, light: int, contrast: int, vivid: int) -> Bytes:
    """Draws a periodic colour texture.

    Args:
        draws: Source of all choices.
        size: Side in pixels.
        fine: How many coarse features fit in a side.
        light: Mean lightness, 0..255.
        contrast: Half the range of lightness.
        vivid: How far from grey, in 1/256.

    Returns:
        (size, size, 3) uint8, RGB.
    """
    stops = [
        _colour(draws, light - contrast, vivid),
        _colour(draws, light, vivid),
        _colour(draws, light + contrast, vivid),
    ]
    steps = np.arange(128, dtype=np.int32)[:, None]
    ramp = np.concatenate(
        [(a * (128 - steps) + b * steps) >> 7 for a, b in pairwise(stops)]
    )  # (256, 3)
    field = _pattern(draws, size, fine)
    field = (field * 7 + _noise(draws, size, 8 * fine, 1)) >> 3  # a little grain on everything
    shade = 208 + (_noise(draws, size, 2, 2) * 96 >> 8)  # uneven light
    return np.asarray(np.clip((ramp[field] * shade[..., None]) >> 8, 0, 255), dtype=np.uint8)


# --- shapes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """One instance of an object class.

    Attributes:
        kind: Index into `OBJECTS`.
        knobs: Three odd (test) or even (train) integers in 0..511 that fix its proportions; the two
            splits therefore share no instance.
    """

    kind: int
    knobs: tuple[int, int, int]

    def knob(self, at: int, low: float, high: float) -> float:
        """Maps a knob to [low, high]."""
        return low + (high - low) * self.knobs[at] / 511.0


def _polar(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Turns (degrees, radius) into (x, y), rounded."""
    flat = _rounded(
        [
            v
            for a, r in points
            for v in (r * math.cos(math.radians(a)), r * math.sin(math.radians(a)))
        ]
    )
    return [(float(flat[i]), float(flat[i + 1])) for i in range(0, len(flat), 2)]


def _outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners of the shapes that are polygons, within radius 0.95."""
    name = OBJECTS[shape.kind]
    if name == "Square":
        half = shape.knob(0, 40.0, 50.0)
        return _polar([(a, 0.95) for a in (half, 180 - half, 180 + half, -half)])
    if name == "Triangle":
        lean = shape.knob(0, -12.0, 12.0)
        base = shape.knob(1, 205.0, 222.0)
        return _polar([(90 + lean, 0.95), (base, 0.95), (540 - base, 0.95)])
    if name == "Star":
        inner = shape.knob(0, 0.36, 0.46)
        lean = shape.knob(1, -8.0, 8.0)
        return _polar(
            [(36.0 * i + (lean if i % 2 else 0), 0.95 * (inner if i % 2 else 1)) for i in range(10)]
        )
    arm, long = shape.knob(0, 0.22, 0.34), 0.88  # a cross
    short = shape.knob(1, 0.72, 0.88)
    corners = [(arm, short), (arm, arm), (long, arm)]
    corners += [(x, -y) for x, y in reversed(corners)]
    corners += [(-x, y) for x, y in reversed(corners)]
    return corners


def _inside(shape: Shape, side: int) -> NDArray[np.bool_]:
    """Rasterises a shape on [-1, 1]^2, (side, side)."""
    axis = (np.arange(side, dtype=np.float64) * 2 + 1 - side) / side
    x, y = axis[None, :], axis[:, None]
    if OBJECTS[shape.kind] in ("Disc", "Ring"):
        flat = shape.knob(0, 0.80, 1.0)
        square = x * x + (y / flat) * (y / flat)
        inner = shape.knob(1, 0.45, 0.60) if OBJECTS[shape.kind] == "Ring" else -1.0
        inside = square <= 0.95 * 0.95
        return np.asarray(inside & (square > inner * inner)) if inner > 0 else np.asarray(inside)
    corners = _outline(shape)
    found = np.zeros((side, side), dtype=np.bool_)
    for (x0, y0), (x1, y1) in pairwise([*corners, corners[0]]):
        if y0 == y1:
            continue
        crosses = (y0 <= y) != (y1 <= y)  # (side, 1)
        found ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return found


def _sprite(draws: Draws, shape: Shape, side: int, light: int) -> Bytes:
    """Draws an object in its own coordinates, (side, side, 4) uint8: colour and coverage."""
    inside = _inside(shape, 2 * side)
    count = inside.reshape(side, 2, side, 2).sum(axis=(1, 3), dtype=np.int32)
    body = inside
    for _ in range(max(2, side // 20)):  # an outline: what erosion takes away
        core = body.copy()
        core[1:] &= body[:-1]
        core[:-1] &= body[1:]
        core[:, 1:] &= body[:, :-1]
        core[:, :-1] &= body[:, 1:]
        body = core
    rim = 4 - body.reshape(side, 2, side, 2).sum(axis=(1, 3), dtype=np.int32)  # 0..4
    edge = _colour(draws, 40 if light > 110 else 215)
    rgb = _texture(draws, side, 2, light, 45, vivid=256).astype(np.int32)
    rgb = (rgb * (4 - rim)[..., None] + edge * rim[..., None]) >> 2
    sprite = np.concatenate([rgb, (count * 255 >> 2)[..., None]], axis=-1)
    return np.asarray(sprite, dtype=np.uint8)


# --- scenes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """All that is known of a video before a pixel is drawn.

    Attributes:
        seed: Seed of the collection.
        index: Number of the video in its split.
        split: ``"train"`` or ``"test"``.
        motion: Motion of the main object, an index into `MOTIONS`.
        object: Class of the main object, an index into `OBJECTS`.
        height: Height in pixels.
        width: Width in pixels.
        frames: Number of frames, T.
        fps: Frames per second.
        borders: ``"wrap"``: the frame is a torus. ``"bounce"``: objects stay inside the frame.
        shapes: One instance per object; the first is the main one.
        tracks: Their paths.
        front: Per object, whether it passes in front of the main one.
        lights: Mean lightness of the background and of each object.
        pan: Displacement of the background, pixels, (T, 2) as (x, y).
    """

    seed: int
    index: int
    split: Split
    motion: int
    object: int
    height: int
    width: int
    frames: int
    fps: float
    borders: Borders
    shapes: tuple[Shape, ...]
    tracks: tuple[Track, ...]
    front: tuple[bool, ...]
    lights: tuple[int, ...]
    pan: Floats


@dataclass(frozen=True)
class Drawn:
    """A drawn video and its exact annotation.

    Attributes:
        frames: (T, H, W, 3) uint8, RGB.
        masks: (T, H, W) uint8: which object is seen; 0 background, 1 the main object, 2.. others.
        boxes: (T, N, 4) float32, xyxy in pixels: the box about the whole object, hidden parts
            included. On a torus it belongs to the copy whose centre is inside the frame and may
            reach over the border.
        visible: (T, N, 4) float32: the box about the seen pixels of that copy; NaN if there
            are none.
        cover: (T, N) float32: seen pixels of the object (all copies) over all its pixels, 0..1.
        motion: An index into `MOTIONS`.
        object: An index into `OBJECTS`: the class of the main object.
        objects: The class of every object, N indices into `OBJECTS`.
        fps: Frames per second.
    """

    frames: Bytes
    masks: Bytes
    boxes: NDArray[np.float32]
    visible: NDArray[np.float32]
    cover: NDArray[np.float32]
    motion: int
    object: int
    objects: tuple[int, ...]
    fps: float


def _shape(draws: Draws, kind: int, split: Split) -> Shape:
    parity = _SPLITS[split]
    a, b, c = (2 * draws.below(256) + parity for _ in range(3))
    return Shape(kind, (a, b, c))


def _pan(draws: Draws, frames: int, short: int) -> Floats:
    """Draws a slow pan: a constant drift and a slower sway."""
    heading, sway = draws.uniform(0, 2 * math.pi), draws.uniform(0, 2 * math.pi)
    speed = draws.uniform(0.0, 0.0025) * short
    reach = draws.uniform(0.0, 0.012) * short
    period, start = draws.uniform(60.0, 120.0), draws.uniform()
    path = []
    for t in range(frames):
        wave = reach * math.sin(2 * math.pi * (t / period + start))
        path.append(speed * t * math.cos(heading) + wave * math.cos(sway))
        path.append(speed * t * math.sin(heading) + wave * math.sin(sway))
    return _rounded(path).reshape(frames, 2)


def compose(
    seed: int,
    index: int,
    split: Split,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    borders: Borders = "wrap",
) -> Scene:
    """Plans a video.

    Args:
        seed: Seed of the collection.
        index: Number of the video in its split, from 0.
        split: ``"train"`` or ``"test"``; the two share no texture, shape instance or background.
        size: (height, width) in pixels; by default one of `SIZES`.
        frames: Number of frames; by default 48 to 72.
        fps: Frames per second; by default one of `RATES`.
        borders: ``"wrap"`` keeps the motion label true in every part of the video. ``"bounce"``
            keeps objects whole (for tracking and segmentation) and lets another object pass over
            the main one in mid-video; the four directions then say only where the object heads
            first.

    Returns:
        The plan, which `render` draws.

    Raises:
        ValueError: If the size, the number of frames or the rate is out of range.
    """
    motion, kind = labels(seed, index, split)
    draws = Draws(seed, _SPLITS[split], 3, index)
    drawn_size = SIZES[draws.below(len(SIZES))]
    drawn_frames = 48 + draws.below(25)
    drawn_fps = RATES[draws.below(len(RATES))]
    height, width = size or drawn_size
    frames = drawn_frames if frames is None else frames
    fps = drawn_fps if fps is None else fps
    if min(height, width) < 32:
        raise ValueError(f"size must be at least 32 x 32 pixels, got {height} x {width}")
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")

    main = _main_track(draws, MOTIONS[motion], frames, height, width)
    draws = Draws(seed, _SPLITS[split], 4, index)  # from here on nothing depends on the motion
    pan = _pan(draws, frames, min(height, width))
    shapes, tracks, front = [_shape(draws, kind, split)], [main], [False]
    for _ in range(draws.below(3)):
        shapes.append(_shape(draws, draws.below(len(OBJECTS)), split))
        tracks.append(_other_track(draws, frames, height, width))
        front.append(draws.below(2) == 1)
    if borders == "bounce":
        tracks = [_bounced(track, height, width) for track in tracks]
        if len(tracks) > 1:
            tracks[1] = _crossing(draws, tracks[0], tracks[1], height, width)
            front[1] = True
    ground = 60 + draws.below(136)
    step = 70 + draws.below(25)
    lights = [ground]
    lights += [ground + step if ground < 128 else ground - step for _ in shapes]
    return Scene(
        seed=seed,
        index=index,
        split=split,
        motion=motion,
        object=kind,
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        borders=borders,
        shapes=tuple(shapes),
        tracks=tuple(tracks),
        front=tuple(front),
        lights=tuple(lights),
        pan=pan,
    )


def _crossing(draws: Draws, main: Track, other: Track, height: int, width: int) -> Track:
    """Sends an object on a straight path over the main one, which it meets in mid-video."""
    frames = len(main.x)
    margin = float(other.radius.max()) + 1.0
    speed = draws.uniform(0.008, 0.014) * min(height, width)
    heading = draws.uniform(0, 2 * math.pi)
    time = np.arange(frames, dtype=np.float64) - frames // 2
    x = main.x[frames // 2] + speed * float(_rounded([math.cos(heading)])[0]) * time
    y = main.y[frames // 2] + speed * float(_rounded([math.sin(heading)])[0]) * time
    return Track(
        _reflected(x, margin, width), _reflected(y, margin, height), other.radius, other.angle
    )


# --- rendering ----------------------------------------------------------------------------------


def _enlarged(tile: Bytes, height: int, width: int) -> Bytes:
    """Resizes a periodic tile to (height, width), bilinear, in integers."""
    rows, columns = tile.shape[:2]

    def taps(size: int, length: int) -> tuple[Ints, Ints, Ints]:
        at = (np.arange(size, dtype=np.int64) * length * 256 // size).astype(np.int32)
        return at >> 8, ((at >> 8) + 1) % length, at & 255

    above, below, down = taps(height, rows)
    left, right, across = taps(width, columns)
    source = tile.astype(np.int32)
    mixed: NDArray[np.int64] = (
        source[above] * (256 - down)[:, None, None] + source[below] * down[:, None, None]
    )
    mixed >>= 8
    mixed = mixed[:, left] * (256 - across)[:, None] + mixed[:, right] * across[:, None]
    return np.asarray(mixed >> 8, dtype=np.uint8)


def _background(scene: Scene, draws: Draws) -> Bytes:
    """Draws the panning background, (T, H, W, 3) uint8."""
    height, width = scene.height, scene.width
    tile = _texture(draws, 192, 3, scene.lights[0], 34, vivid=150)
    # The tile covers 1.5 short sides, so that its period is not seen in one frame of usual shape.
    side = min(height, width) * 3 // 2
    tile = _enlarged(tile, side, side)
    tile = np.pad(tile, ((0, height + 1), (0, width + 1), (0, 0)), mode="wrap").astype(np.uint16)
    frames = np.empty((scene.frames, height, width, 3), dtype=np.uint8)
    fixed = np.rint(np.mod(scene.pan, side) * 16).astype(np.int64)  # sixteenths of a pixel
    for t in range(scene.frames):
        (x, fx), (y, fy) = (divmod(int(value), 16) for value in fixed[t])
        x, y = x % side, y % side
        window = tile[y : y + height + 1, x : x + width + 1]
        rows: NDArray[np.uint16] = window[:-1] * np.uint16(16 - fy) + window[1:] * np.uint16(fy)
        sums: NDArray[np.uint16] = rows[:, :-1] * np.uint16(16 - fx) + rows[:, 1:] * np.uint16(fx)
        frames[t] = sums >> 8
    return frames


def _warp(sprite: Bytes, track: Track, half: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Turns, scales and places a sprite in a square window about its centre, in every frame.

    Args:
        sprite: (S, S, 4) uint8.
        track: The path, T frames.
        half: Half the side of the window, D = 2 half + 1 pixels.

    Returns:
        Warped sprites (T, D, D, 4) uint8, and the windows' top left corners (T, 2) as (x, y).
    """
    side = sprite.shape[0]
    centre = np.rint(np.stack([track.x, track.y], axis=1) * 256).astype(np.int64)  # 1/256 pixel
    corner = (centre >> 8) - half  # (T, 2)
    offset = (np.arange(2 * half + 1, dtype=np.int64) << 8) + 128  # pixel centres
    dx = (corner[:, :1] << 8) + offset - centre[:, :1]  # (T, D)
    dy = (corner[:, 1:] << 8) + offset - centre[:, 1:]
    scale = side / 2 / track.radius
    cosine = np.rint(_rounded([math.cos(a) for a in track.angle]) * scale * 65536).astype(np.int64)
    sine = np.rint(_rounded([math.sin(a) for a in track.angle]) * scale * 65536).astype(np.int64)
    # Sprite coordinates in sixteenths of its pixels; a row term and a column term, no products in
    # the large arrays.
    shift = 20
    middle = (side * 8) - 8
    u_column = ((cosine[:, None] * dx) >> shift).astype(np.int32) + middle
    u_row = ((sine[:, None] * dy) >> shift).astype(np.int32)
    v_column = ((-sine[:, None] * dx) >> shift).astype(np.int32) + middle
    v_row = ((cosine[:, None] * dy) >> shift).astype(np.int32)
    limit = (side - 1) * 16 - 1
    u = np.clip(u_column[:, None, :] + u_row[:, :, None], 0, limit)  # (T, D, D)
    v = np.clip(v_column[:, None, :] + v_row[:, :, None], 0, limit)
    fu, fv = (u & 15).astype(np.uint16), (v & 15).astype(np.uint16)
    at = (v >> 4) * side + (u >> 4)
    packed = np.ascontiguousarray(sprite).view(np.uint32).reshape(-1)
    total = np.zeros((*u.shape, 4), dtype=np.uint16)
    for step, weight in (
        (0, (16 - fu) * (16 - fv)),
        (1, fu * (16 - fv)),
        (side, (16 - fu) * fv),
        (side + 1, fu * fv),
    ):
        tap = packed[at + step].view(np.uint8).reshape(total.shape)
        total += tap * weight[..., None]
    return (total >> 8).astype(np.uint8), corner


@dataclass
class _Canvas:
    """The video while it is drawn."""

    frames: Bytes
    masks: Bytes
    wrap: bool

    def places(self, corner: NDArray[np.int64], side: int) -> NDArray[np.int64]:
        """Numbers the pixels of a window, (T, D, D); -1 outside a frame that does not wrap."""
        count, height, width = self.masks.shape
        x = corner[:, :1] + np.arange(side)  # (T, D)
        y = corner[:, 1:] + np.arange(side)
        at = (np.arange(count)[:, None] * height + np.mod(y, height))[:, :, None] * width
        at = at + np.mod(x, width)[:, None, :]
        if not self.wrap:
            outside_x = (x < 0) | (x >= width)
            outside_y = (y < 0) | (y >= height)
            at[outside_x[:, None, :] | outside_y[:, :, None]] = -1
        return np.asarray(at)

    def paint(self, sprites: Bytes, at: NDArray[np.int64], name: int) -> None:
        """Blends warped sprites onto the frames and writes their name into the masks."""
        alpha = sprites[..., 3]
        drawn = (alpha > 0) & (at >= 0)
        where = at[drawn]
        colour = sprites[drawn].astype(np.uint16)  # (n, 4)
        weight = (colour[:, 3:] + (colour[:, 3:] >> 7)).astype(np.uint16)  # 0..256
        flat = self.frames.reshape(-1, 3)
        flat[where] = (flat[where] * (256 - weight) + colour[:, :3] * weight) >> 8
        self.masks.reshape(-1)[where[colour[:, 3] >= 128]] = name


def _extent(rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """First and one past the last true entries as (x1, y1, x2, y2)."""
    y, x = np.flatnonzero(rows), np.flatnonzero(columns)
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def _annotate(
    masks: Bytes, solid: NDArray[np.bool_], corner: NDArray[np.int64], name: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Measures one object: full boxes (T, 4), visible boxes (T, 4), cover (T,)."""
    count, height, width = masks.shape
    side = solid.shape[1]
    full = np.full((count, 4), np.nan, dtype=np.float32)
    seen = np.full((count, 4), np.nan, dtype=np.float32)
    pixels = solid.sum(axis=(1, 2))
    shown = (masks == name).sum(axis=(1, 2))
    for t in range(count):
        if not pixels[t]:
            continue
        # The copy whose centre is in the frame.
        x = (int(corner[t, 0]) + side // 2) % width - side // 2
        y = (int(corner[t, 1]) + side // 2) % height - side // 2
        box = _extent(solid[t].any(axis=1), solid[t].any(axis=0))
        full[t] = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
        left, top = max(x, 0), max(y, 0)
        part = masks[t, top : y + side, left : x + side] == name
        if part.any():
            box = _extent(part.any(axis=1), part.any(axis=0))
            seen[t] = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return full, seen, (shown / np.maximum(pixels, 1)).astype(np.float32)


def render(scene: Scene) -> Drawn:
    """Draws a planned video.

    Args:
        scene: The plan, from `compose`.

    Returns:
        Frames and their annotation; the same bytes for the same plan.
    """
    part = _SPLITS[scene.split]
    frames = _background(scene, Draws(scene.seed, part, 5, scene.index))
    masks = np.zeros(frames.shape[:3], dtype=np.uint8)
    canvas = _Canvas(frames, masks, scene.borders == "wrap")
    count = len(scene.shapes)
    order = [k for k in range(1, count) if not scene.front[k]]
    order += [0, *(k for k in range(1, count) if scene.front[k])]
    solids: dict[int, tuple[NDArray[np.bool_], NDArray[np.int64]]] = {}
    for k in order:
        track = scene.tracks[k]
        half = math.ceil(float(track.radius.max())) + 1
        side = min(max(32, 2 * half), 320)
        draws = Draws(scene.seed, part, 6, scene.index, k)
        sprite = _sprite(draws, scene.shapes[k], side, scene.lights[k + 1])
        sprites, corner = _warp(sprite, track, half)
        canvas.paint(sprites, canvas.places(corner, 2 * half + 1), k + 1)
        solids[k] = (sprites[..., 3] >= 128, corner)
    notes = [_annotate(masks, *solids[k], k + 1) for k in range(count)]
    return Drawn(
        frames=frames,
        masks=masks,
        boxes=np.stack([note[0] for note in notes], axis=1),
        visible=np.stack([note[1] for note in notes], axis=1),
        cover=np.stack([note[2] for note in notes], axis=1),
        motion=scene.motion,
        object=scene.object,
        objects=tuple(shape.kind for shape in scene.shapes),
        fps=scene.fps,
    )


def draw(
    seed: int,
    index: int,
    split: Split,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    borders: Borders = "wrap",
) -> Drawn:
    """Plans and draws a video: `render` of `compose`, with the same arguments as `compose`."""
    return render(compose(seed, index, split, size=size, frames=frames, fps=fps, borders=borders))
