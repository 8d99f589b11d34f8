"""Do labels teach motion? The supervised baseline on the built-in videos, against controls.

    python benchmarks/supervised.py --seeds 5 --save supervised.json
    python benchmarks/transfer.py networks --names Supervised   # after --networks networks

For each seed: videos of a world of their own, drawn once, flat and in grey, with nothing but the
main object (`drawn.py`; textured ones, 750 of them, are learned by heart); a small R3D-18 trained
by `Supervised` to tell the object's motion, one of eight, which no single frame shows; and the same
network trained with the labels permuted between the training videos (the control, which must stay
at chance). Asked on held-out videos, which share no texture, object or background with those of
training: the classifier itself (mean logits of three clips), and weighted k-NN in the features that
`export` would write, against the untouched network, raw pixels, and the trained network on frames
in shuffled order. Reported: mean and 95 % interval (Student's t) over the seeds, paired.

``--save`` keeps every seed's numbers as soon as it is done; a seed that the file has is not run
again. ``--jobs`` runs that many seeds side by side, one thread each.
"""

import argparse
import functools
import json
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from drawn import (
    HALF,
    DrawnVideos,
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
from lightning.pytorch import seed_everything
from torch import Tensor

from lightning_vssl.backbones import R3D18
from lightning_vssl.data.clips import JitteredClip, UniformClips
from lightning_vssl.data.synthetic_scenes import MOTIONS
from lightning_vssl.data.windows import ScaleCrop, WholeFrame
from lightning_vssl.evaluation.result import write_json
from lightning_vssl.methods.supervised import Supervised
from lightning_vssl.optim import Cosine

FRAMES, SIDE = 8, 48


def train(options: argparse.Namespace, videos: Videos, seed: int, steps: int) -> Supervised:
    """The small network, trained to tell the motions that ``videos`` name."""
    seed_everything(seed, verbose=False)
    method = Supervised(
        backbone=R3D18(width=8, depth=(1, 1, 1, 1), pixels=HALF),
        augment=grey_views(colour=0.4, blur=0.0),  # no flips: a mirrored clip moves otherwise
        optimizer=functools.partial(adamw, lr=options.lr),
        schedule=Cosine(warmup_epochs=2.0),
        num_classes=len(MOTIONS),
        dropout=0.0,
    ).to(memory_format=torch.channels_last_3d)
    if steps == 0:
        return method.eval()
    labelled = replace(videos, objects=videos.motions)  # DrawnVideos labels a clip by its object
    data = DrawnVideos(
        labelled, JitteredClip(FRAMES, strides=(2, 3, 4)), ScaleCrop(SIDE, (48, 54, 60)), 24, seed
    )
    fit(method, data, steps)
    return method


@torch.no_grad()
def pooled(method: Supervised, views: Tensor, shuffled: bool = False) -> Tensor:
    """Features of clips (N, V, 3, T, H, W), (N, V, C)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for part in views.split(16):
        order = torch.randperm(part.shape[3], generator=generator) if shuffled else slice(None)
        found.append(method.pooled(part[:, :, :, order]))
    return torch.cat(found)


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Everything of one world, in percent."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    known, asked = (
        drawn_videos(seed, split, count, flat=True, main_only=True)
        for split, count in (("train", options.videos), ("test", options.videos // 3))
    )
    places = UniformClips(FRAMES, stride=3, clips=3), WholeFrame((SIDE, SIDE)), seed
    seen = {"known": clips_in_order(known, *places), "asked": clips_in_order(asked, *places)}
    views = {name: plain_grey(batch["video"]) for name, batch in seen.items()}
    labels, truth = known.motions, asked.motions
    found: dict[str, float] = {}

    def neighbours(name: str, method: Supervised, shuffled: bool = False) -> None:
        features = [pooled(method, views[split], shuffled).mean(1) for split in ("known", "asked")]
        found[f"k-NN, {name}"] = knn(*features, labels, truth)

    def classified(name: str, method: Supervised, shuffled: bool = False) -> None:
        with torch.no_grad():
            guess = method.head(pooled(method, views["asked"], shuffled)).mean(1).argmax(-1)
        found[f"classifier, {name}"] = 100 * float((guess == truth).float().mean())

    trained = train(options, known, seed, options.steps)
    classified("supervised", trained)
    classified("supervised, frames shuffled", trained, shuffled=True)
    neighbours("supervised", trained)
    neighbours("supervised, frames shuffled", trained, shuffled=True)
    keep(options.networks, "Supervised", seed, trained.backbone)
    permutation = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    permuted = train(options, replace(known, motions=labels[permutation]), seed, options.steps)
    classified("permuted labels", permuted)
    neighbours("permuted labels", permuted)
    untouched = train(options, known, seed, 0)
    keep(options.networks, "untouched", seed, untouched.backbone)
    neighbours("untouched", untouched)
    small = [floors(batch["video"]) for batch in seen.values()]
    for name in small[0]:
        found[f"k-NN, {name}"] = knn(small[0][name], small[1][name], labels, truth)
    counts = torch.bincount(labels, minlength=len(MOTIONS)).double()
    found["chance"] = 100 * float((counts / counts.sum())[truth].mean())
    found["commonest class"] = 100 * float((truth == counts.argmax()).double().mean())
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def settings(options: argparse.Namespace) -> dict[str, object]:
    """What a seed's numbers depend on."""
    return {name: getattr(options, name) for name in ("steps", "videos", "lr")}


def main() -> None:
    """Runs the seeds that are missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=600, help="of 24 clips")
    parser.add_argument(
        "--videos", type=int, default=750, help="to train on; a third as many held out"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--save", type=Path, help="JSON file of every seed's numbers; goes on from it"
    )
    parser.add_argument("--networks", type=Path, help="folder to keep the networks in")
    options = parser.parse_args()

    done: dict[str, dict[str, float]] = {}
    if options.save is not None and options.save.is_file():
        saved = json.loads(options.save.read_text())
        if saved["settings"] != settings(options):
            parser.error(f"{options.save} holds other settings, {saved['settings']}: name another")
        done = saved["seeds"]
    seeds = range(options.first, options.first + options.seeds)
    missing = [seed for seed in seeds if str(seed) not in done]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(one_seed, options, seed): seed for seed in missing}
        for future in as_completed(running):
            done[str(running[future])] = future.result()
            if options.save is not None:
                write_json(options.save, {"settings": settings(options), "seeds": done})
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"\ncommit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}; "
        f"{settings(options)}; motion, held-out videos, top-1 in %, mean and 95 % interval over "
        f"{options.seeds} seeds"
    )
    columns = columns_of([done[str(seed)] for seed in seeds])
    print_columns(columns)
    classifier, neighbours = "classifier, supervised", "k-NN, supervised"
    print_differences(
        columns,
        [
            (classifier, "chance"),
            (classifier, "commonest class"),
            (classifier, "classifier, permuted labels"),
            (classifier, "classifier, supervised, frames shuffled"),
            ("classifier, permuted labels", "chance"),
            (neighbours, "k-NN, untouched"),
            (neighbours, "k-NN, raw pixels"),
            (neighbours, "k-NN, permuted labels"),
        ],
    )


if __name__ == "__main__":
    main()
