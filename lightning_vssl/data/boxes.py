"""Region boxes over time, kept in a file: superpixels, segments, detections (ConST-CL section 3.3).

The file is Parquet, or a folder of such files, one row per video:

| column | type | meaning |
|---|---|---|
| ``path`` | string | the video as the manifest names it: relative to the root if below it |
| ``time`` | list<float> | seconds at which the boxed frames are shown, ascending |
| ``count`` | list<integer> | boxes of each of these frames, 0 or more |
| ``boxes`` | list<uint16> or list<float> | 4 numbers a box, frame after frame: x0, y0, x1, y1 |
| ``error`` | string, optional | why the video has no boxes; such a row counts as a missing video |

The first frame of a video is shown at 0 seconds. Coordinates are shares of the width and height of
the frame as displayed: floats in [0, 1], or uint16 with 65535 for 1, which is what `write_boxes`
makes. That is half the size of float32, and its steps of 1/65535 are a thirtieth of a pixel at 1920
pixels; float16, of the same size, has steps of a pixel there. Frames need not have the same number
of boxes: nothing is padded in the file. Of a frame between two boxed ones the nearer one's boxes
are taken, of two as near the earlier one's. A video may have several rows, for several spans of it.

Reading checks every number once, and keeps flat arrays in the cache: all workers of a machine map
the same pages into memory, and no Python object is made per video.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
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

Floats = npt.NDArray[np.float64]
Shares = npt.NDArray[np.float32]
_Message = Callable[[int], str]  # from a position to what is wrong there

SCALE = 65535
"""The number that stands for a share of 1."""

_SLACK = 1e-6  # of a share, for coordinates computed in float32
_MIN_PIXELS = 2.0  # what must be left of a box in a view
_CHUNK = 1 << 20  # boxes checked at a time
_HOW = "lightning_vssl.data.boxes says what a box file holds, and its write_boxes writes one"
_KIND = Kind(
    name="boxes",
    noun="box",
    of_a_video="boxes",
    job="lightning-vssl predict --config recipes/jobs/boxes.yaml",
    how=_HOW,
    remedy="make boxes of these videos",
    otherwise="Their boxes are NaN.",
)

_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("time", pa.list_(pa.float32())),
        ("count", pa.list_(pa.uint16())),
        ("boxes", pa.list_(pa.uint16())),
        ("error", pa.string()),
    ]
)


class VideoBoxes(NamedTuple):
    """The boxes of one video, or why there are none.

    Args:
        path: The video as the manifest names it; see
            `lightning_vssl.data.video_files.video_name`.
        time: Seconds of the boxed frames, (F,), ascending.
        boxes: Shares of width and height, xyxy, (F, N, 4); NaN where a frame has fewer than N.
        error: Why the video could not be boxed; empty otherwise.
    """

    path: str
    time: npt.NDArray[np.floating]
    boxes: npt.NDArray[np.floating]
    error: str = ""


def box_table(videos: Sequence[VideoBoxes]) -> pa.Table:
    """Puts boxes into the columns of a box file.

    Args:
        videos: One entry a row.

    Returns:
        The table; coordinates as uint16.

    Raises:
        ValueError: If shapes do not fit, or a box is outside its frame, reversed or empty.
    """
    rows = [_row(video) for video in videos]
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _row(video: VideoBoxes) -> tuple[object, ...]:
    time, boxes = np.asarray(video.time, np.float32), np.asarray(video.boxes, np.float64)
    if time.ndim != 1 or boxes.ndim != 3 or len(boxes) != len(time) or boxes.shape[2] != 4:
        raise ValueError(
            f"{video.path}: time must be (F,) and boxes (F, N, 4), got {time.shape} and "
            f"{boxes.shape}"
        )
    there = ~np.isnan(boxes).all(axis=2)  # (F, N)
    count = there.sum(axis=1)
    frames = np.repeat(time, count)
    shares = _as_integers(boxes[there], lambda bad: f"{video.path}, {frames[bad]:.3f} s")
    return video.path, time, count.astype(np.uint16), shares.reshape(-1), video.error


def box_metadata(
    *, source: str, parameters: Mapping[str, object] | None = None
) -> dict[bytes, bytes]:
    """Says in a box file's metadata where the boxes come from.

    Args:
        source: What proposed the boxes, such as ``slic``.
        parameters: Its settings, plain data.

    Returns:
        Metadata for the table's schema.
    """
    return origin_metadata(_KIND, source, parameters)


def write_boxes(
    file: Path,
    table: pa.Table,
    *,
    source: str,
    parameters: Mapping[str, object] | None = None,
) -> None:
    """Writes a box file: whole, or not at all.

    Args:
        file: The file; its folder is made.
        table: What `box_table` made.
        source: What proposed the boxes, such as ``slic``.
        parameters: Its settings, plain data.

    Raises:
        OSError: If the file cannot be written.
    """
    write_table(file, table, box_metadata(source=source, parameters=parameters))


def cut_boxes(
    shares: npt.NDArray[np.floating],
    windows: npt.NDArray[np.floating],
    frame: tuple[int, int],
    size: tuple[int, int],
) -> Shares:
    """Cuts boxes by the windows that cut the pixels.

    Args:
        shares: Boxes as shares of the frame, xyxy, (V, T, N, 4), NaN where missing.
        windows: The parts of the frame that are shown, xyxy in its pixels, (V, 4).
        frame: (height, width) of the frame as displayed.
        size: (H, W) that each window is scaled to.

    Returns:
        Pixels of the view, xyxy, clipped to [0, W] x [0, H], (V, T, N, 4) float32. A box of which
        less than 2 pixels of width or of height are left is NaN. The order is kept.
    """
    height, width = frame
    windows = np.asarray(windows, np.float64)
    low = np.concatenate([windows[:, :2]] * 2, axis=1)[:, None, None]  # (V, 1, 1, 4)
    extent = np.concatenate([windows[:, 2:] - windows[:, :2]] * 2, axis=1)[:, None, None]
    limit = np.array([size[1], size[0], size[1], size[0]], np.float64)
    source = np.array([width, height, width, height], np.float64)
    boxes = (np.asarray(shares, np.float64) * source - low) / extent * limit
    cut: Shares = np.clip(boxes, 0.0, limit).astype(np.float32)  # (V, T, N, 4)
    left = cut[..., 2:] - cut[..., :2]
    cut[~(left >= _MIN_PIXELS).all(axis=-1)] = np.nan
    return cut


class BoxFile(VideoFile):
    """The boxes of a dataset's videos; see `lightning_vssl.data.video_files.VideoFile`.

    Args:
        path: A box file, or a folder of them (all ``*.parquet`` right below it).
        cache_dir: Where the arrays are kept; None for ``~/.cache/lightning_vssl``.

    Attributes:
        limit: N, the most boxes of any frame.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds none.
        ValueError: If a file is no box file, or anything in it is wrong: the message names file,
            video, frame and box.
        OSError: If the cache cannot be written.
    """

    kind = _KIND

    def __init__(self, path: Path, *, cache_dir: Path | None = None) -> None:
        super().__init__(path, cache_dir=cache_dir)
        self.limit: int = self._about["limit"]

    def for_frames(self, video: int | str, times: npt.NDArray[np.floating]) -> Shares:
        """The boxes of the frames nearest in time.

        Args:
            video: A row from `rows`, or a video's name; -1 for a video without boxes.
            times: Seconds, (V, T).

        Returns:
            Shares of width and height, xyxy, (V, T, N, 4) with N = ``limit``; NaN where missing.

        Raises:
            KeyError: If the file has no boxed frame of the video named.
        """
        times = np.asarray(times, np.float64)
        out = np.full((*times.shape, self.limit, 4), np.nan, np.float32)
        row = self._row(video)
        if row < 0:
            return out
        offsets, seconds, starts, boxes = self._opened()
        first, last = int(offsets[row]), int(offsets[row + 1])
        frames = nearest(seconds[first:last], times)  # (V, T) in [0, F)
        begin = np.asarray(starts[first : last + 1])
        place = begin[frames][..., None] + np.arange(self.limit)  # (V, T, N)
        there = place < begin[frames + 1][..., None]
        out[there] = boxes[place[there]].astype(np.float32) / SCALE
        return out

    def _write(self, files: Sequence[Path], folder: Path) -> dict[str, object]:
        tables = [_read(file) for file in files]
        origin = shared_origin(_KIND, [table.schema for table in tables], files)
        flat = _joined([_checked(table, file) for table, file in zip(tables, files, strict=True)])
        paths, offsets, flat = _by_video(flat, self.path)
        if not len(paths):
            raise ValueError(f"{self.path} holds no video with boxed frames; {_HOW}")
        limit = int(flat.counts.max())
        if limit == 0:
            raise ValueError(f"{self.path}: none of its frames has a box; {_HOW}")
        starts = np.concatenate([[0], np.cumsum(flat.counts)])
        arrays: tuple[npt.NDArray[np.generic], ...] = (offsets, flat.seconds, starts, flat.boxes)
        for name, array in zip(_ARRAYS, arrays, strict=True):
            np.save(folder / f"{name}.npy", array)
        failed = pc.greater(pc.utf8_length(flat.errors), 0)
        self._note(
            folder, paths, pa.table({"path": flat.paths, "error": flat.errors}).filter(failed)
        )
        return {**origin, "limit": limit, "videos": len(paths)}

    def _opened(self) -> tuple[npt.NDArray[np.int64], ...]:
        """First frame of each video, times, first box of each frame, boxes; mapped."""
        if self._arrays is None:
            self._arrays = tuple(
                np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
            )
        arrays: tuple[npt.NDArray[np.int64], ...] = self._arrays
        return arrays


_ARRAYS = ("offsets", "seconds", "starts", "boxes")


class _Flat(NamedTuple):
    """A file's videos (P), frames (F) and boxes (M), one after another, all of them checked."""

    paths: pa.Array
    errors: pa.Array
    frames: Indices  # (P,)
    seconds: npt.NDArray[np.float32]  # (F,)
    counts: Indices  # (F,)
    boxes: npt.NDArray[np.uint16]  # (M, 4)


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file ({error}); {_HOW}") from error


