"""MoCLR and VITO: frames of a video are alike, and unlike the frames of all other videos.

Paper: Parthasarathy, Eslami, Carreira, Henaff, "Self-supervised video pretraining yields robust and
more human-aligned visual representations" (VITO), NeurIPS 2023, sections 3.1 and 4.3. Its baseline
is MoCLR (Tian, Henaff, van den Oord, "Divide and contrast", ICCV 2021): SimCLR's loss between an
online network and a slowly moving target, with BYOL's projector, augmentations and optimiser and
without its predictor.

VITO differs from MoCLR in four places, two of which are the data's: the views are frames of one
stretch of video (`lightning_vssl.data.clips.FrameViews`), three of them, cropped to no less than
40 % of the frame, and the maps of the last two stages are pooled by learned masks
(`lightning_vssl.nn.attention_pool.AttentionPool`).

The target network is a running average of everything that makes a projection: backbone, attention
and projector. It makes its own batch statistics, and, as in BYOL's code, each view goes through a
network by itself, so that batch norms see one view at a time. The paper's appendix A.1, which gives
its values, is missing from the published text: what stands in its place is said where it matters.

Accumulating gradients does not enlarge the contrastive batch: every accumulated batch has
negatives of its own.
"""

import copy
import math
from collections.abc import Callable

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.losses.info_nce import Negatives, multi_view_info_nce
from lightning_vssl.methods.base import Batch, Method
from lightning_vssl.nn.attention_pool import AttentionPool
from lightning_vssl.nn.ema import cosine_momentum, update_ema
from lightning_vssl.nn.heads import MLP
from lightning_vssl.optim import Decay, Schedule

_AVERAGED = ("backbone", "attention", "projector")


