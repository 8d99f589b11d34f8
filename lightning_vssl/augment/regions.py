"""Views with regions: boxes drawn at random, or those that came with the batch."""

import torch
from torch import Tensor, nn

from lightning_vssl.augment.views import Parameters, VideoViews, view_keys
from lightning_vssl.nn.keyed import uniform

_LEFT, _TOP, _WIDTH, _SHAPE = 48, 49, 50, 51  # streams of the keyed generator


class RandomBoxes(nn.Module):
    """Boxes drawn anywhere in a view (ConST-CL section 3.3; values of the authors' code).

    The top left corner is uniform over the view, the width uniform over ``width`` as a share of
    the view, the height the width times a number uniform over ``ratio``; what sticks out is cut
    off. All four are drawn independently (the released code draws all of them with one seed, so
    that its boxes lie on the diagonal).

    Args:
        count: Boxes per view.
        width: Range of the width, in shares of the view.
        ratio: Range of height over width.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        count: int = 8,
        width: tuple[float, float] = (0.1, 0.5),
        ratio: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if not 0 < width[0] <= width[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"width must be a range in (0, 1] and ratio one above 0, got {width} and {ratio}"
            )
        self.count = count
        self.width = width
        self.ratio = ratio

    @torch.no_grad()
    def forward(self, key: Tensor, views: int, height: int, width: int) -> Tensor:
        """Draws boxes.

        Args:
            key: Keys of the samples, (B,) int64.
            views: Views V per sample; each has boxes of its own.
            height: Height of a view in pixels.
            width: Its width.

        Returns:
            (B, V, 1, N, 4) float32, xyxy in pixels, for all frames of a view alike.
        """
        keys = view_keys(key, views)  # (B * V,)
        left, top, w, ratio = (
            uniform(keys, self.count, stream) for stream in (_LEFT, _TOP, _WIDTH, _SHAPE)
        )
        w = self.width[0] + (self.width[1] - self.width[0]) * w
        h = w * (self.ratio[0] + (self.ratio[1] - self.ratio[0]) * ratio)
        corners = torch.stack([left, top, left + w, top + h], dim=-1).clamp(max=0.999)
        boxes = corners * corners.new_tensor([width, height, width, height])
        return boxes.float().view(-1, views, 1, self.count, 4)


def usable_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cuts boxes to the view and marks as missing what is no region.

    Args:
        boxes: (..., 4), xyxy in pixels; NaN where missing.
        height: Height of the view.
        width: Its width.

    Returns:
        (..., 4): NaN throughout where a number was not finite or under a pixel of width or height
        is left inside the view.
    """
    limit = boxes.new_tensor([width, height, width, height])
    inside = boxes.clamp(min=0).minimum(limit)
    left_over = inside[..., 2:] - inside[..., :2]
    fine = boxes.isfinite().all(-1) & (left_over >= 1).all(-1)
    return inside.masked_fill(~fine[..., None], torch.nan)


class RegionViews(nn.Module):
    """Views of a batch with the boxes of regions in them.

    Boxes that the batch brings (the data module's ``boxes``) are taken as they are; where it brings
    none, they are drawn.

    Args:
        views: Makes the pixels, and mirrors boxes where it mirrors them.
        random: Draws boxes where the data has none.
    """

    def __init__(self, views: VideoViews, random: RandomBoxes) -> None:
        super().__init__()
        self.views = views
        self.random = random

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Parameters]:
        """Makes the training views of a batch.

        Args:
            batch: As `VideoViews` takes it.

        Returns:
            As `VideoViews` returns it, with ``boxes`` (B, V, T or 1, N, 4) in pixels of the views;
            NaN where missing.
        """
        made: dict[str, Tensor | Parameters] = self.views(batch)
        height, width = batch["video"].shape[-2:]
        boxes = made.get("boxes")
        made["boxes"] = (
            usable_boxes(boxes, height, width)
            if isinstance(boxes, Tensor)
            else self.random(batch["key"], batch["video"].shape[1], height, width)
        )
        return made
