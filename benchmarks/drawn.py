"""The built-in videos in memory, small and decoded: what the benchmarks of learning run on.

`flat` videos have each object and the ground painted in one colour. Two clips of a textured
original can be told from others' by their textures, which say nothing of the object by
construction: a small network then learns them and nothing else. In flat videos the shapes, their
places and how they move are all there is, once views have lost their colour, too.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import build_backbone
from lightning_vssl.data.clips import Clips, TrackedClips
from lightning_vssl.data.sampler import KeyedSampler
from lightning_vssl.data.synthetic_scenes import Split, draw
from lightning_vssl.data.windows import Windows
from lightning_vssl.metrics.neighbours import knn_predict
from lightning_vssl.nn.keyed import sample_key

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LENGTH = 48  # frames kept of each video
STORED = 80  # pixels of their sides
K = 20


@dataclass(frozen=True)
class Videos:
    """Videos in memory.

    Attributes:
        frames: (N, LENGTH, 3, STORED, STORED) uint8.
        masks: (N, LENGTH, STORED, STORED) uint8; 1 is the main object, 2.. are others.
        boxes: For each video (LENGTH, n, 4), shares of the frame.
        cover: For each video (LENGTH, n), which share of an object is seen.
        fps: (N,) frames per second.
        objects: (N,) the main object's shape, one of six.
        motions: (N,) its motion, one of eight.
        tubes: Masks that samples carry, (N, LENGTH, h, w) uint8; None for none. A tube of zeros is
            a lost object.
    """

    frames: Tensor
    masks: Tensor
    boxes: list[Tensor]
    cover: list[Tensor]
    fps: Tensor
    objects: Tensor
    motions: Tensor
    tubes: Tensor | None = None


def colours_apart(seed: int, index: int, split: Split, count: int) -> np.ndarray:
    """Colours (count, 3) that differ in lightness, so that grey tells them apart."""
    rng = np.random.default_rng([seed, index, split == "test"])
    while True:
        colours = rng.integers(0, 256, (count, 3))
        light = colours @ np.array([0.299, 0.587, 0.114])
        apart = np.abs(light[:, None] - light[None])[~np.eye(count, dtype=bool)]
        if apart.min() > 40:
            return colours.astype(np.uint8)


def drawn_videos(
    seed: int,
    split: Split,
    count: int,
    *,
    flat: bool = False,
    main_only: bool = False,
) -> Videos:
    """Draws the videos of a split.

    Args:
        seed: The world.
        split: ``train`` or ``test``.
        count: How many.
        flat: Painted in one colour each.
        main_only: Of flat videos: without any object but the main one (whose ``cover`` still counts
            what others would hide).
    """
    frames = torch.empty(count, LENGTH, 3, STORED, STORED, dtype=torch.uint8)
    masks = torch.empty(count, LENGTH, STORED, STORED, dtype=torch.uint8)
    boxes, cover, fps, labels = [], [], [], []
    for index in range(count):
        drawn = draw(seed, index, split)
        height, width = drawn.masks.shape[1:]
        shown, painted = drawn.masks[:LENGTH], drawn.frames[:LENGTH]
        if flat:
            shown = (shown == 1).astype(np.uint8) if main_only else shown
            painted = colours_apart(seed, index, split, len(drawn.objects) + 1)[shown]
        pixels = torch.from_numpy(painted).permute(0, 3, 1, 2)  # (T, 3, H, W)
        size = (STORED, STORED)
        frames[index] = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        masks[index] = F.interpolate(torch.from_numpy(shown)[:, None], size, mode="nearest-exact")[
            :, 0
        ]
        kept = slice(1) if main_only else slice(None)
        sides = torch.tensor([width, height] * 2)
        boxes.append(torch.from_numpy(drawn.boxes[:LENGTH, kept]) / sides)
        cover.append(torch.from_numpy(drawn.cover[:LENGTH, kept]))
        fps.append(drawn.fps)
        labels.append((drawn.object, drawn.motion))
    objects, motions = torch.tensor(labels).unbind(1)
    return Videos(frames, masks, boxes, cover, torch.tensor(fps), objects, motions)


class _Clips(Dataset[dict[str, Tensor]]):
    """The batch contract over videos in memory."""

    def __init__(self, videos: Videos, clips: Clips, window: Windows, seed: int) -> None:
        self.videos, self.clips, self.window, self.seed = videos, clips, window, seed

    def __len__(self) -> int:
        return len(self.videos.frames)

    def __getitem__(self, item: tuple[int, int] | int) -> dict[str, Tensor]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        key = sample_key(self.seed, epoch, index)
        rng = np.random.Generator(np.random.Philox(key=key & ((1 << 64) - 1)))
        times = np.arange(LENGTH) / float(self.videos.fps[index])
        tubes, extra = self.videos.tubes, {}
        if isinstance(self.clips, TrackedClips):
            seen = None if tubes is None else tubes[index].flatten(1).any(1).numpy()
            chosen, inside = self.clips.draw(times, seen, rng, epoch)  # (V, T)
        else:
            chosen, inside = self.clips.sample(times, rng), tubes is not None
        windows = self.window.sample(STORED, STORED, len(chosen), rng)
        if tubes is not None:  # their window is the whole frame
            masks = tubes[index, torch.from_numpy(chosen)]  # (V, T, h, w)
            extra = {
                "mask": masks * inside,
                "tracked": (masks > 0).flatten(1).any(1) & inside,
            }
        clips = []
        for rows, box in zip(chosen, windows.round().astype(int), strict=True):
            part = self.videos.frames[index, torch.from_numpy(rows), :, box[1] : box[3]]
            part = part[..., box[0] : box[2]]
            clips.append(F.interpolate(part, self.window.shape, mode="bilinear", antialias=True))
        return extra | {
            "video": torch.stack(clips),
            "crop": torch.from_numpy(windows).float(),
            "time": torch.from_numpy(times[chosen]),
            "key": torch.tensor(key),
            "index": torch.tensor(index),
            "replaced": torch.tensor(False),
            "label": self.videos.objects[index],
        }


class DrawnVideos(LightningDataModule):
    """Videos in memory as a data module."""

    def __init__(
        self, videos: Videos, clips: Clips, window: Windows, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.videos, self.clips, self.window = videos, clips, window
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training batches."""
        dataset = _Clips(self.videos, self.clips, self.window, self.seed)
        sampler = KeyedSampler(len(dataset), seed=self.seed)
        return DataLoader(dataset, self.batch_size, sampler=sampler, drop_last=True)


