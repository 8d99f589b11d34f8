"""Parameters and multiply-adds of every backbone, against what its paper or library states.

    python benchmarks/step_flops.py

Nothing is computed but shapes, so it takes seconds on any machine. Each row names the peer whose
number it is compared with; the last column is the difference from that number, in percent.
"""

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorchvideo.models import hub
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights

from lightning_vssl.backbones import (
    R3D18,
    Backbone,
    PytorchvideoNet,
    PytorchvideoResNet,
    R2Plus1D18,
    TorchvisionVideo,
)
from lightning_vssl.backbones.pytorchvideo_video import PytorchvideoName
from lightning_vssl.backbones.torchvision_video import TorchvisionName


@dataclass(frozen=True)
class Row:
    """One backbone, its input, and what is stated elsewhere.

    Attributes:
        label: What to call it.
        make: Builds it.
        size: T, H, W of one clip.
        peer: Who states the numbers.
        parameters: Stated, in M.
        macs: Stated multiply-adds, in G.
        head: Parameters of the classifier that the stated number includes.
        beside: Multiply-adds that the stated number includes beside the backbone's convolutions
            and linear layers, in G.
    """

    label: str
    make: Callable[[], Backbone]
    size: tuple[int, int, int]
    peer: str
    parameters: float
    macs: float
    head: int = 0
    beside: float = 0.0


def torchvision_row(name: TorchvisionName, *size: int) -> Row:
    """A network of torchvision, whose numbers include the classifier."""
    meta = get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        network = get_model(name, weights=None)
        backbone = TorchvisionVideo(name)
    return Row(
        f"tv {name}",
        lambda: TorchvisionVideo(name),
        (size[0], size[1], size[2]),
        "torchvision",
        meta["num_params"] / 1e6,
        meta["_ops"],
        parameters_of(network) - parameters_of(backbone),
    )


def pytorchvideo_row(
    name: PytorchvideoName, *size: int, parameters: float, macs: float, norm: int = 5
) -> Row:
    """A network of pytorchvideo, whose model zoo's numbers include the head.

    They also count 5 operations for every element that leaves a batch norm (``norm``; 0 for
    slow_r50, which was counted without).
    """
    elements = 0

    def count_elements(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal elements
        elements += output.numel()

    with torch.device("meta"):
        *body, head = getattr(hub, name)(pretrained=False).eval().blocks
        for module in nn.ModuleList([*body, head]).modules():
            if isinstance(module, nn.BatchNorm3d):
                module.register_forward_hook(count_elements)
        features = nn.Sequential(*body)(torch.zeros(1, 3, *size))
    with FlopCounterMode(display=False) as counter:
        head(features)
    return Row(
        f"ptv {name}",
        lambda: PytorchvideoNet(name),
        (size[0], size[1], size[2]),
        "model zoo",
        parameters,
        macs,
        parameters_of(head),
        (norm * elements + counter.get_total_flops() / 2) / 1e9,
    )


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def rows() -> list[Row]:
    small, large = (16, 112, 112), (16, 224, 224)
    at_small: tuple[TorchvisionName, ...] = ("r3d_18", "mc3_18", "r2plus1d_18")
    at_large: tuple[TorchvisionName, ...] = ("s3d", "swin3d_t", "swin3d_s", "swin3d_b")
    return [
        Row("R3D-18, stride 1", lambda: R3D18(last_stride=1), small, "CtP", 33.17, 48.0),
        Row("R3D-18", R3D18, small, "CtP", 33.17, 40.7),
        Row("R(2+1)D-18, stride 1", lambda: R2Plus1D18(last_stride=1), small, "CtP", 33.17, 49.4),
        Row("R(2+1)D-18", R2Plus1D18, small, "CtP", 33.17, 41.5),
        Row("R3D-50", PytorchvideoResNet, large, "CVRL", 31.672, 45.52),
        *(torchvision_row(name, *small) for name in at_small),
        *(torchvision_row(name, *large) for name in at_large),
        pytorchvideo_row("slow_r50", 8, 256, 256, parameters=32.45, macs=54.52, norm=0),
        pytorchvideo_row("c2d_r50", 8, 256, 256, parameters=24.33, macs=25.89),
        pytorchvideo_row("i3d_r50", 8, 256, 256, parameters=28.04, macs=37.53),
        pytorchvideo_row("csn_r101", 32, 256, 256, parameters=22.21, macs=75.62),
        pytorchvideo_row("r2plus1d_r50", 16, 256, 256, parameters=28.11, macs=76.45),
        pytorchvideo_row("x3d_xs", 4, 182, 182, parameters=3.79, macs=0.91),
        pytorchvideo_row("x3d_s", 13, 182, 182, parameters=3.79, macs=2.96),
        pytorchvideo_row("x3d_m", 16, 256, 256, parameters=3.79, macs=6.72),
    ]


def measure(row: Row) -> tuple[int, int]:
    """Parameters and multiply-adds, counted on the meta device."""
    with torch.device("meta"):
        network = row.make().eval()
        clip = torch.zeros(1, 3, *row.size)
    with FlopCounterMode(display=False) as counter:
        network(clip)
    return parameters_of(network), counter.get_total_flops() // 2


def commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    console = Console(width=120)
    console.print(
        f"commit {commit() or 'unknown'}, torch {torch.__version__}, {platform.machine()}"
    )
    table = Table(
        "backbone", "T x H x W", "M parameters", "stated", "%", "G mult-adds", "stated", "%", "by"
    )
    for column in table.columns[2:8]:
        column.justify = "right"
    for row in rows():
        parameters, macs = measure(row)
        counted = (parameters + row.head) / 1e6
        table.add_row(
            row.label,
            " x ".join(map(str, row.size)),
            f"{parameters / 1e6:.3f}",
            f"{row.parameters - row.head / 1e6:.3f}",
            f"{100 * (counted / row.parameters - 1):+.2f}",
            f"{macs / 1e9:.2f}",
            f"{row.macs - row.beside:.2f}",
            f"{100 * ((macs / 1e9 + row.beside) / row.macs - 1):+.2f}",
            row.peer,
        )
    console.print(table)
    console.print(
        "Stated parameters are without the classifier, counted on the peer's own network. The "
        "model zoo's multiply-adds are without its head and 5 per element of its batch norms, "
        "which accounts for them; torchvision's include the classifier."
    )


if __name__ == "__main__":
    main()