def _checked(table: pa.Table, file: Path) -> _Flat:
    """Takes a table apart, or says what is wrong with which video."""
    _check_columns(table, file)
    paths = pc.cast(table.column("path").combine_chunks(), pa.string())
    lists = {name: _list(table, name, file) for name in ("time", "count", "boxes")}
    sizes = {name: np.diff(offsets) for name, (offsets, _) in lists.items()}
    seconds, counts = lists["time"][1].astype(np.float64), lists["count"][1].astype(np.int64)
    _refuse(
        sizes["time"] != sizes["count"],
        lambda i: f"{file}: {paths[i]} has {sizes['time'][i]} times and {sizes['count'][i]} counts",
    )
    video = np.repeat(np.arange(len(paths)), sizes["time"])  # (F,) row of each frame
    _refuse(
        counts < 0,
        lambda i: f"{file}: {paths[video[i]]} has {counts[i]} boxes in one of its frames",
    )
    own = np.bincount(video, weights=counts, minlength=len(paths)).astype(np.int64) * 4
    _refuse(
        sizes["boxes"] != own,
        lambda i: (
            f"{file}: {paths[i]} has {sizes['boxes'][i]} coordinates, and its counts ask for "
            f"{own[i]} (4 a box)"
        ),
    )
    _refuse(
        ~np.isfinite(seconds),
        lambda i: f"{file}: {paths[video[i]]} has a frame at {seconds[i]} seconds",
    )
    backwards = (seconds[1:] <= seconds[:-1]) & (video[1:] == video[:-1])
    _refuse(
        backwards,
        lambda i: (
            f"{file}: the times of {paths[video[i]]} do not ascend ({seconds[i]:.3f}, then "
            f"{seconds[i + 1]:.3f} s)"
        ),
    )
    ends = np.cumsum(counts)  # (F,) boxes up to the end of each frame

    def place(box: int) -> str:
        frame = int(np.searchsorted(ends, box, side="right"))
        return f"{file}: {paths[video[frame]]}, {seconds[frame]:.3f} s"

    boxes = _as_integers(lists["boxes"][1].reshape(-1, 4), place)
    return _Flat(paths, _errors(table), sizes["time"], seconds.astype(np.float32), counts, boxes)


