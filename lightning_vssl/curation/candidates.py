"""The table of candidates: videos that a search has found for a class, before they are looked at.

A CSV or Parquet file with the columns ``path``, ``title`` and ``class``, in any order and among any
others. ``path`` is absolute or starts from the data set's root; ``class`` is the class that was
searched for: its identifier (of ImageNet's, the WordNet number such as ``n01440764``) or a name
that no other class shares. Where the file holds more than the candidate, ``start`` and ``end`` say
which seconds are meant.
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lightning_vssl.curation.titles import ClassNames, contains

_COLUMNS = ("path", "title", "class")
_SPAN = ("start", "end")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Videos found for a class.

    Attributes:
        classes: The classes that were searched for.
        paths: Their files, (N,) text.
        titles: Their titles, (N,) text, empty where there is none.
        labels: The class each was found for, (N,) int64.
        starts: First second meant, (N,) float64.
        ends: First second no longer meant, (N,) float64, NaN for the end of the file.
    """

    classes: ClassNames
    paths: pa.Array
    titles: pa.Array
    labels: npt.NDArray[np.int64]
    starts: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def titled(self) -> npt.NDArray[np.bool_]:
        """Whose title contains the name of its class or a synonym, (N,) bool."""
        names = self.classes.folded
        found = (
            contains(title.as_py(), names[label])
            for title, label in zip(self.titles, self.labels.tolist(), strict=True)
        )
        return np.fromiter(found, np.bool_, len(self))

    def digest(self) -> str:
        """A hash of titles, classes and their names."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.classes.ids, self.classes.names)).encode())
        for title in self.titles:
            digest.update(repr(title.as_py()).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    @classmethod
    def read(cls, file: Path, classes: ClassNames) -> "Candidates":
        """Reads the table.

        Args:
            file: A ``.csv`` or ``.parquet`` file; see the module's docstring.
            classes: The classes that may be asked for.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such table, or a row is wrong: no path, an unknown class or one
                without a name, a candidate that stands twice, seconds that are none. Rows are
                counted from 1, without the header.
        """
        table = read_table(file, _COLUMNS, "candidates")
        paths, titles, queries = (_text(table, name, file) for name in _COLUMNS)
        starts, ends = (seconds(table, name, file) for name in _SPAN)
        starts = np.where(np.isnan(starts), 0.0, starts)
        where = _Where(file, paths)
        where.refuse(pc.equal(paths, ""), "the path is empty")
        labels = _labels(queries, classes, where)
        wrong = ~((starts >= 0) & (starts < np.where(np.isnan(ends), np.inf, ends)))
        where.refuse(wrong, "start and end are no seconds of a video: 0 or more, end behind start")
        where.refuse(_again(paths, labels, starts), "stands above already, for the same class")
        return cls(classes, paths, titles, labels, starts, ends)


@runtime_checkable
class HasCandidates(Protocol):
    """What curation needs to know of a data module."""

    def candidates(self) -> Candidates:
        """The table of candidates; row i is row i of its manifest."""


def read_table(file: Path, columns: tuple[str, ...], what: str) -> pa.Table:
    """Reads a CSV or Parquet file.

    Args:
        file: A ``.csv`` or ``.parquet`` file; a CSV file's fields are all text.
        columns: Columns that must be there.
        what: What the rows are, for messages.

    Returns:
        The table, all columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither, is broken, lacks a column or has no rows.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no table of {what} at {file}: a CSV or Parquet file with the columns "
            f"{', '.join(columns)}"
        )
    kind = file.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise ValueError(f"{file}: a table of {what} ends in .csv or .parquet")
    try:
        table = pq.read_table(file) if kind == ".parquet" else _csv(file)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a table: {error}") from error
    absent = [name for name in columns if name not in table.column_names]
    if absent:
        raise ValueError(
            f"{file} has no column {', '.join(absent)}: it has {', '.join(table.column_names)}"
        )
    twice = [name for name in columns if table.column_names.count(name) > 1]
    if twice:
        raise ValueError(f"{file} has several columns {', '.join(twice)}")
    if not len(table):
        raise ValueError(f"{file} lists no {what}")
    return table


def seconds(table: pa.Table, name: str, file: Path) -> npt.NDArray[np.float64]:
    """Takes a column of seconds out of a table.

    Args:
        table: The table, N rows.
        name: The column; it may be absent.
        file: Where it comes from, for messages.

    Returns:
        (N,) float64, NaN where there is none.

    Raises:
        ValueError: If a value is no number.
    """
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    column = table.column(name)
    if pa.types.is_string(column.type):
        out = np.full(len(table), np.nan)
        for row, text in enumerate(column.to_pylist()):
            try:
                out[row] = float(text) if text and text.strip() else np.nan
            except ValueError as error:
                raise ValueError(
                    f"{file}, row {row + 1}: {name} {text!r} is no number of seconds"
                ) from error
        return out
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowException as error:
        raise ValueError(f"{file}: column {name} is no number of seconds: {error}") from error


def _csv(file: Path) -> pa.Table:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        names = [name.strip() for name in next(csv.reader(lines), [])]
    if not any(names):
        raise ValueError(f"{file} has no header")
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _text(table: pa.Table, name: str, file: Path) -> pa.Array:
    """A column as text; nothing is an empty text."""
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{file}: column {name} is of type {column.type}, and should be text")
    return column.cast(pa.large_string()).combine_chunks().fill_null("")


class _Where:
    """Names the first wrong row of a table."""

    def __init__(self, file: Path, paths: pa.Array) -> None:
        self._file = file
        self._paths = paths

    def refuse(self, wrong: pa.Array | npt.NDArray[np.bool_], why: str) -> None:
        """Raises if any row, of (N,) bool, is wrong."""
        rows = np.flatnonzero(np.asarray(wrong))
        if len(rows):
            path = self._paths[int(rows[0])].as_py() or "no path"
            raise ValueError(f"{self._file}, row {rows[0] + 1} ({path}): {why}")


def _labels(queries: pa.Array, classes: ClassNames, where: _Where) -> npt.NDArray[np.int64]:
    """The class of each row, (N,)."""
    coded = queries.dictionary_encode()
    own = coded.indices.to_numpy()
    labels = np.empty(len(coded.dictionary), np.int64)
    for code, query in enumerate(coded.dictionary.to_pylist()):
        try:
            labels[code] = classes.label(query.strip())
        except ValueError as error:
            where.refuse(own == code, str(error))
    found: npt.NDArray[np.int64] = labels[own]
    return found


def _again(
    paths: pa.Array, labels: npt.NDArray[np.int64], starts: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Which rows an earlier one equals, (N,) bool."""
    rows = {"path": paths, "label": labels, "start": starts, "row": np.arange(len(labels))}
    groups = pa.table(rows).group_by(["path", "label", "start"]).aggregate([("row", "min")])
    again = np.ones(len(labels), np.bool_)
    again[groups.column("row_min").to_numpy()] = False
    return again
