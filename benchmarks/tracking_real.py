"""Follows the first box of real sequences: trained networks beside floors.

    python benchmarks/tracking_real.py <Crossing> <Couple> <bag> --networks runs/otb/.../last.ckpt

A folder is one of OTB (``img`` and ``groundtruth_rect*.txt``) or of VOT (images, beside them or in
``color``, and ``groundtruth.txt`` of polygons, whose upright box is taken). Rows, on the same
sequences with the same search:

- held: the first box stays where it is.
- raw pixels: every 8 x 8 patch in grey, without its mean, of length 1, as the map.
- untouched: a new network, drawn from the seed, of each kind that is given (or of --network).
- each of --networks: an export, a file that another benchmark kept (.pt), or a checkpoint of
  `SiamFC` (.ckpt), which says itself which stage and strides it was trained with.

Printed: success and precision of each sequence, in percent, and frames a second. Written to --out:
the numbers as JSON, and of each sequence a picture, a row for each tracker: the true box is green,
the tracked one pink.
"""

import argparse
import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drawn import RawPixels, adamw
from lightning.pytorch import seed_everything
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_vssl.backbones import TimmNet
from lightning_vssl.backbones.weights import build_backbone, load_backbone
from lightning_vssl.callbacks.tracked_boxes import draw_boxes
from lightning_vssl.data.sequences import FrameSequence, TrackedSequence
from lightning_vssl.data.track_files import check_first, read_polygons
from lightning_vssl.datamodules.otb import OTB
from lightning_vssl.evaluation.tracking import SiamFC
from lightning_vssl.metrics.tracking import one_pass
from lightning_vssl.tracking.siamese import SiameseSearch

ENDINGS = {".jpg", ".jpeg", ".png"}
KEPT = ("stage", "restride", "first", "neighbours")  # of a checkpoint's own settings


@dataclass(frozen=True)
class Network:
    """A network, and how it is to be tracked with."""

    name: str
    config: dict[str, object]
    weights: dict[str, Tensor]
    settings: dict[str, object]

    @property
    def kind(self) -> str:
        """What untouched networks it compares with."""
        return json.dumps([self.config, self.settings], sort_keys=True)


def sequences_of(folder: Path) -> list[TrackedSequence]:
    """The targets of a folder."""
    if (folder / "groundtruth.txt").is_file():
        images = folder / "color" if (folder / "color").is_dir() else folder
        files = sorted(file for file in images.iterdir() if file.suffix.lower() in ENDINGS)
        frames = FrameSequence(folder.name, files)
        boxes = read_polygons(folder / "groundtruth.txt", first=1)
        check_first(boxes, frames, folder / "groundtruth.txt")
        return [TrackedSequence(frames, boxes)]
    folder = folder.resolve()
    data = OTB(folder.parent, version="found")
    here = [name for name in data.names("test") if data.folder(name) == folder]
    found = [data.read("test", name) for name in here]
    if not found:
        raise SystemExit(f"{folder} holds neither groundtruth.txt nor groundtruth_rect*.txt")
    return found


def stored(file: Path, settings: dict[str, object]) -> Network:
    """A trained network from its file."""
    name = file.parent.parent.parent.name if file.suffix == ".ckpt" else file.stem
    if file.suffix == ".pt":
        content = torch.load(file, weights_only=True)
        weights = {f"backbone.{key}": value for key, value in content["state"].items()}
        return Network(name, content["config"], weights, settings)
    if file.suffix == ".ckpt":
        content = torch.load(file, weights_only=True, map_location="cpu")
        told = content["settings"]  # of the command line, each as JSON
        own = {key: json.loads(told[f"model.init_args.{key}"]) for key in KEPT}
        return Network(name, content["export"]["backbone"], content["state_dict"], settings | own)
    backbone = load_backbone(file)
    weights = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    return Network(file.name, backbone.config, weights, settings)


