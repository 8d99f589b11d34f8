"""One step of every method on a family's network, and the export that it leaves."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.augment.objects import ObjectViews
from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
from lightning_vssl.augment.regions import RandomBoxes, RegionViews
from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones import YResNet
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import export, load_backbone
from lightning_vssl.methods.base import Method
from lightning_vssl.methods.constcl import ConSTCL
from lightning_vssl.methods.ctp import CtP
from lightning_vssl.methods.cvrl import CVRL
from lightning_vssl.methods.moco import MoCo
from lightning_vssl.methods.previts import PreViTSMoCo, PreViTSRSPNet
from lightning_vssl.methods.rspnet import RSPNet
from lightning_vssl.methods.supervised import Supervised
from lightning_vssl.methods.vito import VITO, MoCLR
from tests.evaluation.small import trainer
from tests.matrix.families import Family
from tests.methods.clips import clips

SGD = functools.partial(torch.optim.SGD, lr=0.01)


@dataclass(frozen=True)
class Trained:
    """A method of the table.

    Attributes:
        name: As the table has it.
        make: Builds it, small, around a backbone and for a family's clips.
        views: Clips of a sample.
        head: The exported head that `GradCAMTracking` compares by; None where there is none.
    """

    name: str
    make: Callable[[Backbone, Family], Method]
    views: int
    head: str | None = None


def _views(backbone: Backbone) -> VideoViews:
    mean, std = backbone.pixels
    return VideoViews(mean, std, blur_kernel=5)


def _ctp(backbone: Backbone, family: Family) -> Method:
    mean, std = backbone.pixels
    patches = CatchThePatch(PatchTracks(scales=(6, 9, 12), speed=1.0), mean=mean, std=std)
    return CtP(backbone, patches, SGD, frames=family.frames, hidden_channels=16)


def _constcl(backbone: Backbone, family: Family) -> Method:
    return ConSTCL(
        backbone,
        RegionViews(_views(backbone), RandomBoxes(4)),
        SGD,
        endpoint="c5g+c5r" if isinstance(backbone, YResNet) else "c5",
        context_length=1,
        hidden=(16,),
        projection=8,
        decoder_width=12,
        decoder_layers=1,
        lr_batch=None,
    )


def _queued(kind: type[Method]) -> Callable[[Backbone, Family], Method]:
    return lambda backbone, family: kind(
        backbone, _views(backbone), SGD, projection=8, queue_size=16, lr_batch=None
    )


def _tracked(kind: type[Method]) -> Callable[[Backbone, Family], Method]:
    return lambda backbone, family: kind(
        backbone,
        ObjectViews(_views(backbone), size=family.side),
        SGD,
        projection=8,
        queue_size=16,
        lr_batch=None,
    )


def _projected(kind: type[Method]) -> Callable[[Backbone, Family], Method]:
    return lambda backbone, family: kind(
        backbone, _views(backbone), SGD, hidden=(16,), projection=8, lr_batch=None
    )


def _vito(backbone: Backbone, family: Family) -> Method:
    sgd = functools.partial(torch.optim.SGD, lr=1.0)  # a step that attention is not the same after
    return VITO(
        backbone,
        _views(backbone),
        sgd,
        hidden=(16,),
        projection=8,
        attention_hidden=4,
        lr_batch=None,
    )


def _supervised(backbone: Backbone, family: Family) -> Method:
    return Supervised(backbone, _views(backbone), SGD, num_classes=2)


METHODS = (
    Trained("CtP", _ctp, 1),
    Trained("MoCo", _queued(MoCo), 2, "projector"),
    Trained("RSPNet", _queued(RSPNet), 3, "projector"),
    Trained("PreViTS (MoCo)", _tracked(PreViTSMoCo), 2, "projector"),
    Trained("PreViTS (RSPNet)", _tracked(PreViTSRSPNet), 3, "projector"),
    Trained("CVRL", _projected(CVRL), 2),
    Trained("ConST-CL", _constcl, 2),
    Trained("MoCLR", _projected(MoCLR), 2),
    Trained("VITO", _vito, 3),
    Trained("supervised", _supervised, 1),
)


def batch_of(family: Family, backbone: Backbone, views: int) -> dict[str, Tensor]:
    """Noise with the masks of a moving object; single frames for an image network."""
    frames = family.frames if backbone.dims == 3 else 1
    batch = clips(size=2, views=views, frames=frames, side=family.side)
    whole = torch.tensor([0.0, 0.0, family.side, family.side])
    return {**batch, "crop": whole.expand(2, views, 4), "label": torch.tensor([0, 1])}


def train(family: Family, method: Trained, folder: Path) -> Path:
    """Trains a method for one step and exports it.

    Returns:
        The export's folder.
    """
    backbone = family.backbone(method.name)
    module = method.make(backbone, family)
    before = {name: one.detach().clone() for name, one in backbone.named_parameters()}
    batch = batch_of(family, backbone, method.views)
    runner = trainer(folder, max_steps=1, gradient_clip_val=1.0)
    runner.fit(module, DataLoader([batch], batch_size=None))
    _check_step(module, before)
    runner.save_checkpoint(folder / "last.ckpt", weights_only=True)
    export(folder / "last.ckpt", folder / "export")
    (folder / "last.ckpt").unlink()
    _check_export(folder / "export", backbone)
    return folder / "export"


def _check_step(module: Method, before: dict[str, Tensor]) -> None:
    idle = [
        name for name, one in module.named_parameters() if one.requires_grad and one.grad is None
    ]
    assert idle == [], "DDP waits for these gradients"
    moved = [
        name for name, one in module.backbone.named_parameters() if not one.equal(before[name])
    ]
    assert moved, "the backbone learns"
    assert _finite(module.state_dict().values())


def _check_export(folder: Path, trained: Backbone) -> None:
    """The network that is read back has the weights that were trained."""
    weights = trained.state_dict()
    read = load_backbone(folder).state_dict()
    assert all(torch.equal(one, weights[name]) for name, one in read.items())


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors if one.is_floating_point())
