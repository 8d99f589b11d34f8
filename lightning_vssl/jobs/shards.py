"""Packs the videos of a data set into tar shards, for disks that dislike many files.

A shard is a tar file in the layout of webdataset: for each video two members of one key,
``000000042.mp4`` and ``000000042.json``, which says what it is. webdataset and its kin read such
shards one after another, from the start; training here does not. It draws any video at any time, in
an order that depends on the seed alone and from which a run goes on in the middle, and a loader
that walks shards (webdataset, litdata) brings its own order, shuffled within a buffer, its own
splitting over processes and its own idea of an epoch. So the format is theirs and the reading is
not: the table says where each member begins, and the decoder opens it there
(`lightning_vssl.data.place`). Samples are those of the files, bit for bit.
"""

import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.data.decode import UnreadableVideo, VideoReader
from lightning_vssl.data.frames import is_images
from lightning_vssl.data.manifest import Manifest
from lightning_vssl.data.place import Place
from lightning_vssl.data.store import TABLE, Store, repeated, store_table
from lightning_vssl.data.video_files import video_name
from lightning_vssl.data.whole import Record, Span, Work
from lightning_vssl.jobs.base import Job, Shards


class ShardJob(Job):
    """Packs every video of a split as it is; with ``--data.store``, as it was transcoded.

    Leaves ``tars/`` in the run's folder, one tar for each shard of consecutive videos, and
    ``videos.parquet``, by which a data module with ``--data.store`` reads them
    (`lightning_vssl.data.store`). The same list gives the same bytes on any number of processes. A
    video that is listed with several spans is packed once, whole. What cannot be read is recorded
    with its reason, and stays to be read, and counted, where it lies.

    Args:
        split: Videos of which split.
        shard_size: Videos of a shard: 1,000 of 300 kB are 300 MB. What a killed run may lose, times
            its processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test"] = "train",
        shard_size: int = 1000,
    ) -> None:
        super().__init__(TABLE, split=split, shard_size=shard_size)
        self._source: Store | None = None

    def setup(self, stage: str) -> None:
        """Opens the store that the videos come from, if they come from one."""
        folder = getattr(getattr(self.trainer, "datamodule", None), "store", None)
        self._source = None if folder is None else Store(folder)

    @property
    def work(self) -> Work:
        """Opens each video, so that what is packed can be read."""
        return packable

    def description(self) -> Mapping[str, object]:
        """What the shards depend on, beside the list."""
        return {"store": None if self._source is None else str(self._source.path)}

    def settled(self, manifest: Manifest) -> npt.NDArray[np.bool_]:
        """Rows of a video that another row has too.

        Raises:
            ValueError: If the videos are in shards already.
        """
        if (manifest.column("offset") != 0).any():
            raise ValueError(
                f"the {self.split} videos are read from shards already: give --data.store a "
                "folder of files, or none"
            )
        return repeated(manifest)

    def table(self, records: Sequence[Record], manifest: Manifest) -> pa.Table:
        """Writes the shard of these videos, whole or not at all, and returns its rows.

        Raises:
            OSError: If it cannot be written, or a video shrank since it was listed.
        """
        numbers = [_row(record) for record in records]
        file = Path("tars") / f"{numbers[0]:09d}-{numbers[-1] + 1:09d}.tar"
        rows = []
        with (
            whole_file(self.folder / file) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as shard,
        ):
            for row, record in zip(numbers, records, strict=True):
                name = video_name(str(manifest.path(row)), manifest.root)
                if record["error"]:
                    rows.append(_entry(name, error=str(record["error"])))
                elif "frames" in record:
                    place = manifest.place(row) or Place(manifest.path(row))
                    offset, size = _add(shard, row, place)
                    _describe(shard, row, manifest, name)
                    cropped = self._source is not None and self._source.cropped(name)
                    rows.append(_entry(name, file.as_posix(), offset, size, cropped=cropped))
        return store_table(rows)

    def _left(self) -> Shards | str:
        for temporary in (self.folder / "tars").glob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        return super()._left()


def packable(reader: VideoReader, span: Span) -> dict[str, Tensor]:
    """Says how many frames a video has.

    Args:
        reader: The video.
        span: Not used.

    Raises:
        UnreadableVideo: If it is a folder of frames, or an image.
    """
    if is_images(reader.place.file):
        raise UnreadableVideo(
            reader.path,
            "folders of frames and images are not packed: transcode them "
            "(recipes/jobs/transcode.yaml), and pack what comes of it",
        )
    return {"frames": torch.tensor(reader.info.frames)}


def _add(shard: tarfile.TarFile, row: int, place: Place) -> tuple[int, int]:
    """Adds a video's bytes; returns where they begin and how many they are."""
    size = place.stat()[0]
    member = tarfile.TarInfo(f"{row:09d}{place.file.suffix.lower()}")
    member.size = size
    with place.open() as video:
        try:
            shard.addfile(member, video)
        except OSError as error:
            raise OSError(error.errno, f"cannot pack {place.file}: {error}") from error
    assert isinstance(shard.offset, int)
    padded = math.ceil(size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return shard.offset - padded, size


def _describe(shard: tarfile.TarFile, row: int, manifest: Manifest, name: str) -> None:
    """Adds what a video is."""
    label = manifest.label(row)
    start, end = manifest.span(row)
    said = {
        "path": name,
        "label": label,
        "class": manifest.classes[label] if 0 <= label < len(manifest.classes) else None,
        "start": start,
        "end": None if math.isinf(end) else end,
    }
    content = json.dumps(said, sort_keys=True).encode()
    member = tarfile.TarInfo(f"{row:09d}.json")
    member.size = len(content)
    shard.addfile(member, BytesIO(content))


def _entry(
    name: str,
    file: str = "",
    offset: int = 0,
    size: int = 0,
    *,
    cropped: bool = False,
    error: str = "",
) -> dict[str, object]:
    found = {"path": name, "file": file, "offset": offset, "size": size}
    return {**found, "cropped": cropped, "error": error}


def _row(record: Record) -> int:
    row = record["row"]
    assert isinstance(row, int)
    return row