def clips_in_order(videos: Videos, clips: Clips, window: Windows, seed: int) -> dict[str, Tensor]:
    """All videos as one batch, in order."""
    samples = list(DataLoader(_Clips(videos, clips, window, seed), 64))
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def grey_views(colour: float, blur: float, flip: float = 0.0) -> VideoViews:
    """Views without colour: brightness, contrast, blur, flips (a mirrored clip moves otherwise)."""
    return VideoViews(
        *HALF,
        jitter=1.0,
        flip=flip,
        grey=1.0,
        brightness=colour,
        contrast=colour,
        saturation=0.0,
        hue=0.0,
        blur=blur,
        blur_kernel=7,
        blur_sigma=(0.1, 1.5),
    )


def plain_grey(video: Tensor) -> Tensor:
    """Grey frames as they are, normalised: (N, V, T, 3, H, W) uint8 to (N, V, 3, T, H, W)."""
    unit = video.transpose(2, 3).float() / 255
    light = unit.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    return ((unit * light).sum(2, keepdim=True).expand_as(unit) - 0.5) / 0.5


class Mismatched(nn.Module):
    """The control: every view of a video but the first is another video's."""

    def __init__(self, augment: nn.Module) -> None:
        super().__init__()
        self.augment = augment

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rolls the v-th views by v videos."""
        views = batch["video"].unbind(1)
        rolled = torch.stack([view.roll(v, 0) for v, view in enumerate(views)], dim=1)
        return self.augment({**batch, "video": rolled})


class SmallResNet(Backbone):
    """An image network for small pictures: the stem and the stages but the first halve them.

    Args:
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        last_stride: 1 leaves the last stage the size of the one before.
    """

    def __init__(self, width: int = 16, last_stride: int = 1) -> None:
        from torchvision.models.resnet import BasicBlock

        widths = {"stem": width, **{f"layer{n + 1}": width << n for n in range(4)}}
        steps = {
            "stem": 2,
            "layer1": 1,
            "layer2": 2,
            "layer3": 2,
            "layer4": last_stride,
        }
        strides = np.cumprod(list(steps.values())).tolist()
        super().__init__(
            channels=widths,
            strides={name: (1, s) for name, s in zip(widths, strides, strict=True)},
            init_args={"width": width, "last_stride": last_stride},
            pixels=HALF,
            dims=2,
        )
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        before = width
        for name in self.stages[1:]:
            after, step = widths[name], steps[name]
            shortcut = None
            if step > 1 or before != after:
                convolution = nn.Conv2d(before, after, 1, step, bias=False)
                shortcut = nn.Sequential(convolution, nn.BatchNorm2d(after))
            setattr(self, name, BasicBlock(before, after, step, shortcut))
            before = after

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs one stage."""
        made: Tensor = getattr(self, name)(x)
        return made


