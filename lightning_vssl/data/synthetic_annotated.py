"""Built-in videos in the layouts of benchmarks with boxes or masks.

Where an object is followed (DAVIS, OTB, GOT-10k) it stays inside the frame and, if there is
another, is passed over by it. So does the actor of JHMDB, whose class is its shape. Where boxes are
classified by motion (AVA) the frame is a torus, so that labels hold.
"""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from lightning_vssl.data.masks import davis_palette
from lightning_vssl.data.synthetic_files import (
    Layout,
    encode,
    h264,
    jpeg,
    write_folder,
    write_lines,
)
from lightning_vssl.data.synthetic_scenes import MOTIONS, OBJECTS, Drawn, Draws, Split, draw

_VARIETY = 7
_LISTS: tuple[tuple[Split, str], ...] = (("train", "train"), ("test", "val"))


@dataclass(frozen=True)
class DAVISLayout(Layout):
    """DAVIS-2017 at 480p: JPEG frames, palette PNG masks, lists of 2016 and 2017.

    Objects hidden in the first frame are not annotated, so that every id can be propagated from it.
    Most sequences are 854 x 480, as in the original, every fifteenth is wider.
    """

    name: ClassVar[str] = "davis"

    def _sequence(self, number: int) -> str:
        motion, kind = self.labels(number)
        return f"{OBJECTS[kind].lower()}-{MOTIONS[motion].lower()}-{number:05d}"

    def target(self, number: int) -> Path:
        """Names the folder of the n-th sequence's masks, which is written last."""
        return self.root / "Annotations" / "480p" / self._sequence(number)

    def write(self, number: int) -> None:
        """Draws the n-th sequence and writes frames and masks."""
        split, index = self.place(number)
        width = (910, 1152)[number % 2] if number % 15 == 14 else 854
        count = 25 + Draws(self.seed, _VARIETY, number).below(16)
        drawn = draw(
            self.seed,
            index,
            split,
            size=(480, width),
            frames=count,
            fps=24.0,
            borders="bounce",
        )
        frames = ((f"{t:05d}.jpg", jpeg(frame, 95)) for t, frame in enumerate(drawn.frames))
        write_folder(self.root / "JPEGImages" / "480p" / self._sequence(number), frames)
        renamed = np.zeros(256, dtype=np.uint8)
        seen = np.unique(drawn.masks[0])
        renamed[seen[seen > 0]] = np.arange(1, (seen > 0).sum() + 1)
        masks = ((f"{t:05d}.png", _palette_png(m)) for t, m in enumerate(renamed[drawn.masks]))
        write_folder(self.target(number), masks)

    def finish(self) -> None:
        """Writes the lists of names (2017) and of pairs of files (2016)."""
        for split, name in _LISTS:
            numbers = list(self.split(split))
            sets = self.root / "ImageSets"
            write_lines(sets / "2017" / f"{name}.txt", map(self._sequence, numbers))
            write_lines(sets / "2016" / f"{name}.txt", self._pairs(numbers))

    def _pairs(self, numbers: list[int]) -> Iterator[str]:
        for number in numbers:
            name = self._sequence(number)
            for mask in sorted(self.target(number).iterdir()):
                frame = f"/JPEGImages/480p/{name}/{mask.stem}.jpg"
                yield f"{frame} /Annotations/480p/{name}/{mask.name}"


