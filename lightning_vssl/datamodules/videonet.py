"""VideoNet (VITO section 3.2): videos curated to look like ImageNet, and what they are chosen from.

`lightning-vssl predict --config recipes/jobs/curate.yaml` makes the first out of the second.
"""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from lightning_vssl.curation.candidates import Candidates, read_table, seconds
from lightning_vssl.curation.titles import ClassNames
from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule
from lightning_vssl.datamodules.options import Unpack, VideoOptions
from lightning_vssl.datamodules.video_folder import VideoFolder

_log = logging.getLogger("lightning.pytorch")  # the one whose information is shown


class VideoNet(VideoDataModule):
    """Curated videos: what a list keeps, or a folder of class directories.

    There are training videos alone.

    Args:
        root: Folder of the videos.
        manifest: List of the videos: the ``videonet.parquet`` of the curation job, or any CSV or
            Parquet file with the columns ``path`` (absolute, or from ``root``) and ``class``, and
            optionally ``kept`` (rows where it is false are left out), ``start`` and ``end``
            (seconds). Classes are sorted, those without a video kept among them. A video kept for
            several classes counts once, for the first: twice in a batch, it would be its own
            negative. None where the folders right below ``root`` are the classes.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        manifest: Path | None = None,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            **options,
        )
        self.list = None if manifest is None else Path(manifest).expanduser()

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The videos kept, in the order of the list; of a folder, sorted by path.

        Raises:
            FileNotFoundError: If there is no such list or folder.
            ValueError: If the list is none, or a row of it is wrong.
        """
        if split != "train":
            return [], ()
        if self.list is None:
            return VideoFolder(self.root).entries("train")
        table = read_table(self.list, ("path", "class"), "videos")
        classes = tuple(sorted(set(table.column("class").to_pylist()) - {None, ""}))
        if "kept" in table.column_names:
            table = table.filter(_kept(table.column("kept"), self.list))
        labels = {name: label for label, name in enumerate(classes)}
        starts, ends = (seconds(table, name, self.list) for name in ("start", "end"))
        entries = []
        seen: set[tuple[str, float, float]] = set()
        again = 0
        for row, (path, owner) in enumerate(
            zip(table.column("path").to_pylist(), table.column("class").to_pylist(), strict=True)
        ):
            if not path or not owner:
                raise ValueError(f"{self.list}: kept video {row + 1} has no path or no class")
            start = 0.0 if np.isnan(starts[row]) else float(starts[row])
            span = (path, start, np.nan_to_num(ends[row], nan=np.inf).item())
            if span in seen:
                again += 1
                continue
            seen.add(span)
            entries.append(Entry(path, labels[owner], start, float(ends[row])))
        if again:
            _log.info(
                "%s keeps %d videos more than once: each counts for its first class (%d are left)",
                self.list,
                again,
                len(entries),
            )
        return entries, classes


class VideoCandidates(VideoDataModule):
    """What curation chooses from: a table of videos, each found by a search for a class.

    Missing and broken files are no error: the job records them.

    Args:
        root: Folder of the videos.
        table: CSV or Parquet file of candidates; see `lightning_vssl.curation.candidates`.
        classes: CSV file of the classes with the header ``class,names``, names parted by ``|``, in
            the order of the classifier's outputs; None for the 1,000 classes of ImageNet with their
            WordNet synonyms.
        num_workers: Processes per process of the job that read videos.
        prefetch_factor: Videos that each of them holds ready.
        cache_dir: Folder of the manifests; None for ``~/.cache/lightning_vssl``.
        verify: Decode every video in full when it is first listed.
    """

    def __init__(
        self,
        root: Path,
        *,
        table: Path,
        classes: Path | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        cache_dir: Path | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__(
            root,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            cache_dir=cache_dir,
            max_missing=1.0,
            max_unreadable=1.0,
            verify=verify,
        )
        self.table = Path(table).expanduser()
        self.names = None if classes is None else Path(classes).expanduser()
        self._found: Candidates | None = None

    def candidates(self) -> Candidates:
        """The table, read once; row i is row i of the manifest.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file or a row of it is wrong.
        """
        if self._found is None:
            names = self.names
            classes = ClassNames.imagenet() if names is None else ClassNames.read(names)
            self._found = Candidates.read(self.table, classes)
        return self._found

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """All candidates, in the order of the table, each with the class it was found for."""
        if split != "train":
            return [], ()
        found = self.candidates()
        columns = (found.paths.to_pylist(), found.labels.tolist())
        spans = (found.starts.tolist(), found.ends.tolist())
        return [Entry(*row) for row in zip(*columns, *spans, strict=True)], found.classes.ids


def _kept(column: pa.ChunkedArray, file: Path) -> pa.Array:
    """Which rows are kept, (N,) bool."""
    words = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    values = [value.lower() if isinstance(value, str) else value for value in column.to_pylist()]
    strange = [value for value in values if value not in words]
    if strange:
        raise ValueError(f"{file}: kept is {strange[0]!r} in a row, and should be true or false")
    return pa.array([words[value] for value in values], pa.bool_())