def _check_columns(table: pa.Table, file: Path) -> None:
    def number(kind: pa.DataType) -> bool:
        return bool(pa.types.is_floating(kind))

    wanted = {
        "path": (
            "strings",
            lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
        ),
        "time": ("lists of floats", number),
        "count": ("lists of integers", pa.types.is_integer),
        "boxes": ("lists of uint16 or floats", lambda k: number(k) or pa.types.is_uint16(k)),
    }
    absent = [name for name in wanted if name not in table.column_names]
    if absent:
        raise ValueError(
            f"{file} has no column {', '.join(absent)}; its columns are "
            f"{', '.join(table.column_names)}. {_HOW}"
        )
    for name, (meant, fits) in wanted.items():
        kind = table.schema.field(name).type
        nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        inner = kind.value_type if nested else kind
        if nested != (name != "path") or not fits(inner):
            raise ValueError(f"{file}: column {name} holds {kind}, not {meant}. {_HOW}")
        if table.column(name).null_count:
            row = int(pc.index(pc.is_null(table.column(name)), True).as_py())
            video = table.column("path")[row].as_py()
            raise ValueError(f"{file}: row {row} ({video}) has no value in column {name}. {_HOW}")


def _list(table: pa.Table, name: str, file: Path) -> tuple[Indices, npt.NDArray[np.generic]]:
    """(offsets from 0, values) of a column of lists."""
    column = table.column(name).combine_chunks()
    column = column.cast(pa.large_list(column.type.value_type))
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values[int(offsets[0]) : int(offsets[-1])] if len(offsets) else column.values
    if values.null_count:
        raise ValueError(f"{file}: column {name} has a list with an empty place in it. {_HOW}")
    return offsets - offsets[0], values.to_numpy(zero_copy_only=False)


