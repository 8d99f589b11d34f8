"""CVRL: two clips of a video are alike, and unlike those of all other videos.

Paper: Qian, Meng, Gong, Yang, Wang, Belongie, Cui, "Spatiotemporal Contrastive Video
Representation Learning", CVPR 2021, as ConST-CL (Yuan et al., CVPR 2022) trains it as its baseline:
two clips whose distance in time is drawn from a linearly decreasing density
(`lightning_vssl.data.clips.ClipPair`), augmented alike over their frames
(`lightning_vssl.augment.views.VideoViews`), meet in NT-Xent over the global batch.

Accumulating gradients does not enlarge the contrastive batch: every accumulated batch has
negatives of its own. ``parts`` does: see there.
"""

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.losses.info_nce import nt_xent
from lightning_vssl.methods.base import Batch, Method
from lightning_vssl.nn.heads import MLP
from lightning_vssl.nn.recompute import in_parts
from lightning_vssl.optim import Decay, Schedule


def two_views(batch: Batch) -> Batch:
    """The first two clips of every video of a batch; a single one is taken twice.

    Args:
        batch: Holds ``video`` (B, V, T, 3, H, W), and what goes with it.

    Returns:
        A copy of the batch with V = 2.
    """
    pair = [0, 1] if batch["video"].shape[1] > 1 else [0, 0]
    names = ("video", "crop", "time", "boxes", "mask", "tracked")
    return {**batch, **{name: batch[name][:, pair] for name in names if name in batch}}


class CVRL(Method):
    """Contrastive video representation learning (Qian et al., CVPR 2021).

    Args:
        backbone: A 3-D network; the paper's is R3D-50 (`PytorchvideoResNet`).
        augment: Makes two views of every video, usually
            `lightning_vssl.augment.views.VideoViews` with one probability per view for blur and
            solarisation.
        optimizer: ConST-CL's is SGD, learning rate 40.96, momentum 0.9, weight decay 1e-6.
        schedule: Five epochs of warm-up, then half a cosine to 0.
        view: View of a batch outside training; see `Method`.
        hidden: Widths of the projection head's hidden layers ("3-layer MLP": three of them).
        projection: Width of what the loss sees.
        head_bias: Whether the hidden layers have biases beside their batch norms: they do in
            CVRL's code and not in ConST-CL's.
        temperature: Of NT-Xent.
        parts: Into how many parts a process's share of the batch is encoded, keeping the
            activations of none: the contrastive batch is then as large as the pixels allow, for
            one more forward pass. Loss and gradients are those of the one big batch, except that
            batch norms see one part (of all ranks) at a time.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

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
        hidden: tuple[int, ...] = (2048, 2048, 2048),
        projection: int = 128,
        head_bias: bool = True,
        temperature: float = 0.1,
        parts: int = 1,
        decay: Decay = "kernels",
        lr_batch: int | None = 1024,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            backbone, augment, optimizer, schedule, view, decay, lr_batch, channels_last
        )
        if backbone.dims != 3:
            raise ValueError(
                f"CVRL needs a 3-D backbone, got {type(backbone).__name__}, which sees one frame "
                "at a time; MoCLR learns from frames"
            )
        self.temperature = temperature
        self.parts = parts
        self.head = MLP(backbone.num_features, hidden, projection, norm="batch", bias=head_bias)

    def encode(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the views of some videos.

        Args:
            views: Normalised clips, (B, V, 3, T, H, W).

        Returns:
            Pooled features (B, V, C), and their projections (B, V, D), not normalised.
        """
        pooled = self.backbone(views.flatten(0, 1)).mean((2, 3, 4))  # (B*V, C)
        projected = self.head(pooled)
        return pooled.view(*views.shape[:2], -1), projected.view(*views.shape[:2], -1)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        pooled, projected = in_parts(self, self.encode, self.parts, batch["views"])
        return {
            "loss": nt_xent(projected[:, 0], projected[:, 1], self.temperature),
            "views": batch["views"],
            "embedding": pooled[:, 0].detach(),  # (B, C)
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: encode both views of every video, compare, log."""
        outputs = self._step(batch)
        size = len(batch["index"])
        self.log("train/loss", outputs["loss"], prog_bar=True, batch_size=size)
        return outputs

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """The loss of held-out videos, on the first two clips of each; it grows with the batch."""
        outputs = self._step(self.augment(two_views(batch)))
        size = len(batch["index"])
        self.log(
            "val/loss", outputs["loss"], batch_size=size, sync_dist=True, add_dataloader_idx=False
        )
        return outputs
