"""Whose labels teach CtP most? Table 1 on the built-in videos.

    python benchmarks/label_sources.py --seeds 5 --jobs 2 --save label_sources.json

For each seed a world of its own, textures and all, in grey; and for each source of trajectories the
same small network, first weights, clips and count of steps: pre-set ones (three patches a clip, or
one), a teacher that tracks (KCF), the network's own backward tracking (cycle consistency), and true
boxes, those of the main object, which stand for GOT-10k's. The control is pre-set with the
trajectories permuted between the clips of a batch. Then weighted k-NN on held-out videos: the
motion of the main object, one of eight, which no single frame shows.

Reported: mean and 95 % interval (Student's t) over the seeds, paired with the untouched network,
raw pixels and the control; and the order of the sources beside the paper's. A file that ``--save``
named before is gone on with: what it holds is not run again.
"""

import argparse
import functools
import json
import platform
import subprocess
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

import torch
from drawn import (
    STORED,
    DrawnVideos,
    Videos,
    adamw,
    clips_in_order,
    drawn_videos,
    fit,
    interval,
    knn,
    print_columns,
    print_differences,
)
from learning import FRAMES, SCALES, SIDE, SIGMA, Permuted, encode, floors
from torch import Tensor, nn

# Table 1: the paper's data, and top-1 on UCF-101 and HMDB-51 after fine-tuning; None: no such row.
PAPER: dict[str, tuple[str, float, float] | None] = {
    "untouched": ("none", 65.0, 30.9),
    "pre-set x3": ("UCF-101", 83.9, 53.6),
    "pre-set x1": ("GOT-10k", 80.4, 49.4),
    "teacher": ("UCF-101", 70.6, 44.4),
    "cycle": ("UCF-101", 81.1, 53.3),
    "true boxes": ("GOT-10k", 77.0, 51.4),
    "permuted": None,
}
SOURCES = tuple(PAPER)
MOTIONS = 8
Numbers = dict[str, float]  # of one source and seed


class TrueBoxes(nn.Module):
    """Gives a batch the boxes of its videos' main objects, by the windows that cut its clips."""

    def __init__(self, augment: nn.Module, videos: Videos) -> None:
        super().__init__()
        self.augment = augment
        self.videos = videos

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``boxes``, (B, 1, T, 1, 4)."""
        from lightning_vssl.data.boxes import cut_boxes

        cut = []
        for index, times, window in zip(
            batch["index"].tolist(), batch["time"], batch["crop"], strict=True
        ):
            frames = (times[0] * self.videos.fps[index]).round().long()  # (T,)
            shares = self.videos.boxes[index][frames, :1].clone()  # (T, 1, 4)
            middle = (shares[:, 0, :2] + shares[:, 0, 2:]) / 2
            left = (middle.diff(dim=0).abs().amax(1) > 0.3).cumsum(0) > 0  # over the border
            shares[1:][left] = torch.nan
            cut.append(
                cut_boxes(shares[None].numpy(), window.numpy(), (STORED, STORED), (SIDE, SIDE))
            )
        return self.augment({**batch, "boxes": torch.stack([torch.from_numpy(c) for c in cut])})


def augmentation(source: str, videos: Videos) -> nn.Module:
    """What makes the clips and labels of a source."""
    from lightning_vssl.augment.label_sources import AnnotatedTracks, CycleTracks, TeacherTracks
    from lightning_vssl.augment.patches import CatchThePatch, PatchTracks

    patches = PatchTracks(scales=SCALES, trajectories=1 if source == "pre-set x1" else 3)
    tracks = {
        "teacher": lambda: TeacherTracks(scales=SCALES, threads=1),
        "cycle": lambda: CycleTracks(patches),
        "true boxes": AnnotatedTracks,
    }.get(source, lambda: patches)()
    augment: nn.Module = CatchThePatch(
        tracks, hue_probability=0, brightness_probability=0, contrast_probability=0
    )
    if source == "true boxes":
        return TrueBoxes(augment, videos)
    return Permuted(augment) if source == "permuted" else augment


def pretrain(options: argparse.Namespace, videos: Videos, source: str, seed: int) -> nn.Module:
    """Pretrains the small network and returns its backbone."""
    from lightning.pytorch import seed_everything

    from lightning_vssl.backbones import R3D18
    from lightning_vssl.data.clips import JitteredClip
    from lightning_vssl.data.windows import ScaleCrop
    from lightning_vssl.methods.ctp import CtP
    from lightning_vssl.optim import Cosine

    seed_everything(seed, verbose=False)
    method = CtP(
        backbone=R3D18(width=options.width, depth=(1, 1, 1, 1), last_stride=1),
        augment=augmentation(source, videos),
        optimizer=functools.partial(adamw, lr=options.lr),
        schedule=Cosine(warmup_epochs=0.5, final=0.2),
        frames=FRAMES,
        hidden_channels=128,
        sigma=SIGMA,
    ).to(memory_format=torch.channels_last_3d)
    if source != "untouched":
        clips, window = JitteredClip(FRAMES, strides=(1, 2)), ScaleCrop(SIDE, (48, 54, 60))
        data = DrawnVideos(videos, clips, window, options.batch_size, seed)
        fit(method, data, options.steps)
    return method.backbone


def grey(videos: Videos) -> Videos:
    """Without colour; the three channels share their memory."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    light = torch.stack([(clip * weights).sum(1).round().byte() for clip in videos.frames])
    return replace(videos, frames=light[:, :, None].expand(-1, -1, 3, -1, -1))


