"""The networks of RSPNet and PreViTS, written from a description of their files: names and maths.

They stand in for the official classes, independent of the library: layers are named as they are in
the official files. ``width`` scales every layer from the official 64.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class Unit(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel=1, stride=1, padding=0) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(c_out, eps=1e-3, momentum=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv3d(x)))


class Separable(nn.Module):
    """Space, time, gate. The stride, of the stem alone, is the spatial convolution's."""

    def __init__(self, c_in: int, c_out: int, k: int = 3, stride: int = 1) -> None:
        super().__init__()
        p = k // 2
        self.sep_conv = nn.Sequential(
            Unit(c_in, c_out, (1, k, k), stride, (0, p, p)),
            Unit(c_out, c_out, (k, 1, 1), 1, (p, 0, 0)),
        )
        self.excitation = nn.Conv3d(c_out, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sep_conv(x)
        means = x.flatten(2).mean(2)  # (B, C)
        kernel = self.excitation.weight[:, :, 0, 0, 0]
        gates = 1 / (1 + torch.exp(-(means @ kernel.T + self.excitation.bias)))
        return x * gates[:, :, None, None, None]


class Inception(nn.Module):
    def __init__(self, c_in: int, b0: int, b1a: int, b1: int, b2a: int, b2: int, b3: int) -> None:
        super().__init__()
        self.branch0 = Unit(c_in, b0)
        self.branch1 = nn.Sequential(Unit(c_in, b1a), Separable(b1a, b1))
        self.branch2 = nn.Sequential(Unit(c_in, b2a), Separable(b2a, b2))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Unit(c_in, b3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


class S3DG(nn.Module):
    """The whole network: 16 x 224 x 224 becomes 1024 x 2 x 7 x 7."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()

        def w(*channels: int) -> tuple[int, ...]:
            return tuple(c * width // 64 for c in channels)

        self.feature = nn.Sequential(
            OrderedDict(
                sepConv1=Separable(3, w(64)[0], 7, 2),
                pool1=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
                basicConv3d=Unit(*w(64, 64)),
                sep_conv2=Separable(*w(64, 192)),
                pool2=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
                sepInc_3b=Inception(*w(192, 64, 96, 128, 16, 32, 32)),
                sepInc_3c=Inception(*w(256, 128, 128, 192, 32, 96, 64)),
                pool3=nn.MaxPool3d(3, 2, 1),
                sepInc_4b=Inception(*w(480, 192, 96, 208, 16, 48, 64)),
                sepInc_4c=Inception(*w(512, 160, 112, 224, 24, 64, 64)),
                sepInc_4d=Inception(*w(512, 128, 128, 256, 24, 64, 64)),
                sepInc_4e=Inception(*w(512, 112, 144, 288, 32, 64, 64)),
                sepInc_4f=Inception(*w(528, 256, 160, 320, 32, 128, 128)),
                pool4=nn.MaxPool3d(2, 2),
                sepInc_5b=Inception(*w(832, 256, 160, 320, 32, 128, 128)),
                sepInc_5c=Inception(*w(832, 384, 192, 384, 48, 128, 128)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.feature(x)


C3D_LAYERS = {"1": 1, "2": 2, "3a": 4, "3b": 4, "4a": 8, "4b": 8, "5a": 8, "5b": 8}


class C3D(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        c_in = 3
        for name, times in C3D_LAYERS.items():
            self.add_module(f"conv{name}", nn.Conv3d(c_in, times * width, 3, padding=1))
            self.add_module(f"bn{name}", nn.BatchNorm3d(times * width))
            c_in = times * width

    def forward(self, x: Tensor) -> Tensor:
        for name in C3D_LAYERS:
            if name in ("2", "3a", "4a", "5a"):
                x = functional.max_pool3d(x, (1, 2, 2) if name == "2" else 2)
            layers = dict(self.named_children())
            x = functional.relu(layers[f"bn{name}"](layers[f"conv{name}"](x)))
        return x


class Factored(nn.Module):
    """Space, norm, ReLU, time."""

    def __init__(self, c_in: int, c_out: int, kernel, stride=(1, 1, 1)) -> None:
        super().__init__()
        (t, h, w), (s_t, s_h, s_w) = kernel, stride
        mid = t * h * w * c_in * c_out // (h * w * c_in + t * c_out)
        self.spatial_conv = nn.Conv3d(
            c_in, mid, (1, h, w), (1, s_h, s_w), (0, h // 2, w // 2), bias=False
        )
        self.bn = nn.BatchNorm3d(mid)
        self.temporal_conv = nn.Conv3d(
            mid, c_out, (t, 1, 1), (s_t, 1, 1), (t // 2, 0, 0), bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal_conv(functional.relu(self.bn(self.spatial_conv(x))))


class FactoredBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        cube = (3, 3, 3)
        self.conv1 = Factored(c_in, c_out, cube, (stride,) * 3)
        self.bn1 = nn.BatchNorm3d(c_out)
        self.conv2 = Factored(c_out, c_out, cube)
        self.bn2 = nn.BatchNorm3d(c_out)
        self.down = stride > 1
        if self.down:
            self.downsampleconv = Factored(c_in, c_out, (1, 1, 1), (stride,) * 3)
            self.downsamplebn = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.down:
            x = self.downsamplebn(self.downsampleconv(x))
        return functional.relu(out + x)


class R2Plus1D(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = Factored(3, width, (3, 7, 7), (1, 2, 2))
        self.bn1 = nn.BatchNorm3d(width)
        c_in = width
        for number in range(2, 6):
            c_out = width * 2 ** (number - 2)
            block = FactoredBlock(c_in, c_out, 1 if number == 2 else 2)
            self.add_module(f"conv{number}", nn.ModuleDict({"block1": block}))
            c_in = c_out

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for layer in (self.conv2, self.conv3, self.conv4, self.conv5):
            x = layer["block1"](x)
        return x


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(c_out)
        self.conv2 = nn.Conv3d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(c_out)
        self.down = c_in != c_out
        if self.down:
            conv = nn.Conv3d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm3d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + (self.downsample(x) if self.down else x))


class R18(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        c_in = width
        for number in range(1, 5):
            c_out = width * 2 ** (number - 1)
            first = Block(c_in, c_out, 1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, Block(c_out, c_out, 1)))
            c_in = c_out

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool3d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def scrambled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics through which the input still shows at the end; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.num_batches_tracked.fill_(7)
    return network.eval()


def checkpoint(network: nn.Module, features: int, classifier: str) -> dict:
    """What RSPNet saves of a network: both encoders with two heads each, the queue, the rest.

    ``classifier`` names the layer of one class that the official networks carry along.
    """
    state = OrderedDict()
    for encoder in ("encoder_q", "encoder_k"):
        for key, value in network.state_dict().items():
            state[f"{encoder}.encoder.{key}"] = value if encoder[-1] == "q" else value + 1
        state[f"{encoder}.encoder.{classifier}.weight"] = torch.rand(1, features)
        state[f"{encoder}.encoder.{classifier}.bias"] = torch.rand(1)
        for head in ("fc1", "fc2"):
            state[f"{encoder}.{head}.2.weight"] = torch.randn(128, features)
            state[f"{encoder}.{head}.2.bias"] = torch.randn(128)
    state["queue"] = torch.rand(128, 64)
    state["queue_ptr"] = torch.zeros(1, dtype=torch.long)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.05, "params": [0, 1]}]}
    scheduler = {"T_max": 200, "eta_min": 5e-5, "last_epoch": 200}
    rest = {"epoch": 200, "arch": "net", "best_loss": 1.5}
    return {**rest, "model": state, "optimizer": optimizer, "scheduler": scheduler}
