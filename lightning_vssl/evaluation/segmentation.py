"""Objects followed by their features from the masks of the first frame: DAVIS-2017, no training.

The procedures of VFS (Xu and Wang, "Rethinking Self-Supervised Correspondence Learning", ICCV
2021), which VITO uses unchanged (A.4), and of CRW (Jabri et al., NeurIPS 2020), by options.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.restride import First
from lightning_vssl.backbones.restride import restride as densify
from lightning_vssl.data.masks import VOID, MaskedSequence
from lightning_vssl.data.sequences import with_neighbours
from lightning_vssl.evaluation.base import Batch, Evaluation
from lightning_vssl.metrics.segmentation import RegionAndContour
from lightning_vssl.nn.propagation import LabelPropagation

Shrink = Literal["nearest", "bilinear"]


@runtime_checkable
class HasMaskedVideos(Protocol):
    """A data module of videos with masks."""

    split: Literal["train", "val", "test"]

    def sequences(self, split: Literal["train", "val", "test"]) -> Sequence[MaskedSequence]:
        """All sequences of a split."""
        ...


def first_labels(mask: Tensor, size: tuple[int, int], shrink: Shrink = "nearest") -> Tensor:
    """Labels of the cells of a map, from a mask.

    Args:
        mask: Ids, (H, W) uint8; void counts as background.
        size: Height and width of the map.
        shrink: ``nearest``: each cell has the id of its middle (VFS); ``bilinear``: the mask of
            each object is scaled down, without smoothing (CRW).

    Returns:
        (h, w, K + 1) float32 in [0, 1], background first; K is the largest id.
    """
    ids = torch.where(mask == VOID, 0, mask)
    objects = int(ids.max())
    if shrink == "nearest":
        ids = F.interpolate(ids[None, None].float(), size, mode="nearest-exact")[0, 0]
        return F.one_hot(ids.long(), objects + 1).float()
    each = F.one_hot(ids.long(), objects + 1).permute(2, 0, 1).float()  # (K + 1, H, W)
    return F.interpolate(each[None], size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def labels_to_mask(labels: Tensor, size: tuple[int, int], *, stretch: bool = True) -> Tensor:
    """The mask that soft labels of a map make.

    Args:
        labels: (h, w, K + 1), background first.
        size: Height and width of the mask.
        stretch: Bring each object's map, scaled up, to [0, 1] before they are compared (VFS). A map
            that is constant becomes 0.

    Returns:
        Ids, (H, W) uint8.
    """
    maps = labels.permute(2, 0, 1)[None]  # (1, K + 1, h, w)
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]
    if stretch:
        least = maps.amin((1, 2), keepdim=True)
        span = maps.amax((1, 2), keepdim=True) - least
        maps = torch.where(span > 0, (maps - least) / span, 0)
    return maps.argmax(0).to(torch.uint8)


class MaskPropagation(Evaluation):
    """J and F of objects whose first masks are propagated by features, frame by frame.

    Only ``test`` runs it. Results, in percent: ``J&F``, ``J_mean``, ``J_recall``, ``J_decay``,
    ``F_mean``, ``F_recall`` and ``F_decay``, of `RegionAndContour`; ``result.json`` also holds the
    means of every object, and the floor: the first mask left where it is. The masks go to
    callbacks, `lightning_vssl.callbacks.masks.SavedMasks` among them.

    The defaults are VFS's for a ResNet-50. A 3-D network sees each frame as a clip of its own, with
    ``neighbours`` frames on each side, the first and last repeated beyond the ends, and its map in
    the middle is taken. An encoder of patches fills frames up to whole patches, and cells and
    labels are then up to a patch apart at the far ends: set ``multiple`` to the side of its patch.

    Args:
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None for the untouched network.
        propagation: How labels are carried along; None for VFS's.
        stage: Stage whose map is used; None for the last.
        restride: Stages that lose their stride in space; see
            `lightning_vssl.backbones.restride.restride`.
        dilate: Whether kernels behind are dilated; VFS and CRW leave them as they are.
        first: What the convolution that opens such a stage is dilated by.
        size: Short side that frames are brought to, in pixels; None leaves them as they are.
        multiple: Sides of frames are brought to multiples of this, the nearest.
        neighbours: Frames on each side that a 3-D network sees too; a multiple of its stride in
            time at that stage.
        shrink: How the first mask comes down to the map; see `first_labels`.
        stretch: Whether maps of objects are brought to [0, 1]; see `labels_to_mask`.
        clips_at_once: Frames, or clips, per forward pass.
        view: Makes the views; None normalises as the backbone wants its pixels.
        paper: The paper's numbers, for instance ``{"J&F": 66.7}``.

    Raises:
        ValueError: If an option is unknown or does not fit the network.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        weights: str | None = None,
        propagation: LabelPropagation | None = None,
        stage: str | None = "layer3",
        restride: tuple[str, ...] = ("layer3",),
        dilate: bool = False,
        first: First = "previous",
        size: int | None = 480,
        multiple: int = 1,
        neighbours: int = 0,
        shrink: Shrink = "nearest",
        stretch: bool = True,
        clips_at_once: int = 4,
        view: nn.Module | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=None,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        if stage is not None and stage not in self.backbone.stages:
            raise ValueError(
                f"stage must be one of {', '.join(self.backbone.stages)} or null; got {stage!r}"
            )
        if shrink not in get_args(Shrink):
            raise ValueError(f"shrink must be {' or '.join(get_args(Shrink))}, got {shrink!r}")
        if multiple < 1 or (size is not None and size < 1):
            raise ValueError(f"size={size} and multiple={multiple} must be at least 1")
        densify(self.backbone, restride, dilate=dilate, first=first)
        self.stage = self.backbone.stages[-1] if stage is None else stage
        steps = self.backbone.stage_strides[self.stage][0]
        flat = self.backbone.dims == 2
        if neighbours < 0 or neighbours % steps or (flat and neighbours):
            raise ValueError(
                f"neighbours must be 0 for an image network and a multiple of the stride in time, "
                f"{steps}, for {type(self.backbone).__name__}; got {neighbours}"
            )
        self.propagation = propagation if propagation is not None else LabelPropagation()
        self.restride = tuple(restride)
        self.dilate = dilate
        self.first: First = first
        self.size = size
        self.multiple = multiple
        self.neighbours = neighbours
        self.shrink: Shrink = shrink
        self.stretch = stretch
        self.metric = RegionAndContour()
        self.floor = RegionAndContour()
        self._numbers: dict[str, int] = {}  # of sequences, by name
        self.eval().requires_grad_(False)

    def on_after_batch_transfer(  # type: ignore[override]
        self, batch: Batch | MaskedSequence, dataloader_idx: int
    ) -> Batch | MaskedSequence:
        """Leaves a sequence as it is: it is read frame by frame."""
        return batch

    def resized(self, frame: Tensor) -> Tensor:
        """A frame as the network takes it.

        Args:
            frame: (3, H, W) uint8.

        Returns:
            (3, h, w) uint8.
        """
        height, width = frame.shape[-2:]
        scale = 1.0 if self.size is None else self.size / min(height, width)
        unit = self.multiple
        sides = [max(1, round(scale * side / unit)) * unit for side in (height, width)]
        if sides == [height, width]:
            return frame
        small = F.interpolate(
            frame[None].float(), sides, mode="bilinear", align_corners=False, antialias=True
        )
        return small[0].round().clamp(0, 255).to(torch.uint8)

    def features(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Features of frames, some at a time as they are asked for.

        Args:
            frames: (3, H, W) uint8 each.

        Yields:
            (h, w, C) of length 1 for each frame; 0 where the network's map is 0 in all channels.
        """
        clips = with_neighbours((self.resized(frame) for frame in frames), self.neighbours)
        steps = self.backbone.stage_strides[self.stage][0]
        while some := list(islice(clips, self.clips_at_once)):
            video = torch.stack([torch.stack(clip) for clip in some]).to(self.device)
            views = self.view({"video": video[:, None]})["views"]  # (N, 1, 3, T, H, W)
            maps = self.maps(views, self.stage)[:, 0]  # (N, C, T', h, w)
            middle = maps[:, :, self.neighbours // steps].float()
            yield from F.normalize(middle, dim=1).permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def follow(self, frames: Iterable[Tensor], mask: Tensor) -> Iterator[Tensor]:
        """Follows the objects of a mask through the frames; few frames are held at a time.

        Args:
            frames: (3, H, W) uint8 each, in order.
            mask: Ids of the first frame, (H, W) uint8; void counts as background.

        Yields:
            Ids of each frame, (H, W) uint8, on the model's device; of the first the mask itself.
        """
        features = self.features(frames)
        begin = next(features)
        grid, size = (begin.shape[0], begin.shape[1]), (mask.shape[0], mask.shape[1])
        mask = mask.to(self.device)
        labels = first_labels(mask, grid, self.shrink).to(begin)
        found = self.propagation(chain([begin], features), labels)
        next(found)
        yield torch.where(mask == VOID, 0, mask)
        for soft in found:
            yield labels_to_mask(soft, size, stretch=self.stretch)

    def on_fit_start(self) -> None:
        """There is nothing to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError("MaskPropagation trains nothing: run test, not fit")

    def on_test_start(self) -> None:
        """Numbers the sequences.

        Raises:
            ValueError: If the data are not videos with masks.
        """
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(module, HasMaskedVideos):
            raise ValueError(
                f"MaskPropagation follows objects from their first masks, and "
                f"{type(module).__name__} has no videos with masks: use DAVIS"
            )
        names = [sequence.name for sequence in module.sequences(module.split)]
        self._numbers = {name: number for number, name in enumerate(names)}

    def test_step(self, batch: MaskedSequence, batch_idx: int) -> dict[str, Tensor]:
        """Follows the objects of one sequence; gives their ids, (T, H, W) uint8, to callbacks."""
        if len(batch) < 3:
            raise ValueError(
                f"{batch.name}: {len(batch)} frames; three or more are needed, since the first and "
                "the last are not scored"
            )
        truth = torch.stack(list(batch.masks()))  # (T, H, W)
        masks = torch.stack([ids.cpu() for ids in self.follow(batch.frames.frames(), truth[0])])
        if not self._input:
            height, width = self.resized(batch.frames.frame(0)).shape[-2:]
            frames = 2 * self.neighbours + 1
            self._input = {"frames": frames, "height": height, "width": width}
        index = self._numbers[batch.name]
        self.metric.update(truth, masks, index)
        self.floor.update(truth, masks[:1].expand_as(truth), index)
        return {"masks": masks}

    def on_test_epoch_end(self) -> None:
        """Averages over objects, logs and writes the result."""
        results = {name: 100 * value for name, value in self.metric.compute().items()}
        floor = {name: round(100 * value, 3) for name, value in self.floor.compute().items()}
        names = list(self._numbers)
        reached = {
            names[found.index]: {
                measure: [round(100 * one.mean, 3) for one in objects]
                for measure, objects in (("J", found.region), ("F", found.contour))
            }
            for found in self.metric.sequences
        }
        self.metric.reset()
        self.floor.reset()
        self.log_dict(
            {f"test/{name}": value for name, value in results.items()}, rank_zero_only=True
        )
        counted = sum(len(one["J"]) for one in reached.values())
        self.report(
            "test", results, {"objects": counted, "sequences": reached, "first_mask_kept": floor}
        )

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "stage": self.stage,
            "stride": self.backbone.stage_strides[self.stage][1],
            "restride": self.restride,
            "dilate": self.dilate,
            "first": self.first,
            "size": self.size,
            "multiple": self.multiple,
            "neighbours": self.neighbours,
            "shrink": self.shrink,
            "stretch": self.stretch,
            "propagation": self.propagation,
        }
