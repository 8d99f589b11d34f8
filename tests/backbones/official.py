"""A small R3D and R(2+1)D written from the description of CtP's checkpoints: names and maths.

It stands in for the official classes, independent of the library: layers are named as they are in
the official files.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def norm(channels: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(channels, eps=1e-3)


def factored(c_in: int, c_out: int, stride: tuple[int, int, int]) -> nn.Sequential:
    mid = int(3 * c_in * c_out * 9 / (c_in * 9 + 3 * c_out))
    t, h, w = stride
    return nn.Sequential(
        OrderedDict(
            conv_s=nn.Conv3d(c_in, mid, (1, 3, 3), (1, h, w), (0, 1, 1), bias=False),
            bn_s=norm(mid),
            relu_s=nn.ReLU(),
            conv_t=nn.Conv3d(mid, c_out, (3, 1, 1), (t, 1, 1), (1, 0, 0), bias=False),
        )
    )


def plain(c_in: int, c_out: int, stride: tuple[int, int, int], size: int = 3) -> nn.Sequential:
    layer = nn.Conv3d(c_in, c_out, size, stride, size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=layer))


class Block(nn.Module):
    def __init__(self, build, c_in: int, c_out: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = build(c_in, c_out, stride)
        self.bn1 = norm(c_out)
        self.conv2 = build(c_out, c_out, (1, 1, 1))
        self.bn2 = norm(c_out)
        if c_in != c_out:
            self.downsample = plain(c_in, c_out, stride, 1)
            self.downsample_bn = norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if "downsample" in dict(self.named_children()):
            x = self.downsample_bn(self.downsample(x))
        return (out + x).relu()


class Official(nn.Module):
    """Width 8, one block a stage, stride 1 in space in the last stage."""

    def __init__(self, kind: str, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        build = plain if kind == "R3D" else factored
        if kind == "R3D":
            layers = OrderedDict(
                conv=nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
                bn=norm(width),
                relu=nn.ReLU(),
            )
        else:
            mid = 45 * width // 64
            layers = OrderedDict(
                conv_s=nn.Conv3d(3, mid, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
                bn_s=norm(mid),
                relu_s=nn.ReLU(),
                conv_t=nn.Conv3d(mid, width, (3, 1, 1), (1, 1, 1), (1, 0, 0), bias=False),
                bn_t=norm(width),
                relu_t=nn.ReLU(),
            )
        self.stem = nn.Sequential(layers)
        c_in = width
        strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 1, 1))
        for number, stride in enumerate(strides, start=1):
            c_out = width * 2 ** (number - 1)
            blocks = [Block(build, c_in, c_out, stride)]
            blocks += [Block(build, c_out, c_out, (1, 1, 1)) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            c_in = c_out
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))


def checkpoint(kind: str, *, prefix: str = "backbone.", depth: int = 1) -> tuple[Official, dict]:
    """The network and what mmcv would have saved of it with CtP's head."""
    network = Official(kind, depth=depth).eval()
    state = OrderedDict((prefix + key, value) for key, value in network.state_dict().items())
    head = prefix.replace("backbone.", "") + "head."
    state[f"{head}temporal_conv.weight"] = torch.rand(64, 64, 2, 1, 1)
    state[f"{head}fc1.bias"] = torch.rand(64)
    meta = {"epoch": 300, "iter": 89700, "mmcv_version": "1.7.2", "time": "Tue Jun 1 00:00:00"}
    optimizer = {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]}
    return network, {"meta": meta, "state_dict": state, "optimizer": optimizer}
