"""Built-in videos in the layouts of the recognition benchmarks: a video, a class.

The class is the motion of the main object, under a name in the benchmark's manner. Layouts and list
formats are those of the official releases.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_vssl.data.synthetic_files import (
    Layout,
    encode,
    h264,
    jpeg,
    mpeg4,
    vp9,
    write_bytes,
    write_folder,
    write_lines,
)
from lightning_vssl.data.synthetic_scenes import MOTIONS, OBJECTS, Draws, Split, draw

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VARIETY = 7  # stream of what differs between files and not between scenes
_SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True)
class DemoLayout(Layout):
    """The native layout: H.264 in ``train/`` and ``test/``, and one CSV for each.

    ``train.csv`` and ``test.csv`` have the columns path, motion, object; the two classes are
    written by name. Folders hold at most 1,000 videos.
    """

    name: ClassVar[str] = "demo"

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        split, index = self.place(number)
        return self.root / split / f"{index // 1000:03d}" / f"{index:06d}.mp4"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        split, index = self.place(number)
        drawn = draw(self.seed, index, split)
        encode(self.target(number), drawn.frames, drawn.fps, h264(gop=(12, 24, 48)[index % 3]))

    def finish(self) -> None:
        """Writes train.csv and test.csv."""
        for split in _SPLITS:
            write_lines(self.root / f"{split}.csv", self._rows(split))

    def _rows(self, split: Split) -> Iterator[str]:
        yield "path,motion,object"
        for number in self.split(split):
            motion, kind = self.labels(number)
            path = self.target(number).relative_to(self.root).as_posix()
            yield f"{path},{MOTIONS[motion]},{OBJECTS[kind]}"


@dataclass(frozen=True)
class ImagesLayout(Layout):
    """ImageNet's folders: the middle frame of each video, as ``{train,val}/<Object>/*.JPEG``."""

    name: ClassVar[str] = "images"

    def target(self, number: int) -> Path:
        """Names the file of the n-th image."""
        split, index = self.place(number)
        kind = OBJECTS[self.labels(number)[1]]
        folder = "train" if split == "train" else "val"
        return self.root / folder / kind / f"{kind}_{index:06d}.JPEG"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th image."""
        split, index = self.place(number)
        frames = draw(self.seed, index, split).frames
        write_bytes(self.target(number), jpeg(frames[len(frames) // 2], 95))

    def finish(self) -> None:
        """There are no lists: the folders tell."""


@dataclass(frozen=True)
class UCF101Layout(Layout):
    """UCF-101: MPEG-4 Part 2 AVI with B frames, 320 x 240, 25 and 29.97 frames per second.

    ``UCF-101/<Class>/v_<Class>_gNN_cNN.avi`` and ``ucfTrainTestlist/`` with classInd and trainlist
    and testlist 01 to 03. As in the original, groups 1-7 are split 1's test videos, 8-14 split 2's,
    15-21 split 3's.
    """

    name: ClassVar[str] = "ucf101"

    def _group(self, number: int) -> tuple[int, int]:
        """Group and clip of the n-th video; the scenes' test split is split 1's test set."""
        split, index = self.place(number)
        rank = index // len(MOTIONS)  # of the video among those of its class
        if split == "test":
            return 1 + rank % 7, 1 + rank // 7
        # 8, 15, 22, 9, 16, 23, ...: few videos already fill every split's test set.
        order = [g for first in range(8, 15) for g in (first, first + 7, first + 14) if g <= 25]
        return order[rank % len(order)], 1 + rank // len(order)

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        motion = MOTIONS[self.labels(number)[0]]
        group, clip = self._group(number)
        return self.root / "UCF-101" / motion / f"v_{motion}_g{group:02d}_c{clip:02d}.avi"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        split, index = self.place(number)
        fps = 30000 / 1001 if index % 8 == 7 else 25.0
        drawn = draw(self.seed, index, split, size=(240, 320), fps=fps)
        encode(self.target(number), drawn.frames, fps, mpeg4())

    def finish(self) -> None:
        """Writes the lists, with CRLF line ends."""
        lists = self.root / "ucfTrainTestlist"
        classes = sorted(MOTIONS)
        numbered = [f"{i} {name}" for i, name in enumerate(classes, start=1)]
        write_lines(lists / "classInd.txt", numbered, "\r\n")
        for fold in (1, 2, 3):
            for split in _SPLITS:
                path = lists / f"{split}list{fold:02d}.txt"
                write_lines(path, self._rows(fold, split, classes), "\r\n")

    def _rows(self, fold: int, split: Split, classes: list[str]) -> Iterator[str]:
        for number in range(self.videos):
            group = self._group(number)[0]
            tested = 7 * fold - 6 <= group <= 7 * fold
            if tested != (split == "test"):
                continue
            path = self.target(number)
            row = f"{path.parent.name}/{path.name}"
            yield row if tested else f"{row} {classes.index(path.parent.name) + 1}"


@dataclass(frozen=True)
class HMDB51Layout(Layout):
    """HMDB-51: MPEG-4 Part 2 AVI with B frames, 240 lines, several widths, 30 frames per second.

    ``hmdb51_org/<class>/<name>.avi`` and ``testTrainMulti_7030_splits/<class>_test_split<k>.txt``
    in which 1 is train, 2 test, 0 unused. Names hold the characters that the originals hold. The
    scenes' test split is split 1's test set.
    """

    name: ClassVar[str] = "hmdb51"

    _titles: ClassVar[tuple[str, ...]] = (
        "April_09",
        "#20_Rhythm",
        "Best_of_(old)_Films",
        "Fish_&_Chips!",
        "Trailer_[long]",
        "Steps;_part_two",
    )

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        split, index = self.place(number)
        name = _snake(self.labels(number)[0])
        title = self._titles[index // len(MOTIONS) % len(self._titles)]
        part = "med" if split == "train" else "goo"
        file = f"{title}_{name}_f_cm_np1_fr_{part}_{index}.avi"
        return self.root / "hmdb51_org" / name / file

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        split, index = self.place(number)
        width = (320, 352, 416)[Draws(self.seed, _VARIETY, number).below(3)]
        drawn = draw(self.seed, index, split, size=(240, width), fps=30.0)
        encode(self.target(number), drawn.frames, 30.0, mpeg4())

    def finish(self) -> None:
        """Writes three lists for each class."""
        lists = self.root / "testTrainMulti_7030_splits"
        for fold in (1, 2, 3):
            rows: dict[str, list[str]] = {_snake(motion): [] for motion in range(len(MOTIONS))}
            for number in range(self.videos):
                path = self.target(number)
                rows[path.parent.name].append(f"{path.name} {self._use(number, fold)} ")
            for name, lines in rows.items():
                write_lines(lists / f"{name}_test_split{fold}.txt", lines)

    def _use(self, number: int, fold: int) -> int:
        split, index = self.place(number)
        rank = index // len(MOTIONS)
        if split == "test":
            return 2 if fold == 1 else 1
        if rank % 10 == 9:
            return 0
        return 2 if fold > 1 and rank % 3 == fold - 2 else 1


@dataclass(frozen=True)
class KineticsLayout(Layout):
    """Kinetics: H.264 MP4 of several sizes, rates and keyframe distances.

    ``{train,val}/<label, blanks as _>/<id>_<start>_<end>.mp4`` and ``annotations/{train,val}.csv``
    with the official header.
    """

    name: ClassVar[str] = "kinetics"

    def _clip(self, number: int) -> tuple[str, int]:
        return _youtube(self.seed, number), Draws(self.seed, _VARIETY, number, 1).below(600)

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        name, start = self._clip(number)
        folder = _snake(self.labels(number)[0])
        split = "train" if self.place(number)[0] == "train" else "val"
        return self.root / split / folder / f"{name}_{start:06d}_{start + 10:06d}.mp4"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        _write_various(self, number, sound=False)

    def finish(self) -> None:
        """Writes train.csv and val.csv."""
        lists: tuple[tuple[Split, str], ...] = (("train", "train"), ("test", "val"))
        for split, name in lists:
            write_lines(self.root / "annotations" / f"{name}.csv", self._rows(split, name))

    def _rows(self, split: Split, name: str) -> Iterator[str]:
        yield "label,youtube_id,time_start,time_end,split"
        for number in self.split(split):
            video, start = self._clip(number)
            yield f"{_spaced(self.labels(number)[0])},{video},{start},{start + 10},{name}"


@dataclass(frozen=True)
class VGGSoundLayout(Layout):
    """VGG-Sound: H.264 MP4 of several sizes and rates with a (silent) AAC track.

    ``video/<id>_<start>.mp4`` and ``vggsound.csv`` without a header: id, start in seconds, label
    (quoted where it holds a comma, as one class does), train or test.
    """

    name: ClassVar[str] = "vggsound"

    def _clip(self, number: int) -> tuple[str, int]:
        return _youtube(self.seed, number), Draws(self.seed, _VARIETY, number, 1).below(600)

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        name, start = self._clip(number)
        return self.root / "video" / f"{name}_{start:06d}.mp4"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        _write_various(self, number, sound=True)

    def finish(self) -> None:
        """Writes vggsound.csv."""
        write_lines(self.root / "vggsound.csv", self._rows())

    def _rows(self) -> Iterator[str]:
        for number in range(self.videos):
            name, start = self._clip(number)
            label = _spaced(self.labels(number)[0])
            label = "rest, not moving" if label == "rest" else label
            yield _csv_row(name, str(start), label, self.place(number)[0])


_TEMPLATES: tuple[str, ...] = (  # by motion
    "Moving [something] to the left",
    "Moving [something] to the right",
    "Moving [something] up",
    "Moving [something] down",
    "Turning [something] clockwise",
    "Moving [something] closer",
    "Shaking [something]",
    "Showing [something], nothing happens",
)


@dataclass(frozen=True)
class SomethingV1Layout(Layout):
    """Something-Something V1: folders of JPEG frames, 100 lines, 12 frames per second.

    ``20bn-something-something-v1/<id>/%05d.jpg`` from 1 and
    ``something-something-v1-{train,validation,test,labels}.csv``, separated by semicolons; the test
    list has no labels.
    """

    name: ClassVar[str] = "something-v1"

    def target(self, number: int) -> Path:
        """Names the folder of the n-th video."""
        return self.root / "20bn-something-something-v1" / _identity(number)

    def write(self, number: int) -> None:
        """Draws the n-th video and writes its frames."""
        split, index = self.place(number)
        width = (132, 176, 178)[Draws(self.seed, _VARIETY, number).below(3)]
        drawn = draw(self.seed, index, split, size=(100, width), fps=12.0)
        frames = ((f"{t:05d}.jpg", jpeg(f, 85)) for t, f in enumerate(drawn.frames, start=1))
        write_folder(self.target(number), frames)

    def finish(self) -> None:
        """Writes the four lists."""
        templates = [template.replace("[something]", "something") for template in _TEMPLATES]
        stem = "something-something-v1"
        write_lines(self.root / f"{stem}-labels.csv", sorted(templates))
        for part in ("train", "validation", "test"):
            rows = (
                _identity(n) + ("" if part == "test" else f";{templates[self.labels(n)[0]]}")
                for n in range(self.videos)
                if _part(self, n) == part
            )
            write_lines(self.root / f"{stem}-{part}.csv", rows)


@dataclass(frozen=True)
class SomethingV2Layout(Layout):
    """Something-Something V2: VP9 in WebM, 240 lines, 12 frames per second.

    ``20bn-something-something-v2/<id>.webm`` and
    ``something-something-v2-{train,validation,test,labels}.json``.
    """

    name: ClassVar[str] = "something-v2"

    def target(self, number: int) -> Path:
        """Names the file of the n-th video."""
        return self.root / "20bn-something-something-v2" / f"{_identity(number)}.webm"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th video."""
        split, index = self.place(number)
        width = (320, 426, 428)[Draws(self.seed, _VARIETY, number).below(3)]
        drawn = draw(self.seed, index, split, size=(240, width), fps=12.0)
        encode(self.target(number), drawn.frames, 12.0, vp9())

    def finish(self) -> None:
        """Writes the four lists."""
        stem = "something-something-v2"
        names = sorted(template.replace("[something]", "something") for template in _TEMPLATES)
        ids = json.dumps({name: str(i) for i, name in enumerate(names)}, indent=0)
        write_lines(self.root / f"{stem}-labels.json", [ids])
        for part in ("train", "validation", "test"):
            write_lines(self.root / f"{stem}-{part}.json", self._rows(part))

    def _rows(self, part: str) -> Iterator[str]:
        yield "["
        before = ""
        for number in range(self.videos):
            if _part(self, number) != part:
                continue
            row: dict[str, str | list[str]] = {"id": _identity(number)}
            if part != "test":
                motion, kind = self.labels(number)
                thing = f"a {OBJECTS[kind].lower()}"
                row["label"] = _TEMPLATES[motion].replace("[something]", thing)
                row["template"] = _TEMPLATES[motion]
                row["placeholders"] = [thing]
            yield before + json.dumps(row)
            before = ","
        yield "]"


