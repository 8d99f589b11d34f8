"""How long Catch-the-Patch's synthesis takes, beside microsoft/CtP's own (MIT).

    python benchmarks/ctp_synth.py --peer PATH_TO_A_CHECKOUT_OF_microsoft_CtP

Both start from the same uint8 clips (8 of 16 x 112 x 112) and do the same work: three trajectories,
shaped and transparent patches, hiding. The peer needs OpenCV and its `PatchMask` is loaded from the
checkout with the two things that no longer import (`np.int`, its registry) put in place. Ours is
timed with and without turning bytes into floats, which the peer does later. One thread, CPU time,
the contenders in turn; the table gives medians and ratios. Without ``--peer``, ours alone.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lightning_vssl.augment.colour import to_unit
from lightning_vssl.augment.patches import PatchTracks, paste
from lightning_vssl.nn.keyed import sample_key

CLIPS, FRAMES, SIDE = 8, 16, 112


def load_peer(root: Path) -> type:
    """Loads the peer's transform without installing its package."""
    np.int = int  # type: ignore[attr-defined]  # removed from NumPy; the peer still says it

    class Registry:
        def register_module(self) -> Callable[[type], type]:
            return lambda cls: cls

    def package(name: str, **content: object) -> None:
        module = types.ModuleType(name)
        module.__path__ = []
        module.__dict__.update(content)
        sys.modules[name] = module

    for name in (
        "pyvrl",
        "pyvrl.models",
        "pyvrl.models.pretraining",
        "pyvrl.models.pretraining.ctp",
    ):
        package(name)
    package("pyvrl.builder", TRANSFORMS=Registry())
    package("pyvrl.datasets", BaseTransform=object)
    package("pyvrl.datasets.transforms")

    def load(name: str) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(name, root / f"{name.replace('.', '/')}.py")
        if spec is None or spec.loader is None:
            raise SystemExit(f"{root} is not a checkout of microsoft/CtP: {name} is not there")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    load("pyvrl.datasets.transforms.dynamic_utils")
    return load("pyvrl.models.pretraining.ctp.ctp_transforms").PatchMask


def make_peer(root: Path) -> object:
    """The peer's transform in its released configuration, on one thread."""
    import cv2

    cv2.setNumThreads(1)
    return load_peer(root)(
        region_sampler={
            "scales": [16, 24, 28, 32, 48, 64],
            "ratios": [0.5, 0.67, 0.75, 1.0, 1.33, 1.50, 2.0],
            "scale_jitter": 0.18,
            "num_rois": 3,
        },
        key_frame_probs=[0.5, 0.3, 0.2],
        loc_velocity=3,
        size_velocity=0.025,
        label_prob=0.8,
    )


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds of one call."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def check(part: PatchTracks, transform: object, pixels: np.ndarray) -> None:
    """The work is the same: compares what the trajectories look like before they are timed."""
    keys = torch.tensor([sample_key(1, 0, i) for i in range(2000)])
    boxes = part.draw(keys, FRAMES, SIDE, SIDE).boxes.double()
    ours = float(((boxes[..., :2] + boxes[..., 2:]) / 2).diff(dim=2).abs().mean())
    print(f"ours: mean centre step {ours:.3f} px a frame")
    if transform is None:
        return
    tracks = [transform.get_transform_param(list(clip))["traj_rois"] for clip in [*pixels] * 60]
    theirs = np.stack(tracks).astype(float)
    step = float(np.abs(np.diff((theirs[..., :2] + theirs[..., 2:]) / 2, axis=2)).mean())
    print(f"theirs: mean centre step {step:.3f} px a frame")
    if abs(step - ours) > 0.1:
        raise SystemExit("the two do not draw the same kind of trajectory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="checkout of microsoft/CtP")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (CLIPS, FRAMES, 14, 14, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=2).repeat(8, axis=3)  # (B, T, H, W, 3)
    video = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()  # (B, T, 3, H, W)
    part = PatchTracks()
    keys = iter(range(10**9))

    def key() -> torch.Tensor:
        return torch.tensor([sample_key(0, next(keys), i) for i in range(CLIPS)])

    contenders: dict[str, Callable[[], object]] = {
        "ours, bytes to finished floats": lambda: part(
            to_unit(video), part.draw(key(), FRAMES, SIDE, SIDE)
        ),
        "ours, tracks alone": lambda: part.draw(key(), FRAMES, SIDE, SIDE),
    }
    floats = to_unit(video)
    contenders["ours, tracks and paste"] = lambda: paste(
        floats, part.draw(key(), FRAMES, SIDE, SIDE)
    )
    transform = make_peer(options.peer) if options.peer else None
    if transform is not None:

        def peer() -> None:
            for clip in pixels:
                frames = list(clip)
                transform._apply_image(frames, transform.get_transform_param(frames))

        contenders["microsoft/CtP"] = peer

    check(part, transform, pixels)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(3):
        for work in contenders.values():
            work()
    for _ in range(options.rounds):
        for name, work in contenders.items():
            times[name].append(timed(work))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"commit {commit or 'unknown'}, torch {torch.__version__}, one thread, CPU time")
    reference = statistics.median(
        times.get("microsoft/CtP", times["ours, bytes to finished floats"])
    )
    print(f"{'contender':36s} {'ms per 8 clips':>15s} {'quartiles':>16s} {'speed ratio':>12s}")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        spread = f"{low:.1f}-{high:.1f}"
        print(f"{name:36s} {median:15.1f} {spread:>16s} {reference / median:12.2f}")


if __name__ == "__main__":
    main()
