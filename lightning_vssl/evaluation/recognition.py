"""Action recognition: linear probe, attentive probe and fine-tuning.

The papers' protocols are arguments here and of the data module. CtP (supplement A), RSPNet and
PreViTS fine-tune and average logits over 10 clips; AVID-CMA, which VITO (A.5) follows, averages
probabilities, and VITO pools the frames of an image network in three ways; CVRL, which ConST-CL
follows, trains a linear layer on frozen features. The attentive probe is V-JEPA's (Bardes et al.,
2024, section 4). What they share is in `lightning_vssl.evaluation.classifiers`.
"""

from dataclasses import dataclass

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.evaluation.base import pooled
from lightning_vssl.evaluation.classifiers import Averaging, Recognition
from lightning_vssl.nn.temporal_pool import Pooling, TemporalPool, check_pooling
from lightning_vssl.optim import Schedule


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
