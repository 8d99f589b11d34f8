"""What every method shares: where views are made, the optimiser, what a checkpoint carries."""

from typing import cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_vssl.augment.views import Normalise
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import stamp
from lightning_vssl.optim import Schedule, scheduled

Batch = dict[str, Tensor]


class Method(LightningModule):
    """A way to pretrain a backbone without labels.

    Args:
        backbone: The network to pretrain.
        augment: Makes a batch's training views, on the accelerator: takes the uint8 batch and
            returns it with ``views`` (B, V, 3, T, H, W) and the parameters it drew.
        view: Makes the views of every other batch; without it, normalisation as the backbone
            wants its pixels.
        optimizer: Makes the optimiser from the parameters.
        schedule: Factor of the learning rate at each step; without it, constant.
    """

    heads: tuple[str, ...] = ()  # modules that an evaluation uses: exported beside the backbone

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.augment = augment
        self.view = view if view is not None else Normalise(*backbone.pixels)
        self.optimizer = optimizer
        self.schedule = schedule

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Makes the views: augmented ones in training, the plain view otherwise."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            views: Batch = self.augment(batch) if self.trainer.training else self.view(batch)
        return views

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts the epoch under way as begun.

        After a resume from an epoch's last batch Lightning (2.6) leaves the next epoch uncounted,
        and a second resume from that epoch's last batch would repeat it.
        """
        progress = self.trainer.fit_loop.epoch_progress
        current = cast(_ProcessedTracker, progress.current)
        if current.ready == current.processed:
            progress.increment_ready()
            progress.increment_started()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser over what requires gradients, and steps the schedule each step."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return scheduled(optimizer, self.schedule, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keeps the checkpoint readable with ``weights_only=True`` and ready for export."""
        heads = {name: getattr(self, name) for name in self.heads}
        stamp(checkpoint, method=type(self).__name__, backbone=self.backbone, heads=heads)
