"""The built-in videos: drawn on first use, nothing to download."""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.clips import UniformClips
from lightning_vssl.data.manifest import Entry, default_cache_dir
from lightning_vssl.data.synthetic import MOTIONS, OBJECTS, VERSION, DemoLayout, make_demo
from lightning_vssl.data.windows import ScaleCrop, WholeFrame
from lightning_vssl.datamodules.base import Split, VideoDataModule
from lightning_vssl.datamodules.options import ClipOptions, Unpack


class Demo(VideoDataModule):
    """The built-in videos; see `lightning_vssl.data.synthetic`.

    `prepare_data` draws them once, 20 to 60 ms of one core each, and keeps them. Training and test
    videos share no texture, object or background. There are no validation videos of their own:
    validation reads the test videos.

    Args:
        root: Folder of the videos; None for one in the cache that is named after ``videos`` and
            ``world``.
        videos: Number of videos, 16 to 100,000; a quarter of them are for testing.
        world: Seed of the videos' pixels and labels. Worlds share nothing either.
        target: What a label is: the main object's motion (8 classes) or its shape (6 classes).
        make_workers: Processes that draw; None for as many as there are cores to use.
        max_missing: Share of a split's videos that may lack their file, their boxes or tubes.
        max_unreadable: Share of them that may be broken.
        options: What every data module of videos takes; see `VideoDataModule`. The crop of training
            is CtP's at 64 pixels by default, evaluation takes two clips of 16 frames, stride 2, and
            the whole frame at 64 x 64 pixels; ``cache_dir`` also has the videos where ``root`` is
            None.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        videos: int = 1000,
        world: int = 0,
        target: Literal["motion", "object"] = "motion",
        make_workers: int | None = None,
        max_missing: float = 0.0,
        max_unreadable: float = 0.0,
        **options: Unpack[ClipOptions],
    ) -> None:
        if root is None:
            given = options.get("cache_dir")
            cache = default_cache_dir() if given is None else Path(given).expanduser()
            root = cache / "demo" / f"videos{videos}-world{world}-v{VERSION}"
        if options.get("window") is None:
            options["window"] = ScaleCrop(64, (64, 72, 80))
        if options.get("eval_clips") is None:
            options["eval_clips"] = UniformClips(clips=2)
        if options.get("eval_window") is None:
            options["eval_window"] = WholeFrame((64, 64))
        super().__init__(root, max_missing=max_missing, max_unreadable=max_unreadable, **options)
        if target not in ("motion", "object"):
            raise ValueError(f"target={target!r}: choose 'motion' or 'object'")
        self.videos = videos
        self.world = world
        self.target = target
        self.make_workers = make_workers

    def prepare_data(self) -> None:
        """Draws the videos that are not there yet, then probes them."""
        make_demo(self.root, videos=self.videos, seed=self.world, workers=self.make_workers)
        super().prepare_data()

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The drawn videos of a split."""
        layout = DemoLayout(self.root, self.videos, self.world)
        which = 0 if self.target == "motion" else 1
        entries = [
            Entry(
                layout.target(number).relative_to(self.root).as_posix(),
                layout.labels(number)[which],
            )
            for number in layout.split("train" if split == "train" else "test")
        ]
        return entries, (MOTIONS, OBJECTS)[which]
