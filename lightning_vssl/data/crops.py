"""Square windows around boxes, as Siamese trackers see a target (SiamFC, section 2.2).

Coordinates run from the picture's left and upper edge: the centre of the first pixel is 0.5.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def context_side(width: float, height: float, context: float = 0.5) -> float:
    """Side of the square window that shows a box with some of what is around it.

    The side is the square root of (w + m)(h + m) with the margin m = ``context`` (w + h), which is
    2p in the paper (SiamFC, section 2.2).

    Args:
        width: Width w of the box in pixels.
        height: Its height h.
        context: Share of w + h that is added to each side; 0.5 in the original.

    Returns:
        The side in pixels.
    """
    margin = context * (width + height)
    return math.sqrt((width + margin) * (height + margin))


def crop_squares(
    picture: Tensor, centres: Tensor, sides: Tensor, size: int, fill: Tensor | None = None
) -> Tensor:
    """Cuts square windows out of a picture and scales them to one size, bilinearly.

    The picture goes on in one colour beyond its edges. As in the original, nothing is smoothed
    where a window shrinks; unlike it, windows are not rounded to whole pixels of the picture.

    Args:
        picture: (3, H, W), any type.
        centres: x and y of the windows' centres in pixels, (N, 2).
        sides: Their sides in pixels, (N,).
        size: Pixels per side of a crop.
        fill: The colour beyond the edges, (3,); None for the picture's mean.

    Returns:
        (N, 3, size, size) float32, in the picture's units.
    """
    _, height, width = picture.shape
    pixels = picture.float()
    fill = pixels.mean((1, 2)) if fill is None else fill.to(pixels)
    centres, sides = centres.to(pixels), sides.to(pixels)
    steps = (torch.arange(size, device=pixels.device) + 0.5) / size - 0.5  # (size,)
    places = centres[:, :, None] + sides[:, None, None] * steps  # (N, 2, size), x and y
    extent = torch.tensor([width, height], device=pixels.device)[None, :, None]
    x, y = (2 * places / extent - 1).unbind(1)  # -1 and 1 are the picture's edges
    count = len(centres)
    grid = torch.stack(
        [x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1
    )  # (N, size, size, 2)
    offset = (pixels - fill[:, None, None])[None].expand(count, -1, -1, -1)
    crops = functional.grid_sample(offset, grid, padding_mode="zeros", align_corners=False)
    return crops + fill[:, None, None]
