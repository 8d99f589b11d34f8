import pytest
import torch
from torch import nn

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones import IMAGENET_PIXELS, PytorchvideoResNet
from lightning_vssl.evaluation.base import check_pixels
from lightning_vssl.evaluation.recognition import FineTune


def test_training_clips_with_other_pixels_than_the_network_takes_are_refused():
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    network = PytorchvideoResNet(width=4, depth=(1, 1, 1, 1), pixels=half)
    with pytest.raises(ValueError, match=r"--model\.augment\.mean '\[0\.5, 0\.5, 0\.5\]'"):
        FineTune(optimizer=torch.optim.SGD, backbone=network, augment=VideoViews())
    FineTune(optimizer=torch.optim.SGD, backbone=network, augment=VideoViews(*half))
    FineTune(optimizer=torch.optim.SGD, backbone=network)  # the network's own
    check_pixels(nn.Identity(), network)
    check_pixels(VideoViews(*IMAGENET_PIXELS), PytorchvideoResNet(width=4, depth=(1, 1, 1, 1)))
