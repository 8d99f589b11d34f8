"""Action recognition: linear probe, attentive probe and fine-tuning.

The papers' protocols are arguments here and of the data module. CtP (supplement A), RSPNet and
PreViTS fine-tune and average logits over 10 clips; AVID-CMA, which VITO (A.5) follows, averages
probabilities, and VITO pools the frames of an image network in three ways; CVRL, which ConST-CL
follows, trains a linear layer on frozen features. The attentive probe is V-JEPA's (Bardes et al.,
2024, section 4).
"""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol, Self, get_args, runtime_checkable

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.evaluation.backgrounds import HasVariants, variant_accuracy, with_gaps
from lightning_vssl.evaluation.base import (
    Batch,
    Evaluation,
    Split,
    pooled,
    training_arguments,
)
from lightning_vssl.metrics.accuracy import VideoAccuracy
from lightning_vssl.metrics.variants import VariantAccuracy
from lightning_vssl.nn.temporal_pool import Pooling, TemporalPool, check_pooling
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


@dataclass(frozen=True)
class Late(Schedule):
    """Another schedule, begun after some epochs at the optimiser's own learning rate.

    Attributes:
        schedule: The other schedule.
        epochs: Epochs before it begins.
    """

    schedule: Schedule
    epochs: int

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives 1, then the other schedule's factor of the steps since."""
        wait = self.epochs * steps_per_epoch
        if step < wait:
            return 1.0
        return self.schedule.factor(step - wait, steps_per_epoch, max(1, total_steps - wait))


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
            ValueError: If the number of classes is not known, or not that of the classifiers.
        """
        module = self.trainer.datamodule  # type: ignore[attr-defined]
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


def _linear(features: int, classes: int, init_std: float) -> nn.Linear:
    layer = nn.Linear(features, classes)
    nn.init.normal_(layer.weight, std=init_std)
    nn.init.zeros_(layer.bias)
    return layer


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


class LinearProbe(Recognition):
    """A linear classifier on the pooled features of a frozen backbone.

    The feature is the last stage's map averaged over time and space, then, if asked for, brought
    to length 1 (CVRL, section 4), standardised over the batch (batch norm without scale and
    shift), and thinned by dropout; all classifiers of the grid see the same. The backbone stays in
    evaluation mode: neither its weights nor its batch statistics change.

    Args:
        optimizer: Makes the optimiser. For CVRL's linear evaluation on Kinetics-600: SGD, momentum
            0.9, no weight decay, learning rate 32 for a batch of 1,024.
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None for the untouched network.
        schedule: Factor of the learning rates at each step; None for constant.
        lrs: Learning rates to train side by side; None for the optimiser's own.
        weight_decays: Weight decays to train side by side with every learning rate; None for the
            optimiser's own.
        normalise: Whether the pooled feature is brought to length 1.
        batch_norm: Whether features are standardised by a batch norm without parameters.
        dropout: Share of features dropped in training, in [0, 1).
        init_std: Standard deviation of the initial weights; biases start at 0.
        averaging: How a video's score comes from its clips; see `average_clips`.
        num_classes: Number of classes; None takes the data module's.
        view: Makes the views of validation and test; None normalises as the backbone wants.
        augment: Makes the views of training; None uses ``view``.
        clips_at_once: Clips per forward pass outside training; None takes all of the batch.
        paper: The paper's numbers, for instance ``{"top1": 70.4}``.

    Raises:
        ValueError: On values out of range, or if both ``backbone`` and ``weights`` are None.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        backbone: Backbone | None = None,
        weights: str | None = None,
        schedule: Schedule | None = None,
        lrs: tuple[float, ...] | None = None,
        weight_decays: tuple[float, ...] | None = None,
        normalise: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        init_std: float = 0.01,
        averaging: Averaging = "softmax",
        num_classes: int | None = None,
        view: nn.Module | None = None,
        augment: nn.Module | None = None,
        clips_at_once: int | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            frozen=True,
            optimizer=optimizer,
            schedule=schedule,
            lrs=lrs,
            weight_decays=weight_decays,
            num_classes=num_classes,
            averaging=averaging,
            view=view,
            augment=augment,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        _check_dropout(dropout)
        self.normalise = normalise
        self.batch_norm = batch_norm
        self.init_std = init_std
        self.norm: nn.Module = (
            nn.BatchNorm1d(self.backbone.num_features, affine=False)
            if batch_norm
            else nn.Identity()
        )
        self.dropout = nn.Dropout(dropout)

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear layer."""
        return _linear(self.backbone.num_features, num_classes, self.init_std)

    def represent(self, views: Tensor) -> Tensor:
        """Pooled features, (B*V, D)."""
        feature = pooled(self.feature_maps(views))
        if self.normalise:
            feature = functional.normalize(feature, dim=-1)
        thinned: Tensor = self.dropout(self.norm(feature))
        return thinned

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "head": "linear",
            "feature": "global average of the last map",
            "normalise": self.normalise,
            "batch_norm": self.batch_norm,
            "dropout": self.dropout.p,
        }


class AttentiveHead(nn.Module):
    """Attention of one learnable query over all positions of a map, then a linear classifier.

    A block of cross-attention as in V-JEPA: the query attends to the normalised tokens, then an
    MLP with a residual connection. The tokens carry no position of their own: what a network says
    about place and time must be in its features.

    Args:
        dim: Channels of the map.
        num_classes: Number of classes.
        num_heads: Heads of the attention; must divide ``dim``.
        mlp_ratio: Width of the MLP relative to ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self, dim: int, num_classes: int, num_heads: int = 8, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"num_heads must divide the backbone's {dim} features, got {num_heads}"
            )
        hidden = max(1, int(mlp_ratio * dim))
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        up, down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), up, nn.GELU(), down)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in (up, down, self.linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classifies.

        Args:
            tokens: (N, L, dim), L positions.

        Returns:
            Logits, (N, num_classes).
        """
        tokens = self.norm(tokens)
        query = self.query.expand(len(tokens), -1, -1)  # (N, 1, dim)
        attended, _ = self.attention(query, tokens, tokens, need_weights=False)
        pooled_token = query + attended
        pooled_token = pooled_token + self.mlp(pooled_token)
        logits: Tensor = self.linear(pooled_token[:, 0])
        return logits


class AttentiveProbe(Recognition):
    """An attentive classifier on the last map of a frozen backbone.

    Every position in time and space of the map is a token; see `AttentiveHead`. The backbone stays
    in evaluation mode: neither its weights nor its batch statistics change.

    Args:
        optimizer: Makes the optimiser, for instance AdamW.
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None for the untouched network.
        schedule: Factor of the learning rates at each step; None for constant.
        lrs: Learning rates to train side by side; None for the optimiser's own.
        weight_decays: Weight decays to train side by side with every learning rate; None for the
            optimiser's own.
        num_heads: Heads of the attention; must divide the backbone's features.
        mlp_ratio: Width of the block's MLP relative to the features.
        averaging: How a video's score comes from its clips; see `average_clips`.
        num_classes: Number of classes; None takes the data module's.
        view: Makes the views of validation and test; None normalises as the backbone wants.
        augment: Makes the views of training; None uses ``view``.
        clips_at_once: Clips per forward pass outside training; None takes all of the batch.
        paper: The paper's numbers, for instance ``{"top1": 70.4}``.

    Raises:
        ValueError: On values out of range, or if both ``backbone`` and ``weights`` are None.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        backbone: Backbone | None = None,
        weights: str | None = None,
        schedule: Schedule | None = None,
        lrs: tuple[float, ...] | None = None,
        weight_decays: tuple[float, ...] | None = None,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        averaging: Averaging = "softmax",
        num_classes: int | None = None,
        view: nn.Module | None = None,
        augment: nn.Module | None = None,
        clips_at_once: int | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            frozen=True,
            optimizer=optimizer,
            schedule=schedule,
            lrs=lrs,
            weight_decays=weight_decays,
            num_classes=num_classes,
            averaging=averaging,
            view=view,
            augment=augment,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio

    def make_head(self, num_classes: int) -> nn.Module:
        """An `AttentiveHead`."""
        return AttentiveHead(
            self.backbone.num_features, num_classes, self.num_heads, self.mlp_ratio
        )

    def represent(self, views: Tensor) -> Tensor:
        """Tokens of the last map, (B*V, T'*H'*W', D)."""
        return self.feature_maps(views).flatten(2).transpose(1, 2).float()

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "head": "attentive",
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
        }


