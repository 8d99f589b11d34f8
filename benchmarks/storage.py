"""Clips a second from videos as they are, transcoded in several ways, and packed into shards.

    python benchmarks/storage.py [VIDEO ...] [--clips 8] [--size 112] [--variants NAME ...]
        [--save FILE.json]

Without files it encodes ten seconds of moving texture as a web video is: 1280 x 720, a keyframe
every 250 frames. Each video is transcoded by `lightning_vssl.jobs.transcode` once for each variant,
named by what differs from the recipe's settings. A clip is 16 frames, every second one, at a random
start, a window of it scaled to SIZE x SIZE; the file is opened anew for each, on one thread. All
contenders take turns on the same clip; the better of two is kept, in processor time. Beside ours,
the originals and the first variant are read by torchcodec and by plain PyAV (seek, decode,
convert), without the window. Before anything is timed, the shard's clips are compared with the
file's, bit for bit, and the transcoded videos' frames with the originals' by their number and times
and by PSNR. With --save a run that was stopped goes on with the videos that are missing.
"""

import argparse
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from decode_clip import clip, encode, interleaved, machine, pyav_seek, texture, torchcodec

from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.place import Place
from lightning_vssl.jobs.transcode import Transcode, TranscodeJob, target

VARIANTS: dict[str, dict[str, object]] = {
    "transcoded": {},
    "not for fast decoding": {"fast_decode": False},
    "GOP 6": {"gop": 6},
    "GOP 24": {"gop": 24},
    "all intra": {"gop": 1},
    "B frames": {"b_frames": 2},
    "MPEG-4": {"codec": "mpeg4"},
    "short side 128": {"short_side": 128},
}


def ours(place: Place, start: int, window: np.ndarray, size: int) -> np.ndarray:
    """A clip from a window given in shares of the picture."""
    with VideoReader(place.file, place=place) as video:
        scale = np.array([video.info.width, video.info.height] * 2)
        return video.read(clip(start)[None], windows=(window * scale)[None], size=(size, size))[0]


def transcoded(video: Path, folder: Path, settings: dict[str, object]) -> tuple[Path, float]:
    """The new file, and the frames encoded per second of a core."""
    job = TranscodeJob(**settings)
    work = Transcode(video.parent, folder, job.short_side, job.fps, job.crop_bars, job.coding)
    began = time.process_time()
    with VideoReader(video) as reader:
        frames = int(work(reader, (0.0, np.inf))["frames"])
    return target(video, video.parent, folder), frames / (time.process_time() - began)


def packed(video: Path, shard: Path) -> Place:
    with tarfile.open(shard, "w") as archive:
        archive.add(video, "0.mp4")
    with tarfile.open(shard) as archive:
        member = archive.getmembers()[0]
    return Place(shard, member.offset_data, member.size)


def checked(video: Path, made: Path, place: Place, size: int) -> float:
    """PSNR of a transcoded video against its original, dB; stops where anything differs."""
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    one, other = (ours(p, 0, whole, size) for p in (Place(made), place))
    if not np.array_equal(one, other):
        raise SystemExit(f"{video.name}: the shard's clip is not the file's")
    with VideoReader(video) as before, VideoReader(made) as after:
        if before.info.frames != after.info.frames:
            raise SystemExit(
                f"{video.name}: {before.info.frames} frames, {after.info.frames} after"
            )
        late = np.abs(before.times - after.times).max()
        if late > 1e-5:
            raise SystemExit(f"{video.name}: a frame is {late:.6f} s away from its time")
        near = min(before.info.frames, 64)
        height, width = after.info.height, after.info.width
        pair = [
            r.read(np.arange(near)[None], size=(height, width))[0].astype(float)
            for r in (before, after)
        ]
    return float(10 * np.log10(255**2 / np.square(pair[0] - pair[1]).mean()))


