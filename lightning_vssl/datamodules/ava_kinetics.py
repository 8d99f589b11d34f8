"""AVA-Kinetics (Li et al., 2020): AVA, and one key frame of each clip of Kinetics-700."""

import re
from typing import ClassVar

from lightning_vssl.data.action_boxes import read_boxes
from lightning_vssl.datamodules.ava import AVA, Film
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

    The arguments are those of `AVA`; ``threshold`` is 0.2 by default, VideoGLUE's with CenterNet.
    """

    _name: ClassVar[str] = "AVA-Kinetics"
    _threshold: ClassVar[float] = 0.2

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