def _errors(table: pa.Table) -> pa.Array:
    """The reason of each row, where there is one."""
    frames = pc.list_value_length(table.column("time")).combine_chunks()
    given = (
        pc.fill_null(table.column("error").combine_chunks().cast(pa.string()), "")
        if "error" in table.column_names
        else pa.array([""] * table.num_rows, pa.string())
    )
    silent = pc.and_(pc.equal(frames, 0), pc.equal(pc.utf8_length(given), 0))
    return pc.if_else(silent, "none of its frames is boxed", given)


def _refuse(wrong: npt.ArrayLike, say: _Message) -> None:
    """Raises with what ``say`` says of the first that is wrong."""
    found = np.flatnonzero(wrong)
    if len(found):
        more = f" ({len(found)} such cases)" if len(found) > 1 else ""
        raise ValueError(f"{say(int(found[0]))}{more}. {_HOW}")


def _as_integers(boxes: npt.NDArray[np.generic], where: _Message) -> npt.NDArray[np.uint16]:
    """Boxes (M, 4) as uint16, or what is wrong with the first that is wrong."""
    out = np.empty(boxes.shape, np.uint16)
    for first in range(0, len(boxes), _CHUNK):
        part = boxes[first : first + _CHUNK]
        stored = part.dtype == np.uint16
        shares = part.astype(np.float64) / (SCALE if stored else 1)
        out[first : first + _CHUNK] = (
            part if stored else np.round(np.nan_to_num(np.clip(shares, 0, 1)) * SCALE)
        )
        faults = _faults(shares, out[first : first + _CHUNK])
        wrong = np.flatnonzero(np.any(list(faults.values()), axis=0))
        if len(wrong):
            box = int(wrong[0])
            why = next(text for text, which in faults.items() if which[box])
            numbers = ", ".join(f"{value:g}" for value in shares[box])
            more = f" (and {len(wrong) - 1} more boxes are wrong)" if len(wrong) > 1 else ""
            raise ValueError(f"{where(first + box)}: the box ({numbers}) {why}{more}. {_HOW}")
    return out


def _faults(shares: Floats, wholes: npt.NDArray[np.uint16]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which boxes (M, 4) have which fault."""
    faults = {
        "is not finite; leave out a box that is missing": ~np.isfinite(shares),
        "reaches outside [0, 1]; coordinates are shares of width and height": (
            (shares < -_SLACK) | (shares > 1 + _SLACK)
        ),
        "is reversed; x0 < x1 and y0 < y1": shares[:, 2:] < shares[:, :2],
        "has no area": wholes[:, 2:] <= wholes[:, :2],
    }
    return {text: np.any(which, axis=1) for text, which in faults.items()}


def _joined(parts: Sequence[_Flat]) -> _Flat:
    return _Flat(
        pa.concat_arrays([part.paths for part in parts]),
        pa.concat_arrays([part.errors for part in parts]),
        *(np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[2:]),  # type: ignore[arg-type]
    )


def _by_video(flat: _Flat, path: Path) -> tuple[pa.Array, Indices, _Flat]:
    """Frames ordered by (video, time).

    Returns:
        The names of the videos that have frames, sorted, (P,); the first frame of each, (P + 1,);
        and the frames and boxes in that order.
    """
    used = flat.paths.filter(pa.array(flat.frames > 0))
    names = used.unique()
    names = names.take(pc.sort_indices(names))
    video = pc.index_in(flat.paths, value_set=names)
    video = pc.fill_null(video, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    owner = np.repeat(video, flat.frames)  # (F,)
    order = np.lexsort((flat.seconds, owner))
    owner, seconds, counts = owner[order], flat.seconds[order], flat.counts[order]
    twice = (owner[1:] == owner[:-1]) & (seconds[1:] == seconds[:-1])
    _refuse(
        twice,
        lambda i: f"{path}: {names[owner[i]]} has two rows for the frame at {seconds[i]:.3f} s",
    )
    boxes = flat.boxes
    if not np.array_equal(order, np.arange(len(order))):
        starts = np.concatenate([[0], np.cumsum(flat.counts)])[order]  # of each frame, as stored
        gaps = np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        boxes = boxes[np.arange(len(boxes)) + gaps]
    offsets = np.searchsorted(owner, np.arange(len(names) + 1)).astype(np.int64)
    return names, offsets, flat._replace(seconds=seconds, counts=counts, boxes=boxes)
