"""Where an object is, frame by frame: found without labels (PreViTS), or followed (SiamFC)."""

from lightning_vssl.tracking.motion import MotionSaliency
from lightning_vssl.tracking.saliency import ModelSaliency, PngSaliency, Saliency
from lightning_vssl.tracking.segmenter import PngMasks, Segmenter
from lightning_vssl.tracking.siamese import SiameseSearch
from lightning_vssl.tracking.tube import Tracked, Tracker

__all__ = [
    "ModelSaliency",
    "MotionSaliency",
    "PngMasks",
    "PngSaliency",
    "Saliency",
    "Segmenter",
    "SiameseSearch",
    "Tracked",
    "Tracker",
]
