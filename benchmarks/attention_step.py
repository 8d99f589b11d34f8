"""What PreViTS costs over its base: operations, time and memory of a training step, side by side.

    python benchmarks/attention_step.py                                  # S3D-G on RSPNet, a CPU
    python benchmarks/attention_step.py --model image                    # ResNet-50 on MoCo
    python benchmarks/attention_step.py --device cuda --batch 32 --precision 16

The paper states 1.3 times the base's time. By its operations the fast form of the attention loss
adds one pass of the key network, without gradient, to RSPNet's two and MoCo's one; ``double``
differentiates through the map, and ``official`` encodes the query twice, as the released code does.
A step is forward, queue, backward, update, and the moving average. Contenders come in turn. Time is
CPU time on a CPU, the median of the rounds with the quartiles of the ratio; memory on a GPU is the
peak allocated in a step, on a CPU the bytes that autograd keeps from the forward pass. Augmentation
and decoding are not timed: RandomResizedCrop in the worker and `ObjectViews` are for benchmarks of
their own.
"""

import argparse
import functools
import platform
import statistics
import subprocess
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_vssl.backbones import TimmNet
from lightning_vssl.backbones.s3dg import S3DG
from lightning_vssl.methods.moco import MoCo, MomentumQueue
from lightning_vssl.methods.previts import PreViTSMoCo, PreViTSRSPNet
from lightning_vssl.methods.rspnet import RSPNet
from lightning_vssl.nn.ema import update_ema

DTYPES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
FORMS: dict[str, dict[str, object]] = {
    "fast": {},
    "double": {"attention": "double"},
    "official": {"attention": "double", "official": True},
}


def forward(method: MomentumQueue, batch: dict[str, Tensor], options: argparse.Namespace) -> Tensor:
    dtype = DTYPES[options.precision]
    with torch.autocast(options.device, dtype=dtype, enabled=dtype is not None):
        outputs = method._step(batch)
    method.queue.enqueue(outputs["keys"])
    return outputs["loss"]


def step(
    method: MomentumQueue,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    options: argparse.Namespace,
) -> float:
    """Seconds of one training step."""
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    if options.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    forward(method, batch, options).backward()
    optimizer.step()
    optimizer.zero_grad()
    for name in method.target:
        update_ema(method.target[name], getattr(method, name), method.momentum)
    if options.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def memory(
    method: MomentumQueue,
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
        loss = forward(method, batch, options)
    total = sum(kept.values()) / 1e9
    del loss
    return total


def operations(
    method: MomentumQueue, batch: dict[str, Tensor], options: argparse.Namespace
) -> float:
    """Multiply-adds of a step's forward and backward passes, in G."""
    with FlopCounterMode(display=False) as counter:
        forward(method, batch, options).backward()
    method.zero_grad()
    return counter.get_total_flops() / 2e9


def contenders(options: argparse.Namespace) -> dict[str, MomentumQueue]:
    sgd = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
    common = {"augment": nn.Identity(), "optimizer": sgd, "channels_last": options.channels_last}
    common["queue_size"] = 128 * options.batch
    video = options.model == "video"
    base, ours = (RSPNet, PreViTSRSPNet) if video else (MoCo, PreViTSMoCo)
    kinds = {"base": (base, {}), **{name: (ours, form) for name, form in FORMS.items()}}
    made = {}
    for name, (kind, form) in kinds.items():
        torch.manual_seed(0)
        made[name] = kind(S3DG() if video else TimmNet("resnet50"), **common, **form)
    return {name: method.to(options.device) for name, method in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("video", "image"), default="video")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="32")
    parser.add_argument("--batch", type=int, default=2, help="videos")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()

    methods = contenders(options)
    views, frames = methods["base"].views, options.frames if options.model == "video" else 1
    shape = (options.batch, views, 3, frames, options.side, options.side)
    mask = torch.zeros(options.batch, views, frames, 64, 64, dtype=torch.uint8)
    mask[..., 16:48, 20:50] = 1
    made = {
        "views": torch.randn(shape),
        "mask": mask,
        "tracked": torch.ones(options.batch, views, dtype=torch.bool),
        "key": torch.arange(options.batch),
    }
    batch = {name: value.to(options.device) for name, value in made.items()}
    optimizers = {
        name: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
        for name, m in methods.items()
    }
    counts = {name: operations(m, batch, options) for name, m in methods.items()}
    sizes = {name: memory(m, optimizers[name], batch, options) for name, m in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(-1, options.rounds):  # the first round does not count
        for name in sorted(methods, reverse=number % 2 == 1):
            taken = step(methods[name], optimizers[name], batch, options)
            if number >= 0:
                seconds[name].append(taken)

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"commit {commit or 'unknown'}, torch {torch.__version__}, {machine}")
    print(f"{vars(options)}")
    for name in methods:
        ratios = [a / b for a, b in zip(seconds[name], seconds["base"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(
            f"{name:9s} {counts[name]:8.1f} G multiply-adds ({counts[name] / counts['base']:.3f}), "
            f"{statistics.median(seconds[name]):7.3f} s ({middle:.3f} [{low:.3f}, {high:.3f}]), "
            f"{sizes[name]:6.3f} GB ({sizes[name] / sizes['base']:.3f})"
        )


if __name__ == "__main__":
    main()
