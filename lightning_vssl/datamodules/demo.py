"""The built-in videos: drawn on first use, nothing to download."""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.clips import Clips, UniformClips
from lightning_vssl.data.manifest import Entry, default_cache_dir
from lightning_vssl.data.synthetic import MOTIONS, OBJECTS, VERSION, DemoLayout, make_demo
from lightning_vssl.data.tubes import TubeForm
from lightning_vssl.data.windows import ScaleCrop, WholeFrame, Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule


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
        clips: Frames of a training sample; None for CtP's.
        window: Crop of a training sample; None for CtP's at 64 pixels.
        eval_clips: Frames of an evaluation sample; None for two clips of 16 frames, stride 2.
        eval_window: Crop of an evaluation sample; None for the whole frame at 64 x 64 pixels.
        batch_size: Training samples per step over all processes together.
        eval_batch_size: The same in evaluation; None for ``batch_size``.
        num_workers: Processes per training process that read videos.
        prefetch_factor: Batches that each of them holds ready.
        seed: Where every draw of the data starts.
        cache_dir: Folder of the manifests, and of the videos where ``root`` is None; None for
            ``~/.cache/lightning_vssl``.
        gallery: In tests, walk the training videos first, then the test videos.
        label_fraction: Share of the training videos of each class that are used.
        video_fraction: Share of the training videos that are used, whatever their class.
        boxes: Box file of the videos, which samples then carry; see `VideoDataModule`.
        tubes: Tube file of the videos, whose masks samples then carry; see `VideoDataModule`.
        tube_form: What the masks are: ``mask``, ``box`` or ``middle``.
        max_missing: Share of a split's videos that may lack their file, their boxes or tubes.
        max_unreadable: Share of them that may be broken.
        verify: Decode every video in full when it is first listed.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        videos: int = 1000,
        world: int = 0,
        target: Literal["motion", "object"] = "motion",
        make_workers: int | None = None,
        clips: Clips | None = None,
        window: Windows | None = None,
        eval_clips: Clips | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        seed: int = 0,
        cache_dir: Path | None = None,
        gallery: bool = False,
        label_fraction: float = 1.0,
        video_fraction: float = 1.0,
        boxes: Path | None = None,
        tubes: Path | None = None,
        tube_form: TubeForm = "mask",
        max_missing: float = 0.0,
        max_unreadable: float = 0.0,
        verify: bool = False,
    ) -> None:
        if root is None:
            cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
            root = cache / "demo" / f"videos{videos}-world{world}-v{VERSION}"
        super().__init__(
            root,
            clips=clips,
            window=ScaleCrop(64, (64, 72, 80)) if window is None else window,
            eval_clips=UniformClips(clips=2) if eval_clips is None else eval_clips,
            eval_window=WholeFrame((64, 64)) if eval_window is None else eval_window,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            seed=seed,
            cache_dir=cache_dir,
            gallery=gallery,
            label_fraction=label_fraction,
            video_fraction=video_fraction,
            boxes=boxes,
            tubes=tubes,
            tube_form=tube_form,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            verify=verify,
        )
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
