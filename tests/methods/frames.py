"""A small image network with the stages of a ResNet, and batches of single frames."""

import torch
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.nn.keyed import sample_key


class FrameNet(Backbone):
    """Five stages of one convolution, batch norm and ReLU each; stride 2 in all but `layer1`."""

    def __init__(self, width: int = 4) -> None:
        widths = [width, width, 2 * width, 3 * width, 4 * width]
        names = ["stem", "layer1", "layer2", "layer3", "layer4"]
        super().__init__(
            channels=dict(zip(names, widths, strict=True)),
            strides=dict(zip(names, [(1, 2), (1, 2), (1, 4), (1, 8), (1, 16)], strict=True)),
            init_args={"width": width},
            dims=2,
        )
        before = [3, *widths[:-1]]
        self.blocks = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(i, o, 3, 1 if name == "layer1" else 2, 1, bias=False),
                    nn.BatchNorm2d(o),
                    nn.ReLU(inplace=True),
                )
                for name, i, o in zip(names, before, widths, strict=True)
            }
        )

    def stage(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = self.blocks[name](x)
        return out


def frames(size: int = 4, views: int = 3, side: int = 32) -> dict[str, Tensor]:
    """Noise; (B, V, 1, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, views, 1, 3, side, side)
    return {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "key": torch.tensor([sample_key(0, 0, i) for i in range(size)]),
        "index": torch.arange(size),
        "time": torch.zeros(size, views, 1).double(),
    }
