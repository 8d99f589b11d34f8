"""How well do tubes found without labels fit the true objects? Against two blind guesses.

    python benchmarks/tubes.py [FOLDER] --videos 64 --every 1 --peers --pictures OUT

Built-in videos are always measured; FOLDER may hold annotated sequences anywhere below it:

* DAVIS: ``JPEGImages/480p/NAME/*.jpg`` beside ``Annotations/480p/NAME/*.png`` (object numbers, or
  0 and 255), at least ten of them; or ``NAME_orig.mp4`` beside ``NAME/*.png``;
* OTB: ``groundtruth_rect.txt`` (x, y, width, height, from 1) beside ``img/*.jpg``;
* VOT: ``groundtruth.txt`` (corners of a polygon) beside ``*.jpg``;
* UCF101-24: ``ucf24_boxes*.json`` with the tubes of videos that it names from FOLDER.

IoU is that of masks where there are masks, else of boxes; the mean over the annotated frames of a
sequence; a frame without a mask counts 0 there. The paper tracks the largest salient object, so a
sequence with several annotated objects is scored by the one that fits best ("best"), the same for
all frames; and, where they are masks, by all of them together ("all"), which a tube of one object
is not meant to reach.

The guesses: a centred box of the mean size of the true boxes (of all sequences of that group, in
shares of the frame), and the first mask held still, the tracker's own and, stronger than any
tracker could have it, the true one. They are scored as the tube is.

What was tuned on (--tuned): the sequences named there, and built-in videos of the training split;
all others are held back. Times are processor time of one thread.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.synthetic_scenes import draw
from lightning_vssl.tracking import MotionSaliency, Saliency, Tracked, Tracker

TUNED = "motocross-jump,Crossing,v_Basketball_g01_c02,v_Fencing_g01_c06"
SHORT = 128  # pixels of the short side at which all is measured
KINETICS = 240_000 * 10  # seconds of video


@dataclass(frozen=True)
class Annotated:
    """A sequence and its true objects.

    Attributes:
        name: What to call it.
        group: ``built-in``, ``DAVIS`` or ``boxes``.
        frames: (F, 3, H, W) uint8.
        objects: Masks of each, (F, K, H, W) bool, or None.
        boxes: Boxes of each, (F, K, 4) xyxy in pixels, NaN where it is not seen.
        known: Frames that are annotated, (F,) bool.
    """

    name: str
    group: str
    frames: Tensor
    objects: NDArray[np.bool_] | None
    boxes: NDArray[np.float64]
    known: NDArray[np.bool_]


def from_masks(
    name: str, group: str, frames: NDArray[np.uint8], ids: NDArray[np.uint8]
) -> Annotated:
    """A sequence of frames (F, 3, H, W) with object numbers (F, H, W)."""
    numbers = [number for number in np.unique(ids) if number]
    objects = np.stack([ids == number for number in numbers], axis=1)
    boxes = np.full((*objects.shape[:2], 4), np.nan)
    for frame, masks in enumerate(objects):
        for place, mask in enumerate(masks):
            if mask.any():
                y, x = ndimage.find_objects(mask.astype(np.int8))[0]
                boxes[frame, place] = x.start, y.start, x.stop, y.stop
    known = np.ones(len(frames), bool)
    return Annotated(name, group, torch.from_numpy(frames), objects, boxes, known)


def shrunk(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, SHORT / min(height, width))
    return round(height * scale), round(width * scale)


def pictures(files: list[Path]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Frames (F, 3, H, W) from pictures, scaled down, and the size they had."""
    frames = []
    for file in files:
        with Image.open(file) as picture:
            full = picture.height, picture.width
            height, width = shrunk(*full)
            small = picture.convert("RGB").resize((width, height), Image.Resampling.BOX)
            frames.append(np.asarray(small))
    return np.stack(frames).transpose(0, 3, 1, 2).copy(), full


