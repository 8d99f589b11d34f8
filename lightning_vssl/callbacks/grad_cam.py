"""Where a network looks, as pictures: Grad-CAM and guided Grad-CAM.

`GradCAMs` shows it for any method (CtP, Figure 5, without classes), `TwoObjects` for two objects in
one query, each asked for by its own key (PreViTS, Figure 6), `ObjectTracks` for an object that is
followed through its video from one mask (PreViTS, Figure 4), and `ClassCAMs` for a network that was
fine-tuned (PreViTS, Figure 5; CtP, Figure 5).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.callbacks.pictures import _Picture, heat_over
from lightning_vssl.nn.grad_cam import (
    explain,
    explain_layer,
    guided_grad_cam,
    guided_gradients,
    key_foreground,
    likeness_cam,
    resize_cam,
)
from lightning_vssl.nn.recompute import norms_by_batch
from lightning_vssl.tracking.segmenter import read_labels

Asked = Literal["predicted", "label"]

_OUTLINE = (60, 220, 90)
_VOID = 255


@runtime_checkable
class HasKeys(Protocol):
    """A method that compares projections of queries with codes of a key network."""

    heads: tuple[str, ...]
    projector: nn.Module

    def encode_keys(self, views: Tensor, key: Tensor, stream: int) -> tuple[Tensor, ...]:
        """Unit vectors of each of ``heads``, (B, D), of one view (B, 3, T, H, W)."""
        ...


@runtime_checkable
class Classifies(Protocol):
    """An evaluation with one or more classifiers on a backbone."""

    backbone: Backbone
    frozen: bool
    selected: Tensor

    def represent(self, views: Tensor) -> Tensor:
        """What the classifiers see of views (B, V, 3, T, H, W)."""
        ...

    def logits(self, seen: Tensor) -> Tensor:
        """Logits of every classifier, (G, B * V, C)."""
        ...


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[torch.device]:
    """Eval mode for a while, and the device; every part goes back to the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield next(module.parameters()).device
    finally:
        for part, training in modes:
            part.training = training


def own_score(pooled: Tensor) -> Tensor:
    """Half the squared length of features (B, C): a score for networks without classes, (B,).

    Its Grad-CAM weighs every channel by how strongly it is in the feature: what is bright is what
    the feature was made of.
    """
    return pooled.square().sum(1) / 2


