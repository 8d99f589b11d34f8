"""AVA v2.2 (Gu et al., CVPR 2018): who does what, where, once a second of 430 films."""

from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from lightning_vssl.data.action_boxes import KeyFrames, key_frames, read_boxes
from lightning_vssl.data.clips import KeyFrameClip
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.key_frames import KeyFrameDataset
from lightning_vssl.data.manifest import Entry, Manifest
from lightning_vssl.data.windows import Canvas, Windows
from lightning_vssl.datamodules.base import Split, VideoDataModule, require_files
from lightning_vssl.datamodules.options import LoaderOptions, Unpack
from lightning_vssl.metrics.action_rows import (
    ActionRows,
    frame_numbers,
    read_frames,
    read_label_map,
)
from lightning_vssl.metrics.detection import DetectionTask

Boxes = Literal["ground_truth", "detected"]

_PAGE = "research.google.com/ava (ava_v2.2.zip)"
_FILMS = "the films of AVA, from second 900 on (github.com/cvdfoundation/ava-dataset)"
_MAP = "ava_action_list_v2.2.pbtxt"
_EVALUATED = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
_ACTIONS = 80
_RATE = 30.0  # frames per second of folders of frames


class Film(NamedTuple):
    """Where a film lies.

    Args:
        path: File or folder of frames, relative to the dataset's root.
        start: Second of the film at which it begins.
        rate: Frames per second of a folder, None for a file.
    """

    path: str
    start: float
    rate: float | None = None


class _Listed(NamedTuple):
    """A split as its files list it."""

    truth: ActionRows
    excluded: ActionRows
    frames: KeyFrames
    films: dict[str, Film]  # of the frames' films, by name


