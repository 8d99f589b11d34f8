"""Action localisation on AVA and AVA-Kinetics: what does each person of a frame do?

ConST-CL (Yuan et al., CVPR 2022, section 4.2) attaches an action transformer to the local branch
and trains all of it with true boxes; VideoGLUE, of the same authors, also leaves the backbone
frozen. SlowFast and the rho-MoCo study train a plain RoI head. Both are tested with the true boxes
of the evaluated frames, or with a detector's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self, get_args, runtime_checkable

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import Configured
from lightning_vssl.data.action_boxes import write_predictions
from lightning_vssl.evaluation.base import Batch, Evaluation, Split, training_arguments
from lightning_vssl.losses.actions import Classes, action_loss
from lightning_vssl.metrics.detection import DetectionMetric, DetectionTask, Variant
from lightning_vssl.nn.action_transformer import ActionTransformer
from lightning_vssl.optim import Schedule, scheduled

HeadCallable = Callable[[int, int], nn.Module]
"""Makes a head from the channels of the map and the number of classes."""

PREDICTIONS = "predictions.csv"

_STATE = "localization"  # what a checkpoint holds beside the weights


@runtime_checkable
class HasActions(Protocol):
    """A data module of persons' boxes and actions, as `lightning_vssl.datamodules.ava.AVA`."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the actions; class c is action c + 1."""

    def task(self, split: Literal["val", "test"]) -> DetectionTask:
        """What a split asks: its ground truth, and the boxes that are classified."""


