"""The table of a dataset's videos: what is there, how long, and what cannot be read.

Probing every file of a large dataset takes minutes to hours, so it is done once, in parallel, and
kept as a Parquet file. The file is named by a hash of the list of entries; beside each row stand
the file's size and time of modification, so that a later build probes only what has changed, and
the other ranks find the file without touching the videos.
"""

import errno
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_vssl.data.decode import UnreadableVideo, VideoReader, probe
from lightning_vssl.data.place import Place

_log = logging.getLogger(__name__)

_FORMAT = "2"  # part of the hash: a new layout of the table never meets an old file
_CHUNK = 32  # files a process takes at a time
_NAMED = 10  # files a message names before it says how many more there are

MISSING = "missing"
"""The reason of a row whose file does not exist."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One video of a dataset, as its lists name it.

    Args:
        path: File, or folder of frames; absolute, or relative to the dataset's root.
        label: Class, an index into the classes; -1 where there is none.
        start: First second used of the file.
        end: First second no longer used; NaN for the end of the file.
        fps: Frames per second of a folder of frames; None for a video file.
        place: Where the video lies if not under its path, which then only names it.
    """

    path: str
    label: int = -1
    start: float = 0.0
    end: float = float("nan")
    fps: float | None = None
    place: Place | None = None


class _Facts(NamedTuple):
    """What probing a file found."""

    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    duration: float = 0.0
    reason: str = ""


class _Task(NamedTuple):
    path: str
    fps: float | None
    verify: bool
    place: Place | None


_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("rate", pa.float64()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("readable", pa.bool_()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("duration", pa.float64()),
        ("reason", pa.string()),
    ]
)


class Manifest:
    """The rows of a dataset. Cheap to pickle and to share with workers: Arrow memory, no objects.

    Columns: ``path``, ``label``, ``start``, ``end`` and ``rate`` (NaN where none) as in `Entry`;
    ``file``, empty where the video lies under its path, and ``offset`` as in `Place`; ``size`` in
    bytes and ``mtime`` in nanoseconds, -1 for a missing file; ``readable`` or the
    ``reason`` why not; ``frames``, ``fps``, ``width``, ``height`` (as displayed), ``duration`` in
    seconds, 0 where not readable.

    Args:
        table: The columns.
        root: Folder that relative paths start from.
        classes: Names of the classes, in the order of their labels.
    """

    def __init__(self, table: pa.Table, root: Path, classes: Sequence[str] = ()) -> None:
        self.table = table.combine_chunks()
        self.root = Path(root)
        self.classes = tuple(classes)
        self._paths = self.table.column("path").combine_chunks()
        self._rates = self.table.column("rate").combine_chunks()
        self._starts = self.column("start")
        self._ends = self.column("end")
        self._labels = self.column("label")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> npt.NDArray[np.generic]:
        """One column as an array, (N,)."""
        array: npt.NDArray[np.generic] = self.table.column(name).to_numpy()
        return array

    def path(self, row: int) -> Path:
        """The video of a row, as the dataset names it; `place` says where it lies."""
        return self.root / str(self._paths[row].as_py())

    def place(self, row: int) -> Place | None:
        """Where the video of a row lies if not under its path."""
        file = str(self.table.column("file")[row].as_py())
        if not file:
            return None
        offset, size = (int(self.table.column(name)[row].as_py()) for name in ("offset", "size"))
        return Place(Path(file), offset, size)

    def open(self, row: int) -> VideoReader:
        """The video of a row.

        Raises:
            UnreadableVideo: If it cannot be read.
        """
        return VideoReader(self.path(row), fps=self.rate(row), place=self.place(row))

    def label(self, row: int) -> int:
        """Class of a row, -1 where there is none."""
        return int(self._labels[row])

    def rate(self, row: int) -> float | None:
        """Frames per second of a folder of frames, None for a video file."""
        value = float(self._rates[row].as_py())
        return None if np.isnan(value) else value

    def span(self, row: int) -> tuple[float, float]:
        """Seconds of the file that the row uses: the first, and the first no longer used."""
        end = float(self._ends[row])
        return float(self._starts[row]), float("inf") if np.isnan(end) else end

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Classes, (N,) int64."""
        return self.column("label").astype(np.int64)

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Which rows can be read, (N,)."""
        return self.column("readable").astype(np.bool_)

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Which rows have no file, (N,)."""
        return self.column("size").astype(np.int64) < 0

    def select(self, rows: npt.NDArray[np.int64] | Sequence[int]) -> "Manifest":
        """The manifest of these rows alone, in this order."""
        picked = self.table.take(pa.array(np.asarray(rows, np.int64)))
        return Manifest(picked, self.root, self.classes)

    def names(self, rows: Iterable[int], *, reasons: bool = False) -> str:
        """The first ten of these rows by path, one to a line, and how many more there are."""
        rows = [int(row) for row in rows]
        why = self.table.column("reason")
        lines = [
            f"  {self._paths[row].as_py()}" + (f": {why[row].as_py()}" if reasons else "")
            for row in rows[:_NAMED]
        ]
        if len(rows) > _NAMED:
            lines.append(f"  and {len(rows) - _NAMED} more")
        return "\n".join(lines)

    def save(self, file: Path) -> None:
        """Writes the table to a Parquet file: whole, or not at all.

        Raises:
            OSError: If the folder cannot be written or the disk is full.
        """
        metadata = {"root": str(self.root), "classes": json.dumps(self.classes)}
        table = self.table.replace_schema_metadata(metadata)
        temporary = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
            with os.fdopen(handle, "wb") as sink:
                pq.write_table(table, sink)
                sink.flush()
                os.fsync(sink.fileno())
            Path(temporary).replace(file)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(
                error.errno or errno.EIO,
                f"cannot write the manifest ({why}): free some space, or set cache_dir to a "
                "folder on another disk",
                str(file),
            ) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> "Manifest":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a manifest.
        """
        if not file.is_file():
            raise FileNotFoundError(
                f"no manifest at {file}: it is made by the data module's prepare_data(), which "
                "Trainer calls; on several machines cache_dir must be shared or local to each"
            )
        try:
            table = pq.read_table(file)
            metadata = table.schema.metadata
            root, classes = metadata[b"root"].decode(), json.loads(metadata[b"classes"])
            return cls(table.replace_schema_metadata(None).cast(_SCHEMA), Path(root), classes)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is not a manifest of this version ({error}): delete it and run again"
            ) from error


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/lightning_vssl``, by default ``~/.cache/lightning_vssl``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "lightning_vssl"


