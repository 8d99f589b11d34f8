"""Does PreViTS look at the object, more than MoCo does, and with whose tubes?

    python benchmarks/previts.py --seeds 5

On the built-in videos, textures and all. For each seed a world of its own, tubes found by the
tracker (no label, no mask is known to it), and small image networks pretrained with the same count
of steps: MoCo (two frames anywhere, plain random crops), MoCo with tracking constrained sampling
(frames inside the tube, crops that cover it), PreViTS (the attention loss besides), and as the
control PreViTS with every video's tube taken from another one. Measured on held-out videos:

- IoU: overlap of the true mask of the main object in one frame with as many of the hottest places
  of Grad-CAM, for the likeness of that frame and of the object alone in another frame
  (section 3.3); both frames are chosen by the true masks, which no training has seen. Beside it
  the same for a centred Gaussian as wide as that heat.
- J: DAVIS's J of Grad-CAM tracking (section 4.5), as the evaluation of DAVIS-2016 takes it: the
  first frame's object alone, by its true mask, is asked for in every fourth frame. "J by area" is
  that of as many of the hottest pixels as the first mask has, free of a threshold; beside them the
  first mask, left where it is.
- object: weighted k-NN of the main object's shape, one of six, among the training videos.
- video: which video a frame is from, asked of the other frames, recoloured (top-1).

Reported: mean and 95 % interval (Student's t) over the seeds, paired; and how well the tubes fit
the true masks.
"""

import argparse
import functools
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from drawn import (
    HALF,
    LENGTH,
    DrawnVideos,
    SmallResNet,
    Videos,
    adamw,
    clips_in_order,
    columns_of,
    drawn_videos,
    fit,
    floors,
    keep,
    knn,
    print_columns,
    print_differences,
)
from torch import Tensor, nn

from lightning_vssl.metrics.heat_tracking import HeatTracking

SIDE = 48
CANVAS = 64
VARIANTS = ("MoCo", "MoCo, tracked", "PreViTS", "PreViTS, permuted tubes")


def tubes_of(videos: Videos) -> tuple[Tensor, float]:
    """Tubes of the videos by the tracker, and their mean IoU with the true masks."""
    from lightning_vssl.tracking import MotionSaliency, Tracker

    tracker = Tracker(MotionSaliency())
    found = torch.stack([tracker(frames).masks for frames in videos.frames])  # (N, L, H, W)
    truth = videos.masks == 1
    both = (found & truth).sum((2, 3)).double()
    either = (found | truth).sum((2, 3)).double()
    seen = truth.flatten(2).any(2)
    return found.to(torch.uint8), float((both / either.clamp(min=1))[seen].mean())


