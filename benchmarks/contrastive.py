"""Do CVRL and ConST-CL learn, and does ConST-CL learn more about regions? On the built-in videos.

    python benchmarks/contrastive.py --seeds 5

The videos are the built-in ones painted flat, each object and the ground in one colour, and views
have no colour at all. Two clips of a textured original can be told from others' by their textures,
which say nothing of the object by construction: a small network then learns them and nothing else.

For each seed a world of videos of its own, and small networks pretrained on it: CVRL, ConST-CL, and
as controls both again with the second clip of every pair taken from another video, which must not
gain. Measured on held-out videos, with nothing trained:

- object and motion: weighted k-NN of the main object's shape (one of six) and motion (one of eight)
  among the training videos.
- videos: k-NN of which video a clip is from. Three clips of each video are known, a fourth is asked
  for, all cropped and recoloured as in pretraining; top-1, chance 0.4 %.
- regions: each object in a video's first clip, pooled from the map by its true box, asks for itself
  in the last clip of the same video, among the objects there and as many boxes at random as make
  sixteen; both clips recoloured; top-1, chance below 7 %. ConST-CL's regions are read from its
  local branch, clips from the global one.

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

import numpy as np
import torch
import torch.nn.functional as F
from learning import clips_of, encode, floors, interval
from torch import Tensor, nn

K, CANDIDATES = 20, 16
FRAMES, SIDE = 8, 64
KINDS = ("object", "motion", "videos", "regions")
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Mismatched(nn.Module):
    """The control: the second clip of every pair is another video's."""

    def __init__(self, augment: nn.Module) -> None:
        super().__init__()
        self.augment = augment

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rolls the second clips by one video."""
        video = torch.stack([batch["video"][:, 0], batch["video"][:, 1].roll(1, 0)], dim=1)
        return self.augment({**batch, "video": video})


def paint(folder: Path, seed: int, index: int, split: str) -> None:
    """Writes one flat video, unless it is there."""
    from lightning_vssl.data.synthetic_files import encode as write
    from lightning_vssl.data.synthetic_files import h264
    from lightning_vssl.data.synthetic_scenes import MOTIONS, draw, labels

    target = folder / split / MOTIONS[labels(seed, index, split)[0]] / f"{index:06d}.mp4"
    if target.exists():
        return
    drawn = draw(seed, index, split)
    rng = np.random.default_rng([seed, index, split == "test"])
    while True:
        colours = rng.integers(0, 256, (len(drawn.objects) + 1, 3))
        apart = np.abs(colours[:, None] - colours[None]).sum(-1)[~np.eye(len(colours), dtype=bool)]
        if apart.min() > 120:
            break
    write(target, colours.astype(np.uint8)[drawn.masks], drawn.fps, h264(gop=12, b_frames=0))


def world(options: argparse.Namespace, seed: int, cropped: bool = False) -> object:
    """The videos of one seed; in evaluation whole frames, or crops as in pretraining."""
    from lightning_vssl.data.clips import ClipPair, UniformClips
    from lightning_vssl.data.manifest import default_cache_dir
    from lightning_vssl.data.windows import RandomResizedCrop, WholeFrame
    from lightning_vssl.datamodules.video_folder import VideoFolder

    root = options.root or default_cache_dir() / "flat"
    folder = root / f"videos{options.videos}-world{seed}"
    for split, count in (("train", options.videos * 3 // 4), ("test", options.videos // 4)):
        for index in range(count):
            paint(folder, seed, index, split)
    crop = RandomResizedCrop(SIDE, scale=(options.scale, 1.0), ratio=(3 / 4, 4 / 3))
    return VideoFolder(
        folder,
        train="train",
        val="test",
        batch_size=options.batch_size,
        seed=seed,
        clips=ClipPair(FRAMES, stride=2),
        window=crop,
        eval_clips=UniformClips(FRAMES, stride=2, clips=4 if cropped else 3),
        eval_window=crop if cropped else WholeFrame((SIDE, SIDE)),
    )


def recolour(options: argparse.Namespace) -> nn.Module:
    """Colours as in pretraining."""
    from lightning_vssl.augment.views import VideoViews

    return VideoViews(
        *HALF,
        flip=0.0,  # a mirrored clip moves the other way
        grey=1.0,
        brightness=options.colour,
        contrast=options.colour,
        saturation=options.colour,
        hue=options.colour / 4,
        blur=options.blur,
        blur_kernel=7,
        blur_sigma=(0.1, 1.5),
    )


def build(options: argparse.Namespace, name: str, control: bool, seed: int) -> nn.Module:
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
        "strides": (1, 2, 2, 1),  # a 4 x 4 grid
        "temporal_kernels": (1, 1, 3, 3),
        "pixels": HALF,
    }
    views = recolour(options)
    common = {
        "optimizer": functools.partial(torch.optim.AdamW, lr=options.lr, weight_decay=0.01),
        "schedule": Cosine(warmup_epochs=1.0),
        "hidden": (256,),
        "projection": 64,
        "temperature": options.temperature,
        "lr_batch": None,
        "channels_last": True,
    }
    wrap = Mismatched if control else nn.Sequential
    if name == "CVRL":
        return CVRL(PytorchvideoResNet(**network), wrap(views), **common)
    return ConSTCL(
        YResNet(**network),
        wrap(RegionViews(views, RandomBoxes())),
        context_length=3,
        decoder_width=64,
        local_weight=options.local_weight,
        **common,
    )


def pretrain(options: argparse.Namespace, name: str, control: bool, seed: int) -> nn.Module:
    """Pretrains the small network."""
    from lightning.pytorch import Trainer

    method = build(options, name, control, seed)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(method, world(options, seed))
    return method.eval()


@torch.no_grad()
def pooled(method: nn.Module, views: Tensor) -> Tensor:
    """Pooled features of views (N, V, 3, T, H, W), (N, V, C)."""
    parts = [method.backbone(part.flatten(0, 1)).mean((2, 3, 4)) for part in views.split(8)]
    return torch.cat(parts).view(*views.shape[:2], -1)


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


def same_video(features: Tensor) -> float:
    """Top-1, in percent: the last of each video's vectors (N, V, D) asks for its video."""
    known = F.normalize(features[:, :-1], dim=-1)  # (N, V - 1, D)
    asked = F.normalize(features[:, -1], dim=-1)
    likeness = torch.einsum("qd,nvd->qnv", asked, known).amax(-1)  # (N, N)
    right = likeness.argmax(1) == torch.arange(len(features))
    return 100 * float(right.float().mean())