def video(file: Path) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Frames (F, 3, H, W) of a video, scaled down, and the size they had."""
    with VideoReader(file) as reader:
        full = reader.info.height, reader.info.width
        pixels, _ = reader.read(np.arange(len(reader.times))[None], size=shrunk(*full))
    return pixels[0].transpose(0, 3, 1, 2).copy(), full


def numbers(files: list[Path], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Object numbers (F, H, W) of pictures; 255 is the only object of DAVIS 2016."""
    ids = []
    for file in files:
        with Image.open(file) as picture:
            ids.append(np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST)))
    found = np.stack(ids)
    return np.where(found == 255, 1, found).astype(np.uint8)


def davis(root: Path) -> Iterator[Annotated]:
    for folder in sorted(root.rglob("Annotations/480p/*")):
        files = sorted(folder.glob("*.png"))
        if len(files) >= 10:
            images = folder.parents[2] / "JPEGImages" / "480p" / folder.name
            frames, _ = pictures([images / f"{file.stem}.jpg" for file in files])
            yield from_masks(folder.name, "DAVIS", frames, numbers(files, frames.shape[-2:]))
    for file in sorted(root.rglob("*_orig.mp4")):
        files = sorted(file.with_name(file.stem.removesuffix("_orig")).glob("*.png"))
        frames, _ = video(file)
        if len(files) == len(frames):
            ids = numbers(files, frames.shape[-2:])
            yield from_masks(files[0].parent.name, "DAVIS", frames, ids)


def rectangles(root: Path) -> Iterator[Annotated]:
    """OTB and VOT: one box a frame."""
    for file in sorted([*root.rglob("groundtruth_rect.txt"), *root.rglob("groundtruth.txt")]):
        images = sorted(file.parent.glob("img/*.jpg")) or sorted(file.parent.glob("*.jpg"))
        rows = [line.replace(",", " ").split() for line in file.read_text().splitlines()]
        values = np.array([row for row in rows if row], np.float64)
        if len(images) < 10 or len(images) != len(values):
            continue
        frames, full = pictures(images)
        if values.shape[1] == 4:
            boxes = np.column_stack([values[:, :2] - 1, values[:, :2] - 1 + values[:, 2:]])
        else:
            corners = values.reshape(len(values), -1, 2)
            boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
        boxes = boxes[:, None] * (frames.shape[-1] / full[1])
        known = np.ones(len(frames), bool)
        yield Annotated(file.parent.name, "boxes", torch.from_numpy(frames), None, boxes, known)


def ucf24(root: Path) -> Iterator[Annotated]:
    """UCF101-24: tubes of persons, each over some of the frames."""
    for file in sorted(root.rglob("ucf24_boxes*.json")):
        for name, entry in json.loads(file.read_text())["videos"].items():
            frames, _ = video(root / entry["clip"])
            width, height = entry["box_frame_size"]
            scale = np.array([frames.shape[-1] / width, frames.shape[-2] / height] * 2)
            boxes = np.full((len(frames), len(entry["tubes"]), 4), np.nan)
            for place, tube in enumerate(entry["tubes"]):
                seen = np.array(tube["boxes_xywh"], np.float64)
                seen[:, 2:] += seen[:, :2]
                boxes[tube["sf"] : tube["sf"] + len(seen), place] = seen * scale
            known = ~np.isnan(boxes[..., 0]).all(1)
            stem = name.rsplit("/", 1)[-1]
            yield Annotated(stem, "boxes", torch.from_numpy(frames), None, boxes, known)


def built_in(count: int, split: str, borders: str) -> Iterator[Annotated]:
    """Built-in videos; the main object is the true one, the others are in its way."""
    for index in range(count):
        drawn = draw(0, index, split, borders=borders)
        ids = (drawn.masks == 1).astype(np.uint8)
        frames = drawn.frames.transpose(0, 3, 1, 2).copy()
        yield from_masks(f"{split} {index}", f"built-in, {borders}", frames, ids)


