"""Views that show the object: crops drawn around a tube, on the device the clips are on.

PreViTS (section 3.2) asks of a random crop that it shows the object that is tracked. The paper
writes "at least mu IoU" with the mask. An IoU of 0.3 would forbid large crops of small objects;
what is bounded here is, as in the authors' code, the share of the mask inside the crop.

A crop is drawn so: area and shape as a random resized crop draws them; the centre from a Gaussian
about the mask's centroid, cut off where the crop would leave the picture; it is taken if it covers
enough of the mask, else drawn again, ten times in all. After that the mask's box, grown by chance
on every side, takes its place. All tries are drawn and judged together, from the keys alone, with
neither a loop over the clips nor a wait for the device.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vssl.augment.regions import usable_boxes
from lightning_vssl.augment.views import Parameters, VideoViews, share_draws, view_keys
from lightning_vssl.data.windows import sources
from lightning_vssl.nn.keyed import uniform

Centre = Literal["gaussian", "uniform", "centroid"]
Judged = Literal["clip", "middle"]

# Streams of the keyed generator; each kind of draw has its own.
_AREA, _SHAPE, _ACROSS, _DOWN, _GROW = 52, 53, 54, 55, 56
_TRIES = 10
_GROWN, _LARGEST = _TRIES, _TRIES + 1  # where these two stand behind the tries
_PLACES = 65  # tried of the largest crop; odd, so that one is the middle
_REACHABLE = 0.4  # share of the picture that a crop may at most be asked to fill with the object
_SLACK = 1e-3  # of a pixel, for windows computed in float32


def truncated_normal(draw: Tensor, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Turns uniform numbers into a Gaussian that is cut off at both ends (inverse transform).

    Args:
        draw: Numbers in [0, 1), float64.
        mean: Mean before the cut; it may lie outside of it. Broadcasts, as the others do.
        std: Deviation before the cut, above 0.
        low: Least value.
        high: Greatest value, not below ``low``.

    Returns:
        Values in [low, high], float64.
    """
    below, above = (torch.special.ndtr((end - mean) / std) for end in (low, high))
    value: Tensor = mean + std * torch.special.ndtri(below + draw * (above - below))
    return value.clamp(low, high)


def summed_area(cells: Tensor) -> Tensor:
    """Sums a grid over the rectangle above and to the left of every point.

    Args:
        cells: Whole numbers, (N, h, w).

    Returns:
        (N, h + 1, w + 1) int64; zero in the first row and column.
    """
    return F.pad(cells.long().cumsum(1).cumsum(2), (1, 0, 1, 0))


def sum_inside(table: Tensor, boxes: Tensor) -> Tensor:
    """Sums a grid inside boxes; a cell on an edge counts by the share of it inside.

    Args:
        table: What `summed_area` made of it, (N, h + 1, w + 1).
        boxes: xyxy in cells, within the grid, (N, K, 4) float64.

    Returns:
        (N, K) float64.
    """
    height, width = table.shape[1] - 1, table.shape[2] - 1
    # Between its points the integral of such a grid is bilinear: this is exact.
    x = boxes[..., None, 0::2].expand(-1, -1, 2, -1).clamp(0, width)  # (N, K, y, x)
    y = boxes[..., 1::2, None].expand(-1, -1, -1, 2).clamp(0, height)
    column, row = x.floor().clamp(max=width - 1), y.floor().clamp(max=height - 1)
    right, down = x - column, y - row
    at = (row * (width + 1) + column).long().flatten(1)  # (N, 4 K)
    flat = table.flatten(1)
    total = torch.zeros_like(x)
    for step, weight in (
        (0, (1 - right) * (1 - down)),
        (1, right * (1 - down)),
        (width + 1, (1 - right) * down),
        (width + 2, right * down),
    ):
        total = total + weight * flat.gather(1, at + step).view_as(x)
    return total[..., 1, 1] - total[..., 0, 1] - total[..., 1, 0] + total[..., 0, 0]


