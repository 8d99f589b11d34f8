"""Pictures of tubes: a video with its object in full light, outlined, and all else dimmed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from lightning_vssl.data.tubes import Masks, cut_masks

Pixels = npt.NDArray[np.uint8]

_OUTLINE = (60, 220, 90)
_DIM = 0.4


def draw_tube(frames: Pixels, masks: Masks) -> Pixels:
    """Draws a tube on its video.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        masks: Masks of the whole frames at any size, (F, h, w), 1 on the object.

    Returns:
        (F, H, W, 3): the object as it is with a green outline, the rest dimmed. A frame in which
        it is lost is dimmed throughout.

    Raises:
        ValueError: If there is not one mask a frame.
    """
    if len(frames) != len(masks):
        raise ValueError(f"{len(frames)} frames and {len(masks)} masks: one for each")
    height, width = frames.shape[1:3]
    window = np.array([[0, 0, width, height]], np.float64)
    shown = cut_masks(masks[None], window, (height, width), (height, width))[0] > 0  # (F, H, W)
    cross = ndimage.generate_binary_structure(2, 1)[None]
    edge = ndimage.binary_dilation(shown, cross, iterations=max(1, height // 128)) & ~shown
    drawn = np.where(shown[..., None], frames, (frames * _DIM).astype(np.uint8))
    drawn[edge] = _OUTLINE
    return np.asarray(drawn, np.uint8)


def draw_strips(
    videos: Sequence[Pixels], names: Sequence[str], *, columns: int = 6, height: int = 128
) -> Image.Image:
    """Lays frames of several videos out, one video a row.

    Args:
        videos: (F, H, W, 3) each.
        names: What is written over each.
        columns: Frames shown of each, evenly spread from the first to the last.
        height: Pixels that a frame is scaled to in height.

    Returns:
        The picture, RGB.
    """
    gap, head = 4, 16
    rows = []
    for frames in videos:
        chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        width = max(1, round(frames.shape[2] * height / frames.shape[1]))
        size = (width, height)
        rows.append(
            [Image.fromarray(frames[i]).resize(size, Image.Resampling.BICUBIC) for i in chosen]
        )
    width = max((columns * (row[0].width + gap) for row in rows), default=0) + gap
    sheet = Image.new("RGB", (width, len(rows) * (height + head + gap) + gap), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = gap + place * (height + head + gap)
        pen.text((gap, top), name, fill=(230, 230, 230))
        for column, frame in enumerate(row):
            sheet.paste(frame, (gap + column * (frame.width + gap), top + head))
    return sheet