def _snake(motion: int) -> str:
    """MoveLeft as move_left."""
    return _spaced(motion).replace(" ", "_")


def _spaced(motion: int) -> str:
    """MoveLeft as "move left"."""
    name = MOTIONS[motion]
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def _youtube(seed: int, number: int) -> str:
    """Makes up an identifier of eleven characters; some begin with - or _, as real ones do."""
    draws = Draws(seed, _VARIETY, number, 0)
    return "".join(_ALPHABET[draws.below(64)] for _ in range(11))


def _identity(number: int) -> str:
    """Numbers videos in no visible order: an odd factor permutes the residues of a power of two."""
    return str(number * 54_773 % (1 << 17) + 1)


def _part(layout: Layout, number: int) -> str:
    """Part of Something-Something: of the scenes' test split, a quarter has no public labels."""
    split, index = layout.place(number)
    if split == "train":
        return "train"
    return "test" if index // len(MOTIONS) % 4 == 3 else "validation"


def _csv_row(*cells: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


def _write_various(layout: Layout, number: int, *, sound: bool) -> None:
    """Draws and encodes a video whose size, rate and keyframes differ from file to file."""
    draws = Draws(layout.seed, _VARIETY, number)
    short = (96, 112, 128, 160)[draws.below(4)]
    long = short * (4, 5, 6)[draws.below(3)] // 4 // 2 * 2
    size = (long, short) if draws.below(4) == 0 else (short, long)
    fps = (12.0, 15.0, 24000 / 1001, 25.0, 30000 / 1001, 30.0, 50.0)[draws.below(7)]
    gop, b_frames = (12, 30, 60, 250)[draws.below(4)], (0, 2, 3)[draws.below(3)]
    split, index = layout.place(number)
    drawn = draw(layout.seed, index, split, size=size, fps=fps)
    encode(layout.target(number), drawn.frames, fps, h264(gop, b_frames, sound=sound))