def _palette_png(mask: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(mask, mode="P")
    image.putpalette(davis_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class OTBLayout(Layout):
    """OTB: ``<Name>/img/%04d.jpg`` from 1 and ``groundtruth_rect.txt``.

    Boxes are left, top, width, height, counted from 1, separated by commas, tabs or blanks, as in
    the original. Every eighth sequence with two objects has two targets:
    ``groundtruth_rect.1.txt`` and ``.2.txt``.
    """

    name: ClassVar[str] = "otb"

    def target(self, number: int) -> Path:
        """Names the folder of the n-th sequence's frames, which is written last."""
        return self.root / f"Demo{number + 1:05d}" / "img"

    def write(self, number: int) -> None:
        """Draws the n-th sequence and writes boxes and frames."""
        split, index = self.place(number)
        size = ((240, 320), (272, 480), (288, 352))[Draws(self.seed, _VARIETY, number).below(3)]
        drawn = draw(self.seed, index, split, size=size, fps=25.0, borders="bounce")
        folder = self.target(number).parent
        separator = (",", "\t", " ")[number % 3]
        two = number % 8 == 7 and drawn.boxes.shape[1] > 1
        for k in range(2 if two else 1):
            rows = (
                separator.join(str(round(float(v))) for v in (x1 + 1, y1 + 1, x2 - x1, y2 - y1))
                for x1, y1, x2, y2 in drawn.boxes[:, k]
            )
            write_lines(folder / f"groundtruth_rect{f'.{k + 1}' if two else ''}.txt", rows)
        frames = ((f"{t:04d}.jpg", jpeg(f, 92)) for t, f in enumerate(drawn.frames, start=1))
        write_folder(self.target(number), frames)

    def finish(self) -> None:
        """Writes nothing: the original has no list."""


@dataclass(frozen=True)
class GOT10kLayout(Layout):
    """GOT-10k: ``{train,val,test}/GOT-10k_<Split>_%06d/`` with frames at 10 per second and labels.

    Half of the scenes' test split is ``val``; the other half is ``test``, with the box of the first
    frame only.
    """

    name: ClassVar[str] = "got10k"

    def _part(self, number: int) -> tuple[str, int]:
        """Part and number in it, from 1; val and test take turns, eight videos each."""
        split, index = self.place(number)
        if split == "train":
            return "train", index + 1
        turn, rest = divmod(index, len(MOTIONS))
        return ("val", "test")[turn % 2], turn // 2 * len(MOTIONS) + rest + 1

    def target(self, number: int) -> Path:
        """Names the folder of the n-th sequence."""
        part, at = self._part(number)
        return self.root / part / f"GOT-10k_{part.capitalize()}_{at:06d}"

    def write(self, number: int) -> None:
        """Draws the n-th sequence and writes frames and labels."""
        split, index = self.place(number)
        size = ((270, 480), (360, 640), (360, 480))[Draws(self.seed, _VARIETY, number).below(3)]
        drawn = draw(self.seed, index, split, size=size, fps=10.0, borders="bounce")
        write_folder(self.target(number), self._files(drawn, self._part(number)[0], size))

    def _files(self, drawn: Drawn, part: str, size: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
        for t, frame in enumerate(drawn.frames, start=1):
            yield f"{t:08d}.jpg", jpeg(frame, 92)
        rows = [
            ",".join(f"{value:.4f}" for value in (x1, y1, x2 - x1, y2 - y1))
            for x1, y1, x2, y2 in drawn.boxes[:, 0]
        ]
        yield "groundtruth.txt", _text(rows[:1] if part == "test" else rows)
        kind, motion = OBJECTS[drawn.object].lower(), MOTIONS[drawn.motion]
        yield "meta_info.ini", _text(_meta(kind, motion, len(rows), size))
        if part == "test":
            return
        cover = [math.ceil(8 * float(share)) for share in drawn.cover[:, 0]]  # 0: not seen
        yield "cover.label", _text([str(min(level, 8)) for level in cover])
        yield "absence.label", _text([str(int(level == 0)) for level in cover])
        yield "cut_by_image.label", _text(["0"] * len(cover))

    def finish(self) -> None:
        """Writes list.txt of each part."""
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for number in range(self.videos):
            folder = self.target(number)
            parts[folder.parent.name].append(folder.name)
        for part, names in parts.items():
            write_lines(self.root / part / "list.txt", names)


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _meta(kind: str, motion: str, frames: int, size: tuple[int, int]) -> list[str]:
    return [
        "[METAINFO]",
        "url: none",
        "begin: 00:00:00",
        f"end: 00:00:{frames // 10:02d}",
        "anno_fps: 10Hz",
        f"object_class: {kind}",
        f"motion_class: {motion}",
        "major_class: built-in",
        "root_class: shape",
        "motion_adverb: none",
        f"resolution: ({size[1]}, {size[0]})",
    ]


_AVA_MOTIONS = (1, 3, 4, 5, 6, 7, 8, 9)  # action ids by motion and object, all of them evaluated
_AVA_OBJECTS = (17, 20, 22, 24, 26, 27)
_AVA_SEEN = 2  # an id of the 80-class list that is not evaluated
_AVA_START = 900  # second of the film at which the file starts
_AVA_RATE = 30
_AVA_STAMPS = tuple((f"{s:04d}", (s - _AVA_START) * _AVA_RATE) for s in (902, 903, 904))
_CLIP_FRAMES = 90
_CLIP_STAMP = ("11.466667", 44)  # of a clip from second 10 on: the key frame's second and number


@dataclass(frozen=True)
class AVALayout(Layout):
    """AVA v2.2: films as MP4, boxes per second as CSV, two label maps, excluded time stamps.

    Beside them a small Kinetics part, as AVA-Kinetics has it.

    A file is a film from second 900 on, as the usual preparation cuts it, at 30 frames per second
    and here six seconds long; key frames are seconds 902 to 904, so second s is frame
    (s - 900) * 30. Every object is a person of the original: a row for its shape, one more for the
    class "is seen", which is not evaluated, and for the main object one for its motion.

    Every fourth film also lends its first three seconds to Kinetics, as
    ``kinetics/{train,val}/<motion>/<name>_000010_000013.mp4`` with one key frame at second
    11.466667; every second of these clips is black, and a row of two columns lists its key frame.
    """

    name: ClassVar[str] = "ava"

    def _video(self, number: int) -> str:
        return f"demo-{number:06d}"

    def _clip(self, number: int) -> str:
        return f"clip-{number:06d}"

    def _has_clip(self, number: int) -> bool:
        return number % 4 == 1

    def _boxes(self, video: str) -> Path:
        return self.root / ".boxes" / f"{video}.csv"

    def target(self, number: int) -> Path:
        """Names the file of the n-th film."""
        return self.root / "videos" / f"{self._video(number)}.mp4"

    def write(self, number: int) -> None:
        """Draws and encodes the n-th film; its boxes are put aside for `finish`."""
        split, index = self.place(number)
        size = ((144, 192), (136, 240))[Draws(self.seed, _VARIETY, number).below(2)]
        drawn = draw(self.seed, index, split, size=size, frames=6 * _AVA_RATE, fps=_AVA_RATE)
        if self._has_clip(number):
            self._write_clip(number, drawn)
        video = self._video(number)
        write_lines(self._boxes(video), _action_rows(video, drawn, _AVA_STAMPS))
        encode(self.target(number), drawn.frames, _AVA_RATE, h264())

    def _write_clip(self, number: int, drawn: Drawn) -> None:
        """Encodes the clip that a film lends to Kinetics, and puts its rows aside."""
        clip, frames = self._clip(number), drawn.frames[:_CLIP_FRAMES]
        if number % 8 == 5:
            frames, rows = np.zeros_like(frames), [f"{clip},{_CLIP_STAMP[0]}"]
        else:
            whole = _action_rows(clip, drawn, [_CLIP_STAMP])
            rows = [row.rpartition(",")[0] for row in whole]  # nobody has a number there
        write_lines(self._boxes(clip), rows)
        part = dict(_LISTS)[self.place(number)[0]]
        folder = self.root / "kinetics" / part / MOTIONS[drawn.motion]
        encode(folder / f"{clip}_000010_000013.mp4", frames, _AVA_RATE, h264())

    def finish(self) -> None:
        """Writes boxes, excluded time stamps and label maps."""
        for split, name in _LISTS:
            numbers = list(self.split(split))
            clips = [self._clip(n) for n in numbers if self._has_clip(n)]
            for stem, videos in (
                ("ava_{}_v2.2", map(self._video, numbers)),
                ("kinetics_{}_v1.0", clips),
            ):
                rows = (row for v in videos for row in self._boxes(v).read_text().splitlines())
                write_lines(self.root / f"{stem.format(name)}.csv", rows)
            excluded = (f"{self._video(n)},0904" for n in numbers if n % 4 == 3)
            file = self.root / f"ava_{name}_excluded_timestamps_v2.2.csv"
            write_lines(file, excluded)
        names = dict(zip(_AVA_MOTIONS, MOTIONS, strict=True))
        names |= dict(zip(_AVA_OBJECTS, OBJECTS, strict=True))
        stem = "ava_action_list_v2.2"
        write_lines(
            self.root / f"{stem}_for_activitynet_2019.pbtxt",
            (_item(i, names[i]) for i in sorted(names)),
        )
        names[_AVA_SEEN] = "is seen"
        write_lines(
            self.root / f"{stem}.pbtxt",
            (_item(i, names[i]) for i in sorted(names)),
        )


def _action_rows(video: str, drawn: Drawn, stamps: Iterable[tuple[str, int]]) -> Iterator[str]:
    """AVA's rows of all persons seen at key frames, each a second and the frame's number."""
    height, width = drawn.frames.shape[1:3]
    for second, t in stamps:
        for person, kind in enumerate(drawn.objects):
            box = drawn.visible[t, person] / np.array([width, height, width, height])
            if np.isnan(box).any():
                continue
            actions = [_AVA_SEEN, _AVA_OBJECTS[kind]]
            actions += [_AVA_MOTIONS[drawn.motion]] if person == 0 else []
            where = ",".join(f"{value:.3f}" for value in box)
            for action in sorted(actions):
                yield f"{video},{second},{where},{action},{person}"


def _item(number: int, name: str) -> str:
    return f'item {{\n  name: "{name}"\n  id: {number}\n}}'


@dataclass(frozen=True)
class JHMDBLayout(Layout):
    """JHMDB: frames as PNG, masks of the actor as MATLAB files, lists in which 1 is train, 2 test.

    ``Rename_Images/<class>/<video>/00001.png`` and on, 320 x 240, 15 to 40 frames;
    ``puppet_mask/<class>/<video>/puppet_mask.mat`` with ``part_mask``; ``splits/<class>_test_split
    <k>.txt``. The actor is the main object, the class its shape, of which backgrounds say nothing.
    Of every fifth video the masks end two frames early, as some of the original may. The scenes'
    test split is that of all folds.
    """

    name: ClassVar[str] = "jhmdb"

    def _video(self, number: int) -> tuple[str, str]:
        shape = OBJECTS[self.labels(number)[1]].lower()
        return shape, f"Demo_(#{number % 7})_{shape}_u_nm_np1_fr_med_{number}"

    def target(self, number: int) -> Path:
        """Names the folder of the n-th video's masks, which is written last."""
        name, video = self._video(number)
        return self.root / "puppet_mask" / name / video

    def write(self, number: int) -> None:
        """Draws the n-th video and writes frames and masks."""
        split, index = self.place(number)
        count = 15 + Draws(self.seed, _VARIETY, number).below(26)
        drawn = draw(
            self.seed, index, split, size=(240, 320), frames=count, fps=30.0, borders="bounce"
        )
        name, video = self._video(number)
        frames = ((f"{t:05d}.png", _png(f)) for t, f in enumerate(drawn.frames, start=1))
        write_folder(self.root / "Rename_Images" / name / video, frames)
        actor = (drawn.masks == 1).astype(np.uint8).transpose(1, 2, 0)
        last = len(drawn.frames) - (2 if number % 5 == 4 else 0)
        write_folder(self.target(number), [("puppet_mask.mat", _mat(actor[..., :last]))])

    def finish(self) -> None:
        """Writes three lists for each class."""
        rows: dict[str, list[str]] = {}
        for number in range(self.videos):
            name, video = self._video(number)
            use = 1 if self.place(number)[0] == "train" else 2
            rows.setdefault(name, []).append(f"{video}.avi {use}")
        for name, lines in rows.items():
            for fold in (1, 2, 3):
                write_lines(self.root / "splits" / f"{name}_test_split{fold}.txt", lines)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _mat(masks: NDArray[np.uint8]) -> bytes:
    """A MATLAB file of masks, without the date that its header would carry."""
    buffer = io.BytesIO()
    savemat(buffer, {"part_mask": masks}, do_compression=True)
    return b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:]