class AVA(VideoDataModule):
    """AVA v2.2: a clip around every key frame that has boxes.

    Layout: ``<root>/ava_{train,val}_v2.2.csv``, ``ava_{train,val}_excluded_timestamps_v2.2.csv``,
    ``ava_action_list_v2.2.pbtxt`` and ``..._for_activitynet_2019.pbtxt`` (or all of them in
    ``<root>/annotations``), and the films, as ``<root>/videos/<name>.*`` or as folders of frames
    ``<root>/frames/<name>/`` at 30 frames per second.

    Batches are `KeyFrameDataset`'s samples stacked: ``video`` (B, 1, T, 3, H, W) uint8, ``boxes``
    (B, 1, 1, N, 4), ``box_labels`` (B, 1, N, 80), ``box_index`` and ``box_scores`` (B, N),
    ``shown`` (B, 1, 2). Training is on true boxes. Test reads the validation films, as the papers
    do; the labels of the test films were never given out.

    Excluded seconds are left out. In evaluation, detected boxes are read at the seconds that the
    ground truth lists, and of films that are missing the ground truth is left out too (with a
    warning that counts them). A box that its window leaves less than two pixels of is not shown.

    Args:
        root: Folder of the dataset.
        boxes: What an evaluation classifies: the true boxes, or detected ones.
        detections: CSV of detected persons, for ``detected``: AVA's columns, without an action,
            the score in the eighth. SlowFast's release has ``ava_val_predicted_boxes.csv``.
        threshold: Least score of a detected box; None for VideoGLUE's, 0.8 on AVA.
        frames: Frames of a clip. ConST-CL (section 4.2): 32.
        stride: Ticks of ``fps`` from one to the next. ConST-CL: 2.
        fps: Rate at which films are taken; None for frames as stored.
        start: Second of the film at which the files begin: 900 for films cut as usual, 0 for
            whole ones.
        limit: Most boxes of a clip.
        window: Part of the picture in training; None for the whole on a canvas of 400 x 400.
        eval_window: The same in evaluation.
        batch_size: Training samples per step over all processes together. VideoGLUE: 256.
        max_missing: Share of a split's films that may lack their file.
        max_unreadable: Share of them that may be broken.
        options: How samples are read; see `VideoDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or detections are asked for and not given.
    """

    _name: ClassVar[str] = "AVA"
    _threshold: ClassVar[float] = 0.8

    def __init__(
        self,
        root: Path,
        *,
        boxes: Boxes = "ground_truth",
        detections: Path | None = None,
        threshold: float | None = None,
        frames: int = 32,
        stride: int = 2,
        fps: float | None = 30.0,
        start: float = 900.0,
        limit: int = 32,
        window: Windows | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 256,
        max_missing: float = 0.25,
        max_unreadable: float = 0.05,
        **options: Unpack[LoaderOptions],
    ) -> None:
        if boxes not in get_args(Boxes):
            raise ValueError(f"boxes={boxes!r}: choose {' or '.join(get_args(Boxes))}")
        if boxes == "detected" and detections is None:
            raise ValueError("boxes=detected needs detections: the CSV of a person detector")
        threshold = self._threshold if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: a score, 0 to 1")
        if limit < 1:
            raise ValueError(f"limit={limit}: one box or more")
        self._clip = KeyFrameClip(frames, stride, fps)
        super().__init__(
            root,
            clips=self._clip,
            window=window if window is not None else Canvas(),
            eval_clips=self._clip,
            eval_window=eval_window if eval_window is not None else Canvas(),
            batch_size=batch_size,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            **options,
        )
        self.box_source: Boxes = boxes
        self.detections = None if detections is None else Path(detections).expanduser()
        self.threshold = threshold
        self.start = start
        self.limit = limit
        self._lists: dict[Split, _Listed] = {}
        self._actions: dict[int, str] = {}

    def truth(self, split: Split) -> tuple[ActionRows, ActionRows]:
        """The ground truth of a split and its excluded frames, as the files have them."""
        name = "train" if split == "train" else "val"
        truth, excluded = (
            self._annotation(f"ava_{name}_{what}v2.2.csv") for what in ("", "excluded_timestamps_")
        )
        require_files({truth: _PAGE, excluded: _PAGE}, self._name)
        return read_boxes(truth, self.actions), read_frames(excluded)

    def films(self, rows: ActionRows) -> dict[str, Film]:
        """Where the films of a table lie, by name; a missing one where it should."""
        found = {
            path.stem if path.is_file() else path.name: Film(
                str(path.relative_to(self.root)), self.start, None if path.is_file() else _RATE
            )
            for folder in ("frames", "videos")
            if (self.root / folder).is_dir()
            for path in sorted((self.root / folder).iterdir())
        }
        return {
            name: found.get(name, Film(f"videos/{name}.mp4", self.start)) for name in rows.videos
        }

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The films of a split that have key frames, and the names of the 80 actions."""
        listed = self._listing(split)
        entries = [Entry(film.path, fps=film.rate) for film in listed.films.values()]
        known = self.actions
        return entries, tuple(known.get(n, f"action {n}") for n in range(1, _ACTIONS + 1))

    @property
    def actions(self) -> dict[int, str]:
        """Names of all actions by number, from the label map."""
        if not self._actions:
            maps = {self._annotation(name): _PAGE for name in (_MAP, _EVALUATED)}
            require_files(maps, self._name)
            self._actions = read_label_map(self._annotation(_MAP))
            unknown = [n for n in self._actions if n > _ACTIONS]
            if unknown:
                raise ValueError(
                    f"{self._annotation(_MAP)}: action {unknown[0]}; {self._name} has actions 1 "
                    f"to {_ACTIONS}"
                )
        return self._actions

    def task(self, split: Literal["val", "test"]) -> DetectionTask:
        """What an evaluation of a split asks: for `DetectionMetric`.

        The ground truth is that of the films that are there.
        """
        listed = self._listing(split)
        lost = set(listed.films) - set(self._films_there(split, self.manifest(split)))
        kept = np.array([name not in lost for name in listed.truth.videos], np.bool_)
        return DetectionTask(
            truth=listed.truth.take(kept[listed.truth.video]),
            boxes=listed.frames.boxes,
            actions=tuple(sorted(read_label_map(self._annotation(_EVALUATED)))),
            excluded=listed.excluded,
        )

    def _annotation(self, name: str) -> Path:
        nested = self.root / "annotations" / name
        return nested if nested.is_file() else self.root / name

    def _listing(self, split: Split) -> _Listed:
        """A split's files, read once."""
        if split == "test":
            split = "val"
        if split not in self._lists:
            truth, excluded = self.truth(split)
            detected = self.box_source == "detected" and split != "train"
            rows = self._detected(truth) if detected else truth
            own, out = frame_numbers(rows, excluded)
            frames = key_frames(rows.take(~np.isin(own, out)), _ACTIONS, detected=detected)
            films = self.films(rows)
            used = [frames.videos[film] for film in np.unique(frames.video)]
            named = {name: films[name] for name in used}
            self._lists[split] = _Listed(truth, excluded, frames, named)
        return self._lists[split]

    def _detected(self, truth: ActionRows) -> ActionRows:
        """Detected boxes at the seconds that the ground truth lists."""
        assert self.detections is not None
        rows = read_boxes(self.detections, self.actions, detected=True)
        at, listed = frame_numbers(rows, truth)
        sure = rows.boxed & (rows.score >= self.threshold)
        kept = rows.take(sure & np.isin(at, listed))
        if not len(kept):
            raise ValueError(
                f"{self.detections}: none of its {len(rows)} boxes has a score of "
                f"{self.threshold:g} (threshold) at a second that {truth.source} lists"
            )
        return kept

    def _films_there(self, split: Split, manifest: Manifest) -> list[str]:
        """Names of the films of a manifest's rows."""
        names = {film.path: name for name, film in self._listing(split).films.items()}
        return [names[path] for path in manifest.table.column("path").to_pylist()]

    def _key_frames(self, split: Split, manifest: Manifest, *, train: bool) -> KeyFrameDataset:
        listed = self._listing(split)
        frames = listed.frames
        there = self._films_there(split, manifest)
        row = {name: number for number, name in enumerate(there)}
        rows: npt.NDArray[np.int64] = np.array([row.get(name, -1) for name in frames.videos])
        film = rows[frames.video]  # (F,)
        used = np.flatnonzero(film >= 0)
        return KeyFrameDataset(
            manifest,
            self._clip,
            self.window if train else self.eval_window,
            frames=frames,
            film=film[used],
            used=used,
            start=np.array([listed.films[name].start for name in there]),
            limit=self.limit,
            seed=self.seed,
            replace=train,
            max_unreadable=self.max_unreadable,
        )

    def _training_set(self, manifest: Manifest) -> VideoDataset:
        return self._key_frames("train", manifest, train=True)

    def _evaluation_set(self, split: Split) -> VideoDataset:
        dataset = self._key_frames(split, self.manifest(split), train=False)
        if dataset.crowded:
            self._warn(
                f"{dataset.crowded} boxes are beyond the {self.limit} of their frame (limit) and "
                "are not classified: they count as not detected"
            )
        return dataset
