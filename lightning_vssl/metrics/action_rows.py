"""Rows of boxes with actions, as AVA and AVA-Kinetics write them; and their label maps.

A file has no header. A row is one action of one box:

| column | meaning |
|---|---|
| video | name of the film |
| second | of the film; four digits in AVA (``0902``), with a fraction in AVA-Kinetics |
| x1, y1, x2, y2 | the box, in shares of the frame's width and height |
| action | number of the action, from 1; empty where persons alone were detected |
| person or score | in ground truth who it is, in detections how sure; may be missing |

A row of the first two columns alone says that the frame was looked at and holds none of the
actions: what is detected there is wrong. A second is known to the microsecond, as the ActivityNet
evaluation knows it (its ``get_ava_performance.py``).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

EVALUATED = (
    *(1, *range(3, 16), 17, 20, 22, 24, *range(26, 31), 34, 36, 37, 38, 41, 43),
    *(*range(45, 50), 51, 52, 54, *range(56, 71), 72, 73, 74, *range(76, 81)),
)
"""The 60 of AVA's 80 actions that are evaluated: ``..._for_activitynet_2019.pbtxt``."""

_WIDTHS = (2, 7, 8)
_FORM = "video,second[,x1,y1,x2,y2,action[,person or score]], without a header"
_BLOCK = re.compile(r"(\w+)\s*\{([^{}]*)\}")
_NAME = re.compile(r'\bname\s*:\s*"([^"]*)"')
_NUMBER = re.compile(r"\b(?:id|label_id)\s*:\s*(\d+)\b")


@dataclass(frozen=True, eq=False)
class ActionRows:
    """Rows in the order of their file.

    Attributes:
        videos: Names of the films.
        video: Which of them, (R,).
        second: Of the film, (R,).
        box: Shares of the frame, xyxy, (R, 4); NaN in rows of two columns.
        action: From 1, (R,); 0 where a row has none.
        score: The last column, (R,): a score, or a person's number; 1 where there is none.
        source: The file, for messages.
        line: Where a row stands there, from 1, (R,).
    """

    videos: tuple[str, ...]
    video: Ints
    second: Floats
    box: Floats
    action: Ints
    score: Floats
    source: str
    line: Ints

    def __len__(self) -> int:
        return len(self.video)

    @property
    def boxed(self) -> npt.NDArray[np.bool_]:
        """Which rows have a box, (R,)."""
        return ~np.isnan(self.box[:, 0])

    def take(self, rows: npt.NDArray[np.generic]) -> Self:
        """Some of the rows, by number or by a mask."""
        names = ("video", "second", "box", "action", "score", "line")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def where(self, row: int) -> str:
        """Names a row in a message."""
        return f"{self.source}, line {self.line[row]}"


