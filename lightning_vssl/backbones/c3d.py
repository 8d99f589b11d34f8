"""C3D with batch norm, as VCOP, RSPNet and PreViTS train it.

Tran et al., "Learning spatiotemporal features with 3D convolutional networks" (ICCV 2015): eight
convolutions of 3x3x3. RSPNet (Chen et al., AAAI 2021) and PreViTS (Chen et al., WACV 2023) put a
batch norm behind each, which keeps its bias, and leave out everything behind the last of them: the
fifth max-pool and the two wide linear layers. What the papers' tables print, 33.4 M parameters, is
not this network; it is what torchvision's R3D-18 has with 400 classes.
"""

from torch import Tensor, nn
from torchvision.ops import Conv3dNormActivation

from lightning_vssl.backbones.base import IMAGENET_PIXELS, Backbone, Pixels, as_pixels

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class C3D(Backbone):
    """C3D with batch norm up to its last convolution (27.66 M parameters).

    A clip of 16 x 112 x 112 becomes 512 x 2 x 7 x 7 with 38.5 G multiply-adds. The stages are the
    parts between the max-pools, each with the pool that leads to it: ``stem`` (conv1), ``layer1``
    (conv2), ``layer2`` (conv3a, conv3b), ``layer3`` (conv4a, conv4b), ``layer4`` (conv5a, conv5b).
    The first pool is over space alone. Kernels start Kaiming normal over the fan-out.

    Args:
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        depth: Convolutions of the five stages.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1]; ImageNet's as RSPNet.

    Raises:
        ValueError: If ``width`` is below 1 or ``depth`` is not five numbers of at least 1.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: tuple[int, int, int, int, int] = (1, 1, 2, 2, 2),
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        if len(depth) != len(_STAGES) or min(depth) < 1:
            raise ValueError(
                f"depth must give the convolutions of five stages, each at least 1; got {depth}"
            )
        widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        strides = ((1, 1), (1, 2), (2, 4), (4, 8), (8, 16))
        super().__init__(
            channels=dict(zip(_STAGES, widths, strict=True)),
            strides=dict(zip(_STAGES, strides, strict=True)),
            init_args={"width": width, "depth": tuple(depth), "pixels": as_pixels(pixels)},
            pixels=pixels,
            least=(8, 16),
        )
        pools = (nn.Identity(), nn.MaxPool3d((1, 2, 2)), *(nn.MaxPool3d(2) for _ in range(3)))
        before = 3
        for name, pool, out, count in zip(_STAGES, pools, widths, depth, strict=True):
            layers: list[nn.Module] = [pool]
            for _ in range(count):
                layers.append(Conv3dNormActivation(before, out, bias=True))
                before = out
            self.add_module(name, nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the pool and the convolutions of one stage."""
        out: Tensor = self.get_submodule(name)(x)
        return out
