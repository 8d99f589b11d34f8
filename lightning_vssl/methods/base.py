"""What every method shares: where views are made, the optimiser, what a checkpoint carries."""

from typing import Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_vssl.augment.views import Normalise, check_pixels
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import stamp
from lightning_vssl.optim import Decay, Schedule, parameter_groups, scheduled

Batch = dict[str, Tensor]


@runtime_checkable
class HasBatchSize(Protocol):
    """A data module that knows how many samples a step takes over all processes."""

    batch_size: int


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
        decay: Whether the optimiser's weight decay falls on ``all`` parameters or on ``kernels``
            alone; see `lightning_vssl.optim.parameter_groups`.
        lr_batch: Batch that the optimiser's learning rate is meant for: it is scaled linearly to
            the run's batch, all processes and accumulated batches counted. None takes it as is.
        channels_last: Whether the backbone's weights lie channels last in memory, and its maps
            with them, which suits convolutions in half precision.
    """

    heads: tuple[str, ...] = ()  # modules that an evaluation uses: exported beside the backbone

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        decay: Decay = "all",
        lr_batch: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if lr_batch is not None and lr_batch < 1:
            raise ValueError(f"lr_batch must be null or at least 1, got {lr_batch}")
        check_pixels(augment, backbone.pixels)
        if channels_last:
            formats = {2: torch.channels_last, 3: torch.channels_last_3d}
            backbone.to(memory_format=formats[backbone.dims])  # type: ignore[call-overload]
        self.backbone = backbone
        self.augment = augment
        self.view = view if view is not None else Normalise(*backbone.pixels)
        self.optimizer = optimizer
        self.schedule = schedule
        self.decay: Decay = decay
        self.lr_batch = lr_batch

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
        """Makes the optimiser over what requires gradients, and steps the schedule each step.

        Raises:
            ValueError: If the rate is to be scaled and the data module does not tell its batch.
        """
        optimizer = self.optimizer(parameter_groups(self, self.decay))
        if self.lr_batch is not None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, HasBatchSize):
                raise ValueError(
                    "lr_batch needs a data module with a batch_size; or set it to null"
                )
            batch = data.batch_size * self.trainer.accumulate_grad_batches
            for group in optimizer.param_groups:
                group["lr"] *= batch / self.lr_batch
            rate = optimizer.param_groups[0]["lr"]
            if batch != self.lr_batch:
                rank_zero_info(f"learning rate {rate:g}: scaled to the batch of {batch}")
        return scheduled(optimizer, self.schedule, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keeps the checkpoint readable with ``weights_only=True`` and ready for export."""
        heads = {name: getattr(self, name) for name in self.heads}
        stamp(checkpoint, method=type(self).__name__, backbone=self.backbone, heads=heads)
