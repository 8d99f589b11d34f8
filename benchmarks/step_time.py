"""What ConST-CL costs over CVRL: time and memory of a training step, side by side.

    python benchmarks/step_time.py                                   # a CPU
    python benchmarks/step_time.py --device cuda --batch 16 --precision bf16

Both methods at the paper's size on the same views, step after step in turn: forward, loss,
backward, update. By its operations the paper's ConST-CL costs 113.0 / 91.2 = 1.24 times CVRL
(Table 3). Time is the median of the rounds, with the quartiles of the ratio; memory on a GPU is the
peak allocated in a step, on a CPU the bytes that autograd keeps from the forward pass for the
backward one. Augmentation and decoding are not timed: both methods have the same.
"""

import argparse
import functools
import platform
import statistics
import subprocess
import time

import torch
from torch import Tensor, nn

from lightning_vssl.augment.regions import RandomBoxes
from lightning_vssl.backbones import PytorchvideoResNet, YResNet
from lightning_vssl.methods.constcl import ConSTCL
from lightning_vssl.methods.cvrl import CVRL

DTYPES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def step(
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    options: argparse.Namespace,
) -> float:
    """Seconds of one training step."""
    synchronise(options.device)
    start = time.perf_counter()
    dtype = DTYPES[options.precision]
    with torch.autocast(options.device, dtype=dtype, enabled=dtype is not None):
        loss = method._step(batch)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronise(options.device)
    return time.perf_counter() - start


def memory(
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    options: argparse.Namespace,
) -> float:
    """GB of a step; see the module's docstring."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(method, optimizer, batch, options)
        return torch.cuda.max_memory_allocated() / 1e9
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = method._step(batch)["loss"]
    total = sum(kept.values()) / 1e9
    del loss
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="32")
    parser.add_argument("--batch", type=int, default=2, help="videos")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--context", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recompute", action="store_true", help="recompute activations")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    sgd = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
    common = {"optimizer": sgd, "channels_last": options.channels_last}
    cvrl = CVRL(PytorchvideoResNet(recompute=options.recompute), nn.Identity(), **common)
    y = YResNet(recompute=options.recompute)
    constcl = ConSTCL(y, nn.Identity(), context_length=options.context, **common)
    shape = (options.batch, 2, 3, options.frames, options.side, options.side)
    key = torch.arange(options.batch, device=options.device)
    batch = {
        "views": torch.randn(shape, device=options.device),
        "key": key,
        "time": torch.zeros(options.batch, 2, options.frames, device=options.device),
        "boxes": RandomBoxes().to(options.device)(key, 2, options.side, options.side),
    }
    methods = {"CVRL": cvrl.to(options.device), "ConST-CL": constcl.to(options.device)}
    optimizers = {name: sgd(method.parameters()) for name, method in methods.items()}
    sizes = {n: memory(m, optimizers[n], batch, options) for n, m in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for name, method in methods.items():  # a round that does not count
        step(method, optimizers[name], batch, options)
    for number in range(options.rounds):
        for name in sorted(methods, reverse=number % 2 == 1):
            seconds[name].append(step(methods[name], optimizers[name], batch, options))

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"commit {commit or 'unknown'}, torch {torch.__version__}, {machine}")
    print(f"{vars(options)}")
    for name in methods:
        clips = 2 * options.batch / statistics.median(seconds[name])
        print(
            f"{name:9s} {statistics.median(seconds[name]):8.3f} s a step, {clips:8.2f} clips/s, "
            f"{sizes[name]:7.2f} GB"
        )
    ratios = [a / b for a, b in zip(seconds["ConST-CL"], seconds["CVRL"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(
        f"ConST-CL / CVRL: time {statistics.median(ratios):.3f} "
        f"[{quartiles[0]:.3f}, {quartiles[2]:.3f}], memory "
        f"{sizes['ConST-CL'] / sizes['CVRL']:.3f}; operations, by the paper: 1.239"
    )


if __name__ == "__main__":
    main()
