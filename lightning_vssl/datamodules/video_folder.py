"""A folder of videos, with or without classes."""

from pathlib import Path

from lightning_vssl.data.clips import Clips
from lightning_vssl.data.manifest import Entry
from lightning_vssl.data.tubes import TubeForm
from lightning_vssl.data.windows import Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule

SUFFIXES = (
    ".mp4",
    ".avi",
    ".mkv",
    ".webm",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".3gp",
    ".flv",
    ".wmv",
    ".ogv",
)


class VideoFolder(VideoDataModule):
    """Any folder of video files.

    With ``labels``, the folders right below a split's folder are the classes, sorted by name, and
    every video below one belongs to it; a folder that holds videos alone has no classes. Without,
    all videos at any depth are taken, which is all that pretraining needs.

    Args:
        root: Folder of the dataset.
        train: Folder of the training videos, below ``root``.
        val: Folder of the validation videos, below ``root``; None where there is none.
        test: Folder of the test videos, below ``root``; None where there is none.
        labels: Read classes from the folders' names.
        suffixes: Endings, in lower case, of the files that are videos.
        clips: Frames of a training sample; None for CtP's.
        window: Crop of a training sample; None for CtP's.
        eval_clips: Frames of an evaluation sample; None for CtP's ten clips.
        eval_window: Crop of an evaluation sample; None for CtP's.
        batch_size: Training samples per step over all processes together.
        eval_batch_size: The same in evaluation; None for ``batch_size``.
        num_workers: Processes per training process that read videos.
        prefetch_factor: Batches that each of them holds ready.
        seed: Where every draw of the data starts.
        cache_dir: Folder of the manifests; None for ``~/.cache/lightning_vssl``.
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
        root: Path,
        *,
        train: str = ".",
        val: str | None = None,
        test: str | None = None,
        labels: bool = True,
        suffixes: tuple[str, ...] = SUFFIXES,
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
        max_missing: float = 0.25,
        max_unreadable: float = 0.05,
        verify: bool = False,
    ) -> None:
        super().__init__(
            root,
            clips=clips,
            window=window,
            eval_clips=eval_clips,
            eval_window=eval_window,
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
        inside = [
            folder for folder in (val, test) if folder and Path(train) in Path(folder).parents
        ]
        if inside:
            raise ValueError(
                f"train={train!r} contains {inside[0]!r}: give the training videos a folder of "
                "their own"
            )
        self.folders: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.labels = labels
        self.suffixes = suffixes

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The videos below a split's folder, sorted by path."""
        folder = self.folders[split]
        if folder is None:
            return [], ()
        files = self._files(folder)
        if not self.labels:
            return [Entry(str(file)) for file in files], ()
        owners = self._owners(folder, files)
        train = str(self.folders["train"])
        known = owners if split == "train" else self._owners(train, self._files(train))
        names = tuple(sorted(set(known) - {""}))
        strange = sorted(set(owners) - set(names) - {""})
        if strange:
            raise ValueError(
                f"{self.root / folder} has classes that {self.root / train} lacks: "
                f"{', '.join(strange[:10])}"
            )
        classes = {name: label for label, name in enumerate(names)}
        return [
            Entry(str(file), classes.get(owner, -1))
            for file, owner in zip(files, owners, strict=True)
        ], names

    def _owners(self, folder: str, files: list[Path]) -> list[str]:
        """The class of each file of a split: a folder's name, or nothing for all of them."""
        depth = len(Path(folder).parts)
        owners = [file.parts[depth] if len(file.parts) > depth + 1 else "" for file in files]
        names = sorted(set(owners) - {""})
        if names and "" in owners:
            loose = files[owners.index("")].name
            raise ValueError(
                f"{self.root / folder} holds videos ({loose}, ...) beside folders of "
                f"videos ({names[0]}, ...): move them into a folder of their class, or set "
                "labels: false"
            )
        return owners

    def _files(self, folder: str) -> list[Path]:
        """Paths of the videos below a folder, relative to the root, sorted."""
        base = self.root / folder
        if not base.is_dir():
            raise FileNotFoundError(f"no folder {base}: check root and the names of the splits")
        files = sorted(
            file.relative_to(self.root)
            for file in base.rglob("*")
            if file.suffix.lower() in self.suffixes and not file.name.startswith(".")
        )
        if not files:
            raise ValueError(
                f"no videos below {base}: files that end in {', '.join(self.suffixes)} are taken"
            )
        return files
