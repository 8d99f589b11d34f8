"""Networks that turn pixels into feature maps, and their weights on disk."""

from lightning_vssl.backbones.base import (
    IMAGENET_PIXELS,
    KINETICS_PIXELS,
    Backbone,
    Pixels,
)
from lightning_vssl.backbones.resnet3d import R3D18, R2Plus1D18

__all__ = [
    "IMAGENET_PIXELS",
    "KINETICS_PIXELS",
    "R3D18",
    "Backbone",
    "Pixels",
    "R2Plus1D18",
]