def one_seed(options: argparse.Namespace, seed: int, sources: list[str], results: Queue) -> None:
    """Puts (seed, source, numbers) for each source, and the floors with those of ``untouched``."""
    from lightning_vssl.data.clips import UniformClips
    from lightning_vssl.data.windows import WholeFrame

    held = options.videos // 4
    known = grey(drawn_videos(seed, "train", options.videos - held))
    asked = grey(drawn_videos(seed, "test", held))
    protocol = UniformClips(FRAMES, stride=3, clips=3), WholeFrame((SIDE, SIDE))
    gallery, queries = (
        clips_in_order(videos, *protocol, seed)["video"] for videos in (known, asked)
    )
    for source in sources:
        start = time.perf_counter()
        backbone = pretrain(options, known, source, seed)
        minutes = (time.perf_counter() - start) / 60
        features = encode(backbone, gallery), encode(backbone, queries)
        numbers = {"top1": knn(*features, known.motions, asked.motions), "minutes": minutes}
        if source == "untouched":
            level = floors(gallery)["raw pixels"], floors(queries)["raw pixels"]
            numbers["raw pixels"] = knn(*level, known.motions, asked.motions)
            shares = torch.bincount(known.motions, minlength=MOTIONS)[asked.motions].float()
            numbers["chance"] = 100 * float(shares.mean()) / len(known.motions)
        results.put((seed, source, numbers))


def worker(options: argparse.Namespace, todo: list[tuple[int, list[str]]], results: Queue) -> None:
    """Runs some seeds one after the other, on one thread; puts None, or what went wrong, last."""
    torch.set_num_threads(1)
    try:
        for seed, sources in todo:
            one_seed(options, seed, sources, results)
        results.put(None)
    except BaseException as error:  # told by the parent, whatever it is
        results.put(error)
        raise


def settings(options: argparse.Namespace) -> dict[str, object]:
    """What a number depends on, the seed apart."""
    names = ("steps", "videos", "batch_size", "width", "lr")
    return {name: getattr(options, name) for name in names}


def restored(options: argparse.Namespace) -> dict[str, dict[str, Numbers]]:
    """What a file holds: numbers by seed, then by source."""
    if options.save is None or not options.save.exists():
        return {}
    stored = json.loads(options.save.read_text())
    if stored["settings"] != settings(options):
        raise SystemExit(
            f"{options.save} was made with {stored['settings']}, and this run has "
            f"{settings(options)}: name another file"
        )
    return dict(stored["results"])


