"""Do CVRL and ConST-CL learn, and does ConST-CL learn more about regions?

    python benchmarks/contrastive.py --seeds 5

On flat videos (`drawn.py`) with their main object alone, views in grey. For each seed a world of
its own, and small networks pretrained on it: CVRL, ConST-CL, and as controls both again with the
second clip of every pair taken from another video, which must not gain. Measured on held-out
videos, with nothing trained:

- object and motion: weighted k-NN of the main object's shape (one of six) and motion (one of eight)
  among the training videos.
- regions: the object in a video's first clip, pooled from the map by its true box, asks for itself
  in the last clip of the same video, among as many boxes at random as make sixteen; both clips in
  grey, changed in brightness; top-1, chance below 7 %. ConST-CL's regions are read from its local
  branch, clips from the global one.

Beside them the floors, none of them trained: colour histogram and raw pixels. Reported: mean and
95 % interval (Student's t) over the seeds, paired. Last, the local loss of held-out videos, and
what it becomes with the context of another video.
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
import torch.nn.functional as F
from drawn import (
    HALF,
    DrawnVideos,
    Mismatched,
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

CANDIDATES = 16
FRAMES, SIDE = 4, 48
METHODS = ("CVRL", "CVRL, mismatched", "ConST-CL", "ConST-CL, mismatched")
KINDS = ("object", "motion", "regions")


def build(options: argparse.Namespace, name: str, seed: int) -> nn.Module:
    """A small network in its method."""
    from lightning.pytorch import seed_everything

    from lightning_vssl.augment.regions import RandomBoxes, RegionViews
    from lightning_vssl.backbones import PytorchvideoResNet, YResNet
    from lightning_vssl.methods.constcl import ConSTCL
    from lightning_vssl.methods.cvrl import CVRL
    from lightning_vssl.optim import Cosine

    seed_everything(seed, verbose=False)
    network = {
        "width": options.width,
        "depth": (1, 1, 1, 1),
        "stem_kernel": (3, 5, 5),
        "strides": (1, 1, 2, 1),  # a 6 x 6 grid
        "pixels": HALF,
    }
    views = grey_views(options.colour, options.blur)
    common = {
        "optimizer": functools.partial(adamw, lr=options.lr),
        "schedule": Cosine(warmup_epochs=3.0),
        "hidden": (256,),
        "projection": 64,
        "temperature": options.temperature,
        "lr_batch": None,
        "channels_last": True,
    }
    wrap = Mismatched if name.endswith("mismatched") else nn.Sequential
    if name.startswith("CVRL"):
        return CVRL(PytorchvideoResNet(**network), wrap(views), **common)
    return ConSTCL(
        YResNet(**network),
        wrap(RegionViews(views, RandomBoxes())),
        context_length=1,
        decoder_width=64,
        local_weight=options.local_weight,
        **common,
    )


def pretrain(options: argparse.Namespace, videos: Videos, name: str, seed: int) -> nn.Module:
    """Pretrains the small network."""
    from lightning_vssl.data.clips import ClipPair
    from lightning_vssl.data.windows import RandomResizedCrop

    data = DrawnVideos(
        videos,
        ClipPair(FRAMES, stride=options.stride),
        RandomResizedCrop(SIDE, scale=(options.least, 1.0)),
        options.batch_size,
        seed,
    )
    return fit(build(options, name, seed), data, options.steps)


@torch.no_grad()
def encode(method: nn.Module, video: Tensor) -> Tensor:
    """Features of videos (N, V, T, 3, H, W), the mean over their clips, (N, C)."""
    clips = plain_grey(video).flatten(0, 1).split(64)
    parts = [method.backbone(part).mean((2, 3, 4)) for part in clips]
    return torch.cat(parts).view(*video.shape[:2], -1).mean(1)


@torch.no_grad()
def local_maps(method: nn.Module, views: Tensor) -> Tensor:
    """Middle frames of the maps that regions are read from, voxels of length 1, (N, C, H, W)."""
    from lightning_vssl.methods.constcl import ConSTCL

    found = []
    for clips in views.split(16):
        if isinstance(method, ConSTCL):
            maps = method.maps(clips)[1]
        else:
            maps = F.normalize(method.backbone(clips), dim=1)
        found.append(maps[:, :, maps.shape[2] // 2])
    return torch.cat(found)


Regions = tuple[Tensor, int]


def annotated(videos: Videos, times: Tensor, generator: torch.Generator) -> list[Regions | None]:
    """Boxes of the objects in the middle frames of a video's first and last clip.

    Args:
        videos: The videos.
        times: When the frames of their clips are shown, (N, V, T) seconds.
        generator: Draws the other boxes.

    Returns:
        For each video the boxes of both clips, (2, CANDIDATES, 4), shares of the frame, and how
        many of them are objects: they come first, in the same order; None where no object is in
        full view in both.
    """
    found: list[Regions | None] = []
    for index in range(len(videos.fps)):
        moments = (times[index, [0, -1], times.shape[2] // 2] * videos.fps[index]).round().long()
        boxes = videos.boxes[index][moments]  # (2, n, 4)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        inside = ((centre > 0.05) & (centre < 0.95)).all(-1)
        kept = (inside & (videos.cover[index][moments] > 0.5) & boxes.isfinite().all(-1)).all(0)
        objects = boxes[:, kept].clamp(0, 1)
        if not kept.any():
            found.append(None)
            continue
        count = CANDIDATES - objects.shape[1]
        side = objects[:, :1, 2:] - objects[:, :1, :2]  # as large as the first object
        corner = torch.rand(2, count, 2, generator=generator) * (1 - side).clamp(min=0.05)
        others = torch.cat([corner, (corner + side).clamp(max=1)], dim=-1)
        found.append((torch.cat([objects, others], dim=1), objects.shape[1]))
    return found


def retrieval(first: Tensor, last: Tensor, boxes: list[Regions | None]) -> float:
    """Top-1, in percent, of regions in the first clip that find themselves in the last."""
    from lightning_vssl.nn.regions import pool_regions

    right = asked = 0
    for row, regions in enumerate(boxes):
        if regions is None:
            continue
        both, objects = regions
        one = F.normalize(pool_regions(first[row][None], both[:1, :objects])[0], dim=1)
        two = F.normalize(pool_regions(last[row][None], both[1:])[0], dim=1)
        best = (one @ two.T).argmax(1)
        right += int((best == torch.arange(objects)).sum())
        asked += objects
    return 100 * right / asked


def pixel_retrieval(views: Tensor, boxes: list[Regions | None], side: int) -> float:
    """The same with the pixels of the boxes, brought to ``side`` x ``side``; 1: mean colour."""
    from torchvision.ops import roi_align

    right = asked = 0
    for row, regions in enumerate(boxes):
        if regions is None:
            continue
        both, objects = regions
        frames = views[row, [0, -1], :, views.shape[3] // 2]  # (2, 3, H, W)
        scale = frames.shape[-1]
        parts = [roi_align(frames[v][None], [both[v] * scale], side, aligned=True) for v in (0, 1)]
        one, two = (F.normalize(part.flatten(1), dim=1) for part in parts)
        best = (one[:objects] @ two.T).argmax(1)
        right += int((best == torch.arange(objects)).sum())
        asked += objects
    return 100 * right / asked


@torch.no_grad()
def foreign_context(method: nn.Module, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Held-out local loss with the video's own context, and with another video's."""
    made = method.augment(batch)
    where = method.slices(made["time"], made["key"])
    places = method.places(made, where)
    valid = places.isfinite().all(-1)
    _, _, h, z = method.encode(made["views"], where, places)
    _, local = method.maps(made["views"].flatten(0, 1))
    other = method.predict(h.flatten(0, 1), local.roll(2, 0), places.flatten(0, 1)).view_as(z)
    return float(method.local_loss(h, z, valid)[0]), float(method.local_loss(h, other, valid)[0])


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Everything of one world."""
    from lightning_vssl.data.clips import UniformClips
    from lightning_vssl.data.windows import WholeFrame

    torch.set_num_threads(1)
    start = time.perf_counter()
    train = drawn_videos(seed, "train", options.videos * 3 // 4, flat=True, main_only=True)
    test = drawn_videos(seed, "test", options.videos // 4, flat=True, main_only=True)
    whole = UniformClips(FRAMES, options.stride, clips=3), WholeFrame((SIDE, SIDE))
    known = clips_in_order(train, *whole, seed)
    asked = clips_in_order(test, *whole, seed)
    views = grey_views(options.colour, options.blur)(asked)["views"]
    boxes = annotated(test, asked["time"], torch.Generator().manual_seed(seed))
    found: dict[str, float] = {}

    def top1(name: str, one: Tensor, other: Tensor) -> None:
        found[f"object, {name}"] = knn(one, other, train.objects, test.objects)
        found[f"motion, {name}"] = knn(one, other, train.motions, test.motions)

    def measure(name: str, method: nn.Module) -> None:
        keep(options.save, name, seed, method.eval().backbone)
        top1(name, encode(method, known["video"]), encode(method, asked["video"]))
        maps = [local_maps(method, views[:, clip]) for clip in (0, -1)]
        found[f"regions, {name}"] = retrieval(*maps, boxes)
        told = "  ".join(f"{kind} {found[f'{kind}, {name}']:.1f}" for kind in KINDS)
        print(f"seed {seed}: {name}: {told}", flush=True)

    measure("untouched", build(options, "CVRL", seed))
    for name in options.methods:
        method = pretrain(options, train, name, seed)
        measure(name, method)
        if name == "ConST-CL":
            pair = {key: asked[key][:32, [0, -1]] for key in ("video", "time")}
            own, other = foreign_context(method, {"key": asked["key"][:32], **pair})
            found |= {"local loss, own context": own, "local loss, another's": other}
    known_floors, asked_floors = floors(known["video"]), floors(asked["video"])
    for name in known_floors:
        top1(name, known_floors[name], asked_floors[name])
    found["regions, mean grey"] = pixel_retrieval(views, boxes, 1)
    found["regions, raw pixels"] = pixel_retrieval(views, boxes, 8)
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--videos", type=int, default=1000, help="a quarter of them held out")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--stride", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--least", type=float, default=0.5, help="least area of a crop")
    parser.add_argument("--colour", type=float, default=0.6)
    parser.add_argument("--blur", type=float, default=0.1)
    parser.add_argument("--local-weight", type=float, default=0.1)
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
    pairs = [(f"{k}, {name}", f"{k}, untouched") for k in KINDS for name in options.methods]
    if "CVRL" in options.methods and "ConST-CL" in options.methods:
        pairs += [(f"{kind}, ConST-CL", f"{kind}, CVRL") for kind in KINDS]
        pairs.append(("local loss, another's", "local loss, own context"))
    print_differences(columns, pairs)
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
