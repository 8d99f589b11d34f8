"""How well masks are propagated: pretrained networks beside an untouched one and two floors.

    python benchmarks/propagation.py DAVIS --year 2017 --weights EXPORT [...] --films FOLDER

On the sequences of a folder in DAVIS's layout (all of ``--split``, or those named by ``--only``):
J, F and their mean for the first mask left where it is, for raw pixels (the 8 x 8 of each cell, and
their mean colour), for untouched networks of timm (``--untouched``, ``--seeds`` of each), for each
export named, and for small networks that other benchmarks kept (``--kept``), which see grey frames.
VFS's procedure at ``--radius``; a row for each, by sequence and over all objects, in percent. With
``--films`` the masks are written as films and pictures. Without DAVIS, built-in sequences are drawn
for it: ``lightning-vssl demo``, layout davis.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from drawn import kept, plain_grey
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.timm_image import TimmNet
from lightning_vssl.backbones.weights import load_backbone
from lightning_vssl.callbacks.masks import draw_masks
from lightning_vssl.data.film import write_film
from lightning_vssl.data.masks import MaskedSequence
from lightning_vssl.data.sequences import FrameSequence
from lightning_vssl.datamodules.davis import DAVIS
from lightning_vssl.evaluation.segmentation import MaskPropagation
from lightning_vssl.metrics.segmentation import RegionAndContour
from lightning_vssl.nn.propagation import LabelPropagation


class RawPixels(Backbone):
    """No network: the pixels of a cell, or their mean colour beside a constant."""

    def __init__(self, *, cell: int, mean: bool) -> None:
        super().__init__(
            channels={"cells": 4 if mean else 3 * cell**2},
            strides={"cells": (1, cell)},
            init_args={"cell": cell, "mean": mean},
            dims=2,
        )
        self.cell, self.mean = cell, mean

    def stage(self, name: str, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / cell), ceil(W / cell)).

        Cosine has no brightness: with the constant, colours that are near are alike.
        """
        height, width = (-(-side // self.cell) * self.cell for side in x.shape[-2:])
        padded = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode="replicate")
        if not self.mean:
            return F.pixel_unshuffle(padded, self.cell)
        colours = F.avg_pool2d(padded, self.cell)
        return torch.cat([colours, torch.ones_like(colours[:, :1])], 1)


class Grey(nn.Module):
    """Frames as the small networks of the benchmarks know them."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes grey, normalised views of ``video``."""
        return {"views": plain_grey(batch["video"])}


def beyond(backbone: Backbone, last: str, stride: int) -> tuple[str, ...]:
    """Stages up to the last one used that would make the map's stride larger."""
    stages = list(backbone.stages)
    return tuple(
        stage
        for before, stage in pairwise(stages[: stages.index(last) + 1])
        if backbone.stage_strides[stage][1] > max(stride, backbone.stage_strides[before][1])
    )


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, MaskPropagation | None]]:
    """Names, and what follows; None leaves the first mask where it is."""
    how = LabelPropagation(radius=options.radius, context=options.context)
    common = {"propagation": how, "size": options.size}
    yield "first mask kept", None
    for name, mean in (("mean colour", True), ("all of a cell", False)):
        pixels = RawPixels(cell=options.stride, mean=mean)
        module = MaskPropagation(backbone=pixels, stage="cells", restride=(), **common)
        yield f"raw pixels, {name}", module
    for name in options.untouched:
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            backbone: Backbone = TimmNet(name)
            dense = beyond(backbone, "layer3", options.stride)
            yield (
                f"untouched {name}, seed {seed}",
                MaskPropagation(backbone=backbone, stage="layer3", restride=dense, **common),
            )
    common["stage"] = options.stage
    for weights in options.weights:
        dense = beyond(load_backbone(weights), options.stage, options.stride)
        yield weights, MaskPropagation(weights=weights, restride=dense, **common)
    for file in options.kept:
        name, _, seed = file.stem.rpartition("-")
        backbone = kept(file.parent, name, int(seed))
        dense = beyond(backbone, options.stage, options.stride)
        yield (
            f"{name}, seed {seed}",
            MaskPropagation(backbone=backbone, restride=dense, view=Grey(), **common),
        )


def followed(module: MaskPropagation | None, sequence: MaskedSequence, first: Tensor) -> Tensor:
    """Ids of each frame, (T, H, W)."""
    if module is None:
        return first.expand(len(sequence), -1, -1)
    return torch.stack(list(module.follow(sequence.frames.frames(), first)))


def first_frames(sequence: MaskedSequence, count: int | None) -> MaskedSequence:
    """A sequence cut after some frames."""
    frames = FrameSequence(sequence.name, sequence.frames.files[:count])
    return MaskedSequence(frames, sequence.files[:count], sequence.union)


def show(folder: Path, sequence: MaskedSequence, masks: Tensor) -> None:
    """A film, and six frames of it side by side."""
    write_film(folder / f"{sequence.name}.mp4", draw_masks(sequence.frames.frames(), masks), 24)
    chosen = torch.linspace(0, len(sequence) - 1, 6).round().long()
    drawn = draw_masks((sequence.frames.frame(int(t)) for t in chosen), masks[chosen])
    Image.fromarray(np.concatenate(list(drawn), 1)).save(folder / f"{sequence.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS's layout")
    parser.add_argument("--year", type=int, default=2017, choices=(2016, 2017))
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--only", nargs="+", help="names of sequences, instead of the split's")
    parser.add_argument("--weights", nargs="+", default=[], help="exports to follow with")
    parser.add_argument("--stage", default="layer3", help="stage of the exports")
    parser.add_argument("--stride", type=int, default=8, help="of the maps, at most")
    parser.add_argument("--untouched", nargs="*", default=["resnet18"], help="names of timm")
    parser.add_argument("--kept", nargs="+", type=Path, default=[], help="NAME-SEED.pt of drawn.py")
    parser.add_argument("--frames", type=int, help="of each sequence, the first ones; all")
    parser.add_argument("--size", type=int, default=480, help="short side of the frames")
    parser.add_argument("--radius", type=float, default=12.0)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--films", type=Path)
    options = parser.parse_args()

    only = tuple(options.only) if options.only else None
    data = DAVIS(options.root, year=options.year, split=options.split, only=only)
    sequences = [first_frames(one, options.frames) for one in data.sequences(options.split)]
    print(
        "| features | " + " | ".join(one.name for one in sequences) + " | J&F | J | F | s/frame |"
    )
    print("|" + "---|" * (len(sequences) + 5))
    for name, module in contenders(options):
        metric, begin = RegionAndContour(), time.process_time()
        for index, sequence in enumerate(sequences):
            truth = torch.stack(list(sequence.masks()))
            masks = followed(module, sequence, truth[0])
            metric.update(truth, masks, index)
            if options.films is not None:
                show(options.films / name.replace(" ", "_").replace("/", "_"), sequence, masks)
        spent = (time.process_time() - begin) / sum(len(one) for one in sequences)
        total = metric.compute()
        each = [np.mean([s.mean for s in (*one.region, *one.contour)]) for one in metric.sequences]
        cells = [*each, total["J&F"], total["J_mean"], total["F_mean"]]
        shown = " | ".join(f"{100 * v:.1f}" for v in cells)
        print(f"| {name} | {shown} | {spent:.2f} |", flush=True)


if __name__ == "__main__":
    main()