def pretrain(
    options: argparse.Namespace, videos: Videos, name: str, seed: int, steps: int
) -> nn.Module:
    """Pretrains a small network."""
    from lightning.pytorch import seed_everything

    from lightning_vssl.augment.objects import ObjectViews
    from lightning_vssl.augment.views import VideoViews
    from lightning_vssl.data.clips import RandomClip, TrackedPair
    from lightning_vssl.data.windows import WholeFrame
    from lightning_vssl.methods.moco import MoCo
    from lightning_vssl.methods.previts import PreViTSMoCo
    from lightning_vssl.optim import Cosine

    seed_everything(seed, verbose=False)
    tracked = name != "MoCo"
    if name == "PreViTS, permuted tubes":
        videos = replace(videos, tubes=videos.tubes.roll(1, 0))
    views = VideoViews(*HALF, jitter=1.0, blur=0.1, blur_kernel=7, blur_sigma=(0.1, 1.5))
    common = {
        "backbone": SmallResNet(options.width).to(memory_format=torch.channels_last),
        "augment": ObjectViews(views, SIDE, coverage=options.coverage if tracked else 0.0),
        "optimizer": functools.partial(adamw, lr=options.lr),
        "schedule": Cosine(warmup_epochs=3.0),
        "projection": 64,
        "temperature": options.temperature,
        "momentum": options.momentum,
        "queue_size": 4 * options.batch_size,
        "lr_batch": None,
    }
    if name.startswith("PreViTS"):
        method: nn.Module = PreViTSMoCo(attention_weight=options.attention_weight, **common)
    else:
        method = MoCo(**common)
    clips = TrackedPair(1, min_tracked=LENGTH // 4) if tracked else RandomClip(1, clips=2)
    whole = WholeFrame((CANVAS, CANVAS))
    data = DrawnVideos(videos, clips, whole, options.batch_size, seed)
    return fit(method, data, steps) if steps else method.eval()


def plain(video: Tensor) -> Tensor:
    """Frames (N, V, 1, 3, H, W) uint8 as the networks take them, (N, V, 3, SIDE, SIDE)."""
    from lightning_vssl.augment.views import Normalise

    frames = Normalise(*HALF)({"video": video})["views"][:, :, :, 0]
    small = F.interpolate(frames.flatten(0, 1), (SIDE, SIDE), mode="bilinear", antialias=True)
    return small.view(*video.shape[:2], 3, SIDE, SIDE)


@torch.no_grad()
def encode(method: nn.Module, frames: Tensor) -> Tensor:
    """Pooled features of frames (N, V, 3, H, W), (N, V, C)."""
    parts = [method.backbone(part).mean((2, 3)) for part in frames.flatten(0, 1).split(128)]
    return torch.cat(parts).view(*frames.shape[:2], -1)


def grad_cam_iou(method: nn.Module, frames: Tensor, masks: Tensor) -> tuple[float, float]:
    """Mean IoU of Grad-CAM with the object, and of a centred Gaussian as wide.

    Args:
        method: MoCo or PreViTS.
        frames: Query and key, (N, 2, 3, H, W).
        masks: Where the main object is in them, (N, 2, H, W) bool.
    """
    from lightning_vssl.losses.info_nce import unit
    from lightning_vssl.metrics.localisation import equal_area_iou, gaussian_like
    from lightning_vssl.nn.grad_cam import explain, resize_cam
    from lightning_vssl.nn.recompute import frozen_statistics

    key = torch.zeros(len(frames), dtype=torch.long)
    heats = []
    method.target.train()  # its running statistics know whole pictures, not objects alone
    for part, shown in zip(frames.split(64), masks.split(64), strict=True):
        with torch.no_grad(), frozen_statistics(method.target):
            (code, *_) = method.encode_keys(part[:, 1] * shown[:, 1, None], key[: len(part)], 66)
            maps = method.backbone(part[:, 0])

        def score(pooled: Tensor, code: Tensor = code) -> Tensor:
            return (unit(method.projector(pooled)) * code).sum(1)

        heats.append(resize_cam(explain(maps, score)[0], (SIDE, SIDE)))
    method.target.eval()
    heat = torch.cat(heats)
    truth = masks[:, 0]
    own, blind = equal_area_iou(heat, truth), equal_area_iou(gaussian_like(heat), truth)
    return float(own.nanmean()), float(blind.nanmean())


def seen_twice(videos: Videos, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Videos whose main object is well seen in two frames, and these frames, (M,) and (M, 2)."""
    area = (videos.masks == 1).float().mean((2, 3))  # (N, LENGTH)
    rows, frames = [], []
    for row, share in enumerate(area):
        good = (share > 0.02).nonzero()[:, 0]
        if len(good) >= 2:
            rows.append(row)
            frames.append(good[torch.randperm(len(good), generator=generator)[:2]])
    return torch.tensor(rows), torch.stack(frames)


def grad_cam_tracks(method: nn.Module, videos: Videos) -> HeatTracking:
    """Follows the main object from the first frame where it is well seen in every fourth frame.

    Online network and head are asked, as an evaluation does that has their export alone.
    """
    from lightning_vssl.evaluation.grad_cam_tracking import key_codes, query_heat
    from lightning_vssl.nn.grad_cam import key_foreground

    truth = (videos.masks[:, ::4] == 1).to(torch.uint8)  # (N, T, H, W)
    rows = ((truth.float().mean((2, 3)) > 0.02).all(1)).nonzero()[:, 0]
    frames = plain(videos.frames[rows, ::4][:, :, None])[:, :, :, None]  # (M, T, 3, 1, S, S)
    keys = key_foreground(frames[:, 0], truth[rows, :1])
    codes = key_codes(method.backbone, method.projector, keys, "batch")
    metric = HeatTracking()
    for row, clips, code in zip(rows.tolist(), frames, codes, strict=True):
        heat = query_heat(method.backbone, method.projector, clips[1:-1], code)
        metric.update(heat, truth[row], row)
    return metric


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Everything of one world."""
    from lightning_vssl.augment.views import VideoViews
    from lightning_vssl.data.clips import UniformClips
    from lightning_vssl.data.windows import WholeFrame

    torch.set_num_threads(1)
    start = time.perf_counter()
    kind = {"flat": options.flat}
    train = drawn_videos(seed, "train", options.videos * 3 // 4, **kind)
    test = drawn_videos(seed, "test", options.videos // 4, **kind)
    tubes, fitting = tubes_of(train)
    train = replace(train, tubes=tubes)
    found = {"tubes' IoU with the true masks": 100 * fitting}
    whole = UniformClips(1, stride=1, clips=3), WholeFrame((CANVAS, CANVAS))
    known = clips_in_order(replace(train, tubes=None), *whole, seed)
    asked = clips_in_order(test, *whole, seed)
    colours = VideoViews(*HALF, jitter=1.0, blur=0.0)
    small = {**asked, "video": _small(asked["video"])}
    recoloured = colours(small)["views"][:, :, :, 0]
    rows, chosen = seen_twice(test, torch.Generator().manual_seed(seed))
    pairs = test.frames[rows[:, None], chosen][:, :, None]  # (M, 2, 1, 3, H, W)
    masks = (test.masks[rows[:, None], chosen] == 1).float()
    masks = F.interpolate(masks, (SIDE, SIDE), mode="area") > 0.5

    def measure(name: str, method: nn.Module) -> None:
        keep(options.save, name, seed, method.backbone)
        own, blind = grad_cam_iou(method, plain(pairs), masks)
        found[f"IoU, {name}"], found[f"IoU, Gaussian as {name}"] = (
            100 * own,
            100 * blind,
        )
        tracks = grad_cam_tracks(method, test)
        found[f"J, {name}"] = 100 * tracks.compute()["J_mean"]
        found[f"J by area, {name}"] = 100 * tracks.sensitivity().first_area
        found["J, first mask"] = 100 * tracks.sensitivity().first_mask
        one, other = (encode(method, plain(part["video"])).mean(1) for part in (known, asked))
        found[f"object, {name}"] = knn(one, other, train.objects, test.objects)
        codes = F.normalize(encode(method, recoloured), dim=-1)  # (N, 3, C)
        likeness = torch.einsum("qd,nvd->qnv", codes[:, 1], codes[:, [0, 2]]).amax(-1)
        right = likeness.argmax(1) == torch.arange(len(codes))
        found[f"video, {name}"] = 100 * float(right.float().mean())
        told = "  ".join(f"{key.split(',')[0]} {found[key]:.1f}" for key in found if name in key)
        print(f"seed {seed}: {name}: {told}", flush=True)

    measure("untouched", pretrain(options, train, "PreViTS", seed, 0))
    for name in options.variants:
        measure(name, pretrain(options, train, name, seed, options.steps))
    known_floors, asked_floors = floors(known["video"]), floors(asked["video"])
    for name in known_floors:
        top1 = knn(known_floors[name], asked_floors[name], train.objects, test.objects)
        found[f"object, {name}"] = top1
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def _small(video: Tensor) -> Tensor:
    """Frames (N, V, T, 3, H, W) uint8 at the networks' size."""
    flat = F.interpolate(video.flatten(0, 2), (SIDE, SIDE), mode="bilinear", antialias=True)
    return flat.view(*video.shape[:4], SIDE, SIDE)


def main() -> None:
    """Runs all seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--videos", type=int, default=1000, help="a quarter of them held out")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--flat", action="store_true", help="paint objects and ground flat")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9, help="of the key network")
    parser.add_argument("--coverage", type=float, default=0.3, help="mu")
    parser.add_argument("--attention-weight", type=float, default=3.0, help="lambda")
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
    pairs = [
        *((f"IoU, {name}", f"IoU, Gaussian as {name}") for name in VARIANTS),
        *((f"IoU, {name}", "IoU, MoCo") for name in VARIANTS[1:]),
        ("IoU, PreViTS", "IoU, MoCo, tracked"),
        ("IoU, PreViTS", "IoU, PreViTS, permuted tubes"),
        *((f"{k}, {name}", f"{k}, MoCo") for k in ("J", "J by area") for name in VARIANTS[1:]),
        *((f"J, {name}", "J, first mask") for name in VARIANTS),
        *((f"{k}, {name}", f"{k}, MoCo") for k in ("object", "video") for name in VARIANTS[1:]),
    ]
    print_differences(columns, [pair for pair in pairs if columns.keys() >= set(pair)])
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
