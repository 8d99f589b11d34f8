"""MoCo: a view of a video is told from the views of past batches by a slowly moving network.

Paper: He, Fan, Wu, Xie, Girshick, "Momentum contrast for unsupervised visual representation
learning", CVPR 2020; with another head, augmentation and temperature, Chen, Fan, Girshick, He,
"Improved baselines with momentum contrastive learning" (v2), 2020. PreViTS (Chen et al., WACV 2023)
takes it for frames, CtP (Wang et al., CVPR 2021) for clips as a baseline.

The key network is a running average of backbone and head, over optimiser steps; its batch norms
have statistics of their own. Queries meet the batch norm of their rank, keys that of another
mixture of samples (`lightning_vssl.nn.shuffle`): recipes leave ``sync_batchnorm`` off. The loss is
not symmetric. All heads run in float32.

`MomentumQueue` is what RSPNet shares with it.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.losses.info_nce import info_nce, unit
from lightning_vssl.methods.base import Batch, Method
from lightning_vssl.methods.cvrl import two_views
from lightning_vssl.methods.vito import frame_views
from lightning_vssl.nn.ema import update_ema
from lightning_vssl.nn.heads import MLP
from lightning_vssl.nn.queue import Queue
from lightning_vssl.nn.shuffle import encode_shuffled
from lightning_vssl.optim import Decay, Schedule

KEY_STREAM = 66  # stream of the keyed generator that shuffles the keys


class EncodedView(NamedTuple):
    """A view of some samples as the online network sees it.

    Attributes:
        maps: The backbone's last map, (B, C, T', H', W') or (B, C, H', W').
        pooled: Its average over positions, (B, C), float32 at least.
        projected: What the loss compares, (B, D), float32 at least, not normalised.
    """

    maps: Tensor
    pooled: Tensor
    projected: Tensor


class MomentumQueue(Method):
    """What MoCo and RSPNet share: a key network, a queue, keys that are shuffled over the ranks.

    A subclass compares the views in `compare`.

    Args:
        backbone: The network to pretrain.
        augment: Makes the views; see `Method`.
        optimizer: Makes the optimiser; see `Method`.
        schedule: Factor of the learning rate; see `Method`.
        view: View of a batch outside training; see `Method`.
        heads: Projection heads by name; ``projector`` is the one whose keys are queued.
        views: Views of a sample that `compare` takes.
        terms: Weight of each loss that `compare` returns.
        temperature: Of the contrastive loss.
        momentum: Of the key network.
        queue_size: Keys in the queue.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If a number is out of its range.
    """

    projector: MLP

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        view: nn.Module | None,
        heads: Mapping[str, MLP],
        views: int,
        terms: Mapping[str, float],
        temperature: float,
        momentum: float,
        queue_size: int,
        decay: Decay,
        lr_batch: int | None,
        channels_last: bool,
    ) -> None:
        super().__init__(
            backbone, augment, optimizer, schedule, view, decay, lr_batch, channels_last
        )
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.views = views
        self.terms: dict[str, float] = {}
        for name, weight in terms.items():
            self.add_term(name, weight)
        self.temperature = temperature
        self.momentum = momentum
        self.moves = 1  # of the key network after each optimiser step
        self.heads = tuple(heads)
        for name, head in heads.items():
            self.add_module(name, head)
        averaged = {name: getattr(self, name) for name in ("backbone", *self.heads)}
        self.target = nn.ModuleDict(_copies(averaged)).requires_grad_(False)
        self.queue = Queue(self.projector.out_features, queue_size)

    def add_term(self, name: str, weight: float) -> None:
        """Adds a loss that `compare` returns to those that count.

        Raises:
            ValueError: If the weight is negative.
        """
        if weight < 0:
            raise ValueError(f"weights of losses must be 0 or more, got {weight} for {name}")
        self.terms[name] = weight

    @abstractmethod
    def compare(self, query: EncodedView, views: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Encodes the keys and compares.

        Args:
            query: The first view, encoded.
            views: All views, (B, V, 3, T, H, W), or (B, V, 3, H, W) for a 2-D backbone.
            batch: The batch, with the views.

        Returns:
            The loss of each of the `terms`; ``keys`` (B, D), unit vectors to be queued; and what
            else the step is to return.
        """

    def encode(self, views: Tensor) -> EncodedView:
        """Encodes one view by the online network.

        Args:
            views: Normalised, (B, 3, T, H, W), or (B, 3, H, W) for a 2-D backbone.
        """
        maps = self.backbone(views)
        pooled = _pool(maps)
        return EncodedView(maps, pooled, self.project(self.projector, pooled))

    def project(self, head: nn.Module, pooled: Tensor) -> Tensor:
        """Runs a head on pooled features (B, C) in their own precision, whatever the autocast."""
        with torch.autocast(pooled.device.type, enabled=False):
            projected: Tensor = head(pooled)
        return projected

    @torch.no_grad()
    def encode_keys(self, views: Tensor, key: Tensor, stream: int) -> tuple[Tensor, ...]:
        """Encodes one view by the key network, in training shuffled over the ranks.

        Args:
            views: Normalised, (B, 3, T, H, W), or (B, 3, H, W) for a 2-D backbone.
            key: Keys of the samples, (B,) int64, from which the shuffle is drawn.
            stream: The sequence of the keyed generator to draw it from.

        Returns:
            Unit vectors (B, D) of each head, without gradient, in the order of `heads`.
        """

        def encoded(some: Tensor) -> Tensor:
            pooled = _pool(self.target["backbone"](some))
            found = [unit(self.project(self.target[name], pooled)) for name in self.heads]
            return torch.cat(found, dim=1)

        codes = encode_shuffled(encoded, views, key, stream) if self.training else encoded(views)
        widths = [getattr(self, name).out_features for name in self.heads]
        return torch.split(codes, widths, dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: encode, compare, queue the keys, log."""
        outputs = self._step(batch)
        self.queue.enqueue(outputs.pop("keys"))
        size = len(batch["index"])
        self.log("train/loss", outputs["loss"], prog_bar=True, batch_size=size)
        if len(self.terms) > 1:
            losses = {f"train/loss_{name}": outputs[name] for name in self.terms}
            self.log_dict(losses, batch_size=size)
        return outputs

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """MoCo's loss of held-out videos: two views of each, against the queue of training."""
        two = two_views(batch) if self.backbone.dims == 3 else frame_views(batch, 2)
        made: Batch = self.augment(two)
        views = self._shaped(made["views"], 2)
        query = self.encode(views[:, 0])
        (key, *_) = self.encode_keys(views[:, 1], batch["key"], KEY_STREAM)
        loss = info_nce(query.projected, key, self.queue.negatives(), self.temperature)
        size = len(batch["index"])
        self.log("val/loss", loss, batch_size=size, sync_dist=True, add_dataloader_idx=False)
        return {"loss": loss, "views": made["views"], "embedding": query.pooled.detach()}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Steps the online network, then moves the key network towards it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for name in ("backbone", *self.heads):
            for _ in range(self.moves):
                update_ema(self.target[name], getattr(self, name), self.momentum)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        views = self._shaped(batch["views"], self.views)
        query = self.encode(views[:, 0])
        outputs = self.compare(query, views, batch)
        outputs["loss"] = torch.stack([w * outputs[name] for name, w in self.terms.items()]).sum()
        outputs["views"] = batch["views"]
        outputs["embedding"] = query.pooled.detach()  # (B, C)
        return outputs

    def _shaped(self, views: Tensor, count: int) -> Tensor:
        """The views as the backbone takes them: (B, V, 3, T, H, W), without T in two dimensions."""
        kind = type(self).__name__
        if views.shape[1] != count:
            raise ValueError(
                f"{kind} takes {count} views of a sample, got {views.shape[1]}: see the clips (or "
                "the views) of its recipe's data"
            )
        if self.backbone.dims == 3:
            return views
        if views.shape[3] != 1:
            raise ValueError(
                f"{kind} with an image backbone takes clips of one frame, got {views.shape[3]} "
                "frames: give the data clips with frames: 1"
            )
        return views[:, :, :, 0]


class MoCo(MomentumQueue):
    """Momentum contrast (He et al., CVPR 2020), for frames and for clips.

    Args:
        backbone: A 2-D network for single frames, the paper's is ResNet-50, or a 3-D one.
        augment: Makes two views of every video or picture, usually
            `lightning_vssl.augment.views.VideoViews`.
        optimizer: The paper's is SGD, learning rate 0.03, momentum 0.9, weight decay 1e-4.
        schedule: Half a cosine to 0 in v2 and PreViTS, steps in v1.
        view: View of a batch outside training; see `Method`.
        hidden: Widths of the head's hidden layers: none in v1 and PreViTS, (2048,) in v2, the
            backbone's own width in CtP's baseline.
        projection: Width of what the loss sees.
        temperature: Of the loss: 0.07 in v1 and PreViTS, 0.2 in v2 and CtP's baseline.
        momentum: Of the key network, at every step.
        queue_size: Keys in the queue, a multiple of the batch over all processes.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        hidden: tuple[int, ...] = (),
        projection: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.999,
        queue_size: int = 65536,
        decay: Decay = "all",
        lr_batch: int | None = 256,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            backbone=backbone,
            augment=augment,
            optimizer=optimizer,
            schedule=schedule,
            view=view,
            heads={"projector": MLP(backbone.num_features, hidden, projection)},
            views=2,
            terms={"instance": 1.0},
            temperature=temperature,
            momentum=momentum,
            queue_size=queue_size,
            decay=decay,
            lr_batch=lr_batch,
            channels_last=channels_last,
        )

    def compare(self, query: EncodedView, views: Tensor, batch: Batch) -> dict[str, Tensor]:
        """MoCo's Eq. 1; see `MomentumQueue.compare`."""
        (key,) = self.encode_keys(views[:, 1], batch["key"], KEY_STREAM)
        loss = info_nce(query.projected, key, self.queue.negatives(), self.temperature)
        return {"instance": loss, "keys": key}


def _copies(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(module) for name, module in modules.items()}


def _pool(maps: Tensor) -> Tensor:
    """Averages maps (B, C, ...) over positions: (B, C), in float32 at least."""
    wide = maps if maps.dtype == torch.float64 else maps.float()
    return wide.flatten(2).mean(2)
