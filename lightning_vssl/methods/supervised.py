"""Supervised: a backbone learns to tell the classes of labelled videos.

The baseline with labels that the papers compare with: Kinetics-400 in Table 3 of CtP (Wang et al.,
CVPR 2021) and, as K400-sup, in Table 1 of ConST-CL (Yuan et al., CVPR 2022). The feature map is
averaged over time and space and classified by one linear layer, as CtP fine-tunes (supplement A).
`lightning_vssl.evaluation.recognition.FineTune` trains the same network to be measured; this trains
it to be exported, like every method. Pictures with classes (ImageNet) train an image network.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from lightning_vssl.augment.sides import check_sides
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.methods.base import Batch, Method
from lightning_vssl.metrics.accuracy import VideoAccuracy
from lightning_vssl.optim import Decay, Schedule


@runtime_checkable
class Labelled(Protocol):
    """A data module whose samples have classes."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""


class Supervised(Method):
    """Classification of labelled videos or pictures (CtP, Table 3; ConST-CL, Table 1).

    Validation scores each video by the mean logits of its clips and logs ``val/top1`` and, with
    more than five classes, ``val/top5``, in percent of the videos.

    Args:
        backbone: A 3-D network, or a 2-D one, which sees every frame by itself and whose frames
            are averaged.
        augment: Makes one or more views of every video; each is classified. Usually
            `lightning_vssl.augment.views.FineTuneViews`.
        optimizer: CtP's is SGD, learning rate 0.01, momentum 0.9, weight decay 5e-4.
        schedule: Factor of the learning rate at each step; None for constant.
        view: View of a batch outside training; see `Method`.
        num_classes: Number of classes; None takes the data module's.
        dropout: Share of features dropped in training, in [0, 1).
        init_std: Standard deviation of the classifier's initial weights; its biases start at 0.
        decay: What weight decay falls on; see `Method`.
        lr_batch: Batch that the learning rate is meant for; see `Method`.
        channels_last: Memory format of the backbone; see `Method`.

    Raises:
        ValueError: If a number is out of its range.
    """

    head: nn.Linear

    def __init__(
        self,
        backbone: Backbone,
        augment: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        view: nn.Module | None = None,
        num_classes: int | None = None,
        dropout: float = 0.5,
        init_std: float = 0.001,
        decay: Decay = "all",
        lr_batch: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            backbone, augment, optimizer, schedule, view, decay, lr_batch, channels_last
        )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be null or at least 2, got {num_classes}")
        self.num_classes = num_classes
        self.init_std = init_std
        self.dropout = nn.Dropout(dropout)
        self.accuracy: VideoAccuracy | None = None

    def setup(self, stage: str) -> None:
        """Makes the classifier, once the data's classes are known.

        Raises:
            ValueError: If the number of classes is not known, or 1, or not that of the data, or
                training would mirror clips whose classes tell left from right.
        """
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit":
            check_sides(self.augment, module)
        found = module.num_classes if isinstance(module, Labelled) else 0
        if not (self.num_classes or found):
            raise ValueError(
                "Supervised does not know how many classes there are: use a data set with classes "
                "(for VideoFolder, one sub-folder per class), or give num_classes"
            )
        if self.num_classes and found and self.num_classes != found:
            raise ValueError(
                f"num_classes={self.num_classes}, but the data has {found} classes; leave it null"
            )
        if found == 1:
            raise ValueError(
                f"{type(module).__name__} found a single class, so there is nothing to tell apart: "
                "VideoFolder's root must be the folder that holds one folder per class"
            )
        self.build(self.num_classes or found)

    def build(self, num_classes: int) -> None:
        """Makes the classifier, unless it is there.

        Args:
            num_classes: Number of classes.
        """
        if hasattr(self, "head"):
            return
        self.num_classes = num_classes
        self.head = nn.Linear(self.backbone.num_features, num_classes)
        nn.init.normal_(self.head.weight, std=self.init_std)
        nn.init.zeros_(self.head.bias)
        self.accuracy = VideoAccuracy(1, (1, 5) if num_classes > 5 else (1,))

    def pooled(self, views: Tensor) -> Tensor:
        """Features of clips, averaged over time and space.

        Args:
            views: Normalised clips, (B, V, 3, T, H, W).

        Returns:
            (B, V, C).
        """
        clips = views.flatten(0, 1)  # (B*V, 3, T, H, W)
        if self.backbone.dims == 3:
            maps: Tensor = self.backbone(clips)  # (B*V, C, T', H', W')
            return maps.mean((2, 3, 4)).view(*views.shape[:2], -1)
        maps = self.backbone(clips.transpose(1, 2).flatten(0, 1))  # (B*V*T, C, H', W')
        return maps.mean((2, 3)).view(*views.shape[:2], views.shape[3], -1).mean(2)

    def _labels(self, batch: Batch) -> Tensor:
        if "label" not in batch:
            raise ValueError(
                "Supervised needs labelled videos, and the batch has no 'label': use a data set "
                "with classes (for VideoFolder, one sub-folder per class)"
            )
        return batch["label"]

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """Classifies every view and compares with the class of its video."""
        pooled = self.pooled(batch["views"])
        logits = self.head(self.dropout(pooled))  # (B, V, classes)
        labels = self._labels(batch)
        repeated = labels.repeat_interleave(logits.shape[1])  # (B*V,)
        return {
            "loss": functional.cross_entropy(logits.flatten(0, 1), repeated),
            "views": batch["views"],
            "logits": logits.detach(),
            "embedding": pooled[:, 0].detach(),  # (B, C)
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step: classify, compare, log."""
        outputs = self._step(batch)
        right = outputs["logits"].mean(1).argmax(-1) == batch["label"]
        size = len(batch["index"])
        self.log("train/loss", outputs["loss"], prog_bar=True, batch_size=size)
        self.log("train/top1", 100 * right.float().mean(), batch_size=size)
        return outputs

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Scores held-out videos by the mean logits of their clips."""
        outputs = self._step(batch)
        if self.accuracy is None:
            raise RuntimeError("the classifier is not built: run the method with a Trainer")
        self.accuracy.update(outputs["logits"].mean(1), batch["label"], batch["index"])
        size = len(batch["index"])
        self.log(
            "val/loss", outputs["loss"], batch_size=size, sync_dist=True, add_dataloader_idx=False
        )
        return outputs

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracy, each video counted once."""
        if self.accuracy is None:
            return
        for k, (value,) in self.accuracy.compute().items():
            self.log(f"val/top{k}", 100 * value, prog_bar=k == 1, sync_dist=True)
        self.accuracy.reset()

    def on_load_checkpoint(self, checkpoint: Mapping[str, object]) -> None:
        """Refuses a checkpoint of other classes.

        Raises:
            ValueError: If its classifier has another number of classes than the data.
        """
        state = checkpoint["state_dict"]
        saved = state.get("head.bias") if isinstance(state, Mapping) else None
        if isinstance(saved, Tensor) and len(saved) != self.num_classes:
            raise ValueError(
                f"the checkpoint's classifier has {len(saved)} classes and the data "
                f"{self.num_classes}: it belongs to another data set"
            )