def backbone_cams(backbone: Backbone, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM and guided Grad-CAM of clips for their own features; see `own_score`.

    Args:
        backbone: In eval mode. An image network looks at every frame by itself.
        clips: Normalised, (B, 3, T, H, W), on its device.

    Returns:
        Grad-CAM at the size of the pixels, (B, T, H, W), not negative, and guided Grad-CAM,
        (B, 3, T, H, W).
    """
    cams, products = [], []
    for clip in clips:  # one at a time: at the end of a training run the memory is full
        pixels = clip[None] if backbone.dims == 3 else clip.transpose(0, 1)  # (1 or T, 3, ...)
        cam, _ = explain(backbone(pixels).detach(), own_score)
        large = resize_cam(cam, tuple(pixels.shape[2:]))
        gradients = guided_gradients(pixels, lambda x: own_score(backbone(x).flatten(2).mean(2)))
        product = guided_grad_cam(gradients, cam)
        cams.append(large[0] if backbone.dims == 3 else large)
        products.append(product[0] if backbone.dims == 3 else product.transpose(0, 1))
    return torch.stack(cams), torch.stack(products)


def _shown_times(frames: int, count: int) -> list[int]:
    """Frames of a clip to show: its middle, or some from the first to the last."""
    if count == 1:
        return [frames // 2]
    times: list[int] = torch.linspace(0, frames - 1, min(count, frames)).round().long().tolist()
    return times


def _brought_to_one(heat: Tensor) -> Tensor:
    """Each sample's heat (B, ...) over its largest value."""
    largest = heat.flatten(1).amax(1).clamp(min=1e-12)
    return heat / largest.view(-1, *([1] * (heat.dim() - 1)))


def _around_grey(gradients: Tensor) -> Tensor:
    """Gradients (B, 3, ...) as colours around grey; the strongest thousandth is cut off."""
    strong = gradients.abs().flatten(1).quantile(0.999, dim=1).clamp(min=1e-12)
    return (0.5 + gradients / (2 * strong.view(-1, *([1] * (gradients.dim() - 1))))).clamp(0, 1)


def _tile(pixels: Tensor, zoom: int, mask: Tensor | None = None) -> Image.Image:
    """A frame (3, H, W) in [0, 1], scaled up, with the mask (h, w) outlined."""
    height, width = pixels.shape[1] * zoom, pixels.shape[2] * zoom
    rows = (255 * pixels.clamp(0, 1)).round().byte().movedim(0, -1).cpu().numpy()
    tile = Image.fromarray(rows).resize((width, height), Image.Resampling.BICUBIC)
    if mask is None:
        return tile
    there = ((mask != 0) & (mask != _VOID)).float()[None, None]
    large = F.interpolate(there, size=(height, width), mode="nearest-exact")
    edge = F.max_pool2d(large, 5, stride=1, padding=2) - large
    outline = Image.fromarray((255 * edge[0, 0]).byte().cpu().numpy())
    tile.paste(Image.new("RGB", tile.size, _OUTLINE), mask=outline)
    return tile


def _write_on(tile: Image.Image, text: str) -> None:
    """Writes into a tile's corner, white with a dark rim."""
    pen = ImageDraw.Draw(tile)
    for across, down in ((2, 2), (4, 2), (2, 3), (4, 3), (3, 1), (3, 4)):
        pen.text((across, down), text, fill=(0, 0, 0))
    pen.text((3, 2), text, fill=(255, 255, 255))


def _sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], head: str) -> Image.Image:
    """Lays tiles out; columns are as wide as in the first row, an empty title goes on the last."""
    gap, top = 4, 34
    widths = [tile.width + gap for tile in rows[0]]
    height = rows[0][0].height + gap
    size = sum(widths) + gap, len(rows) * height + top + gap
    sheet = Image.new("RGB", size, (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, 3), head, fill=(230, 230, 230))
    left = gap
    for column, (width, title) in enumerate(zip(widths, titles, strict=True)):
        pen.text((left, 18), title, fill=(160, 200, 255))
        for number, row in enumerate(rows):
            sheet.paste(row[column], (left, top + number * height))
        left += width
    return sheet


def draw_cams(
    frames: Tensor,
    cams: Tensor,
    guided: Tensor,
    *,
    head: str,
    asked: Tensor | None = None,
    masks: Tensor | None = None,
    labels: Sequence[str] | None = None,
    count: int = 2,
    zoom: int = 1,
) -> Image.Image:
    """Draws frames of clips and, beside them, Grad-CAM over them and guided Grad-CAM.

    Args:
        frames: Pixels in [0, 1], (B, 3, T, H, W); one row of the picture a clip.
        cams: Heat, (B, T, H, W), not negative; the largest value of each clip is brightest.
        guided: Guided Grad-CAM, (B, 3, T, H, W); grey is 0.
        head: What stands above the picture.
        asked: One more kind of heat, at any size, (B, *S): the map that PreViTS trains.
        masks: The true masks, outlined, (B, T, h, w) or (B, 1, h, w).
        labels: What is written on each clip's first frame.
        count: Frames shown of each clip, from the first to the last; 1: its middle.
        zoom: Pixels of the picture per pixel of the clip.

    Returns:
        The picture, RGB.
    """
    times = _shown_times(frames.shape[2], count)
    kinds = {
        "frames": frames.cpu(),
        "Grad-CAM": heat_over(frames.transpose(1, 2), _brought_to_one(cams)).transpose(1, 2),
        "guided Grad-CAM": _around_grey(guided.cpu()),
    }
    if asked is not None:
        large = resize_cam(asked if asked.dim() == 4 else asked[:, None], frames.shape[2:])
        heat = heat_over(frames.transpose(1, 2), _brought_to_one(large))
        kinds["for the key's object"] = heat.transpose(1, 2)
    titles = [name if place == 0 else "" for name in kinds for place in range(len(times))]
    rows = []
    for row in range(len(frames)):
        tiles = []
        for name, pixels in kinds.items():
            for t in times:
                outlined = masks is not None and name != "guided Grad-CAM"
                mask = masks[row, min(t, masks.shape[1] - 1)] if masks is not None else None
                tiles.append(_tile(pixels[row, :, t], zoom, mask if outlined else None))
        if labels is not None:
            _write_on(tiles[0], labels[row])
        rows.append(tiles)
    return _sheet(rows, titles, head)


