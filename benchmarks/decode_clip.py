"""Time to read one clip of 16 frames, stride 2, at a random start, against other readers.

    python benchmarks/decode_clip.py [VIDEO ...] [--clips 24] [--size 112]

Without files it encodes its own: ten seconds of moving texture, 340 x 256, 25 frames a second,
H.264, with key frames every 250, 12 and 1 frames, with and without B frames. Every reader opens
the file anew for each clip, as a shuffled epoch does, and uses one thread. All readers take turns
on the same clip. Before anything is timed, each reader's frames are compared with a sequential
decode; one that differs is reported and not timed, and if it is ours the benchmark stops.

Readers that are not installed are named and left out. Two tables: whole frames in their own size,
and a random window scaled to SIZE x SIZE (ours in one conversion; torchcodec's frames cut and
scaled by torchvision, antialiased, as uint8).
"""

import argparse
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import torch

from lightning_vssl.data.decode import VideoReader

Reader = Callable[[Path, np.ndarray], np.ndarray]


def texture(frames: int = 250, height: int = 256, width: int = 340) -> np.ndarray:
    """Smooth noise that moves, with patches that move against it: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    side = 640
    fy = np.fft.fftfreq(side)[:, None]
    fx = np.fft.rfftfreq(side)[None]
    fall = 1 / (0.004 + np.hypot(fy, fx)) ** 1.2
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) * fall)
    noise[1:] = noise[0] + 0.2 * noise[1:]  # mostly grey, as in most pictures
    noise -= noise.mean((1, 2), keepdims=True)
    image = np.clip(128 + 45 * noise / noise.std((1, 2), keepdims=True), 0, 255).astype(np.uint8)
    out = np.empty((frames, height, width, 3), np.uint8)
    speed = rng.uniform(-3, 3, (6, 2))
    begin = rng.uniform(40, 200, (6, 2))
    for t in range(frames):
        dy, dx = int(100 + 60 * np.sin(t / 40)), int(120 + 80 * np.cos(t / 50))
        out[t] = image[:, dy : dy + height, dx : dx + width].transpose(1, 2, 0)
        for k in range(6):
            y, x = (np.abs((begin[k] + speed[k] * t) % 380 - 190)).astype(int)
            out[t, y : y + 48, x : x + 56] = image[:, 60 * k : 60 * k + 48, 200:256].transpose(
                1, 2, 0
            )
    return out


def encode(path: Path, frames: np.ndarray, gop: int, b_frames: int) -> Path:
    options = {"g": str(gop), "bf": str(b_frames), "crf": "23", "preset": "medium", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    return path


def sequential(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def ours(path: Path, indices: np.ndarray) -> np.ndarray:
    with VideoReader(path) as video:
        return video.read(indices[None])[0][0]


def torchcodec(path: Path, indices: np.ndarray, mode: str) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode=mode)
    return decoder.get_frames_at(indices.tolist()).data.numpy()


def decord(path: Path, indices: np.ndarray) -> np.ndarray:
    import decord as module

    return module.VideoReader(str(path), num_threads=1).get_batch(indices.tolist()).asnumpy()


def pytorchvideo(path: Path, indices: np.ndarray) -> np.ndarray:
    from pytorchvideo.data.encoded_video import EncodedVideo

    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
    video = EncodedVideo.from_path(str(path), decode_audio=False)
    # Half a frame of margin on both sides, because it compares times in floating point.
    clip = video.get_clip((indices[0] - 0.5) / rate, (indices[-1] + 0.5) / rate)["video"]
    video.close()
    return clip[:, indices - indices[0]].permute(1, 2, 3, 0).byte().numpy()


def pyav_seek(path: Path, indices: np.ndarray) -> np.ndarray:
    """Plain PyAV: seek to the key frame before, decode all frames up to the last, convert each."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        tick = 1 / (stream.average_rate * stream.time_base)
        wanted = {round(i * tick): n for n, i in enumerate(indices.tolist())}
        container.seek(min(wanted), stream=stream)
        out: list[np.ndarray | None] = [None] * len(indices)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                out[wanted.pop(frame.pts)] = frame.to_ndarray(format="rgb24")
                if not wanted:
                    break
        return np.stack([picture for picture in out if picture is not None])


def ours_cut(path: Path, indices: np.ndarray, window: np.ndarray, size: int) -> np.ndarray:
    with VideoReader(path) as video:
        return video.read(indices[None], windows=window[None], size=(size, size))[0][0]


def torchcodec_cut(path: Path, indices: np.ndarray, window: np.ndarray, size: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2.functional import resized_crop

    frames = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate").get_frames_at(
        indices.tolist()
    )
    x0, y0, x1, y1 = (int(edge) for edge in window)
    out = resized_crop(frames.data, y0, x0, y1 - y0, x1 - x0, [size, size], antialias=True)
    return out.permute(0, 2, 3, 1).numpy()