def manifest_file(
    entries: Sequence[Entry],
    root: Path,
    classes: Sequence[str],
    *,
    cache_dir: Path | None = None,
    verify: bool = False,
) -> Path:
    """Where the manifest of these entries is kept: named by a hash of the list, not of the files.

    Args:
        entries: The rows.
        root: Folder that relative paths start from.
        classes: Names of the classes.
        cache_dir: Folder of the cache; None for `default_cache_dir`.
        verify: Whether the manifest decodes every video in full.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORMAT, str(root.absolute()), list(classes), verify]).encode())
    for entry in entries:
        said = (entry.path, entry.label, entry.start, entry.end, entry.fps, entry.place)
        digest.update(repr(said).encode())
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    return folder / f"manifest-{digest.hexdigest()}.parquet"


def build_manifest(
    entries: Sequence[Entry],
    root: Path,
    classes: Sequence[str] = (),
    *,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    verify: bool = False,
) -> Manifest:
    """Probes every video, in parallel, and keeps the table; what is unchanged is not probed again.

    Args:
        entries: The rows, as the dataset's lists give them.
        root: Folder that relative paths start from.
        classes: Names of the classes, in the order of their labels.
        cache_dir: Where the table is kept; None for `default_cache_dir`.
        workers: Processes that probe; None for one per core, 0 or 1 for this process alone.
        progress: Show a progress bar.
        verify: Decode every video in full: exact counts, and breaks in the middle found now
            rather than during a run. As long as one pass over all frames of the dataset.

    Returns:
        One row per entry, in their order. A missing or broken file is a row that is not readable.

    Raises:
        ValueError: If there are no entries, or a label has no class.
        OSError: If the table cannot be written.
    """
    if not entries:
        raise ValueError(f"no videos listed for {root}: is this the dataset's root folder?")
    _check_labels(entries, classes)
    file = manifest_file(entries, root, classes, cache_dir=cache_dir, verify=verify)
    paths = [root / entry.path for entry in entries]
    sizes, mtimes = _stat([e.place or Place(path) for e, path in zip(entries, paths, strict=True)])
    facts, stale = _known(file, sizes, mtimes)
    present = stale & (sizes >= 0)
    for row in np.flatnonzero(stale & (sizes < 0)):
        facts[row] = _Facts(reason=MISSING)
    rows = [int(row) for row in np.flatnonzero(present)]
    tasks = [_Task(str(paths[row]), entries[row].fps, verify, entries[row].place) for row in rows]
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with _bar(len(tasks), progress) as advance:
        for position, found in _probe_all(tasks, workers):
            facts[rows[position]] = found
            advance()
    manifest = Manifest(_table(entries, sizes, mtimes, facts), root.absolute(), classes)
    if stale.any():
        manifest.save(file)
    return manifest


def usable(
    manifest: Manifest,
    *,
    name: str,
    max_missing: float = 0.25,
    max_unreadable: float = 0.05,
    warn: bool = True,
) -> Manifest:
    """Leaves out the rows that cannot be read, with one warning that counts and names them.

    Args:
        manifest: All rows.
        name: What the messages call the data, such as ``training``.
        max_missing: Share of rows, in [0, 1], that may lack a file. Kinetics lacks 5 to 10 %.
        max_unreadable: Share of the files there, in [0, 1], that may be unreadable.
        warn: Log the warning; one process of a run does.

    Raises:
        FileNotFoundError: If all files are missing, or more than ``max_missing``.
        ValueError: If none of the files there can be read, or more than ``max_unreadable`` cannot.
    """
    missing = np.flatnonzero(manifest.missing)
    broken = np.flatnonzero(~manifest.readable & ~manifest.missing)
    good = np.flatnonzero(manifest.readable)
    total, there = len(manifest), len(manifest) - len(missing)
    if len(missing):
        text = (
            f"{len(missing)} of {total} {name} videos are missing under {manifest.root}:\n"
            f"{manifest.names(missing)}"
        )
        if lost := sorted({place.file for row in missing if (place := manifest.place(int(row)))}):
            text += (
                f"\nThe store has lost {len(lost)} files in which such videos lie, the first "
                f"{lost[0]}: copy it anew, or leave --data.store out."
            )
        if len(missing) == total or len(missing) > max_missing * total:
            raise FileNotFoundError(
                f"{text}\nMore than max_missing={max_missing:g} allows: check root, or raise it."
            )
        if warn:
            _log.warning("%s\nThe other %d are used.", text, len(good))
    if len(broken):
        text = (
            f"{len(broken)} of {there} {name} videos cannot be read:\n"
            f"{manifest.names(broken, reasons=True)}"
        )
        if not len(good) or len(broken) > max_unreadable * there:
            raise ValueError(
                f"{text}\nMore than max_unreadable={max_unreadable:g} allows: repair or remove "
                "these files, or raise it."
            )
        if warn:
            _log.warning("%s\nThe other %d are used.", text, len(good))
    return manifest if len(good) == total else manifest.select(good)


def _check_labels(entries: Sequence[Entry], classes: Sequence[str]) -> None:
    """Raises where a label has no class."""
    for entry in entries:
        if not -1 <= entry.label < max(len(classes), 0 if classes else entry.label + 1):
            raise ValueError(
                f"label {entry.label} of {entry.path} has no class: labels go from 0 to "
                f"{len(classes) - 1}, or are -1 for a video without one"
            )


def _stat(places: Sequence[Place]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sizes in bytes and times of modification in nanoseconds, -1 where there is no file."""

    def one(place: Place) -> tuple[int, int]:
        try:
            return place.stat()
        except OSError:
            return -1, -1

    if len(places) < 256:
        pairs = [one(place) for place in places]
    else:  # a network's latency, not the processor, is the cost
        with ThreadPoolExecutor(16) as pool:
            pairs = list(pool.map(one, places, chunksize=64))
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _known(
    file: Path, sizes: npt.NDArray[np.int64], mtimes: npt.NDArray[np.int64]
) -> tuple[list[_Facts], npt.NDArray[np.bool_]]:
    """What an earlier build found, and which rows have changed since."""
    fresh = [_Facts() for _ in range(len(sizes))]
    if not file.is_file():
        return fresh, np.ones(len(sizes), np.bool_)
    try:
        old = Manifest.load(file)
    except ValueError as error:
        _log.warning("%s; it is built anew", error)
        return fresh, np.ones(len(sizes), np.bool_)
    same = (old.column("size") == sizes) & (old.column("mtime") == mtimes)
    columns = [old.table.column(name).to_pylist() for name in _Facts._fields]
    return [_Facts(*values) for values in zip(*columns, strict=True)], ~same


