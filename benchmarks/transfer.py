"""Do pretrained features help where it matters what is where? Boxes, tracks and masks.

    python benchmarks/contrastive.py --methods CVRL ConST-CL --save networks
    python benchmarks/transfer.py networks --names CVRL ConST-CL CtP

Small networks that other benchmarks kept are asked, with their weights frozen, on videos of the
same world that none of them has seen, flat and in grey (`drawn.py`), several objects in each:

- localisation: a RoI head (`ActionLocalisation`) trained on the true boxes of the training videos'
  middle frames; frame-mAP of the held-out ones over the six shapes and, for a video's main object,
  its eight motions. Control: a head on the first network named, trained on permuted labels.
- tracking: `SiamFC` without any head follows the main object; success AUC and precision at 20
  pixels in frames of 160 x 160.
- masks: `MaskPropagation` follows all objects of the first frame; J&F.

CtP is pretrained here if the folder lacks it, on the same videos with their textures: in flat ones
most patches that it pastes cannot be seen. Beside them the untouched network, and floors: raw
pixels in the same tracker and propagation, the first box and the first masks left where they are.
Reported: mean and 95 % interval (Student's t) over the seeds, paired.
"""

import argparse
import contextlib
import functools
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from drawn import (
    HALF,
    DrawnVideos,
    RawPixels,
    Videos,
    adamw,
    colours_apart,
    columns_of,
    drawn_videos,
    fit,
    keep,
    kept,
    print_columns,
    print_differences,
)
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
from lightning_vssl.backbones import R3D18
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.data.clips import JitteredClip
from lightning_vssl.data.synthetic_scenes import MOTIONS, OBJECTS, Borders, Split, draw
from lightning_vssl.data.windows import ScaleCrop
from lightning_vssl.evaluation.localization import ActionLocalisation
from lightning_vssl.evaluation.segmentation import MaskPropagation
from lightning_vssl.evaluation.tracking import SiamFC
from lightning_vssl.methods.ctp import CtP
from lightning_vssl.metrics.action_rows import ActionRows
from lightning_vssl.metrics.detection import DetectionTask
from lightning_vssl.metrics.segmentation import RegionAndContour
from lightning_vssl.metrics.tracking import one_pass
from lightning_vssl.nn.action_transformer import RoIHead
from lightning_vssl.nn.propagation import LabelPropagation
from lightning_vssl.optim import Cosine
from lightning_vssl.tracking.siamese import SiameseSearch

FRAMES, SIDE, SMALL = 36, 160, 48
ROOM = 8  # boxes of a clip
KINDS = ("mAP", "success", "precision", "J&F")
GREY = torch.tensor([0.299, 0.587, 0.114])


def in_grey(video: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) uint8 without their colour."""
    light = torch.einsum("...chw,c->...hw", video.float(), GREY).round().to(torch.uint8)
    return light.unsqueeze(-3).expand(*light.shape[:-2], 3, *light.shape[-2:]).contiguous()


def pretrain_ctp(options: argparse.Namespace, videos: Videos, seed: int, steps: int) -> Backbone:
    """CtP on videos in grey, its targets as in `learning.py`."""
    seed_everything(seed, verbose=False)
    method = CtP(
        backbone=R3D18(width=8, depth=(1, 1, 1, 1), last_stride=1, pixels=HALF),
        augment=CatchThePatch(
            PatchTracks(scales=(12.0, 16.0, 20.0, 24.0)),
            hue_probability=0,
            brightness_probability=0,
            contrast_probability=0,
            mean=HALF[0],
            std=HALF[1],
        ),
        optimizer=functools.partial(adamw, lr=options.lr),
        schedule=Cosine(warmup_epochs=0.5, final=0.2),
        frames=8,
        hidden_channels=128,
        sigma=(3.0, 3.0, 0.15, 0.15),
    ).to(memory_format=torch.channels_last_3d)
    if steps:
        grey = torch.stack([in_grey(one) for one in videos.frames])
        data = DrawnVideos(
            replace(videos, frames=grey),
            JitteredClip(8, strides=(1, 2)),
            ScaleCrop(48, (48, 54, 60)),
            24,
            seed,
        )
        fit(method, data, steps)
    return method.backbone.eval()


@dataclass(frozen=True)
class Scene:
    """One video, flat and in grey.

    Attributes:
        frames: (T, 3, H, W) uint8.
        masks: (T, H, W) uint8; 1 is the main object.
        boxes: (T, n, 4) float64, xyxy in pixels.
        cover: (T, n), the share of each object that is seen.
        kinds: Each object's shape.
        motion: The main object's motion.
    """

    frames: Tensor
    masks: Tensor
    boxes: Tensor
    cover: Tensor
    kinds: tuple[int, ...]
    motion: int


def scene(seed: int, index: int, split: Split, side: int, borders: Borders) -> Scene:
    """Draws a video and paints it."""
    drawn = draw(seed, index, split, size=(side, side), frames=FRAMES, borders=borders)
    paint = colours_apart(seed, index, split, len(drawn.objects) + 1)
    frames = torch.from_numpy(paint[drawn.masks]).permute(0, 3, 1, 2)
    return Scene(
        in_grey(frames),
        torch.from_numpy(drawn.masks),
        torch.from_numpy(drawn.boxes).double(),
        torch.from_numpy(drawn.cover),
        drawn.objects,
        drawn.motion,
    )


class Boxes(LightningDataModule):
    """Clips around the middle frame of scenes, with the boxes of the objects seen in it."""

    def __init__(
        self, train: list[Scene], test: list[Scene], seed: int, *, permuted: bool = False
    ) -> None:
        super().__init__()
        self.classes = (*OBJECTS, *MOTIONS)
        self.seed = seed
        self.train, self.test = _samples(train), _samples(test)
        if permuted:
            rows = torch.cat([one["box_labels"][0, one["box_index"] >= 0] for one in self.train])
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
            for one in self.train:
                there = one["box_index"] >= 0
                one["box_labels"][0, there] = rows[one["box_index"][there]]

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training clips, shuffled."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, 32, shuffle=True, drop_last=True, generator=generator)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Held-out clips."""
        return DataLoader(self.test, 64)

    def task(self, split: str) -> DetectionTask:
        """The held-out boxes and what they are."""
        boxes, truth = [], []
        for i, one in enumerate(self.test):
            for n in (one["box_index"] >= 0).nonzero()[:, 0].tolist():
                place = one["boxes"][0, 0, n].tolist()
                boxes.append((i, place, 0))
                seen = one["box_labels"][0, n].nonzero()[:, 0].tolist()
                truth += [(i, place, action + 1) for action in seen]
        return DetectionTask(
            truth=_rows(truth), boxes=_rows(boxes), actions=tuple(range(1, len(self.classes) + 1))
        )