class Peer(Saliency):
    """A static saliency of OpenCV; salient is twice the mean of a frame (Achanta 2009)."""

    short_side = 64

    def __init__(self, name: str) -> None:
        import cv2

        make = {
            "spectral residual": cv2.saliency.StaticSaliencySpectralResidual_create,
            "fine grained": cv2.saliency.StaticSaliencyFineGrained_create,
        }
        self.name = name
        self.engine = make[name]()

    @property
    def settings(self) -> dict[str, object]:
        """Which one."""
        return {"peer": self.name}

    def __call__(self, frames: Tensor, video: str = "", numbers: object = ()) -> Tensor:
        """Maps (F, H, W)."""
        maps = []
        for frame in frames.flip(1).permute(0, 2, 3, 1).contiguous().numpy():
            found = self.engine.computeSaliency(frame)[1]
            maps.append(found / max(4 * float(found.mean()), 1e-6))
        return torch.from_numpy(np.stack(maps).astype(np.float32)).clamp(0, 1)


def box_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.clip(high - low, 0, None).prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))


def score(sequence: Annotated, masks: NDArray[np.bool_], boxes: NDArray[np.float64]) -> tuple:
    """IoU of a tube with the object that fits best, and with all together (NaN without masks)."""
    frames = np.flatnonzero(sequence.known)
    single = np.zeros((len(frames), sequence.boxes.shape[1]))
    counted = ~np.isnan(sequence.boxes[frames, :, 0])  # an object out of sight is no miss
    together = np.full(len(frames), np.nan)
    for row, frame in enumerate(frames):
        if sequence.objects is not None:
            own, true = masks[frame], sequence.objects[frame]
            single[row] = (own & true).sum((1, 2)) / np.maximum((own | true).sum((1, 2)), 1)
            whole = true.any(0)
            together[row] = (own & whole).sum() / max((own | whole).sum(), 1)
        elif not np.isnan(boxes[frame, 0]):
            for place in np.flatnonzero(counted[row]):
                single[row, place] = box_iou(boxes[frame], sequence.boxes[frame, place])
    long = counted.sum(0) >= 0.5 * counted.sum(0).max()  # not one seen for some frames alone
    means = np.where(counted, single, 0).sum(0) / np.maximum(counted.sum(0), 1)
    seen = counted.any(1)
    return float(means[long].max()), float(together[seen].mean())


def still(mask: NDArray[np.bool_], count: int) -> tuple[NDArray, NDArray]:
    """One mask for all frames, and its box."""
    boxes = np.full((count, 4), np.nan)
    if mask.any():
        y, x = ndimage.find_objects(mask.astype(np.int8))[0]
        boxes[:] = x.start, y.start, x.stop, y.stop
    return np.broadcast_to(mask, (count, *mask.shape)), boxes


def boxed(box: NDArray[np.float64], count: int, height: int, width: int) -> tuple:
    """One box for all frames, and its mask."""
    y, x = np.mgrid[:height, :width] + 0.5
    mask = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    return np.broadcast_to(mask, (count, height, width)), np.broadcast_to(box, (count, 4))


def first_true(sequence: Annotated) -> list[tuple]:
    """Each object's first mask or box, held still: the best is taken, as for the tube."""
    held = []
    count, (height, width) = len(sequence.frames), sequence.frames.shape[-2:]
    for place in range(sequence.boxes.shape[1]):
        seen = np.flatnonzero(~np.isnan(sequence.boxes[:, place, 0]))
        if not len(seen):
            continue
        if sequence.objects is not None:
            held.append(still(sequence.objects[seen[0], place], count))
        else:
            held.append(boxed(sequence.boxes[seen[0], place], count, height, width))
    return held


def mean_size(group: list[Annotated]) -> tuple[float, float]:
    """Mean width and height of the true boxes, in shares of the frame; sequences count alike."""
    sizes = []
    for sequence in group:
        height, width = sequence.frames.shape[-2:]
        sides = (sequence.boxes[..., 2:] - sequence.boxes[..., :2]) / (width, height)
        sizes.append(np.nanmean(sides, axis=(0, 1)))
    share = np.mean(sizes, axis=0)
    return float(share[0]), float(share[1])