class ActionLocalisation(Evaluation):
    """A head that classifies boxes, trained on a backbone, and its frame-mAP.

    Training takes the boxes of a batch as the data module gives them (true ones, at most 32 a
    clip); validation and test classify the boxes that the data module proposes: the true ones, or
    a detector's. Result is ``mAP`` in percent; ``result.json`` also holds the average precision of
    every action, and a test leaves ``predictions.csv``, which the official evaluation reads.

    Args:
        optimizer: Makes the optimiser. ConST-CL does not say which; SlowFast: SGD, momentum 0.9,
            weight decay 1e-7, learning rate 0.3 for 64 clips with ``class_loss="mean"``.
        backbone: The network, or None to take the one that ``weights`` describes. ConST-CL's local
            branch is ``YResNet(endpoint="local")``.
        weights: Path of what was pretrained, or None to train from scratch.
        stage: Whose map the head sees, one of the backbone's stages; None for the last.
        head: Makes the head from the map's channels and the number of classes:
            `lightning_vssl.nn.action_transformer.ActionTransformer` or ``RoIHead``.
        frozen: Whether the backbone stays as it is, in evaluation mode: with the action transformer
            an attentive probe.
        schedule: Factor of the learning rate at each step; None for constant.
        class_loss: Whether a box's loss is the ``sum`` over classes (VideoGLUE) or their ``mean``
            (SlowFast).
        variant: Whose evaluation; see `lightning_vssl.metrics.detection.frame_map`.
        confidence: Whether scores are multiplied by the detector's (VideoGLUE) or not (SlowFast);
            true boxes have 1.
        view: Makes the views of validation and test; None normalises as the backbone wants.
        augment: Makes the views of training, boxes included:
            `lightning_vssl.augment.jitter.JitteredViews`; None uses ``view``.
        clips_at_once: Clips per forward pass outside training; None takes all of the batch.
        paper: The paper's numbers, for instance ``{"mAP": 31.1}``.

    Raises:
        ValueError: On values that do not exist, or if both ``backbone`` and ``weights`` are None.
    """

    steps_trained: Tensor

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        backbone: Backbone | None = None,
        weights: str | None = None,
        stage: str | None = None,
        head: HeadCallable = ActionTransformer,
        frozen: bool = False,
        schedule: Schedule | None = None,
        class_loss: Classes = "sum",
        variant: Variant = "activitynet",
        confidence: bool = True,
        view: nn.Module | None = None,
        augment: nn.Module | None = None,
        clips_at_once: int | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=augment,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        if stage is not None and stage not in self.backbone.stages:
            raise ValueError(
                f"stage must be null or one of {', '.join(self.backbone.stages)}, got {stage!r}"
            )
        if class_loss not in get_args(Classes):
            raise ValueError(f"class_loss must be sum or mean, got {class_loss!r}")
        self.stage = stage
        self.frozen = frozen
        self.backbone.train(not frozen).requires_grad_(not frozen)
        self.make_head = head
        self.head: nn.Module | None = None
        self.optimizer = optimizer
        self.schedule = schedule
        self.class_loss: Classes = class_loss
        self.metric = DetectionMetric(variant=variant, confidence=confidence)
        self._training: dict[str, object] = {}
        self._validation: tuple[dict[str, float], dict[str, object]] | None = None
        self.register_buffer("steps_trained", torch.tensor(0))

    # The head

    def setup(self, stage: str) -> None:
        """Makes the head, once the data's classes are known.

        Raises:
            ValueError: If the data has no actions, or another number of them than the head.
        """
        self.build(len(self._data().classes))

    def build(self, num_classes: int) -> None:
        """Makes the head, unless it is there.

        Args:
            num_classes: Number of classes.

        Raises:
            ValueError: If the head is there, for another number of classes.
        """
        if self.head is None:
            channels = self.backbone.stage_channels[self.stage or self.backbone.stages[-1]]
            self.head = self.make_head(channels, num_classes)
            self.num_classes = num_classes
        elif self.num_classes != num_classes:
            raise ValueError(
                f"the head has {self.num_classes} classes and the data {num_classes}: the "
                "checkpoint belongs to another data set"
            )

    def train(self, mode: bool = True) -> Self:
        """Switches between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, views: Tensor, boxes: Tensor) -> Tensor:
        """Classifies boxes.

        Args:
            views: One normalised clip each, (B, 1, 3, T, H, W).
            boxes: (B, N, 4), xyxy in pixels of the views; NaN where there is none.

        Returns:
            Logits, (B, N, C); where there is no box any finite numbers.
        """
        if self.head is None:
            raise RuntimeError("the head is not built: run the evaluation with a Trainer")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.maps(views, self.stage)[:, 0]  # (B, C, T', H', W')
        height, width = views.shape[-2:]
        places = boxes / boxes.new_tensor([width, height, width, height])
        nowhere = ~_there(boxes)[..., None]
        places = torch.where(nowhere, places.new_tensor([0.0, 0.0, 1.0, 1.0]), places)
        logits: Tensor = self.head(maps, places)
        return logits

    # Training

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser over what is trained, and steps the schedule each step.

        Raises:
            ValueError: If there is a schedule but no end of training.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        return scheduled(self.optimizer(trained), self.schedule, self.trainer)

    def on_train_start(self) -> None:
        """Notes how the head is trained: stored beside the number."""
        self._training = training_arguments(self.trainer, self.schedule, self.augment)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy of the boxes that are in the views.

        Raises:
            ValueError: If the batch has no boxes, or no classes of them.
        """
        boxes, labels = _boxes(batch), batch.get("box_labels")
        if labels is None:
            raise ValueError(
                "ActionLocalisation trains on the actions of boxes, and the batch has no "
                "'box_labels': use AVA or AVAKinetics"
            )
        present = _there(boxes)
        logits = self(batch["views"], boxes)
        loss = action_loss(logits, labels[:, 0], present, self.class_loss)
        self.steps_trained.fill_(self.trainer.global_step + 1)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(boxes))
        self.log("train/boxes_per_clip", present.sum() / len(boxes), batch_size=len(boxes))
        return loss

    def on_fit_end(self) -> None:
        """Writes the numbers of the last validation."""
        if self._validation is not None:
            self.report("validation", *self._validation)

    # Validation and test

    def on_validation_start(self) -> None:
        """Takes up what the validation frames ask; refuses by itself what was never trained."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._check_trained()
        self._ask("val")

    def on_test_start(self) -> None:
        """Takes up what the test frames ask; refuses what was never trained."""
        self._check_trained()
        self._ask("test")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the boxes of a batch."""
        self._score(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the boxes of a batch."""
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/mAP``."""
        if self.trainer.sanity_checking:
            self.metric.reset()
            return
        results, details = self._measure("validation")
        self.log("val/mAP", results["mAP"], prog_bar=True, sync_dist=True)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._validation = results, details
        else:
            self.report("validation", results, details)

    def on_test_epoch_end(self) -> None:
        """Logs, and writes the result and the predictions."""
        results, details = self._measure("test")
        self.log("test/mAP", results["mAP"], sync_dist=True)
        self.report("test", results, details)

    def _score(self, batch: Batch) -> None:
        self.note_input(batch)
        boxes = _boxes(batch)
        if "box_index" not in batch:
            raise ValueError(
                "ActionLocalisation scores the boxes that the data proposes, and the batch has no "
                "'box_index': use AVA or AVAKinetics"
            )
        present = _there(boxes)
        probabilities = self(batch["views"], boxes)[present].sigmoid()  # (M, C)
        self.metric.update(probabilities, batch["box_index"][present])

    def _measure(self, split: Split) -> tuple[dict[str, float], dict[str, object]]:
        """The results in percent, and what is stored beside them; after a test the predictions."""
        mean = self.metric.compute()["mAP"]
        rows = self.metric.rows
        if split == "test" and rows is not None and self.trainer.is_global_zero:
            write_predictions(Path(self.trainer.default_root_dir) / PREDICTIONS, rows)
        names = self._data().classes
        found = self.metric.average_precision
        details: dict[str, object] = {
            "boxes": self.metric.boxes,
            "steps_trained": int(self.steps_trained),
            "checkpoint": self.trainer.ckpt_path,
            "average_precision": {
                f"{action} {names[action - 1]}": None if math.isnan(value) else 100 * value
                for action, value in found.items()
            },
        }
        self.metric.reset()
        return {"mAP": 100 * float(mean)}, details

    def _ask(self, split: Literal["val", "test"]) -> None:
        self.metric.reset()
        self.metric.task = self._data().task(split)

    def _data(self) -> HasActions:
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(module, HasActions):
            raise ValueError(
                "ActionLocalisation needs boxes of persons and what they do, and "
                f"{type(module).__name__} has none: use AVA or AVAKinetics"
            )
        return module

    def _check_trained(self) -> None:
        if int(self.steps_trained) == 0:
            raise ValueError(
                "the head of this ActionLocalisation was never trained: run fit first, or give the "
                "checkpoint of its run (--ckpt_path)"
            )

    # What is stored

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "head": self.head.config if isinstance(self.head, Configured) else self.head,
            "stage": self.stage or self.backbone.stages[-1],
            "frozen_backbone": self.frozen,
            "class_loss": self.class_loss,
            "variant": self.metric.variant,
            "times_confidence": self.metric.confidence,
            "training": self._training,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Adds how the head was trained, and that the backbone was."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE] = {"num_classes": self.num_classes, "training": self._training}
        record = checkpoint["export"]
        if isinstance(record, dict) and not self.frozen:
            record["method"] = f"{self.method}, ActionLocalisation"

    def on_load_checkpoint(self, checkpoint: Mapping[str, object]) -> None:
        """Makes the head that the checkpoint holds.

        Raises:
            ValueError: If it was saved by another kind of module, or for other classes.
        """
        saved = checkpoint.get(_STATE)
        if not isinstance(saved, Mapping):
            raise ValueError(
                "this is not the checkpoint of an ActionLocalisation: --ckpt_path continues or "
                "tests such a run; what was pretrained goes to --model.weights"
            )
        self.build(int(saved["num_classes"]))
        self._training = dict(saved["training"])


def _boxes(batch: Batch) -> Tensor:
    """The boxes of one key frame per clip, (B, N, 4)."""
    boxes = batch.get("boxes")
    if boxes is None:
        raise ValueError(
            "ActionLocalisation classifies boxes, and the batch has none: use AVA or AVAKinetics"
        )
    if boxes.shape[1:3] != (1, 1):
        raise ValueError(
            "ActionLocalisation takes one clip per sample with boxes of its key frame, (B, 1, 1, "
            f"N, 4); got {tuple(boxes.shape)}"
        )
    return boxes[:, 0, 0]


def _there(boxes: Tensor) -> Tensor:
    """Which boxes exist, (..., N) bool."""
    return boxes.isfinite().all(-1)
