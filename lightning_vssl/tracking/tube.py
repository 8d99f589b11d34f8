"""The tube of a video: where its largest salient object is, frame by frame (PreViTS section 3.2).

Saliency of every frame, the connected regions of it, tracks of these regions, and of the tracks the
one that is largest. The paper starts from the saliency map of the first frame alone, and says no
more of the masks that follow; a mask of every frame needs saliency of every frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lightning_vssl.tracking.saliency import Saliency
from lightning_vssl.tracking.sort import Bools, Floats, Ints, Sort

_SORT_SIDE = 480.0  # short side of the frames, in pixels, that SORT's constants are meant for
_FLAT, _BESIDE = np.zeros((2, 3, 3, 3), np.bool_)  # connected within a frame, not over time
_FLAT[1] = ndimage.generate_binary_structure(2, 2)  # over corners too
_BESIDE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Tracked:
    """Where the object of a video is.

    Args:
        masks: (F, H, W) bool; all False where it is lost.
        boxes: The smallest boxes about the masks, (F, 4) float32 xyxy in pixels; NaN where lost.
    """

    masks: Tensor
    boxes: Tensor

    @property
    def found(self) -> Tensor:
        """Whether there is a mask, (F,) bool."""
        return ~self.boxes[:, 0].isnan()


@dataclass(frozen=True)
class _Region:
    """A connected salient region of a frame, in pixels of the maps."""

    mask: Bools
    box: tuple[int, int, int, int]
    weight: float


class Tracker:
    """Turns the frames of a video into the tube of its largest salient object.

    Args:
        saliency: What finds salient pixels.
        threshold: Least saliency of a pixel of an object, in (0, 1].
        target: Which track is the object: ``largest``, the one with the most salient pixels over
            the whole video (weighted by their saliency); ``first``, the largest in the first frame
            that has one, as in the paper.
        min_area: Least share of the frame that a region has, in [0, 1).
        max_area: Largest share; what is larger is the scene.
        max_regions: Regions of a frame that are followed, the largest.
        gate: Least overlap from frame to frame, of boxes and masks, in [0, 1].
        mask_weight: Weight of the masks in that overlap, in [0, 1].
        max_age: Frames that a track outlives unseen. SORT has 1, which is for crowds.
        min_hits: Frames in which a track must be seen, or it is none.
        short_side: Pixels of the short side that maps are scaled down to; never up.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        saliency: Saliency,
        *,
        threshold: float = 0.5,
        target: Literal["largest", "first"] = "largest",
        min_area: float = 0.005,
        max_area: float = 0.8,
        max_regions: int = 8,
        gate: float = 0.3,
        mask_weight: float = 0.5,
        max_age: int = 12,
        min_hits: int = 3,
        short_side: int = 96,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold}: above 0, at most 1")
        if target not in ("largest", "first"):
            raise ValueError(f"target={target!r}: choose 'largest' or 'first'")
        if not 0 <= min_area < max_area <= 1:
            raise ValueError(f"min_area={min_area}, max_area={max_area}: shares, the first smaller")
        if min(max_regions, min_hits, short_side) < 1:
            raise ValueError(
                f"max_regions={max_regions}, min_hits={min_hits}, short_side={short_side}: each 1 "
                "or more"
            )
        Sort(gate=gate, mask_weight=mask_weight, max_age=max_age)  # refuses what it cannot take
        self.saliency = saliency
        self.threshold = threshold
        self.target = target
        self.min_area = min_area
        self.max_area = max_area
        self.max_regions = max_regions
        self.gate = gate
        self.mask_weight = mask_weight
        self.max_age = max_age
        self.min_hits = min_hits
        self.short_side = short_side

    @property
    def settings(self) -> dict[str, object]:
        """What the tubes depend on, plain data: kept with them."""
        own = {name: value for name, value in vars(self).items() if name != "saliency"}
        source = {f"saliency.{name}": value for name, value in self.saliency.settings.items()}
        return {**source, **own}

    def __call__(self, frames: Tensor, video: str = "", numbers: Sequence[int] = ()) -> Tracked:
        """Finds the object.

        Args:
            frames: (F, 3, H, W) uint8 RGB, in the order of the video.
            video: Name of the video, for maps from the disk.
            numbers: The frames' numbers in the video, from 0, (F,), for the same; empty means 0,
                1, ...

        Returns:
            Masks and boxes, on the CPU, of the size of the frames.

        Raises:
            ValueError: If the frames are no such tensor, or the saliency maps are not of theirs.
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames: got {tuple(frames.shape)} {frames.dtype}, need (F, 3, H, W) uint8"
            )
        count, height, width = len(frames), frames.shape[-2], frames.shape[-1]
        if not count:
            return Tracked(torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0, 4))
        return self.follow(self.saliency(frames, video, numbers), count, height, width)

    def follow(self, maps: Tensor, count: int, height: int, width: int) -> Tracked:
        """Finds the object in maps of its saliency.

        Args:
            maps: (F, h, w) in [0, 1].
            count: F, the frames.
            height: Their height H.
            width: Their width W.

        Returns:
            Masks (F, H, W) and boxes, on the CPU.

        Raises:
            ValueError: If the maps are not one a frame, of the frames' shape.
        """
        maps = self._checked(maps, count, height, width)
        regions = self._regions(maps.numpy())
        tracks = self._tracks(regions, maps.shape[-2], maps.shape[-1])
        masks = np.zeros(tuple(maps.shape), np.bool_)
        for frame, region in self._chosen(regions, tracks).items():
            masks[frame] = region.mask
        masks |= _holes(masks)
        return _tracked(torch.from_numpy(masks), height, width)

    def _checked(self, maps: Tensor, count: int, height: int, width: int) -> Tensor:
        """Maps on the CPU, scaled down."""
        if maps.ndim != 3 or len(maps) != count:
            raise ValueError(
                f"saliency maps {tuple(maps.shape)}: need one (h, w) for {count} frames"
            )
        h, w = maps.shape[-2:]
        if abs(h * width - w * height) > 1.01 * max(h, w, height, width):
            raise ValueError(
                f"saliency maps of {h} x {w} pixels do not have the shape of frames of {height} x "
                f"{width}"
            )
        maps = maps.detach().cpu().float()
        scale = self.short_side / min(h, w)
        if scale < 1:
            size = max(1, round(h * scale)), max(1, round(w * scale))
            maps = functional.interpolate(maps[:, None], size, mode="area")[:, 0]
        return maps

    def _regions(self, maps: npt.NDArray[np.float32]) -> list[list[_Region]]:
        """Salient regions of each frame, the largest first."""
        labels, many = ndimage.label(maps >= self.threshold, structure=_FLAT)
        areas = np.bincount(labels.ravel(), minlength=many + 1)
        weights = np.bincount(labels.ravel(), maps.ravel(), minlength=many + 1)
        shares = areas / (maps.shape[1] * maps.shape[2])
        found: list[list[_Region]] = [[] for _ in maps]
        for label, place in enumerate(ndimage.find_objects(labels), 1):
            if self.min_area <= shares[label] <= self.max_area:
                t, y, x = place
                mask = np.zeros(maps.shape[1:], np.bool_)
                mask[y, x] = labels[t.start, y, x] == label
                box = (x.start, y.start, x.stop, y.stop)
                found[t.start].append(_Region(mask, box, float(weights[label])))
        return [sorted(regions, key=lambda r: -r.weight)[: self.max_regions] for regions in found]

    def _tracks(self, regions: list[list[_Region]], height: int, width: int) -> list[Ints]:
        """Numbers of the tracks of the regions of each frame."""
        scale = _SORT_SIDE / min(height, width)
        sort = Sort(self.gate, self.max_age, self.mask_weight, scale)
        ids = []
        for found in regions:
            boxes: Floats = np.array([region.box for region in found], np.float64).reshape(-1, 4)
            masks = np.array([region.mask for region in found]).reshape(-1, height, width)
            ids.append(sort(boxes * scale, masks.astype(np.bool_)))
        return ids

    def _chosen(self, regions: list[list[_Region]], tracks: list[Ints]) -> dict[int, _Region]:
        """The region of the object in each frame that has one."""
        members: dict[int, dict[int, _Region]] = {}
        for frame, (found, ids) in enumerate(zip(regions, tracks, strict=True)):
            for region, name in zip(found, ids.tolist(), strict=True):
                members.setdefault(name, {})[frame] = region
        least = min(self.min_hits, len(regions))
        lasting = [track for track in members.values() if len(track) >= least]
        if not lasting:
            return {}
        if self.target == "first":
            start = min(min(track) for track in lasting)
            begun = [track for track in lasting if start in track]
            return max(begun, key=lambda track: track[start].weight)
        return max(lasting, key=lambda track: sum(region.weight for region in track.values()))


def _holes(masks: Bools) -> Bools:
    """What masks (F, h, w) surround: the background that does not reach the border."""
    beside, many = ndimage.label(~masks, structure=_BESIDE)
    open_ = np.zeros(many + 1, np.bool_)
    for rim in (beside[:, 0], beside[:, -1], beside[:, :, 0], beside[:, :, -1]):
        open_[rim] = True
    open_[0] = True  # the masks themselves
    holes: Bools = ~open_[beside]
    return holes


def _tracked(masks: Tensor, height: int, width: int) -> Tracked:
    """Scales masks (F, h, w) to a size and finds their boxes."""
    if masks.shape[-2:] != (height, width):
        grown = functional.interpolate(masks[:, None].float(), (height, width), mode="bilinear")
        masks = grown[:, 0] >= 0.5
    columns, rows = masks.any(1), masks.any(2)  # (F, W), (F, H)
    ends = [
        columns.int().argmax(1),
        rows.int().argmax(1),
        width - columns.flip(1).int().argmax(1),
        height - rows.flip(1).int().argmax(1),
    ]
    boxes = torch.stack(ends, dim=1).float()
    boxes[~columns.any(1)] = torch.nan
    return Tracked(masks, boxes)
