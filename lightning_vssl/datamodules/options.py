"""The arguments that data modules of videos share, as types: what ``**options`` may hold.

`VideoDataModule` documents them and has their defaults. A data set that adds arguments of its own
passes the others on: ``def __init__(self, root, *, split=1, **options: Unpack[VideoOptions])``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lightning_vssl.data.clips import Clips
from lightning_vssl.data.tubes import TubeForm
from lightning_vssl.data.windows import Windows

if TYPE_CHECKING:
    from typing import Unpack as Unpack
else:

    class Unpack:
        """`typing.Unpack` for type checkers, no type at all for jsonargparse.

        jsonargparse would take the options from the TypedDict, which has neither defaults nor
        help. As it is, it follows the call of ``super().__init__`` to where both are.
        """

        def __class_getitem__(cls, _options: object) -> object:
            return Any


class LoaderOptions(TypedDict, total=False):
    """How samples are read."""

    eval_batch_size: int | None
    num_workers: int
    prefetch_factor: int
    seed: int
    cache_dir: Path | None
    store: Path | None
    verify: bool


class ClipOptions(LoaderOptions, total=False):
    """The same, what a sample is, and which videos are used."""

    clips: Clips | None
    window: Windows | None
    eval_clips: Clips | None
    eval_window: Windows | None
    batch_size: int
    gallery: bool
    label_fraction: float
    video_fraction: float
    boxes: Path | None
    tubes: Path | None
    tube_form: TubeForm


class VideoOptions(ClipOptions, total=False):
    """All that `VideoDataModule` takes beside its folder."""

    max_missing: float
    max_unreadable: float
