"""Videos with their foreground or background taken away or exchanged.

The eight variants of the Backgrounds Challenge (Xiao et al., Noise or Signal, ICLR 2021, Table 1
and appendix A), frame by frame for videos as in PreViTS (Chen et al., WACV 2023, section 4.3,
Figure 3):

| variant | foreground | background |
|---|---|---|
| ``original`` | kept | kept |
| ``mixed_same`` | kept | that of a random video of the same class |
| ``mixed_rand`` | kept | that of a random video of a random class |
| ``mixed_next`` | kept | that of a random video of the next class |
| ``only_fg`` | kept | black |
| ``no_fg`` | black in its own shape | kept |
| ``only_bg_b`` | its bounding box black | kept |
| ``only_bg_t`` | its bounding box filled with tiles of background | kept |

PreViTS publishes no code for them, so that these are our readings: the box is the tight one of each
frame's mask; a mixed background is the ``only_bg_t`` of the other video, as the challenge of
images has it, and starts over where it is shorter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_vssl.nn.keyed import sample_key, uniform

Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Variant = Literal[
    "original",
    "mixed_same",
    "mixed_rand",
    "mixed_next",
    "only_fg",
    "no_fg",
    "only_bg_b",
    "only_bg_t",
]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""All eight, in the order of PreViTS's Table 4."""

MIXED: tuple[Variant, ...] = ("mixed_same", "mixed_rand", "mixed_next")
"""Those that need another video."""

_STREAM = 60
_SUFFIXES = (".avi", ".mkv", ".mp4", ".webm")