def coloured(views: Tensor) -> dict[str, Tensor]:
    """Features of views (N, V, 3, T, H, W) that are not learned, (N, V, D)."""
    middle = views[:, :, :, views.shape[3] // 2]  # (N, V, 3, H, W), in [-1, 1]
    level = ((middle * 127.5 + 127.5).clamp(0, 255).long() >> 5).flatten(3)
    code = (level * torch.tensor([64, 8, 1]).view(3, 1)).sum(2)  # (N, V, H * W)
    histogram = torch.zeros(*code.shape[:2], 512).scatter_add_(2, code, torch.ones(code.shape))
    small = F.adaptive_avg_pool2d(middle.flatten(0, 1), 16).flatten(1)
    return {"colour histogram": histogram.sqrt(), "raw pixels": small.view(*code.shape[:2], -1)}


Regions = tuple[Tensor, int]


def annotated(
    seed: int, numbers: list[int], times: Tensor, generator: torch.Generator
) -> list[Regions | None]:
    """Boxes of the objects in the middle frames of a video's first and last clip.

    Args:
        seed: The world.
        numbers: The videos' numbers in it.
        times: When the frames of the clips are shown, (N, 3, T) seconds.
        generator: Draws the other boxes.

    Returns:
        For each video the boxes of both clips, (2, CANDIDATES, 4), shares of the frame, and how
        many of them are objects: they come first, in the same order; None where no object is in
        full view in both.
    """
    from lightning_vssl.data.synthetic_scenes import draw

    found: list[Regions | None] = []
    for index, number in enumerate(numbers):
        drawn = draw(seed, number, "test")
        height, width = drawn.frames.shape[1:3]
        moments = (times[index, [0, 2], times.shape[2] // 2] * drawn.fps).round().long()
        moments = moments.clamp(max=len(drawn.boxes) - 1)
        boxes = torch.from_numpy(drawn.boxes)[moments]  # (2, N, 4)
        boxes = boxes / boxes.new_tensor([width, height, width, height])
        cover = torch.from_numpy(drawn.cover)[moments]
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        inside = ((centre > 0.05) & (centre < 0.95)).all(-1)
        kept = (inside & (cover > 0.5) & boxes.isfinite().all(-1)).all(0)
        objects = boxes[:, kept].clamp(0, 1)
        if not kept.any():
            found.append(None)
            continue
        count = CANDIDATES - objects.shape[1]
        side = objects[:, :1, 2:] - objects[:, :1, :2]  # as large as the main object
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
        frames = views[row, [0, 2], :, views.shape[3] // 2]  # (2, 3, H, W)
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
    from lightning_vssl.data.synthetic_scenes import labels
    from lightning_vssl.metrics.neighbours import knn_predict

    torch.set_num_threads(1)
    start = time.perf_counter()
    data, crops = world(options, seed), world(options, seed, cropped=True)
    for module in (data, crops):
        module.prepare_data()
        module.setup("fit")
    gallery, motions = clips_of(data.gallery_dataloader())
    batches = list(data.val_dataloader())
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    numbers = [
        [int(Path(data.manifest(split).path(row)).stem) for row in range(count)]
        for split, count in (("train", len(gallery)), ("val", len(whole["video"])))
    ]
    objects, asked_objects = (
        torch.tensor([labels(seed, index, split)[1] for index in indices])
        for indices, split in zip(numbers, ("train", "test"), strict=True)
    )
    colours = recolour(options)
    shown = torch.cat([colours(batch)["views"] for batch in crops.val_dataloader()])
    painted = torch.cat([colours({**batch, "key": batch["key"] + 1})["views"] for batch in batches])
    boxes = annotated(seed, numbers[1], whole["time"], torch.Generator().manual_seed(seed))

    def top1(known: Tensor, asked: Tensor) -> dict[str, float]:
        found = {}
        for name, known_labels, truth, classes in (
            ("object", objects, asked_objects, 6),
            ("motion", motions, whole["label"], 8),
        ):
            guess = knn_predict(asked, known, known_labels, num_classes=classes, k=K)
            found[name] = 100 * float((guess == truth).float().mean())
        return found

    found: dict[str, float] = {}

    def measure(name: str, method: nn.Module) -> None:
        method.eval()
        found[f"videos, {name}"] = same_video(pooled(method, shown))
        known, asked = encode(method.backbone, gallery), encode(method.backbone, whole["video"])
        found.update({f"{label}, {name}": value for label, value in top1(known, asked).items()})
        maps = [local_maps(method, painted[:, clip]) for clip in (0, 2)]
        found[f"regions, {name}"] = retrieval(*maps, boxes)

    measure("untouched", build(options, "CVRL", False, seed))
    for name in ("CVRL", "ConST-CL"):
        method = pretrain(options, name, False, seed)
        measure(name, method)
        if name == "ConST-CL":
            pair = {key: batches[0][key][:, :2] for key in ("video", "time")}
            own, other = foreign_context(method, {**batches[0], **pair})
            found |= {"local loss, own context": own, "local loss, another's": other}
        measure(f"{name}, mismatched", pretrain(options, name, True, seed))
    for name, features in coloured(shown).items():
        found[f"videos, {name}"] = same_video(features)
    known_floors, asked_floors = floors(gallery), floors(whole["video"])
    for name in ("colour histogram", "raw pixels"):
        made = top1(known_floors[name], asked_floors[name])
        found |= {f"{label}, {name}": value for label, value in made.items()}
    found["regions, mean colour"] = pixel_retrieval(painted, boxes, 1)
    found["regions, raw pixels"] = pixel_retrieval(painted, boxes, 8)
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--videos", type=int, default=1000, help="a quarter of them held out")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--scale", type=float, default=0.5, help="least area of a crop")
    parser.add_argument("--colour", type=float, default=0.6)
    parser.add_argument("--blur", type=float, default=0.1)
    parser.add_argument("--local-weight", type=float, default=0.1)
    parser.add_argument("--root", type=Path, help="folder for the videos; default the cache")
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = parser.parse_args()

    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(functools.partial(one_seed, options), seeds))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"\ncommit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}")
    print(f"{vars(options)}")
    columns = {name: np.array([row[name] for row in results]) for name in results[0]}
    for name, values in columns.items():
        mean, half = interval(values)
        print(f"{name:30s} {mean:6.1f} +- {half:4.1f}")
    pairs = [
        *(
            (f"{kind}, {name}", f"{kind}, untouched")
            for kind in KINDS
            for name in ("CVRL", "CVRL, mismatched", "ConST-CL", "ConST-CL, mismatched")
        ),
        *((f"{kind}, ConST-CL", f"{kind}, CVRL") for kind in KINDS),
        ("local loss, another's", "local loss, own context"),
    ]
    for name, base in pairs:
        mean, half = interval(columns[name] - columns[base])
        shown = "" if abs(mean) - half > 0 else "   (not shown: the interval touches 0)"
        print(f"{name + ' - ' + base:50s} {mean:+6.2f} +- {half:5.2f}{shown}")
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
