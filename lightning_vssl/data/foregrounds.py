"""Where the foreground of a video is: puppet masks of JHMDB, boxes of a box file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from lightning_vssl.data.backgrounds import Bools
from lightning_vssl.data.boxes import BoxFile
from lightning_vssl.data.decode import UnreadableVideo
from lightning_vssl.data.tubes import cut_masks
from lightning_vssl.data.video_files import video_name

Times = npt.NDArray[np.float64]

_MASK = "part_mask"


class Foreground(ABC):
    """Tells where the foreground of a data set's videos is."""

    @abstractmethod
    def masks(self, video: Path, root: Path, times: Times, size: tuple[int, int]) -> Bools:
        """The masks of a whole video.

        Args:
            video: Its file, or its folder of frames.
            root: The data set's root.
            times: Seconds at which its frames are shown, (T,).
            size: (H, W) of the masks.

        Returns:
            (T, H, W) bool.

        Raises:
            UnreadableVideo: If there are none, or they cannot be read.
        """

    @abstractmethod
    def known(self, videos: Sequence[Path], root: Path) -> Bools:
        """Which videos have masks at all, (N,), without reading them."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What the masks depend on, plain data."""


def read_puppet(file: Path, frames: int) -> Bools:
    """Reads the masks of a clip of JHMDB.

    Args:
        file: ``puppet_mask.mat``, with the variable ``part_mask`` (H, W, F), 0 on the background.
        frames: T, how many masks are wanted. Where the file has fewer its last is repeated; what it
            has more of is left out.

    Returns:
        (T, H, W) bool.

    Raises:
        UnreadableVideo: If there is no such file, or it does not hold such masks.
    """
    if not file.is_file():
        raise UnreadableVideo(file, "no such file of puppet masks")
    try:
        found = loadmat(file, variable_names=[_MASK])
    except Exception as error:  # of a broken file zlib.error, IndexError, whatever the parser meets
        raise UnreadableVideo(file, f"not a MATLAB file of puppet masks ({error})") from error
    masks = np.asarray(found.get(_MASK, ()))
    if masks.ndim == 2:  # MATLAB drops the last axis of a single mask
        masks = masks[..., None]
    if masks.ndim != 3 or not masks.shape[2] or not np.issubdtype(masks.dtype, np.number):
        raise UnreadableVideo(
            file, f"its {_MASK} must be numbers (H, W, F), got {masks.dtype} {masks.shape}"
        )
    chosen = np.minimum(np.arange(frames), masks.shape[2] - 1)
    return np.ascontiguousarray(masks.transpose(2, 0, 1)[chosen] != 0)


class Puppets(Foreground):
    """The puppet masks of JHMDB: ``<root>/<folder>/<class>/<video>/puppet_mask.mat``.

    Args:
        folder: Folder of the masks, below the data set's root.
    """

    def __init__(self, folder: str = "puppet_mask") -> None:
        self.folder = folder

    def masks(self, video: Path, root: Path, times: Times, size: tuple[int, int]) -> Bools:
        """Reads them; see `Foreground.masks` and `read_puppet`."""
        file = self._file(video, root)
        own = read_puppet(file, len(times)).astype(np.uint8)
        (h, w), (height, width) = own.shape[1:], size
        if (h, w) == size:
            return own > 0
        if abs(h * width - w * height) > h + w:  # a pixel of each side: frames have even sides
            raise UnreadableVideo(
                file, f"its masks are {w} x {h}, which does not fit frames of {width} x {height}"
            )
        window = np.array([[0, 0, width, height]], np.float64)
        return np.asarray(cut_masks(own[None], window, size, size)[0] > 0)

    def known(self, videos: Sequence[Path], root: Path) -> Bools:
        """Which videos have a file of masks, (N,)."""
        return np.array([self._file(video, root).is_file() for video in videos], np.bool_)

    def _file(self, video: Path, root: Path) -> Path:
        return root / self.folder / video.parent.name / video.name / "puppet_mask.mat"

    @property
    def settings(self) -> dict[str, object]:
        """The folder."""
        return {"foreground": "puppets", "folder": self.folder}


class BoxForeground(Foreground):
    """All that lies in a box of a box file, of persons say; of a frame between, the nearest's.

    Args:
        boxes: The box file (`lightning_vssl.data.boxes`), made by recipes/jobs/boxes.yaml.
        cache_dir: Where its arrays are kept; None for ``~/.cache/lightning_vssl``.
    """

    def __init__(self, boxes: Path, *, cache_dir: Path | None = None) -> None:
        self.boxes = Path(boxes).expanduser()
        self.cache_dir = cache_dir
        self._file: BoxFile | None = None

    def masks(self, video: Path, root: Path, times: Times, size: tuple[int, int]) -> Bools:
        """Draws them; see `Foreground.masks`. Pixels that a box touches are foreground."""
        height, width = size
        try:
            shares = self._opened().for_frames(
                video_name(str(video), root.absolute()), times[None]
            )[0]
        except KeyError as error:
            raise UnreadableVideo(video, f"no boxes of it in {self.boxes}") from error
        masks = np.zeros((len(times), height, width), np.bool_)
        scale = np.array([width, height, width, height])
        for mask, boxes in zip(masks, shares, strict=True):  # (N, 4)
            for x0, y0, x1, y1 in boxes[~np.isnan(boxes).any(axis=1)] * scale:
                mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        return masks

    def known(self, videos: Sequence[Path], root: Path) -> Bools:
        """Which videos the box file knows, (N,)."""
        names = [video_name(str(video), root.absolute()) for video in videos]
        return np.asarray(self._opened().rows(names) >= 0)

    @property
    def settings(self) -> dict[str, object]:
        """What found the boxes."""
        file = self._opened()
        return {"foreground": "boxes", "source": file.source, "boxes": file.parameters}

    def _opened(self) -> BoxFile:
        if self._file is None:
            self._file = BoxFile(self.boxes, cache_dir=self.cache_dir)
        return self._file
