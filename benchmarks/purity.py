"""How many positive pairs show no common object? Random clips and crops against tracked ones.

    python benchmarks/purity.py --videos 200 --pairs 50

PreViTS (supplement 2) counts, with a supervised segmenter on VGG-Sound, that 27 % of the pairs that
random sampling makes show different things, and 7 % of its own. Here the built-in videos say it by
their true masks. Each is drawn on a torus larger than the frame, so that objects leave the frame
and come back, as the camera of a real video does not keep them; kept are videos whose main object
is in the frame often enough (``--present``), as VGG-Sound's videos are mostly about one object.

The rule: an object counts as seen in a frame of a clip if at least ``--share`` of those of its
pixels that are in the frame, and at least ``--pixels``, are inside the crop; and as seen in the
clip if that is so in at least half of its frames. A pair without a common object is one
in whose clips no object, the main one or another, is seen in both. Of these, "empty" are the pairs
in which a clip shows no object at all.

The ways of sampling:

- random: clips anywhere, random resized crops.
- in the tube, any crop: clips where the tube is (`TrackedPair`), random resized crops.
- in the tube, crops that cover: the same with `ObjectViews`, which is PreViTS's sampling.

The tubes: the true masks of the main object, where it has ``--pixels`` in the frame; those of the
unsupervised tracker; and, as a control, the tracker's tubes of another video, which know nothing of
this one: what they still gain comes from clips that are nearer in time and crops nearer to the
middle. A video without a tube is sampled at random and counts. Reported: mean over videos with its
95 % interval, and differences paired by video.
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
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from lightning_vssl.augment.objects import ObjectViews
from lightning_vssl.augment.views import VideoViews
from lightning_vssl.data.clips import TrackedPair
from lightning_vssl.data.synthetic_scenes import draw
from lightning_vssl.nn.keyed import sample_key
from lightning_vssl.tracking import MotionSaliency, Tracker

FPS = 25.0
SHARES = (0.1, 0.25, 0.5)  # of an object's pixels in the frame, beside --share
Masks = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """What a frame shows of a scene that goes on around it.

    Attributes:
        masks: Which object each pixel of the frame shows, (F, H, W); 1 the main one.
        areas: Pixels of each object in the frame, (F, objects).
        tracked: The tracker's masks, (F, H, W).
        iou: Mean IoU of these with the main object's, over the frames that show it.
    """

    masks: Masks
    areas: npt.NDArray[np.int64]
    tracked: Masks
    iou: float


def look(options: argparse.Namespace, index: int) -> Video | None:
    """Draws a video and tracks its object; None if the main object is seldom in the frame."""
    torch.set_num_threads(1)
    size = (options.torus, options.torus)
    drawn = draw(options.seed, index, "train", size=size, frames=options.frames, fps=FPS)
    edge = (options.torus - options.frame) // 2
    part = slice(edge, edge + options.frame)
    masks = np.ascontiguousarray(drawn.masks[:, part, part])
    names = np.arange(1, len(drawn.objects) + 1)
    areas = np.stack([(masks == name).sum((1, 2)) for name in names], axis=1)
    shown = areas[:, 0] >= options.pixels
    if shown.sum() < options.present * len(masks):
        return None
    frames = torch.from_numpy(drawn.frames[:, part, part].copy()).permute(0, 3, 1, 2)
    found = Tracker(MotionSaliency())(frames.contiguous()).masks.numpy()
    both, either = found & (masks == 1), found | (masks == 1)
    iou = both.sum((1, 2))[shown] / np.maximum(either.sum((1, 2))[shown], 1)
    return Video(masks, areas, found.astype(np.uint8), float(iou.mean()))


def pairs(
    options: argparse.Namespace, number: int, tube: Masks | None, coverage: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]:
    """Samples pairs of clips of one video.

    Args:
        options: The command line.
        number: The video's, from which every draw starts.
        tube: Where the object is, (F, H, W); None for clips anywhere.
        coverage: Least share of the object in a crop; 0 for random resized crops.

    Returns:
        Frames (P, 2, T) and crops (P, 2, 4), xyxy, of the pairs, and the share of them that was
        drawn in the tube.
    """
    clips = TrackedPair(options.clip, options.stride)
    times = np.arange(options.frames) / FPS
    there = None if tube is None else tube.any((1, 2))
    keys = [sample_key(options.seed, number, pair) for pair in range(options.pairs)]
    drawn = [
        clips.draw(times, there, np.random.default_rng(np.uint64(key & (1 << 64) - 1)))
        for key in keys
    ]
    frames = np.stack([indices for indices, _ in drawn])  # (P, 2, T)
    inside = torch.tensor([tracked for _, tracked in drawn])
    batch: dict[str, Tensor] = {
        "video": torch.zeros(*frames.shape, 3, 1, 1, dtype=torch.uint8),
        "crop": torch.tensor([0.0, 0, options.frame, options.frame]).expand(len(keys), 2, 4),
        "key": torch.tensor(keys),
    }
    if tube is not None:
        batch["mask"] = torch.from_numpy(tube[frames])
        batch["tracked"] = inside[:, None].expand(-1, 2)
    crops = ObjectViews(VideoViews(), coverage=coverage).draw(batch)["box"]
    return frames, crops.long().numpy(), float(inside.float().mean())


def seen(
    video: Video, frames: npt.NDArray[np.int64], crops: npt.NDArray[np.int64], least: int
) -> npt.NDArray[np.float64]:
    """How much of every object each clip shows in its frames.

    Args:
        video: The video.
        frames: (P, 2, T).
        crops: (P, 2, 4).
        least: Pixels under which an object is not seen.

    Returns:
        Median over the frames of the share of its pixels inside the crop, (P, 2, objects): at least
        this much of it is seen in at least half of the frames.
    """
    count = video.areas.shape[1]
    shares = np.empty((*frames.shape[:2], count))
    for pair, view in np.ndindex(frames.shape[:2]):
        x1, y1, x2, y2 = crops[pair, view]
        shown = video.masks[frames[pair, view], y1:y2, x1:x2]
        inside = np.stack([(shown == name + 1).sum((1, 2)) for name in range(count)], axis=1)
        whole = np.maximum(video.areas[frames[pair, view]], 1)
        share = np.where(inside >= least, inside / whole, 0.0)  # (T, objects)
        shares[pair, view] = np.sort(share, axis=0)[share.shape[0] // 2]
    return shares


def one_video(options: argparse.Namespace, job: tuple[int, Video, Masks]) -> dict[str, float]:
    """Measures all ways of sampling on one video."""
    number, video, foreign = job
    shown = video.areas[:, 0] >= options.pixels
    true = ((video.masks == 1) & shown[:, None, None]).astype(np.uint8)
    mu = options.coverage
    ways: dict[str, tuple[Masks | None, float]] = {
        "random": (None, 0.0),
        "true tube, any crop": (true, 0.0),
        "true tube, crops that cover": (true, mu),
        "tracker's tube, any crop": (video.tracked, 0.0),
        "tracker's tube, crops that cover": (video.tracked, mu),
        "another video's tube, crops that cover": (foreign, mu),
    }
    row = {"IoU of the tracker's tube": 100 * video.iou}
    for name, (tube, coverage) in ways.items():
        frames, crops, inside = pairs(options, number, tube, coverage)
        shares = seen(video, frames, crops, options.pixels)
        for share in sorted({*SHARES, options.share}):
            shown = shares >= share  # (P, 2, objects)
            common = shown.all(1).any(1)
            tag = "" if share == options.share else f" [{share:.0%} of an object]"
            row[name + tag] = 100 * float(1 - common.mean())
            if not tag:
                row[f"{name}, empty"] = 100 * float(1 - shown.any(2).all(1).mean())
        row[f"{name}, pairs drawn in the tube"] = 100 * inside
    return row


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean and half the 95 % interval (Student's t)."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error * stats.t.ppf(0.975, len(values) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=50, help="of each video")
    parser.add_argument("--frames", type=int, default=250, help="of a video: 10 s")
    parser.add_argument("--clip", type=int, default=16, help="frames of a clip")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--torus", type=int, default=160, help="side of the scene in pixels")
    parser.add_argument("--frame", type=int, default=112, help="side of the frame in pixels")
    parser.add_argument("--present", type=float, default=0.25, help="share of the video's frames")
    parser.add_argument("--share", type=float, default=0.25, help="of an object, to be seen")
    parser.add_argument("--pixels", type=int, default=64, help="of an object, to be seen")
    parser.add_argument("--coverage", type=float, default=0.3, help="mu of the crops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = parser.parse_args()

    start = time.perf_counter()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        drawn = list(pool.map(functools.partial(look, options), range(options.videos)))
        kept = [(number, video) for number, video in enumerate(drawn) if video is not None]
        print(f"{len(kept)} of {options.videos} videos show their main object often enough")
        others = [video.tracked for _, video in kept[1:] + kept[:1]]
        jobs = [(*job, other) for job, other in zip(kept, others, strict=True)]
        results = list(pool.map(functools.partial(one_video, options), jobs))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    minutes = (time.perf_counter() - start) / 60
    print(
        f"commit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}, ", end=""
    )
    print(
        f"{minutes:.1f} min\n{vars(options)}\nin percent; of pairs, those without a common object"
    )
    columns = {name: np.array([row[name] for row in results]) for name in results[0]}
    for name, values in columns.items():
        mean, half = interval(values)
        print(f"{name:62s} {mean:5.1f} +- {half:3.1f}")
    for name in ("true tube", "tracker's tube", "another video's tube"):
        mean, half = interval(columns[f"{name}, crops that cover"] - columns["random"])
        shown = "" if abs(mean) > half else "   (not shown: the interval touches 0)"
        print(f"{name + ', crops that cover - random':62s} {mean:+5.1f} +- {half:3.1f}{shown}")
    if options.out is not None:
        plain = {name: str(value) for name, value in vars(options).items()}
        options.out.write_text(json.dumps({"options": plain, "results": results}, indent=1))


if __name__ == "__main__":
    main()
