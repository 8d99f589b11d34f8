"""Small MoCo, RSPNet and PreViTS, and batches for them."""

import functools

import torch
from torch import Tensor, nn

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.methods.moco import MoCo, MomentumQueue
from lightning_vssl.methods.previts import PreViTSMoCo, PreViTSRSPNet
from lightning_vssl.methods.rspnet import RSPNet
from tests.methods.clips import ClipNet, clips
from tests.methods.frames import FrameNet

KINDS = {
    "MoCo of frames": MoCo,
    "MoCo of clips": MoCo,
    "RSPNet": RSPNet,
    "PreViTS of frames": PreViTSMoCo,
    "PreViTS of clips": PreViTSRSPNet,
}
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)


def small(name: str, **options: object) -> MomentumQueue:
    """A method with float32 weights; its key network is not yet another net."""
    torch.manual_seed(0)
    backbone = FrameNet() if name.endswith("frames") else ClipNet()
    settings = {"projection": 8, "queue_size": 16, **options}
    return KINDS[name](backbone, VideoViews(blur_kernel=5), SGD, **settings)


def awake(method: MomentumQueue) -> None:
    """Makes the key network another net than the online one.

    Heads lose most of their biases: beside features as small as these they would weigh so much that
    nothing speaks for a score, which leaves Grad-CAM empty.
    """
    torch.manual_seed(7)
    for name in method.heads:
        for layer in getattr(method, name).layers[::2]:
            layer.bias.data.mul_(0.05)
    for parameter in method.target.parameters():
        parameter.add_(0.1 * parameter.std().nan_to_num(1.0) * torch.randn_like(parameter))


def raw(method: MomentumQueue, size: int = 4, first: int = 0) -> dict[str, Tensor]:
    """A batch as the data gives it."""
    frames = 1 if method.backbone.dims == 2 else 4
    return clips(size, method.views, frames, first=first)


def augmented(
    method: MomentumQueue,
    size: int = 4,
    first: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """A batch with its views."""
    made = method.augment(raw(method, size, first))
    return {**made, "views": made["views"].to(dtype)}


def encoder(method: nn.Module) -> dict[str, nn.Module]:
    """The online network's parts by the names that the key network has them under."""
    return {name: getattr(method, name) for name in method.target}
