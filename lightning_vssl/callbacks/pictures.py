"""Pictures of what a method learns, written beside the run."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
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
        true: Boxes, (B, K, T, 4), xyxy in pixels: solid, a colour for each patch.
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
                overlay.rectangle(right, outline=_TRUE[k % len(_TRUE)], width=2)
                overlay.rectangle(guess, outline=_PREDICTED, width=1)
                overlay.line([*_centre(right), *_centre(guess)], fill=_PREDICTED, width=1)
            overlay.text((3, 2), f"frame {t + 1}", fill=(255, 255, 255))
            sheet.paste(frame, (left, top))
    return sheet


def _ordered(box: list[float]) -> list[float]:
    """Sorts a box's corners: what a network predicts need not be in order."""
    x1, y1, x2, y2 = box
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _centre(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


class TrackedPatches(Callback):
    """Writes ``tracked_patches.png``: the patches of CtP, predicted against true.

    The clips are those of the first validation batch, or, in a run without validation, of the
    last training batch.

    Args:
        clips: Clips in the picture.
        frames: Frames shown of each clip.
        every_n_epochs: Write after every n-th epoch of validation and at the end; 0: only at the
            end.
    """

    def __init__(self, clips: int = 4, frames: int = 6, every_n_epochs: int = 0) -> None:
        super().__init__()
        self.clips = clips
        self.frames = frames
        self.every_n_epochs = every_n_epochs
        self._seen: dict[str, Tensor] | None = None

    def _keep(self, outputs: object) -> None:
        if not isinstance(outputs, dict) or "predicted" not in outputs:
            raise TypeError(
                "TrackedPatches draws what CtP predicts; the method of this run does not return "
                "`predicted` and `trajectories`. Take the callback out of the recipe"
            )
        names = ("views", "trajectories", "predicted")
        self._seen = {name: outputs[name][: self.clips].detach().float() for name in names}

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
        if trainer.is_global_zero and last and not trainer.enable_validation:
            self._keep(outputs)

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
        if trainer.is_global_zero and batch_idx == 0 and dataloader_idx == 0:
            self._keep(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture of this epoch."""
        n = self.every_n_epochs
        if n and not trainer.sanity_checking and (trainer.current_epoch + 1) % n == 0:
            self._write(trainer, pl_module, f"tracked_patches_epoch{trainer.current_epoch}.png")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the final picture."""
        self._write(trainer, pl_module, "tracked_patches.png")

    def _write(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        if self._seen is None or not trainer.is_global_zero:
            return
        backbone = pl_module.backbone
        if not isinstance(backbone, Backbone):
            raise TypeError(f"{type(pl_module).__name__}.backbone is not a lightning_vssl backbone")
        mean, std = backbone.pixels
        views = self._seen["views"][:, 0].cpu()  # (B, 3, T, H, W)
        shape = (1, 3, 1, 1, 1)
        pixels = views * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
        sheet = draw_tracks(
            pixels,
            self._seen["trajectories"].cpu(),
            self._seen["predicted"].cpu(),
            columns=self.frames,
            zoom=max(1, round(224 / pixels.shape[-1])),
        )
        path = Path(trainer.default_root_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        sheet.save(part, format="PNG")
        part.replace(path)
        rank_zero_info(f"tracked patches, predicted against true: {path}")
