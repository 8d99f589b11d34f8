"""Families of backbones, a small member of each, and the clips that suit it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lightning_vssl.backbones import (
    C3D,
    R3D18,
    S3DG,
    PytorchvideoMViT,
    PytorchvideoNet,
    R2Plus1D18,
    SlowFast,
    TimmNet,
    TorchvisionMViT,
    TorchvisionVideo,
    TransformersNet,
    YResNet,
)
from lightning_vssl.backbones.base import Backbone


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        name: As the table has it.
        make: Builds a small member for a method, by the method's name.
        frames: Frames of its clips.
        side: Height and width of its clips.
        neighbours: Frames on each side of the one that is asked for, where an evaluation walks
            frame by frame.
        fixed: Whether it takes clips of one size alone.
    """

    name: str
    make: Callable[[str], Backbone]
    frames: int = 8
    side: int = 32
    neighbours: int = 2
    fixed: bool = False

    def backbone(self, method: str) -> Backbone:
        """The member, with weights of its own seed."""
        torch.manual_seed(0)
        return self.make(method)


_ONE_EACH = (1, 1, 1, 1)


def _r3d18(method: str) -> Backbone:
    return R3D18(width=8, depth=_ONE_EACH, last_stride=1 if method == "CtP" else 2)


def _r2plus1d18(method: str) -> Backbone:
    return R2Plus1D18(width=8, depth=_ONE_EACH, last_stride=1 if method == "CtP" else 2)


def _yresnet(method: str) -> Backbone:
    endpoint = "both" if method == "ConST-CL" else "global"
    return YResNet(width=8, depth=_ONE_EACH, endpoint=endpoint)


def _heads(**sizes: int) -> dict[str, int]:
    """What makes a transformer of transformers small."""
    return {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 8,
        **sizes,
    }


FAMILIES = (
    Family("R3D-18", _r3d18),
    Family("R(2+1)D-18", _r2plus1d18),
    Family("S3D-G", lambda _: S3DG(width=8)),
    Family("C3D", lambda _: C3D(width=8, depth=(1, 1, 1, 1, 1)), neighbours=4),
    Family("R3D-50, ConST-CL's Y", _yresnet),
    Family("torchvision: CNNs", lambda _: TorchvisionVideo("mc3_18", depth=_ONE_EACH)),
    Family(
        "torchvision: Swin3D", lambda _: TorchvisionVideo("swin3d_t", width=24, depth=_ONE_EACH)
    ),
    Family(
        "torchvision: MViT",
        lambda _: TorchvisionMViT("mvit_v2_s", width=8, depth=_ONE_EACH, clip=(8, 32, 32)),
    ),
    Family("pytorchvideo: CNNs", lambda _: PytorchvideoNet("slow_r50", width=8)),
    Family("pytorchvideo: SlowFast", lambda _: SlowFast("slowfast_r50", width=8)),
    Family(
        "pytorchvideo: MViT",
        lambda _: PytorchvideoMViT("mvit_base_16x4", width=8, depth=_ONE_EACH, clip=(8, 32, 32)),
        fixed=True,
    ),
    Family(
        "transformers: VideoMAE",
        lambda _: TransformersNet(
            "videomae_base", config=_heads(intermediate_size=96, image_size=32, num_frames=8)
        ),
        fixed=True,
    ),
    Family(
        "transformers: V-JEPA 2",
        lambda _: TransformersNet("vjepa2_large", config=_heads(crop_size=32)),
    ),
    Family("timm: CNNs", lambda _: TimmNet("resnet50", width=8, depth=_ONE_EACH)),
    Family("timm: ViT", lambda _: TimmNet("vit_tiny_patch16_224", width=48, depth=_ONE_EACH)),
    Family(
        "timm: Swin",
        lambda _: TimmNet("swin_tiny_patch4_window7_224", width=24, depth=_ONE_EACH),
    ),
    Family(
        "transformers: DINOv2",
        lambda _: TransformersNet("dinov2_base", config=_heads(image_size=32)),
    ),
)