def _taps(low: Tensor, high: Tensor, size: int, cells: int) -> Tensor:
    """Weights of ``cells`` pixels in ``size`` pixels of [low, high], (N, size, cells)."""
    scale = ((high - low) / size)[:, None, None]  # (N, 1, 1)
    steps = torch.arange(size, device=low.device, dtype=low.dtype)[:, None] + 0.5
    pixel = torch.arange(cells, device=low.device, dtype=low.dtype) + 0.5
    apart = (pixel - (low[:, None, None] + steps * scale)).abs()  # (N, size, cells)
    tent = (1 - apart / scale.clamp(min=1)).clamp(min=0)
    # Pixels that lie outside of the crop are not looked at.
    inside = (pixel + 0.5 > low[:, None] + _SLACK) & (pixel - 0.5 < high[:, None] - _SLACK)
    weights = tent * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def resample(pictures: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Scales crops to squares, bilinear and antialiased, as torchvision resizes a crop.

    Two matrix products per picture; the edges of a crop need not be whole pixels. Where TF32 is
    allowed they are exact to 5e-4 of the range.

    Args:
        pictures: Any number of channels, (N, C, H, W); uint8, or float.
        boxes: The crop of each, xyxy in its pixels, inside it, (N, 4).
        size: Side of the squares.

    Returns:
        (N, C, size, size) float32, in the range of the pixels.
    """
    height, width = pictures.shape[-2:]
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    result = torch.empty(*pictures.shape[:2], size, size, device=pictures.device)
    # One at a time on a CPU, where a picture stays in the cache and its arithmetic cannot depend
    # on its neighbours; all at once elsewhere.
    step = 1 if pictures.device.type == "cpu" else len(pictures)
    with torch.autocast(pictures.device.type, enabled=False):
        across, down = _taps(x1, x2, size, width).mT, _taps(y1, y2, size, height)
        for start in range(0, len(pictures), step):
            part = slice(start, start + step)
            rows = pictures[part].flatten(1, 2).float() @ across[part]  # (n, C * H, size)
            rows = rows.view(-1, pictures.shape[1], height, size)
            torch.matmul(down[part, None], rows, out=result[part])
    return result


@dataclass(frozen=True)
class _Objects:
    """What the masks of N clips say of their objects.

    Attributes:
        cells: In how many frames each cell of the mask shows the object, (N, h, w) int64.
        frames: In how many frames any does, (N,) int64.
        total: All of it, in cells, (N,) int64.
    """

    cells: Tensor
    frames: Tensor
    total: Tensor

    def united(self, taken: tuple[int, ...]) -> "_Objects":
        """Gives each of V clips of a sample the objects of all that take the same one's draws."""
        together = [[u for u, other in enumerate(taken) if other == view] for view in taken]

        def summed(counts: Tensor) -> Tensor:
            clips = counts.view(-1, len(taken), *counts.shape[1:]).unbind(1)
            sums = [torch.stack([clips[u] for u in group]).sum(0) for group in together]
            return torch.stack(sums, dim=1).flatten(0, 1)

        return _Objects(summed(self.cells), summed(self.frames), summed(self.total))

    def bound(self, coverage: float) -> Tensor:
        """The share of the object to be shown, (N,) float64; 0 where there is none."""
        area = self.cells.shape[1] * self.cells.shape[2]
        least = _REACHABLE * area * self.frames.double() / self.total.clamp(min=1)
        return least.clamp(max=coverage) * (self.total > 0)

    def centroid(self) -> Tensor:
        """Where its middle is, x and y in cells, (N, 2) float64."""
        height, width = self.cells.shape[1:]
        x = torch.arange(width, device=self.cells.device, dtype=torch.float64) + 0.5
        y = torch.arange(height, device=self.cells.device, dtype=torch.float64) + 0.5
        across, down = self.cells.sum(1).double(), self.cells.sum(2).double()
        sums = torch.stack([(across * x).sum(1), (down * y).sum(1)], dim=1)
        return sums / self.total.clamp(min=1)[:, None]

    def box(self) -> Tensor:
        """The box about all of it, xyxy in cells, (N, 4) float64."""
        ends = []
        for axis in (1, 2):
            there = (self.cells.sum(axis) > 0).int()  # (N, w), then (N, h)
            first, after = there.argmax(1), there.shape[1] - there.flip(1).argmax(1)
            ends.append(torch.stack([first, after], dim=1))
        return torch.stack(ends, dim=2).flatten(1).double()


def _objects(batch: dict[str, Tensor], judged: Judged) -> _Objects:
    """Counts the objects' cells in all frames of each clip, or in its middle one."""
    count = batch["video"].shape[:2].numel()
    if "mask" not in batch:
        none = torch.zeros(count, dtype=torch.int64, device=batch["video"].device)
        return _Objects(none.view(-1, 1, 1), none, none)
    mask = batch["mask"].flatten(0, 1)  # (N, T, h, w)
    if judged == "middle":
        mask = mask[:, mask.shape[1] // 2, None]
    shown = _object(mask) & batch["tracked"].flatten()[:, None, None, None]
    cells = shown.sum(1)
    return _Objects(cells, shown.flatten(2).any(2).sum(1), cells.sum((1, 2)))


def _object(mask: Tensor) -> Tensor:
    """Tells objects from background (0) and void (255)."""
    return (mask > 0) & (mask < 255)


def _check(batch: dict[str, Tensor]) -> None:
    """Refuses a batch whose parts do not fit; looks at shapes only."""
    absent = [name for name in ("video", "crop", "key") if name not in batch]
    if absent:
        raise ValueError(f"the batch lacks {', '.join(absent)}; it has {', '.join(batch)}")
    video = batch["video"]
    if video.dtype != torch.uint8 or video.dim() != 6 or video.shape[3] != 3:
        raise ValueError(
            "batch['video'] must be uint8 of shape (B, V, T, 3, H, W), got "
            f"{video.dtype} of shape {tuple(video.shape)}"
        )
    clips = tuple(video.shape[:3])
    if batch["crop"].shape != (*clips[:2], 4):
        raise ValueError(
            f"batch['crop'] must be {(*clips[:2], 4)}, got {tuple(batch['crop'].shape)}"
        )
    if ("mask" in batch) != ("tracked" in batch):
        raise ValueError(
            "the batch must have both mask and tracked (videos with tubes), or neither; it has "
            f"{', '.join(batch)}"
        )
    if "mask" not in batch:
        return
    mask, tracked = batch["mask"], batch["tracked"]
    if mask.dtype != torch.uint8 or mask.dim() != 5 or mask.shape[:3] != clips:
        raise ValueError(
            f"batch['mask'] must be uint8 of shape (B, V, T, h, w) with (B, V, T) = {clips} as the "
            f"video has, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if tracked.dtype != torch.bool or tracked.shape != clips[:2]:
        raise ValueError(
            f"batch['tracked'] must be bool of shape (B, V) = {clips[:2]}, got {tracked.dtype} of "
            f"shape {tuple(tracked.shape)}"
        )


def _frame(window: Tensor) -> Tensor:
    """Width and height of windows (..., 4) in pixels of the source, (..., 2) float64."""
    window = window.double()
    return window[..., 2:] - window[..., :2]


class ObjectViews(nn.Module):
    """Crops that cover the object that is tracked, then the colours of `VideoViews`.

    A clip without an object (``tracked`` false, an empty mask, a batch without masks) gets a random
    resized crop. So does every clip with ``coverage`` 0, which asks nothing of the mask. The
    options of the authors' code: a plain random crop (``coverage=0``), a random crop with the test
    (``centre="uniform"``), the crop in the middle of the object (``centre="centroid"``).

    Differs from the code: the test counts the true masks of all frames instead of the middle one's
    (``judged="middle"``); and where the grown box, brought to the shape allowed, covers too little,
    the largest crop of a shape allowed that covers most is taken, so that the bound holds wherever
    any crop can meet it. How far the box grows is not published: uniform up to the border, per
    side.

    Area and shape are those of the source's pixels: ``crop`` says what the canvas shows of them, so
    a canvas that does not keep the shape of the picture changes no crop. Sides are whole pixels of
    the source. Each clip of a sample has a crop of its own, except for those that share their draws
    (``views.shared``), in RSPNet the key and its twin at the other speed: they have one crop, drawn
    about all that their masks show together, and the bound counts all of it. They must show the
    same part of the source.

    Args:
        views: Makes colours, flips, and normalises; says which clips share what is drawn.
        size: Side of the views in pixels. PreViTS 224; 112 for C3D, R(2+1)D and R3D-18.
        scale: Share of the picture's area, uniform between the two.
        ratio: Width over height, its logarithm uniform between the two.
        coverage: mu, the share of the object that a crop must show, in [0, 1] (section 4.6, Table
            7b); of an object that is too large for that, as much as fills 0.4 of the picture.
        centre: Where crops lie: ``gaussian`` about the centroid, with the picture's width and
            height as deviations; ``uniform``; or at the ``centroid``, as near as the border allows.
        judged: Which frames count as the object: all of the ``clip``, or the ``middle`` one.

    Raises:
        ValueError: If a number is outside its range, or a name is unknown.
    """

    def __init__(
        self,
        views: VideoViews,
        size: int = 224,
        scale: tuple[float, float] = (0.4, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        coverage: float = 0.3,
        centre: Centre = "gaussian",
        judged: Judged = "clip",
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be a range of shares in (0, 1], got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be a range above 0, width over height, got {ratio}")
        if not 0 <= coverage <= 1:
            raise ValueError(f"coverage must be a share in [0, 1], got {coverage}")
        if centre not in get_args(Centre):
            raise ValueError(f"centre must be one of {get_args(Centre)}, got {centre!r}")
        if judged not in get_args(Judged):
            raise ValueError(f"judged must be one of {get_args(Judged)}, got {judged!r}")
        self.views = views
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.coverage = coverage
        self.centre: Centre = centre
        self.judged: Judged = judged

    @torch.no_grad()
    def draw(self, batch: dict[str, Tensor]) -> Parameters:
        """Draws the crops of a batch.

        Args:
            batch: As `forward` takes it.

        Returns:
            By name: ``box`` (B, V, 4) float64, the crop in the canvas, xyxy in pixels of the source
            counted from the canvas's corner; ``attempt`` (B, V) int64, which candidate was taken: 0
            to 9 the tries, 10 the grown box, 11 the largest crop; ``bound`` (B, V) float64, the
            share of the object that was asked for, 0 where nothing was; ``covered`` (B, V) float64,
            the share of the object in the crop, 0 where there is none.

        Raises:
            ValueError: If the batch is not as `forward` takes it.
        """
        _check(batch)
        views = batch["video"].shape[1]
        shared = self.views.shared
        keys = share_draws(view_keys(batch["key"], views).view(-1, views), shared)
        keys = keys.flatten()  # (N,), N = B * V
        frame = _frame(batch["crop"].flatten(0, 1))  # (N, 2)
        whole = (frame + _SLACK).floor().clamp(min=1)
        objects = _objects(batch, self.judged)
        if shared is not None:
            objects = objects.united(sources(shared, views))
        bound = objects.bound(self.coverage)  # (N,)
        asked = bound > 0
        grid = frame.new_tensor([objects.cells.shape[2], objects.cells.shape[1]])
        scale = grid / frame  # cells in a pixel of the source, (N, 2)
        table = summed_area(objects.cells)

        def covered(boxes: Tensor) -> Tensor:
            inside = sum_inside(table, boxes * scale.repeat(1, 2)[:, None])
            return inside / objects.total.clamp(min=1)[:, None]  # (N, K)

        centroid = objects.centroid() / scale
        tries, fit = self._tries(keys, whole, centroid, asked)  # (N, 10, 4), (N, 10)
        grown = self._grown(keys, whole, objects.box() / scale.repeat(1, 2), centroid)
        largest = self._largest(whole)  # (N, K, 4)
        best = torch.where(asked, covered(largest).argmax(1), _PLACES // 2)
        largest = largest[torch.arange(len(keys), device=keys.device), best]  # (N, 4)

        boxes = torch.cat([tries, grown[:, None], largest[:, None]], dim=1)  # (N, 12, 4)
        share = covered(boxes)
        fit = F.pad(fit, (0, 2), value=True)  # (N, 12)
        fit[:, _GROWN] = asked
        fit &= share >= bound[:, None]
        fit[:, _LARGEST] = True
        attempt = fit.int().argmax(1, keepdim=True)  # the first that will do
        drawn = {
            "box": boxes.gather(1, attempt[..., None].expand(-1, -1, 4))[:, 0],
            "attempt": attempt[:, 0],
            "bound": bound,
            "covered": share.gather(1, attempt)[:, 0],
        }
        return {name: value.view(-1, views, *value.shape[1:]) for name, value in drawn.items()}

    def _tries(
        self, keys: Tensor, whole: Tensor, centroid: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draws the tries, (N, 10, 4), and tells which fit into the picture, (N, 10)."""
        area, shape, across, down = (
            uniform(keys, _TRIES, stream, torch.float64)
            for stream in (_AREA, _SHAPE, _ACROSS, _DOWN)
        )
        area = whole.prod(1, keepdim=True) * (
            self.scale[0] + area * (self.scale[1] - self.scale[0])
        )
        low, high = (math.log(end) for end in self.ratio)
        ratio = (low + shape * (high - low)).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).round()
        limit = whole[:, None]  # (N, 1, 2)
        fit = ((sides > 0) & (sides <= limit)).all(-1)  # (N, 10)
        sides = torch.minimum(sides.clamp(min=1), limit)
        place = torch.stack([across, down], dim=-1)  # (N, 10, 2)
        plain = (place * (limit - sides + 1)).floor()
        about = plain
        if self.centre != "uniform":
            middle = centroid[:, None]
            if self.centre == "gaussian":
                middle = truncated_normal(place, middle, limit, sides / 2, limit - sides / 2)
            about = torch.minimum((middle - sides / 2).round().clamp(min=0), limit - sides)
        corner = torch.where(asked[:, None, None], about, plain)
        return torch.cat([corner, corner + sides], dim=-1), fit

    def _grown(self, keys: Tensor, whole: Tensor, box: Tensor, centroid: Tensor) -> Tensor:
        """Grows the objects' boxes by chance, then cuts them to the shapes allowed, (N, 4)."""
        grow = uniform(keys, 4, _GROW, torch.float64)
        low = (box[:, :2] * (1 - grow[:, :2])).floor().clamp(min=0)
        high = box[:, 2:] + grow[:, 2:] * (whole - box[:, 2:])
        high = torch.minimum(torch.maximum(high.ceil(), low + 1), whole)
        low = torch.minimum(low, high - 1)
        width, height = (high - low).unbind(1)
        sides = torch.stack(
            [
                torch.minimum(width, (height * self.ratio[1]).floor()),
                torch.minimum(height, (width / self.ratio[0]).floor()),
            ],
            dim=1,
        ).clamp(min=1)
        corner = (centroid - sides / 2).round()
        corner = torch.minimum(torch.maximum(corner, low), high - sides)
        return torch.cat([corner, corner + sides], dim=1)

    def _largest(self, whole: Tensor) -> Tensor:
        """The largest crop of a shape allowed, at places from end to end, (N, K, 4)."""
        width, height = whole.unbind(1)
        sides = torch.stack(
            [
                torch.minimum(width, (height * self.ratio[1]).round()),
                torch.minimum(height, (width / self.ratio[0]).round()),
            ],
            dim=1,
        ).clamp(min=1)
        steps = torch.arange(_PLACES, device=whole.device, dtype=whole.dtype) / (_PLACES - 1)
        corner = ((whole - sides)[:, None] * steps[:, None]).floor()  # (N, K, 2)
        return torch.cat([corner, corner + sides[:, None]], dim=-1)

    @torch.no_grad()
    def cut(self, batch: dict[str, Tensor], drawn: Parameters) -> dict[str, Tensor]:
        """Cuts the crops that were drawn.

        Args:
            batch: As `forward` takes it.
            drawn: What `draw` returned for it.

        Returns:
            A copy of the batch with ``video`` (B, V, T, 3, size, size), ``crop``, ``mask`` (B, V,
            T, size, size) and ``boxes`` cut; nothing is flipped.
        """
        video, window = batch["video"], batch["crop"]
        box = drawn["box"].to(window.device)
        extent = _frame(window).repeat(1, 1, 2)  # (B, V, 4)
        crop = (window[..., :2].double().repeat(1, 1, 2) + box).to(window.dtype)
        shares = (box / extent).flatten(0, 1)  # (N, 4)
        result = {**batch, "crop": crop, "video": self._squares(video, shares)}
        if "mask" in batch:
            shown = _object(batch["mask"])[:, :, :, None].to(torch.uint8) * 255
            cut = self._squares(shown, shares)[:, :, :, 0]
            result["mask"] = (cut >= 128).to(torch.uint8)
        if "boxes" in batch:
            height, width = video.shape[-2:]
            canvas = shares.new_tensor([width, height, width, height])
            low, high = (shares * canvas).view(*box.shape).chunk(2, dim=-1)  # (B, V, 2)
            scale = (self.size / (high - low)).repeat(1, 1, 2)[:, :, None, None]
            moved = (batch["boxes"] - low.repeat(1, 1, 2)[:, :, None, None]) * scale
            result["boxes"] = usable_boxes(moved.to(batch["boxes"]), self.size, self.size)
        return result

    def _squares(self, frames: Tensor, shares: Tensor) -> Tensor:
        """Cuts frames (B, V, T, C, H, W) uint8 to (B, V, T, C, size, size) uint8."""
        height, width = frames.shape[-2:]
        edges = shares * shares.new_tensor([width, height, width, height])  # (N, 4)
        squares = resample(frames.flatten(0, 1).flatten(1, 2), edges, self.size)
        squares = squares.round_().clamp_(0, 255).to(torch.uint8)
        return squares.view(*frames.shape[:4], self.size, self.size)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Parameters]:
        """Makes the training views of a batch.

        Args:
            batch: Holds ``video`` (B, V, T, 3, H, W) uint8, usually whole frames; ``crop`` (B, V,
                4), the part of the source that it shows; ``key`` (B,) int64; where there are tubes
                ``mask`` (B, V, T, h, w) uint8 over the same part, and ``tracked`` (B, V) bool;
                ``boxes`` (B, V, T, N, 4) if there are any.

        Returns:
            A copy of the batch with what `VideoViews` adds, made from the crops: ``views`` (B, V,
            3, T, size, size) float32 and ``views_params``; with ``mask`` (B, V, T, size, size)
            uint8, 0 or 1, and ``boxes`` as they lie in the views; with ``video`` (B, V, T, 3, size,
            size) and ``crop``, cut but never flipped; with what `draw` drew in ``crop_params``. A
            pixel of the mask is 1 where at least half of the pixel shows the object.

        Raises:
            ValueError: If a part is missing, or its type or shape does not fit.
        """
        drawn = self.draw(batch)
        made: dict[str, Tensor | Parameters] = self.views(self.cut(batch, drawn))
        made["crop_params"] = drawn
        return made
