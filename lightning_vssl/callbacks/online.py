"""Labels as a thermometer: what the features are worth while a run goes on.

Neither callback changes the run: features are taken from the encoder in eval mode, modes and
random numbers are put back, and the probe's gradient stops at the features.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich import get_console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.augment.sides import check_sides
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.data.decode import UnreadableVideo
from lightning_vssl.metrics.neighbours import first_of_each, knn_predict, recall_at_k
from lightning_vssl.nn.gather import all_reduce_sum, gather_uneven, rank, world_size

Sample = dict[str, Tensor]
Loader = DataLoader[Sample]


@runtime_checkable
class LabelledData(Protocol):
    """What the callbacks here ask of a datamodule; `VideoDataModule` has it."""

    num_classes: int

    def gallery_dataloader(self) -> Loader:
        """Training videos in order, with the evaluation clips."""

    def val_dataloader(self) -> Loader | list[Loader]:
        """Held-out videos."""


class Encoded(NamedTuple):
    """Videos as vectors, the same on every rank, every video once, in the manifest's order."""

    features: Tensor  # (N, D) float32
    labels: Tensor  # (N,) int64
    rows: Tensor  # (N,) int64, rows of the manifest


def _labelled_data(trainer: Trainer, who: str) -> LabelledData:
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning, not declared
    if not isinstance(data, LabelledData):
        raise TypeError(
            f"{who} needs a datamodule with gallery_dataloader, val_dataloader and num_classes; got"
            f" {type(data).__name__}. Use a VideoDataModule or take the callback out of the recipe."
        )
    return data


def _held_out(data: LabelledData, who: str) -> Loader:
    loader = data.val_dataloader()
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"{who} needs held-out videos, and {type(data).__name__} has no validation split here"
            " (val_dataloader does not give one loader; limit_val_batches=0 leaves it out too)."
        )
    return loader


def _fewer(trainer: Trainer, videos: int | None) -> int | None:
    """A fast development run looks at 16 videos at most."""
    fast = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning
    return min(videos or 16, 16) if fast else videos


def _backbone(module: LightningModule, who: str) -> tuple[Backbone, nn.Module]:
    backbone, view = module.backbone, module.view
    if not isinstance(backbone, Backbone) or not isinstance(view, nn.Module):
        raise TypeError(
            f"{who} needs a method with `backbone` (a Backbone) and `view` (a module);"
            f" {type(module).__name__} has {type(backbone).__name__} and {type(view).__name__}."
        )
    return backbone, view


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; training modes and the global random numbers are as before after it."""
    modes = [(part, part.training) for part in module.modules()]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


class _Readable(Dataset[Sample | None]):
    """Some rows of a data set; None where a video breaks: no reason to end the run watched."""

    def __init__(self, dataset: Dataset[Sample], rows: list[int]) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Sample | None:
        try:
            return self.dataset[self.rows[number]]
        except UnreadableVideo:
            return None


class _Collate:
    """The loader's own collate function on the videos that could be read."""

    def __init__(self, collate: Callable[[list[Sample]], Sample]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Sample | None]) -> Sample | None:
        found = [sample for sample in samples if sample is not None]
        return self.collate(found) if found else None


def _rows(loader: Loader, videos: int | None) -> list[int]:
    """The rows wanted, rising; always the same ones."""
    total = len(loader.dataset)  # type: ignore[arg-type]  # map-style, as all of this package
    if videos is None or videos >= total:
        return list(range(total))
    # At random, as manifests are sorted by class.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return sorted(order[:videos].tolist())


def _share(loader: Loader, rows: list[int]) -> DataLoader[Sample | None]:
    """This rank's part: every world-size-th of the rows."""
    return DataLoader(
        _Readable(loader.dataset, rows[rank() :: world_size()]),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=_Collate(loader.collate_fn),
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
    )


