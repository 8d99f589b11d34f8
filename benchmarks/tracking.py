"""Does CtP learn to follow patches in real video? Against holding the box still.

    python benchmarks/tracking.py DIR_OR_VIDEO [...] --held 6 --seeds 3 --steps 2400

The videos are shrunk once (short side 64) into ``--cache``; some are held back. A small network is
pretrained on the rest. On the held-back videos, with the same patches for all: the loss and the
mean IoU of the predicted boxes, of the query box held still, and of the predictions from another
clip's pixels under the same labels (the control: its gain must vanish). Per seed, then mean and
95 % interval (Student's t) of the differences. A picture of tracked patches is written for each
seed.
"""

import argparse
import functools
import hashlib
import json
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.synthetic_files import encode, h264

# Small enough for a CPU: a fifth of the paper's pixels, half of its frames, colours as they are,
# because light that drifts looks like motion. The scales of the targets are wider, so that they
# stay near 1, where the smooth L1 loss is quadratic.
FRAMES, SIDE, SHORT = 8, 48, 64
SCALES = (12.0, 16.0, 20.0, 24.0)
SIGMA = (3.0, 3.0, 0.15, 0.15)
SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".3gp"}


def shrink(video: Path, cache: Path) -> Path | None:
    """Writes a small copy of a video; None if it cannot be read or has under 40 frames."""
    name = hashlib.sha256(str(video.resolve()).encode()).hexdigest()[:16]
    target = cache / f"{video.stem.strip('-')[:40]}-{name}.mp4"
    if target.exists():
        return target
    try:
        with VideoReader(video) as reader:
            info, count = reader.info, min(len(reader.times), 300)
            if count < 40 or min(info.height, info.width) < SIDE:
                return None
            scale = SHORT / min(info.height, info.width)
            size = round(info.height * scale / 2) * 2, round(info.width * scale / 2) * 2
            frames, _ = reader.read(np.arange(count)[None], size=size)
    except UnreadableVideo as error:
        print(f"left out: {error}")
        return None
    encode(target, frames[0], float(np.clip(round(info.fps), 1, 60)), h264(gop=6, b_frames=0))
    return target


def collect(sources: Sequence[Path], cache: Path) -> list[Path]:
    """Small copies of all readable videos under the sources."""
    found: list[Path] = []
    for source in sources:
        inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        found += inside if source.is_dir() else [source]
    cache.mkdir(parents=True, exist_ok=True)
    small = [shrink(video, cache) for video in found]
    return [video for video in small if video is not None]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), xyxy; a side of negative length counts as 0."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    area = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return inner / (area[0] + area[1] - inner)


def one_seed(options: argparse.Namespace, train: list[Path], held: list[Path], seed: int) -> dict:
    """Pretrains with one seed and measures on the held-back videos."""
    from lightning.pytorch import Trainer, seed_everything

    from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
    from lightning_vssl.backbones import R3D18
    from lightning_vssl.callbacks.pictures import draw_tracks
    from lightning_vssl.data.clips import JitteredClip
    from lightning_vssl.data.windows import ScaleCrop
    from lightning_vssl.datamodules.base import VideoDataModule
    from lightning_vssl.losses.trajectory import decode, encode, trajectory_loss
    from lightning_vssl.methods.ctp import CtP
    from lightning_vssl.optim import Cosine

    class Files(VideoDataModule):
        """The videos again and again: each row is another draw."""

        def entries(self, split: str) -> tuple[list[Entry], tuple[str, ...]]:
            videos, times = (train, 128) if split == "train" else (held, 64)
            return [Entry(str(video)) for video in videos] * times, ()

    torch.set_num_threads(max(1, torch.get_num_threads() // options.jobs))
    seed_everything(seed, verbose=False)
    method = CtP(
        backbone=R3D18(width=options.width, depth=(options.depth,) * 4, last_stride=1),
        augment=CatchThePatch(
            PatchTracks(scales=SCALES),
            hue_probability=0,
            brightness_probability=0,
            contrast_probability=0,
        ),
        optimizer=functools.partial(torch.optim.AdamW, lr=options.lr, weight_decay=0.01),
        schedule=Cosine(warmup_epochs=0.2, final=0.02),
        frames=FRAMES,
        hidden_channels=128,
        sigma=SIGMA,
    ).to(memory_format=torch.channels_last_3d)
    clips, window = JitteredClip(FRAMES, strides=(1, 2)), ScaleCrop(SIDE, (48, 54, 60))
    data = Files(
        options.cache,
        clips=clips,
        window=window,
        eval_clips=clips,
        eval_window=window,
        batch_size=24,
        seed=seed,
        cache_dir=options.cache,
    )
    start = time.perf_counter()
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
    trainer.fit(method, data)
    data.trainer = None
    data.prepare_data()
    data.setup("validate")
    method.eval()
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for number, batch in enumerate(data.val_dataloader()):
            made = method.augment(batch)
            boxes, views = made["trajectories"], made["views"][:, 0]
            query, weights = boxes[:, :, 0], made["trajectory_weights"]
            target = encode(boxes, query, method.sigma)
            answers = {
                "predicted": method.track(views, query)[0],
                "held still": torch.zeros_like(target),
                "another clip": method.track(views.roll(1, 0), query)[0],
            }
            for name, answer in answers.items():
                loss = sum(trajectory_loss(answer, target, weights, weights.sum()))
                overlap = iou(decode(answer, query, method.sigma), boxes).mean()
                sums.setdefault(f"loss, {name}", []).append(float(loss))
                sums.setdefault(f"IoU, {name}", []).append(float(overlap))
            if number == 0:
                mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in method.backbone.pixels)
                picture = draw_tracks(
                    (views * std + mean)[:4],
                    boxes[:4],
                    decode(answers["predicted"], query, method.sigma)[:4],
                    zoom=4,
                )
                picture.save(options.cache / f"tracked_seed{seed}.png")
            if number + 1 == options.batches:
                break
    found = {name: float(np.mean(values)) for name, values in sums.items()}
    row = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
    print(f"seed {seed} ({(time.perf_counter() - start) / 60:.1f} min): {row}", flush=True)
    return found


def interval(values: np.ndarray) -> str:
    """Mean and half width of the 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values.mean():+.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.3f} +- {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="+", help="videos, or folders of them")
    parser.add_argument("--held", type=int, default=6, help="videos held back")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batches", type=int, default=16, help="held-back batches of 24 clips")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--cache", type=Path, default=Path("runs/tracking"))
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = parser.parse_args()

    small = collect(options.videos, options.cache)
    if len(small) <= options.held:
        raise SystemExit(f"{len(small)} usable videos, of which {options.held} are to be held back")
    order = np.random.default_rng(0).permutation(len(small))
    held = [small[i] for i in order[: options.held]]
    train = [small[i] for i in order[options.held :]]
    print(f"{len(train)} videos to train on; held back: {', '.join(v.stem[:24] for v in held)}")
    work = functools.partial(one_seed, options, train, held)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(work, range(options.seeds)))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"\ncommit {commit or 'unknown'}, torch {torch.__version__}, {options.steps} steps")
    table = {name: np.array([row[name] for row in results]) for name in results[0]}
    for name, values in table.items():
        print(f"{name:22s} {values.mean():.3f}")
    for name in ("predicted", "another clip"):
        gain = table[f"IoU, {name}"] - table["IoU, held still"]
        share = 100 * (1 - table[f"loss, {name}"] / table["loss, held still"])
        print(f"{name:14s} IoU over held still {interval(gain)}, loss saved % {interval(share)}")
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
