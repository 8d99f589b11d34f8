"""Renders videos with their foreground or background taken away or exchanged.

The test sets of the Video Backgrounds Challenge (PreViTS, section 4.3 and Table 4) and of its
mini-Kinetics counterpart (its supplement): which variants there are, and how each is made, stands
in `lightning_vssl.data.backgrounds`.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.backgrounds import (
    MIXED,
    VARIANTS,
    Bools,
    Indices,
    Pixels,
    Variant,
    bounding_box,
    draw_backgrounds,
    only_background_tiled,
    rendered_file,
    vary,
)
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.encode import Coding, even_size
from lightning_vssl.data.foregrounds import Foreground
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.place import Place
from lightning_vssl.data.synthetic_files import encode
from lightning_vssl.data.whole import Record, Span, Work
from lightning_vssl.jobs.base import Job
from lightning_vssl.jobs.tube_pictures import draw_strips

_log = logging.getLogger(__name__)

_CROWDED = 0.9  # of the frame: the challenge of images leaves out boxes above it
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int64()),
        ("class", pa.string()),
        ("frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("seen", pa.float64()),
        ("area", pa.float64()),
        ("crowded", pa.int64()),
        *((name, pa.string()) for name in MIXED),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Source:
    """A video to read.

    Attributes:
        path: File, or folder of frames.
        rate: Frames per second of a folder; None for a file.
        span: Seconds that are used: the first, and the first no longer used.
        place: Where it lies, if not under its path.
    """

    path: Path
    rate: float | None
    span: Span
    place: Place | None = None


@dataclass(frozen=True)
class RenderVariants:
    """Renders the variants of a video, in a worker.

    Args:
        root: The data set's root.
        files: By path of the video, the file of each variant.
        behind: By path of the video, whose background it gets in each mixed variant.
        foreground: Tells where the foreground is.
        short_side: Pixels that a frame's short side is scaled down to; never up.
        coding: How files are encoded.
    """

    root: Path
    files: Mapping[Path, Mapping[Variant, Path]]
    behind: Mapping[Path, Mapping[Variant, Source]]
    foreground: Foreground
    short_side: int
    coding: Coding

    def __call__(self, reader: VideoReader, span: Span) -> dict[str, Tensor]:
        """Renders a video's variants; each file is there whole or not at all.

        Args:
            reader: The video.
            span: Seconds that are used.

        Returns:
            ``size`` (3,) int64, its frames, height and width as rendered; ``seen`` and ``area``,
            the share of frames with foreground and its mean share of their pixels;
            ``crowded``, the frames of which its box covers more than 90 %.

        Raises:
            UnreadableVideo: If there is no frame in the span, or a frame, a mask or another
                video's background cannot be read.
            OSError: If a file cannot be written.
        """
        try:
            frames, masks = self._read(reader, span, None)
        except UnreadableVideo as error:
            if error.path == str(reader.path):
                raise
            raise UnreadableVideo(reader.path, str(error)) from error  # name the masks' file
        for variant, file in self.files[reader.path].items():
            background = None
            if variant in MIXED:
                source = self.behind[reader.path][variant]
                try:
                    background = self._background(source, frames.shape[1:3])
                except UnreadableVideo as error:
                    raise UnreadableVideo(
                        reader.path, f"its background {source.path} cannot be read: {error}"
                    ) from error
            pixels = vary(variant, frames, masks, background)
            try:
                encode(file, pixels, reader.info.fps, self.coding)
            except OSError as error:
                raise OSError(error.errno, f"cannot write {file}: {error}") from error
        areas = masks.mean(axis=(1, 2))
        boxes = [bounding_box(mask) for mask in masks]
        pixels_of_frame = masks[0].size
        crowded = sum(box is not None and box.area > _CROWDED * pixels_of_frame for box in boxes)
        return {
            "size": torch.tensor(frames.shape[:3]),
            "seen": torch.tensor(float((areas > 0).mean())),
            "area": torch.tensor(float(areas[areas > 0].mean()) if areas.any() else 0.0),
            "crowded": torch.tensor(crowded),
        }

    def _background(self, source: Source, size: tuple[int, int]) -> Pixels:
        with VideoReader(source.path, fps=source.rate, place=source.place) as reader:
            frames, masks = self._read(reader, source.span, size)
        return only_background_tiled(frames, masks)

    def _read(
        self, reader: VideoReader, span: Span, size: tuple[int, int] | None
    ) -> tuple[Pixels, Bools]:
        """The frames of a video, (T, H, W, 3), and its masks, (T, H, W), scaled to ``size``."""
        first, last = np.searchsorted(reader.times, span)
        if first >= last:
            raise UnreadableVideo(reader.path, f"no frame within {span} seconds")
        own = even_size(reader.info.height, reader.info.width, self.short_side)
        size = own if size is None else size
        pixels, _ = reader.read(np.arange(first, last)[None], size=size)
        masks = self.foreground.masks(reader.path, self.root, reader.times, own)[first:last]
        if size != own:  # the nearest pixel of each
            rows, columns = (
                (2 * np.arange(new) + 1) * old // (2 * new)
                for new, old in zip(size, own, strict=True)
            )
            masks = masks[:, rows[:, None], columns]
        return np.asarray(pixels[0], np.uint8), masks


class BackgroundJob(Job):
    """Renders variants of the videos of a split.

    They lie in the run's folder as ``variants/<variant>/<class>/<video>.mp4``, where ``rendered``
    of `JHMDB` and `MiniKinetics` finds them. The original is rendered too, so that all variants
    are coded alike. ``variants.parquet`` says of each video whose background it got
    (``mixed_same``, ``mixed_rand``, ``mixed_next``), in which share of the frames its foreground
    is seen (``seen``) and how large it is (``area``), and of how many frames its box covers more
    than 90 % (``crowded``: the challenge of images leaves such out). Some videos are drawn in all
    variants, in ``drawn/``.

    Backgrounds come from the videos of the same split that have masks. Each is drawn once for the
    whole video, from ``seed`` and the video's place in the list, and scaled to the video's frames.

    Args:
        foreground: Tells where the foreground is: `Puppets` for JHMDB, `BoxForeground`.
        variants: Which are rendered.
        short_side: Pixels that a frame's short side is scaled down to; never up.
        quality: Constant rate factor of H.264, 0 to 51; less is better, 0 without loss.
        seed: Where the draws of backgrounds start.
        drawn: Videos that are drawn.
        split: Videos of which split.
        shard_size: Videos of a shard: what a killed run may lose, times its processes.

    Raises:
        ValueError: If a variant is unknown or given twice, or a number is out of its range.
    """

    def __init__(
        self,
        foreground: Foreground,
        *,
        variants: tuple[Variant, ...] = VARIANTS,
        short_side: int = 256,
        quality: int = 8,
        seed: int = 0,
        drawn: int = 4,
        split: Literal["train", "val", "test"] = "test",
        shard_size: int = 16,
    ) -> None:
        super().__init__("variants", split=split, shard_size=shard_size)
        unknown = [name for name in variants if name not in get_args(Variant)]
        if unknown or not variants or len(set(variants)) < len(variants):
            raise ValueError(f"variants={variants}: some of {', '.join(VARIANTS)}, each once")
        if short_side < 2 or not 0 <= quality <= 51 or drawn < 0:
            raise ValueError(
                f"short_side={short_side}, quality={quality}, drawn={drawn}: 2 or more, 0 to 51, "
                "0 or more"
            )
        self.foreground = foreground
        self.variants = tuple(variants)
        self.short_side = short_side
        self.quality = quality
        self.seed = seed
        self.drawn = drawn
        self._backgrounds: Indices | None = None

    def setup(self, stage: str) -> None:
        """Opens what the masks come from, on every process: what is missing is said at once."""
        self.description()

    @property
    def work(self) -> Work:
        """Renders."""
        manifest = self._listed()
        paths = [manifest.path(row) for row in range(len(manifest))]
        chosen = [name for name in MIXED if name in self.variants]
        behind: dict[Path, dict[Variant, Source]] = {}
        for row, drawn in enumerate(self.backgrounds() if chosen else ()):
            sources = {name: int(drawn[MIXED.index(name)]) for name in chosen}
            behind[paths[row]] = {
                name: Source(
                    paths[other], manifest.rate(other), manifest.span(other), manifest.place(other)
                )
                for name, other in sources.items()
            }
        files = {path: self.files(row) for row, path in enumerate(paths)}
        taken = Counter(file for made in files.values() for file in made.values())
        twice = sorted(str(file) for file, times in taken.items() if times > 1)
        if twice:
            raise ValueError(
                f"{len(twice)} files would hold variants of several videos, which have the same "
                f"class and name: {', '.join(twice[:5])}"
            )
        coding = Coding(
            "libx264", "mp4", 12, 0, options=(("preset", "veryfast"), ("crf", str(self.quality)))
        )
        return RenderVariants(
            manifest.root, files, behind, self.foreground, self.short_side, coding
        )

    def description(self) -> Mapping[str, object]:
        """What the videos depend on; once they are listed, whose background each gets too."""
        drawn: dict[str, object] = {}
        if self.manifest is not None and set(MIXED) & set(self.variants):
            pairs = hashlib.blake2b(self.backgrounds().tobytes(), digest_size=16)
            drawn = {"backgrounds": pairs.hexdigest()}
        return {
            **drawn,
            **self.foreground.settings,
            "variants": self.variants,
            "short_side": self.short_side,
            "quality": self.quality,
            "seed": self.seed,
        }

    def files(self, row: int) -> dict[Variant, Path]:
        """The files of a video's variants."""
        manifest = self._listed()
        label, path = manifest.label(row), manifest.table.column("path")[row].as_py()
        name = manifest.classes[label] if label >= 0 else "all"
        folder = self.folder / "variants"
        return {variant: rendered_file(folder, variant, name, path) for variant in self.variants}

    def backgrounds(self) -> Indices:
        """Whose background each video gets, (N, 3), rows; see `draw_backgrounds`.

        Raises:
            ValueError: If a video has no class, or none can be read.
        """
        if self._backgrounds is None:
            manifest = self._listed()
            paths = [manifest.path(row) for row in range(len(manifest))]
            known = self.foreground.known(paths, manifest.root)
            usable = manifest.readable & known
            if not usable.any():
                raise ValueError(
                    f"none of the {len(paths)} {self.split} videos below {manifest.root} has a "
                    f"foreground ({self.foreground.settings}): backgrounds need some"
                )
            drawn = draw_backgrounds(manifest.labels, usable, seed=self.seed)
            alone = np.flatnonzero((drawn == np.arange(len(drawn))[:, None]).any(axis=1))
            if len(alone):
                _log.warning(
                    "%d of %d videos are alone in their class and get their own background in "
                    "mixed_same:\n%s",
                    len(alone),
                    len(drawn),
                    manifest.names(alone),
                )
            self._backgrounds = drawn
        return self._backgrounds

    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """Rows of the job's file."""
        names = manifest.table.column("path").to_pylist()
        behind = self.backgrounds() if set(MIXED) & set(self.variants) else None
        rows = []
        for record in records:
            row = record["row"]
            assert isinstance(row, int)
            label = manifest.label(row)
            made: dict[str, object] = dict.fromkeys(_SCHEMA.names)
            made |= {"path": names[row], "label": label, "error": str(record["error"])}
            made["class"] = manifest.classes[label] if label >= 0 else ""
            if not record["error"]:
                made |= {key: _number(record[key]) for key in ("seen", "area", "crowded")}
                size = record["size"]
                assert isinstance(size, Tensor)
                made |= dict(zip(("frames", "height", "width"), size.tolist(), strict=True))
                for place, name in enumerate(MIXED):
                    if behind is not None and name in self.variants:
                        made[name] = names[behind[row, place]]
            rows.append(made)
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def join(self) -> bool:
        """Makes the file if all shards are there, and draws some videos."""
        if not super().join():
            return False
        rendered = pq.read_table(self.file, columns=["error"]).column("error").to_pylist()
        rows = np.flatnonzero(np.array(rendered, np.object_) == "")
        picked = np.linspace(0, len(rows) - 1, min(self.drawn, len(rows))).round().astype(int)
        for row in rows[picked].tolist():
            picture = self.folder / "drawn" / f"{row:06d}.png"
            if not picture.is_file():
                self._draw(row, picture)
        return True

    def _draw(self, row: int, picture: Path) -> None:
        """Draws all variants of a video, one below the other."""
        videos = []
        for file in self.files(row).values():
            with VideoReader(file) as reader:
                chosen = np.linspace(0, reader.info.frames - 1, 6).round().astype(np.int64)
                videos.append(np.asarray(reader.read(chosen[None])[0][0], np.uint8))
        with whole_file(picture) as temporary:
            draw_strips(videos, self.variants).save(temporary, "PNG")

    def _listed(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest


def _number(value: Tensor | int | str) -> float | int:
    assert isinstance(value, Tensor)
    number: float | int = value.item()
    return number
