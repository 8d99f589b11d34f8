"""What VITO attends to, as a picture (Figures 3 and B.1)."""

from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from lightning_vssl.callbacks.pictures import _Picture, heat_over


def draw_attention(frames: Tensor, masks: Tensor, *, zoom: int = 1) -> Image.Image:
    """Draws the views of videos, and beside each view its mask of every scale over it.

    Args:
        frames: Views, pixels in [0, 1], (B, V, 3, H, W); one row of the picture a video.
        masks: Their masks, (B, V, S, h, w), not negative; the largest value of each is white.
        zoom: Pixels of the picture per pixel of the view.

    Returns:
        The picture, RGB.
    """
    rows, views, _, height, width = frames.shape
    scales = masks.shape[2]
    size = height * zoom, width * zoom
    large = F.interpolate(
        masks.flatten(0, 1).float(), size=size, mode="bilinear", align_corners=False
    ).view(rows, views, scales, *size)
    large = large / large.amax((-2, -1), keepdim=True).clamp(min=1e-12)
    pixels = F.interpolate(frames.flatten(0, 1).float().clamp(0, 1), size=size, mode="nearest")
    pixels = pixels.view(rows, views, 3, *size).cpu()  # (B, V, 3, H, W)
    over = heat_over(pixels[:, :, None], large)  # (B, V, S, 3, H, W)
    gap, head = 4, 18
    cell_w, cell_h = size[1] + gap, size[0] + gap
    shape = views * (scales + 1) * cell_w + gap, rows * cell_h + head + gap
    sheet = Image.new("RGB", shape, (24, 24, 24))
    text = "each view, and the mask of every scale over it, from the finest to the coarsest"
    ImageDraw.Draw(sheet).text((gap, 3), text, fill=(230, 230, 230))
    for row in range(rows):
        for view in range(views):
            for column, cell in enumerate([pixels[row, view], *over[row, view]]):
                tile = Image.fromarray((255 * cell).round().byte().movedim(0, -1).numpy())
                left = gap + (view * (scales + 1) + column) * cell_w
                sheet.paste(tile, (left, head + row * cell_h))
    return sheet


class AttentionMasks(_Picture):
    """Writes ``attention.png``: the masks of every scale over the views of some videos.

    The videos are those of the first validation batch, or, in a run without validation, of the
    last training batch. A mask is made from one view alone: it cannot know what moves.

    Args:
        videos: Videos in the picture.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.
    """

    name = "attention"
    needs = ("attention",)
    shows = "what is attended to"

    def __init__(self, videos: int = 4, every_n_epochs: int = 0) -> None:
        super().__init__(videos, every_n_epochs)

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """One row a video; see `draw_attention`."""
        zoom = max(1, round(112 / pixels.shape[-1]))
        return draw_attention(pixels[:, :, :, 0], seen["attention"], zoom=zoom)
