"""Do MoCLR and VITO learn objects, what does each of VITO's parts add, and where does it look?

    python benchmarks/frames.py --seeds 5

On flat videos (`drawn.py`), with views in grey. For each seed a world of its own, and small image
networks pretrained on it, all with the same count of steps and videos: MoCLR (two frames), VITO
(three frames, crops of no less than 40 % of the frame, two scales pooled by attention), VITO
without each of these in turn, and as the control VITO with the views of a sample taken from
different videos, which must not gain. Measured on held-out videos, with nothing trained:

- object: weighted k-NN of the main object's shape, one of six, among the training videos; features
  of three frames of a video, the last map averaged.
- attention: how much of VITO's attention lies on the main object, over the object's share of the
  frame; beside it the same for a centred Gaussian as wide as that attention is.

Beside them the floors, none of them trained: colour histogram and raw pixels. Reported: mean and
95 % interval (Student's t) over the seeds, paired.
"""

import argparse
import functools
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from drawn import (
    DrawnVideos,
    Mismatched,
    SmallResNet,
    Videos,
    adamw,
    clips_in_order,
    columns_of,
    drawn_videos,
    fit,
    floors,
    grey_views,
    keep,
    knn,
    plain_grey,
    print_columns,
    print_differences,
)
from torch import Tensor, nn

SIDE = 48
VARIANTS: dict[str, dict[str, object]] = {
    "VITO": {},
    "VITO, average pooling": {"attention": False},
    "VITO, one scale": {"scales": 1},
    "VITO, crop from 8 %": {"least": 0.08},
    "VITO, two views": {"views": 2},
    "VITO, mismatched": {"control": True},
    "MoCLR": {"views": 2, "scales": 1, "attention": False},
}


def pretrain(
    options: argparse.Namespace,
    videos: Videos,
    seed: int,
    *,
    views: int = 3,
    scales: int = 2,
    attention: bool = True,
    least: float = 0.4,
    control: bool = False,
    steps: int | None = None,
) -> nn.Module:
    """Pretrains a small network; MoCLR is VITO with one scale, averaged, and two views."""
    from lightning.pytorch import seed_everything

    from lightning_vssl.data.clips import FrameViews
    from lightning_vssl.data.windows import RandomResizedCrop
    from lightning_vssl.methods.vito import VITO, MoCLR
    from lightning_vssl.optim import Cosine

    seed_everything(seed, verbose=False)
    augment: nn.Module = grey_views(options.colour, options.blur, flip=0.5)
    common = {
        "backbone": SmallResNet(options.width).to(memory_format=torch.channels_last),
        "augment": Mismatched(augment) if control else augment,
        "optimizer": functools.partial(adamw, lr=options.lr),
        "schedule": Cosine(warmup_epochs=3.0),
        "views": views,
        "hidden": (256,),
        "projection": 64,
        "temperature": options.temperature,
        "momentum": options.momentum,
        "lr_batch": None,
    }
    if attention or scales > 1:
        hidden = 64 if attention else None
        method: nn.Module = VITO(scales=scales, attention_hidden=hidden, **common)
    else:
        method = MoCLR(**common)
    data = DrawnVideos(
        videos,
        FrameViews(views, options.seconds),
        RandomResizedCrop(SIDE, scale=(least, 1.0)),
        options.batch_size,
        seed,
    )
    steps = options.steps if steps is None else steps
    return fit(method, data, steps) if steps else method.eval()


@torch.no_grad()
def encode(method: nn.Module, video: Tensor) -> Tensor:
    """Features of videos (N, V, 1, 3, H, W), the mean over their frames, (N, C)."""
    frames = plain_grey(video)[:, :, :, 0]  # (N, V, 3, H, W)
    parts = [method.backbone(part).mean((2, 3)) for part in frames.flatten(0, 1).split(128)]
    return torch.cat(parts).view(*video.shape[:2], -1).mean(1)