def measure(video: Path, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By contender: mean CPU ms of a clip, MB, frames encoded per second, PSNR."""
    rng = np.random.default_rng(0)
    with VideoReader(video) as reader:
        starts = rng.integers(0, max(1, reader.info.frames - 31), options.clips)
    window = np.array([0.1, 0.1, 0.8, 0.8])
    found: dict[str, dict[str, float]] = {"original": {"MB": video.stat().st_size / 1e6}}
    runs: dict[str, Callable[[int], object]] = {}

    def add(name: str, place: Place) -> None:
        runs[name] = lambda start: ours(place, start, window, options.size)

    add("original", Place(video))
    shard = packed(video, folder / "original.tar")
    add("original, in a shard", shard)
    found["original, in a shard"] = {"MB": video.stat().st_size / 1e6}
    first: Path | None = None
    for name in options.variants:
        made, rate = transcoded(video, folder / name, VARIANTS[name])
        place = packed(made, folder / f"{name}.tar")
        psnr = checked(video, made, place, options.size)
        found[name] = {"MB": made.stat().st_size / 1e6, "encoded": rate, "psnr": psnr}
        add(name, Place(made))
        if first is None:
            first = made
            add(f"{name}, in a shard", place)
            found[f"{name}, in a shard"] = {"MB": found[name]["MB"]}
    assert first is not None
    for of, file in (("original", video), ("transcoded", first)):
        for peer, read in peers().items():
            name = f"{peer}, {of}"
            try:
                read(file, clip(int(starts[0])))
            except Exception as error:
                print(f"{video.name}: {name} fails, left out ({str(error).splitlines()[0]})")
                continue
            runs[name] = lambda start, f=file, r=read: r(f, clip(start))
            found[name] = {"MB": file.stat().st_size / 1e6}
    for name, spent in interleaved(runs, starts).items():
        found[name]["ms"] = float(spent[:, 0].mean())
    return found


def peers() -> dict[str, Callable[[Path, np.ndarray], np.ndarray]]:
    found: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {"PyAV": pyav_seek}
    if find_spec("torchcodec") is not None:
        found["torchcodec"] = lambda path, frames: torchcodec(path, frames, "approximate")
    return found


def report(results: dict[str, dict[str, dict[str, float]]]) -> None:
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    of = next(iter(results)) if len(results) == 1 else f"{len(results)} videos"
    print(
        f"\n{of}\n{'':34}{'MB':>7}{'x MB':>7}{'clips/s':>9}"
        f"{'x clips/s, geometric mean (least-most)':>42}{'PSNR':>7}{'encoded/s':>11}"
    )
    for name in names:
        own = {v: found for v, found in results.items() if name in found}
        base = [found["original"] for found in own.values()]
        these = [found[name] for found in own.values()]
        size = sum(f["MB"] for f in these)
        per = len(these) * 1e3 / sum(f["ms"] for f in these)
        ratio = np.array([b["ms"] / f["ms"] for b, f in zip(base, these, strict=True)])
        spread = f"{np.exp(np.log(ratio).mean()):.2f} ({ratio.min():.2f}-{ratio.max():.2f})"
        psnr = np.mean([f.get("psnr", np.nan) for f in these])
        rate = np.mean([f.get("encoded", np.nan) for f in these])
        print(
            f"{name:34}{size:7.1f}{size / sum(b['MB'] for b in base):7.2f}{per:9.1f}"
            f"{spread:>42}{'' if np.isnan(psnr) else f'{psnr:.1f}':>7}"
            f"{'' if np.isnan(rate) else f'{rate:.0f}':>11}"
            + (f"   ({len(own)} videos)" if len(own) < len(results) else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--save", type=Path, help="write the numbers there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    results = {}
    if options.save is not None and options.save.is_file():
        results = json.loads(options.save.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = options.videos or [
            encode(folder / "web.mp4", texture(250, 720, 1280), gop=250, b_frames=3)
        ]
        for number, video in enumerate(videos):
            if video.name in results:
                continue
            (folder / str(number)).mkdir()
            results[video.name] = measure(video, folder / str(number), options)
            report({video.name: results[video.name]})
            if options.save is not None:
                options.save.write_text(json.dumps(results, indent=1))
    if len(results) > 1:
        report(results)


if __name__ == "__main__":
    main()
