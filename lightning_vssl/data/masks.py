"""Masks of objects on disk, as DAVIS keeps them: PNG with a palette, the pixel is the object's id.

Ids count from 1, 0 is background, 255 void. DAVIS-2016 has grey PNG instead, 255 the object.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.sequences import FrameSequence, UnreadableFrame

VOID = 255
_NEAR = 1  # VFS's palette has 191 where the official one has 192


@cache
def davis_palette() -> tuple[int, ...]:
    """The official palette: the bits of an id, from the lowest, go to R, G, B from the highest."""
    palette = []
    for name in range(256):
        for channel in range(3):
            value = 0
            for bit in range(8):
                value |= ((name >> (3 * bit + channel)) & 1) << (7 - bit)
            palette.append(value)
    return tuple(palette)


def read_mask(file: Path, *, union: bool = False) -> NDArray[np.uint8]:
    """Reads a mask, strictly.

    Args:
        file: PNG with DAVIS's palette, or grey: ids without a palette, or 0 and 255 alone, which
            is DAVIS-2016's background and object.
        union: Take all objects together, as DAVIS-2016 does: every id becomes 1. Grey may then be
            kept as colours, as it is in some masks of 2016 (bear/00077.png).

    Returns:
        Ids, (H, W): 0 background, from 1 objects, 255 void.

    Raises:
        UnreadableFrame: If there is no such file, or it is broken or cut off.
        ValueError: If it holds colours instead of ids, has another palette, is a mask of
            DAVIS-2016 where ids are wanted, or has 255 and other greys where it should be one;
            names the file.
    """
    try:
        with Image.open(file) as image:
            mode, palette = image.mode, image.getpalette("RGB") if image.mode == "P" else None
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise UnreadableFrame(file, "no such file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFrame(file, str(error)) from error
    if union and mode in ("RGB", "RGBA") and (pixels[..., :3] == pixels[..., :1]).all():
        mode, pixels = "L", pixels[..., 0]
    if mode not in ("P", "L", "1"):
        raise ValueError(
            f"{file}: a mask is a PNG with a palette, its pixels ids of objects; this one has "
            f"{mode} pixels: save the ids, not their colours"
        )
    ids: NDArray[np.uint8] = pixels.astype(np.uint8)  # (H, W)
    if palette is not None:
        _check_palette(file, palette, ids)
    others = bool(np.any((ids > 0) & (ids < VOID)))
    grey = mode == "L" and VOID in ids and not others
    if mode == "L" and VOID in ids and others and union:
        raise ValueError(
            f"{file}: holds 255 and other greys, which may be an object with soft edges, or void "
            "and ids: write 0 and 255 alone, or ids with DAVIS's palette"
        )
    if grey and not union:
        raise ValueError(
            f"{file}: holds 0 and 255 alone, as masks of DAVIS-2016 do, and no ids of objects: "
            "set year: 2016"
        )
    if grey:
        ids[ids != 0] = 1
    if union:
        ids[(ids > 0) & (ids < VOID)] = 1
    return ids


def _check_palette(file: Path, palette: list[int], ids: NDArray[np.uint8]) -> None:
    """Refuses a palette with other colours for the ids that are there."""
    official = np.array(davis_palette()).reshape(256, 3)
    found = np.array(palette[: len(palette) // 3 * 3]).reshape(-1, 3)
    for name in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)):
        own = found[name] if name < len(found) else np.full(3, -256)
        if np.abs(own - official[name]).max() > _NEAR:
            said = f"the colour {tuple(own.tolist())}" if name < len(found) else "no colour"
            raise ValueError(
                f"{file}: its palette is not DAVIS's: id {name} has {said} and should have "
                f"{tuple(official[name].tolist())}; its numbers may not be ids of objects"
            )


def write_mask(file: Path, ids: NDArray[np.uint8]) -> None:
    """Writes a mask as DAVIS's tools read it, whole or not at all.

    Args:
        file: The PNG; its folder is made.
        ids: (H, W): 0 background, from 1 objects.

    Raises:
        OSError: If it cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
    image.putpalette(davis_palette())  # from grey to a palette
    with whole_file(file) as temporary:
        image.save(temporary, "PNG")


@dataclass(frozen=True)
class MaskedSequence:
    """Frames with a mask of every object in each; nothing is read before it is asked for.

    Args:
        frames: The frames.
        files: A mask for each frame, in order.
        union: Take all objects together; see `read_mask`.

    Raises:
        ValueError: If there are not as many masks as frames.
    """

    frames: FrameSequence
    files: tuple[Path, ...]
    union: bool = False

    def __post_init__(self) -> None:
        if len(self.files) != len(self.frames):
            raise ValueError(
                f"{self.name}: {len(self.files)} masks for {len(self.frames)} frames: every frame "
                "needs one"
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def name(self) -> str:
        """Names the sequence in tables and result files."""
        return self.frames.name

    def mask(self, number: int) -> Tensor:
        """Reads a mask.

        Args:
            number: From 0; negative ones count from the end.

        Returns:
            Ids, (H, W) uint8: 0 background, from 1 objects, 255 void.

        Raises:
            UnreadableFrame: If it cannot be read.
            ValueError: If it is no mask of DAVIS's kind; names the file.
        """
        return torch.from_numpy(read_mask(self.files[number], union=self.union))

    def masks(self) -> Iterator[Tensor]:
        """Reads all masks in order; see `mask`."""
        return (self.mask(number) for number in range(len(self)))

    def check_sizes(self) -> None:
        """Compares the sizes of masks and frames, from the files' headers.

        Raises:
            UnreadableFrame: If a header cannot be read.
            ValueError: If a mask has not the size of its frame; names the file.
        """
        for frame, mask in zip(self.frames.files, self.files, strict=True):
            wanted, found = _size(frame), _size(mask)
            if wanted != found:
                raise ValueError(
                    f"{mask}: {found[0]} x {found[1]} pixels, and its frame {frame.name} has "
                    f"{wanted[0]} x {wanted[1]}: a mask has the size of its frame"
                )

    def to(self, device: torch.device) -> Self:
        """Leaves the sequence where it is, as `FrameSequence.to` does."""
        return self


def _size(file: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header."""
    try:
        with Image.open(file) as image:
            return image.size
    except FileNotFoundError as error:
        raise UnreadableFrame(file, "no such file") from error
    except OSError as error:
        raise UnreadableFrame(file, str(error)) from error
