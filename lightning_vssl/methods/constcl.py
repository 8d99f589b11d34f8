"""ConST-CL: what a region looks like in another clip can be told from that clip's context.

Paper: Yuan, Qian, Cui, Gong, Schroff, Yang, Adam, Liu, "Contextualized Spatio-Temporal Contrastive
Learning with Self-Supervision", CVPR 2022. To CVRL's global loss it adds a local one: the feature
of a region in one view, with the context of the other view, is turned into the feature that the
most similar region has there, and told from the regions of all other videos. The network is a "Y":
both losses share the trunk and have a last stage each (`lightning_vssl.backbones.YResNet`). There
is no stop-gradient and no teacher.

The parts: `lightning_vssl.nn.regions` pools regions and holds the head,
`lightning_vssl.losses.regions` pairs and contrasts them, `lightning_vssl.augment.regions` brings
the boxes. What the paper leaves open, or prints otherwise than its authors' code does, is said
where it matters.
"""

import math
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.pytorchvideo_video import YResNet
from lightning_vssl.losses.info_nce import nt_xent
from lightning_vssl.losses.regions import nearest_regions, region_info_nce
from lightning_vssl.methods.base import Batch, Method
from lightning_vssl.methods.cvrl import two_views
from lightning_vssl.nn.heads import MLP
from lightning_vssl.nn.keyed import uniform
from lightning_vssl.nn.recompute import in_parts
from lightning_vssl.nn.regions import RegionDecoder, context_frames, pool_regions
from lightning_vssl.optim import Decay, Schedule

_SLICE = 65  # stream of the keyed generator


