"""Tubes: where a video's object is in each of its frames, kept in a file (PreViTS section 3.2).

The file is Parquet, or a folder of such files, one row per video:

| column | type | meaning |
|---|---|---|
| ``path`` | string | the video as the manifest names it: relative to the root if below it |
| ``time`` | list<float> | seconds at which the frames looked at are shown, ascending |
| ``area`` | list<uint32> | pixels of the object in each of them, 0 where it is lost |
| ``height``, ``width`` | uint16 | size of the video's masks |
| ``masks`` | binary | the masks of the frames with an area, see below |
| ``error`` | string, optional | why the video was not looked at; it counts as missing |

The first frame of a video is shown at 0 seconds. A mask covers the whole frame as displayed, at a
size of its own (the job's is 64 pixels on the short side). ``masks`` is an xz stream of uint32,
little-endian: the lengths of runs of background and object by turns, beginning with background,
through the pixels of the masks, row after row and frame after frame. A frame between two of those
looked at takes the mask of the nearer one, of two as near that of the earlier one.

Opening a file checks every row once, and keeps flat arrays in the cache: all workers of a machine
map the same pages into memory, and no Python object is made per video.
"""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_vssl.data.video_files import (
    Indices,
    Kind,
    VideoFile,
    nearest,
    origin_metadata,
    shared_origin,
    write_table,
)

Masks = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

TubeForm = Literal["mask", "box", "middle"]
"""What a sample's masks are: the object in each frame, as PreViTS says it; its bounding box in each
(Table 7d, "Unsup. Box"); or the object in the clip's middle frame, repeated over the clip, as the
authors' code has it."""

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
_ROWS = 512  # rows of a file in memory at a time
_MAX_SIDE = 65535
_HOW = "lightning_vssl.data.tubes says what a tube file holds, and its write_tubes writes one"
_KIND = Kind(
    name="tubes",
    noun="tube",
    of_a_video="tube",
    job="lightning-vssl predict --config recipes/jobs/track.yaml",
    how=_HOW,
    remedy="track these videos",
    otherwise="Their clips are drawn anywhere, and their masks are empty.",
)

_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("time", pa.list_(pa.float32())),
        ("area", pa.list_(pa.uint32())),
        ("height", pa.uint16()),
        ("width", pa.uint16()),
        ("masks", pa.binary()),
        ("error", pa.string()),
    ]
)


class Tube(NamedTuple):
    """The object of one video over time, or why the video was not looked at.

    Args:
        path: The video as the manifest names it; see `lightning_vssl.data.video_files.video_name`.
        time: Seconds of the frames looked at, (F,), ascending.
        masks: Where the object is, (F, h, w) bool; all False in a frame where it is lost.
        error: Why the video was not looked at; empty otherwise.
    """

    path: str
    time: npt.NDArray[np.floating]
    masks: Bools
    error: str = ""


