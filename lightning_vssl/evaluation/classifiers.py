"""Classifiers on a backbone: trained side by side, chosen on validation, scored video by video."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, Protocol, Self, get_args, runtime_checkable

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lightning_vssl.augment.sides import check_sides
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.evaluation.backgrounds import HasVariants, variant_accuracy, with_gaps
from lightning_vssl.evaluation.base import Batch, Evaluation, Split, training_arguments
from lightning_vssl.metrics.accuracy import VideoAccuracy
from lightning_vssl.metrics.variants import VariantAccuracy
from lightning_vssl.optim import Schedule, scheduled

Averaging = Literal["logits", "softmax"]
Accuracies = dict[int, list[float]]
"""Percent of videos whose class is among the k best, by k, for every classifier."""

_STATE = "recognition"  # what a checkpoint holds beside the weights


@runtime_checkable
class HasClasses(Protocol):
    """A data module that knows how many classes its videos have."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""


@runtime_checkable
class HasEntries(Protocol):
    """A data module that lists its videos."""

    def entries(self, split: Literal["val", "test"]) -> tuple[Sequence[object], Sequence[str]]:
        """The videos of a split, and the names of the classes."""


def average_clips(logits: Tensor, averaging: Averaging) -> Tensor:
    """Scores of a video from the logits of its clips.

    Args:
        logits: (..., V, C).
        averaging: ``logits`` takes the mean of the logits, ``softmax`` the mean of the clips'
            probabilities. The two may name different classes.

    Returns:
        (..., C): mean logits, or mean probabilities.
    """
    if averaging == "softmax":
        logits = logits.softmax(dim=-1)
    return logits.mean(dim=-2)


def _finite(gradient: Tensor) -> Tensor:
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


