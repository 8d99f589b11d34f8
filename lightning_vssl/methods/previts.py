"""PreViTS: the network is to find a video alike by the object that was tracked through it.

Paper: Chen, Selvaraju, Chang, Niebles, Naik, "PreViTS: contrastive pretraining with video tracking
supervision", WACV 2023. Clips come from a stretch in which one object is seen, crops contain it
(`lightning_vssl.augment.objects`), and to the loss of the base, MoCo for frames and RSPNet for
clips, comes one of attention: the Grad-CAM map of the query, for its similarity to the key's
object alone, is to be the object's mask in the query (section 3.3). The paper's middle row,
"+ tracking constrained sampling", is the base with those clips and crops, and no class of its own.

Where the released code does otherwise, the defaults here follow the paper:

- The query is encoded once. The code encodes query and key a second time for the attention loss
  and moves the key network on the way: ``official=True``. (It also draws the speeds anew, which
  would need a fourth clip and is not done.)
- Grad-CAM is cut off at 0 (Eq. 4); the code brings it to [0, 1] instead: ``cam="minmax"``.
- The mask is the tube's in each frame; the code repeats the middle frame's: ``target="official"``.

The channel weights of Grad-CAM need the derivative of the similarity by the pooled feature alone
(`lightning_vssl.nn.grad_cam`), so there is one backward pass through the backbone.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.losses.attention import VOID, TargetForm, attention_loss, tube_target
from lightning_vssl.losses.info_nce import unit
from lightning_vssl.methods.base import Batch
from lightning_vssl.methods.moco import EncodedView, MoCo, MomentumQueue
from lightning_vssl.methods.rspnet import RSPNet
from lightning_vssl.nn.grad_cam import (
    channel_weights,
    channel_weights_through_maps,
    grad_cam,
    minmax_cam,
)
from lightning_vssl.nn.recompute import frozen_statistics
from lightning_vssl.optim import Decay, Schedule

Form = Literal["fast", "double"]
Cam = Literal["relu", "minmax"]

_MASKED_STREAM = 68  # shuffles the masked keys


@dataclass(frozen=True)
class _Attention:
    """How the attention loss is made; see `PreViTSMoCo`."""

    form: Form
    cam: Cam
    target: TargetForm
    official: bool

    def __post_init__(self) -> None:
        choices = {
            "attention": (self.form, get_args(Form)),
            "cam": (self.cam, get_args(Cam)),
            "target": (self.target, get_args(TargetForm)),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

    def __call__(
        self, method: MomentumQueue, query: EncodedView, views: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The loss of Eq. 5 as ``attention``, the map as ``cam`` (B, *S), the query's ``mask``."""
        mask, tracked = _masks(batch, views)
        key = self._foreground_key(method, views[:, 1], mask[:, 1], batch["key"])
        if self.official:
            query = method.encode(views[:, 0])
        with torch.autocast(views.device.type, enabled=False):
            score = (unit(query.projected) * key).sum(1) / method.temperature  # (B,)
            weights = self._weights(score, query)
            cam = grad_cam if self.cam == "relu" else minmax_cam
            attended = cam(query.maps, weights)  # (B, *S)
            target = tube_target(mask[:, 0], tuple(attended.shape[1:]), self.target)
            valid = tracked & mask[:, :2].flatten(2).any(2).all(1)  # seen in query and in key
            loss = attention_loss(attended, target, valid)
        return {"attention": loss, "cam": attended.detach(), "mask": batch["mask"][:, 0]}

    def _foreground_key(
        self, method: MomentumQueue, view: Tensor, mask: Tensor, key: Tensor
    ) -> Tensor:
        """Code of the key's object alone, (B, D): all else has the mean colour (section 3.3)."""
        large = F.interpolate(mask.to(view.dtype), view.shape[-2:], mode="nearest-exact")
        shown = large if view.dim() == 4 else large[:, None]  # (B, 1, [T,] H, W)
        noted = nullcontext() if self.official else frozen_statistics(method.target)
        with noted:
            return method.encode_keys(view * shown, key, _MASKED_STREAM)[0]

    def _weights(self, score: Tensor, query: EncodedView) -> Tensor:
        if self.form == "double":
            return channel_weights_through_maps(score, query.maps, create_graph=True)
        positions = query.maps[0, 0].numel()
        return channel_weights(score, query.pooled, positions, create_graph=True)


def _masks(batch: Batch, views: Tensor) -> tuple[Tensor, Tensor]:
    """Where the object is, (B, V, T, h, w) bool, and whose query and key have a tube, (B,) bool."""
    if "mask" not in batch or "tracked" not in batch:
        raise ValueError(
            "PreViTS needs masks of what is tracked, and this batch has none: give the data its "
            "tubes (the file that recipes/jobs/track.yaml writes)"
        )
    mask = batch["mask"]
    frames = views.shape[3] if views.dim() == 6 else 1
    if mask.dim() != 5 or mask.shape[:2] != views.shape[:2] or mask.shape[2] not in (1, frames):
        raise ValueError(
            f"mask must be (B, V, T, h, w) with the {frames} frames of the views, or one for all "
            f"of them; got {tuple(mask.shape)} for views {tuple(views.shape)}"
        )
    there = (mask > 0) & (mask != VOID)
    return there, batch["tracked"][:, :2].all(1)


