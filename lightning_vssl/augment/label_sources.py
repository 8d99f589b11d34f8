"""Where Catch-the-Patch's trajectories can come from besides being pre-set.

Source: Wang et al., CVPR 2021, section 5.2 and Table 1: a teacher that tracks, the network's own
backward tracking, and annotations. There is no public code for any of the three; what the paper
leaves open is said where it was chosen.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_vssl.augment.patches import PatchTracks, Tracks
from lightning_vssl.augment.trajectories import (
    LabelledClips,
    LabelSource,
    draw_first_boxes,
    make_anchors,
    whole_pixels,
)
from lightning_vssl.nn.keyed import uniform

_SYNTHETIC = 41  # stream of the keyed generator; those of the patches end at 40


class TeacherTracks(LabelSource):
    """Boxes followed by KCF through clips as they are: Table 1, "Teacher tracker".

    Henriques, Caseiro, Martins, Batista, "High-Speed Tracking with Kernelized Correlation Filters"
    (TPAMI 2015), as OpenCV has it: on grey levels and colour names instead of gradient histograms,
    in whole pixels, without a change of size. The boxes start anywhere, as patches do; from the
    frame in which the tracker reports that it has lost one, the weights are 0. The paper does not
    say how many boxes a clip has, nor where they start.

    Runs on the CPU, in threads of the training process; the extra ``regions`` brings OpenCV.

    Args:
        trajectories: Boxes K per clip.
        scales: Sizes of the boxes, the square root of the area in pixels.
        ratios: Aspect ratios, width over height.
        scale_jitter: Each side is multiplied by exp of a number in plus or minus this.
        threads: Boxes that are followed at a time.

    Raises:
        ImportError: If OpenCV is not installed, or comes without its contributed modules.
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        trajectories: int = 3,
        scales: Sequence[float] = (16, 24, 28, 32, 48, 64),
        ratios: Sequence[float] = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0),
        scale_jitter: float = 0.18,
        threads: int = 8,
    ) -> None:
        super().__init__()
        for name, value in (("trajectories", trajectories), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        _check_import()
        self.trajectories = trajectories
        self.scale_jitter = scale_jitter
        self.threads = threads
        self.register_buffer("anchors", make_anchors(scales, ratios), persistent=False)  # (A, 2)
        self.anchors: Tensor

    def draw(self, key: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Draws the first boxes, (B, K, 4) int64, xyxy in pixels; see `LabelSource.draw`."""
        canvas = torch.tensor([width, height], device=key.device, dtype=torch.float32)
        centre, size = draw_first_boxes(
            key, self.trajectories, self.anchors, self.scale_jitter, canvas
        )
        return whole_pixels(centre, size, canvas)

    def forward(self, clips: Tensor, drawn: Tensor, boxes: Tensor | None = None) -> LabelledClips:
        """Follows the boxes; the clips stay as they are. See `LabelSource.forward`."""
        pixels = (clips.flip(1) * 255).round().byte().permute(0, 2, 3, 4, 1)  # BGR, as OpenCV's
        frames = pixels.contiguous().cpu().numpy()  # (B, T, H, W, 3)
        starts = drawn.tolist()
        batch, count = drawn.shape[:2]

        def followed(which: tuple[int, int]) -> npt.NDArray[np.float32]:
            return follow_kcf(frames[which[0]], starts[which[0]][which[1]])

        with ThreadPoolExecutor(self.threads) as pool:
            rows = list(pool.map(followed, product(range(batch), range(count))))
        tracks = torch.from_numpy(np.stack(rows)).to(clips)
        tracks = tracks.view(batch, count, -1, 5)  # (B, K, T, 4 + whether it is found)
        return LabelledClips(clips, tracks[..., :4], tracks[..., 4])


def follow_kcf(frames: npt.NDArray[np.uint8], box: Sequence[int]) -> npt.NDArray[np.float32]:
    """Follows a box with OpenCV's KCF.

    Args:
        frames: BGR, (T, H, W, 3).
        box: xyxy in pixels of the first frame.

    Returns:
        (T, 5): the box in each frame, xyxy in pixels, clipped to the frame, and 1. From where the
        tracker loses it on, the last box and 0.
    """
    import cv2

    height, width = frames.shape[1:3]
    x1, y1, x2, y2 = box
    tracker = cv2.TrackerKCF.create()
    tracker.init(frames[0], (x1, y1, x2 - x1, y2 - y1))
    tracker.update(frames[0])  # OpenCV learns the look at the first update, not in init
    found = np.zeros((len(frames), 5), np.float32)
    found[:, :4] = box
    found[0, 4] = 1
    for t, frame in enumerate(frames[1:], 1):
        seen, (left, top, w, h) = tracker.update(frame)
        right, bottom = min(left + w, width), min(top + h, height)
        left, top = max(left, 0), max(top, 0)
        if not seen or right <= left or bottom <= top:
            break
        found[t:, :4] = left, top, right, bottom
        found[t, 4] = 1
    return found


class CycleTracks(LabelSource):
    """Labels by cycle consistency: Table 1, "Cycle consistency".

    A share of the clips is synthetic, with patches and their labels, so that standing still is no
    solution (section 5.2: a quarter). The others stay as they are and bring only first boxes,
    drawn like those of patches: the network follows them to the last frame, from there back
    through the reversed clip, and that trajectory is the label; see `lightning_vssl.methods.ctp`.
    Which clips are synthetic is drawn for each of them.

    Args:
        patches: Makes the synthetic clips. None for the paper's, `PatchTracks`.
        synthetic: Share of synthetic clips.

    Raises:
        ValueError: If the share is not in [0, 1].
    """

    def __init__(self, patches: PatchTracks | None = None, synthetic: float = 0.25) -> None:
        super().__init__()
        if not 0 <= synthetic <= 1:
            raise ValueError(f"synthetic must be a share in [0, 1], got {synthetic}")
        self.patches = patches if patches is not None else PatchTracks()
        self.synthetic = synthetic

    def draw(self, key: Tensor, frames: int, height: int, width: int) -> Tracks:
        """Draws tracks; of clips that are not synthetic no patch is shown, and no box moves.

        See `LabelSource.draw`.
        """
        tracks = self.patches.draw(key, frames, height, width)
        synthetic = uniform(key, 1, _SYNTHETIC) < self.synthetic  # (B, 1)
        still = tracks.boxes[:, :, :1].expand_as(tracks.boxes)
        return replace(
            tracks,
            boxes=torch.where(synthetic[..., None, None], tracks.boxes, still),
            shown=tracks.shown & synthetic[..., None],
        )

    def forward(self, clips: Tensor, drawn: Tracks, boxes: Tensor | None = None) -> LabelledClips:
        """Pastes the patches into the synthetic clips; see `LabelSource.forward`."""
        own = ~drawn.shown.flatten(1).any(1)  # a synthetic clip shows its patches at first
        labels: LabelledClips = self.patches(clips, drawn)
        return labels._replace(own=own)


class AnnotatedTracks(LabelSource):
    """Boxes that come with the clips: Table 1, "Real annotation", on GOT-10k.

    Each box of the batch's ``boxes`` is a trajectory, under the same number in every frame; K is
    as many as there are, on GOT-10k 1. Frames without a box have a weight of 0, and so has a whole
    trajectory whose first frame has none, for there is nothing to ask for.
    """

    def draw(self, key: Tensor, frames: int, height: int, width: int) -> None:
        """Draws nothing."""

    def forward(self, clips: Tensor, drawn: None, boxes: Tensor | None = None) -> LabelledClips:
        """Takes the boxes as they are; see `LabelSource.forward`.

        Raises:
            ValueError: If the clips came without boxes.
        """
        if boxes is None:
            raise ValueError(
                "AnnotatedTracks needs clips with boxes, and the batch has no 'boxes': use "
                "GOT10kClips, or another label source"
            )
        tracks = boxes.transpose(1, 2).to(clips)  # (B, K, T, 4)
        seen = ~tracks.isnan().any(-1)  # (B, K, T)
        seen = seen & seen[..., :1]
        query = tracks[:, :, :1].nan_to_num()
        return LabelledClips(clips, torch.where(seen[..., None], tracks, query), seen.to(clips))


def _check_import() -> None:
    try:
        from cv2 import TrackerKCF  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "KCF needs OpenCV with its contributed modules: pip install 'lightning-vssl[regions]'"
        ) from error
