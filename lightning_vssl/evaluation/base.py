"""What every evaluation shares: the backbone and its weights, the views, the result's file."""

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from lightning_vssl import __version__
from lightning_vssl.augment.views import Normalise, check_pixels
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import (
    CONFIG_FILE,
    is_plain,
    load_backbone,
    load_weights,
    sha256,
    stamp,
)
from lightning_vssl.data.synthetic_layouts import is_built_in
from lightning_vssl.evaluation.result import RESULT, as_data, show, write_json
from lightning_vssl.optim import Schedule

Batch = dict[str, Tensor]
Split = Literal["validation", "test"]

UNTOUCHED = "untouched"

# What a data module holds beside the protocol.
_MACHINE = {
    "cache_dir",
    "num_workers",
    "prefetch_factor",
    "prepare_data_per_node",
    "allow_zero_length_dataloader_with_multiple_devices",
}


@dataclass(frozen=True)
class Pretrained:
    """What is evaluated.

    Attributes:
        backbone: The network, with the weights loaded.
        method: What trained it, as the file says; ``untouched`` without a file, ``unknown`` if the
            file does not say.
        weights: Path of the file or folder.
        sha256: Hash of the file.
    """

    backbone: Backbone
    method: str
    weights: str | None
    sha256: str | None


def pretrained(backbone: Backbone | None, weights: str | None) -> Pretrained:
    """Brings a network and its weights together, strictly.

    Args:
        backbone: The network; None takes the one that ``weights`` describes, in the form in which
            it is exported.
        weights: Export folder, file of safetensors, checkpoint of this library or official one;
            None leaves the network as it is.

    Returns:
        The network and what is known of its weights.

    Raises:
        ValueError: If both are None, or the weights do not fit.
        FileNotFoundError: If there is no such file.
    """
    if weights is None:
        if backbone is None:
            raise ValueError(
                "give weights (an export's folder or a checkpoint), or a backbone to evaluate it "
                "untouched, or both; got neither"
            )
        return Pretrained(backbone, backbone.origin or UNTOUCHED, None, None)
    if backbone is None:
        backbone = load_backbone(weights)
        said = f"{weights}: {type(backbone).__name__} and all its entries loaded"
    else:
        said = str(load_weights(backbone, weights, echo=False))
    rank_zero_only(print)(said)
    return Pretrained(backbone, _trained_by(Path(weights)), weights, sha256(weights))


def _trained_by(weights: Path) -> str:
    """The method named by an export's config or by a checkpoint of this library."""
    if weights.suffix == ".npz":  # arrays alone
        return "unknown"
    if weights.is_dir() or weights.suffix == ".safetensors":
        config = (weights if weights.is_dir() else weights.parent) / CONFIG_FILE
        said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    else:
        modern = zipfile.is_zipfile(weights)  # older files, MoCo's among them, cannot be mapped
        checkpoint = torch.load(weights, map_location="cpu", weights_only=True, mmap=modern)
        said = checkpoint.get("export", {})
    return str(said.get("method") or "unknown")


def pooled(maps: Tensor) -> Tensor:
    """Averages feature maps over time and space.

    Args:
        maps: (..., C, T, H, W).

    Returns:
        (..., C) in float32, or in the maps' own type where that is wider.
    """
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(dim=(-3, -2, -1))