@torch.no_grad()
def attention(method: nn.Module, video: Tensor, masks: Tensor) -> tuple[float, float]:
    """Attention on the object over its area share: VITO's, and a centred Gaussian's.

    Args:
        method: VITO.
        video: One frame a video, (N, 1, 1, 3, H, W).
        masks: Where its main object is, (N, H, W) bool.

    Returns:
        The mean over the videos of both ratios; 1 is attention that knows nothing. The Gaussian of
        a picture is as wide, along x and y, as that picture's attention.
    """
    from lightning_vssl.metrics.localisation import gaussian_like, heat_lift
    from lightning_vssl.nn.attention_pool import average_masks

    frames = plain_grey(video)[:, 0, :, 0]  # (N, 3, H, W)
    maps = [average_masks(method.encode(part)[2], (SIDE, SIDE)) for part in frames.split(128)]
    heat = torch.cat(maps)
    kept = masks.float().mean((1, 2)) > 0.01
    heat, masks = heat[kept], masks[kept]
    return float(heat_lift(heat, masks).mean()), float(heat_lift(gaussian_like(heat), masks).mean())


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Everything of one world."""
    from lightning_vssl.data.clips import UniformClips
    from lightning_vssl.data.windows import WholeFrame

    torch.set_num_threads(1)
    start = time.perf_counter()
    train = drawn_videos(seed, "train", options.videos * 3 // 4, flat=True, main_only=True)
    test = drawn_videos(seed, "test", options.videos // 4, flat=True, main_only=True)
    whole = UniformClips(1, stride=1, clips=3), WholeFrame((SIDE, SIDE))
    known = clips_in_order(train, *whole, seed)
    asked = clips_in_order(test, *whole, seed)
    moments = (asked["time"][:, 1, 0] * test.fps).round().long()
    masks = test.masks[torch.arange(len(moments)), moments] == 1
    masks = nn.functional.interpolate(masks[:, None].float(), (SIDE, SIDE), mode="area")[:, 0] > 0.5

    def top1(one: Tensor, other: Tensor) -> float:
        return knn(one, other, train.objects, test.objects)

    untouched = pretrain(options, train, seed, steps=0)
    found = {
        "untouched": top1(encode(untouched, known["video"]), encode(untouched, asked["video"]))
    }
    keep(options.save, "untouched", seed, untouched.backbone)
    chosen = options.variants or list(VARIANTS)
    for name in chosen:
        method = pretrain(options, train, seed, **VARIANTS[name])  # type: ignore[arg-type]
        keep(options.save, name, seed, method.backbone)
        found[name] = top1(encode(method, known["video"]), encode(method, asked["video"]))
        if name in ("VITO", "VITO, mismatched"):
            own, gauss = attention(method, asked["video"][:, 1:2], masks)
            found[f"attention of {name}"] = own
            found[f"Gaussian as wide as {name}'s"] = gauss
        print(f"seed {seed}: {name} {found[name]:.1f}", flush=True)
    known_floors, asked_floors = floors(known["video"]), floors(asked["video"])
    for name in known_floors:
        found[name] = top1(known_floors[name], asked_floors[name])
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--videos", type=int, default=1000, help="a quarter of them held out")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="default all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.5, help="of the target, at first")
    parser.add_argument("--seconds", type=float, default=2.56, help="stretch that frames are from")
    parser.add_argument("--colour", type=float, default=0.6)
    parser.add_argument("--blur", type=float, default=0.1)
    parser.add_argument("--save", type=Path, help="folder to keep the networks in")
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = parser.parse_args()

    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(functools.partial(one_seed, options), seeds))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(f"\ncommit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}")
    print(f"{vars(options)}")
    columns = columns_of(results)
    print_columns(columns)
    chosen = [name for name in VARIANTS if name in columns]
    print_differences(columns, [(name, "untouched") for name in chosen])
    print_differences(columns, [(name, "colour histogram") for name in chosen])
    if "VITO" in columns:
        print_differences(columns, [("VITO", name) for name in chosen if name != "VITO"])
        print_differences(columns, [("attention of VITO", "Gaussian as wide as VITO's")])
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