def measured(
    sequence: Annotated, size: tuple[float, float], trackers: dict[str, Callable[[Tensor], Tracked]]
) -> tuple[dict[str, float], Tracked, dict[str, float]]:
    """IoU of everything on a sequence, the tube, and the seconds that each tracker took."""
    count, (height, width) = len(sequence.frames), sequence.frames.shape[-2:]
    found, seconds = {}, {}
    for name, tracker in trackers.items():
        start = time.process_time()
        tracked = tracker(sequence.frames)
        seconds[name] = time.process_time() - start
        best, whole = score(sequence, tracked.masks.numpy(), tracked.boxes.double().numpy())
        if name == "tube":
            tube = tracked
            found["tube, all"], found["found"] = whole, float(tracked.found.float().mean())
        found[name] = best
    own = np.flatnonzero(tube.found.numpy())
    mask = tube.masks[own[0]].numpy() if len(own) else np.zeros((height, width), bool)
    found["own first held still"] = score(sequence, *still(mask, count))[0]
    found["true first held still"] = max(score(sequence, *held)[0] for held in first_true(sequence))
    half = np.array([size[0] * width, size[1] * height]) / 2
    middle = np.array([width, height]) / 2
    centred = np.concatenate([middle - half, middle + half])
    found["centred box"] = score(sequence, *boxed(centred, count, height, width))[0]
    return found, tube, seconds


def drawn(sequence: Annotated, tube: Tracked, columns: int = 6) -> Image.Image:
    """Frames of a sequence with the tube in red and the truth in green."""
    tiles = []
    for frame in np.linspace(0, len(sequence.frames) - 1, columns).astype(int):
        pixels = sequence.frames[frame].permute(1, 2, 0).numpy().copy()
        mask = tube.masks[frame].numpy()
        pixels[mask] = (0.6 * pixels[mask] + 0.4 * np.array([255, 40, 40])).astype(np.uint8)
        pixels[mask ^ ndimage.binary_erosion(mask)] = (255, 0, 0)
        picture = Image.fromarray(pixels)
        pen = ImageDraw.Draw(picture)
        if sequence.objects is not None:
            for true in sequence.objects[frame]:
                edge = true ^ ndimage.binary_erosion(true)
                pen.point([(int(x), int(y)) for y, x in np.argwhere(edge)], fill=(0, 255, 0))
        else:
            for box in sequence.boxes[frame][~np.isnan(sequence.boxes[frame, :, 0])]:
                pen.rectangle(box.tolist(), outline=(0, 255, 0))
        tiles.append(np.asarray(picture))
    return Image.fromarray(np.concatenate(tiles, axis=1))


def job_seconds(root: Path) -> tuple[float, float] | None:
    """Processor time of a frame of a video below the folder: decoding it, tracking it.

    As the job does it: frames are read at the working size of the saliency.
    """
    decoding, tracking = [], []
    tracker = Tracker(MotionSaliency())
    for file in sorted(root.rglob("v_*.mp4"))[:4]:
        with VideoReader(file) as reader:
            height, width = reader.info.height, reader.info.width
            short = tracker.saliency.short_side
            size = (short, round(short * width / height))
            start = time.process_time()
            pixels, _ = reader.read(np.arange(len(reader.times))[None], size=size)
            middle = time.process_time()
            tracker(torch.from_numpy(pixels[0]).permute(0, 3, 1, 2).contiguous())
            decoding.append((middle - start) / pixels.shape[1])
            tracking.append((time.process_time() - middle) / pixels.shape[1])
    return (float(np.median(decoding)), float(np.median(tracking))) if decoding else None


COLUMNS = (
    "tube",
    "tube, all",
    "found",
    "centred box",
    "own first held still",
    "true first held still",
)


def report(title: str, rows: list[dict[str, float]], names: tuple[str, ...]) -> dict[str, float]:
    means = {name: float(np.nanmean([row[name] for row in rows])) for name in names}
    print(f"{title:34s}" + "".join(f"{means[name]:10.3f}" for name in names), flush=True)
    return means


def thinned(whole: Annotated, every: int) -> Annotated:
    """A sequence of every so many frames."""
    step = slice(None, None, every)
    return Annotated(
        whole.name,
        whole.group,
        whole.frames[step],
        None if whole.objects is None else whole.objects[step],
        whole.boxes[step],
        whole.known[step],
    )


