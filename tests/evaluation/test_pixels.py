import functools

import pytest
import torch
from torch import nn

from lightning_vssl.augment.regions import RandomBoxes, RegionViews
from lightning_vssl.augment.views import VideoViews, check_pixels
from lightning_vssl.backbones import IMAGENET_PIXELS, PytorchvideoResNet
from lightning_vssl.evaluation.recognition import FineTune
from lightning_vssl.methods.cvrl import CVRL

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SGD = functools.partial(torch.optim.SGD, lr=0.1)


def network() -> PytorchvideoResNet:
    return PytorchvideoResNet(width=4, depth=(1, 1, 1, 1), pixels=HALF)


def test_training_clips_with_other_pixels_than_the_network_takes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give VideoViews mean: \[0\.5, 0\.5, 0\.5\]"):
        FineTune(optimizer=SGD, backbone=network(), augment=VideoViews())
    FineTune(optimizer=SGD, backbone=network(), augment=VideoViews(*HALF))
    FineTune(optimizer=SGD, backbone=network())  # the network's own


def test_pretraining_refuses_them_too_at_any_depth() -> None:
    with pytest.raises(ValueError, match="give VideoViews mean"):
        CVRL(network(), RegionViews(VideoViews(), RandomBoxes()), SGD)
    CVRL(network(), RegionViews(VideoViews(*HALF), RandomBoxes()), SGD)


def test_what_does_not_normalise_passes() -> None:
    check_pixels(nn.Identity(), HALF)
    check_pixels(None, HALF)
    check_pixels(VideoViews(), IMAGENET_PIXELS)