def store(options: argparse.Namespace, found: dict[str, dict[str, Numbers]]) -> None:
    """Writes all numbers, as a whole or not at all."""
    if options.save is not None:
        part = options.save.with_suffix(".part")
        part.write_text(json.dumps({"settings": settings(options), "results": found}, indent=1))
        part.replace(options.save)


def run(options: argparse.Namespace) -> dict[str, dict[str, Numbers]]:
    """Runs what is missing, some seeds side by side, and stores each number as it comes."""
    found = restored(options)
    missing = []
    for seed in range(options.first, options.first + options.seeds):
        lacking = [s for s in options.sources if s not in found.setdefault(str(seed), {})]
        if lacking:
            missing.append((seed, lacking))
    context = get_context("spawn")
    results: Queue = context.Queue()
    shares = [missing[job :: options.jobs] for job in range(options.jobs)]
    processes = [
        context.Process(target=worker, args=(options, share, results)) for share in shares if share
    ]
    for process in processes:
        process.start()
    running = len(processes)
    try:
        while running:
            try:
                told = results.get(timeout=60)
            except Empty:
                if any(process.exitcode for process in processes):
                    raise SystemExit("a process was killed: start again to go on") from None
                continue
            if isinstance(told, BaseException):
                raise told
            if told is None:
                running -= 1
                continue
            seed, source, numbers = told
            found[str(seed)][source] = numbers
            store(options, found)
            row = "  ".join(f"{name} {value:.1f}" for name, value in numbers.items())
            print(f"seed {seed}, {source}: {row}", flush=True)
    finally:
        for process in processes:
            process.terminate() if running else process.join()
    return found


def report(options: argparse.Namespace, found: dict[str, dict[str, Numbers]]) -> None:
    """Prints numbers, differences and the order."""
    import numpy as np

    rows = [found[str(seed)] for seed in range(options.first, options.first + options.seeds)]
    columns = {name: np.array([row[name]["top1"] for row in rows]) for name in options.sources}
    floor = ["untouched", "permuted"]
    if "untouched" in options.sources:
        for name in ("raw pixels", "chance"):
            columns[name] = np.array([row["untouched"][name] for row in rows])
        floor.insert(1, "raw pixels")
    print_columns(columns)
    taught = [name for name in options.sources if name not in floor]
    for base in [base for base in floor if base in columns]:
        print_differences(columns, [(name, base) for name in taught])
    if {"permuted", "untouched"} <= columns.keys():
        print_differences(columns, [("permuted", "untouched")])
    if "pre-set x3" in taught:
        print_differences(columns, [("pre-set x3", n) for n in taught if n != "pre-set x3"])
    print("\nin order, and the paper's (Table 1: data, fine-tuned on UCF-101, on HMDB-51)")
    ranked = [n for n in options.sources if PAPER[n] is not None]
    for name in sorted(ranked, key=lambda n: -columns[n].mean()):
        mean, half = interval(columns[name])
        data, ucf, hmdb = PAPER[name]
        minutes = float(np.mean([row[name]["minutes"] for row in rows]))
        cost = f"{minutes:4.1f} min a seed"
        print(f"{name:12s} {mean:6.1f} +- {half:4.1f}   {data:8s} {ucf:5.1f} {hmdb:5.1f}   {cost}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--videos", type=int, default=1000, help="a quarter of them held out")
    parser.add_argument("--jobs", type=int, default=2, help="seeds side by side, a thread each")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--save", type=Path, help="JSON file of all numbers; gone on with")
    options = parser.parse_args()
    found = run(options)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"\ncommit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}; "
        f"{options.steps} steps of {options.batch_size} clips, {options.videos} videos a world, "
        f"motion k-NN top-1 in %, mean and 95 % interval over {options.seeds} seeds"
    )
    report(options, found)


if __name__ == "__main__":
    main()
