"""CtP, Catch-the-Patch: a video network learns to follow patches that move over a clip.

Paper: Wang, Zhou, Luo, Xie, Zeng, Xiong, "Unsupervised Visual Representation Learning by Tracking
Patches in Video", CVPR 2021. Patches are cut from the clip, pasted along pre-set trajectories and
hidden now and then; given a patch's box in the first frame, a light head reads its box in every
frame off the backbone's features, all in one shot. No labels, no negatives, no teacher.

The trajectories can also come from elsewhere (section 5.2 and Table 1): a teacher that tracks,
annotations, or the network itself, tracking backward (cycle consistency).

The parts: `lightning_vssl.augment.patches` draws and pastes the trajectories,
`lightning_vssl.augment.label_sources` has the other sources,
`lightning_vssl.nn.trajectory` is the head, `lightning_vssl.losses.trajectory` the targets and the
loss. The backbone is trained with a last spatial stride of 1 (supplement D) and exported with 2.
"""

import math

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.losses.trajectory import SIGMA, decode, encode, trajectory_loss
from lightning_vssl.methods.base import Batch, Method
from lightning_vssl.nn.gather import all_reduce_sum, world_size
from lightning_vssl.nn.trajectory import TrajectoryHead
from lightning_vssl.optim import Schedule


class CtP(Method):
    """Catch-the-Patch (Wang et al., CVPR 2021).

    Args:
        backbone: A 3-D network; the paper's are R3D-18 and R(2+1)D-18 with ``last_stride=1``
            (total spatial stride 8, supplement D and Table 2).
        augment: Usually `lightning_vssl.augment.patches.CatchThePatch`: returns ``views``
            (B, 1, 3, T, H, W), ``trajectories`` (B, K, T, 4) xyxy in pixels of the views,
            ``trajectory_weights`` (B, K, T) and perhaps ``own_labels`` (B,) bool, the clips that
            the network labels itself.
        optimizer: The paper's is SGD, learning rate 0.01, momentum 0.9, weight decay 1e-4.
        schedule: The paper's divides by 10 after one and two thirds of the epochs.
        view: View of a batch outside training; see `Method`.
        frames: Frames T of a clip (section 5.1).
        hidden_channels: Width of the head (section 5.1).
        roi_size: Bins of RoIAlign per side (section 5.1).
        squeeze: Whether the head squeezes time (supplement F and Table 3).
        sigma: Scales of the targets: x and y in pixels, then log width and log height
            (section 3.2, supplement E and Table 4).

    Raises:
        ValueError: If the backbone is a 2-D network.
    """

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        frames: int = 16,
        hidden_channels: int = 512,
        roi_size: int = 5,
        squeeze: bool = True,
        sigma: tuple[float, float, float, float] = SIGMA,
    ) -> None:
        super().__init__(backbone, augment, optimizer, schedule, view)
        if backbone.dims != 3:
            raise ValueError(
                f"CtP needs a 3-D backbone, got {type(backbone).__name__}, which sees one frame at "
                "a time and cannot follow a patch; use R3D18 or R2Plus1D18, for example"
            )
        time_stride, space_stride = backbone.stride
        self.sigma = sigma
        self.head = TrajectoryHead(
            in_channels=backbone.num_features,
            in_frames=math.ceil(frames / time_stride),
            frames=frames,
            stride=space_stride,
            hidden=hidden_channels,
            roi_size=roi_size,
            squeeze=squeeze,
        )

    def track(self, clips: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Follows boxes through clips.

        Args:
            clips: Normalised clips, (B, 3, T, H, W).
            query: Boxes in the first frame, (B, K, 4), xyxy in pixels.

        Returns:
            The predicted targets, (B, K, T, 4), and the feature map, (B, C, T', H', W').
        """
        feature_map = self.backbone(clips)
        return self.head(feature_map, query), feature_map

    @torch.no_grad()
    def _tracked_back(self, clips: Tensor, last: Tensor) -> Tensor:
        """Follows boxes from the last frame back to the first (section 5.2).

        A second pass, over the whole batch on every rank, so that SyncBN's sums meet; the running
        statistics count it as a step of their own.

        Args:
            clips: Normalised clips, (B, 3, T, H, W).
            last: Boxes in the last frame, (B, K, 4), xyxy in pixels.

        Returns:
            Boxes in every frame, in the order of ``clips``, cut to the frame, (B, K, T, 4).
        """
        size = (clips.shape[-2], clips.shape[-1])
        query = clip_boxes_to_image(last, size)
        predicted, _ = self.track(clips.flip(2), query)
        back = decode(predicted.to(query), query, self.sigma)
        tracked: Tensor = clip_boxes_to_image(back.flip(2), size)
        return tracked

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """Tracks the patches of an augmented batch and compares."""
        boxes, weights = batch["trajectories"], batch["trajectory_weights"]  # (B, K, T, 4)
        clips, query = batch["views"][:, 0], boxes[:, :, 0]
        predicted, feature_map = self.track(clips, query)
        followed = decode(predicted.detach().to(boxes), query, self.sigma)
        if "own_labels" in batch:
            own = batch["own_labels"][:, None, None, None]
            boxes = torch.where(own, self._tracked_back(clips, followed[:, :, -1]), boxes)
        count = all_reduce_sum(weights.sum()) / world_size()
        centre, size = trajectory_loss(predicted, encode(boxes, query, self.sigma), weights, count)
        return {
            "loss": centre + size,
            "loss_centre": centre.detach(),
            "loss_size": size.detach(),
            "views": batch["views"],
            "trajectories": boxes.where(weights[..., None] > 0, torch.nan),  # what was asked for
            "predicted": followed,
            "embedding": feature_map.detach().mean((2, 3, 4)),  # (B, C)
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: track, compare, log."""
        outputs = self._step(batch)
        size = len(batch["index"])
        self.log("train/loss", outputs["loss"], prog_bar=True, batch_size=size)
        self.log("train/loss_centre", outputs["loss_centre"], batch_size=size)
        self.log("train/loss_size", outputs["loss_size"], batch_size=size)
        return outputs

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Plays the game on clips that were held back; their patches are the same every time.

        Where a video has several evaluation clips, on the first.
        """
        outputs = self._step(self.augment({**batch, "video": batch["video"][:, :1]}))
        size = len(batch["index"])
        self.log(
            "val/loss", outputs["loss"], batch_size=size, sync_dist=True, add_dataloader_idx=False
        )
        return outputs