class Strip(NamedTuple):
    """A rectangle of a frame, in whole pixels; the last row and column lie behind it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Its pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


def bounding_box(mask: Bools) -> Strip | None:
    """The tight box of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        The box; None of an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return Strip(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def largest_strip(box: Strip, height: int, width: int) -> Strip | None:
    """The largest strip of background beside a box: above, below, to the left or to the right.

    Strips above and below are as wide as the frame, those beside as high (Xiao et al., appendix
    A). Of strips of the same size the first in that order is taken.

    Args:
        box: The box.
        height: Pixels of the frame.
        width: Pixels of the frame.

    Returns:
        The strip; None where the box fills the frame.
    """
    strips = (
        Strip(0, 0, box.top, width),
        Strip(box.bottom, 0, height, width),
        Strip(0, 0, height, box.left),
        Strip(0, box.right, height, width),
    )
    best = max(strips, key=lambda strip: strip.area)
    return best if best.area else None


def only_background_tiled(frames: Pixels, masks: Bools) -> Pixels:
    """Fills the box of each frame's foreground with background (ONLY-BG-T).

    The whole frame is tiled with the largest strip beside the box, from the upper left corner on,
    and the box taken from that. A frame that the box fills becomes black; one without foreground
    stays.

    Args:
        frames: (T, H, W, 3) uint8.
        masks: (T, H, W) bool, True on the foreground.

    Returns:
        As ``frames``.
    """
    filled = frames.copy()
    height, width = frames.shape[1:3]
    for frame, out, mask in zip(frames, filled, masks, strict=True):
        box = bounding_box(mask)
        if box is None:
            continue
        inside = slice(box.top, box.bottom), slice(box.left, box.right)
        strip = largest_strip(box, height, width)
        if strip is None:
            out[inside] = 0
            continue
        rows = strip.top + np.arange(box.top, box.bottom) % (strip.bottom - strip.top)
        columns = strip.left + np.arange(box.left, box.right) % (strip.right - strip.left)
        out[inside] = frame[rows[:, None], columns]
    return filled


def only_background_black(frames: Pixels, masks: Bools) -> Pixels:
    """Blackens the box of each frame's foreground (ONLY-BG-B); shapes as above."""
    black = frames.copy()
    for out, mask in zip(black, masks, strict=True):
        box = bounding_box(mask)
        if box is not None:
            out[box.top : box.bottom, box.left : box.right] = 0
    return black


def mixed(frames: Pixels, masks: Bools, background: Pixels) -> Pixels:
    """Puts the foreground of a video on another's background (MIXED).

    Args:
        frames: (T, H, W, 3) uint8.
        masks: (T, H, W) bool, True on the foreground.
        background: (T', H, W, 3) uint8, the other video without its foreground. It starts over
            where it is shorter, and its rest is not seen where it is longer.

    Returns:
        As ``frames``.

    Raises:
        ValueError: If the two differ in size, or the background has no frame.
    """
    if not len(background) or background.shape[1:] != frames.shape[1:]:
        raise ValueError(
            f"a background of frames as large as the video's is needed: got {background.shape} for "
            f"{frames.shape}"
        )
    behind = background[np.arange(len(frames)) % len(background)]
    return np.where(masks[..., None], frames, behind)


def vary(
    variant: Variant, frames: Pixels, masks: Bools, background: Pixels | None = None
) -> Pixels:
    """Makes one variant of a video.

    Args:
        variant: Which.
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, H, W) bool, True on the foreground.
        background: For the mixed variants another video's ONLY-BG-T, (T', H, W, 3) uint8.

    Returns:
        As ``frames``.

    Raises:
        ValueError: If the variant is unknown, the masks are not as large as the frames, or a mixed
            variant lacks its background.
    """
    if masks.shape != frames.shape[:3]:
        raise ValueError(f"masks {masks.shape} do not fit frames {frames.shape}")
    seen = masks[..., None]
    if variant == "original":
        return frames
    if variant == "only_fg":
        return frames * seen
    if variant == "no_fg":
        return frames * ~seen
    if variant == "only_bg_b":
        return only_background_black(frames, masks)
    if variant == "only_bg_t":
        return only_background_tiled(frames, masks)
    if variant in MIXED and background is not None:
        return mixed(frames, masks, background)
    if variant in MIXED:
        raise ValueError(f"{variant} needs a background")
    raise ValueError(f"variant={variant!r}: choose {', '.join(VARIANTS)}")


def draw_backgrounds(labels: Indices, usable: Bools, *, seed: int = 0) -> Indices:
    """Draws, once for each video, whose background it gets in the mixed variants.

    ``mixed_rand`` draws a class, its own too, and then a video of it; the class next to the last is
    the first. A class of which no video can be read is passed over. A video gets its own background
    only where its class, for ``mixed_same``, or all classes have no other.

    Args:
        labels: Classes of the videos, (N,), 0 or more.
        usable: Which of them can be a background, (N,): others are given one and are none.
        seed: Where the draws start. What a video draws depends on its place in the list.

    Returns:
        (N, 3) int64, rows for ``mixed_same``, ``mixed_rand`` and ``mixed_next``.

    Raises:
        ValueError: If a video has no class, or none can be read.
    """
    if (labels < 0).any() or not usable.any():
        raise ValueError("mixed backgrounds need videos that can be read, and the classes of all")
    rows = np.arange(len(labels))
    members = {int(c): rows[usable & (labels == c)] for c in np.unique(labels[usable])}
    keys = torch.tensor([sample_key(seed, 0, row) for row in range(len(labels))])
    coins = uniform(keys, 4, _STREAM, torch.float64).tolist()  # N times 4
    drawn = []
    for row, (label, (same, whose, rand, following)) in enumerate(
        zip(labels.tolist(), coins, strict=True)
    ):
        others = [c for c in members if (members[c] != row).any()] or list(members)
        after = min(others, key=lambda c: (c <= label, c))
        own = members.get(label, rows[usable])
        pools = (own, members[others[int(whose * len(others))]], members[after])
        picks = zip(pools, (same, rand, following), strict=True)
        drawn.append([_one(pool, row, coin) for pool, coin in picks])
    return np.array(drawn, np.int64)


def _one(pool: Indices, row: int, coin: float) -> int:
    """One of some rows, not the video's own if there is another."""
    others = pool[pool != row]
    chosen = others if len(others) else pool
    return int(chosen[int(coin * len(chosen))])


def rendered_file(folder: Path, variant: Variant, name: str, video: str) -> Path:
    """Where a variant of a video lies.

    Args:
        folder: Folder of all variants.
        variant: Which.
        name: Class of the video.
        video: Path of the video, as a manifest has it.

    Returns:
        ``<folder>/<variant>/<class>/<video>.mp4``, blanks of the class written as ``_``.
    """
    file = video.rpartition("/")[2]
    for suffix in _SUFFIXES:
        file = file.removesuffix(suffix)
    return folder / variant / name.replace(" ", "_") / f"{file}.mp4"


def variant_of(variants: Sequence[str], folder: Path, paths: Sequence[str]) -> Indices:
    """Which variant each of some rendered files is.

    Args:
        variants: Names of the variants.
        folder: Folder of all variants.
        paths: Files below it.

    Returns:
        Indices into ``variants``, (N,).
    """
    place = {name: number for number, name in enumerate(variants)}
    owners = (Path(path).relative_to(folder).parts[0] for path in paths)
    return np.array([place[owner] for owner in owners], np.int64)