class PreViTSMoCo(MoCo):
    """PreViTS on MoCo: the paper's image model, from single frames of two clips.

    A sample whose query or key has no tube, or no object left in the crop, is compared as the base
    does and has no attention loss.

    Args:
        backbone: The paper's is ResNet-50; a 3-D network does as well.
        augment: Makes two views with their ``mask``, usually
            `lightning_vssl.augment.objects.ObjectViews`.
        optimizer: The paper's is SGD, learning rate 0.03, momentum 0.9, weight decay 1e-4.
        schedule: Half a cosine.
        view: View of a batch outside training; see `Method`.
        hidden: Widths of the head's hidden layers.
        projection: Width of what the loss sees.
        temperature: Of the contrastive loss.
        momentum: Of the key network, at every step.
        queue_size: Keys in the queue, a multiple of the batch over all processes (the supplement's
            65535 is a slip).
        attention_weight: Weight of the attention loss, lambda in Eq. 6.
        attention: ``fast`` differentiates through the head alone; ``double`` through the map, to
            the same result.
        cam: What becomes of the weighted map: ``relu`` (Eq. 4), or ``minmax`` as the released code
            does.
        target: The ``paper``'s mask of every frame, or the ``official`` code's of the middle one;
            see `lightning_vssl.losses.attention.tube_target`.
        official: Whether the query is encoded again for the attention loss, batch norms note both
            passes, and the key network moves twice a step, as in the released code.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If a number is out of its range, or an option none of those named.
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
        attention_weight: float = 3.0,
        attention: Form = "fast",
        cam: Cam = "relu",
        target: TargetForm = "paper",
        official: bool = False,
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
            hidden=hidden,
            projection=projection,
            temperature=temperature,
            momentum=momentum,
            queue_size=queue_size,
            decay=decay,
            lr_batch=lr_batch,
            channels_last=channels_last,
        )
        self.attend = _Attention(attention, cam, target, official)
        self.add_term("attention", attention_weight)
        self.moves = 2 if official else 1

    def compare(self, query: EncodedView, views: Tensor, batch: Batch) -> dict[str, Tensor]:
        """MoCo's loss and the one of attention (Eq. 6); see `MomentumQueue.compare`."""
        return {**super().compare(query, views, batch), **self.attend(self, query, views, batch)}


class PreViTSRSPNet(RSPNet):
    """PreViTS on RSPNet: the paper's video model.

    The query is supervised by the key that plays as fast as it does. A sample whose query or key
    has no tube, or no object left in the crop, is compared as the base does and has no attention
    loss.

    Args:
        backbone: A 3-D network: S3D-G, R(2+1)D or C3D in the paper.
        augment: Makes views of three clips with their ``mask``, usually
            `lightning_vssl.augment.objects.ObjectViews`.
        optimizer: The code's is SGD, momentum 0.9, weight decay 1e-4, learning rate 0.2 at a batch
            of 256; the paper's rate is 0.5.
        schedule: Half a cosine to a thousandth of the rate.
        view: View of a batch outside training; see `Method`.
        hidden: Widths of the heads' hidden layers.
        projection: Width of what the losses see.
        temperature: Of the contrastive loss.
        margin: Of the ranking, a difference of cosines; see `RSPNet`.
        speed_temperature: What the ranking is divided by; see `RSPNet`.
        speed_weight: Weight of the ranking.
        momentum: Of the key network, at every step.
        queue_size: Keys in the queue, a multiple of the batch over all processes; the code's.
        attention_weight: Weight of the attention loss, lambda in Eq. 6.
        attention: ``fast`` or ``double``; see `PreViTSMoCo`.
        cam: ``relu`` or ``minmax``; see `PreViTSMoCo`.
        target: ``paper`` or ``official``; see `PreViTSMoCo`.
        official: A second pass for the attention loss, as in the code; see `PreViTSMoCo`.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If the backbone is a 2-D network, a number is out of its range, or an option
            none of those named.
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
        margin: float = 0.15,
        speed_temperature: float = 1.0,
        speed_weight: float = 1.0,
        momentum: float = 0.999,
        queue_size: int = 16384,
        attention_weight: float = 3.0,
        attention: Form = "fast",
        cam: Cam = "relu",
        target: TargetForm = "paper",
        official: bool = False,
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
            hidden=hidden,
            projection=projection,
            temperature=temperature,
            margin=margin,
            speed_temperature=speed_temperature,
            speed_weight=speed_weight,
            momentum=momentum,
            queue_size=queue_size,
            decay=decay,
            lr_batch=lr_batch,
            channels_last=channels_last,
        )
        self.attend = _Attention(attention, cam, target, official)
        self.add_term("attention", attention_weight)
        self.moves = 2 if official else 1

    def compare(self, query: EncodedView, views: Tensor, batch: Batch) -> dict[str, Tensor]:
        """RSPNet's losses and the one of attention (Eq. 6); see `MomentumQueue.compare`."""
        return {**super().compare(query, views, batch), **self.attend(self, query, views, batch)}