def readers() -> dict[str, Reader]:
    found: dict[str, Reader] = {"ours": ours}
    peers: list[tuple[str, str, Reader]] = [
        ("torchcodec", "torchcodec approximate", partial(torchcodec, mode="approximate")),
        ("torchcodec", "torchcodec exact", partial(torchcodec, mode="exact")),
        ("decord", "decord", decord),
        ("pytorchvideo", "pytorchvideo get_clip", pytorchvideo),
    ]
    for module, name, reader in peers:
        if find_spec(module) is None:
            print(f"{name}: not installed, left out")
        else:
            found[name] = reader
    return {**found, "PyAV seek": pyav_seek}


def checked(path: Path, found: dict[str, Reader], starts: np.ndarray) -> dict[str, Reader]:
    """The readers whose clips equal a sequential decode.

    Peers may bring another FFmpeg, whose MPEG-4 inverse transform rounds differently: up to two
    grey levels on average are allowed them, and named.
    """
    truth = sequential(path)
    good = {}
    for name, reader in found.items():
        try:
            gap = max(
                np.abs(reader(path, clip(start)).astype(float) - truth[clip(start)]).mean()
                for start in starts
            )
        except (OSError, RuntimeError, ValueError, IndexError, TypeError) as error:
            print(f"{path.name}: {name} fails, left out ({str(error).splitlines()[0]})")
            continue
        if gap and name == "ours":
            raise SystemExit(f"{path.name}: ours differs from a sequential decode")
        if gap:
            verdict = "left out" if gap > 2 else "timed all the same"
            print(
                f"{path.name}: {name} is {gap:.2f} grey levels from a sequential decode, {verdict}"
            )
        if gap > 2:
            continue
        good[name] = reader
    return good


def clip(start: int) -> np.ndarray:
    return start + 2 * np.arange(16)


def interleaved(
    contenders: dict[str, Callable[[int], object]], starts: np.ndarray, repeats: int = 2
) -> dict[str, np.ndarray]:
    """CPU and wall milliseconds, the best of two for each start: (clips, 2)."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn, start in enumerate(starts):
        names = list(contenders)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        best = dict.fromkeys(names, (np.inf, np.inf))
        for name in names * repeats:
            cpu, wall = time.process_time(), time.perf_counter()
            contenders[name](int(start))
            spent = (time.process_time() - cpu, time.perf_counter() - wall)
            best[name] = min(best[name], (1e3 * spent[0], 1e3 * spent[1]))
        for name in names:
            times[name].append(best[name])
    return {name: np.array(values) for name, values in times.items()}


def report(title: str, times: dict[str, np.ndarray]) -> None:
    print(f"\n{title}\n{'':26}CPU ms (quartiles)      wall ms   CPU ratio to ours (quartiles)")
    for name, spent in times.items():
        low, mid, high = np.percentile(spent[:, 0], [25, 50, 75])
        ratio = np.percentile(spent[:, 0] / times["ours"][:, 0], [25, 50, 75])
        print(
            f"{name:26}{mid:6.1f} ({low:.1f}-{high:.1f})".ljust(50)
            + f"{np.median(spent[:, 1]):7.1f}   "
            f"{ratio[1]:.2f} ({ratio[0]:.2f}-{ratio[2]:.2f})"
        )


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    ).stdout.strip()
    versions = []
    for name in ("av", "torch", "torchcodec", "decord", "pytorchvideo", "numpy"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"commit {commit}; {cpu}, {os.cpu_count()} cores; {', '.join(versions)}"


def measure(path: Path, clips: int, size: int) -> None:
    frames = VideoReader(path)
    count, width, height = frames.info.frames, frames.info.width, frames.info.height
    frames.close()
    if count < 32:
        print(f"{path.name}: {count} frames are too few for a clip of 16 at stride 2")
        return
    rng = np.random.default_rng(0)
    starts = rng.integers(0, count - 31, clips)
    good = checked(path, readers(), starts[:5])
    runs = {name: (lambda s, r=reader: r(path, clip(s))) for name, reader in good.items()}
    kb = path.stat().st_size // 1000
    report(f"{path.name} ({width}x{height}, {kb} kB), whole frames", interleaved(runs, starts))
    window = (
        np.array([width // 8, height // 8, width // 8 * 7, height // 8 * 7], dtype=float) // 2 * 2
    )
    cutters = {"ours": ours_cut}
    if "torchcodec approximate" in good:
        cutters["torchcodec + torchvision"] = torchcodec_cut
    first = {name: cut(path, clip(0), window, size).astype(float) for name, cut in cutters.items()}
    for name, pixels in first.items():
        gap = np.abs(pixels - first["ours"]).mean()
        if gap > 4:
            raise SystemExit(f"{path.name}: {name} is {gap:.1f} grey levels from ours")
    runs = {n: (lambda s, c=cut: c(path, clip(s), window, size)) for n, cut in cutters.items()}
    report(f"{path.name}, window scaled to {size} x {size}", interleaved(runs, starts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--size", type=int, default=112)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos
        if not videos:
            frames = texture()
            kinds = [(250, 3), (12, 3), (250, 0), (12, 0), (1, 0)]
            videos = [
                encode(Path(folder) / f"gop{gop}_b{b}.mp4", frames, gop, b) for gop, b in kinds
            ]
        for video in videos:
            measure(video, args.clips, args.size)


if __name__ == "__main__":
    main()
