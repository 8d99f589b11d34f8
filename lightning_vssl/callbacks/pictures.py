"""Pictures of what a method learns, written beside the run."""

import colorsys
import math
from abc import abstractmethod
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_vssl.backbones.base import Backbone

_TRUE = [(60, 220, 90), (70, 170, 255), (255, 205, 60), (255, 255, 255)]
_PREDICTED = (255, 60, 160)


def draw_tracks(
    clips: Tensor,
    true: Tensor,
    predicted: Tensor,
    *,
    columns: int = 6,
    zoom: int = 3,
) -> Image.Image:
    """Draws true and predicted boxes over frames of clips.

    Args:
        clips: Pixels in [0, 1], (B, 3, T, H, W); one row of the picture each.
        true: Boxes, (B, K, T, 4), xyxy in pixels: solid, a colour for each patch. NaN where none
            is known: only the predicted one is drawn.
        predicted: Boxes, (B, K, T, 4): pink, with a line to the true box's centre.
        columns: Frames shown of each clip, evenly spread from the first to the last.
        zoom: Pixels of the picture per pixel of the clip.

    Returns:
        The picture, RGB.
    """
    rows, _, frames, height, width = clips.shape
    columns = min(columns, frames)
    times = torch.linspace(0, frames - 1, columns).round().long().tolist()
    gap, head = 4, 18
    cell_w, cell_h = width * zoom + gap, height * zoom + gap
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + head + gap), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, 3), "solid: true box of each patch, pink: predicted", fill=(230, 230, 230))
    pixels = (clips.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
    for row in range(rows):
        for column, t in enumerate(times):
            left, top = gap + column * cell_w, head + row * cell_h
            frame = Image.fromarray(pixels[row, t]).resize(
                (width * zoom, height * zoom), Image.Resampling.BICUBIC
            )
            overlay = ImageDraw.Draw(frame)
            for k in range(true.shape[1]):
                right = [zoom * v for v in true[row, k, t].tolist()]
                guess = [zoom * v for v in _ordered(predicted[row, k, t].tolist())]
                if not math.isnan(right[0]):
                    overlay.rectangle(right, outline=_TRUE[k % len(_TRUE)], width=2)
                    overlay.line([*_centre(right), *_centre(guess)], fill=_PREDICTED, width=1)
                overlay.rectangle(guess, outline=_PREDICTED, width=1)
            overlay.text((3, 2), f"frame {t + 1}", fill=(255, 255, 255))
            sheet.paste(frame, (left, top))
    return sheet


def _ordered(box: list[float]) -> list[float]:
    """Sorts a box's corners: what a network predicts need not be in order."""
    x1, y1, x2, y2 = box
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _centre(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def draw_pairs(frames: Tensor, boxes: Tensor, pairs: Tensor, *, zoom: int = 1) -> Image.Image:
    """Draws the regions of one view and, in the same colour, the region each is paired with.

    Args:
        frames: Frames of the two views, pixels in [0, 1], (B, 2, 3, H, W); two videos a row.
        boxes: Regions in them, (B, 2, N, 4), xyxy in pixels; NaN where missing.
        pairs: For each region of the first view, the index of its partner in the second, (B, N).
        zoom: Pixels of the picture per pixel of the frame.

    Returns:
        The picture, RGB. Regions of the second view that no region is paired with are grey.
    """
    rows, _, _, height, width = frames.shape
    gap, head = 4, 18
    cell_w, cell_h = width * zoom + gap, height * zoom + gap
    columns = 2 if rows > 1 else 1
    size = 2 * columns * cell_w + gap, -(-rows // columns) * cell_h + head + gap
    sheet = Image.new("RGB", size, (24, 24, 24))
    text = "regions of a clip, and in the same colour the one in its other clip that is most alike"
    ImageDraw.Draw(sheet).text((gap, 3), text, fill=(230, 230, 230))
    pixels = (frames.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    for row in range(rows):
        for view in (0, 1):
            frame = Image.fromarray(pixels[row, view]).resize(
                (width * zoom, height * zoom), Image.Resampling.BICUBIC
            )
            pen = ImageDraw.Draw(frame)
            for n, box in enumerate(boxes[row, view].tolist()):
                owners = [n] if view == 0 else (pairs[row] == n).nonzero()[:, 0].tolist()
                owners = [k for k in owners if bool(boxes[row, 0, k].isfinite().all())]
                if not all(value == value for value in box):
                    continue
                corners = [zoom * value for value in _ordered(box)]
                pen.rectangle(corners, outline=(150, 150, 150), width=1)
                for depth, k in enumerate(owners):  # several partners: nested, so that all show
                    inner = [corners[0] + 2 * depth, corners[1] + 2 * depth]
                    outer = [corners[2] - 2 * depth, corners[3] - 2 * depth]
                    pen.rectangle(_ordered([*inner, *outer]), outline=_hue(k), width=2)
            left = gap + (2 * (row % columns) + view) * cell_w
            sheet.paste(frame, (left, head + row // columns * cell_h))
    return sheet


def _hue(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.85, 1)  # the golden angle
    return round(255 * red), round(255 * green), round(255 * blue)


def heat_over(frames: Tensor, heat: Tensor) -> Tensor:
    """Lays heat over grey frames.

    Args:
        frames: Pixels in [0, 1], (..., 3, H, W).
        heat: In [0, 1], (..., H, W).

    Returns:
        Pixels in [0, 1], (..., 3, H, W).
    """
    colours = torch.from_numpy(colormaps["inferno"](heat.cpu().numpy())[..., :3]).float()
    grey = frames.cpu().float().mean(-3, keepdim=True)
    return 0.35 * grey + 0.65 * colours.movedim(-1, -3)


class _Picture(Callback):
    """Keeps some clips of the first validation batch, draws them, writes a picture.

    In a run without validation the clips are those of the last training batch.
    """

    name: str
    needs: tuple[str, ...]
    shows: str
    held_out = True  # False: the last training batch, also where something is validated

    def __init__(self, clips: int, every_n_epochs: int) -> None:
        super().__init__()
        self.clips = clips
        self.every_n_epochs = every_n_epochs
        self._seen: dict[str, Tensor] | None = None

    @abstractmethod
    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """Makes the picture.

        Args:
            pixels: The views in [0, 1], (B, V, 3, T, H, W).
            seen: What the method returned under the names in ``needs``, on the CPU.
        """

    def look(self, module: LightningModule, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """What else the picture shows, made with the network when it is drawn; nothing here.

        Args:
            module: The method.
            seen: As for `draw`.
        """
        return {}

    def _keep(self, outputs: object, batch: object) -> None:
        if not isinstance(outputs, dict) or any(name not in outputs for name in self.needs):
            raise TypeError(
                f"{type(self).__name__} draws {self.shows}; the method of this run does not return "
                f"{' and '.join(f'`{name}`' for name in self.needs)}. Take the callback out of the "
                "recipe"
            )
        names = ("views", *self.needs)
        self._seen = {name: outputs[name][: self.clips].detach().cpu() for name in names}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Keeps the last training batch, where nothing is validated."""
        last = batch_idx + 1 == trainer.num_training_batches
        last = last or trainer.global_step == trainer.max_steps
        if trainer.is_global_zero and last and not (self.held_out and trainer.enable_validation):
            self._keep(outputs, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first validation batch."""
        first = batch_idx == 0 and dataloader_idx == 0
        if trainer.is_global_zero and first and self.held_out:
            self._keep(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture of this epoch."""
        n = self.every_n_epochs
        if n and not trainer.sanity_checking and (trainer.current_epoch + 1) % n == 0:
            self._write(trainer, pl_module, f"{self.name}_epoch{trainer.current_epoch}.png")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the final picture."""
        self._write(trainer, pl_module, f"{self.name}.png")

    def _write(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        if self._seen is None or not trainer.is_global_zero:
            return
        backbone = pl_module.backbone
        if not isinstance(backbone, Backbone):
            raise TypeError(f"{type(pl_module).__name__}.backbone is not a lightning_vssl backbone")
        mean, std = (torch.tensor(row).view(1, 1, 3, 1, 1, 1) for row in backbone.pixels)
        seen = {**self._seen, **self.look(pl_module, self._seen)}
        sheet = self.draw(seen["views"].float() * std + mean, seen)
        path = Path(trainer.default_root_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        sheet.save(part, format="PNG")
        part.replace(path)
        rank_zero_info(f"{self.shows}: {path}")


class TrackedPatches(_Picture):
    """Writes ``tracked_patches.png``: the patches of CtP, predicted against true.

    The clips are those of the first validation batch, or, in a run without validation, of the
    last training batch.

    Args:
        clips: Clips in the picture.
        frames: Frames shown of each clip.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.
    """

    name = "tracked_patches"
    needs = ("trajectories", "predicted")
    shows = "tracked patches, predicted against true"

    def __init__(self, clips: int = 4, frames: int = 6, every_n_epochs: int = 0) -> None:
        super().__init__(clips, every_n_epochs)
        self.frames = frames

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """One row a clip; see `draw_tracks`."""
        return draw_tracks(
            pixels[:, 0],
            seen["trajectories"].float(),
            seen["predicted"].float(),
            columns=self.frames,
            zoom=max(1, round(224 / pixels.shape[-1])),
        )


class RegionPairs(_Picture):
    """Writes ``region_pairs.png``: which regions of two clips ConST-CL takes for the same.

    The clips are those of the first validation batch, or, in a run without validation, of the
    last training batch; shown is the frame that the regions are in.

    Args:
        videos: Videos in the picture.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.
    """

    name = "region_pairs"
    needs = ("places", "pairs", "frames")
    shows = "regions that are paired across clips"

    def __init__(self, videos: int = 6, every_n_epochs: int = 0) -> None:
        super().__init__(videos, every_n_epochs)

    def draw(self, pixels: Tensor, seen: dict[str, Tensor]) -> Image.Image:
        """Two videos a row; see `draw_pairs`."""
        height, width = pixels.shape[-2:]
        rows, views = torch.arange(len(pixels))[:, None], torch.arange(2)
        return draw_pairs(
            pixels[rows, views, :, seen["frames"]],  # (B, 2, 3, H, W)
            seen["places"].float() * torch.tensor([width, height, width, height]),
            seen["pairs"][:, 0],
            zoom=max(1, round(224 / width)),
        )
