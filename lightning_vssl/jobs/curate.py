"""VideoNet: candidates become a list of videos that show what they were looked for (VITO 3.2).

A candidate is kept if, in this order,

- its title contains the name of its class or a synonym (`lightning_vssl.curation.titles`);
- its file can be read;
- it is at least ten seconds long: from its first frame until the last one has been shown, by the
  frames' own times, or what of that lies in the candidate's span;
- a classifier puts its class first on at least one of its first 100 frames. The paper "discarded
  videos for which the query category was not equal to the ResNet's top-1 prediction for any of the
  frames". Read as "for every frame must be", it would leave far fewer than the 24 % it reports.

Videos that the first three already reject are not decoded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_vssl.curation.candidates import Candidates, HasCandidates
from lightning_vssl.curation.classifier import FrameClassifier
from lightning_vssl.curation.summary import balance_picture, count_lines, counts
from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.whole import Record, Span, Work
from lightning_vssl.jobs.base import Job

_CLOCK = 2e-3  # seconds: a container that counts in milliseconds rounds first and last time to one

_FIELDS: list[tuple[str, pa.DataType]] = [
    ("path", pa.string()),
    ("class", pa.string()),
    ("kept", pa.bool_()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("frame", pa.int32()),
    ("seen", pa.string()),
    ("seconds", pa.float64()),
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("title", pa.string()),
]


@dataclass(frozen=True)
class FirstFrames:
    """Reads the first frames of a video: the middle square of each.

    Args:
        frames: How many at most.
        size: Side of the square that is returned, pixels.
        crop: Share of the short side that the square takes, in (0, 1].
    """

    frames: int
    size: int
    crop: float

    def __call__(self, reader: VideoReader, span: Span) -> dict[str, Tensor]:
        """Reads one video.

        Args:
            reader: The video.
            span: Seconds that are used.

        Returns:
            ``frames`` (F, 3, size, size) uint8 RGB, F at most ``frames``.

        Raises:
            UnreadableVideo: If there is no frame in the span, or one does not decode.
        """
        first, last = np.searchsorted(reader.times, span)
        if first >= last:
            raise UnreadableVideo(reader.path, f"no frame within {span} seconds")
        chosen = np.arange(first, min(first + self.frames, last))
        width, height = reader.info.width, reader.info.height
        side = self.crop * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        window = np.array([[left, top, left + side, top + side]])
        pixels, _ = reader.read(chosen[None], windows=window, size=(self.size, self.size))
        return {"frames": torch.from_numpy(pixels[0]).permute(0, 3, 1, 2).contiguous()}


class CurateJob(Job):
    """Makes VideoNet's list out of candidates.

    The data module is ``VideoCandidates`` (`lightning_vssl.datamodules.videonet`). The run's folder
    then holds

    - ``videonet.parquet``: every candidate, in order: ``path``, ``class``, ``kept``, the ``reason``
      of its rejection (``title``, ``unreadable``, ``short`` or ``class``; empty if kept) and its
      ``detail``, the first ``frame`` that shows its class (from 0; -1 for none), the class most
      often ``seen``, ``seconds``, ``start``, ``end`` and ``title``. The data module ``VideoNet``
      takes what is kept;
    - ``counts.csv``: how many were kept and rejected of each class, by reason;
    - ``balance.png``: the same as a picture.

    Args:
        classifier: What names the class of a frame.
        frames: Frames of a video that it looks at, from the beginning.
        min_seconds: Least length of a video; 2 ms less will do, since some containers count whole
            milliseconds.
        shard_size: Videos of a shard: what a killed run may lose, times its processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        classifier: FrameClassifier,
        *,
        frames: int = 100,
        min_seconds: float = 10.0,
        shard_size: int = 128,
    ) -> None:
        super().__init__("videonet", split="train", shard_size=shard_size)
        if frames < 1 or not min_seconds >= 0:
            raise ValueError(f"frames={frames}, min_seconds={min_seconds}: 1 or more, 0 or more")
        self.classifier = classifier
        self.frames = frames
        self.min_seconds = min_seconds
        self._candidates: Candidates | None = None
        self._titled: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._short: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._seconds: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def work(self) -> Work:
        """Reads the first frames."""
        return FirstFrames(self.frames, self.classifier.size, self.classifier.crop)

    def configure_callbacks(self) -> list[Callback]:
        """The writer; Trainer asks for it before anything else, so a wrong file is found now."""
        self.classifier.prepare(self._listed().classes)
        return super().configure_callbacks()

    def description(self) -> Mapping[str, object]:
        """What the choice depends on."""
        return {
            "candidates": self._listed().digest(),
            "classes": len(self._listed().classes),
            "frames": self.frames,
            "min_seconds": self.min_seconds,
            **self.classifier.settings,
        }

    def settled(self, manifest: Manifest) -> npt.NDArray[np.bool_]:
        """Videos that their title or their length rejects."""
        self._titled = self._listed().titled()
        self._seconds = _seconds(manifest)
        self._short = self._seconds < self.min_seconds - _CLOCK
        return ~self._titled | (manifest.readable & self._short)

    def finish(self, record: Record) -> Record:
        """Classifies the frames of a video: ``frame`` and ``seen`` instead of ``frames``."""
        frames = record.pop("frames", None)
        if frames is None:
            return record
        assert isinstance(frames, Tensor)
        labels = self.classifier(frames).cpu()
        row = record["row"]
        assert isinstance(row, int)
        right = (labels == int(self._listed().labels[row])).nonzero()
        named = labels[labels >= 0]
        return {
            **record,
            "frame": int(right[0]) if len(right) else -1,
            "seen": int(named.bincount().argmax()) if len(named) else -1,
            "looked": len(labels),
        }

    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """Rows of ``videonet.parquet``."""
        found = self._listed()
        ids = found.classes.ids
        rows = []
        for record in records:
            row = int(record["row"])  # type: ignore[arg-type]
            label = int(found.labels[row])
            seen = int(record.get("seen", -1))  # type: ignore[arg-type]
            frame = int(record.get("frame", -1))  # type: ignore[arg-type]
            reason, detail = "", ""
            if not self._titled[row]:
                reason, detail = "title", f"no name of {ids[label]} in it"
            elif record["error"]:
                reason, detail = "unreadable", str(record["error"])
            elif self._short[row]:
                reason, detail = "short", f"{self._seconds[row]:.3f} s of {self.min_seconds:g}"
            elif frame < 0:
                detail = f"on none of {record['looked']} frames"
                reason, detail = "class", detail + (f"; most show {ids[seen]}" if seen >= 0 else "")
            rows.append(
                {
                    "path": found.paths[row].as_py(),
                    "class": ids[label],
                    "kept": not reason,
                    "reason": reason,
                    "detail": detail,
                    "frame": frame,
                    "seen": ids[seen] if seen >= 0 else "",
                    "seconds": float(self._seconds[row]),
                    "start": float(found.starts[row]),
                    "end": float(found.ends[row]),
                    "title": found.titles[row].as_py(),
                }
            )
        return pa.Table.from_pylist(rows, schema=pa.schema(_FIELDS))

    def join(self) -> bool:
        """Makes the list, the counts and the picture if all shards are there."""
        if not super().join():
            return False
        numbers, picture = self.folder / "counts.csv", self.folder / "balance.png"
        if numbers.is_file() and picture.is_file():
            return True
        classes = self._listed().classes
        made = counts(pq.read_table(self.file, columns=["class", "kept", "reason"]), classes.ids)
        names = [own[0] if own else "" for own in classes.names]
        with whole_file(numbers) as temporary:
            lines = count_lines(made, classes.ids, names)
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with whole_file(picture) as temporary:
            temporary.write_bytes(balance_picture(made))
        return True

    def _listed(self) -> Candidates:
        """The candidates of the data module."""
        if self._candidates is None:
            data = getattr(self.trainer, "datamodule", None)
            if not isinstance(data, HasCandidates):
                raise ValueError(
                    f"{type(data).__name__} has no candidates: curation takes "
                    "--data VideoCandidates, which reads a table of paths, titles and classes"
                )
            self._candidates = data.candidates()
        return self._candidates


def _seconds(manifest: Manifest) -> npt.NDArray[np.float64]:
    """Length of each video in its span, (N,): 0 where it cannot be read."""
    length = manifest.column("duration").astype(np.float64)
    ends = np.fmin(manifest.column("end").astype(np.float64), length)
    seconds: npt.NDArray[np.float64] = np.maximum(0.0, ends - manifest.column("start"))
    return seconds