def match_cams(
    module: nn.Module, backbone: Backbone, query: Tensor, keys: Tensor, *, alone: bool = False
) -> Tensor:
    """Grad-CAM of queries for their likeness to two keys each.

    The score is the cosine of the query's projection and the key's code, as PreViTS trains it; of
    pooled features, where the method has no key network (`HasKeys`).

    Args:
        module: The method, in eval mode.
        backbone: Its network.
        query: Normalised, (P, 3, T, H, W). An image network sees the middle frame.
        keys: Both keys of every query, one after the other, (2P, 3, T, H', W').
        alone: Whether keys are objects alone. Batch norms then take the statistics of these keys,
            as in training: the running ones are of whole clips, and by them the code of an object
            on plain ground is far off (on the built-in videos its heat misses the object).

    Returns:
        (P, 2, H, W) in the query's middle frame, not negative.
    """
    head, codes = _asked_for(module, backbone, keys, alone=alone)
    maps, size = _query_maps(backbone, query), tuple(query.shape[2:])
    heat = [_likeness(maps, head, codes[place::2], size) for place in (0, 1)]
    return torch.stack(heat, dim=1)


def track_cams(module: nn.Module, backbone: Backbone, queries: Tensor, keys: Tensor) -> Tensor:
    """Grad-CAM of frames of a video for their likeness to its first frame's object alone.

    Args:
        module: The method, in eval mode. The score is that of `match_cams`.
        backbone: Its network, convolutional.
        queries: Normalised, (S, N, 3, T, H, W): N clips of each of S videos. An image network sees
            the middle frames.
        keys: The object alone, (S, 3, T, H, W), of `key_foreground`. Batch norms take the
            statistics of these keys together, as in `match_cams`.

    Returns:
        (S, N, H, W) in the middle frames, not negative.
    """
    head, codes = _asked_for(module, backbone, keys, alone=True)
    size = tuple(queries.shape[3:])
    heat = [
        _likeness(_query_maps(backbone, clip[None]), head, code[None], size)[0]
        for video, code in zip(queries, codes, strict=True)
        for clip in video  # one at a time: at the end of a training run the memory is full
    ]
    return torch.stack(heat).view(*queries.shape[:2], *size[1:])


