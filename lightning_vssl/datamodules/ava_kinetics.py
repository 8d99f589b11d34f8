"""AVA-Kinetics (Li et al., 2020): AVA, and one key frame of each clip of Kinetics-700."""

import re
from pathlib import Path
from typing import ClassVar

from lightning_vssl.data.action_boxes import read_boxes
from lightning_vssl.data.windows import Windows
from lightning_vssl.datamodules.ava import AVA, Boxes, Film
from lightning_vssl.datamodules.base import Split, require_files
from lightning_vssl.metrics.action_rows import ActionRows, stack_rows

_PAGE = "research.google.com/ava (ava_kinetics_v1_0.tar.gz)"
_NAME = re.compile(r"(.+)_(\d{6})_(\d{6})")


class AVAKinetics(AVA):
    """AVA v2.2 and the key frames of Kinetics-700 together; validation is on both.

    Layout: that of `AVA`, and beside it ``kinetics_{train,val}_v1.0.csv``, whose seconds have
    fractions and count from the beginning of the film that a clip was cut from, and the clips
    ``<root>/kinetics/{train,val}/**/<name>_<first second>_<last second>.*``, or ``<name>.*`` for
    clips that begin with their film. A frame listed without a box holds none of the actions; it
    has no clip where true boxes are evaluated, and detections in it are wrong.

    Args:
        root: Folder of the dataset.
        boxes: What an evaluation classifies: the true boxes, or detected ones.
        detections: CSV of detected persons of both parts, for ``detected``; see `AVA`.
        threshold: Least score of a detected box. VideoGLUE: 0.2, of CenterNet.
        frames: Frames of a clip.
        stride: Ticks of ``fps`` from one to the next.
        fps: Rate at which films are taken; None for frames as stored.
        start: Second of AVA's films at which their files begin.
        limit: Most boxes of a clip.
        window: Part of the picture in training; None for the whole on a canvas of 400 x 400.
        eval_window: The same in evaluation.
        batch_size: Training samples per step over all processes together.
        eval_batch_size: The same in evaluation; None for ``batch_size``.
        num_workers: Processes per training process that read films.
        prefetch_factor: Batches that each of them holds ready.
        seed: Where every draw of the data starts.
        cache_dir: Folder of the manifests; None for ``~/.cache/lightning_vssl``.
        max_missing: Share of a split's films that may lack their file.
        max_unreadable: Share of them that may be broken.
        verify: Decode every film in full when it is first listed.

    Raises:
        ValueError: If an argument is out of its range, or detections are asked for and not given.
    """

    _name: ClassVar[str] = "AVA-Kinetics"

    def __init__(
        self,
        root: Path,
        *,
        boxes: Boxes = "ground_truth",
        detections: Path | None = None,
        threshold: float = 0.2,
        frames: int = 32,
        stride: int = 2,
        fps: float | None = 30.0,
        start: float = 900.0,
        limit: int = 32,
        window: Windows | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        seed: int = 0,
        cache_dir: Path | None = None,
        max_missing: float = 0.25,
        max_unreadable: float = 0.05,
        verify: bool = False,
    ) -> None:
        super().__init__(
            root,
            boxes=boxes,
            detections=detections,
            threshold=threshold,
            frames=frames,
            stride=stride,
            fps=fps,
            start=start,
            limit=limit,
            window=window,
            eval_window=eval_window,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            seed=seed,
            cache_dir=cache_dir,
            max_missing=max_missing,
            max_unreadable=max_unreadable,
            verify=verify,
        )

    def truth(self, split: Split) -> tuple[ActionRows, ActionRows]:
        """The ground truth of both parts, and AVA's excluded frames."""
        name = "train" if split == "train" else "val"
        file = self._annotation(f"kinetics_{name}_v1.0.csv")
        require_files({file: _PAGE}, self._name)
        own, excluded = super().truth(split)
        return stack_rows([own, read_boxes(file, self.actions)]), excluded

    def films(self, rows: ActionRows) -> dict[str, Film]:
        """Where the films of a table lie: AVA's, or else a clip of Kinetics."""
        clips = self._clips()
        return {
            name: clips.get(name, film) if not (self.root / film.path).exists() else film
            for name, film in super().films(rows).items()
        }

    def _clips(self) -> dict[str, Film]:
        """The clips of Kinetics by the name of their film."""
        clips = {}
        for path in sorted((self.root / "kinetics").rglob("*.*")):
            cut = _NAME.fullmatch(path.stem)
            name, start = (cut[1], float(cut[2])) if cut else (path.stem, 0.0)
            clips[name] = Film(str(path.relative_to(self.root)), start)
        return clips
