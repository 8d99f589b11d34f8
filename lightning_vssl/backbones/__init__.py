"""Networks that turn pixels into feature maps, and their weights on disk."""

from lightning_vssl.backbones.base import (
    IMAGENET_PIXELS,
    KINETICS_PIXELS,
    Backbone,
    Pixels,
)
from lightning_vssl.backbones.c3d import C3D
from lightning_vssl.backbones.multiscale import PytorchvideoMViT, TorchvisionMViT
from lightning_vssl.backbones.pytorchvideo_video import (
    PytorchvideoNet,
    PytorchvideoResNet,
    YResNet,
)
from lightning_vssl.backbones.resnet3d import R3D18, HaraR3D18, R2Plus1D10, R2Plus1D18
from lightning_vssl.backbones.restride import restride
from lightning_vssl.backbones.s3dg import S3DG
from lightning_vssl.backbones.slowfast import SlowFast
from lightning_vssl.backbones.timm_image import TimmNet
from lightning_vssl.backbones.torchvision_video import TorchvisionVideo
from lightning_vssl.backbones.transformers_net import TransformersNet
from lightning_vssl.backbones.weights import (
    ExportReport,
    LoadReport,
    export,
    load_backbone,
    load_head,
    load_weights,
    sha256,
)

__all__ = [
    "C3D",
    "IMAGENET_PIXELS",
    "KINETICS_PIXELS",
    "R3D18",
    "S3DG",
    "Backbone",
    "ExportReport",
    "HaraR3D18",
    "LoadReport",
    "Pixels",
    "PytorchvideoMViT",
    "PytorchvideoNet",
    "PytorchvideoResNet",
    "R2Plus1D10",
    "R2Plus1D18",
    "SlowFast",
    "TimmNet",
    "TorchvisionMViT",
    "TorchvisionVideo",
    "TransformersNet",
    "YResNet",
    "export",
    "load_backbone",
    "load_head",
    "load_weights",
    "restride",
    "sha256",
]