def frame_views(batch: Batch, views: int) -> Batch:
    """Single frames of every video of a batch that was not made for it.

    Args:
        batch: Holds ``video`` (B, V, T, 3, H, W), and what goes with it.
        views: How many frames to take.

    Returns:
        A copy of the batch with ``views`` clips of one frame, the middle one of each of the first
        clips; where there are too few clips they are taken again.
    """
    count, frames = batch["video"].shape[1:3]
    which = torch.arange(views) % count
    found = {**batch, "video": batch["video"][:, which, frames // 2 : frames // 2 + 1]}
    for name in ("crop", "tracked"):
        if name in batch:
            found[name] = batch[name][:, which]
    if "time" in batch:
        found["time"] = batch["time"][:, which, frames // 2 : frames // 2 + 1]
    for name in ("boxes", "mask"):
        if name in batch:
            middle = batch[name].shape[2] // 2
            found[name] = batch[name][:, which, middle : middle + 1]
    return found


class _MomentumContrast(Method):
    """What MoCLR and VITO share: everything but which maps are pooled how."""

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        view: nn.Module | None,
        views: int,
        scales: int,
        attention_hidden: int | None,
        hidden: tuple[int, ...],
        projection: int,
        temperature: float,
        momentum: float,
        negatives: Negatives,
        decay: Decay,
        lr_batch: int | None,
        channels_last: bool,
    ) -> None:
        super().__init__(
            backbone, augment, optimizer, schedule, view, decay, lr_batch, channels_last
        )
        kind, name = type(backbone).__name__, type(self).__name__
        if backbone.dims != 2:
            raise ValueError(
                f"{name} learns from single frames and needs an image backbone, got {kind}, a "
                "network over time and space; CVRL learns from clips"
            )
        if not 1 <= scales <= len(backbone.stages):
            raise ValueError(
                f"scales must be between 1 and the {len(backbone.stages)} stages of {kind}, got "
                f"{scales}"
            )
        if views < 2:
            raise ValueError(f"views must be at least 2, got {views}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.views = views
        self.temperature = temperature
        self.momentum = momentum
        self.negatives: Negatives = negatives
        self.pooled_stages = backbone.stages[-scales:]
        channels = [backbone.stage_channels[stage] for stage in self.pooled_stages]
        self.attention = AttentionPool(channels, attention_hidden)
        self.projector = MLP(
            self.attention.out_features, hidden, projection, norm="batch", output_bias=False
        )
        parts = {part: copy.deepcopy(getattr(self, part)) for part in _AVERAGED}
        self.target = nn.ModuleDict(parts).requires_grad_(False)
        self._steps = 0

    def on_fit_start(self) -> None:
        """Notes how long the run is: the target's momentum reaches 1 at its end.

        Raises:
            ValueError: If the run has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "the target's momentum follows a cosine over the run, which needs an end: set "
                "trainer.max_epochs or trainer.max_steps"
            )
        self._steps = int(steps)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encodes one view by the online network.

        Args:
            frames: Normalised, (B, 3, H, W).

        Returns:
            The last map, averaged over positions, (B, C), which evaluations use; the projection,
            (B, D), not normalised; the mask of each scale, (B, h_s, w_s).
        """
        maps = list(self.backbone.features(frames, self.pooled_stages).values())
        pooled, masks = self.attention(maps)
        return maps[-1].mean((2, 3)), self.projector(pooled), masks

    @torch.no_grad()
    def encode_target(self, frames: Tensor) -> Tensor:
        """Projections of one view by the target network.

        Args:
            frames: Normalised, (B, 3, H, W).

        Returns:
            (B, D), not normalised, without gradient.
        """
        backbone, attention, projector = (self.target[part] for part in _AVERAGED)
        maps = backbone.features(frames, self.pooled_stages)  # type: ignore[operator]
        projected: Tensor = projector(attention(list(maps.values()))[0])
        return projected

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        if views.shape[1] != self.views or views.shape[3] != 1:
            raise ValueError(
                f"{type(self).__name__} takes views={self.views} clips of one frame, got "
                f"{views.shape[1]} of {views.shape[3]}: give the data FrameViews with views: "
                f"{self.views}, or set views to what the data has"
            )
        frames = views[:, :, :, 0].unbind(1)  # V times (B, 3, H, W)
        online = [self.encode(view) for view in frames]
        target = torch.stack([self.encode_target(view) for view in frames], dim=1)  # (B, V, D)
        projected = torch.stack([z for _, z, _ in online], dim=1)  # (B, V, D)
        return {
            "loss": multi_view_info_nce(projected, target, self.temperature, self.negatives),
            "views": views,
            "attention": torch.stack([_on_one_grid(m) for _, _, m in online], dim=1),
            "embedding": online[0][0].detach(),  # (B, C)
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: encode every view by both networks, compare all pairs, log."""
        outputs = self._step(batch)
        size = len(batch["index"])
        self.log("train/loss", outputs["loss"], prog_bar=True, batch_size=size)
        self.log("train/momentum", self.momentum_now(), batch_size=size)
        return outputs

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """The loss of held-out videos, on frames of each; it grows with the batch."""
        outputs = self._step(self.augment(frame_views(batch, self.views)))
        size = len(batch["index"])
        self.log(
            "val/loss", outputs["loss"], batch_size=size, sync_dist=True, add_dataloader_idx=False
        )
        return outputs

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Steps the online network, then moves the target towards it."""
        momentum = self.momentum_now()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for part in _AVERAGED:
            update_ema(self.target[part], getattr(self, part), momentum)

    def momentum_now(self) -> float:
        """The target's momentum at the step under way; the first step has number 0."""
        return cosine_momentum(self.trainer.global_step, self._steps, self.momentum)


class MoCLR(_MomentumContrast):
    """Momentum contrast with BYOL's parts (Tian et al., ICCV 2021): VITO's baseline.

    Both views may come from one frame (`FrameViews` with ``spacing: same``) or from one picture of
    an image folder: the baselines of VITO's Figure 4 and Table B.1.

    Args:
        backbone: A 2-D network; the papers' is ResNet-50.
        augment: Makes the views, usually `lightning_vssl.augment.views.VideoViews` with
            ``semantics: byol`` and one probability per view for blur and solarisation.
        optimizer: BYOL's is LARS, learning rate 0.3 for a batch of 256, weight decay 1e-6.
        schedule: Ten epochs of warm-up, then half a cosine to 0.
        view: View of a batch outside training; see `Method`.
        views: Views of a video or a picture.
        hidden: Widths of the projector's hidden layers, BYOL's.
        projection: Width of what the loss sees, BYOL's.
        temperature: Of the loss; the paper prints none, 0.1 is SimCLR's and DetCon's.
        momentum: Of the target at the first step; it rises to 1 along half a cosine. BYOL's 0.99
            for 300 epochs, 0.996 for 1000.
        negatives: Which target views of the other videos are negatives; see
            `lightning_vssl.losses.info_nce.multi_view_info_nce`.
        decay: What weight decay falls on, and what LARS adapts; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If the backbone is not a 2-D network, or a number is out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        views: int = 2,
        hidden: tuple[int, ...] = (4096,),
        projection: int = 256,
        temperature: float = 0.1,
        momentum: float = 0.99,
        negatives: Negatives = "all",
        decay: Decay = "kernels",
        lr_batch: int | None = 256,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            backbone=backbone,
            augment=augment,
            optimizer=optimizer,
            schedule=schedule,
            view=view,
            views=views,
            scales=1,
            attention_hidden=None,
            hidden=hidden,
            projection=projection,
            temperature=temperature,
            momentum=momentum,
            negatives=negatives,
            decay=decay,
            lr_batch=lr_batch,
            channels_last=channels_last,
        )


class VITO(_MomentumContrast):
    """Videos into images by attention over several scales (Parthasarathy et al., NeurIPS 2023).

    Args:
        backbone: A 2-D network; the paper's are ResNet-50 and Swin-S.
        augment: Makes the views, usually `lightning_vssl.augment.views.VideoViews` with
            ``semantics: byol`` and one probability per view for blur and solarisation.
        optimizer: BYOL's is LARS, learning rate 0.3 for a batch of 256, weight decay 1e-6.
        schedule: Ten epochs of warm-up, then half a cosine to 0.
        view: View of a batch outside training; see `Method`.
        views: Views of a video (section 4.3: 3; Eq. 1 shows 2).
        scales: S, how many of the last stages are pooled (section 3.1: 2).
        attention_hidden: Hidden width of the attention MLPs, which the paper does not say; null
            averages over positions (the ablation of Figure B.2).
        hidden: Widths of the projector's hidden layers, BYOL's; the paper gives none.
        projection: Width of what the loss sees, BYOL's.
        temperature: Of the loss; the paper prints none, 0.1 is SimCLR's and DetCon's.
        momentum: Of the target at the first step; it rises to 1 along half a cosine. BYOL's 0.99
            for 300 epochs, 0.996 for 1000.
        negatives: Which target views of the other videos are negatives; see
            `lightning_vssl.losses.info_nce.multi_view_info_nce`.
        decay: What weight decay falls on, and what LARS adapts; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If the backbone is not a 2-D network, or a number is out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        views: int = 3,
        scales: int = 2,
        attention_hidden: int | None = 512,
        hidden: tuple[int, ...] = (4096,),
        projection: int = 256,
        temperature: float = 0.1,
        momentum: float = 0.99,
        negatives: Negatives = "all",
        decay: Decay = "kernels",
        lr_batch: int | None = 256,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            backbone=backbone,
            augment=augment,
            optimizer=optimizer,
            schedule=schedule,
            view=view,
            views=views,
            scales=scales,
            attention_hidden=attention_hidden,
            hidden=hidden,
            projection=projection,
            temperature=temperature,
            momentum=momentum,
            negatives=negatives,
            decay=decay,
            lr_batch=lr_batch,
            channels_last=channels_last,
        )
        if attention_hidden is not None:
            self.heads = ("attention",)


def _on_one_grid(masks: list[Tensor]) -> Tensor:
    """Masks of all scales at the finest scale's size, for pictures: (B, S, h, w)."""
    size = masks[0].shape[-2:]
    large = [
        F.interpolate(m.detach()[:, None].float(), size=size, mode="bilinear", align_corners=False)
        for m in masks
    ]
    return torch.cat(large, dim=1)
