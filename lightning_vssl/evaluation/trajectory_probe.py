"""CtP's probe of what a network knows of motion: fine-tuned on GOT-10k, ever more of it frozen.

Wang et al., "Unsupervised Visual Representation Learning by Tracking Patches in Video" (CVPR 2021),
section 4.3 and Figure 3.
"""

import math
from typing import Self, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.evaluation.base import Batch, Evaluation, training_arguments
from lightning_vssl.losses.trajectory import SIGMA, decode, encode, trajectory_loss
from lightning_vssl.metrics.trajectory import TrajectoryOverlap
from lightning_vssl.nn.gather import all_reduce_sum, world_size
from lightning_vssl.nn.trajectory import TrajectoryHead
from lightning_vssl.optim import Schedule, scheduled

_STATE = "trajectory_probe"  # what a checkpoint holds beside the weights


class TrajectoryProbe(Evaluation):
    """Reads an object's trajectory off one forward pass over a clip, given its first box.

    The head is that of CtP (`lightning_vssl.nn.trajectory`), new, and so is the loss; what is
    varied is how many stages of the network are frozen, from none to all. The paper takes 16
    sequential frames, and says neither how long it trains, nor the crop, nor which frames count;
    see the arguments here and of `lightning_vssl.datamodules.got10k_clips.GOT10kClips`.

    Results, in percent: ``miou``, the mean IoU of predicted and true boxes over the frames that
    show the object, the given one left out; ``held``, that of the first box held still, which is
    what a network without any sense of motion can have.

    Args:
        optimizer: Makes the optimiser of what is not frozen.
        backbone: A 3-D network, or None to take the one that ``weights`` describes.
        weights: What was pretrained, or None for the untouched network.
        schedule: Factor of the learning rate at each step; None for constant.
        frozen_stages: How many stages are frozen, counted from the stem: their weights stay, and
            so do their batch statistics.
        frames: Frames of a clip (section 4.3).
        hidden_channels: Width of the head.
        roi_size: Bins of RoIAlign per side.
        sigma: Scales of the targets; see `lightning_vssl.losses.trajectory.encode`.
        view: Makes the views; None normalises as the backbone wants its pixels.
        paper: The paper's numbers, which it draws in a figure without stating them.

    Raises:
        ValueError: If the network is a 2-D one, has fewer stages, or there is neither ``backbone``
            nor ``weights``.
    """

    epochs_trained: Tensor

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        backbone: Backbone | None = None,
        weights: str | None = None,
        schedule: Schedule | None = None,
        frozen_stages: int = 0,
        frames: int = 16,
        hidden_channels: int = 512,
        roi_size: int = 5,
        sigma: tuple[float, float, float, float] = SIGMA,
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
        if self.backbone.dims != 3:
            raise ValueError(
                f"TrajectoryProbe reads a whole trajectory off one map over time and space, and "
                f"{type(self.backbone).__name__} sees one frame at a time: use a 3-D network"
            )
        stages = self.backbone.stages
        if not 0 <= frozen_stages <= len(stages):
            raise ValueError(
                f"frozen_stages must be from 0 to {len(stages)} ({', '.join(stages)}), got "
                f"{frozen_stages}"
            )
        self.optimizer = optimizer
        self.schedule = schedule
        self.frozen_stages = frozen_stages
        self.frames = frames
        self.sigma = sigma
        time_stride, space_stride = self.backbone.stride
        self.head = TrajectoryHead(
            in_channels=self.backbone.num_features,
            in_frames=math.ceil(frames / time_stride),
            frames=frames,
            stride=space_stride,
            hidden=hidden_channels,
            roi_size=roi_size,
        )
        self._still = self._freeze()
        self.train(self.training)
        self.metric = TrajectoryOverlap()
        self._training: dict[str, object] = {}
        self.register_buffer("epochs_trained", torch.tensor(0))

    def _freeze(self) -> list[nn.Module]:
        """Freezes what the first stages are made of; returns those modules."""
        if self.frozen_stages == 0:
            return []
        last = self.backbone.stages[self.frozen_stages - 1]
        side = 4 * self.backbone.stride[1]
        clip = torch.zeros(1, 3, self.frames, side, side)
        self.backbone.eval()
        own = [p for p in self.backbone.parameters() if p.requires_grad]
        made = self.backbone.features(clip, [last])[last].sum()
        used = torch.autograd.grad(made, own, allow_unused=True)
        for parameter, gradient in zip(own, used, strict=True):
            parameter.requires_grad_(gradient is None)
        return [
            module
            for module in self.backbone.modules()
            if (held := list(module.parameters(recurse=False)))
            and not any(parameter.requires_grad for parameter in held)
        ]

    def train(self, mode: bool = True) -> Self:
        """Switches between training and evaluation; frozen stages stay in evaluation."""
        super().train(mode)
        for module in getattr(self, "_still", []):
            module.eval()
        return self

    def track(self, views: Tensor, query: Tensor) -> Tensor:
        """Follows boxes through clips.

        Args:
            views: Normalised clips, (B, 1, 3, T, H, W).
            query: Boxes of the first frames, (B, 4), xyxy in pixels.

        Returns:
            Predicted targets, (B, T, 4).
        """
        maps = self.maps(views)[:, 0]  # (B, C, T', H', W')
        targets: Tensor = self.head(maps, query[:, None])
        return targets[:, 0]

    @staticmethod
    def _boxes(batch: Batch) -> Tensor:
        """True boxes, (B, T, 4), NaN where the object is not seen."""
        if "boxes" not in batch:
            raise ValueError(
                "TrajectoryProbe needs clips with boxes, and the batch has no 'boxes': use "
                "GOT10kClips"
            )
        return batch["boxes"][:, 0, :, 0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """CtP's loss, over the frames that show the object."""
        self.note_input(batch)
        boxes = self._boxes(batch)
        seen = ~boxes.isnan().any(2)  # (B, T)
        query = boxes[:, 0]
        predicted = self.track(batch["views"], query)
        target = encode(boxes.where(seen[..., None], query[:, None]), query, self.sigma)
        weights = seen.float()
        count = all_reduce_sum(weights.sum()) / world_size()
        centre, size = trajectory_loss(predicted[:, None], target[:, None], weights[:, None], count)
        self.log("train/loss", (centre + size).detach(), prog_bar=True, batch_size=len(boxes))
        return centre + size

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser over what is not frozen, and steps the schedule each step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return scheduled(self.optimizer(trained), self.schedule, self.trainer)

    def on_train_start(self) -> None:
        """Notes how the run is trained: stored beside the number."""
        self._training = training_arguments(self.trainer, self.schedule, None)

    def on_train_epoch_end(self) -> None:
        """Counts the epoch, before a checkpoint is written."""
        self.epochs_trained.fill_(self.trainer.current_epoch + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keeps how the probe was trained, for a test in a run of its own."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE] = self._training

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Takes up how the probe was trained."""
        self._training = cast(dict[str, object], checkpoint.get(_STATE, {}))

    def _measure(self, batch: Batch) -> None:
        self.note_input(batch)
        boxes = self._boxes(batch).double()
        query = boxes[:, 0]
        targets = self.track(batch["views"], query.to(batch["views"]))
        predicted = decode(targets.to(boxes), query, self.sigma)
        self.metric.update(predicted, boxes, batch["index"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the clips of a batch."""
        self._measure(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the clips of a batch."""
        self._measure(batch)

    def _results(self) -> dict[str, float]:
        results = {name: 100 * value for name, value in self.metric.compute().items()}
        self.metric.reset()
        return results

    def on_validation_epoch_end(self) -> None:
        """Logs the overlap."""
        results = self._results()
        self.log_dict({f"val/{name}": value for name, value in results.items()})

    def on_test_epoch_end(self) -> None:
        """Logs and writes the result."""
        results = self._results()
        self.log_dict({f"test/{name}": value for name, value in results.items()})
        counted = {
            "clips": self.metric.clips,
            "frames": self.metric.frames,
            "training": {**self._training, "epochs_trained": int(self.epochs_trained)},
        }
        self.report("test", results, counted)

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "frozen_stages": list(self.backbone.stages[: self.frozen_stages]),
            "frames": self.frames,
            "sigma": list(self.sigma),
            "head": "CtP, new",
        }