def stack_rows(parts: Sequence[ActionRows]) -> ActionRows:
    """Puts tables one behind the other, such as AVA's and Kinetics' of AVA-Kinetics.

    Args:
        parts: One or more.

    Returns:
        All rows. A film named in several tables is one film.
    """
    if len(parts) == 1:
        return parts[0]
    names = tuple(dict.fromkeys(name for part in parts for name in part.videos))
    place = {name: number for number, name in enumerate(names)}
    own = [np.array([place[name] for name in part.videos], np.int64) for part in parts]
    return ActionRows(
        videos=names,
        video=np.concatenate([at[part.video] for at, part in zip(own, parts, strict=True)]),
        second=np.concatenate([part.second for part in parts]),
        box=np.concatenate([part.box for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        source=" and ".join(part.source for part in parts),
        line=np.concatenate([part.line for part in parts]),
    )


def frame_numbers(*tables: ActionRows) -> list[Ints]:
    """Numbers the frames of several tables alike: same film, same second to the microsecond.

    Args:
        tables: Rows.

    Returns:
        For each table the frame of each row, (R,), counted from 0 in the order of film and time.
    """
    joined = stack_rows(tables)
    stamps = np.rint(joined.second * 1e6).astype(np.int64)
    order, position = np.unique(stamps, return_inverse=True)
    _, frames = np.unique(joined.video * max(1, len(order)) + position, return_inverse=True)
    ends = np.cumsum([len(table) for table in tables])[:-1]
    return np.split(frames.astype(np.int64), ends)


def read_action_rows(file: Path | str) -> ActionRows:
    """Reads a file of AVA's format.

    Args:
        file: Ground truth, detections or a list of frames; empty lines are passed over.

    Returns:
        Its rows. What their numbers mean is not judged: a box may be empty or outside its frame.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row has another number of columns, or a column holds no number: the
            message names file and line.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: rows of {_FORM}")
    content = np.frombuffer(file.read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n", "u1")
    lines = np.flatnonzero(content == ord("\n")) + 1  # where each ends
    length = np.diff(lines, prepend=0)
    width = np.diff(np.cumsum(content == ord(","))[lines - 1], prepend=0) + 1
    wrong = np.flatnonzero((length > 1) & ~np.isin(width, _WIDTHS))
    if len(wrong):
        at = int(wrong[0])
        text = content[lines[at] - length[at] : lines[at] - 1].tobytes().decode(errors="replace")
        raise ValueError(
            f"{file}, line {at + 1}: {width[at]} columns in {text[:80]!r}; a row is {_FORM}"
        )
    parts = []
    for columns in _WIDTHS:
        own = (width == columns) & (length > 1)
        if own.any():
            text = content[np.repeat(own, length)].tobytes()
            parts.append(_parsed(text, columns, str(file), np.flatnonzero(own) + 1))
    if not parts:
        return _parsed(b"", 2, str(file), np.zeros(0, np.int64))
    rows = stack_rows(parts)
    return replace(
        _by_appearance(rows.take(np.argsort(rows.line, kind="stable"))), source=str(file)
    )


def _parsed(text: bytes, columns: int, source: str, line: Ints) -> ActionRows:
    """Rows that all have as many columns."""
    names = ("video", "second", "x1", "y1", "x2", "y2", "action", "last")[:columns]
    if not text:
        none = np.zeros(0)
        return ActionRows((), line, none, np.zeros((0, 4)), line, none, source, line)
    table = csv.read_csv(
        pa.BufferReader(text),
        read_options=csv.ReadOptions(column_names=names, use_threads=False),
        parse_options=csv.ParseOptions(quote_char=False),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    cells = {name: pc.utf8_trim_whitespace(table[name].combine_chunks()) for name in names}

    def column(name: str) -> Floats:
        return _floats(cells[name], "the last column" if name == "last" else name, source, line)

    films = cells["video"].dictionary_encode()
    rows = len(line)
    box, action, score = np.full((rows, 4), np.nan), np.zeros(rows, np.int64), np.ones(rows)
    if columns > 2:
        box = np.stack([column(name) for name in ("x1", "y1", "x2", "y2")], axis=1)
        action = _actions(cells["action"], source, line)
    if columns > 7:
        score = column("last")
    return ActionRows(
        videos=tuple(films.dictionary.to_pylist()),
        video=films.indices.to_numpy().astype(np.int64),
        second=column("second"),
        box=box,
        action=action,
        score=score,
        source=source,
        line=line,
    )


def _by_appearance(rows: ActionRows) -> ActionRows:
    """The same with the films in the order of their first row."""
    used, first = np.unique(rows.video, return_index=True)
    order = used[np.argsort(first)]
    place = np.zeros(len(rows.videos), np.int64)
    place[order] = np.arange(len(order))
    return replace(rows, videos=tuple(rows.videos[film] for film in order), video=place[rows.video])


def _floats(cells: pa.Array, name: str, source: str, line: Ints) -> Floats:
    try:
        values: Floats = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        values = np.array([_number(cell) for cell in cells.to_pylist()])
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"{source}, line {line[at]}: {name} is {cells[at].as_py()!r}, which is no finite "
            f"number; a row is {_FORM}"
        )
    return values


def _number(cell: str) -> float:
    try:
        return float("nan" if "_" in cell else cell)
    except ValueError:
        return float("nan")


def _actions(cells: pa.Array, source: str, line: Ints) -> Ints:
    """Numbers of actions; an empty cell is 0."""
    fits = pc.match_substring_regex(cells, r"^([1-9][0-9]{0,5})?$")
    wrong = np.flatnonzero(~fits.to_numpy(zero_copy_only=False))
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"{source}, line {line[at]}: action is {cells[at].as_py()!r}; a whole number from 1, "
            "or nothing where a person was detected without an action"
        )
    filled = pc.if_else(pc.equal(cells, ""), "0", cells)
    return pc.cast(filled, pa.int64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def read_label_map(file: Path | str) -> dict[int, str]:
    """Reads a label map: blocks ``item { name: "..." id: N }``, or ``label { ... label_id: N }``.

    Args:
        file: ``ava_action_list_v2.2.pbtxt``, or the list of the evaluated ones.

    Returns:
        Names by number, in the file's order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no label map, or a number stands twice: the message names the line.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f'no label map {file}: blocks item {{ name: "..." id: N }}')
    text = file.read_text(encoding="utf-8")
    names: dict[int, str] = {}
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        name, number = _NAME.search(block[2]), _NUMBER.search(block[2])
        if name is None or number is None or int(number[1]) < 1:
            raise ValueError(
                f"{file}, line {line}: a block without a name or without a number from 1: "
                f'{" ".join(block[0].split())[:80]!r}; it should be item {{ name: "..." id: N }}'
            )
        if int(number[1]) in names:
            raise ValueError(f"{file}, line {line}: number {number[1]} stands there twice")
        names[int(number[1])] = name[1]
    if not names:
        raise ValueError(f'{file} is no label map: no block item {{ name: "..." id: N }} in it')
    return names


def read_frames(file: Path | str) -> ActionRows:
    """Reads a list of frames, such as AVA's excluded time stamps: rows ``video,second``.

    Args:
        file: The list; it may be empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row has more columns: the message names file and line.
    """
    rows = read_action_rows(file)
    boxed = np.flatnonzero(rows.boxed)
    if len(boxed):
        raise ValueError(f"{rows.where(int(boxed[0]))}: a box in a list of frames (video,second)")
    return rows


def check_actions(actions: Iterable[int]) -> tuple[int, ...]:
    """The numbers in order, each once.

    Raises:
        ValueError: If there is none, or one below 1.
    """
    found = tuple(sorted(set(actions)))
    if not found or found[0] < 1:
        raise ValueError(f"actions must be one or more numbers from 1, got {found}")
    return found
