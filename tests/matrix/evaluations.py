"""Every evaluation on an export, on a few clips, frames or pictures of noise and squares."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.backbones.weights import sha256
from lightning_vssl.data.masks import write_mask
from lightning_vssl.data.sequences import TrackedSequence
from lightning_vssl.datamodules.davis import DAVIS
from lightning_vssl.evaluation.base import Evaluation
from lightning_vssl.evaluation.grad_cam_tracking import GradCAMTracking
from lightning_vssl.evaluation.localization import ActionLocalisation
from lightning_vssl.evaluation.recognition import AttentiveProbe, FineTune, LinearProbe
from lightning_vssl.evaluation.retrieval import KNN, Retrieval
from lightning_vssl.evaluation.saliency import HumanSaliency
from lightning_vssl.evaluation.segmentation import MaskPropagation
from lightning_vssl.evaluation.tracking import SiamFC
from lightning_vssl.evaluation.trajectory_probe import TrajectoryProbe
from lightning_vssl.nn.action_transformer import ActionTransformer
from lightning_vssl.nn.propagation import LabelPropagation
from lightning_vssl.tracking.siamese import SiameseSearch
from tests.evaluation.people import People, people
from tests.evaluation.small import Tensors, trainer
from tests.matrix.families import Family
from tests.matrix.methods import Trained

SGD = functools.partial(torch.optim.SGD, lr=0.01)
EXEMPLAR, SEARCH = 64, 128  # pixels: 2 and 4 cells of the coarsest map


@dataclass(frozen=True)
class Cell:
    """An export and where its evaluation may write.

    Attributes:
        weights: The export's folder.
        family: Of its backbone.
        method: That trained it.
        folder: The run's folder.
    """

    weights: Path
    family: Family
    method: Trained
    folder: Path

    @property
    def dims(self) -> int:
        """2 for a network of images, 3 for one of clips."""
        return self.family.backbone(self.method.name).dims

    def run(self, module: Evaluation, data: LightningDataModule, *, fit: bool = False) -> None:
        """Trains a step if asked to, tests, and looks at the number that is written."""
        runner = trainer(self.folder, max_epochs=1, gradient_clip_val=1.0)
        if fit:
            runner.fit(module, data)
        runner.test(module, data, verbose=False)
        result = json.loads((self.folder / "result.json").read_text())
        assert result["evaluation"] == type(module).__name__
        assert result["weights_sha256"] == sha256(self.weights)
        assert result["results"]
        assert all(math.isfinite(value) for value in result["results"].values())


def _labelled(cell: Cell, count: int = 4, clips: int = 2) -> list[dict[str, Tensor]]:
    """Noise of two classes, (V, T, 3, H, W) each."""
    generator = torch.Generator().manual_seed(0)
    shape = (clips, cell.family.frames, 3, cell.family.side, cell.family.side)
    time = torch.arange(cell.family.frames).double().expand(clips, -1) / 8
    return [
        {
            "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            "label": torch.tensor(number % 2),
            "index": torch.tensor(number),
            "time": time,
        }
        for number in range(count)
    ]


def _split(cell: Cell) -> Tensors:
    samples = _labelled(cell)
    return Tensors(train=samples, test=samples, batch_size=4, num_classes=2)


def linear_probe(cell: Cell) -> None:
    cell.run(LinearProbe(weights=str(cell.weights), optimizer=SGD), _split(cell), fit=True)


def attentive_probe(cell: Cell) -> None:
    module = AttentiveProbe(weights=str(cell.weights), optimizer=SGD, num_heads=2)
    cell.run(module, _split(cell), fit=True)


def fine_tune(cell: Cell) -> None:
    cell.run(FineTune(weights=str(cell.weights), optimizer=SGD), _split(cell), fit=True)


def _gallery(cell: Cell) -> Tensors:
    samples = _labelled(cell)
    return Tensors(gallery=samples[:2], test=samples[2:], num_classes=2)


def retrieval(cell: Cell) -> None:
    cell.run(Retrieval(weights=str(cell.weights), ks=(1,)), _gallery(cell))


def knn(cell: Cell) -> None:
    cell.run(KNN(weights=str(cell.weights), ks=(1,)), _gallery(cell))


class Variants(Tensors):
    """A test of two variants of the same videos."""

    variants = ("original", "no_fg")
    validated_on_test = True

    def row_variants(self) -> Tensor:
        return torch.arange(len(self.test)) // 2


def backgrounds(cell: Cell) -> None:
    samples = _labelled(cell)
    data = Variants(train=samples, test=samples, batch_size=4, num_classes=2)
    cell.run(LinearProbe(weights=str(cell.weights), optimizer=SGD), data, fit=True)


def localisation(cell: Cell) -> None:
    samples = people(4, frames=cell.family.frames, side=cell.family.side)
    head = functools.partial(ActionTransformer, hidden=12, layers=1, heads=2)
    module = ActionLocalisation(weights=str(cell.weights), optimizer=SGD, head=head)
    cell.run(module, People(train=samples, test=samples), fit=True)


class Following(LightningDataModule):
    """Pairs of crops to train on, one sequence to follow."""

    def __init__(self, pairs: dict[str, Tensor], sequence: TrackedSequence) -> None:
        super().__init__()
        self.pairs, self.sequence = pairs, sequence

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader([self.pairs], batch_size=None)

    def test_dataloader(self) -> DataLoader[TrackedSequence]:
        return DataLoader([self.sequence], batch_size=None, collate_fn=lambda one: one)


def siamfc(cell: Cell) -> None:
    neighbours = cell.family.neighbours if cell.dims == 3 else 0
    module = SiamFC(
        weights=str(cell.weights),
        optimizer=SGD,
        neighbours=neighbours,
        search=SiameseSearch(exemplar=EXEMPLAR, search=SEARCH, scales=1),
    )
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, 2 * neighbours + 1, 3, SEARCH, SEARCH)
    pairs = {"video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)}
    frames = DAVIS(squares(cell), year=2016).sequences("val")[0].frames
    boxes = torch.tensor([[4.0 * t, 4.0 * t, 4.0 * t + 12, 4.0 * t + 12] for t in range(3)])
    tracked = TrackedSequence(frames, boxes.double())
    with patch("lightning_vssl.evaluation.tracking.write_report"):  # a picture that takes longest
        cell.run(module, Following(pairs, tracked), fit=True)


def trajectory_probe(cell: Cell) -> None:
    module = TrajectoryProbe(
        weights=str(cell.weights), optimizer=SGD, frames=cell.family.frames, hidden_channels=8
    )
    corner = torch.arange(cell.family.frames).float()[:, None].expand(-1, 2)
    boxes = torch.cat([corner, corner + 12], dim=1)[None, :, None]  # (1, T, 1, 4)
    samples = [{**one, "boxes": boxes} for one in _labelled(cell, clips=1)]
    cell.run(module, Tensors(train=samples, test=samples), fit=True)


def squares(cell: Cell) -> Path:
    """Two squares that move over 3 frames, in the layout of DAVIS; made once for an export."""
    root = cell.folder.parent / "davis"
    if root.is_dir():
        return root
    for name in ("one", "other"):
        for t in range(3):
            ids = np.zeros((64, 64), np.uint8)
            ids[4 * t : 4 * t + 12, 4 * t : 4 * t + 12] = 1
            picture = np.random.default_rng(t).integers(0, 100, (64, 64, 3)).astype(np.uint8)
            picture[ids > 0] += 150
            file = root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
            write_mask(root / "Annotations" / "480p" / name / f"{t:05d}.png", ids)
    lists = root / "ImageSets" / "2016"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("one\nother\n")
    return root


def mask_propagation(cell: Cell) -> None:
    backbone = cell.family.backbone(cell.method.name)
    module = MaskPropagation(
        weights=str(cell.weights),
        stage=None,
        restride=(),
        size=None,
        neighbours=backbone.stride[0] if backbone.dims == 3 else 0,
        propagation=LabelPropagation(context=2, radius=2),
    )
    cell.run(module, DAVIS(squares(cell), year=2016, split="val"))


def grad_cam_tracking(cell: Cell) -> None:
    side = cell.family.side
    module = GradCAMTracking(
        weights=str(cell.weights),
        head=cell.method.head,
        size=(side, side),
        frames=cell.family.frames,
    )
    cell.run(module, DAVIS(squares(cell), year=2016, split="val"))


def human_saliency(cell: Cell) -> None:
    side = 4 * cell.family.side  # attention needs more than one place to differ
    line = torch.arange(side).float()
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "video": torch.randint(
                0, 256, (1, 1, 3, side, side), dtype=torch.uint8, generator=generator
            ),
            "human": line[:, None] + line,  # ever more to the right and below
            "index": torch.tensor(number),
        }
        for number in range(2)
    ]
    cell.run(HumanSaliency(weights=str(cell.weights)), Tensors(test=samples))


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of the table."""

    name: str
    run: Callable[[Cell], None]


EVALUATIONS: Sequence[Evaluated] = (
    Evaluated("linear probe", linear_probe),
    Evaluated("attentive probe", attentive_probe),
    Evaluated("fine-tuning", fine_tune),
    Evaluated("retrieval", retrieval),
    Evaluated("k-NN", knn),
    Evaluated("backgrounds", backgrounds),
    Evaluated("action localisation", localisation),
    Evaluated("SiamFC", siamfc),
    Evaluated("trajectory probe", trajectory_probe),
    Evaluated("mask propagation", mask_propagation),
    Evaluated("Grad-CAM tracking", grad_cam_tracking),
    Evaluated("human saliency", human_saliency),
)