class RawPixels(Backbone):
    """The floor: what a cell of 8 x 8 pixels looks like, without its mean, length 1."""

    def __init__(self) -> None:
        super().__init__(
            channels={"pixels": 64}, strides={"pixels": (1, 8)}, init_args={}, pixels=HALF, dims=2
        )

    def stage(self, name: str, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 64, H // 8, W // 8)."""
        height, width = (side // 8 * 8 for side in x.shape[-2:])
        cells = F.pixel_unshuffle(x[..., :height, :width].mean(1, keepdim=True), 8)
        return F.normalize(cells - cells.mean(1, keepdim=True), dim=1)


def fit(method: nn.Module, data: DrawnVideos, steps: int) -> nn.Module:
    """Trains on this process, without output."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(method, data)
    return method.eval()


def keep(folder: Path | None, name: str, seed: int, backbone: Backbone) -> None:
    """Stores a network, for `kept`; does nothing without a folder."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}-{seed}.pt"
        torch.save({"config": backbone.config, "state": backbone.state_dict()}, file)


def kept(folder: Path, name: str, seed: int) -> Backbone:
    """Reads a network that `keep` stored; of one with two last stages, the local one."""
    stored = torch.load(folder / f"{name}-{seed}.pt", weights_only=True)
    if "endpoint" in stored["config"]["init_args"]:
        stored["config"]["init_args"]["endpoint"] = "local"
    backbone = build_backbone(stored["config"])
    backbone.load_state_dict({key: stored["state"][key] for key in backbone.state_dict()})
    return backbone.eval()


def knn(known: Tensor, asked: Tensor, labels: Tensor, truth: Tensor) -> float:
    """Top-1 of weighted k-NN, in percent."""
    classes = int(labels.max()) + 1
    guess = knn_predict(asked, known, labels, num_classes=classes, k=K)
    return 100 * float((guess == truth).float().mean())


def floors(video: Tensor) -> dict[str, Tensor]:
    """Features of videos (N, V, T, 3, H, W) uint8 that are not learned, (N, D)."""
    first = video[:, 0]  # (N, T, 3, H, W)
    level = (first.permute(0, 2, 1, 3, 4).flatten(2).long() >> 5) * torch.tensor([[64], [8], [1]])
    colours = [torch.bincount(row, minlength=512).float() for row in level.sum(1)]
    middle = first[:, first.shape[1] // 2].float()
    return {
        "raw pixels": F.adaptive_avg_pool2d(middle, 16).flatten(1) - 128,
        "colour histogram": torch.stack(colours).sqrt(),
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half width of the 95 % interval over seeds (Student's t)."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def columns_of(results: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Values over the seeds, by name."""
    return {name: np.array([row[name] for row in results]) for name in results[0]}


def print_columns(columns: Mapping[str, np.ndarray]) -> None:
    """A line for each: mean and interval."""
    for name, values in columns.items():
        mean, half = interval(values)
        print(f"{name:40s} {mean:7.2f} +- {half:5.2f}")


def print_differences(columns: Mapping[str, np.ndarray], pairs: list[tuple[str, str]]) -> None:
    """A line for each pair: mean and interval of the difference, paired by seed."""
    for name, base in pairs:
        mean, half = interval(columns[name] - columns[base])
        shown = "" if abs(mean) - half > 0 else "   (not shown: the interval touches 0)"
        print(f"{name + ' - ' + base:60s} {mean:+7.2f} +- {half:5.2f}{shown}")


adamw = functools.partial(torch.optim.AdamW, weight_decay=0.01)
