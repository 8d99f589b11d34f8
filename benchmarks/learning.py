"""Does pretraining help? CtP on the built-in videos, against every cheap explanation.

    python benchmarks/learning.py --seeds 5 --steps 1200

For each seed: a world of videos of its own, a small network pretrained on it, and the same network
pretrained with the trajectories permuted between the clips of a batch (the control, which must not
gain). Then weighted k-NN on held-out videos: the motion of the main object, one of eight, which no
single frame shows. Reported: mean and 95 % interval (Student's t) over the seeds, paired with the
untouched network; and the floors, none of which is trained: raw pixels of the clip, colour
histogram, one frame, and the pretrained network on shuffled frames. Videos are drawn once and
cached; ``--jobs`` runs that many seeds side by side, one thread each.
"""

import argparse
import functools
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from scipy import stats
from torch import Tensor, nn

K = 20


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seeds: int
    first: int
    steps: int
    videos: int
    jobs: int
    batch_size: int
    width: int
    lr: float
    root: Path | None
    out: Path | None


class Permuted(nn.Module):
    """The control: each clip is asked for the trajectories of another."""

    def __init__(self, augment: nn.Module) -> None:
        super().__init__()
        self.augment = augment

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rolls the trajectories by one clip."""
        batch = self.augment(batch)
        return {**batch, "trajectories": batch["trajectories"].roll(1, 0)}


def pretrain(options: Options, seed: int, permuted: bool) -> nn.Module:
    """Pretrains the small network and returns its backbone."""
    from lightning.pytorch import Trainer, seed_everything

    from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
    from lightning_vssl.backbones import R3D18
    from lightning_vssl.datamodules.demo import Demo
    from lightning_vssl.methods.ctp import CtP
    from lightning_vssl.optim import Cosine

    seed_everything(seed, verbose=False)
    augment: nn.Module = CatchThePatch(
        PatchTracks(scales=SCALES),
        hue_probability=0,
        brightness_probability=0,
        contrast_probability=0,
    )
    method = CtP(
        backbone=R3D18(width=options.width, depth=(1, 1, 1, 1), last_stride=1),
        augment=Permuted(augment) if permuted else augment,
        optimizer=functools.partial(torch.optim.AdamW, lr=options.lr, weight_decay=0.01),
        schedule=Cosine(warmup_epochs=0.5, final=0.2),
        frames=FRAMES,
        hidden_channels=128,
        sigma=SIGMA,
    ).to(memory_format=torch.channels_last_3d)
    if options.steps:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=options.steps,
            gradient_clip_val=40,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(method, world(options, seed, Demo))
    return method.backbone


# Small enough for a CPU: a fifth of the paper's pixels, half of its frames, colours as they are,
# because light that drifts looks like motion and costs hundreds of steps. The scales of the targets
# are wider, so that they stay near 1, where the smooth L1 loss is quadratic.
FRAMES, SIDE = 8, 48
SCALES = (12.0, 16.0, 20.0, 24.0)
SIGMA = (3.0, 3.0, 0.15, 0.15)


def world(options: Options, seed: int, kind: type) -> LightningDataModule:
    """The videos of one seed."""
    from lightning_vssl.data.clips import JitteredClip, UniformClips
    from lightning_vssl.data.windows import ScaleCrop, WholeFrame

    root = None if options.root is None else options.root / f"world{seed}"
    return kind(
        root,
        videos=options.videos,
        world=seed,
        seed=seed,
        batch_size=options.batch_size,
        make_workers=1,
        clips=JitteredClip(FRAMES, strides=(1, 2)),
        window=ScaleCrop(SIDE, (48, 54, 60)),
        eval_clips=UniformClips(FRAMES, stride=3, clips=3),
        eval_window=WholeFrame((SIDE, SIDE)),
    )


def clips_of(loader: object) -> tuple[Tensor, Tensor]:
    """All clips of a loader, (N, V, T, 3, H, W) uint8, and their labels."""
    batches = list(loader)
    return torch.cat([b["video"] for b in batches]), torch.cat([b["label"] for b in batches])


@torch.no_grad()
def encode(backbone: nn.Module, video: Tensor, shuffled: bool = False) -> Tensor:
    """Pooled features of videos, the mean over their clips, (N, C)."""
    from lightning_vssl.augment.views import Normalise

    view, found = Normalise(*backbone.pixels), []
    generator = torch.Generator().manual_seed(0)
    for part in video.split(8):
        if shuffled:
            part = part[:, :, torch.randperm(part.shape[2], generator=generator)]
        clips = view({"video": part})["views"]  # (B, V, 3, T, H, W)
        features = backbone.eval()(clips.flatten(0, 1)).mean((2, 3, 4))
        found.append(features.view(*clips.shape[:2], -1).mean(1))
    return torch.cat(found)


def floors(video: Tensor) -> dict[str, Tensor]:
    """Features that are not learned, one row a video."""
    first = video[:, 0]  # (N, T, 3, H, W)
    small = torch.stack([F.adaptive_avg_pool2d(clip.float(), 16) for clip in first])
    level = (first.permute(0, 2, 1, 3, 4).flatten(2).long() >> 5) * torch.tensor([[64], [8], [1]])
    colours = [torch.bincount(row, minlength=512).float() for row in level.sum(1)]
    middle = first[:, first.shape[1] // 2].float()
    return {
        "raw pixels": small.flatten(1) - 128,
        "colour histogram": torch.stack(colours).sqrt(),
        "one frame": F.adaptive_avg_pool2d(middle, 32).flatten(1) - 128,
    }


def one_seed(options: Options, seed: int) -> dict[str, float]:
    """Top-1 of everything in one world, in percent."""
    from lightning_vssl.datamodules.demo import Demo
    from lightning_vssl.metrics.neighbours import knn_predict

    torch.set_num_threads(max(1, torch.get_num_threads() // options.jobs))
    data = world(options, seed, Demo)
    data.prepare_data()
    data.setup("fit")
    gallery, labels = clips_of(data.gallery_dataloader())
    queries, truth = clips_of(data.val_dataloader())

    def top1(known: Tensor, asked: Tensor) -> float:
        guess = knn_predict(asked, known, labels, num_classes=8, k=K)
        return 100 * float((guess == truth).float().mean())

    start = time.perf_counter()
    untouched = pretrain(Options(**{**vars(options), "steps": 0}), seed, permuted=False)
    found = {"untouched": top1(encode(untouched, gallery), encode(untouched, queries))}
    trained = pretrain(options, seed, permuted=False)
    known = encode(trained, gallery)
    found["pretrained"] = top1(known, encode(trained, queries))
    control = pretrain(options, seed, permuted=True)
    found["permuted"] = top1(encode(control, gallery), encode(control, queries))
    shuffled = encode(trained, gallery, shuffled=True), encode(trained, queries, shuffled=True)
    found["shuffled frames"] = top1(*shuffled)
    known_floors, asked_floors = floors(gallery), floors(queries)
    for name, features in known_floors.items():
        found[name] = top1(features, asked_floors[name])
    chance = torch.bincount(labels, minlength=8)[truth].float().mean() / len(labels)
    found["chance"] = 100 * float(chance)
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half width of the 95 % interval over seeds."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--videos", type=int, default=1000, help="a quarter of them held out")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--root", type=Path, help="folder for the videos; default the cache")
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = Options(**vars(parser.parse_args()))

    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(functools.partial(one_seed, options), seeds))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"\ncommit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}; "
        f"{options.steps} steps of {options.batch_size} clips, {options.videos} videos a world, "
        f"motion k-NN (k={K}) top-1 in %, mean and 95 % interval over {len(results)} seeds"
    )
    columns = {name: np.array([row[name] for row in results]) for name in results[0]}
    for name, values in columns.items():
        mean, half = interval(values)
        print(f"{name:20s} {mean:6.1f} +- {half:4.1f}")
    for name in ("pretrained", "permuted"):
        mean, half = interval(columns[name] - columns["untouched"])
        shown = "" if mean - half > 0 else "   (not shown: the interval touches 0)"
        print(f"{name + ' - untouched':24s} {mean:+6.1f} +- {half:4.1f}{shown}")
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
