"""Something-Something V1 and V2 (Goyal et al., ICCV 2017; Mahdisoltani et al. 2018)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import Unpack, VideoOptions

_SOURCE = "the Something-Something page of Qualcomm's AI datasets"
_PARTS: dict[Split, str] = {"train": "train", "val": "validation", "test": "validation"}


class SomethingSomethingV1(VideoDataModule):
    """Something-Something V1: 174 things that people do with objects, as folders of frames.

    Layout: ``<root>/something-something-v1-{labels,train,validation}.csv`` (or below ``labels`` or
    ``annotations``) and the frames ``<root>/20bn-something-something-v1/<id>/%05d.jpg``, counted
    from 1. Each line of the first list is a class, labels being line numbers; a line of the others
    is ``<id>;<class>``. 86,017 videos for training, 11,522 for validation. The labels of the 10,960
    for testing are withheld: a test reads the validation list, as the papers do, and a number
    reported from it must be that of the last checkpoint, not of the best.

    Classes tell left from right: what learns them refuses to mirror clips (``handed``). A video is
    unreadable if a frame is missing between others, or if one that is read is broken or has another
    size than the first; ``verify`` finds those beforehand.

    Args:
        root: Folder of the dataset.
        fps: Frames per second of the folders; the official ones have 12.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    handed: ClassVar[bool] = True

    def __init__(
        self,
        root: Path,
        *,
        fps: float = 12.0,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(root, **options)
        if not fps > 0:
            raise ValueError(f"fps={fps}: frames per second, above 0")
        self.fps = fps

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The rows of the official list, and the classes."""
        names = ("something-something-v1-{}.csv",)
        labels, rows, videos = _files(self.root, "20bn-something-something-v1", names, split)
        classes = _lines(labels)
        numbers = {name: number for number, name in enumerate(classes)}
        if len(numbers) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise ValueError(f"{labels} lists the class {twice!r} twice")
        entries = []
        for line, row in enumerate(_lines(rows), start=1):
            name, semicolon, template = row.partition(";")
            if not name.isalnum() or not semicolon:
                raise ValueError(f"{rows}, line {line}: {row!r} must be <id>;<class>")
            label = _label(template, numbers, f"{rows}, line {line}", labels)
            entries.append(Entry(f"{videos}/{name}", label, fps=self.fps))
        return entries, tuple(classes)


class SomethingSomethingV2(VideoDataModule):
    """Something-Something V2: 174 things that people do with objects, as videos.

    Layout: ``<root>/something-something-v2-{labels,train,validation}.json`` or
    ``<root>/{labels,train,validation}.json`` (or below ``labels`` or ``annotations``) and the
    videos ``<root>/20bn-something-something-v2/<id>.webm``. The first list gives each class its
    label; the others name a video's class in ``template``, with brackets around what somebody
    filled in. 168,913 videos for training, 24,777 for validation. Published results are those of
    the validation list, which a test therefore reads, not the 27,157 videos for testing; a number
    reported from it must be that of the last checkpoint, not of the best.

    Classes tell left from right: what learns them refuses to mirror clips (``handed``).

    It takes what every data module of videos takes; see `VideoDataModule`.
    """

    handed: ClassVar[bool] = True

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The rows of the official list, and the classes in the order of their labels."""
        names = ("something-something-v2-{}.json", "{}.json")
        labels, rows, videos = _files(self.root, "20bn-something-something-v2", names, split)
        numbers = _numbers(labels)
        listed = _json(rows)
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"{rows} must hold a list of videos")
        entries = []
        for position, row in enumerate(listed, start=1):
            where = f"{rows}, video {position}"
            if not isinstance(row, dict) or not {"id", "template"} <= row.keys():
                raise ValueError(f"{where} must have an id and a template, got {row!r}")
            template = str(row["template"]).replace("[", "").replace("]", "")
            label = _label(template, numbers, f"{where} (id {row['id']})", labels)
            entries.append(Entry(f"{videos}/{row['id']}.webm", label))
        return entries, tuple(sorted(numbers, key=numbers.__getitem__))


def _files(root: Path, videos: str, names: tuple[str, ...], split: Split) -> tuple[Path, Path, str]:
    """The lists of the classes and of a split, where they are, and the folder of the videos."""
    places = [root / folder / name for name in names for folder in (".", "labels", "annotations")]
    found = []
    for part in ("labels", _PARTS[split]):
        lists = [place.with_name(place.name.format(part)) for place in places]
        found.append(next((file for file in lists if file.is_file()), lists[0]))
    needed = dict.fromkeys((*found, root / videos), _SOURCE)
    require_files(needed, "Something-Something")
    labels, rows = found
    return labels, rows, videos


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error}): take it anew") from error


def _lines(file: Path) -> list[str]:
    """The lines of a list."""
    lines = [line.strip() for line in _text(file).rstrip().split("\n")]
    if not all(lines):
        raise ValueError(f"{file}, line {lines.index('') + 1} is empty")
    return lines


def _json(file: Path) -> object:
    """What a JSON file holds."""
    try:
        content: object = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {error.lineno}, column {error.colno} is not JSON ({error.msg}): is the "
            "file whole? Take it from the archive again"
        ) from error
    return content


def _numbers(file: Path) -> dict[str, int]:
    """Labels of the classes, which must be 0, 1, 2 and so on."""
    content = _json(file)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} must map every class to its label")
    labels = [str(label) for label in content.values()]
    if sorted(labels) != sorted(map(str, range(len(labels)))):
        raise ValueError(f"{file}: the labels must be 0 to {len(labels) - 1}, each of one class")
    return {name: int(label) for name, label in content.items()}


def _label(template: str, numbers: Mapping[str, int], where: str, labels: Path) -> int:
    """The label of a class."""
    if template not in numbers:
        raise ValueError(f"{where}: the class {template!r} is not in {labels.name}")
    return numbers[template]