class FineTune(Recognition):
    """The whole network trained with a linear classifier.

    Average over time and space, dropout, one linear layer (CtP, supplement A). An image network
    sees every frame by itself, and its frames may be pooled otherwise (VITO, A.5).

    A test right after training uses the weights of the last epoch, as CtP and VITO do; PreViTS and
    RSPNet report the best epoch on the test split: test the checkpoint of the best ``val/top1`` for
    that.

    Args:
        optimizer: Makes the optimiser. CtP: SGD, learning rate 0.01, momentum 0.9, weight decay
            5e-4.
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None to train from scratch.
        schedule: Factor of the learning rate at each step; None for constant.
        dropout: Share of features dropped in training, in [0, 1).
        init_std: Standard deviation of the classifier's initial weights; its biases start at 0.
        head_epochs: Epochs at the start in which only the classifier is trained, at the
            optimiser's own learning rate (AVID-CMA's warm-up of the classifier); the schedule
            begins after them. They count in ``trainer.max_epochs``.
        pooling: How the frames of a clip become one vector. ``average`` is the mean over time and
            space, for any network. ``multiscale`` and ``multiscale_attention`` are for image
            networks and clips of an even number of frames: both of the last two stages, the earlier
            one over each half of the clip; see `lightning_vssl.nn.temporal_pool`.
        averaging: How a video's score comes from its clips; see `average_clips`. CtP, RSPNet and
            PreViTS: ``logits``; AVID-CMA and VITO: ``softmax``.
        num_classes: Number of classes; None takes the data module's.
        view: Makes the views of validation and test; None normalises as the backbone wants.
        augment: Makes the views of training; None uses ``view``.
        clips_at_once: Clips per forward pass outside training; None takes all of the batch.
        paper: The paper's numbers, for instance ``{"top1": 88.4}``.

    Raises:
        ValueError: On values out of range, if both ``backbone`` and ``weights`` are None, or if a
            pooling for frames meets a network over time and space.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        backbone: Backbone | None = None,
        weights: str | None = None,
        schedule: Schedule | None = None,
        dropout: float = 0.5,
        init_std: float = 0.001,
        head_epochs: int = 0,
        pooling: Pooling = "average",
        averaging: Averaging = "logits",
        num_classes: int | None = None,
        view: nn.Module | None = None,
        augment: nn.Module | None = None,
        clips_at_once: int | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        _check_dropout(dropout)
        if head_epochs < 0:
            raise ValueError(f"head_epochs must be 0 or more, got {head_epochs}")
        check_pooling(pooling)
        if schedule is not None and head_epochs > 0:
            schedule = Late(schedule, head_epochs)
        super().__init__(
            backbone=backbone,
            weights=weights,
            frozen=False,
            optimizer=optimizer,
            schedule=schedule,
            lrs=None,
            weight_decays=None,
            num_classes=num_classes,
            averaging=averaging,
            view=view,
            augment=augment,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        if pooling != "average" and self.backbone.dims == 3:
            raise ValueError(
                f"pooling={pooling} is for the frames of an image network, and "
                f"{type(self.backbone).__name__} is one over time and space: leave it at average"
            )
        self.pooling: Pooling = pooling
        self.init_std = init_std
        self.head_epochs = head_epochs
        self.dropout = nn.Dropout(dropout)

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear layer, behind the pooling of frames where that is not the plain average."""
        if self.pooling == "average":
            return _linear(self.backbone.num_features, num_classes, self.init_std)
        early, late = (self.backbone.stage_channels[name] for name in self.backbone.stages[-2:])
        pool = TemporalPool(early, late, self.pooling)
        return nn.Sequential(
            pool,
            nn.Dropout(self.dropout.p),
            _linear(pool.out_features, num_classes, self.init_std),
        )

    def represent(self, views: Tensor) -> Tensor:
        """Pooled features, (B*V, D); for the poolings of frames both scales, (B*V, T, D)."""
        if self.pooling != "average":
            return self.frame_vectors(views)
        feature: Tensor = self.dropout(pooled(self.feature_maps(views)))
        return feature

    def frame_vectors(self, views: Tensor) -> Tensor:
        """Both of the last two stages' maps of every frame, averaged over space.

        Args:
            views: Normalised clips, (B, V, 3, T, H, W).

        Returns:
            The earlier stage's channels, then the last one's, (B*V, T, D) float32.
        """
        clips = views.flatten(0, 1).transpose(1, 2)  # (B*V, T, 3, H, W)
        together = len(clips) if self.training else self.clips_at_once or len(clips)
        vectors = []
        for part in torch.split(clips, together):
            maps = self.backbone.features(part.flatten(0, 1), self.backbone.stages[-2:])
            scales = [pooled(one[:, :, None]) for one in maps.values()]  # each (N*T, C)
            vectors.append(torch.cat(scales, dim=1).view(*part.shape[:2], -1))
        return torch.cat(vectors)

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups of the optimiser: the backbone, and the classifier."""
        return [{"params": list(self.backbone.parameters())}, *super().groups()]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves the backbone's weights alone in the first ``head_epochs``."""
        if self.trainer.current_epoch < self.head_epochs:
            for parameter in self.backbone.parameters():
                parameter.grad = None

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "head": "linear",
            "feature": "global average of the last map"
            if self.pooling == "average"
            else f"last two maps averaged over space, frames by {self.pooling}",
            "pooling": self.pooling,
            "dropout": self.dropout.p,
            "head_epochs": self.head_epochs,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Says in the export record that the backbone was fine-tuned."""
        super().on_save_checkpoint(checkpoint)
        record = checkpoint["export"]
        if isinstance(record, dict):
            record["method"] = f"{self.method}, FineTune"