def _pooled(backbone: Backbone, views: Tensor) -> Tensor:
    """Pools the last map over space and time, and over a video's clips: (B, D) float32."""
    flat = views.flatten(0, 1)  # (B V, 3, T, H, W)
    if backbone.dims == 2:
        flat = flat.transpose(1, 2).flatten(0, 1)  # (B V T, 3, H, W)
    pooled: Tensor = backbone(flat).flatten(2).mean(2).float()  # (B V [T], D)
    return pooled.reshape(views.shape[0], -1, pooled.shape[1]).mean(1)


def encode(
    trainer: Trainer,
    module: LightningModule,
    loader: Loader,
    videos: int | None = None,
    who: str = "the callback",
) -> Encoded:
    """Turns labelled videos into vectors, each rank its share, without disturbing the run.

    The plain view (``module.view``), the encoder in eval mode, its last map averaged over space,
    time and clips. Videos without a label (below 0) are left out, and so, with a warning, are
    those that cannot be read.

    Args:
        trainer: The trainer of the run.
        module: The method: its ``backbone`` and ``view`` are used.
        loader: Gives the videos; only its data set, batch size and workers are taken.
        videos: At most so many, drawn once and for all; None takes all.
        who: Names the caller in errors.

    Returns:
        Features, labels and rows of the manifest, on the module's device.

    Raises:
        TypeError: If the module has no backbone or no view.
        ValueError: If the videos have no labels.
    """
    backbone, view = _backbone(module, who)
    device = module.device
    wanted = _rows(loader, videos)
    features = [torch.zeros(0, backbone.num_features, device=device)]
    labels = [torch.zeros(0, dtype=torch.int64, device=device)]
    index = [torch.zeros(0, dtype=torch.int64, device=device)]
    with torch.no_grad(), _undisturbed(module):
        for sample in _share(loader, wanted):
            if sample is None:
                continue
            batch = {name: x.to(device, non_blocking=True) for name, x in sample.items()}
            if "label" not in batch:
                raise ValueError(
                    f"{who} needs labels, and the data have none. Give labelled data, or take the"
                    " callback out of the recipe: pretraining itself needs no labels."
                )
            with torch.autocast(device.type, enabled=False):
                batch = view(batch)
            with trainer.precision_plugin.forward_context():
                features.append(_pooled(backbone, batch["views"]))
            labels.append(batch["label"])
            index.append(batch["index"])
    rows = gather_uneven(torch.cat(index))
    known = gather_uneven(torch.cat(labels))
    vectors = gather_uneven(torch.cat(features))
    order = rows.argsort(stable=True)
    keep = order[first_of_each(rows[order])]
    if len(rows) < len(wanted):
        broken = f"{len(wanted) - len(rows)} of {len(wanted)} videos could not be read"
        rank_zero_warn(f"{who}: {broken} and are left out of its numbers.")
    keep = keep[known[keep] >= 0]
    if len(keep) == 0:
        raise ValueError(f"{who} needs labelled videos: of {len(rows)} read none has a label.")
    return Encoded(vectors[keep], known[keep], rows[keep])


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