class ConSTCL(Method):
    """Contextualized spatio-temporal contrastive learning (Yuan et al., CVPR 2022).

    Args:
        backbone: The paper's is `YResNet`; with the other endpoints any 3-D network.
        augment: Makes two views of every video with ``boxes`` in them, usually
            `lightning_vssl.augment.regions.RegionViews`.
        optimizer: The paper's is SGD, learning rate 40.96, momentum 0.9, weight decay 1e-6.
        schedule: Five epochs of warm-up, then half a cosine to 0 (section 4.1).
        view: View of a batch outside training; see `Method`.
        endpoint: Where the local loss stands (Figure 3, Table 5): ``c5g+c5r`` on a last stage of
            its own, ``c5`` on the global one's, ``c4p`` on the stage before it, averaged 2 x 2.
        sampling: Which frame of each view's map the regions are in (Table 4): the ``centre``, a
            ``random`` one, or the two ``nearest`` in time, drawn where several pairs are.
        regions: ``boxes``, or ``voxels``: every position of that frame, for the dense loss of
            Eq. 1 and 2.
        context_length: Frames of context around the centre of the other view, odd (Table 6). 0:
            no context, projections are compared with projections (Eq. 1 and 3).
        local_weight: Weight of the local loss, a mean over regions (section 4.1: 0.01; the
            authors' released configuration has 0.001).
        hidden: Widths of the global head's hidden layers, and of the local one's without context.
        projection: Width of their output.
        head_bias: Whether the hidden layers have biases beside their batch norms.
        decoder_width: Width of an attention unit (section 4.1).
        decoder_layers: Layers of units.
        decoder_heads: Units of a layer.
        activation: Of the units: ``gelu`` as in the code, ``relu`` as in the paper.
        position: Who is told where it is: the ``memory`` as in the code, or
            ``query_and_memory``, nearer to the paper's text.
        temperature: Of the global loss.
        local_temperature: Of the local loss.
        parts: Into how many parts a process's share of the batch is encoded; see
            `lightning_vssl.methods.cvrl.CVRL`.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If an option is none of those named or the backbone does not have the endpoint.
    """

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        endpoint: Literal["c5g+c5r", "c5", "c4p"] = "c5g+c5r",
        sampling: Literal["centre", "nearest", "random"] = "centre",
        regions: Literal["boxes", "voxels"] = "boxes",
        context_length: int = 5,
        local_weight: float = 0.01,
        hidden: tuple[int, ...] = (2048, 2048, 2048),
        projection: int = 128,
        head_bias: bool = False,
        decoder_width: int = 128,
        decoder_layers: int = 3,
        decoder_heads: int = 3,
        activation: Literal["gelu", "relu"] = "gelu",
        position: Literal["memory", "query_and_memory"] = "memory",
        temperature: float = 0.1,
        local_temperature: float = 0.2,
        parts: int = 1,
        decay: Decay = "kernels",
        lr_batch: int | None = 1024,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            backbone, augment, optimizer, schedule, view, decay, lr_batch, channels_last
        )
        _check(backbone, endpoint, sampling, regions, context_length)
        self.endpoint = endpoint
        self.sampling = sampling
        self.regions = regions
        self.context_length = context_length
        self.local_weight = local_weight
        self.temperature = temperature
        self.local_temperature = local_temperature
        self.parts = parts
        self.head = MLP(backbone.num_features, hidden, projection, norm="batch", bias=head_bias)
        channels, self.space_stride = backbone.num_features, backbone.stride[1]
        if endpoint == "c4p":
            trunk = backbone.stages[-2]
            channels = backbone.stage_channels[trunk]
            self.space_stride = 2 * backbone.stage_strides[trunk][1]
        self.region_head: MLP | RegionDecoder = (
            RegionDecoder(
                channels,
                decoder_width,
                decoder_layers,
                decoder_heads,
                activation=activation,
                position=position,
            )
            if context_length
            else MLP(channels, hidden, projection, norm="batch", bias=head_bias)
        )

    def maps(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the backbone.

        Args:
            clips: Normalised clips, (B, 3, T, H, W).

        Returns:
            The global map, (B, C, T', H', W'), and the local one, whose voxels have length 1.
        """
        if isinstance(self.backbone, YResNet) and self.endpoint == "c5g+c5r":
            whole, local = self.backbone.branches(clips)
        elif self.endpoint == "c4p":
            trunk, last = self.backbone.stages[-2:]
            found = self.backbone.features(clips, (trunk, last))
            whole, local = found[last], F.avg_pool3d(found[trunk], (1, 2, 2), ceil_mode=True)
        else:
            whole = local = self.backbone(clips)
        wide = local if local.dtype == torch.float64 else local.float()
        return whole, F.normalize(wide, dim=1)

    def slices(self, time: Tensor, key: Tensor) -> Tensor:
        """Chooses the frame of each view's map that its regions are in (section 4.4).

        Args:
            time: When the clips' frames are shown, (B, 2, T) seconds.
            key: Keys of the samples, (B,).

        Returns:
            (B, 2) int64, below the T' frames of a map.
        """
        stride = self.backbone.stride[0]
        frames = math.ceil(time.shape[-1] / stride)
        if self.sampling == "centre":
            return torch.full_like(key, frames // 2)[:, None].expand(-1, 2)
        if self.sampling == "random":
            return (uniform(key, 2, _SLICE) * frames).long().clamp(max=frames - 1)
        a, b = time[:, :, ::stride].unbind(1)  # (B, T') each
        gap = (a[:, :, None] - b[:, None]).abs().flatten(1)  # (B, T' * T')
        least = gap <= gap.amin(1, keepdim=True) + 1e-3
        chosen = uniform(key, gap.shape[1], _SLICE).masked_fill(~least, -1).argmax(1)
        return torch.stack([chosen // frames, chosen % frames], dim=1)

    def places(self, batch: Batch, where: Tensor) -> Tensor:
        """Says where the regions are.

        Args:
            batch: Holds ``views`` (B, 2, 3, T, H, W) and, unless the regions are voxels, ``boxes``
                (B, 2, T or 1, N, 4), xyxy in pixels of the views.
            where: Frames of the maps, (B, 2).

        Returns:
            (B, 2, N, 4), xyxy as shares of the view; NaN where missing.
        """
        height, width = batch["views"].shape[-2:]
        if self.regions == "voxels":
            rows, columns = (math.ceil(n / self.space_stride) for n in (height, width))
            top = torch.arange(rows, device=where.device) / rows
            left = torch.arange(columns, device=where.device) / columns
            y, x = torch.meshgrid(top, left, indexing="ij")
            cells = torch.stack([x, y, x + 1 / columns, y + 1 / rows], dim=-1).view(-1, 4)
            return cells.expand(*where.shape, -1, -1)
        boxes = batch["boxes"]
        frame = (where * self.backbone.stride[0]).clamp(max=boxes.shape[2] - 1)
        video = torch.arange(len(boxes), device=boxes.device)[:, None]
        chosen = boxes[video, torch.arange(2, device=boxes.device), frame]  # (B, 2, N, 4)
        return chosen / chosen.new_tensor([width, height, width, height])

    def encode(
        self, views: Tensor, where: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encodes the two views of some videos.

        Args:
            views: Normalised clips, (B, 2, 3, T, H, W).
            where: Frame of each view's map that its regions are in, (B, 2).
            places: The regions, (B, 2, N, 4), xyxy as shares of the view; NaN where missing.

        Returns:
            Pooled features of the global branch (B, 2, C) and their projections (B, 2, D); the
            regions' features h (B, 2, N, C) and the predictions z of how they are in the other
            view, or without context their projections. Missing regions have any finite values.
        """
        whole, local = self.maps(views.flatten(0, 1))
        pooled = whole.mean((2, 3, 4))  # (2B, C)
        projected = self.head(pooled)
        clip = torch.arange(len(local), device=local.device)
        frame = local[clip, :, where.flatten()]  # (2B, C, H', W')
        there = places.isfinite().all(-1, keepdim=True)
        places = torch.where(there, places, places.new_tensor([0, 0, 1, 1])).flatten(0, 1)
        if self.regions == "voxels":
            h = frame.flatten(2).transpose(1, 2)  # (2B, N, C)
        else:
            h = pool_regions(frame, places)
        z = self.predict(h, local, places)
        pairs = (len(views), 2)
        return (
            pooled.view(*pairs, -1),
            projected.view(*pairs, -1),
            h.view(*pairs, *h.shape[1:]),
            z.view(*pairs, *z.shape[1:]),
        )

    def predict(self, h: Tensor, local: Tensor, places: Tensor) -> Tensor:
        """Makes z of Eq. 1, 3 or 5.

        Args:
            h: Regions, (2B, N, C), the two views of a video one after the other.
            local: Local maps of the same views, (2B, C, T', H', W').
            places: Where the regions are, (2B, N, 4), xyxy as shares of the view.

        Returns:
            (2B, N, D).
        """
        if isinstance(self.region_head, MLP):
            flat: Tensor = self.region_head(h.flatten(0, 1))
            return flat.view(*h.shape[:2], -1)
        context = local[:, :, context_frames(local.shape[2], self.context_length)]
        others = context.view(-1, 2, *context.shape[1:]).flip(1).flatten(0, 1)  # the other view's
        centres = (places[..., :2] + places[..., 2:]) / 2  # (2B, N, 2)
        made: Tensor = self.region_head(h, others, centres)
        return made

    def local_loss(self, h: Tensor, z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The contrast of Eq. 2, 3 or 6, averaged over both directions.

        Args:
            h: Region features, (B, 2, N, C).
            z: Predictions or projections, (B, 2, N, D).
            valid: Which regions exist, (B, 2, N).

        Returns:
            The loss, (), and the pairs, (B, 2, N): the other view's region for each.
        """
        targets = h if isinstance(self.region_head, RegionDecoder) else z
        losses, pairs = [], []
        for one, other in ((0, 1), (1, 0)):
            pair = nearest_regions(h[:, one], h[:, other], valid[:, other])
            losses.append(
                region_info_nce(
                    z[:, one],
                    targets[:, other],
                    pair,
                    valid[:, one],
                    valid[:, other],
                    self.local_temperature,
                )
            )
            pairs.append(pair)
        return (losses[0] + losses[1]) / 2, torch.stack(pairs, dim=1)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        where = self.slices(batch["time"], batch["key"])
        places = self.places(batch, where)
        pooled, projected, h, z = in_parts(
            self, self.encode, self.parts, batch["views"], where, places
        )
        valid = places.isfinite().all(-1)  # (B, 2, N)
        whole = nt_xent(projected[:, 0], projected[:, 1], self.temperature)
        local, pairs = self.local_loss(h, z, valid)
        return {
            "loss": whole + self.local_weight * local,
            "loss_global": whole.detach(),
            "loss_local": local.detach(),
            "regions": valid.float().mean(),
            "views": batch["views"],
            "places": places,
            "pairs": pairs,
            "frames": where * self.backbone.stride[0],
            "embedding": pooled[:, 0].detach(),  # (B, C)
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: encode both views, compare clips and regions, log."""
        outputs = self._step(batch)
        size = len(batch["index"])
        self.log("train/loss", outputs["loss"], prog_bar=True, batch_size=size)
        for name in ("loss_global", "loss_local", "regions"):
            self.log(f"train/{name}", outputs[name], batch_size=size)
        return outputs

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """The losses of held-out videos, on the first two clips of each."""
        outputs = self._step(self.augment(two_views(batch)))
        size = len(batch["index"])
        for name in ("loss", "loss_global", "loss_local"):
            self.log(
                f"val/{name}",
                outputs[name],
                batch_size=size,
                sync_dist=True,
                add_dataloader_idx=False,
            )
        return outputs


def _check(
    backbone: Backbone, endpoint: str, sampling: str, regions: str, context_length: int
) -> None:
    """Raises where an option is unknown or the backbone does not have the endpoint."""
    allowed = {
        "endpoint": (endpoint, ("c5g+c5r", "c5", "c4p")),
        "sampling": (sampling, ("centre", "nearest", "random")),
        "regions": (regions, ("boxes", "voxels")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    kind = type(backbone).__name__
    if backbone.dims != 3:
        raise ValueError(
            f"ConST-CL needs a 3-D backbone, got {kind}, which sees one frame at a time"
        )
    both = isinstance(backbone, YResNet) and backbone.endpoint == "both"
    if (endpoint == "c5g+c5r") != both:
        raise ValueError(
            f"endpoint={endpoint!r} does not go with the backbone {kind}: c5g+c5r needs a YResNet "
            "with endpoint: both, and the others a network with one last stage, so that no weight "
            "goes without gradients"
        )
    if context_length:
        context_frames(max(context_length, 1), context_length)
