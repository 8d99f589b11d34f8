"""Reading clips from video files, from folders of frames, and from single images.

What costs time in self-supervised training from video is decoding frames that nobody asked for.
`VideoReader` therefore reads the packets once, without decoding, and knows from them when each
frame is shown and which packets a wanted frame needs. One pass then serves all clips of a video:

- decoding starts at the last key frame that lies before the wanted frame, both in the file and on
  the screen, so leading frames of an open group of pictures are decoded from the group before;
- frames that no other frame refers to are skipped by the decoder unless they are wanted;
- the rest of a group of pictures after its last wanted packet is never handed to the decoder;
- a frame wanted by several clips is decoded once.

Times come from the packets, never from a frame rate. Files whose packets do not say which frames
will be shown (packed B frames in AVI, frames that are coded but hidden, missing or repeated time
stamps, streams that begin without a key frame, containers that carry no presentation times) are
decoded once from beginning to end when they are opened, so that the number of frames and their
times are those of a real decode.

What opening costs: one pass over the packets, about 4 microseconds a packet, and one read of the
file's bytes: 1 ms for a clip of ten seconds, 0.4 s for a film of an hour (0.1 million packets). If
many clips are drawn from long films, cut the films into pieces first.

Not done here: mirrors in a display matrix (only its rotation, in quarter turns, is applied),
pixel aspect ratios, EXIF orientation of images.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from lightning_vssl.data.cutting import PlaneCutter, chroma_unit
from lightning_vssl.data.frames import Folder, is_images
from lightning_vssl.data.packets import (
    NONE,
    UNTIMED,
    Indices,
    Supply,
    UnreadableVideo,
    increasing,
    index_packets,
    may_turn,
    only_stream,
    opened,
    shown_order,
    stamp,
    words,
)
from lightning_vssl.data.place import Place
from lightning_vssl.data.source import (
    DEFAULT_FPS,
    Box,
    FrameSource,
    Pixels,
    VideoInfo,
)
from lightning_vssl.data.windows import Interpolation

__all__ = ["UnreadableVideo", "VideoInfo", "VideoReader", "probe"]

# Bytes of frames that are kept where they had to be decoded only to be counted.
_KEEP_FRAMES = 64 * 2**20
# A gap of this many packets is worth emptying the decoder where a key frame does not do it.
_FLUSH_GAP = 24

# Decoders that skip exactly the frames no other frame refers to. HEVC is left out: its "sub-layer
# non-reference" pictures may be referred to from a higher temporal layer.
_SKIPS = frozenset({"h264", "mpeg4"})


class VideoReader:
    """Clips of one video.

    A context manager: `with VideoReader(path) as video: ...`. It may be pickled (the copy opens
    the file again) and is for one thread at a time.

    Args:
        path: A video file, an image (jpg, jpeg, png, webp, bmp), which is a video of one frame, or
            a folder of such images (ordered by name with runs of digits compared as numbers).
        fps: Rate of sources that carry no times, which are folders of frames and raw streams
            without a container; ignored by all others. None: what a raw stream says of itself,
            25 for a folder.
        verify: Decode the whole file on opening, so that a file that breaks somewhere is refused
            at once and the number of frames is that of a decode whatever the container says.
        place: Where the video lies if not under its path: a file that was made of it, or a member
            of a shard. The path then only names it.

    Attributes:
        path: As given.
        place: Where it lies.
        info: Number of frames, displayed size, rate and so on.
        times: (N,) float64, seconds at which each frame is shown; the first is 0.0; strictly
            increasing.

    Raises:
        UnreadableVideo: No such file, no video in it, no frame, or a frame that does not decode.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float | None = None,
        verify: bool = False,
        place: Place | None = None,
    ) -> None:
        if fps is not None and not fps > 0:
            raise ValueError(f"fps must be positive or None, got {fps}")
        self.path = Path(path)
        self.place = place or Place(self.path)
        self._arguments = (fps, verify, place)
        self._source: _File | Folder = (
            Folder(self.path, fps, verify)
            if place is None and is_images(self.path)
            else _File(self.path, self.place, fps, verify)
        )
        self.info = self._source.info
        self.times = self._source.times

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], "VideoReader"], tuple[()]]:
        fps, verify, place = self._arguments
        return partial(VideoReader, self.path, fps=fps, verify=verify, place=place), ()

    @property
    def bytes(self) -> int:
        """Bytes of the file, or of all frames of a folder."""
        if self.place.file.is_dir():
            return sum(file.stat().st_size for file in self.place.file.iterdir())
        return self.place.stat()[0]

    def close(self) -> None:
        """Close the file. Reading afterwards is an error."""
        self._source.close()

    def read(
        self,
        indices: NDArray[np.integer],
        *,
        windows: NDArray[np.floating] | None = None,
        size: tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> tuple[Pixels, NDArray[np.float32]]:
        """Read V clips of T frames in one pass over the file.

        A window is cut and scaled in one conversion from the decoder's planes. Scaling is bilinear
        or bicubic, and antialiased where it shrinks (the triangle filter and the cubic with
        a = -0.5 of Pillow and of torchvision with `antialias=True`, on luma and chroma instead of
        RGB, and with the last pixel repeated where the filter reaches over the window's edge). A
        window's edges move to the nearest pixel that the chroma planes permit (even ones for
        4:2:0), or to the nearest pixel if `size` is None; the window that was used is returned.
        Images, and frames of a folder that are not JPEG, are scaled from exactly the fractions
        given, and decoded once for all windows.

        Args:
            indices: (V, T) frame numbers in [0, N); in any order, with any repetition.
            windows: (V, 4) x0, y0, x1, y1 in displayed source pixels; None for whole frames.
            size: (H, W) of the output in pixels; None to keep the size of the windows, which then
                must be the same for all clips.
            interpolation: How windows are scaled, ``bilinear`` or ``bicubic``; values that a cubic
                carries out of the range are clamped.

        Returns:
            (V, T, H, W, 3) uint8 RGB in [0, 255], and the windows really used, (V, 4) float32.
            Whole frames in their own size equal a plain decode bit for bit.

        Raises:
            IndexError: A frame number outside the video.
            ValueError: Arguments of the wrong shape; windows that are empty or outside the frame.
            UnreadableVideo: A frame that does not decode.
        """
        indices = self._checked_indices(indices)
        boxes = self._checked_windows(windows, len(indices))
        cutters = [self._source.cutter(box, size, interpolation) for box in boxes]
        height, width = _output_size(size, [cutter.used for cutter in cutters])
        out = np.empty((*indices.shape, height, width, 3), dtype=np.uint8)
        # frame number -> cutter -> places in the output
        places: dict[int, dict[int, list[tuple[int, int]]]] = {}
        for v, row in enumerate(indices.tolist()):
            cut = v if len(cutters) > 1 else 0
            for t, frame in enumerate(row):
                places.setdefault(frame, {}).setdefault(cut, []).append((v, t))
        for frame, picture in self._source.frames(np.unique(indices)):
            for cut, slots in places[frame].items():
                pixels = cutters[cut](picture)  # type: ignore[arg-type]
                for v, t in slots:
                    out[v, t] = pixels
        used = np.array([cutter.used for cutter in cutters], dtype=np.float32)
        return out, np.repeat(used, len(indices) // len(used), axis=0)

    def stream(
        self,
        indices: NDArray[np.integer],
        *,
        window: Box | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Pixels]:
        """Give frames one after another, in one pass over the file, without holding them all.

        Args:
            indices: (T,) frame numbers in [0, N), increasing.
            window: x0, y0, x1, y1 in displayed source pixels; None for whole frames.
            size: (H, W) as in `read`.

        Yields:
            (H, W, 3) uint8 RGB, as `read` gives it.

        Raises:
            IndexError, ValueError, UnreadableVideo: As `read` does.
        """
        wanted = self._checked_indices(np.asarray(indices)[None])[0]  # (T,)
        if (np.diff(wanted) <= 0).any():
            raise ValueError("indices must increase")
        box = self._checked_windows(None if window is None else np.array([window]), 1)[0]
        cut = self._source.cutter(box, size, "bilinear")
        early: dict[int, Pixels] = {}
        order = iter(wanted.tolist())
        due = next(order)
        for number, picture in self._source.frames(wanted):
            early[number] = cut(picture).copy()  # type: ignore[arg-type]
            while due in early:
                yield early.pop(due)
                due = next(order, -1)

    def _checked_indices(self, indices: NDArray[np.integer]) -> Indices:
        indices = np.asarray(indices)
        if indices.ndim != 2 or not indices.size or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                "indices must be whole numbers of shape (clips, frames), both at least 1, "
                f"got {indices.dtype} of shape {indices.shape}"
            )
        outside = indices[(indices < 0) | (indices >= self.info.frames)]
        if outside.size:
            raise IndexError(
                f"{self.path}: frame {outside[0]} was asked for, but the video has "
                f"{self.info.frames} frames (0 to {self.info.frames - 1})"
            )
        return indices.astype(np.int64)

    def _checked_windows(self, windows: NDArray[np.floating] | None, clips: int) -> list[Box]:
        width, height = self.info.width, self.info.height
        if windows is None:
            return [(0.0, 0.0, float(width), float(height))]
        windows = np.asarray(windows, dtype=np.float64)
        if windows.shape != (clips, 4):
            raise ValueError(
                f"windows must have shape ({clips}, 4), one x0, y0, x1, y1 for each row of "
                f"indices, got {windows.shape}"
            )
        x0, y0, x1, y1 = windows.T
        slack = 1e-3  # of a pixel, for windows computed in float32
        inside = (x0 >= -slack) & (y0 >= -slack) & (x1 <= width + slack) & (y1 <= height + slack)
        good = inside & (x1 > x0) & (y1 > y0)
        if not good.all():
            raise ValueError(
                f"windows must be x0, y0, x1, y1 with x0 < x1 and y0 < y1 inside the frame of "
                f"{width} x {height} pixels, got {windows[~good][0].tolist()} for {self.path}"
            )
        limit = np.array([width, height, width, height], dtype=np.float64)
        return [tuple(box) for box in np.clip(windows, 0.0, limit).tolist()]


def probe(
    path: str | Path,
    *,
    fps: float | None = None,
    decode: bool = False,
    place: Place | None = None,
) -> VideoInfo:
    """Describe a video.

    Args:
        path: A video file or a folder of frames.
        fps: As for `VideoReader`.
        decode: Decode all of it: the exact number of frames, and proof that they can be read.
        place: As for `VideoReader`.

    Raises:
        UnreadableVideo: As for `VideoReader`.
    """
    with VideoReader(path, fps=fps, verify=decode, place=place) as video:
        return video.info


def _output_size(size: tuple[int, int] | None, used: list[Box]) -> tuple[int, int]:
    """Height and width of the output, from the argument or from the windows themselves."""
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width) of at least 1 pixel each, got {size}")
        return int(size[0]), int(size[1])
    sizes = {(round(y1 - y0), round(x1 - x0)) for x0, y0, x1, y1 in used}
    if len(sizes) > 1:
        raise ValueError(
            f"windows of different sizes {sorted(sizes)} (height, width) need `size`, to which "
            "they are scaled"
        )
    return sizes.pop()


