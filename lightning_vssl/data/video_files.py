"""Files of what was found in the videos of a data set, such as boxes or tubes: one row a video.

What they share: how they name videos, the metadata that says where their rows come from, how their
checked arrays lie in the cache, and what is said where videos are missing. What a row holds, and
what it is checked for, is in `lightning_vssl.data.boxes` and `lightning_vssl.data.tubes`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.manifest import Manifest, default_cache_dir

Indices = npt.NDArray[np.int64]

FORMAT = "1"
"""Version of the layouts, in the files' metadata."""

_CACHE = "1"  # layout of the arrays in the cache
_NAMED = 10


@dataclass(frozen=True)
class Kind:
    """A kind of file, in words.

    Attributes:
        name: What the rows hold: names metadata and arrays in the cache.
        noun: What goes before "file" and "format".
        of_a_video: What a video has there.
        job: The command that makes such a file.
        how: Where its layout is written down.
        remedy: What to do for videos that the file lacks.
        otherwise: What becomes of them if they are left so.
    """

    name: str
    noun: str
    of_a_video: str
    job: str
    how: str
    remedy: str
    otherwise: str

    @property
    def key(self) -> str:
        """Name of the metadata's first entry; the others stand behind it."""
        return f"lightning_vssl.{self.name}"


def video_name(path: str, root: Path) -> str:
    """Names a video as these files do.

    Args:
        path: As the manifest has it: relative to the root, or absolute.
        root: The dataset's root.

    Returns:
        The path relative to the root if the video lies below it, else the path as given.
    """
    base = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118  # a plain string, once a video
    return path.removeprefix(base) if path.startswith("/") else path


def origin_metadata(
    kind: Kind, source: str, parameters: Mapping[str, object] | None
) -> dict[bytes, bytes]:
    """Metadata that says where the rows of a file come from.

    Args:
        kind: The kind of file.
        source: What found them.
        parameters: Its settings, plain data.

    Returns:
        Metadata for the table's schema.
    """
    return {
        kind.key.encode(): FORMAT.encode(),
        f"{kind.key}.source".encode(): source.encode(),
        f"{kind.key}.parameters".encode(): json.dumps(
            dict(parameters or {}), sort_keys=True
        ).encode(),
    }


def shared_origin(
    kind: Kind, schemas: Sequence[pa.Schema], files: Sequence[Path]
) -> dict[str, object]:
    """Source and parameters, which all files must share.

    Raises:
        ValueError: If they do not, or a file is of another version.
    """
    found = []
    for schema, file in zip(schemas, files, strict=True):
        known = schema.metadata or {}
        version = known.get(kind.key.encode(), FORMAT.encode()).decode()
        if version != FORMAT:
            raise ValueError(f"{file}: {kind.noun} format {version}; this version reads {FORMAT}")
        source = known.get(f"{kind.key}.source".encode(), b"unknown").decode()
        parameters = json.loads(known.get(f"{kind.key}.parameters".encode(), "{}"))
        found.append({"source": source, "parameters": parameters})
        if found[-1] != found[0]:
            raise ValueError(
                f"{file} and {files[0]} were made in different ways ({found[-1]} and {found[0]}): "
                "keep them in folders of their own"
            )
    return found[0]


