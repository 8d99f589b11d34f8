"""How well masks are propagated: pretrained networks beside an untouched one and two floors.

    python benchmarks/propagation.py DAVIS --year 2017 --weights EXPORT [...] --films FOLDER

On the sequences of a folder in DAVIS's layout (all of ``--split``, or those named by ``--only``):
J, F and their mean for the first mask left where it is, for raw pixels (the 8 x 8 of each cell, and
their mean colour), for an untouched ResNet-18 (``--seeds`` of them), and for each export named.
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
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.timm_image import TimmNet
from lightning_vssl.backbones.weights import load_backbone
from lightning_vssl.callbacks.masks import draw_masks
from lightning_vssl.data.film import write_film
from lightning_vssl.data.masks import MaskedSequence
from lightning_vssl.datamodules.davis import DAVIS
from lightning_vssl.evaluation.segmentation import MaskPropagation
from lightning_vssl.metrics.segmentation import RegionAndContour
from lightning_vssl.nn.propagation import LabelPropagation

CELL = 8


class RawPixels(Backbone):
    """No network: the pixels of a cell, or their mean colour beside a constant."""

    def __init__(self, *, mean: bool) -> None:
        channels = 4 if mean else 3 * CELL**2
        super().__init__(
            channels={"cells": channels},
            strides={"cells": (1, CELL)},
            init_args={"mean": mean},
            dims=2,
        )
        self.mean = mean

    def stage(self, name: str, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / 8), ceil(W / 8)).

        Cosine has no brightness: with the constant, colours that are near are alike.
        """
        height, width = (-(-side // CELL) * CELL for side in x.shape[-2:])
        padded = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode="replicate")
        if not self.mean:
            return F.pixel_unshuffle(padded, CELL)
        colours = F.avg_pool2d(padded, CELL)
        return torch.cat([colours, torch.ones_like(colours[:, :1])], 1)


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, MaskPropagation | None]]:
    """Names, and what follows; None leaves the first mask where it is."""
    how = LabelPropagation(radius=options.radius, context=options.context)
    common = {"propagation": how, "size": options.size}
    yield "first mask kept", None
    for name, mean in (("raw pixels, mean colour", True), ("raw pixels, 8 x 8", False)):
        yield (
            name,
            MaskPropagation(backbone=RawPixels(mean=mean), stage="cells", restride=(), **common),
        )
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        yield (
            f"untouched ResNet-18, seed {seed}",
            MaskPropagation(backbone=TimmNet("resnet18"), **common),
        )
    for weights in options.weights:
        backbone = load_backbone(weights)
        stages = list(backbone.stages)
        place = stages.index(options.stage)
        dense = [
            stage
            for before, stage in pairwise(stages[: place + 1])
            if backbone.stage_strides[stage][1] > max(CELL, backbone.stage_strides[before][1])
        ]
        yield (
            weights,
            MaskPropagation(weights=weights, stage=options.stage, restride=tuple(dense), **common),
        )


def followed(module: MaskPropagation | None, sequence: MaskedSequence, first: Tensor) -> Tensor:
    """Ids of each frame, (T, H, W)."""
    if module is None:
        return first.expand(len(sequence), -1, -1)
    return torch.stack(list(module.follow(sequence.frames.frames(), first)))


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
    parser.add_argument("--size", type=int, default=480, help="short side of the frames")
    parser.add_argument("--radius", type=float, default=12.0)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--films", type=Path)
    options = parser.parse_args()

    only = tuple(options.only) if options.only else None
    data = DAVIS(options.root, year=options.year, split=options.split, only=only)
    sequences = data.sequences(options.split)
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
        print(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in cells) + f" | {spent:.2f} |")


if __name__ == "__main__":
    main()