def _table(
    entries: Sequence[Entry],
    sizes: npt.NDArray[np.int64],
    mtimes: npt.NDArray[np.int64],
    facts: Sequence[_Facts],
) -> pa.Table:
    columns: dict[str, object] = {
        "path": [entry.path for entry in entries],
        "label": [entry.label for entry in entries],
        "start": [entry.start for entry in entries],
        "end": [entry.end for entry in entries],
        "rate": [float("nan") if entry.fps is None else entry.fps for entry in entries],
        "file": ["" if entry.place is None else str(entry.place.file) for entry in entries],
        "offset": [0 if entry.place is None else entry.place.offset for entry in entries],
        "size": sizes,
        "mtime": mtimes,
        "readable": [not fact.reason for fact in facts],
    }
    for position, name in enumerate(_Facts._fields):
        columns[name] = [fact[position] for fact in facts]
    return pa.table(columns, schema=_SCHEMA)


def _probe_one(task: _Task) -> _Facts:
    try:
        info = probe(task.path, fps=task.fps, decode=task.verify, place=task.place)
    except UnreadableVideo as error:
        return _Facts(reason=str(error.reason) or "unreadable")
    return _Facts(info.frames, info.fps, info.width, info.height, info.duration)


def _probe_chunk(tasks: Sequence[_Task]) -> list[_Facts]:
    return [_probe_one(task) for task in tasks]


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked, as PyTorch's loaders are on Linux: a spawned process would run the caller's script.
    context = get_context("fork") if sys.platform == "linux" else get_context()
    return ProcessPoolExecutor(workers, mp_context=context)