def _samples(scenes: list[Scene]) -> list[dict[str, Tensor]]:
    """One clip of each scene: four frames, the third in the middle of the video."""
    middle, row, samples = FRAMES // 2, 0, []
    for i, one in enumerate(scenes):
        boxes = torch.full((1, 1, ROOM, 4), torch.nan)
        labels = torch.zeros(1, ROOM, len(OBJECTS) + len(MOTIONS))
        index = torch.full((ROOM,), -1)
        seen = (one.cover[middle] > 0.3).nonzero()[:, 0].tolist()[:ROOM]
        for n, which in enumerate(seen):
            boxes[0, 0, n] = one.boxes[middle, which].clamp(0, SMALL)
            labels[0, n, one.kinds[which]] = 1
            if which == 0:
                labels[0, n, len(OBJECTS) + one.motion] = 1
            index[n], row = row, row + 1
        samples.append(
            {
                "video": one.frames[middle - 6 : middle + 4 : 3][None],
                "boxes": boxes,
                "box_labels": labels,
                "box_index": index,
                "box_scores": (index >= 0).float(),
                "index": torch.tensor(i),
            }
        )
    return samples


def _rows(cells: list[tuple[int, list[float], int]]) -> ActionRows:
    video, box, action = zip(*cells, strict=True)
    return ActionRows(
        videos=tuple(f"video{i}" for i in range(max(video) + 1)),
        video=np.array(video, np.int64),
        second=np.full(len(cells), 902.0),
        box=np.array(box, np.float64) / SMALL,
        action=np.array(action, np.int64),
        score=np.ones(len(cells)),
        source="memory",
        line=np.arange(1, len(cells) + 1),
    )