def write_table(file: Path, table: pa.Table, metadata: Mapping[bytes, bytes]) -> None:
    """Writes a table with its metadata: whole, or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    with whole_file(file) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def nearest(own: npt.ArrayLike, times: npt.NDArray[np.floating]) -> Indices:
    """The frame of a row that is nearest to each time; of two as near the earlier one.

    Args:
        own: Seconds of the row's frames, ascending, (F,).
        times: Seconds, any shape.

    Returns:
        Numbers in [0, F), as ``times``.
    """
    seconds = np.asarray(own, np.float64)
    return np.searchsorted((seconds[1:] + seconds[:-1]) / 2, np.asarray(times, np.float64))


class VideoFile(ABC):
    """Rows of a data set's videos.

    Cheap to pickle and to share: arrays in the cache are mapped into memory on first use, anew in
    each process.

    Args:
        path: A file, or a folder of them (all ``*.parquet`` right below it).
        cache_dir: Where the arrays are kept; None for ``~/.cache/lightning_vssl``.

    Attributes:
        source: What found the rows, as the file says; ``unknown`` where it does not.
        parameters: Its settings.
        videos: Videos that have rows.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds none.
        ValueError: If anything in a file is wrong.
        OSError: If the cache cannot be written.
    """

    kind: ClassVar[Kind]

    def __init__(self, path: Path, *, cache_dir: Path | None = None) -> None:
        self.path = Path(path).expanduser()
        files = self._files()
        cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._folder = cache / f"{self.kind.name}-{_digest(files)}"
        if not (self._folder / "about.json").is_file():
            self._build(files)
        self._about = json.loads((self._folder / "about.json").read_text(encoding="utf-8"))
        self.source: str = self._about["source"]
        self.parameters: dict[str, object] = self._about["parameters"]
        self.videos: int = self._about["videos"]
        self._arrays: Any = None

    @abstractmethod
    def _write(self, files: Sequence[Path], folder: Path) -> Mapping[str, object]:
        """Checks the files and writes their arrays, and by `_note` their videos.

        Returns:
            What `shared_origin` says, ``videos``, and what else the class wants to know.
        """

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arrays": None}

    def rows(self, names: Sequence[str] | pa.Array) -> Indices:
        """Finds videos.

        Args:
            names: As `video_name` gives them, (M,).

        Returns:
            Rows for the other methods, (M,) int64; -1 for a video that the file lacks.
        """
        known = pq.read_table(self._folder / "paths.parquet").column("path").combine_chunks()
        found = pc.fill_null(pc.index_in(pa.array(names, pa.string()), value_set=known), -1)
        rows: Indices = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return rows

    def find(self, manifest: Manifest) -> Indices:
        """Finds the videos of a manifest, as `rows` does."""
        return self.rows(_names(manifest))

    def covering(
        self, manifest: Manifest, *, name: str = "listed", max_missing: float = 0.0
    ) -> tuple[Indices, str]:
        """Finds the videos of a manifest, and says which the file lacks.

        Args:
            manifest: The videos.
            name: What messages call them, such as ``training``.
            max_missing: Share of them, in [0, 1], that may be missing.

        Returns:
            Rows, (M,), -1 where a video is missing; and a warning that counts and names those,
            empty where none is.

        Raises:
            ValueError: If more videos than ``max_missing`` allows, or all, are missing.
        """
        names = _names(manifest)
        rows = self.rows(names)
        without = np.flatnonzero(rows < 0)
        if not len(without):
            return rows, ""
        text = (
            f"{len(without)} of {len(rows)} {name} videos have no {self.kind.of_a_video} in "
            f"{self.path}:\n" + self._why([names[row] for row in without])
        )
        if len(without) == len(rows) or len(without) > max_missing * len(rows):
            example = pq.read_table(self._folder / "paths.parquet").column("path")[0].as_py()
            raise ValueError(
                f"{text}\nMore than max_missing={max_missing:g} allows. The file names videos such "
                f"as {example}, relative to {manifest.root}: {self.kind.remedy} ({self.kind.job}), "
                "or raise max_missing."
            )
        return rows, f"{text}\n{self.kind.otherwise}"

    def _row(self, video: int | str) -> int:
        """The row of a video that is given by its name or already by its row."""
        if not isinstance(video, str):
            return video
        row = int(self.rows([video])[0])
        if row < 0:
            raise KeyError(f"{self.path} has no {self.kind.of_a_video} of {video}")
        return row

    def _why(self, names: Sequence[str]) -> str:
        failed = pq.read_table(self._folder / "failed.parquet")
        known = dict(zip(*(failed.column(c).to_pylist() for c in ("path", "error")), strict=True))
        lines = [f"  {name}: {known.get(name, 'not in the file')}" for name in names[:_NAMED]]
        more = [f"  and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
        return "\n".join(lines + more)

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            found = sorted(self.path.glob("*.parquet"))
            if not found:
                raise FileNotFoundError(f"no *.parquet in the folder {self.path}; {self.kind.how}")
            return found
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no {self.kind.noun} file {self.path}: {self.kind.job} makes one"
            )
        return [self.path]

    def _build(self, files: Sequence[Path]) -> None:
        """Writes the arrays: the whole folder, or nothing."""
        folder = self._folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{self.kind.name}-"))
        try:
            about = dict(self._write(files, temporary))
            (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "about.json").is_file():  # else another process was first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _note(self, folder: Path, paths: pa.Array, failed: pa.Table) -> None:
        """Writes which videos have rows, in their order, and of which others (path, error)."""
        pq.write_table(pa.table({"path": paths}), folder / "paths.parquet")
        pq.write_table(failed, folder / "failed.parquet")


def _names(manifest: Manifest) -> list[str]:
    return [video_name(path, manifest.root) for path in manifest.table.column("path").to_pylist()]


def _digest(files: Sequence[Path]) -> str:
    """Names the cached arrays by the files' paths, sizes and times of modification."""
    digest = hashlib.blake2b(_CACHE.encode(), digest_size=16)
    for file in files:
        found = file.stat()
        digest.update(repr((str(file.absolute()), found.st_size, found.st_mtime_ns)).encode())
    return digest.hexdigest()