def tracker(network: Network, search: SiameseSearch, *, trained: bool, seed: int) -> SiamFC:
    """A tracker on the network, with its weights or new ones."""
    seed_everything(seed, verbose=False)
    backbone = build_backbone(network.config)
    head = network.weights.get("head.exemplar.weight")
    settings = dict(network.settings)
    settings.setdefault("neighbours", 2 if backbone.dims == 3 else 0)
    method = SiamFC(
        optimizer=adamw,
        backbone=backbone,
        frozen=True,
        channels=None if head is None else len(head),
        search=search,
        **settings,
    ).eval()
    if trained:
        told = method.load_state_dict(network.weights, strict=False)
        lacking = [key for key in told.missing_keys if key.startswith(("backbone.", "head."))]
        if lacking:
            raise SystemExit(f"{network.name} lacks {len(lacking)} weights, first {lacking[0]}")
    return method


def held(sequence: TrackedSequence) -> tuple[Tensor, list[float]]:
    """The first box, everywhere."""
    return sequence.boxes[:1].expand(len(sequence), 4), []


def row_of(name: str, sequence: TrackedSequence, boxes: Tensor, columns: int) -> np.ndarray:
    """Frames side by side, the tracker's name on the first."""
    chosen = torch.linspace(0, len(sequence) - 1, columns).round().long()
    numbers = chosen.tolist()
    frames = (sequence.frames.frame(number) for number in numbers)
    drawn = draw_boxes(frames, sequence.boxes[chosen], boxes[chosen], numbers)
    row = Image.fromarray(np.concatenate(list(drawn), axis=1))
    ImageDraw.Draw(row).text((40, 3), name, fill=(255, 255, 0), stroke_width=1, stroke_fill=0)
    return np.asarray(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--networks", type=Path, nargs="*", default=[])
    parser.add_argument("--network", default="resnet18", help="timm's, where none is given")
    parser.add_argument("--stage", help="whose map is used; by default the last stage's")
    parser.add_argument("--restride", nargs="*", default=[], help="stages without their stride")
    parser.add_argument("--exemplar", type=int, default=127)
    parser.add_argument("--search", type=int, default=255)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tracking_real"))
    options = parser.parse_args()

    search = SiameseSearch(exemplar=options.exemplar, search=options.search)
    settings = {"stage": options.stage, "restride": options.restride}
    networks = [stored(file, settings) for file in options.networks]
    new = networks or [Network("new", TimmNet(options.network).config, {}, settings)]
    raw = SiamFC(optimizer=adamw, backbone=RawPixels(), frozen=True, search=search).eval()
    make = functools.partial(tracker, search=search, seed=options.seed)
    trackers = {"held": held, "raw pixels": raw.track}
    for number, network in enumerate({network.kind: network for network in new}.values(), 1):
        name = "untouched" if number == 1 else f"untouched {number}"
        trackers[name] = make(network, trained=False).track
    for network in networks:
        trackers[network.name] = make(network, trained=True).track

    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'success / precision, %':24s}" + "".join(f"{name:>22s}" for name in trackers))
    for sequence in (one for folder in options.folders for one in sequences_of(folder)):
        rows, scores = [], {}
        for name, follow in trackers.items():
            boxes, seconds = follow(sequence)
            found = one_pass(boxes, sequence.boxes).scores()
            scores[name] = {key: 100 * found[key] for key in ("success", "precision")}
            if seconds:
                scores[name]["frames per second"] = len(sequence) / sum(seconds)
            rows.append(row_of(name, sequence, boxes, options.columns))
        options.out.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(options.out / f"{sequence.name}.png")
        results[sequence.name] = scores
        cells = (f"{s['success']:14.1f} / {s['precision']:5.1f}" for s in scores.values())
        print(f"{sequence.name:18s}{len(sequence):6d}" + "".join(cells), flush=True)
    for key in ("success", "precision", "frames per second"):
        means = {
            name: [scores[name][key] for scores in results.values() if key in scores[name]]
            for name in trackers
        }
        shown = (f"{np.mean(v):22.1f}" if v else f"{'':22s}" for v in means.values())
        print(f"{'mean ' + key:24s}" + "".join(shown))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"commit {commit or 'unknown'}, torch {torch.__version__}, seed {options.seed}")
    (options.out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