# --- files ------------------------------------------------------------------------------------


class _File(FrameSource[av.VideoFrame]):
    """A video file, by way of its packets."""

    def __init__(self, path: Path, place: Place, fps: float | None, verify: bool) -> None:
        self._path = path
        self._place = place
        self._kept: list[av.VideoFrame] | None = None
        self._connect(quick=not verify)
        try:
            self._open(fps, verify)
        except BaseException:
            self._container.close()
            raise

    def _connect(self, *, quick: bool) -> None:
        """Open the container and read its packets."""
        self._quick = quick
        self._container = opened(self._path, self._place, quick=quick)
        try:
            self._stream = self._chosen()
            size = self._place.stat()[0]
            self._packets = index_packets(self._container, self._stream, self._path, size)
        except BaseException:
            self._container.close()
            raise
        self._codec = self._stream.codec_context.name
        self._format = self._container.format.name
        self._used = False

    def _open(self, fps: float | None, verify: bool) -> None:
        if not len(self._packets):
            raise UnreadableVideo(self._path, "the video stream holds no frame")
        order = None if verify else shown_order(self._packets, self._format, self._codec)
        self._planned = order is not None
        if self._quick and (order is None or self._delay_unknown(order)):
            self._reconnect()
        self._order = self._decoded_order() if order is None else order
        self._rank = np.full(len(self._packets), -1, dtype=np.int64)
        self._rank[self._order] = np.arange(len(self._order))
        # What packets are compared by to know which is shown first.
        self._when = self._rank if self._packets.shown.all() else self._packets.pts
        ticks = self._ticks()
        base = float(self._stream.time_base or 1)
        rate = fps if self._format in UNTIMED else None
        if ticks is None or rate is not None:
            ticks, base = np.arange(len(self._order)), 1.0 / (rate or self._stated_rate())
        self.times = (ticks - ticks[0]) * base
        self.info = self._describe(base)

    def _delay_unknown(self, order: Indices) -> bool:
        """Whether frames are reordered, but the stream does not state by how many."""
        reordered = bool((np.diff(order) < 0).any())
        return reordered and self._codec == "h264" and not self._stream.codec_context.has_b_frames

    def _reconnect(self) -> None:
        """Open once more, with libav decoding the first frames to learn about them."""
        self._container.close()
        self._connect(quick=False)

    # opening

    def _chosen(self) -> av.VideoStream:
        """The first stream marked as default, else the first; attached pictures do not count."""
        aside = Disposition.attached_pic | Disposition.timed_thumbnails
        streams = [s for s in self._container.streams.video if not s.disposition & aside]
        if not streams:
            raise UnreadableVideo(self._path, "it holds no video stream")
        marked = [s for s in streams if s.disposition & Disposition.default]
        stream = only_stream(self._container, (marked or streams)[0].index)
        if stream.codec_context is None:
            raise UnreadableVideo(self._path, "there is no decoder for its video stream")
        stream.codec_context.thread_count = 1
        return stream

    def _decoded_order(self) -> Indices:
        """Decode everything; packet numbers in the order in which their frames came out.

        A file small enough keeps its frames. Frames are told apart by the order in which they come
        out; two frames that carry the number of one packet are given that number both.
        """
        order: list[int] = []
        kept: list[av.VideoFrame] | None = []
        bulk = 0
        for frame in self._sequence():
            order.append(stamp(frame.pts))
            if kept is not None:
                kept.append(frame)
                bulk += sum(plane.buffer_size for plane in frame.planes)
                kept = kept if bulk <= _KEEP_FRAMES else None
        if not order:
            raise UnreadableVideo(self._path, "none of its packets decodes to a frame")
        self._kept = kept
        return np.array(order, dtype=np.int64)

    def _ticks(self) -> Indices | None:
        """Times of the frames in units of the time base, in the order shown; None if unknown."""
        for stamps in (self._packets.pts, self._packets.dts):
            ticks = stamps[self._order]
            if increasing(ticks):
                return ticks
            # Decoders that deliver late (B frames in AVI) put each frame under the stamp of
            # another one; as a set the stamps are right.
            ticks = np.sort(ticks)
            if stamps is self._packets.dts and increasing(ticks):
                return ticks
        return None

    def _stated_rate(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_FPS)

    def _describe(self, base: float) -> VideoInfo:
        count = len(self.times)
        span = float(self.times[-1])
        fps = (count - 1) / span if count > 1 else self._stated_rate()
        last = self._packets.last * base if base == float(self._stream.time_base or 1) else 0.0
        context = self._stream.codec_context
        self._stored = (context.width, context.height)
        self._unit = chroma_unit(context.format)
        rotation = self._rotation()
        turned = rotation % 180 == 90
        width, height = self._stored[::-1] if turned else self._stored
        return VideoInfo(
            frames=count,
            width=width,
            height=height,
            fps=fps,
            duration=span + (last if last > 0 else 1 / fps),
            rotation=rotation,
            codec=self._codec,
            stream=self._stream.index,
        )

    def _rotation(self) -> int:
        """Quarter turns of the display matrix in degrees; it comes with the first frame."""
        if self._kept:
            first = self._kept[0]
        elif self._may_turn() or min(self._stored) < 1:
            first = self._first()
        else:
            return 0
        self._stored = (first.width, first.height)
        self._unit = chroma_unit(first.format)
        return round(first.rotation / 90) % 4 * 90

    def _may_turn(self) -> bool:
        if self._format == "matroska,webm":
            return True
        return self._format.startswith("mov,") and may_turn(self._place)

    def _first(self) -> av.VideoFrame:
        """A frame decoded from as few packets as will do, for what only frames say."""
        frame = next(self._decode([(0, False)], None), None) or next(self._sequence(), None)
        if frame is None:
            raise UnreadableVideo(self._path, "none of its packets decodes to a frame")
        return frame

    # reading

    def frames(self, wanted: Indices) -> Iterator[tuple[int, av.VideoFrame]]:
        """Give the frames wanted, from those kept, by plan, or by counting from the start."""
        if self._kept is not None:
            return ((int(n), self._kept[n]) for n in wanted)
        return self._by_plan(wanted) if self._planned else self._by_count(wanted)

    def cutter(
        self, window: Box, size: tuple[int, int] | None, interpolation: Interpolation
    ) -> PlaneCutter:
        """Cut with libav, from the stored frame."""
        turn = self.info.rotation // 90
        return PlaneCutter(window, size, self._stored, turn, self._unit, interpolation)

    def close(self) -> None:
        """Close the container and drop what was kept of it."""
        self._kept = None
        self._packets.data = None
        self._container.close()

    def _by_count(self, wanted: Indices) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from the start and count."""
        numbers = set(wanted.tolist())
        for number, frame in enumerate(self._sequence()):
            if number in numbers:
                yield number, frame
                numbers.discard(number)
                if not numbers:
                    return
        if numbers:
            raise self._missing(min(numbers))

    def _by_plan(self, wanted: Indices) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode the packets that the wanted frames need, and no others."""
        missing = set(self._order[wanted].tolist())
        ordinals = np.array(sorted(missing), dtype=np.int64)
        try:
            for frame in self._decode(self._feed(ordinals), missing):
                if frame.pts in missing:
                    missing.discard(frame.pts)
                    yield int(self._rank[frame.pts]), frame
        except UnreadableVideo:
            if not missing:
                return
        if missing:
            yield from self._last_resort(missing)

    def _last_resort(self, missing: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from the start, leaving nothing out, what the planned pass did not bring.

        That is the case for streams that are broken, that do not state how far their frames are
        reordered, or whose key frames are not what the container says.
        """
        self._reconnect()
        for frame in self._sequence():
            if frame.pts in missing:
                missing.discard(frame.pts)
                yield int(self._rank[frame.pts]), frame
                if not missing:
                    return
        raise self._missing(min(int(self._rank[n]) for n in missing))

    def _missing(self, number: int) -> UnreadableVideo:
        return UnreadableVideo(
            self._path,
            f"frame {number} of {self.info.frames} ({self.times[number]:.3f} s) does not decode",
        )

    def _sequence(self) -> Iterator[av.VideoFrame]:
        """All frames from the start, in the order in which the decoder gives them."""
        return self._decode(((n, False) for n in range(len(self._packets))), None)

    def _feed(self, ordinals: Indices) -> Iterator[tuple[int, bool]]:
        """Packets to decode for those wanted: (number, whether to empty the decoder before it)."""
        packets = self._packets
        entries = np.flatnonzero(packets.entry)
        at = np.searchsorted(entries, ordinals, side="right") - 1
        while True:
            # A frame shown before the key frame it follows in the file needs the one before.
            leading = (self._when[entries[at]] > self._when[ordinals]) & (at > 0)
            if not leading.any():
                break
            at = at - leading
        done = -1
        for ordinal, start in zip(ordinals.tolist(), entries[at].tolist(), strict=True):
            empty = False
            first = done + 1
            if start > first and (packets.clean[start] or start - first >= _FLUSH_GAP or done < 0):
                empty = done >= 0 and not packets.clean[start]
                first = start
            for number in range(first, ordinal + 1):
                yield number, empty and number == first
            done = ordinal

    def _decode(
        self, numbers: Iterable[tuple[int, bool]], wanted: set[int] | None
    ) -> Iterator[av.VideoFrame]:
        """Hand packets to the decoder; frames carry the number of their packet as `pts`.

        Args:
            numbers: Packet numbers, increasing, each with whether to empty the decoder first.
            wanted: Packets whose frames are needed; None for all.
        """
        context = self._stream.codec_context
        if self._used:
            context.flush_buffers()
        self._used = True
        context.skip_frame = "DEFAULT"
        may_skip = wanted is not None and self._codec in _SKIPS
        skipping = False
        supply = Supply(self._packets, self._container, self._stream, self._path, self._place)
        number = 0
        try:
            for number, empty in numbers:
                if empty:
                    yield from context.decode(None)
                    context.flush_buffers()
                if may_skip and skipping == (number in wanted):  # type: ignore[operator]
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                yield from context.decode(supply[number])
            yield from context.decode(None)
        except av.FFmpegError as error:
            raise UnreadableVideo(self._path, self._broken(number, words(error))) from error
        finally:
            context.skip_frame = "DEFAULT"

    def _broken(self, number: int, words: str) -> str:
        place = f"packet {number} of {len(self._packets)} does not decode ({words})"
        time = self._packets.pts[number]
        if time == NONE:
            return place
        first = self._packets.pts[self._packets.pts != NONE].min()
        shown = int((self._packets.pts[self._packets.shown] < time).sum())
        seconds = float((time - first) * (self._stream.time_base or 1))
        return f"frame {shown} ({seconds:.3f} s): {place}"
