"""How long J and F of a frame take, beside davis2017-evaluation's own (BSD), at difference 0.

    python benchmarks/davis_jf.py --peer CHECKOUT_OF_davis2017-evaluation [--masks FOLDER]

Both score the same pairs of masks in memory: those of a folder of DAVIS's PNG (``--masks``, one
sequence) against themselves moved by a few pixels, or drawn ones, 480 x 854 with three objects.
Ours takes ids, as files and predictions have them; the peer takes a binary mask for each object,
which is made for it beforehand and not timed. All values are compared first: one that differs ends
the run. One thread, CPU time, the two in turn; medians, quartiles and the ratio.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from lightning_vssl.data.masks import read_mask
from lightning_vssl.metrics.segmentation import score_frame

MOVED = (5, -7)


def drawn(frames: int, objects: int = 3) -> list[np.ndarray]:
    """Smooth blobs that cover some of the frame, (480, 854) ids each."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(frames):
        noise = rng.standard_normal((objects + 1, 48, 86))
        smooth = ndimage.gaussian_filter(noise, (0, 6, 6))
        smooth[0] += 0.03
        large = ndimage.zoom(smooth, (1, 10, 10), order=1)[:, :480, :854]
        made.append(large.argmax(0).astype(np.uint8))
    return made


def official(truth: np.ndarray, mask: np.ndarray) -> tuple[list[float], list[float]]:
    """J and F of each object by the peer, (K, H, W) bool each."""
    from davis2017.metrics import db_eval_boundary, db_eval_iou

    pairs = [(a[None], b[None]) for a, b in zip(truth, mask, strict=True)]
    return (
        [float(db_eval_iou(a, b)[0]) for a, b in pairs],
        [float(db_eval_boundary(a, b)[0]) for a, b in pairs],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="checkout of davis2017-evaluation")
    parser.add_argument("--masks", type=Path, help="folder of one sequence's masks")
    parser.add_argument("--frames", type=int, default=24)
    options = parser.parse_args()
    if options.masks is not None:
        files = sorted(options.masks.glob("*.png"))[: options.frames]
        truth = [read_mask(file) for file in files]
    else:
        truth = drawn(options.frames)
    masks = [np.roll(ids, MOVED, (0, 1)) for ids in truth]
    objects = int(max(ids[ids < 255].max(initial=0) for ids in truth))
    if options.peer is not None:
        import cv2

        cv2.setNumThreads(1)
        sys.path.insert(0, str(options.peer))

    ours, theirs = [], []
    for a, b in zip(truth, masks, strict=True):
        begin = time.process_time()
        found = score_frame(a, b, objects)
        ours.append(1e3 * (time.process_time() - begin))
        if options.peer is None:
            continue
        each = [np.stack([one == k + 1 for k in range(objects)]) for one in (a, b)]
        begin = time.process_time()
        region, contour = official(*each)
        theirs.append(1e3 * (time.process_time() - begin))
        if found.region.tolist() != region or found.contour.tolist() != contour:
            raise SystemExit(f"values differ: {found} here, {region} and {contour} there")
    size = " x ".join(str(side) for side in truth[0].shape)
    print(f"{len(truth)} frames of {size}, {objects} objects; CPU ms a frame, quartiles")
    for name, times in (("ours", ours), ("davis2017-evaluation", theirs)):
        if times:
            print(f"{name:22}", *(f"{value:8.2f}" for value in statistics.quantiles(times, n=4)))
    if theirs:
        ratios = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
        print(f"{'ratio':22}", *(f"{value:8.2f}" for value in ratios), " at difference 0")


if __name__ == "__main__":
    main()
