"""RSPNet: clips are told apart by video and by the speed at which they play.

Paper: Chen, Huang, He, Long, Zeng, Wen, Tan, Gan, "RSPNet: relative speed perception for
unsupervised video representation learning", AAAI 2021; the base of PreViTS' video models (Chen et
al., WACV 2023, section 3.1). Three clips of a video: a query, a key at the query's speed, and the
key's stretch at the other speed (`lightning_vssl.data.clips.SpeedClips`). MoCo's loss, from a head
of its own, takes both keys as positives: what a clip shows does not depend on its speed. From the
other head, the key at the query's speed is to be nearer to the query than the other one.

Differs from the paper's text where the released code does: both keys enter the contrastive loss as
a sum of two, and the keys that are queued are those at the other speed. Whether a sample's query
plays fast or slowly is a coin of its own, from its key, where the code deals half of each rank's
batch to either speed: so nothing that is drawn depends on the number of ranks.
"""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.losses.info_nce import info_nce
from lightning_vssl.losses.speed import speed_ranking
from lightning_vssl.methods.base import Batch
from lightning_vssl.methods.moco import KEY_STREAM, EncodedView, MomentumQueue
from lightning_vssl.nn.heads import MLP
from lightning_vssl.optim import Decay, Schedule

_OTHER_STREAM = 67  # shuffles the keys at the other speed


class RSPNet(MomentumQueue):
    """Relative speed perception (Chen et al., AAAI 2021).

    Args:
        backbone: A 3-D network: C3D, R(2+1)D, 3-D ResNet-18 or S3D-G in the paper.
        augment: Makes views of three clips, usually `lightning_vssl.augment.views.VideoViews`.
        optimizer: The code's is SGD, momentum 0.9, weight decay 1e-4, learning rate 0.2 for S3D-G
            at a batch of 256.
        schedule: Half a cosine to a thousandth of the rate.
        view: View of a batch outside training; see `Method`.
        hidden: Widths of the heads' hidden layers; the paper's heads have none.
        projection: Width of what the losses see.
        temperature: Of the contrastive loss.
        margin: Of the ranking, a difference of cosines; see
            `lightning_vssl.losses.speed.speed_ranking`.
        speed_temperature: What the ranking is divided by: 1 is the loss as the papers print it.
            The released code's is 0.07 with a margin of 0.14 (2.0 on divided cosines), a ranking
            with gradients fourteen times as large.
        speed_weight: Weight of the ranking beside the contrastive loss.
        momentum: Of the key network, at every step.
        queue_size: Keys in the queue, a multiple of the batch over all processes.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If the backbone is a 2-D network, or a number is out of its range.
    """

    speed_head: MLP

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
        decay: Decay = "all",
        lr_batch: int | None = 256,
        channels_last: bool = False,
    ) -> None:
        if backbone.dims != 3:
            raise ValueError(
                f"RSPNet needs a 3-D backbone, got {type(backbone).__name__}: a single frame has "
                "no speed; MoCo learns from frames"
            )
        if not 0 <= margin <= 2 or speed_temperature <= 0:
            raise ValueError(
                "margin must lie in [0, 2], a difference of cosines, and speed_temperature above "
                f"0; got {margin} and {speed_temperature}"
            )
        names = ("projector", "speed_head")
        super().__init__(
            backbone=backbone,
            augment=augment,
            optimizer=optimizer,
            schedule=schedule,
            view=view,
            heads={name: MLP(backbone.num_features, hidden, projection) for name in names},
            views=3,
            terms={"instance": 1.0, "speed": speed_weight},
            temperature=temperature,
            momentum=momentum,
            queue_size=queue_size,
            decay=decay,
            lr_batch=lr_batch,
            channels_last=channels_last,
        )
        self.margin = margin
        self.speed_temperature = speed_temperature

    def compare(self, query: EncodedView, views: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss of both keys, and the ranking; see `MomentumQueue.compare`."""
        key, same = self.encode_keys(views[:, 1], batch["key"], KEY_STREAM)
        other_key, other = self.encode_keys(views[:, 2], batch["key"], _OTHER_STREAM)
        speed = self.project(self.speed_head, query.pooled)  # (B, D)
        negatives = self.queue.negatives()
        both = [
            info_nce(query.projected, positive, negatives, self.temperature)
            for positive in (key, other_key)
        ]
        return {
            "instance": both[0] + both[1],
            "speed": speed_ranking(speed, same, other, self.margin, self.speed_temperature),
            "keys": other_key,
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: encode, compare, queue the keys at the other speed, log.

        Raises:
            ValueError: If, in an epoch's first batch, clips have a single frame, or all three play
                at one speed.
        """
        if batch_idx == 0:
            if batch["time"].shape[2] < 2:
                raise ValueError(
                    f"{type(self).__name__} compares speeds, and clips of one frame have none: "
                    "give the data SpeedClips with frames of 2 or more"
                )
            gaps = batch["time"].diff(dim=2).median(dim=2).values  # (B, 3) seconds
            if gaps.shape[1] == 3 and torch.isclose(gaps[:, 1], gaps[:, 2]).all():
                raise ValueError(
                    f"{type(self).__name__} compares speeds, and all clips of this batch play at "
                    "one: give the data SpeedClips"
                )
        return super().training_step(batch, batch_idx)
