"""A small video network, and batches of clips with masks of an object."""

import torch
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.nn.keyed import sample_key


class ClipNet(Backbone):
    """Three stages of a convolution over time and space, batch norm and ReLU each."""

    def __init__(self, width: int = 4) -> None:
        names, widths = ("stem", "layer1", "layer2"), (width, 2 * width, 3 * width)
        super().__init__(
            channels=dict(zip(names, widths, strict=True)),
            strides=dict(zip(names, [(1, 2), (2, 4), (2, 8)], strict=True)),
            init_args={"width": width},
        )
        strides = [(1, 2, 2), (2, 2, 2), (1, 2, 2)]
        self.blocks = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv3d(i, o, 3, stride, 1, bias=False),
                    nn.BatchNorm3d(o),
                    nn.ReLU(inplace=True),
                )
                for name, i, o, stride in zip(names, (3, *widths), widths, strides, strict=False)
            }
        )

    def stage(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = self.blocks[name](x)
        return out


def clips(
    size: int = 4, views: int = 3, frames: int = 4, side: int = 32, first: int = 0
) -> dict[str, Tensor]:
    """Noise; masks (B, V, T, 8, 8) of a box in each frame; the third sample has no tube.

    View 2 plays at half the speed of the others.
    """
    generator = torch.Generator().manual_seed(first)
    shape = (size, views, frames, 3, side, side)
    mask = torch.zeros(size, views, frames, 8, 8, dtype=torch.uint8)
    for sample in range(size):
        for view in range(views):
            for frame in range(frames):
                corner = (sample + 2 * view + frame) % 5
                mask[sample, view, frame, corner : corner + 3, sample % 4 : sample % 4 + 4] = 1
    tracked = torch.ones(size, views, dtype=torch.bool)
    if size > 2:
        tracked[2], mask[2] = False, 0
    step = torch.tensor([0.1, 0.1, 0.2])[:views, None]
    return {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "mask": mask,
        "tracked": tracked,
        "key": torch.tensor([sample_key(0, 0, first + i) for i in range(size)]),
        "index": torch.arange(first, first + size),
        "time": (step * torch.arange(frames)).expand(size, views, frames).double(),
    }
