"""A folder of videos, with or without classes."""

from pathlib import Path

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule
from lightning_vssl.datamodules.options import Unpack, VideoOptions

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
        options: What every data module of videos takes; see `VideoDataModule`.
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
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
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
