"""Stores: videos of a data set that were transcoded or packed, and where each of them lies now.

A store is a folder that a job has left, `lightning_vssl.jobs.transcode` or
`lightning_vssl.jobs.shards`: files or tar shards, and ``videos.parquet`` with a row for each video.
A data module with ``--data.store FOLDER`` lists the data set as ever, from its own lists, with the
same names, labels and spans, and so in the same order; only the bytes come from the store. Paths in
the table are relative to it, so the folder may be moved or copied to another disk. The originals
need not come along where the data set's lists say where a video lies (UCF-101, HMDB-51,
Something-Something, with an empty folder in their videos' place) and for Kinetics, whose clips are
looked for in the store too; modules that list a folder to learn what there is still need them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_vssl.data.manifest import Entry, Manifest
from lightning_vssl.data.place import Place
from lightning_vssl.data.video_files import video_name

TABLE = "videos"
"""Name of a store's table, without its suffix."""

_KEY = b"lightning_vssl.store"
_FORMAT = b"1"
FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("path", pa.string()),
    ("file", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("cropped", pa.bool_()),
    ("error", pa.string()),
)
"""Columns of every store: the video's name (`video_name`), its file or shard, relative to the
table, where in it and how long (`Place`), whether its picture was cut, and why it is not there."""


def store_table(
    rows: Sequence[Mapping[str, object]], more: Sequence[tuple[str, pa.DataType]] = ()
) -> pa.Table:
    """Rows of a store's table.

    Args:
        rows: A dict by column for each.
        more: Columns beside those of every store.
    """
    schema = pa.schema([*FIELDS, *more], metadata={_KEY: _FORMAT})
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def repeated(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Rows whose video an earlier row has too, with another span, (N,).

    A store has a video once, whole.
    """
    names = manifest.table.column("path").to_numpy(zero_copy_only=False).astype(np.str_)
    again = np.ones(len(names), np.bool_)
    again[np.unique(names, return_index=True)[1]] = False
    return again


class Store:
    """Where the videos of stores lie.

    Args:
        path: A store's folder, or one that holds several, at any depth: of training and test
            videos, say. What lies inside a store is not searched.

    Attributes:
        path: The same, absolute.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a table is none of a store, or two stores have the same video.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().absolute()
        tables = sorted(_tables(self.path))
        if not tables:
            raise FileNotFoundError(
                f"no {TABLE}.parquet in {self.path} or below: it is there when lightning-vssl "
                "predict --config recipes/jobs/transcode.yaml (or shards.yaml) has done all "
                "videos; run it again to go on"
            )
        self._places: dict[str, Place] = {}
        self._names: dict[str, list[str]] | None = None
        self._cropped: set[str] = set()
        owners: dict[str, Path] = {}
        for table in tables:
            for row in _rows(table):
                name = str(row["path"])
                if row["error"]:
                    continue
                if name in owners:
                    raise ValueError(
                        f"{name} is in {owners[name]} and in {table}: give the folder of the one "
                        "that is to be read"
                    )
                owners[name] = table
                size, offset = row["size"], row["offset"]
                assert isinstance(size, int)
                assert isinstance(offset, int)
                self._places[name] = Place(table.parent / str(row["file"]), offset, size)
                if row["cropped"]:
                    self._cropped.add(name)

    def __len__(self) -> int:
        return len(self._places)

    def placed(self, entries: Sequence[Entry], root: Path) -> list[Entry]:
        """The entries of a data set, each with where it lies; one that is not here is unchanged.

        Args:
            entries: As the data set's lists give them.
            root: The data set's root.
        """
        places = (self._places.get(video_name(entry.path, root)) for entry in entries)
        return [
            entry if place is None else replace(entry, place=place)
            for entry, place in zip(entries, places, strict=True)
        ]

    def names(self, folder: str) -> list[str]:
        """Videos that lay in a folder of the data set, without those of its sub-folders.

        Args:
            folder: Below the data set's root.

        Returns:
            Their names within it, as the originals had them.
        """
        if self._names is None:
            self._names = {}
            for path in self._places:
                above, _, name = path.rpartition("/")
                self._names.setdefault(above, []).append(name)
        return self._names.get(folder, [])

    def below(self, folder: str) -> bool:
        """Whether any video lay in a folder of the data set, at any depth."""
        return any(path.startswith(f"{folder}/") for path in self._places)

    def cropped(self, name: str) -> bool:
        """Whether the video of that name (`video_name`) has lost a part of its picture."""
        return name in self._cropped


def _tables(folder: Path) -> Iterator[Path]:
    """Tables of the stores below a folder; those have as many files as a data set."""
    for name, folders, files in os.walk(folder):
        if f"{TABLE}.parquet" in files:
            folders.clear()
            yield Path(name) / f"{TABLE}.parquet"


def _rows(table: Path) -> list[dict[str, object]]:
    try:
        known = pq.read_schema(table)
        if (known.metadata or {}).get(_KEY) == _FORMAT:
            rows: list[dict[str, object]] = pq.read_table(
                table, columns=[name for name, _ in FIELDS]
            ).to_pylist()
            return rows
        reason = "its metadata do not say so"
    except (pa.ArrowException, OSError) as error:
        reason = str(error)
    raise ValueError(
        f"{os.fspath(table)} is not the table of a store of this version ({reason}): make it anew "
        "with recipes/jobs/transcode.yaml or shards.yaml"
    )
