"""Check the video reader against a full sequential decode, file by file.

    python benchmarks/media_check.py FOLDER MANIFEST.csv [--reads 20] [--match TEXT]

The manifest has a column `path` (relative to FOLDER) and, for videos, `codec`, `n_frames` and
`decode` ("full" where all frames are known to decode). Files of still images are left out. For
each video the number of frames must equal the manifest's and that of a sequential decode, times
must increase, and random clips (random start and stride) must equal the sequential decode bit for
bit. Only a file the manifest does not mark as "full" may be refused. Ends with status 1 if one
file fails.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import av
import numpy as np

from lightning_vssl.data.decode import UnreadableVideo, VideoReader, probe

STILLS = {"", "mjpeg", "png"}


def reference(path: Path) -> list[np.ndarray]:
    """All frames in the order a plain decode gives them, turned as they are displayed."""
    frames = []
    with av.open(str(path), metadata_errors="replace") as container:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            frames.append(np.rot90(picture, round(frame.rotation / 90) % 4))
    return frames


def check(path: Path, count: int, reads: int, rng: np.random.Generator) -> str:
    """Empty if all is well, else what is wrong."""
    truth = reference(path)
    if len(truth) != count:
        return f"manifest says {count} frames, a decode gives {len(truth)}"
    exact = probe(path, decode=True)
    with VideoReader(path) as video:
        if not video.info.frames == exact.frames == len(video.times) == count:
            return f"{video.info.frames} frames, {exact.frames} with decode=True, not {count}"
        if video.times[0] != 0 or (np.diff(video.times) <= 0).any():
            return "times do not increase from 0"
        for _ in range(reads):
            stride = int(rng.integers(1, 5))
            start = int(rng.integers(0, count))
            clip = np.minimum(start + stride * np.arange(16), count - 1)
            other = rng.integers(0, count, 16)
            got, _ = video.read(np.stack([clip, other]))
            want = np.stack([[truth[i] for i in row] for row in (clip, other)])
            if not np.array_equal(got, want):
                return f"start {start} stride {stride}: pixels differ"
    return ""


def outcome(row: dict[str, str], path: Path, reads: int, rng: np.random.Generator) -> str:
    full = row["decode"] == "full"
    try:
        return check(path, int(row["n_frames"]), reads, rng) or "equal"
    except UnreadableVideo as error:
        return f"refused, wrongly: {error.reason}" if full else f"refused: {error.reason}"
    except av.FFmpegError as error:
        if full:
            return f"plain decode fails: {error}"
    try:
        with VideoReader(path, verify=True):
            return "read, although a plain decode fails"
    except UnreadableVideo as error:
        return f"refused: {error.reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--reads", type=int, default=20)
    parser.add_argument("--match", default="")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with args.manifest.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["codec"] not in STILLS]
    bad = 0
    for row in (row for row in rows if args.match in row["path"]):
        start = time.perf_counter()
        said = outcome(row, args.folder / row["path"], args.reads, rng)
        bad += not (said == "equal" or said.startswith("refused:"))
        print(f"{time.perf_counter() - start:6.1f} s  {row['path']}: {said}", flush=True)
    print(f"{len(rows)} videos, {bad} wrong")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
