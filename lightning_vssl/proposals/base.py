"""What all proposals share."""

from abc import ABC, abstractmethod

from torch import Tensor


class Proposals(ABC):
    """Proposes boxes for the frames of a video, each frame on its own.

    Those that are an `nn.Module` run on the accelerator, all others in the workers that read the
    videos.
    """

    short_side: int
    """Pixels of the short side that frames are scaled down to beforehand; never up."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """N, the most boxes of a frame."""

    @property
    @abstractmethod
    def source(self) -> str:
        """A word for what proposes: kept in the box file."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """The settings, plain data: kept in the box file."""

    @abstractmethod
    def __call__(self, frames: Tensor) -> Tensor:
        """Proposes boxes.

        Args:
            frames: (F, 3, H, W) uint8 RGB.

        Returns:
            Shares of the frame's width and height, xyxy, (F, N, 4) float32 in [0, 1]; NaN behind
            the last box of a frame.
        """