class Measuring:
    """Measures groups of sequences, prints as it goes, keeps numbers and times."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tuned = set(options.tuned.split(","))
        self.trackers: dict[str, Callable[[Tensor], Tracked]] = {"tube": Tracker(MotionSaliency())}
        if options.peers:
            for name in ("spectral residual", "fine grained"):
                self.trackers[name] = Tracker(Peer(name))
        self.names = (*COLUMNS, *(name for name in self.trackers if name != "tube"))
        self.numbers: dict[str, dict[str, float]] = {}
        self.spent = dict.fromkeys(self.trackers, 0.0)
        self.frames = 0

    def group(self, group: str, sequences: list[Annotated]) -> None:
        """Measures a group."""
        size = mean_size(sequences)
        rows: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for sequence in sequences:
            was_tuned = sequence.name in self.tuned
            found, tube, seconds = measured(sequence, size, self.trackers)
            self.frames += len(sequence.frames)
            for name, value in seconds.items():
                self.spent[name] += value
            rows[was_tuned].append(found)
            self.numbers[f"{group}: {sequence.name}"] = found
            if not group.startswith("built-in"):
                report(f"  {sequence.name}" + " (tuned on)" * was_tuned, [found], self.names)
            if self.options.pictures is not None and len(rows[False]) <= 12:
                stem = f"{group}_{sequence.name}".replace(", ", "_").replace(" ", "_")
                drawn(sequence, tube).save(self.options.pictures / f"{stem}.png")
        for was_tuned, found in rows.items():
            if found:
                label = f"{group}, {'tuned on' if was_tuned else 'held back'}"
                self.numbers[f"mean of {label}"] = report(
                    f"{label} ({len(found)})", found, self.names
                )

    def times(self) -> None:
        """Prints what it cost."""
        for name, seconds in self.spent.items():
            each = seconds / self.frames
            hours = [each * KINETICS * rate / self.options.every / 64 / 3600 for rate in (25, 30)]
            print(
                f"{name}: {1e3 * each:.2f} ms a frame of short side {SHORT}, {1 / each:.0f} frames "
                f"a second and core; Kinetics-400 on 64 cores {hours[0]:.2f}-{hours[1]:.2f} h "
                "(25-30 frames a second)"
            )
        folder = self.options.folder
        if folder is not None and (spent := job_seconds(folder)) is not None:
            for name, each in zip(("decoding", "tracking"), spent, strict=True):
                hours = each * KINETICS * 25 / 64 / 3600
                print(
                    f"read at the working size, {name}: {1e3 * each:.2f} ms a frame, "
                    f"{1 / each:.0f} frames a second and core; Kinetics-400 on 64 cores "
                    f"{hours:.2f} h (25 frames a second, all of them)"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="annotated sequences")
    parser.add_argument("--videos", type=int, default=64, help="built-in videos of each kind")
    parser.add_argument("--every", type=int, default=1, help="every so many frames are tracked")
    parser.add_argument("--tuned", default=TUNED, help="sequences that were tuned on")
    parser.add_argument("--peers", action="store_true", help="the same with OpenCV's saliency")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of tubes")
    parser.add_argument("--out", type=Path, help="write all numbers there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)

    measuring = Measuring(options)
    print("columns: " + "; ".join(measuring.names))
    print(" " * 34 + "".join(f"{name[:9]:>10s}" for name in measuring.names))
    groups: dict[str, list[Annotated]] = {}
    if options.folder is not None:
        for reader in (davis, rectangles, ucf24):
            for sequence in reader(options.folder):
                groups.setdefault(sequence.group, []).append(thinned(sequence, options.every))
    for borders in ("wrap", "bounce"):
        made = built_in(options.videos, "test", borders)
        groups[f"built-in, {borders}"] = [thinned(video, options.every) for video in made]
    for group, sequences in groups.items():
        measuring.group(group, sequences)
    measuring.times()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"commit {commit or 'unknown'}, torch {torch.__version__}, one thread")
    if options.out is not None:
        options.out.write_text(json.dumps(measuring.numbers, indent=1))


if __name__ == "__main__":
    main()