class Evaluation(LightningModule):
    """Puts one number on a backbone.

    ``weights`` is what was pretrained: an export's folder, a file of safetensors, a checkpoint of
    this library, or an official one. With ``backbone`` too, they are loaded strictly into that
    network; without, the file says which network it is. A backbone without weights is evaluated
    as it is: the untouched encoder.

    Args:
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None.
        view: Makes the views (B, V, 3, T, H, W) of every batch but those of training; None
            normalises as the backbone wants its pixels.
        augment: Makes the views of training batches; None uses ``view``.
        clips_at_once: Clips per forward pass outside training, for videos of many clips; None
            takes all of the batch at once.
        paper: The paper's numbers, by the names of the results, in percent; stored beside ours.

    Raises:
        ValueError: If both ``backbone`` and ``weights`` are None, ``clips_at_once`` is below 1, or
            ``augment`` normalises otherwise than the network wants.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None,
        weights: str | None,
        view: nn.Module | None,
        augment: nn.Module | None,
        clips_at_once: int | None,
        paper: dict[str, float] | None,
    ) -> None:
        super().__init__()
        if clips_at_once is not None and clips_at_once < 1:
            raise ValueError(f"clips_at_once must be at least 1 or null, got {clips_at_once}")
        found = pretrained(backbone, weights)
        self.backbone = found.backbone
        check_pixels(augment, self.backbone.pixels)
        self.method = found.method
        self.weights = found.weights
        self.weights_sha256 = found.sha256
        self.view = view if view is not None else Normalise(*self.backbone.pixels)
        self.augment = augment
        self.clips_at_once = clips_at_once
        self.paper = dict(paper or {})
        self._input: dict[str, object] = {}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Makes the views: augmented ones in training, the protocol's otherwise."""
        make = self.augment if self.trainer.training and self.augment is not None else self.view
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            made: Batch = make(batch)
        return made

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts the epoch under way as begun; see `lightning_vssl.methods.base.Method`."""
        progress = self.trainer.fit_loop.epoch_progress
        current = cast(_ProcessedTracker, progress.current)
        if current.ready == current.processed:
            progress.increment_ready()
            progress.increment_started()

    def maps(self, views: Tensor, stage: str | None = None) -> Tensor:
        """Runs the backbone on every clip, frame by frame if it is an image network.

        Args:
            views: Normalised clips, (B, V, 3, T, H, W).
            stage: Whose maps, one of the backbone's; None for the last.

        Returns:
            Maps of the stage, (B, V, C, T', H', W').
        """
        clips = views.flatten(0, 1)  # (B*V, 3, T, H, W)
        step = clips.shape[0]
        if self.clips_at_once is not None and not self.training:
            step = self.clips_at_once
        parts = [self._forward(clips[i : i + step], stage) for i in range(0, len(clips), step)]
        maps = torch.cat(parts)
        return maps.reshape(*views.shape[:2], *maps.shape[1:])  # (B, V, C, T', H', W')

    def _forward(self, clips: Tensor, stage: str | None) -> Tensor:
        """(N, 3, T, H, W) -> (N, C, T', H', W')."""
        if self.backbone.dims == 3:
            return self._stage(clips, stage)
        frames = clips.transpose(1, 2)  # (N, T, 3, H, W)
        maps = self._stage(frames.flatten(0, 1), stage)  # (N*T, C, H', W')
        return maps.reshape(*frames.shape[:2], *maps.shape[1:]).transpose(1, 2)

    def _stage(self, pixels: Tensor, stage: str | None) -> Tensor:
        if stage is not None:
            return self.backbone.features(pixels, (stage,))[stage]
        maps: Tensor = self.backbone(pixels)
        return maps

    def labels(self, batch: Batch) -> Tensor:
        """Classes of the batch's videos, (B,) int64.

        Raises:
            ValueError: If the data has no classes.
        """
        if "label" not in batch:
            raise ValueError(
                f"{type(self).__name__} needs labelled videos, and the batch has no 'label': use a "
                "data set with classes (for VideoFolder, one sub-folder per class)"
            )
        return batch["label"]

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol, stored beside the number."""
        return {"view": self.view}

    def note_input(self, batch: Batch) -> None:
        """Notes what the first batch really looks like: stored beside the number."""
        if self._input:
            return
        clips, _, frames, height, width = batch["views"].shape[1:]
        self._input = {"clips": clips, "frames": frames, "height": height, "width": width}
        if "time" in batch:
            span = batch["time"][:, :, -1] - batch["time"][:, :, 0]  # (B, V)
            self._input["first_to_last_frame_seconds"] = round(float(span.double().median()), 3)

    def report(
        self, split: Split, results: Mapping[str, float], details: Mapping[str, object]
    ) -> None:
        """Writes ``result.json`` into ``trainer.default_root_dir`` and prints the table.

        All ranks may call it; rank 0 writes.

        Args:
            split: What the numbers were measured on.
            results: The numbers, in percent.
            details: Further plain data: how many videos, the number of every learning rate.
        """
        trainer = self.trainer
        if not trainer.is_global_zero:
            return
        limits = [trainer.limit_test_batches]
        if split == "validation":
            limits = [trainer.limit_train_batches, trainer.limit_val_batches]
        content = {
            "evaluation": type(self).__name__,
            "method": self.method,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "backbone": self.backbone.config,
            "split": split,
            "unit": "percent",
            "results": dict(results),
            "paper": self.paper,
            "complete": all(limit == 1.0 and isinstance(limit, float) for limit in limits),
            **details,
            "protocol": {
                **self.protocol(),
                "input": self._input,
                "data": data_arguments(trainer.datamodule),  # type: ignore[attr-defined]
                "precision": str(trainer.precision),
                "processes": trainer.world_size,
            },
            "library": __version__,
        }
        write_json(Path(trainer.default_root_dir) / RESULT, content)
        show(content)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keeps the checkpoint readable with ``weights_only=True`` and ready for export."""
        stamp(checkpoint, method=self.method, backbone=self.backbone)


def training_arguments(
    trainer: Trainer, schedule: Schedule | None, augment: nn.Module | None
) -> dict[str, object]:
    """How an evaluation is trained, stored beside its number.

    Args:
        trainer: The run, its optimiser made.
        schedule: Of the learning rate.
        augment: What makes the views of training.

    Returns:
        Plain data.
    """
    optimizer = trainer.optimizers[0]
    defaults = {
        name: value
        for name, value in optimizer.defaults.items()
        if value is not None and value is not False
    }
    noted = as_data(
        {
            "optimizer": {"class": type(optimizer).__name__, **defaults},
            "schedule": schedule,
            "augment": augment,
            "epochs": trainer.max_epochs,
            "steps": trainer.max_steps,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "precision": str(trainer.precision),
            "processes": trainer.world_size,
        }
    )
    return noted if isinstance(noted, dict) else {}


def data_arguments(module: LightningDataModule | None) -> dict[str, object]:
    """Class and settings of a data module: its public attributes that are plain or dataclasses.

    Args:
        module: The data module; None if loaders were given without one.

    Returns:
        Plain data. What only concerns the machine (workers, caches) is left out. ``built_in`` says
        whether any of it is drawn by this package.
    """
    if module is None:
        return {}
    settings = {
        name: as_data(value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in _MACHINE
        and (is_plain(value) or isinstance(value, Path) or dataclasses.is_dataclass(value))
    }
    drawn = any(is_built_in(root) for root in _roots(settings))
    return {"class": type(module).__name__, "built_in": drawn, **settings}


def _roots(settings: Mapping[str, object]) -> Iterator[Path]:
    """Folders of videos, of a data module and of those that it is made of."""
    for name, value in settings.items():
        if name == "root" and isinstance(value, str):
            yield Path(value)
        elif isinstance(value, Mapping):
            yield from _roots(value)
