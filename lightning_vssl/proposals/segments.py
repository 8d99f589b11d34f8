"""Boxes about superpixels and segments (ConST-CL section 3.3, "low-level image cues").

The paper takes 16 superpixels of SLIC, or 16 segments of Felzenszwalb and Huttenlocher, on each
frame; it says neither at what size, nor with what other settings, nor how there come to be 16,
which neither algorithm promises. Here a segmentation that has fewer than asked for is made finer,
up to four times, and the largest by area are taken. A frame too plain for that has fewer boxes.
Settings are those of scikit-image, except where a class says so.
"""

from abc import abstractmethod
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from lightning_vssl.proposals.base import Proposals

_TRIES = 5

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Segmentation(Proposals):
    """Boxes about the largest segments of a frame."""

    segments: int = 16

    def __post_init__(self) -> None:
        _check_import()
        for name, value in asdict(self).items():
            if name != "sigma" and not value > 0:
                raise ValueError(f"{name}={value}: must be above 0")

    @property
    def limit(self) -> int:
        """N, the boxes of a frame."""
        return self.segments

    @property
    def source(self) -> str:
        """The algorithm."""
        return type(self).__name__.lower()

    @property
    def settings(self) -> dict[str, object]:
        """The settings."""
        return asdict(self)

    @abstractmethod
    def _labels(self, frame: npt.NDArray[np.uint8], finer: float) -> Labels:
        """Segments a frame (H, W, 3) into labels (H, W), 1 and on; ``finer`` is 1 or more."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Proposes boxes; see `Proposals.__call__`. The largest segment comes first."""
        pictures = frames.permute(0, 2, 3, 1).cpu().numpy()  # (F, H, W, 3)
        out = np.full((len(pictures), self.segments, 4), np.nan, np.float32)
        for boxes, picture in zip(out, np.ascontiguousarray(pictures), strict=True):
            found = self._boxes(picture)
            boxes[: len(found)] = found
        return torch.from_numpy(out)

    def _boxes(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(n, 4) shares, n at most ``segments``."""
        for attempt in range(_TRIES):
            labels = self._labels(frame, 2 ** (attempt / 2))
            areas = np.bincount(labels.ravel())  # of the labels 0, 1, ...; 0 is none
            if (areas[1:] > 0).sum() >= self.segments:
                break
        largest = np.argsort(-areas[1:], kind="stable")[: self.segments]
        slices = ndimage.find_objects(labels)
        boxes = [
            (x.start, y.start, x.stop, y.stop)
            for y, x in (slices[label] for label in largest if slices[label] is not None)
        ]
        height, width = labels.shape
        shares = np.array(boxes, np.float64) / (width, height, width, height)
        return shares.astype(np.float32)


@dataclass(frozen=True)
class Slic(_Segmentation):
    """Boxes about the superpixels of SLIC (Achanta et al. 2012); needs the extra ``regions``.

    Args:
        segments: Superpixels of a frame.
        compactness: Weight of nearness in place against nearness in colour.
        short_side: Pixels that the frame's short side is scaled down to.

    Raises:
        ImportError: If scikit-image is not installed.
        ValueError: If a number is not above 0.
    """

    compactness: float = 10.0
    short_side: int = 128

    def _labels(self, frame: npt.NDArray[np.uint8], finer: float) -> Labels:
        from skimage.segmentation import slic

        count = round(self.segments * finer)
        labels: Labels = slic(frame, n_segments=count, compactness=self.compactness, start_label=1)
        return labels


@dataclass(frozen=True)
class Felzenszwalb(_Segmentation):
    """Boxes about the segments of Felzenszwalb and Huttenlocher; needs the extra ``regions``.

    ``scale`` differs from scikit-image's 1, which would cut a frame into thousands of pieces.

    Args:
        segments: Segments of a frame.
        scale: Higher means larger segments.
        sigma: Standard deviation of the blur beforehand, in pixels.
        min_size: Pixels of the smallest segment.
        short_side: Pixels that the frame's short side is scaled down to.

    Raises:
        ImportError: If scikit-image is not installed.
        ValueError: If a number is not above 0 (sigma: below).
    """

    scale: float = 500.0
    sigma: float = 0.8
    min_size: int = 20
    short_side: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma < 0:
            raise ValueError(f"sigma={self.sigma}: must be 0 or more")

    def _labels(self, frame: npt.NDArray[np.uint8], finer: float) -> Labels:
        from skimage.segmentation import felzenszwalb

        scale = self.scale / finer**2
        labels = felzenszwalb(frame, scale=scale, sigma=self.sigma, min_size=self.min_size)
        return np.asarray(labels, np.int64) + 1


def _check_import() -> None:
    try:
        import skimage  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "superpixels and segments need scikit-image: pip install 'lightning-vssl[regions]'"
        ) from error
