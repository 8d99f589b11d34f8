"""Masks followed by features: the whole evaluation on drawn squares, encoders, options."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.timm_image import TimmNet
from lightning_vssl.callbacks.masks import SavedMasks
from lightning_vssl.data.masks import read_mask, write_mask
from lightning_vssl.datamodules.davis import DAVIS
from lightning_vssl.evaluation.segmentation import (
    MaskPropagation,
    first_labels,
    labels_to_mask,
)
from lightning_vssl.metrics.segmentation import RegionAndContour
from lightning_vssl.nn.propagation import LabelPropagation
from tests.evaluation.small import PLAIN, OneLayer, Tensors, trainer, videos


class Cells(Backbone):
    """The mean colour of squares of pixels, a patch encoder: sides are multiples of its patch."""

    def __init__(self, side=4, dims=2, frames=1):
        super().__init__(
            channels={"cells": 3},
            strides={"cells": (frames, side)},
            init_args={"side": side},
            pixels=PLAIN,
            dims=dims,
        )
        self.side, self.frames = side, frames
        self.seen = []
        self.unused = nn.Parameter(torch.zeros(1))

    def stage(self, name, x):
        assert x.shape[-1] % self.side == x.shape[-2] % self.side == 0, "not whole patches"
        self.seen.append(tuple(x.shape))
        if self.dims == 2:
            return F.avg_pool2d(x, self.side)
        return F.avg_pool3d(x, (1, self.side, self.side))[:, :, :: self.frames]


class Blank(nn.Module):
    """The same colour for every pixel."""

    def forward(self, batch):
        return {"views": torch.ones_like(batch["video"].transpose(2, 3)).float()}


COLOURS = torch.tensor([[60, 60, 60], [250, 10, 10], [10, 250, 10], [10, 10, 250]])


def squares(folder, name, objects, frames=8):
    """Squares of plain colours, 8 x 8, that go 4 pixels a frame, on grey, (24 K, 64) pixels."""
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p" / name).mkdir(parents=True)
    for t in range(frames):
        ids = np.zeros((24 * objects, 64), np.uint8)
        for k in range(objects):
            x = 8 + 4 * t if k % 2 == 0 else 48 - 4 * t
            ids[24 * k + 8 : 24 * k + 16, x : x + 8] = k + 1
        picture = Image.fromarray(COLOURS.numpy().astype(np.uint8)[ids])
        frame = folder / "JPEGImages/480p" / name / f"{t:05d}.jpg"
        picture.save(frame, "PNG")  # without loss, whatever it is called
        write_mask(folder / "Annotations/480p" / name / f"{t:05d}.png", ids)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("davis")
    for name, objects in (("one", 1), ("three", 3), ("two", 2)):
        squares(folder, name, objects)
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/val.txt").write_text("one\nthree\ntwo\n")
    return folder


def by_cells(dims=2, **options):
    how = LabelPropagation(context=2, radius=3, top=5, tile=4)
    settings = {"propagation": how, "stage": None, "restride": (), "size": None, **options}
    return MaskPropagation(backbone=Cells(dims=dims), **settings)


def test_colours_are_followed_to_the_pixel(tmp_path, root):
    """Cells that are wholly of one colour carry its label: all but exactly."""
    module = by_cells(paper={"J&F": 66.7})
    data = DAVIS(root)
    logged, *_ = trainer(tmp_path, callbacks=[SavedMasks()]).test(module, data, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"]["J&F"] == pytest.approx(logged["test/J&F"])
    assert logged["test/J_mean"] > 85
    assert logged["test/F_recall"] == 100
    assert result["first_mask_kept"]["J&F"] < 40
    assert result["objects"] == 6
    assert list(result["sequences"]) == ["one", "three", "two"]
    assert [len(one["J"]) for one in result["sequences"].values()] == [1, 3, 2]
    assert result["protocol"]["propagation"]["class"] == "LabelPropagation"
    assert result["protocol"]["propagation"]["radius"] == 3
    assert result["protocol"]["stride"] == 4
    metric = RegionAndContour()  # the files say the same
    for index, sequence in enumerate(data.sequences("val")):
        files = [tmp_path / "masks" / sequence.name / one.name for one in sequence.files]
        masks = torch.stack([torch.from_numpy(read_mask(file)) for file in files])
        metric.update(torch.stack(list(sequence.masks())), masks, index)
        assert torch.equal(masks[0], sequence.mask(0))
    assert result["results"] == pytest.approx({k: 100 * v for k, v in metric.compute().items()})


def test_features_that_say_nothing_do_not_follow(tmp_path, root):
    """The control: with one colour for all, J is not above that of the first mask kept."""
    module = by_cells(view=Blank())
    logged, *_ = trainer(tmp_path).test(module, DAVIS(root), verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert logged["test/J_mean"] < result["first_mask_kept"]["J_mean"] + 5


def test_clips_of_one_frame_equal_frames(root):
    sequence = DAVIS(root).sequences("val")[1]
    flat = list(by_cells().follow(sequence.frames.frames(), sequence.mask(0)))
    deep = list(by_cells(dims=3).follow(sequence.frames.frames(), sequence.mask(0)))
    assert all(torch.equal(a, b) for a, b in zip(flat, deep, strict=True))


@pytest.mark.parametrize("frames", [1, 2])
def test_middle_of_a_clip_is_taken(frames):
    """A network over time sees neighbours, the ends repeated, and tells of the frame itself."""
    module = by_cells(dims=3)
    module.backbone = Cells(dims=3, frames=frames)
    module.neighbours = 2
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = torch.stack(list(module.features(pixels)))
    flat = torch.stack(list(by_cells().features(pixels)))
    assert torch.allclose(found, flat)
    assert {shape[2] for shape in module.backbone.seen} == {5}


def test_patches_get_whole_frames_of_them(root):
    """Frames whose sides are no multiples are scaled to the nearest; masks keep their size."""
    module = by_cells(multiple=4, size=30)
    frames = torch.randint(0, 256, (3, 3, 25, 63), dtype=torch.uint8)
    mask = torch.zeros(25, 63, dtype=torch.uint8)
    mask[4:12, 8:20] = 1
    masks = list(module.follow(frames, mask))
    assert [tuple(one.shape) for one in masks] == [(25, 63)] * 3
    assert module.backbone.seen[0][-2:] == (32, 76)  # 30 x 75.6
    with pytest.raises(AssertionError, match="not whole patches"):
        list(by_cells(size=30).follow(frames, mask))


@pytest.mark.parametrize("size", [(224, 224), (90, 160)])
def test_transformer_of_patches(size):
    """A ViT of timm, at the size it was made for and at that of a frame."""
    module = MaskPropagation(
        backbone=TimmNet("vit_tiny_patch16_224"), stage=None, restride=(), size=None, multiple=16
    )
    frames = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[20:70, 50:150] = 1
    grid = {224: (14, 14), 90: (6, 10)}[size[0]]
    assert [one.shape for one in module.features(frames)] == [(*grid, 192)] * 2
    assert len(list(module.follow(frames, mask))) == 2


def test_stride_is_taken_out():
    torch.manual_seed(0)
    # Wide enough that no cell is 0 in all channels: such a cell has no direction.
    module = MaskPropagation(backbone=TimmNet("resnet18", width=16, depth=[1, 1, 1, 1]), size=64)
    frames = torch.randint(0, 256, (1, 3, 61, 107), dtype=torch.uint8)
    (found,) = module.features(frames)
    assert found.shape == (8, 14, 64)  # 64 x 112 at a stride of 8
    assert torch.allclose(found.norm(dim=-1), torch.ones(8, 14))
    assert module.protocol()["stride"] == 8
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_labels_of_the_first_mask():
    mask = torch.zeros(4, 8, dtype=torch.uint8)
    mask[:2, 2:5], mask[3, 7] = 2, 255
    near = first_labels(mask, (2, 4))
    assert near.shape == (2, 4, 3)
    assert near[0].argmax(-1).tolist() == [0, 2, 0, 0]  # rows 1, columns 1, 3, 5 and 7
    assert near.sum(-1).unique().tolist() == [1]
    soft = first_labels(mask, (2, 4), "bilinear")
    assert soft[0, :, 2].tolist() == [0, 1, 0.5, 0]
    assert soft.sum(-1).unique().tolist() == [1]
    assert (soft[..., 1] == 0).all()


def test_maps_are_stretched_by_object():
    """An object that is faint everywhere wins where it is strongest; a gap in the ids never."""
    labels = torch.zeros(1, 4, 3)
    labels[0, :, 0] = torch.tensor([0.9, 0.9, 0.8, 0.9])
    labels[0, :, 2] = 1 - labels[0, :, 0]
    assert labels_to_mask(labels, (1, 4), stretch=False).tolist() == [[0, 0, 0, 0]]
    assert labels_to_mask(labels, (1, 4)).tolist() == [[0, 0, 2, 0]]
    assert labels_to_mask(torch.zeros(2, 2, 3), (4, 4)).tolist() == torch.zeros(4, 4).tolist()


def test_refused(tmp_path, root):
    net = TimmNet("resnet18", width=4, depth=[1, 1, 1, 1])
    with pytest.raises(ValueError, match="stage must be one of stem, layer1"):
        MaskPropagation(backbone=net, stage="res4")
    with pytest.raises(ValueError, match="shrink must be nearest or bilinear"):
        MaskPropagation(backbone=net, restride=(), shrink="area")
    with pytest.raises(ValueError, match="size=480 and multiple=0"):
        MaskPropagation(backbone=net, restride=(), multiple=0)
    with pytest.raises(ValueError, match="neighbours must be 0 for an image network"):
        by_cells(neighbours=1)
    with pytest.raises(ValueError, match="trains nothing"):
        by_cells().on_fit_start()
    with pytest.raises(ValueError, match="use DAVIS"):
        trainer(tmp_path).test(by_cells(), Tensors(test=videos(1)), verbose=False)
    squares(tmp_path, "short", 1, frames=2)
    with pytest.raises(ValueError, match="short: 2 frames; three or more"):
        trainer(tmp_path).test(by_cells(), DAVIS(tmp_path, only=("short",)), verbose=False)
    with pytest.raises(ValueError, match="stage must be one of only"):
        MaskPropagation(backbone=OneLayer())
