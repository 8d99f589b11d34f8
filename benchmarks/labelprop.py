"""How long one frame's label propagation takes, beside CRW's function (ajabri/videowalk, MIT).

    python benchmarks/labelprop.py --peer CHECKOUT_OF_ajabri_videowalk

Features of 256 numbers at 60 x 107, the first frame and 20 more, radius 12, the 10 most alike: what
CRW asks for one frame of DAVIS. The peer is its `mem_efficient_batched_affinity`, called as its
test does. One thread, CPU time, one frame by each in turn, ``--rounds`` times; places and weights
of the first round are compared. Memory is the largest block of likenesses held at once. With
``--others`` VFS's contexts are timed too, and tiles of another side.
"""

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_vssl.nn.propagation import _QUERIES, LabelPropagation

Found = tuple[Tensor, Tensor]
"""Weights and places, (H * W, k) each."""

HEIGHT, WIDTH, CHANNELS, CONTEXT = 60, 107, 256, 20
RADIUS, TOP, TEMPERATURE = 12, 10, 0.05


def load_peer(root: Path) -> types.ModuleType:
    """Loads the file without its package; it names an encoder of pictures that is not needed."""
    sys.modules.setdefault("imageio", types.ModuleType("imageio"))
    file = root / "code" / "utils" / "test_utils.py"
    spec = importlib.util.spec_from_file_location("videowalk_test_utils", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystemExit(f"{root} is not a checkout of ajabri/videowalk: {file} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer_call(peer: types.ModuleType, frames: Tensor) -> Callable[[], Found]:
    """Weights and places by the peer; the mask is made beforehand."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    y, x = y.flatten().float(), x.flatten().float()
    far = (y[:, None] - y).square() + (x[:, None] - x).square() >= RADIUS**2
    mask = torch.where(far, -1e10, 0.0)[None, None]
    flat = frames.permute(3, 0, 1, 2).flatten(2)[None]  # (1, C, T, H * W)
    keys, query = flat[:, :, None, :-1], flat[:, :, -1:]

    def call() -> Found:
        weights, places = peer.mem_efficient_batched_affinity(
            query, keys, mask, TEMPERATURE, TOP, [0], "cpu"
        )
        return weights[0].t(), places[0].t()

    return call


def timed(work: Callable[[], Found]) -> tuple[float, Found]:
    """CPU seconds of one call, and what it gives."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="checkout of ajabri/videowalk")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--others", action="store_true", help="time other options too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = CONTEXT + 2, HEIGHT, WIDTH, CHANNELS
    frames = F.normalize(torch.randn(shape), dim=-1)
    first, *recent, query = frames.unbind(0)

    def ours(tile: int = 8, begin: str = "whole", radius: float = RADIUS) -> Found:
        how = LabelPropagation(
            begin=begin, early="repeat", radius=radius, top=TOP, tile=tile, temperature=TEMPERATURE
        )
        found = how.match(query, first, recent)
        weights = (found.likeness / TEMPERATURE).softmax(-1)
        return weights.flatten(0, 1), found.place.flatten(0, 1)

    contenders: dict[str, Callable[[], Found]] = {"ours, CRW's context": ours}
    if options.peer is not None:
        contenders["CRW's function"] = peer_call(load_peer(options.peer), frames)
    if options.others:
        contenders["ours, tiles of 16"] = lambda: ours(16)
        contenders["ours, VFS's for a ResNet-18"] = lambda: ours(8, "window")
        contenders["ours, VFS's for a ResNet-50"] = lambda: ours(8, "window", 18)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    given: dict[str, Found] = {}
    for _ in range(options.rounds):
        for name, work in contenders.items():
            seconds, given[name] = timed(work)
            times[name].append(seconds)
    if options.peer is not None:
        (weights, found), (their_weights, theirs) = list(given.values())[:2]
        apart = float((weights - their_weights).abs().max())
        same = float((found == theirs).float().mean())
        print(f"places alike {100 * same:.3f} %, weights to {apart:.1e}")
        if apart > 1e-4:
            raise SystemExit("the two do not give the same weights")
    base = statistics.median(times["ours, CRW's context"])
    print(f"{HEIGHT} x {WIDTH} x {CHANNELS}, {CONTEXT} frames and the first; CPU s a frame")
    for name, found_times in times.items():
        middle = statistics.median(found_times)
        span = f"{min(found_times):.2f} to {max(found_times):.2f}"
        print(f"{name:30} {middle:7.2f} ({span})  x {middle / base:.2f}")
    places = HEIGHT * WIDTH
    tile, whole, full = (
        numbers * 4 / 2**20
        for numbers in (
            (8 + 2 * (RADIUS - 1)) ** 2 * 8**2 * CONTEXT,
            _QUERIES * places,
            places**2 * (CONTEXT + 1),
        )
    )
    print(
        f"likenesses held at once: {tile:.0f} MiB of a tile, {whole:.0f} MiB where the whole first "
        f"frame is asked; the full affinity is {full:.0f} MiB"
    )


if __name__ == "__main__":
    main()