def pack_masks(masks: Bools) -> bytes:
    """Packs masks without loss.

    Args:
        masks: (F, h, w) bool.

    Returns:
        The runs, compressed; see the module.
    """
    flat = np.concatenate([[False], np.ravel(masks)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [flat.size - 1]])).astype("<u4")
    return lzma.compress(
        runs.tobytes(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_FILTERS
    )


def unpack_masks(packed: bytes, frames: int, height: int, width: int) -> Masks:
    """Unpacks masks.

    Args:
        packed: What `pack_masks` made.
        frames: How many there are, F.
        height: Their height, h.
        width: Their width, w.

    Returns:
        (F, h, w) uint8: 0 background, 1 object.

    Raises:
        ValueError: If the bytes are damaged or hold masks of another size or number.
    """
    runs = _runs(packed)
    if int(runs.sum()) != frames * height * width:
        raise ValueError(
            f"they hold {int(runs.sum())} pixels, and {frames} masks of {height} x {width} have "
            f"{frames * height * width}"
        )
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(frames, height, width)


def _runs(packed: bytes) -> Indices:
    try:
        raw = lzma.decompress(packed, format=lzma.FORMAT_XZ)
        return np.frombuffer(raw, "<u4").astype(np.int64)
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise ValueError(f"their bytes are damaged ({error})") from error


def tube_table(tubes: Sequence[Tube]) -> pa.Table:
    """Puts tubes into the columns of a tube file.

    Args:
        tubes: One entry a row.

    Returns:
        The table.

    Raises:
        ValueError: If shapes do not fit, or the times do not ascend.
    """
    columns = list(zip(*map(_row, tubes), strict=True)) or [()] * len(_SCHEMA)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _row(tube: Tube) -> tuple[object, ...]:
    time, masks = np.asarray(tube.time, np.float32), np.asarray(tube.masks, np.bool_)
    if time.ndim != 1 or masks.ndim != 3 or len(masks) != len(time):
        raise ValueError(
            f"{tube.path}: time must be (F,) and masks (F, h, w), got {time.shape} and "
            f"{masks.shape}"
        )
    if not np.isfinite(time).all() or (np.diff(time) <= 0).any():
        raise ValueError(f"{tube.path}: times must be finite and ascend")
    if max(masks.shape[1:], default=0) > _MAX_SIDE:
        raise ValueError(f"{tube.path}: masks of {masks.shape[1]} x {masks.shape[2]} are too large")
    area = masks.sum(axis=(1, 2), dtype=np.uint32)
    height, width = masks.shape[1:]
    return tube.path, time, area, height, width, pack_masks(masks[area > 0]), tube.error


def tube_metadata(
    *, source: str, parameters: Mapping[str, object] | None = None
) -> dict[bytes, bytes]:
    """Says in a tube file's metadata where the tubes come from.

    Args:
        source: What found them.
        parameters: Its settings, plain data.

    Returns:
        Metadata for the table's schema.
    """
    return origin_metadata(_KIND, source, parameters)


def write_tubes(
    file: Path,
    table: pa.Table,
    *,
    source: str,
    parameters: Mapping[str, object] | None = None,
) -> None:
    """Writes a tube file: whole, or not at all.

    Args:
        file: The file; its folder is made.
        table: What `tube_table` made.
        source: What found the tubes.
        parameters: Its settings, plain data.

    Raises:
        OSError: If the file cannot be written.
    """
    write_table(file, table, tube_metadata(source=source, parameters=parameters))


def shrink_masks(masks: Bools, side: int) -> Bools:
    """Scales masks down until their short side is ``side``; never up.

    A pixel is object where at least half of the area that it covers is. A frame that had an object
    and would have none keeps the pixel that the object covers most.

    Args:
        masks: (F, H, W) bool.
        side: Pixels of the short side.

    Returns:
        (F, h, w) bool.
    """
    frames, *size = masks.shape
    scale = min(1.0, side / max(1, min(size)))
    height, width = (max(1, round(length * scale)) for length in size)
    if not frames or [height, width] == size:
        return np.asarray(masks, np.bool_)
    rows, columns = (
        _shares(old, new) for old, new in zip(size, (height, width), strict=True)
    )  # (h, H), (w, W)
    covered = rows @ masks.astype(np.float32) @ columns.T  # (F, h, w) in [0, 1]
    most = covered.reshape(frames, -1).max(axis=1)  # (F,)
    least = np.where(most > 0, np.minimum(most, 0.5), 1.0) - 1e-6
    small: Bools = covered >= least[:, None, None]
    return small


def _shares(old: int, new: int) -> npt.NDArray[np.float32]:
    """How much of each of ``new`` pixels each of ``old`` ones covers, (new, old); rows sum to 1."""
    edges = np.arange(new + 1) * (old / new)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    shares: npt.NDArray[np.float32] = (overlap * (new / old)).astype(np.float32)
    return shares


def cut_masks(
    masks: Masks,
    windows: npt.NDArray[np.floating],
    frame: tuple[int, int],
    size: tuple[int, int],
) -> Masks:
    """Cuts masks by the windows that cut the pixels.

    Args:
        masks: Masks of whole frames, (V, T, h, w).
        windows: The parts of the frame that are shown, xyxy in its pixels, (V, 4).
        frame: (height, width) of the frame as displayed.
        size: (h', w') that each window is scaled to.

    Returns:
        (V, T, h', w') uint8: at the centre of each pixel, what the mask has there.
    """
    cut = np.empty((*masks.shape[:2], *size), np.uint8)
    for view, (x0, y0, x1, y1) in enumerate(np.asarray(windows, np.float64)):
        rows = _places(y0, y1, frame[0], masks.shape[2], size[0])
        columns = _places(x0, x1, frame[1], masks.shape[3], size[1])
        cut[view] = masks[view].take(rows, axis=1).take(columns, axis=2)
    return cut


def _places(low: float, high: float, frame: int, own: int, size: int) -> Indices:
    """Which of a mask's ``own`` rows (or columns) lie at the centres of ``size`` between two."""
    centres = low + (np.arange(size) + 0.5) * (high - low) / size  # pixels of the frame
    return np.clip(centres * (own / frame), 0, own - 1).astype(np.int64)


def box_masks(masks: Masks) -> Masks:
    """Fills the bounding box of each mask.

    Args:
        masks: (..., h, w), 0 or 1.

    Returns:
        The same shape; an empty mask stays empty.
    """
    rows, columns = _filled(masks.any(axis=-1)), _filled(masks.any(axis=-2))
    return (rows[..., :, None] & columns[..., None, :]).astype(np.uint8)


def _filled(own: npt.ArrayLike) -> Bools:
    """Between the first and the last True of each line, (..., n)."""
    line = np.asarray(own, np.bool_)
    after = np.maximum.accumulate(line, axis=-1)
    before = np.maximum.accumulate(line[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray(after & before)


class TubeFile(VideoFile):
    """The tubes of a data set's videos; see `lightning_vssl.data.video_files.VideoFile`.

    A video that was looked at and shows no object is not missing: it has an empty tube.

    Args:
        path: A tube file, or a folder of them (all ``*.parquet`` right below it).
        cache_dir: Where the arrays are kept; None for ``~/.cache/lightning_vssl``.

    Attributes:
        side: Pixels of the short side of the largest masks.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds none.
        ValueError: If a file is no tube file, or anything in it is wrong: the message names file
            and video.
        OSError: If the cache cannot be written.
    """

    kind = _KIND

    def __init__(self, path: Path, *, cache_dir: Path | None = None) -> None:
        super().__init__(path, cache_dir=cache_dir)
        self.side: int = self._about["side"]

    def tracked(self, video: int | str, times: npt.NDArray[np.floating]) -> Bools:
        """Whether the object is seen in the frames nearest in time.

        Args:
            video: A row from `rows`, or a video's name; -1 for a missing video.
            times: Seconds, any shape.

        Returns:
            (as ``times``) bool.

        Raises:
            KeyError: If the file lacks the video named.
        """
        row = self._row(video)
        if row < 0:
            return np.zeros(np.shape(times), np.bool_)
        areas = np.asarray(self._opened()["areas"][self._span(row)])  # (F,)
        return np.asarray(areas[self._nearest(row, times)] > 0)

    def masks(self, video: int | str, times: npt.NDArray[np.floating]) -> Masks:
        """The masks of the frames nearest in time.

        Args:
            video: A row from `rows`, or a video's name.
            times: Seconds, any shape.

        Returns:
            (as ``times``, h, w) uint8, 0 background, 1 object; all 0 where it is lost. A missing
            video has masks of 1 x 1.

        Raises:
            KeyError: If the file lacks the video named.
        """
        row = self._row(video)
        if row < 0:
            return np.zeros((*np.shape(times), 1, 1), np.uint8)
        arrays, frames = self._opened(), self._span(row)
        seen = np.asarray(arrays["areas"][frames]) > 0  # (F,)
        height, width = self.size(row)
        first, last = (int(value) for value in arrays["bytes"][row : row + 2])
        packed = arrays["packed"][first:last].tobytes()
        own = unpack_masks(packed, int(seen.sum()), height, width)
        own = np.concatenate([own, np.zeros((1, height, width), np.uint8)])  # the last is for lost
        place = np.where(seen, np.cumsum(seen) - 1, len(own) - 1)
        return own[place[self._nearest(row, times)]]

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) of a video's masks."""
        height, width = self._opened()["sizes"][row].tolist()
        return height, width

    def _span(self, row: int) -> slice:
        first, last = (int(value) for value in self._opened()["frames"][row : row + 2])
        return slice(first, last)

    def _nearest(self, row: int, times: npt.NDArray[np.floating]) -> Indices:
        """The frame looked at that is nearest to each time, from 0."""
        return nearest(self._opened()["seconds"][self._span(row)], times)

    def _write(self, files: Sequence[Path], folder: Path) -> dict[str, object]:
        origin = shared_origin(_KIND, [_schema(file) for file in files], files)
        paths: list[str] = []
        failed: list[tuple[str, str]] = []
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _ARRAYS}
        known: dict[str, Path] = {}
        with (folder / "packed.bin").open("wb") as packed:
            for file in files:
                for row in _rows(file):
                    name = row["path"]
                    if row["error"] or not row["time"]:
                        failed.append((name, row["error"] or "none of its frames was looked at"))
                        continue
                    if name in known:
                        raise ValueError(
                            f"{self.path}: {name} has two rows, in {known[name]} and {file}"
                        )
                    known[name] = file
                    _check(row, file)
                    paths.append(name)
                    parts["frames"].append(np.array([len(row["time"])]))
                    parts["seconds"].append(np.array(row["time"], np.float32))
                    parts["areas"].append(np.array(row["area"], np.uint32))
                    parts["sizes"].append(np.array([[row["height"], row["width"]]]))
                    parts["bytes"].append(np.array([len(row["masks"])]))
                    packed.write(row["masks"])
            if not paths:
                raise ValueError(f"{self.path} holds no video that was looked at; {_HOW}")
            packed.write(b"\0")  # an empty file cannot be mapped
        for name, arrays in parts.items():
            array = np.concatenate(arrays)
            if name in ("frames", "bytes"):
                array = np.concatenate([[0], np.cumsum(array)])
            np.save(folder / f"{name}.npy", array)
        names, errors = zip(*failed, strict=True) if failed else ((), ())
        columns = {"path": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())}
        self._note(folder, pa.array(paths, pa.string()), pa.table(columns))
        side = int(np.concatenate(parts["sizes"]).min(axis=1).max())
        return {**origin, "side": side, "videos": len(paths)}

    def _opened(self) -> dict[str, npt.NDArray[Any]]:
        if self._arrays is None:
            self._arrays = {
                name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
            }
            packed = self._folder / "packed.bin"
            self._arrays["packed"] = np.memmap(packed, np.uint8, mode="r")
        arrays: dict[str, npt.NDArray[Any]] = self._arrays
        return arrays