def _probe_all(tasks: Sequence[_Task], workers: int) -> Iterator[tuple[int, _Facts]]:
    """Yields (position, facts) as they come. A file that kills its process is found out."""
    if workers <= 1 or len(tasks) <= 1:
        for position, task in enumerate(tasks):
            yield position, _probe_one(task)
        return
    size = max(1, min(_CHUNK, len(tasks) // (4 * workers)))
    waiting = list(range(0, len(tasks), size))
    while waiting:
        done: set[int] = set()
        try:
            for first, found in _run_pool(tasks, waiting, size, workers):
                done.add(first)
                yield from enumerate(found, first)
        except BrokenProcessPool:
            pass
        waiting = [first for first in waiting if first not in done]
        # What killed a process is among the first that were waiting: each file on its own.
        suspects, waiting = waiting[: 2 * workers + 1], waiting[2 * workers + 1 :]
        for first in suspects:
            for position in range(first, min(first + size, len(tasks))):
                yield position, _probe_alone(tasks[position])


def _run_pool(
    tasks: Sequence[_Task], firsts: Sequence[int], size: int, workers: int
) -> Iterator[tuple[int, list[_Facts]]]:
    with _pool(workers) as pool:
        futures: dict[Future[list[_Facts]], int] = {
            pool.submit(_probe_chunk, tasks[first : first + size]): first for first in firsts
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def _probe_alone(task: _Task) -> _Facts:
    with _pool(1) as pool:
        try:
            return pool.submit(_probe_one, task).result()
        except BrokenProcessPool:
            return _Facts(reason="reading it kills the process")


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error; yields what moves it on by one."""
    bar = Progress(
        TextColumn("Reading the videos' headers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show or total == 0,
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda: bar.advance(task)