def _asked_for(
    module: nn.Module, backbone: Backbone, keys: Tensor, *, alone: bool
) -> tuple[nn.Module, Tensor]:
    """The head of queries, and the codes (K, D) of keys (K, 3, T, H, W); see `match_cams`."""
    if backbone.dims == 2:
        keys = keys[:, :, keys.shape[2] // 2]
    with norms_by_batch(module) if alone else nullcontext():
        if isinstance(module, HasKeys):
            draws = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
            codes = module.encode_keys(keys, draws, 0)[module.heads.index("projector")]
            return module.projector, codes
        pooled: Tensor = backbone(keys).flatten(2).mean(2)
        return nn.Identity(), F.normalize(pooled, dim=1)


def _query_maps(backbone: Backbone, query: Tensor) -> Tensor:
    """Maps of queries (P, 3, T, H, W); an image network sees the middle frame."""
    maps: Tensor = backbone(query if backbone.dims == 3 else query[:, :, query.shape[2] // 2])
    return maps


def _likeness(maps: Tensor, head: nn.Module, codes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Where maps speak for their likeness to codes (P, D): (P, H, W) in the middle frame."""
    cam = likeness_cam(maps, head, codes)
    whole = cam if cam.dim() == 4 else cam[:, None]  # (P, T', h, w)
    return resize_cam(whole, size)[:, size[0] // 2]


def draw_two_objects(
    query: Tensor, keys: Tensor, heat: Tensor, *, alone: bool, zoom: int = 1
) -> Image.Image:
    """Draws queries of two videos side by side, and for each of two keys where it is found.

    Args:
        query: Pixels in [0, 1], (P, 3, H, 2 W): the first video on the left.
        keys: Pixels of each video's key, (P, 2, 3, H, W).
        heat: Heat for each key over the query, (P, 2, H, 2 W), not negative.
        alone: Whether keys are objects alone, or whole views.
        zoom: Pixels of the picture per pixel of a view.

    Returns:
        The picture, RGB: query, key, heat, key, heat. In the corner stands the share of the heat
        on the side of the key's own video.
    """
    titles = ["query: two videos", "left's key", "heat for it", "right's key", "heat for it"]
    rows = []
    for one, both, found in zip(query, keys, heat, strict=True):
        tiles = [_tile(one, zoom)]
        for place in (0, 1):
            sides = torch.stack([half.sum() for half in found[place].chunk(2, dim=-1)])
            share = float(sides[place] / sides.sum().clamp(min=1e-12))
            over = _tile(heat_over(one, _brought_to_one(found[place][None])[0]), zoom)
            _write_on(over, f"{share:.0%} on its side")
            tiles += [_tile(both[place], zoom), over]
        rows.append(tiles)
    what = "its object alone" if alone else "another whole clip of its video"
    return _sheet(rows, titles, f"where a query of two videos resembles each one's key, {what}")


def draw_object_tracks(
    keys: Tensor,
    frames: Tensor,
    heat: Tensor,
    *,
    masks: Tensor | None = None,
    numbers: Tensor | None = None,
    zoom: int = 1,
) -> Image.Image:
    """Draws the object that was asked for and, over later frames, where it is found.

    Args:
        keys: Pixels in [0, 1], the object alone, (S, 3, H, W); one row of the picture a video.
        frames: Pixels in [0, 1], (S, N, 3, H, W).
        heat: Over the frames, (S, N, H, W), not negative; the largest value of each is brightest.
        masks: The true masks, outlined, (S, N, h, w).
        numbers: The frames' numbers in their videos, (S, N), written into the corners.
        zoom: Pixels of the picture per pixel of a frame.

    Returns:
        The picture, RGB.
    """
    rows = []
    for row, key in enumerate(keys):
        tiles = [_tile(key, zoom)]
        for n, pixels in enumerate(heat_over(frames[row], _brought_to_one(heat[row]))):
            tiles.append(_tile(pixels, zoom, None if masks is None else masks[row, n]))
            if numbers is not None:
                _write_on(tiles[-1], f"frame {int(numbers[row, n])}")
        rows.append(tiles)
    titles = ["first frame's object", "where later frames resemble it"]
    titles += [""] * (frames.shape[1] - 1)
    return _sheet(rows, titles, "an object followed from its mask in the first frame")


def class_cams(
    module: Classifies, clip: Tensor, wanted: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """Grad-CAM and guided Grad-CAM of a class's logit.

    Args:
        module: An evaluation in eval mode whose backbone carries gradients.
        clip: One clip, normalised, (1, 3, T, H, W).
        wanted: The class; None takes the one that is predicted.

    Returns:
        Grad-CAM at the size of the pixels (1, T, H, W), guided Grad-CAM (1, 3, T, H, W), and the
        class.
    """
    chosen = max(0, int(module.selected))

    def logits(pixels: Tensor) -> Tensor:
        return module.logits(module.represent(pixels[:, None]))[chosen]  # (1, C)

    with torch.no_grad():
        number = int(logits(clip).argmax()) if wanted is None else wanted
    cam, _ = explain_layer(module.backbone, clip, lambda x: logits(x)[:, number])
    gradients = guided_gradients(clip, lambda x: logits(x)[:, number])
    whole = cam if cam.dim() == 4 else cam[:, None]  # (1, T', h, w)
    return resize_cam(whole, tuple(clip.shape[2:])), guided_grad_cam(gradients, whole), number


class GradCAMs(_Picture):
    """Writes ``grad_cam.png``: what a method's features are made of, for any method.

    For some clips: frames, Grad-CAM for the length of the pooled feature (`own_score`) and guided
    Grad-CAM, by the network in eval mode. Where the method trains a map and says where the object
    is (PreViTS: ``cam`` and ``mask``), that map too, and the object's outline. The clips are the
    first views of the last training batch: objects are known there, in the crops of training.

    Args:
        clips: Clips in the picture.
        frames: Frames shown of each.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.
    """

    name = "grad_cam"
    needs = ("embedding",)
    shows = "what features are made of (Grad-CAM)"
    held_out = False

    def __init__(self, clips: int = 4, frames: int = 2, every_n_epochs: int = 0) -> None:
        super().__init__(clips, every_n_epochs)
        self.frames = frames

    def _keep(self, outputs: object, batch: object) -> None:
        super()._keep(outputs, batch)
        assert isinstance(outputs, dict)
        assert self._seen is not None
        if "cam" in outputs and "mask" in outputs:
            for name in ("cam", "mask"):
                self._seen[name] = outputs[name][: self.clips].detach().cpu()

    def look(self, module: LightningModule, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Grad-CAM and guided Grad-CAM of the first views."""
        backbone = module.backbone
        assert isinstance(backbone, Backbone)
        with _evaluating(module) as device, torch.no_grad():
            cams, guided = backbone_cams(backbone, seen["views"][:, 0].float().to(device))
        return {"cams": cams.cpu(), "guided": guided.cpu()}

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """One row a clip; see `draw_cams`."""
        return draw_cams(
            pixels[:, 0],
            seen["cams"],
            seen["guided"],
            head="what the feature of a clip is made of",
            asked=seen.get("cam"),
            masks=seen.get("mask"),
            count=self.frames,
            zoom=max(1, round(112 / pixels.shape[-1])),
        )


class TwoObjects(_Picture):
    """Writes ``two_objects.png``: one query with two objects, asked for by two keys (PreViTS).

    Differs from the paper's Figure 6, for which people marked two objects in one picture: here
    the queries of two videos stand side by side as one, twice as wide, and each video's key asks
    for its own. The network must be convolutional, so that it takes a picture of another width.
    What is bright is where, by Grad-CAM, the query's code resembles the key's; beside it stands
    how much of the heat is on the side of the key's own video (chance 50 %).

    The clips are those of the last training batch. Where it has masks, keys are their objects
    alone (`key_foreground`), and videos with an object come first. Methods without a key network
    are asked by the cosine of pooled features.

    Args:
        pairs: Pairs of videos in the picture.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.
    """

    name = "two_objects"
    needs = ("embedding",)
    shows = "two objects in one query, each asked for by its key"
    held_out = False

    def __init__(self, pairs: int = 3, every_n_epochs: int = 0) -> None:
        super().__init__(2 * pairs, every_n_epochs)

    def _keep(self, outputs: object, batch: object) -> None:
        super()._keep(outputs, batch)
        assert isinstance(outputs, dict)
        views: Tensor = outputs["views"]
        if views.shape[1] < 2 or len(views) < 2:
            raise TypeError(
                f"{type(self).__name__} needs two views each of at least two videos; this run's "
                f"batches are {tuple(views.shape)}. Take the callback out of the recipe"
            )
        rows, seen = torch.arange(len(views)), {}
        # Masks of these very views: in training the step returns the views of its batch.
        if isinstance(batch, dict) and batch.get("views") is views and "mask" in batch:
            mask = batch["mask"][:, :2].detach().cpu()
            there = ((mask != 0) & (mask != _VOID)).flatten(2).any(2).all(1)
            rows = (~there).long().argsort(stable=True)
            seen["masks"] = mask
        rows = rows[: min(self.clips, len(rows) // 2 * 2)]
        seen["views"] = views[:, :2].detach().cpu()
        self._seen = {name: value[rows] for name, value in seen.items()}

    def look(self, module: LightningModule, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """The keys as they are asked with, and the heat of each pair for both of them."""
        backbone = module.backbone
        assert isinstance(backbone, Backbone)
        views = seen["views"].float()
        if "masks" in seen:
            foreground = key_foreground(views[:, 1], seen["masks"][:, 1])
            views = torch.stack([views[:, 0], foreground], dim=1)
        query = torch.cat([views[0::2, 0], views[1::2, 0]], dim=-1)  # (P, 3, T, H, 2W)
        with _evaluating(module) as device, torch.no_grad():
            keys, alone = views[:, 1].to(device), "masks" in seen
            heat = match_cams(module, backbone, query.to(device), keys, alone=alone)
        return {"views": views, "heat": heat.cpu()}

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """One row a pair; see `draw_two_objects`."""
        middle = pixels.shape[3] // 2
        shown = pixels[:, :, :, middle]  # (2P, 2, 3, H, W)
        return draw_two_objects(
            torch.cat([shown[0::2, 0], shown[1::2, 0]], dim=-1),
            shown[:, 1].reshape(-1, 2, *shown.shape[2:]),
            seen["heat"],
            alone="masks" in seen,
            zoom=max(1, round(112 / pixels.shape[-1])),
        )


class ObjectTracks(_Picture):
    """Writes ``object_tracks.png``: an object found again all through its video (PreViTS).

    As in the paper's Figure 4, the first frame times its mask is the key, and later frames are
    queries; what is bright is where, by Grad-CAM, a query's code resembles the key's. Neither
    takes part in training. The videos are folders of pictures with masks beside them, as DAVIS
    has them. The files are read before training, and a run that is complete draws them too
    (``--ckpt_path last``). A network of clips sees the frames around each one shown, and the first
    frame repeated as key. Methods without a key network are asked by the cosine of pooled features.

    Args:
        frames: Folder of the videos, each a folder of pictures, in the order of their names
            (DAVIS: ``JPEGImages/480p``).
        masks: Folder of their masks, of the same names but ``.png``: a palette's numbers or grey
            values (DAVIS: ``Annotations/480p``). Where later frames have some, they are outlined.
        videos: Names of the videos that are shown; empty takes the first three.
        label: Number of the object in the masks; 0 takes everything that is not 0.
        count: Frames shown of each, from the second to the last.
        size: Height and width that whole frames are scaled to; the network must be convolutional.
        clip: Frames that a network of clips sees at once.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.

    Raises:
        ValueError: If a number is out of its range.
    """

    name = "object_tracks"
    needs = ()
    shows = "an object followed from its mask in the first frame"

    def __init__(
        self,
        frames: Path,
        masks: Path,
        videos: Sequence[str] = (),
        *,
        label: int = 0,
        count: int = 5,
        size: tuple[int, int] = (224, 398),
        clip: int = 16,
        every_n_epochs: int = 0,
    ) -> None:
        super().__init__(0, every_n_epochs)
        if label < 0 or min(count, clip, *size) < 1:
            raise ValueError(
                f"label={label}: 0 or more; count={count}, clip={clip}, size={size}: each 1 or more"
            )
        self.folders = Path(frames).expanduser(), Path(masks).expanduser()
        self.videos = list(videos)
        self.label = label
        self.count = count
        self.size = size
        self.clip = clip

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the videos, so that what is wrong with them is known before training.

        Raises:
            FileNotFoundError: If a folder or the first frame's mask is missing.
            ValueError: If a video has fewer than two frames or no object in the first, or a file
                is no picture.
        """
        if not trainer.is_global_zero or stage != "fit":
            return
        backbone = pl_module.backbone
        length = self.clip if isinstance(backbone, Backbone) and backbone.dims == 3 else 1
        known = [folder for folder in sorted(self.folders[0].glob("*")) if folder.is_dir()]
        names = self.videos or [folder.name for folder in known[:3]]
        if not names:
            raise FileNotFoundError(f"{self.folders[0]}: no folder of frames in it")
        read = [self._read(name, length) for name in names]
        self._seen = {key: torch.stack([one[key] for one in read]) for key in read[0]}

    def _read(self, name: str, length: int) -> dict[str, Tensor]:
        """What is shown of a video: see the keys below."""
        files = sorted(
            file
            for file in (self.folders[0] / name).glob("*")
            if file.suffix.lower() in (".jpg", ".jpeg", ".png")
        )
        if len(files) < 2:
            raise ValueError(f"{self.folders[0] / name}: {len(files)} frames, need two or more")
        shown = torch.linspace(1, len(files) - 1, self.count).round().long()
        around = shown[:, None] + torch.arange(length) - length // 2
        indices = around.clamp(0, len(files) - 1)  # (N, T)
        frames = {i: _frame(files[i], self.size) for i in {0, *indices.flatten().tolist()}}
        clips = [torch.stack([frames[i] for i in row], dim=1) for row in indices.tolist()]
        masks = [self._mask(files[i], first=i == 0) for i in (0, *shown.tolist())]
        if not masks[0].any():
            raise ValueError(f"{self.folders[1] / name}: the first mask shows no object")
        return {
            "key": frames[0],  # (3, H, W) uint8
            "queries": torch.stack(clips),  # (N, 3, T, H, W) uint8
            "masks": torch.stack(masks),  # (1 + N, H, W) uint8, the key's first
            "numbers": shown,  # (N,)
        }

    def _mask(self, frame: Path, *, first: bool) -> Tensor:
        """Where the object of a frame is, (H, W) uint8; nothing where a later mask is missing."""
        file = self.folders[1] / frame.parent.name / f"{frame.stem}.png"
        if not (first or file.is_file()):
            return torch.zeros(self.size, dtype=torch.uint8)
        labels = torch.from_numpy(read_labels(file))
        there = labels == self.label if self.label else labels != 0
        large = F.interpolate(there[None, None].float(), self.size, mode="nearest-exact")
        return large[0, 0].byte()

    def _keep(self, outputs: object, batch: object) -> None:
        """Takes nothing from the run's own data."""

    def look(self, module: LightningModule, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """The key as it is asked with, the middle frames of the queries, and the heat over them."""
        backbone = module.backbone
        assert isinstance(backbone, Backbone)
        mean, std = (torch.tensor(row).view(3, 1, 1, 1) for row in backbone.pixels)
        queries = (seen["queries"].float() / 255 - mean) / std  # (S, N, 3, T, H, W)
        key = (seen["key"][:, :, None].float() / 255 - mean) / std  # (S, 3, 1, H, W)
        alone = key_foreground(key, seen["masks"][:, :1])
        keys = alone.expand(-1, -1, queries.shape[3], -1, -1)
        with _evaluating(module) as device, torch.no_grad():
            heat = track_cams(module, backbone, queries.to(device), keys.to(device))
        middle = queries.shape[3] // 2
        views = torch.cat([alone[:, None], queries[:, :, :, middle : middle + 1]], dim=1)
        return {"views": views, "heat": heat.cpu()}

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """One row a video; see `draw_object_tracks`."""
        return draw_object_tracks(
            pixels[:, 0, :, 0],
            pixels[:, 1:, :, 0],
            seen["heat"],
            masks=seen["masks"][:, 1:],
            numbers=seen["numbers"],
            zoom=max(1, round(112 / pixels.shape[-2])),
        )


def _frame(file: Path, size: tuple[int, int]) -> Tensor:
    """A picture scaled to a size, (3, H, W) uint8."""
    try:
        with Image.open(file) as picture:
            small = picture.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    except OSError as error:  # also what is no picture
        raise ValueError(f"{file}: not a whole picture ({error})") from error
    return torch.from_numpy(np.array(small)).movedim(-1, 0)


class ClassCAMs(_Picture):
    """Writes ``class_cam.png``: what a fine-tuned network takes for its class.

    Grad-CAM and guided Grad-CAM of the class's logit (PreViTS, Figure 5; CtP, Figure 5), for the
    first clips of the first batch of test or validation.

    Args:
        clips: Clips in the picture.
        frames: Frames shown of each.
        asked: Whose logit: the ``predicted`` class's, or the ``label``'s.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.

    Raises:
        ValueError: If ``asked`` is neither.
    """

    name = "class_cam"
    needs = ()
    shows = "what the class was read from (Grad-CAM)"

    def __init__(
        self, clips: int = 4, frames: int = 2, asked: Asked = "predicted", every_n_epochs: int = 0
    ) -> None:
        super().__init__(clips, every_n_epochs)
        if asked not in get_args(Asked):
            raise ValueError(f"asked must be predicted or label; got {asked!r}")
        self.frames = frames
        self.asked: Asked = asked

    def _keep(self, outputs: object, batch: object) -> None:
        if not isinstance(batch, dict) or "views" not in batch or "label" not in batch:
            raise TypeError(
                f"{type(self).__name__} draws {self.shows}: it belongs to fine-tuning on data with "
                "labels. Take the callback out of the recipe"
            )
        views, labels = batch["views"][: self.clips, :1], batch["label"][: self.clips]
        self._seen = {"views": views.detach().cpu(), "label": labels.detach().cpu()}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first test batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture."""
        self._write(trainer, pl_module, f"{self.name}.png")

    def look(self, module: LightningModule, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """The class of each clip, and where its logit comes from.

        Raises:
            TypeError: If the module is no classifier whose backbone carries gradients.
        """
        if not isinstance(module, Classifies) or module.frozen:
            raise TypeError(
                f"{type(self).__name__} needs a network that was fine-tuned; "
                f"{type(module).__name__} runs its backbone without gradients, or has no classes"
            )
        classes, cams, products = [], [], []
        with _evaluating(module) as device:
            for views, label in zip(seen["views"].float(), seen["label"], strict=True):
                pixels = views.to(device)  # (1, 3, T, H, W): one clip
                wanted = int(label) if self.asked == "label" else None
                cam, guided, number = class_cams(module, pixels, wanted)
                classes.append(number)
                cams.append(cam.cpu())
                products.append(guided.cpu())
        found = {"cams": torch.cat(cams), "guided": torch.cat(products)}
        return {**found, "class": torch.tensor(classes)}

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """One row a clip; see `draw_cams`."""
        labels = [
            f"{number}: right" if number == label else f"{number}: it is {label}"
            for number, label in zip(seen["class"].tolist(), seen["label"].tolist(), strict=True)
        ]
        return draw_cams(
            pixels[:, 0],
            seen["cams"],
            seen["guided"],
            head=f"what the {self.asked} class was read from",
            labels=labels
            if self.asked == "predicted"
            else [str(v) for v in seen["label"].tolist()],
            count=self.frames,
            zoom=max(1, round(112 / pixels.shape[-1])),
        )