def localisation(backbone: Backbone, data: Boxes, seed: int) -> float:
    """Frame-mAP of a head on the frozen network, in percent."""
    seed_everything(seed, verbose=False)
    method = ActionLocalisation(
        optimizer=functools.partial(adamw, lr=0.01),
        backbone=backbone,
        head=functools.partial(RoIHead, bins=3, dropout=0.0),
        frozen=True,
        class_loss="mean",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            max_epochs=40,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(method, data)
        with contextlib.redirect_stdout(None):
            found = trainer.test(method, data, verbose=False)
    return float(found[0]["test/mAP"])


class _Film:
    """Frames in memory, as `SiamFC.track` asks for them."""

    def __init__(self, frames: Tensor) -> None:
        self._frames = frames

    def frames(self) -> Iterator[Tensor]:
        return iter(self._frames)


@dataclass(frozen=True)
class _Target:
    """A scene's main object, as `SiamFC.track` asks for it."""

    name: str
    frames: _Film
    boxes: Tensor


def tracking(backbone: Backbone | None, scenes: list[Scene]) -> tuple[float, float]:
    """Success AUC and precision, in percent; None for the box that stays where it is."""
    method = None
    if backbone is not None:
        method = SiamFC(
            optimizer=adamw,
            backbone=backbone,
            frozen=True,
            neighbours=2 if backbone.dims == 3 else 0,
            search=SiameseSearch(exemplar=48, search=96, response=112),
        ).eval()
    found = []
    for number, one in enumerate(scenes):
        truth = one.boxes[:, 0]
        predicted = truth[:1].expand_as(truth)
        if method is not None:
            target = _Target(f"video {number}", _Film(one.frames), truth)
            predicted, _ = method.track(target)  # type: ignore[arg-type]
        found.append(one_pass(predicted, truth).scores())
    return tuple(100 * float(np.mean([s[key] for s in found])) for key in ("success", "precision"))


def masks(backbone: Backbone | None, scenes: list[Scene]) -> float:
    """J&F in percent; None for masks that stay where they are."""
    metric, method = RegionAndContour(), None
    if backbone is not None:
        method = MaskPropagation(
            backbone=backbone,
            stage=None,
            restride=(),
            size=None,
            neighbours=backbone.stride[0] if backbone.dims == 3 else 0,
            propagation=LabelPropagation(context=7, radius=4),
        )
    for number, one in enumerate(scenes):
        first = one.masks[0]
        if method is None:
            made = first.expand_as(one.masks)
        else:
            made = torch.stack(list(method.follow(one.frames, first)))
        shown = torch.where(torch.isin(one.masks, first.unique()), one.masks, 0)
        metric.update(shown, made, number)
    return 100 * metric.compute()["J&F"]


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Everything of one world."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    if "CtP" in options.names and not (options.networks / f"CtP-{seed}.pt").is_file():
        videos = drawn_videos(seed, "train", 750)
        untouched = pretrain_ctp(options, videos, seed, 0)
        keep(options.networks, "untouched R3D-18", seed, untouched)
        trained = pretrain_ctp(options, videos, seed, options.ctp_steps)
        keep(options.networks, "CtP", seed, trained)
    names = ["untouched", *options.names]
    names += ["untouched R3D-18"] if "CtP" in options.names else []
    known = [scene(seed, n, "train", SMALL, "wrap") for n in range(options.videos)]
    asked = [scene(seed, n, "test", SMALL, "wrap") for n in range(options.videos // 3)]
    films = [scene(seed, n, "test", SIDE, "bounce") for n in range(options.films)]
    boxes = Boxes(known, asked, seed)
    found: dict[str, float] = {}

    def follow(name: str, backbone: Backbone | None) -> None:
        found[f"success, {name}"], found[f"precision, {name}"] = tracking(backbone, films)
        found[f"J&F, {name}"] = masks(backbone, films)

    for name in names:
        found[f"mAP, {name}"] = localisation(kept(options.networks, name, seed), boxes, seed)
        follow(name, kept(options.networks, name, seed))
        told = "  ".join(f"{kind} {found[f'{kind}, {name}']:.1f}" for kind in KINDS)
        print(f"seed {seed}: {name}: {told}", flush=True)
    control = Boxes(known, asked, seed, permuted=True)
    network = kept(options.networks, options.names[0], seed)
    found["mAP, permuted labels"] = localisation(network, control, seed)
    follow("raw pixels", RawPixels())
    follow("left in place", None)
    minutes = (time.perf_counter() - start) / 60
    row = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
    print(f"seed {seed} ({minutes:.1f} min): {row}", flush=True)
    return found


def main() -> None:
    """Runs all seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", type=Path, help="folder that another benchmark kept them in")
    parser.add_argument("--names", nargs="+", default=["CVRL", "ConST-CL", "CtP"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--videos", type=int, default=300, help="to train the head on")
    parser.add_argument("--films", type=int, default=20, help="to follow objects in")
    parser.add_argument("--ctp-steps", type=int, default=1200)
    parser.add_argument("--lr", type=float, default=5e-4, help="CtP's")
    parser.add_argument("--jobs", type=int, default=2)
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
    pairs = []
    for name in options.names:
        base = "untouched R3D-18" if name == "CtP" else "untouched"
        pairs += [(f"{kind}, {name}", f"{kind}, {base}") for kind in KINDS]
        pairs += [(f"{kind}, {name}", f"{kind}, raw pixels") for kind in KINDS[1:]]
        pairs += [(f"{kind}, {name}", f"{kind}, left in place") for kind in KINDS[1:]]
    pairs.append((f"mAP, {options.names[0]}", "mAP, permuted labels"))
    pairs.append(("mAP, permuted labels", "mAP, untouched"))
    print_differences(columns, pairs)
    if options.out is not None:
        options.out.write_text(json.dumps({"options": str(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
