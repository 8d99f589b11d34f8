"""Lists of segments of videos, and the files that hold them: what AudioSet and YouTube-8M share."""

import csv
from dataclasses import dataclass
from pathlib import Path

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.video_folder import SUFFIXES


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of a list.

    Attributes:
        video: Identifier of the video.
        start: First second of the segment.
        end: First second behind it, NaN for the end of the video.
    """

    video: str
    start: float = 0.0
    end: float = float("nan")


def read_segments(file: Path, columns: tuple[str, str | None, str | None]) -> list[Segment]:
    """Reads a list.

    Args:
        file: CSV file with a header. Lines that begin with ``#`` are remarks; the last of them
            before the first row is the header where no other line is (as in AudioSet's files).
        columns: Which columns hold the identifier, the first second and the last; None, or a
            column that the file lacks, where segments are whole videos. Others are passed over.

    Returns:
        The segments in their order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the identifier's column is missing, a row is wrong, or there is none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no list of segments at {file}")
    video, start, end = columns
    found = []
    with file.open(newline="", encoding="utf-8-sig") as lines:
        header: list[str] = []
        reader = csv.reader(lines, skipinitialspace=True)
        for fields in reader:
            names = [name.strip().removeprefix("#").strip() for name in fields]
            if not any(names):
                continue
            if fields[0].startswith("#") or not header:
                if video in names:
                    header = names
                elif not fields[0].startswith("#"):
                    raise ValueError(f"{file} has no column {video}: it has {', '.join(names)}")
                continue
            row = dict(zip(header, (field.strip() for field in fields), strict=False))
            where = f"{file}, line {reader.line_num}"
            if not row.get(video):
                raise ValueError(f"{where}: {video} is empty")
            first = _second(row.get(start or "", ""), 0.0, where)
            last = _second(row.get(end or "", ""), float("nan"), where)
            if first < 0 or last <= first:
                raise ValueError(f"{where}: a segment from {first:g} to {last:g} seconds is none")
            found.append(Segment(row[video], first, last))
    if not found:
        raise ValueError(f"{file} lists no segments")
    return found


class VideoFiles:
    """Finds the files of segments with one listing of their folder.

    Args:
        root: The dataset's folder.
        folder: Folder of the videos, below it; any depth.
        suffixes: Endings, in lower case, of the files that are videos.

    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, root: Path, folder: str, suffixes: tuple[str, ...] = SUFFIXES) -> None:
        base = root / folder
        if not base.is_dir():
            raise FileNotFoundError(f"no folder of videos at {base}: check root and videos")
        self._folder = folder
        self._found: dict[str, str] = {}
        for file in sorted(base.rglob("*")):
            if file.suffix.lower() in suffixes and not file.name.startswith("."):
                self._found.setdefault(file.stem, file.relative_to(root).as_posix())

    def entry(self, segment: Segment) -> Entry:
        """The row of a segment.

        A file of the segment alone, ``<id>_<start>`` or ``<id>_<start>_<end>`` (whole seconds,
        also with six digits, or milliseconds), is taken whole; the file of the video, ``<id>``,
        for the segment's seconds. Where there is neither, the row is that of a missing file.
        """
        for name in _cut_names(segment):
            if name in self._found:
                return Entry(self._found[name])
        path = self._found.get(segment.video, f"{self._folder}/{segment.video}.mp4")
        return Entry(path, start=segment.start, end=segment.end)


def _cut_names(segment: Segment) -> list[str]:
    """What the file of a segment alone may be called, without its suffix."""
    first, last = segment.start, segment.end
    if last != last:  # to the end of the video: nothing was cut
        return []
    names = []
    for form, unit in (("{:d}", 1), ("{:06d}", 1), ("{:d}", 1000)):
        ends = [form.format(round(second * unit)) for second in (first, last)]
        names += [f"{segment.video}_{ends[0]}_{ends[1]}", f"{segment.video}_{ends[0]}"]
    return names


def _second(text: str, default: float, where: str) -> float:
    if not text:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is no number of seconds") from error
