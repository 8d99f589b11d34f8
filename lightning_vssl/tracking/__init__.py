"""Where the salient object of a video is, frame by frame, found without labels (PreViTS)."""

from lightning_vssl.tracking.motion import MotionSaliency
from lightning_vssl.tracking.saliency import ModelSaliency, PngSaliency, Saliency
from lightning_vssl.tracking.segmenter import PngMasks, Segmenter
from lightning_vssl.tracking.tube import Tracked, Tracker

__all__ = [
    "ModelSaliency",
    "MotionSaliency",
    "PngMasks",
    "PngSaliency",
    "Saliency",
    "Segmenter",
    "Tracked",
    "Tracker",
]