_ARRAYS = ("frames", "seconds", "areas", "sizes", "bytes")


def _check(row: Mapping[str, Any], file: Path) -> None:
    """Says what is wrong with a row."""
    where = f"{file}: {row['path']}"
    times, areas = np.array(row["time"], np.float64), np.array(row["area"], np.int64)
    if len(times) != len(areas):
        raise ValueError(f"{where} has {len(times)} times and {len(areas)} areas. {_HOW}")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError(f"{where}: its times are not finite or do not ascend. {_HOW}")
    pixels = row["height"] * row["width"]
    if not pixels or (areas > pixels).any():
        raise ValueError(
            f"{where}: its areas go up to {areas.max()}, and its masks are of {row['height']} x "
            f"{row['width']} pixels. {_HOW}"
        )
    seen = int((areas > 0).sum())
    try:
        runs = _runs(row["masks"])
    except ValueError as error:
        raise ValueError(f"{where}: its masks cannot be read: {error}. {_HOW}") from error
    if int(runs.sum()) != seen * pixels or int(runs[1::2].sum()) != int(areas.sum()):
        raise ValueError(
            f"{where}: its masks hold {int(runs.sum())} pixels, {int(runs[1::2].sum())} of them of "
            f"the object; {seen} masks of {row['height']} x {row['width']} have {seen * pixels}, "
            f"and its areas say {int(areas.sum())}. {_HOW}"
        )


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, a few in memory at a time."""
    try:
        with pq.ParquetFile(file) as opened:
            _check_columns(opened.schema_arrow, file)
            for batch in opened.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    absent = [name for name in _WANTED if row[name] is None]
                    if absent:
                        raise ValueError(
                            f"{file}: {row['path']} has no value in column {absent[0]}. {_HOW}"
                        )
                    yield {**row, "error": row.get("error") or ""}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a whole Parquet file ({error}); {_HOW}") from error


_WANTED = {
    "path": "a string",
    "time": "a list of floats",
    "area": "a list of integers",
    "height": "an integer",
    "width": "an integer",
    "masks": "binary",
}


def _check_columns(schema: pa.Schema, file: Path) -> None:
    absent = [name for name in _WANTED if name not in schema.names]
    if absent:
        raise ValueError(
            f"{file} has no column {', '.join(absent)}; its columns are "
            f"{', '.join(schema.names)}. {_HOW}"
        )
    for name, meant in _WANTED.items():
        kind = schema.field(name).type
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        fits = {
            "a string": pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "a list of floats": inner is not kind and pa.types.is_floating(inner),
            "a list of integers": inner is not kind and pa.types.is_integer(inner),
            "an integer": pa.types.is_integer(kind),
            "binary": pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
        }[meant]
        if not fits:
            raise ValueError(f"{file}: column {name} holds {kind}, not {meant}. {_HOW}")


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a whole Parquet file ({error}); {_HOW}") from error
