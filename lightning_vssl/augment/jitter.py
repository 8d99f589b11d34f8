"""Scale jitter that takes the boxes along: training views for localisation."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_vssl.augment.regions import usable_boxes
from lightning_vssl.augment.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colour,
    Normalise,
    Parameters,
    flip_boxes,
    view_keys,
)
from lightning_vssl.nn.keyed import uniform

_FLIP = 0  # as in augment/views.py
_SCALE, _PLACE = 57, 58  # streams of the keyed generator


class JitteredViews(nn.Module):
    """Flip, and a picture made larger or smaller on a canvas that stays as it is.

    The picture lies in the upper left corner of its canvas, as `lightning_vssl.data.windows.Canvas`
    puts it; the batch's ``shown`` says how far it reaches. It is scaled by a factor that is uniform
    over ``scale``. What becomes larger than the canvas is cut by a window anywhere on the picture;
    what becomes smaller leaves the rest of the canvas empty. Boxes move with their pixels and are
    cut to the canvas; those of which less than a pixel is left are missing from then on.

    VideoGLUE jitters by 0.5 to 2 on 400 pixels; SlowFast and the rho-MoCo study bring the short
    side to 256 to 320 and cut squares of 224. Differs from both: the picture is scaled a second
    time on the device, from the canvas, so that factors above 1 repeat what its pixels know.

    Args:
        mean: Mean of each channel, RGB in [0, 1].
        std: Standard deviation of each channel.
        flip: Probability of a horizontal flip.
        scale: Range of the factor.
        fill: Value of the empty part of the canvas, in grey levels of 255.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        flip: float = 0.5,
        scale: tuple[float, float] = (0.5, 2.0),
        fill: int = 128,
    ) -> None:
        super().__init__()
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got {flip}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range of factors above 0, got {scale}")
        if not 0 <= fill <= 255:
            raise ValueError(f"fill must be a grey level from 0 to 255, got {fill}")
        self.normalise = Normalise(mean, std)
        self.flip = flip
        self.scale = scale
        self.fill = fill

    def draw(self, key: Tensor, views: int) -> Parameters:
        """Draws the parameters of a batch.

        Args:
            key: Keys of the samples, (B,) int64.
            views: Views V per sample.

        Returns:
            ``flip`` (B, V) bool, ``scale`` (B, V), and ``place`` (B, V, 2) in [0, 1): where the
            window starts, downwards and to the right, as a share of the room it has.
        """
        keys = view_keys(key, views)
        low, high = self.scale
        return {
            "flip": (uniform(keys, 1, _FLIP)[:, 0] < self.flip).view(-1, views),
            "scale": (low + (high - low) * uniform(keys, 1, _SCALE)[:, 0]).view(-1, views),
            "place": uniform(keys, 2, _PLACE).view(-1, views, 2),
        }

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Parameters]:
        """Makes the training views of a batch.

        Args:
            batch: Holds ``video`` (B, V, T, 3, H, W) uint8 and ``key`` (B,) int64; ``boxes``
                (B, V, T or 1, N, 4) and ``shown`` (B, V, 2), the picture's height and width on the
                canvas, if there are any.

        Returns:
            A copy of the batch with ``views`` (B, V, 3, T, H, W) float32, with ``boxes`` as they
            lie in the views, NaN where none is left, and with what was drawn in ``views_params``;
            ``video`` stays as it was.

        Raises:
            ValueError: If ``video`` is not uint8 (B, V, T, 3, H, W).
        """
        video = batch["video"]
        clips, views, _, _, height, width = video.shape
        parameters = self.draw(batch["key"], views)
        shown = batch.get("shown", video.new_tensor([height, width], dtype=torch.int64))
        boxes = batch.get("boxes")
        moved, kept = torch.full_like(video, self.fill), None if boxes is None else boxes.clone()
        drawn = zip(
            shown.expand(clips, views, 2).flatten(0, 1).tolist(),
            *(parameters[name].flatten(0, 1).tolist() for name in ("flip", "scale", "place")),
            strict=True,
        )
        for n, (picture, flip, scale, place) in enumerate(drawn):
            b, v = divmod(n, views)
            rows = _Window.of(picture[0], height, scale, place[0])
            columns = _Window.of(picture[1], width, scale, place[1])
            source = video[b, v, ..., : picture[0], : picture[1]]  # (T, 3, h, w)
            source = source.flip(-1) if flip else source
            cut = source[..., rows.start : rows.stop, columns.start : columns.stop]
            moved[b, v, ..., : rows.size, : columns.size] = _scaled(cut, rows.size, columns.size)
            if kept is not None:
                own = flip_boxes(kept[b, v], picture[1]) if flip else kept[b, v]
                start = own.new_tensor([columns.start, rows.start] * 2)
                own = (own - start) * own.new_tensor([columns.scale, rows.scale] * 2)
                kept[b, v] = usable_boxes(own, rows.size, columns.size)
        made: dict[str, Tensor | Parameters] = {**batch, "views_params": parameters}
        made["views"] = self.normalise({"video": moved})["views"]
        if kept is not None:
            made["boxes"] = kept
        return made


@dataclass(frozen=True)
class _Window:
    """Which pixels of a side of the picture are shown, and how many pixels they become."""

    start: int
    stop: int
    size: int

    @property
    def scale(self) -> float:
        return self.size / (self.stop - self.start)

    @classmethod
    def of(cls, picture: int, canvas: int, scale: float, place: float) -> Self:
        """The window of a side of ``picture`` pixels, scaled by ``scale``, on ``canvas`` pixels."""
        if picture * scale <= canvas:
            return cls(0, picture, max(1, round(picture * scale)))
        length = min(picture, max(1, round(canvas / scale)))
        start = int(place * (picture - length + 1))
        return cls(start, start + length, canvas)


def _scaled(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames (T, 3, h, w) uint8 at another size, antialiased where it is smaller."""
    large = functional.interpolate(
        frames.float(), size=(height, width), mode="bilinear", antialias=True
    )
    return large.round_().clamp_(0, 255).to(torch.uint8)