class OnlineKNN(Callback):
    """k-NN and retrieval top-1 of held-out videos in the training videos, during and after a run.

    Features are those of `encode`, compared by cosine. k-NN is the weighted vote of Wu et al. 2018,
    section 3.4; retrieval asks whether the nearest training video has the query's class (VCOP,
    section 4.3, recall at 1). Chance is that of a training video drawn at random. Logs
    ``val/knn_top1`` and ``val/retrieval_top1``, in [0, 1]; the untouched encoder's at step 0. At
    the end of the fit prints a table and writes ``online_knn.json`` into the run's folder.

    Args:
        every_n_epochs: Measure after every n-th epoch; 0: not during the run.
        at_end: Measure at the end of the fit.
        untouched: Measure the encoder before its first step too. A resumed run remembers the value.
        k: Neighbours that vote.
        temperature: Of the vote's weights exp(cosine / temperature).
        videos: At most so many training and so many held-out videos, always the same ones; None
            takes all.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        every_n_epochs: int = 0,
        at_end: bool = True,
        untouched: bool = True,
        k: int = 20,
        temperature: float = 0.07,
        videos: int | None = 2000,
    ) -> None:
        super().__init__()
        if every_n_epochs < 0 or k < 1 or temperature <= 0 or (videos is not None and videos < 1):
            raise ValueError(
                "every_n_epochs must be at least 0, k and videos at least 1, temperature above 0;"
                f" got {every_n_epochs=}, {k=}, {videos=}, {temperature=}."
            )
        self.every_n_epochs = every_n_epochs
        self.at_end = at_end
        self.untouched = untouched
        self.k = k
        self.temperature = temperature
        self.videos = videos
        self.before: dict[str, float] | None = None
        self.latest: dict[str, float] | None = None
        self._latest_step = -1

    def state_dict(self) -> dict[str, object]:
        """The untouched encoder's numbers, which a resumed run cannot measure again."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, dict[str, float] | None]) -> None:
        """Takes the untouched encoder's numbers of the run that is resumed."""
        self.before = state_dict["before"]

    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Measures the encoder as it is now.

        Returns:
            ``knn_top1``, ``retrieval_top1`` and ``chance`` in [0, 1], and how many ``gallery``
            videos and ``queries`` were compared; the same on every rank.

        Raises:
            TypeError: If the method has no backbone or the datamodule no gallery.
            ValueError: If the videos have no labels.
        """
        data = _labelled_data(trainer, "OnlineKNN")
        videos = _fewer(trainer, self.videos)
        gallery = encode(trainer, module, data.gallery_dataloader(), videos, "OnlineKNN")
        queries = encode(trainer, module, _held_out(data, "OnlineKNN"), videos, "OnlineKNN")
        classes = int(torch.cat([gallery.labels, queries.labels]).max()) + 1
        predicted = knn_predict(
            queries.features, gallery.features, gallery.labels, classes, self.k, self.temperature
        )
        recall = recall_at_k(
            queries.features, queries.labels, gallery.features, gallery.labels, ks=(1,)
        )
        shares = [
            torch.bincount(part.labels, minlength=classes).double() / len(part.labels)
            for part in (gallery, queries)
        ]
        return {
            "knn_top1": float((predicted == queries.labels).double().mean()),
            "retrieval_top1": recall[1],
            "chance": float(shares[0] @ shares[1]),
            "gallery": len(gallery.labels),
            "queries": len(queries.labels),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the untouched encoder."""
        if not self.untouched or self.before is not None:
            return
        if trainer.global_step > 0:
            rank_zero_info("OnlineKNN: the run was resumed without the untouched encoder's numbers")
            return
        rank_zero_info("OnlineKNN: measuring the untouched encoder")
        self.before = self.measure(trainer, pl_module)
        self._log_now(trainer, self.before)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures after every n-th epoch."""
        if self.every_n_epochs == 0 or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        self._update(trainer, pl_module)
        assert self.latest is not None
        for name in ("knn_top1", "retrieval_top1"):
            pl_module.log(f"val/{name}", self.latest[name], batch_size=int(self.latest["queries"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, prints the table and writes ``online_knn.json``."""
        if self.at_end and self._latest_step != trainer.global_step:
            self._update(trainer, pl_module)
            assert self.latest is not None
            self._log_now(trainer, self.latest)
        if self.latest is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "online_knn.json"
        content: dict[str, object] = {
            "step": self._latest_step,
            "k": self.k,
            "temperature": self.temperature,
            "pretrained": self.latest,
            "untouched": self.before,
            "chance": self.latest["chance"],
        }
        _write_json(path, content)
        get_console().print(self.table())
        rank_zero_info(f"k-NN and retrieval on held-out videos: {path}")

    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        self.latest = self.measure(trainer, module)
        self._latest_step = trainer.global_step

    def _log_now(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Logs where ``module.log`` is not allowed: before the first and after the last step."""
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"val/{name}": values[name] for name in ("knn_top1", "retrieval_top1")},
                step=trainer.global_step,
            )

    def table(self) -> Table:
        """The numbers of the latest measurement beside the untouched encoder and chance.

        Raises:
            ValueError: If nothing was measured yet.
        """
        if self.latest is None:
            raise ValueError("Nothing was measured yet: run a fit with this callback first.")
        title = (
            f"{self.latest['queries']:.0f} held-out videos among {self.latest['gallery']:.0f}"
            " training videos, top-1 in per cent"
        )
        table = Table(title=title, title_justify="left", min_width=len(title))
        table.add_column("encoder")
        table.add_column(f"k-NN (k = {self.k})", justify="right")
        table.add_column("retrieval", justify="right")
        for name, values in (("pretrained", self.latest), ("untouched", self.before)):
            if values is not None:
                numbers = [f"{100 * values[key]:.1f}" for key in ("knn_top1", "retrieval_top1")]
                table.add_row(name, *numbers)
        chance = f"{100 * self.latest['chance']:.1f}"
        table.add_row("chance", chance, chance)
        return table


class _Probe(nn.Module):
    """A linear classifier on features standardised by their running moments.

    The moments of a batch enter after its step, summed over ranks, so that all ranks have the
    same ones and no rank waits in the forward pass.
    """

    mean: Tensor
    square: Tensor
    weight_sum: Tensor

    def __init__(self, features: int, classes: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        # Zeros, not nn.Linear: all ranks alike, and no random number drawn from the run.
        self.weight = nn.Parameter(torch.zeros(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("square", torch.zeros(features))
        self.register_buffer("weight_sum", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, classes) of features (B, D)."""
        weight = self.weight_sum.clamp(min=1e-12)
        mean = self.mean / weight
        variance = (self.square / weight - mean.square()).clamp(min=0)
        seen = self.weight_sum > 0
        scale = torch.where(seen, (variance + 1e-6 * (1 + mean.square())).rsqrt(), 0.0)
        return F.linear((x - mean) * scale, self.weight, self.bias)

    def observe(self, mean: Tensor, square: Tensor) -> None:
        """Takes the mean and the mean square of a global batch into the running ones."""
        self.mean.lerp_(mean, 1 - self.decay)
        self.square.lerp_(square, 1 - self.decay)
        self.weight_sum.lerp_(torch.ones_like(self.weight_sum), 1 - self.decay)


class OnlineProbe(Callback):
    """A linear classifier trained beside the method on its features, without touching it.

    Takes ``outputs["embedding"]`` (B, D), detached, and the labels of each training batch; has its
    own AdamW; gradients are averaged over ranks. Logs ``train/probe_top1`` (of the global batch,
    before the probe's step on it) and, every n epochs, ``val/probe_top1`` of the held-out videos,
    whose features are those of `encode`; both in [0, 1]. The training features are of augmented
    clips with the encoder in train mode, so the number is lower than a linear probe's after the
    run: it is for watching, not for reporting.

    Args:
        lr: Learning rate.
        weight_decay: Weight decay.
        every_n_epochs: Measure ``val/probe_top1`` after every n-th epoch; 0: never.
        videos: At most so many held-out videos; None takes all.
        num_classes: Number of classes; None asks the datamodule.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        every_n_epochs: int = 1,
        videos: int | None = 2000,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if lr <= 0 or weight_decay < 0 or every_n_epochs < 0:
            raise ValueError(
                "lr must be above 0, weight_decay and every_n_epochs at least 0; got"
                f" {lr=}, {weight_decay=}, {every_n_epochs=}."
            )
        self.lr = lr
        self.weight_decay = weight_decay
        self.every_n_epochs = every_n_epochs
        self.videos = videos
        self.num_classes = num_classes
        self.probe: _Probe | None = None
        self.optimizer: torch.optim.AdamW | None = None
        self._restored: dict[str, dict[str, object]] | None = None

    def state_dict(self) -> dict[str, dict[str, object]]:
        """The probe and its optimiser."""
        if self.probe is None or self.optimizer is None:
            return self._restored or {}
        return {"probe": dict(self.probe.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, dict[str, object]]) -> None:
        """Keeps the state until the probe is made, at the start of training."""
        self._restored = state_dict or None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the probe on the module's device, or restores it.

        Raises:
            ValueError: If clips are mirrored and their classes tell left from right.
        """
        backbone, _ = _backbone(pl_module, "OnlineProbe")
        check_sides(pl_module, trainer.datamodule)  # type: ignore[attr-defined]  # set by Lightning
        classes = self.num_classes or _labelled_data(trainer, "OnlineProbe").num_classes
        self.probe = _Probe(backbone.num_features, classes).to(pl_module.device)
        self.optimizer = torch.optim.AdamW(
            self.probe.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        if self._restored is not None:
            self.probe.load_state_dict(self._restored["probe"])
            self.optimizer.load_state_dict(self._restored["optimizer"])
            self._restored = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """One step of the probe."""
        if not isinstance(outputs, dict) or "embedding" not in outputs or "label" not in batch:
            raise ValueError(
                "OnlineProbe needs outputs['embedding'] of the training step and batch['label'];"
                " give a method that returns embeddings and labelled data, or take the callback"
                " out of the recipe."
            )
        accuracy = self.step(outputs["embedding"], batch["label"])
        pl_module.log("train/probe_top1", accuracy, batch_size=len(batch["label"]))

    def step(self, embedding: Tensor, label: Tensor) -> Tensor:
        """Trains the probe on one batch, all ranks together.

        Args:
            embedding: (B, D); no gradient goes into it.
            label: (B,) int64; below 0 is unlabelled and left out.

        Returns:
            Accuracy of the global batch before the step, () float32; 0 without any label.

        Raises:
            ValueError: If the shapes do not fit.
        """
        probe, optimizer = self.probe, self.optimizer
        assert probe is not None
        assert optimizer is not None
        width = probe.weight.shape[1]
        if embedding.shape != (len(label), width):
            raise ValueError(
                f"outputs['embedding'] must be ({len(label)}, {width}), one vector per label, as"
                f" wide as the backbone's features; got {tuple(embedding.shape)}."
            )
        known = label >= 0
        with torch.enable_grad(), torch.autocast(label.device.type, enabled=False):
            x = embedding.detach().to(probe.weight.dtype)
            scores = probe(x)
            target = label.where(known, -100)
            loss = F.cross_entropy(scores, target, ignore_index=-100, reduction="sum")
            parameters = [probe.weight, probe.bias]
            gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            x = x * known[:, None]
            right = (scores.argmax(1) == label)[known].sum()
            parts = [*gradients, x.sum(0), x.square().sum(0), known.sum(), right]
            sizes = [part.numel() for part in parts]
            total = all_reduce_sum(torch.cat([part.flatten().to(x.dtype) for part in parts]))
            weight, bias, mean, square, count, correct = torch.split(total, sizes)
            count = count.clamp(min=1)
            probe.weight.grad = (weight / count).view_as(probe.weight)
            probe.bias.grad = bias / count
            optimizer.step()
            probe.observe(mean / count, square / count)
            accuracy: Tensor = (correct / count).squeeze(0)
            return accuracy

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the held-out videos."""
        if self.every_n_epochs == 0 or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        loader = _held_out(_labelled_data(trainer, "OnlineProbe"), "OnlineProbe")
        held_out = encode(trainer, pl_module, loader, _fewer(trainer, self.videos), "OnlineProbe")
        assert self.probe is not None
        with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            predicted = self.probe(held_out.features).argmax(1)
        accuracy = (predicted == held_out.labels).float().mean()
        pl_module.log("val/probe_top1", accuracy, batch_size=len(held_out.labels))
