"""Following one object through a video with a Siamese tracker on a pretrained backbone (SiamFC).

Bertinetto et al., "Fully-convolutional Siamese networks for object tracking", ECCV workshops 2016.
VFS (Xu and Wang, ICCV 2021) freezes the backbone and trains one convolution on it; ConST-CL (Yuan
et al., CVPR 2022, section 4.2) fine-tunes a 3-D network, of which it takes the centre frame.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.restride import First
from lightning_vssl.backbones.restride import restride as densify
from lightning_vssl.data.crops import crop_squares
from lightning_vssl.data.sequences import TrackedSequence, with_neighbours
from lightning_vssl.data.track_files import KeepsTracks
from lightning_vssl.evaluation.base import Batch, Evaluation, training_arguments
from lightning_vssl.evaluation.tracking_report import write_report
from lightning_vssl.losses.response import (
    Distance,
    balanced_response_loss,
    focal_response_loss,
    response_labels,
)
from lightning_vssl.metrics.tracking import OnePassEvaluation, TrackingMetric
from lightning_vssl.nn.gather import all_reduce_sum
from lightning_vssl.nn.siamfc import SiamFCHead
from lightning_vssl.optim import Schedule, scheduled
from lightning_vssl.tracking.siamese import SiameseSearch, cosine_window, find_peak, moved, start

Loss = Literal["balanced", "focal"]
RESULTS = "SiamFC"
"""Folder of the result files, which the toolkits name a tracker after."""

_STATE = "siamfc"  # what a checkpoint holds beside the weights


class SiamFC(Evaluation):
    """Tracks by correlating a target's map with the map of a larger crop (SiamFC).

    ``fit`` trains what is to be trained on pairs of crops; ``test`` follows the box of each
    sequence's first frame to its end, once, without being set right again (one-pass evaluation).
    What there is to train: the head's convolutions (``channels``), the backbone unless ``frozen``,
    or both. With neither, ``test`` alone tracks with the features as they are.

    The papers' variants are arguments: the original trains all layers with the balanced loss; VFS
    (``frozen``, ``channels``, ``loss: focal``, exemplars of 120 pixels) one convolution on frozen
    maps; ConST-CL fine-tunes a 3-D network with ``neighbours`` 2. A 3-D network sees each frame
    with its neighbours, all cut by the frame's own window, and only the map at the frame itself is
    kept. What the papers do not say, and how it is here:

    - Batch statistics stay what they were in pretraining, unless ``statistics``: exemplars and
      search pictures pass the network apart, and would be normalised differently.
    - The port feeds values from 0 to 255; here pixels are as the backbone wants them.
    - Frames after the present one are used where there are ``neighbours``, in tests too.

    Results are those of ``metric``, in percent.

    Args:
        optimizer: Makes the optimiser. Original: SGD, learning rate 0.01, momentum 0.9, weight
            decay 5e-4.
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: What was pretrained, or None for the untouched network.
        schedule: Factor of the learning rate at each step; None for constant.
        frozen: Whether the backbone is left alone.
        statistics: Whether the batch norms of a backbone that is trained go on with the batch's
            statistics.
        stage: The stage whose map is used; None for the last.
        restride: Stages that lose their stride in space, so that the map is finer; their kernels
            are dilated. See `lightning_vssl.backbones.restride.restride`.
        first: How the first block of such a stage is dilated.
        channels: Channels of the head's convolutions; None for none.
        scale: What the correlation is multiplied by to be a logit.
        neighbours: Frames n on each side that a 3-D network sees too.
        loss: ``balanced`` (SiamFC) or ``focal`` (VFS).
        radius: Distance to the target, in pixels of the search crop, up to which a cell counts as
            on it.
        distance: How that is measured; see `lightning_vssl.losses.response.response_labels`.
        search: The search's numbers; None for the original's.
        metric: What is measured in tests; None for OTB's.
        view: Makes the views; None normalises as the backbone wants its pixels.
        paper: The paper's numbers, for instance ``{"success": 52.5}``.

    Raises:
        ValueError: On values out of range, if both ``backbone`` and ``weights`` are None, or the
            backbone cannot take ``stage``, ``restride`` or ``neighbours``.
    """

    epochs_trained: Tensor

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        backbone: Backbone | None = None,
        weights: str | None = None,
        schedule: Schedule | None = None,
        frozen: bool = False,
        statistics: bool = False,
        stage: str | None = None,
        restride: Sequence[str] = (),
        first: First = "previous",
        channels: int | None = None,
        scale: float = 0.001,
        neighbours: int = 0,
        loss: Loss = "balanced",
        radius: float = 16.0,
        distance: Distance = "l1",
        search: SiameseSearch | None = None,
        metric: TrackingMetric | None = None,
        view: nn.Module | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=None,
            clips_at_once=None,
            paper=paper,
        )
        if loss not in get_args(Loss):
            raise ValueError(f"loss must be balanced or focal, got {loss!r}")
        if neighbours < 0 or (neighbours and self.backbone.dims == 2):
            raise ValueError(
                f"neighbours must be 0 or more, and 0 for an image network; got {neighbours} for "
                f"{type(self.backbone).__name__}"
            )
        if stage is not None and stage not in self.backbone.stages:
            raise ValueError(
                f"stage must be one of {', '.join(self.backbone.stages)}; got {stage!r}"
            )
        densify(self.backbone, restride, first=first)
        self.optimizer = optimizer
        self.schedule = schedule
        self.frozen = frozen
        self.statistics = statistics
        self.stage = self.backbone.stages[-1] if stage is None else stage
        self.restride = tuple(restride)
        self.first: First = first
        self.neighbours = neighbours
        self.loss: Loss = loss
        self.radius = radius
        self.distance: Distance = distance
        self.search = search if search is not None else SiameseSearch()
        self.metric = metric if metric is not None else OnePassEvaluation()
        self.head = SiamFCHead(self.backbone.stage_channels[self.stage], channels, scale=scale)
        self.backbone.requires_grad_(not frozen)
        if not frozen:
            self._leave_unused()
        self.train(self.training)
        self._training: dict[str, object] = {}
        self._tracked = torch.zeros(2, dtype=torch.float64)  # frames, seconds
        self._withheld = 0
        self.register_buffer("epochs_trained", torch.tensor(0))

    def _leave_unused(self) -> None:
        """Freezes what lies behind the stage that is used: DDP waits for every gradient."""
        side = 2 * max(space for _, space in self.backbone.stage_strides.values())
        clip = torch.zeros(
            1, 3, *([2 * self.neighbours + 1] * (self.backbone.dims - 2)), side, side
        )
        self.backbone.eval()
        own = [p for p in self.backbone.parameters() if p.requires_grad]
        made = self.backbone.features(clip, [self.stage])[self.stage].sum()
        found = torch.autograd.grad(made, own, allow_unused=True)
        for parameter, gradient in zip(own, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    def train(self, mode: bool = True) -> Self:
        """Switches between training and evaluation; fixed batch statistics stay fixed."""
        super().train(mode)
        if self.frozen or not self.statistics:
            self.backbone.eval()
        return self

    @property
    def stride(self) -> int:
        """Pixels of a crop between two cells of its map."""
        return self.backbone.stage_strides[self.stage][1]

    def embed(self, clips: Tensor) -> Tensor:
        """Maps of the clips' middle frames.

        Args:
            clips: Normalised, (N, 3, T, H, W), T = 2n + 1.

        Returns:
            (N, C, H', W').
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.maps(clips[:, None], self.stage)[:, 0]  # (N, C, T', H', W')
        steps = self.backbone.stage_strides[self.stage][0]
        return maps[:, :, min(clips.shape[2] // 2 // steps, maps.shape[2] - 1)]

    # Training

    def responses(self, views: Tensor) -> Tensor:
        """Response maps of pairs.

        Args:
            views: Normalised, (B, 2, 3, T, S, S), the exemplar in the middle of the first.

        Returns:
            (B, R, R).
        """
        exemplars, searches = views.unbind(1)  # (B, 3, T, S, S) each
        edge = (views.shape[-1] - self.search.exemplar) // 2
        inside = slice(edge, edge + self.search.exemplar)
        kernels = self.embed(exemplars[..., inside, inside])
        found: Tensor = self.head(kernels, self.embed(searches))
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the response maps."""
        self.note_input(batch)
        responses = self.responses(batch["views"])  # (B, R, R)
        height, width = responses.shape[1:]
        labels = response_labels(
            (height, width), self.radius / self.stride, distance=self.distance
        ).to(responses)
        if self.loss == "focal":
            loss = focal_response_loss(responses, labels)
        else:
            loss = balanced_response_loss(responses, labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(responses))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser over what is trained, and steps the schedule each step.

        Raises:
            ValueError: If nothing is trained.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise ValueError(
                "nothing to train: the backbone is frozen and the head has no convolutions; run "
                "test, or give channels, or set frozen: false"
            )
        return scheduled(self.optimizer(trained), self.schedule, self.trainer)

    def on_train_start(self) -> None:
        """Notes how the run is trained: stored beside the number."""
        self._training = training_arguments(self.trainer, self.schedule, None)

    def on_train_epoch_end(self) -> None:
        """Counts the epoch, before a checkpoint is written."""
        self.epochs_trained.fill_(self.trainer.current_epoch + 1)

    # Tracking

    def on_after_batch_transfer(  # type: ignore[override]  # tests hand over sequences
        self, batch: Batch | TrackedSequence, dataloader_idx: int
    ) -> Batch | TrackedSequence:
        """Makes the views of training pairs; a sequence stays as it is."""
        if isinstance(batch, TrackedSequence):
            return batch
        return super().on_after_batch_transfer(batch, dataloader_idx)

    @torch.no_grad()
    def track(self, sequence: TrackedSequence) -> tuple[Tensor, list[float]]:
        """Follows the box of the first frame.

        Args:
            sequence: The frames, and the first one's box; the other boxes are not looked at.

        Returns:
            Boxes, (F, 4) float64, xyxy in pixels, on the CPU, the first as it was given; and the
            seconds that each frame took, reading it included.

        Raises:
            ValueError: If the first box is missing or has no area.
            UnreadableFrame: If a frame cannot be read.
        """
        x1, y1, x2, y2 = sequence.boxes[0].tolist()
        try:
            target = start((x1, y1, x2, y2), self.search)
        except ValueError as error:
            raise ValueError(f"{sequence.name}: {error}") from error
        boxes, seconds, began = [target.box], [], time.perf_counter()
        frames = (frame.to(self.device) for frame in sequence.frames.frames())
        clips = with_neighbours(frames, self.neighbours)
        around = next(clips)
        fill = around[self.neighbours].float().mean((1, 2))
        size, larger = self.search.exemplar, self.search.search / self.search.exemplar
        kernel = self._crop_maps(around, target.centre, [target.side], size, fill)  # (1, C, h, w)
        window = cosine_window(self.search.response).to(self.device)
        for around in clips:
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            sides = [larger * target.side * factor for factor in self.search.factors]
            maps = self._crop_maps(around, target.centre, sides, self.search.search, fill)
            peak = find_peak(self.head(kernel, maps), self.search, self.stride, window)
            target = moved(target, peak, self.search)
            boxes.append(target.box)
        seconds.append(time.perf_counter() - began)
        found = torch.tensor(boxes, dtype=torch.float64)
        found[0] = sequence.boxes[0]  # its sides, not its centre, are what was given
        return found, seconds

    def _crop_maps(
        self,
        frames: Sequence[Tensor],
        centre: tuple[float, float],
        sides: Sequence[float],
        size: int,
        fill: Tensor,
    ) -> Tensor:
        """Maps of square windows of one place and several sides, (N, C, H', W')."""
        centres = torch.tensor([centre] * len(sides), dtype=torch.float64)
        widths = torch.tensor(sides, dtype=torch.float64)
        crops = [crop_squares(frame, centres, widths, size, fill) for frame in frames]
        video = torch.stack(crops, dim=1).round().clamp(0, 255).byte()  # (N, T, 3, size, size)
        with torch.autocast(self.device.type, enabled=False):
            made: Batch = self.view({"video": video[:, None]})
        return self.embed(made["views"][:, 0])

    def test_step(self, batch: TrackedSequence, batch_idx: int) -> dict[str, Tensor]:
        """Tracks one sequence and writes what was found; gives callbacks ``predicted`` (F, 4)."""
        predicted, seconds = self.track(batch)
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(module, KeepsTracks):
            folder = Path(self.trainer.default_root_dir) / RESULTS
            module.track_files(folder).write(batch.name, predicted, seconds)
        self._tracked += torch.tensor([len(batch), sum(seconds)], dtype=torch.float64)
        if len(batch) > 1 and batch.boxes[1:].isnan().all():
            self._withheld += 1
        else:
            self.metric.update(batch, predicted)
        return {"predicted": predicted}

    def on_test_epoch_end(self) -> None:
        """Takes the sequences of all ranks together, logs and writes the result."""
        counts = torch.cat([self._tracked, torch.tensor([self._withheld])]).to(self.device)
        frames, seconds, withheld = all_reduce_sum(counts).tolist()
        self._tracked.zero_()
        self._withheld = 0
        if withheld:
            rank_zero_info(
                f"the true boxes of {withheld:.0f} sequences are withheld: send "
                f"{Path(self.trainer.default_root_dir) / RESULTS} to the data set's server"
            )
            return
        results = {name: 100 * value for name, value in self.metric.compute().items()}
        self.log_dict(
            {f"test/{name}": value for name, value in results.items()}, rank_zero_only=True
        )
        details = {
            "sequences": len(self.metric.table),
            "frames": int(frames),
            "frames_per_second": round(frames / seconds, 2),
            "epochs_trained": int(self.epochs_trained),
            "training": self._training,
            "checkpoint": self.trainer.ckpt_path,
        }
        self.report("test", results, details)
        if self.trainer.is_global_zero:
            write_report(Path(self.trainer.default_root_dir), self.metric, self.method)
        self.metric.reset()

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "frozen": self.frozen,
            "statistics": self.statistics,
            "stage": self.stage,
            "restride": self.restride,
            "first": self.first,
            "stride": self.stride,
            "head": self.head,
            "neighbours": self.neighbours,
            "loss": self.loss,
            "radius": self.radius,
            "distance": self.distance,
            "search": self.search,
            "metric": {
                "class": type(self.metric).__name__,
                "convention": getattr(self.metric, "convention", "got10k"),
                "rounded": self.metric.rounded,
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keeps how the run was trained, and says in the export record what became of the net."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE] = self._training
        record = checkpoint["export"]
        if isinstance(record, dict) and not self.frozen:
            record["method"] = f"{self.method}, SiamFC"

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Restores how the run was trained."""
        noted = checkpoint.get(_STATE)
        self._training = noted if isinstance(noted, dict) else {}
