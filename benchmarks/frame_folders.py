"""Folders of JPEG frames against video files of the same frames: clips a CPU second, and bytes.

    python benchmarks/frame_folders.py [VIDEO ...] [--clips 24] [--lines 100 240]

Something-Something comes as frames of 100 lines (V1) and as VP9 videos of 240 lines (V2). Here the
first four seconds of each video at 12 frames a second, without files of scenes of our own, are
scaled to so many lines and written three ways: JPEG of quality 85 in a folder, VP9 in WebM with a
key frame every 30, H.264 in MP4 likewise. Read are 32 consecutive frames from a random start (the
protocol of CtP on V1) and 8 frames spread over the video, a random window of each scaled to
112 x 112. Every reader opens its files anew for each clip, uses one thread and takes turns with the
others on the same clip. The peer reads the same folder plainly: Pillow decodes whole frames,
torchvision cuts and scales them, antialiased. Its pixels and ours are compared before anything is
timed.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from decode_clip import interleaved, machine
from PIL import Image
from torchvision.transforms.v2 import functional

from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.synthetic_files import encode, h264, jpeg, vp9, write_folder
from lightning_vssl.data.synthetic_scenes import draw
from lightning_vssl.data.windows import SizeCrop

FPS, SECONDS, SIZE = 12.0, 4, 112
CLIPS = {"32 consecutive frames": 32, "8 frames of all": 8}


def frames_of(video: Path, lines: int) -> np.ndarray:
    """Four seconds of a video at 12 frames a second, (T, lines, W, 3) uint8."""
    with VideoReader(video) as reader:
        ticks = np.arange(0, min(SECONDS, reader.info.duration), 1 / FPS)
        shown = np.searchsorted(reader.times, ticks + 1e-6, side="right") - 1
        width = round(reader.info.width * lines / reader.info.height / 2) * 2
        return reader.read(shown[None], size=(lines, width))[0][0]


def written(folder: Path, frames: np.ndarray) -> dict[str, Path]:
    """The frames as a folder of JPEG and as two videos."""
    paths = {
        "JPEG frames": folder / "frames",
        "WebM, VP9": folder / "video.webm",
        "MP4, H.264": folder / "video.mp4",
    }
    named = ((f"{t:05d}.jpg", jpeg(frame, 85)) for t, frame in enumerate(frames, start=1))
    write_folder(paths["JPEG frames"], named)
    encode(paths["WebM, VP9"], frames, FPS, vp9())
    encode(paths["MP4, H.264"], frames, FPS, h264())
    return paths


def bytes_of(path: Path) -> int:
    return sum(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path]))


def plan(count: int, length: int, frame: tuple[int, int], seed: int) -> tuple[np.ndarray, ...]:
    """Frame numbers (1, T) and window (1, 4) of a clip."""
    rng = np.random.default_rng(seed)
    if length == 8:
        numbers = np.linspace(0, count - 1, length).astype(np.int64)
    else:
        start = rng.integers(max(count - length, 0) + 1)
        numbers = np.minimum(start + np.arange(length), count - 1)
    return numbers[None], SizeCrop(SIZE).sample(*frame, 1, rng)


def ours(path: Path, numbers: np.ndarray, window: np.ndarray) -> np.ndarray:
    with VideoReader(path, fps=FPS) as reader:
        return reader.read(numbers, windows=window, size=(SIZE, SIZE))[0][0]


def plain(path: Path, numbers: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Pillow and torchvision; the window's edges at whole pixels."""
    names = sorted(path.iterdir())
    pictures = [np.asarray(Image.open(names[n]).convert("RGB")) for n in numbers[0]]
    video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    x0, y0, x1, y1 = window[0].round().astype(int).tolist()
    cut = functional.resized_crop(video, y0, x0, y1 - y0, x1 - x0, [SIZE, SIZE], antialias=True)
    return cut.permute(0, 2, 3, 1).numpy()


def measure(frames: list[np.ndarray], clips: int) -> None:
    """Prints the table of one size."""
    spent: dict[str, dict[str, list[np.ndarray]]] = {kind: {} for kind in CLIPS}
    sizes: dict[str, int] = {}
    for number, shown in enumerate(frames):
        with tempfile.TemporaryDirectory() as folder:
            paths = written(Path(folder), shown)
            for name, path in paths.items():
                sizes[name] = sizes.get(name, 0) + bytes_of(path)
            readers: dict[str, Callable[..., np.ndarray]] = {
                name: partial(ours, path) for name, path in paths.items()
            }
            readers["JPEG frames, plainly"] = partial(plain, paths["JPEG frames"])
            for kind, length in CLIPS.items():
                planned = partial(plan, len(shown), length, shown.shape[1:3])
                compare(readers, planned(0), number)
                runs = {
                    name: (lambda seed, r=reader, p=planned: r(*p(seed)))
                    for name, reader in readers.items()
                }
                for name, times in interleaved(runs, np.arange(clips)).items():
                    spent[kind].setdefault(name, []).append(times[:, 0])
    for kind, times in spent.items():
        print(f"\n{kind}, {frames[0].shape[1]} lines, {len(frames)} videos")
        print(f"{'':22}clips per CPU second, ratio to JPEG frames (quartiles)   kB a video")
        base = np.concatenate(times["JPEG frames"])
        for name, parts in times.items():
            own = np.concatenate(parts)
            low, mid, high = np.percentile(base / own, [25, 50, 75])
            size = f"{sizes[name] / len(frames) / 1e3:8.0f}" if name in sizes else ""
            print(
                f"{name:22}{1e3 / own.mean():7.0f}   {mid:.2f} ({low:.2f}-{high:.2f})".ljust(68)
                + size
            )


def compare(
    readers: dict[str, Callable[..., np.ndarray]], clip: tuple[np.ndarray, ...], number: int
) -> None:
    """Stops where the readers do not show the same frames."""
    wanted = readers["JPEG frames"](*clip).astype(float)
    for name, reader in readers.items():
        gap = np.abs(reader(*clip) - wanted).mean()
        if gap > 6:
            raise SystemExit(f"video {number}: {name} is {gap:.1f} grey levels from JPEG frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--clips", type=int, default=24, help="of each video")
    parser.add_argument("--lines", type=int, nargs="+", default=[100, 240])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for lines in args.lines:
        if args.videos:
            frames = [frames_of(video, lines) for video in args.videos]
        else:
            size = (lines, lines * 4 // 3 // 2 * 2)
            frames = [draw(0, n, "train", size=size, fps=FPS).frames for n in range(8)]
        measure(frames, args.clips)


if __name__ == "__main__":
    main()