class Recognition(Evaluation):
    """Shared by the probes and by fine-tuning: classifiers, their training and their accuracy.

    Several classifiers may be trained side by side on the same features, one for each pair of a
    learning rate and a weight decay. They start from the same weights, see the same batches and
    do not touch each other: each ends where a run of its own would end. The one that is reported
    has the highest top-1 on the validation set at the last validation; every one's numbers are
    stored. Its validation number is therefore optimistic, and so is its test number where a data
    set validates on its test videos: ``result.json`` says so in ``validated_on_test``.

    Results are ``top1`` and, with more than five classes, ``top5``, in percent of the videos. The
    test of a data module with variants has the top-1 of each, by its name, and what the papers
    derive from them; see `lightning_vssl.evaluation.backgrounds`.
    """

    selected: Tensor
    validated: Tensor
    epochs_trained: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone | None,
        weights: str | None,
        frozen: bool,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        lrs: Sequence[float] | None,
        weight_decays: Sequence[float] | None,
        num_classes: int | None,
        averaging: Averaging,
        view: nn.Module | None,
        augment: nn.Module | None,
        clips_at_once: int | None,
        paper: dict[str, float] | None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=augment,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        for name, values in (("lrs", lrs), ("weight_decays", weight_decays)):
            if values is not None and (len(values) == 0 or min(values) < 0):
                raise ValueError(f"{name} must be null or numbers of 0 or more, got {values}")
        if averaging not in get_args(Averaging):
            raise ValueError(f"averaging must be logits or softmax, got {averaging!r}")
        self.frozen = frozen
        self.backbone.train(not frozen).requires_grad_(not frozen)
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = _settings(lrs, weight_decays)
        self.num_classes = num_classes
        self.averaging: Averaging = averaging
        self.heads = nn.ModuleList()
        self.accuracy: VideoAccuracy | None = None
        self.variants: VariantAccuracy | None = None
        self._training: dict[str, object] = {}  # how the classifiers were trained, as plain data
        self._validation: tuple[Accuracies, int] | None = None
        count = len(self.settings)
        self.register_buffer("selected", torch.tensor(0 if count == 1 else -1))
        self.register_buffer("validated", torch.full((count,), torch.nan, dtype=torch.float64))
        self.register_buffer("epochs_trained", torch.tensor(0))

    @abstractmethod
    def make_head(self, num_classes: int) -> nn.Module:
        """A classifier with its initial weights: from what `represent` gives to logits (N, C)."""

    @abstractmethod
    def represent(self, views: Tensor) -> Tensor:
        """What the classifiers see.

        Args:
            views: Normalised clips, (B, V, 3, T, H, W).

        Returns:
            (B*V, ...) in float32.
        """

    # Classifiers

    def setup(self, stage: str) -> None:
        """Makes the classifiers, once the data's classes are known.

        Raises:
            ValueError: If the number of classes is not known, or not that of the classifiers, or
                training would mirror clips whose classes tell left from right.
        """
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit":
            check_sides(self.augment, module)
        found = module.num_classes if isinstance(module, HasClasses) else None
        if self.num_classes is None and not found:
            raise ValueError(
                f"{type(self).__name__} does not know how many classes there are: use a data set "
                "with classes, or give num_classes"
            )
        if self.num_classes is not None and found and found != self.num_classes:
            raise ValueError(
                f"the classifier has {self.num_classes} classes and the data {found}: num_classes "
                "or the checkpoint belongs to another data set"
            )
        self.build(self.num_classes or int(found or 0))

    def build(self, num_classes: int) -> None:
        """Makes the classifiers, unless they are there.

        Args:
            num_classes: Number of classes.
        """
        if len(self.heads) > 0:
            return
        self.num_classes = num_classes
        head = self.make_head(num_classes)
        count = len(self.settings)
        self.heads.extend([head, *(copy.deepcopy(head) for _ in range(count - 1))])
        if count > 1:
            # A learning rate that is far too high must not end the run of the others: under
            # 16-mixed one gradient that is not finite makes the scaler skip everybody's step.
            for parameter in self.heads.parameters():
                parameter.register_hook(_finite)  # type: ignore[no-untyped-call]  # torch's gap
        self.accuracy = VideoAccuracy(count, (1, 5) if num_classes > 5 else (1,))

    def train(self, mode: bool = True) -> Self:
        """Switches between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def feature_maps(self, views: Tensor) -> Tensor:
        """Maps of the last stage, (B*V, C, T', H', W'); without gradients where frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.maps(views).flatten(0, 1)

    def logits(self, seen: Tensor) -> Tensor:
        """Logits of every classifier, in float32 whatever the precision.

        Args:
            seen: What `represent` gave, (B*V, ...).

        Returns:
            (G, B*V, C).
        """
        with torch.autocast(seen.device.type, enabled=False):
            return torch.stack([head(seen) for head in self.heads])

    # Training

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups of the optimiser, one for each classifier."""
        return [
            {"params": list(head.parameters()), **setting}
            for head, setting in zip(self.heads, self.settings, strict=True)
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes one optimiser over all classifiers, and steps the schedule each step.

        Raises:
            ValueError: If there is a schedule but no end of training.
        """
        return scheduled(self.optimizer(self.groups()), self.schedule, self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of each classifier's gradient by itself, not of all together."""
        if len(self.heads) > 1 and gradient_clip_val and gradient_clip_algorithm != "value":
            for head in self.heads:
                nn.utils.clip_grad_norm_(head.parameters(), gradient_clip_val)
            return
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        """Notes how the classifiers are trained: stored beside the number.

        Raises:
            ValueError: If there are several classifiers and no validation to choose by.
        """
        trainer = self.trainer
        # Loaders are not there yet where the first validation is epochs away.
        empty = trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0
        if len(self.settings) > 1 and (empty or not trainer.enable_validation):
            raise ValueError(
                f"{len(self.settings)} classifiers need a validation set to choose by: give the "
                "data module one (and limit_val_batches above 0), or one learning rate"
            )
        self._training = training_arguments(trainer, self.schedule, self.augment)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum over the classifiers of the mean cross-entropy over clips."""
        views = batch["views"]
        labels = self.labels(batch).repeat_interleave(views.shape[1])  # (B*V,)
        logits = self.logits(self.represent(views))  # (G, B*V, C)
        losses = torch.stack([functional.cross_entropy(one, labels) for one in logits])  # (G,)
        self.log("train/loss", losses.detach().mean(), prog_bar=True, batch_size=len(views))
        return losses.sum()

    def on_train_epoch_end(self) -> None:
        """Counts the epoch, before a checkpoint is written."""
        self.epochs_trained.fill_(self.trainer.current_epoch + 1)

    def on_fit_end(self) -> None:
        """Writes the numbers of the last validation."""
        if self._validation is not None:
            self._report("validation", *self._validation)

    # Validation and test

    def _scores(self, batch: Batch) -> Tensor:
        """What every classifier says of the batch's videos, (G, B, C)."""
        views = batch["views"]
        logits = self.logits(self.represent(views))  # (G, B*V, C)
        logits = logits.reshape(len(logits), *views.shape[:2], -1)  # (G, B, V, C)
        return average_clips(logits, self.averaging)

    def _score(self, batch: Batch) -> None:
        if self.accuracy is None:
            raise RuntimeError("the classifiers are not built: run the evaluation with a Trainer")
        self.accuracy.update(self._scores(batch), self.labels(batch), batch["index"])

    def _accuracies(self) -> tuple[Accuracies, int]:
        """Percent by k and classifier, and how many videos were counted."""
        if self.accuracy is None:
            raise RuntimeError("the classifiers are not built: run the evaluation with a Trainer")
        made = {k: [100 * v for v in values] for k, values in self.accuracy.compute().items()}
        videos = self.accuracy.videos
        self.accuracy.reset()
        return made, videos

    def _chosen(self, accuracies: Accuracies) -> dict[str, float]:
        return {f"top{k}": values[int(self.selected)] for k, values in accuracies.items()}

    def on_validation_start(self) -> None:
        """Refuses to validate by itself what was never trained."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._check_trained()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the batch's videos."""
        self.note_input(batch)
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Picks the classifier that is reported and logs ``val/top1``."""
        accuracies, videos = self._accuracies()
        if self.trainer.sanity_checking:
            return
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting:
            top1 = torch.tensor(accuracies[1], dtype=torch.float64)
            self.validated.copy_(top1)
            self.selected.copy_(top1.argmax())
            self._validation = accuracies, videos
        for name, value in self._chosen(accuracies).items():
            self.log(f"val/{name}", value, prog_bar=name == "top1", sync_dist=True)
        if not fitting:
            self._report("validation", accuracies, videos)

    def on_test_start(self) -> None:
        """Refuses to test what was never trained, or over a gallery.

        Raises:
            ValueError: If the classifiers have their initial weights, none of several was chosen,
                or there are several loaders.
        """
        self._check_trained()
        loaders = len(self.trainer.num_test_batches)
        if loaders != 1:
            raise ValueError(
                f"{type(self).__name__} needs one test loader, got {loaders}; set gallery: false "
                "in the data module"
            )
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        metric = variant_accuracy(module, int(self.num_classes or 0))
        self.variants = None if metric is None else metric.to(self.device)

    def _check_trained(self) -> None:
        name = type(self).__name__
        if int(self.epochs_trained) == 0:
            raise ValueError(
                f"the classifier of this {name} was never trained: run fit first, or give the "
                "checkpoint of its run (--ckpt_path)"
            )
        if int(self.selected) < 0:
            raise ValueError(
                f"none of the {len(self.settings)} classifiers of this {name} was chosen: its run "
                "had no validation; give it one, or train a single learning rate"
            )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the batch's videos."""
        self.note_input(batch)
        if self.variants is None:
            self._score(batch)
        else:
            scores = self._scores(batch)[int(self.selected)]
            self.variants.update(scores, self.labels(batch), batch["index"])

    def on_test_epoch_end(self) -> None:
        """Logs and writes the result."""
        if self.variants is not None:
            self._report_variants(self.variants)
            return
        accuracies, videos = self._accuracies()
        for name, value in self._chosen(accuracies).items():
            self.log(f"test/{name}", value, sync_dist=True)
        self._report("test", accuracies, videos)

    def _report_variants(self, metric: VariantAccuracy) -> None:
        results = with_gaps({name: 100 * share for name, share in metric.compute().items()})
        for name, value in results.items():
            self.log(f"test/{name}", value, sync_dist=True)
        details = self._details(sum(metric.rows.values()))
        if len(self.settings) > 1:
            details["chosen"] = self.settings[int(self.selected)]
        self.report("test", results, {**details, "videos_of_variants": metric.rows})
        self.variants = None

    def _details(self, videos: int) -> dict[str, object]:
        return {
            "videos": videos,
            "epochs_trained": int(self.epochs_trained),
            "checkpoint": self.trainer.ckpt_path,
            "validated_on_test": self._validated_on_test(),
        }

    def _report(self, split: Split, accuracies: Accuracies, videos: int) -> None:
        details = self._details(videos)
        if len(self.settings) > 1:
            validated = self.validated.tolist()
            details["selection"] = {
                "by": "highest top1 on the validation set at the last validation",
                "chosen": self.settings[int(self.selected)],
                "all": [
                    {
                        **setting,
                        "validation_top1": validated[g],
                        **{f"{split}_top{k}": values[g] for k, values in accuracies.items()},
                    }
                    for g, setting in enumerate(self.settings)
                ],
            }
        self.report(split, self._chosen(accuracies), details)

    def _validated_on_test(self) -> bool | None:
        """Whether validation and test are the same videos; None if the data does not tell."""
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self.trainer.is_global_zero or not isinstance(module, HasEntries):
            return None
        if isinstance(module, HasVariants) and module.variants:
            return module.validated_on_test
        validation, _ = module.entries("val")
        test, _ = module.entries("test")
        return len(test) > 0 and list(validation) == list(test)

    # What is stored

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "num_classes": self.num_classes,
            "frozen_backbone": self.frozen,
            "averaging": f"mean of the clips' {self.averaging}",
            "grid": [setting for setting in self.settings if setting],
            "training": self._training,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Adds the number of classes and how the classifiers were trained."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE] = {"num_classes": self.num_classes, "training": self._training}

    def on_load_checkpoint(self, checkpoint: Mapping[str, object]) -> None:
        """Makes the classifiers that the checkpoint holds.

        Raises:
            ValueError: If it was saved by another kind of module, or for other classes.
        """
        saved = checkpoint.get(_STATE)
        if not isinstance(saved, Mapping):
            raise ValueError(
                "this is not the checkpoint of a probe or of fine-tuning: --ckpt_path continues "
                "or tests such a run; what was pretrained goes to --model.weights"
            )
        classes = int(saved["num_classes"])
        self.build(classes)
        if self.num_classes != classes:
            raise ValueError(
                f"the checkpoint's classifier has {classes} classes and the data "
                f"{self.num_classes}: it belongs to another data set"
            )
        self._training = dict(saved["training"])


def _settings(
    lrs: Sequence[float] | None, weight_decays: Sequence[float] | None
) -> list[dict[str, float]]:
    """What each classifier's parameter group sets against the optimiser's own values."""
    rates = [{}] if lrs is None else [{"lr": float(lr)} for lr in lrs]
    decays = [{}] if weight_decays is None else [{"weight_decay": float(w)} for w in weight_decays]
    return [{**rate, **decay} for rate, decay in product(rates, decays)]
