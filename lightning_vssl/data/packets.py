"""Packets of a video stream: reading them all, and what they say without being decoded."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeAlias

import av
import numpy as np
from av.stream import Discard
from numpy.typing import NDArray

from lightning_vssl.data.place import Place
from lightning_vssl.data.unreadable import UnreadableFile

# Packets of a file up to this size stay in memory between indexing and decoding, so that the file
# is read once. Larger files are read again from the key frame that is needed.
KEEP_PACKETS = 32 * 2**20
# A gap of this many packets is worth a seek in a file that is too large to keep.
_SEEK_GAP = 200

# Containers that store a presentation time for each packet, and codecs of which one packet there
# holds one frame. Other combinations are decoded to be counted, save those of _INTRA and MPEG-4
# part 2, whose packets tell.
_TIMED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"})
_ONE_FRAME = frozenset(
    {"h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "libdav1d", "av1", "mpeg4", "h263"}
)
_INTRA = frozenset({"mjpeg", "png", "rawvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "prores"})
UNTIMED = frozenset({"m4v", "h264", "hevc", "mpegvideo", "mjpeg", "obu", "h263"})

# The matrix of a track shown as it is stored: 16.16 numbers, in the last column 2.30.
_IDENTITY = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))

# Start code of an MPEG-4 part 2 picture. One that is not coded ("same as before") is not shown by
# the decoder and takes at most 19 bytes, the limit of FFmpeg's mpeg4_unpack_bframes.
_VOP = b"\x00\x00\x01\xb6"
_MPEG4_NOT_CODED = 19

Indices = NDArray[np.int64]
_Packet: TypeAlias = "av.Packet[av.VideoStream]"


class UnreadableVideo(UnreadableFile):
    """A video that cannot be read, or not in full."""


NONE = np.iinfo(np.int64).min
"""Stands for a time stamp that is missing."""


@dataclass
class Packets:
    """The packets of a video stream, in the order of the file, without their data.

    Attributes:
        pts: (P,) int64 presentation times in units of the time base; `NONE` where missing.
        dts: (P,) int64 decoding times; `NONE` where missing.
        shown: (P,) bool, False for packets hidden by an edit list or by the codec.
        entry: (P,) bool, decoding may start here.
        clean: (P,) bool, nothing after this packet depends on anything before it.
        kind: (P,) one letter each: I, P, B or S for MPEG-4 part 2, "?" for a packet that does not
            hold exactly one shown frame, "" where packets are not looked into.
        data: The packets themselves, or None if the file is too large to keep.
        last: Duration of the last packet in units of the time base, 0 if not known.
    """

    pts: Indices
    dts: Indices
    shown: NDArray[np.bool_]
    entry: NDArray[np.bool_]
    clean: NDArray[np.bool_]
    kind: list[str]
    data: list[_Packet] | None
    last: int

    def __len__(self) -> int:
        return len(self.pts)


def index_packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, size: int
) -> Packets:
    """Read all packets of a stream once, without decoding.

    Args:
        container: The open file.
        stream: The stream.
        path: What errors call the video.
        size: Bytes of the file.

    Raises:
        UnreadableVideo: The container breaks off with an error.
    """
    look = _look(stream.codec_context.name, stream.codec_context.extradata)
    keep = size <= KEEP_PACKETS
    stamps: list[int] = []
    flags: list[bool] = []
    kind: list[str] = []
    data: list[_Packet] = []
    last = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            entry, clean, letter, shown = look(packet)
            stamps += (stamp(packet.pts), stamp(packet.dts))
            flags += (shown and not packet.is_discard, entry, clean)
            kind.append(letter)
            last = packet.duration or 0
            if keep:
                packet.pts = len(data)
                data.append(packet)
    except av.FFmpegError as error:
        reason = f"it breaks after {len(kind)} packets ({words(error)})"
        raise UnreadableVideo(path, reason) from error
    pts, dts = np.array(stamps, dtype=np.int64).reshape(-1, 2).T
    shown_, entries, cleans = np.array(flags, dtype=np.bool_).reshape(-1, 3).T
    return Packets(pts, dts, shown_, entries, cleans, kind, data if keep else None, last)


def shown_order(packets: Packets, layout: str, codec: str) -> Indices | None:
    """Packet numbers in the order their frames are shown, or None if packets do not tell.

    Args:
        packets: All packets of the stream.
        layout: Name of the container format.
        codec: Name of the decoder.
    """
    shown = np.flatnonzero(packets.shown)
    if "?" in packets.kind or not packets.entry[0] or not shown.size:
        return None
    if codec in _INTRA:
        return shown if increasing(packets.pts[shown]) else None
    if layout in _TIMED and codec in _ONE_FRAME:
        pts = packets.pts[shown]
        order = np.argsort(pts, kind="stable")
        # Frames before the first key frame on the screen may be missing from a decode.
        early = (pts < packets.pts[0]).any()
        return shown[order] if increasing(pts[order]) and not early else None
    if codec == "mpeg4" and packets.shown.all():
        return _coded_order(packets.kind)
    return None


class Supply:
    """Packets of a file by number, from memory or, of a large file, from the file again.

    Packets leave with their number as `pts`, which the decoder hands on to the frame.
    """

    def __init__(
        self,
        packets: Packets,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        path: Path,
        place: Place,
    ) -> None:
        self._packets = packets
        self._container = container
        self._stream = stream
        self._path = path
        self._place = place
        self._reading: Iterator[_Packet] = iter(())
        self._next = -1

    def __getitem__(self, number: int) -> _Packet:
        if self._packets.data is not None:
            return self._packets.data[number]
        if self._next < 0 or not 0 <= number - self._next <= _SEEK_GAP:
            self._seek(number)
        for packet in self._reading:
            if not packet.size:
                continue
            self._next += 1
            if self._next - 1 == number:
                if not self._same(packet, number):
                    break
                packet.pts = number
                return packet
        raise UnreadableVideo(self._path, f"packet {number} is not what it was on opening")

    def _same(self, packet: _Packet, number: int) -> bool:
        """Whether a packet is the one of that number; after a seek one of its times may differ."""
        pairs = (
            (stamp(packet.pts), self._packets.pts[number]),
            (stamp(packet.dts), self._packets.dts[number]),
        )
        known = [one == other for one, other in pairs if one != NONE and other != NONE]
        return any(known) or not known

    def _seek(self, number: int) -> None:
        """Go to the packet, or to one before it."""
        for time in (self._packets.pts[number], self._packets.dts[number]):
            if number == 0 or time == NONE:
                continue
            self._container.seek(int(time), stream=self._stream, backward=True)
            self._reading = self._container.demux(self._stream)
            packet = next((p for p in self._reading if p.size), None)
            if packet is None:
                continue
            found = self._numbers(packet)
            if len(found) == 1 and found[0] <= number:
                self._next = int(found[0])
                self._reading = chain([packet], self._reading)
                return
        self._rewind()

    def _numbers(self, packet: _Packet) -> Indices:
        """Numbers of the packets that a packet may be, by its first time that is known."""
        for time, times in ((packet.pts, self._packets.pts), (packet.dts, self._packets.dts)):
            if time is not None:
                return np.flatnonzero(times == time)
        return np.zeros(0, dtype=np.int64)

    def _rewind(self) -> None:
        """Start again from a fresh container: not all formats seek to their first packet."""
        self._container = opened(self._path, self._place)
        self._stream = only_stream(self._container, self._stream.index)
        self._reading = self._container.demux(self._stream)
        self._next = 0


def opened(path: Path, place: Place, *, quick: bool = False) -> av.container.InputContainer:
    """Open a video file; what is not UTF-8 in its metadata is replaced.

    Args:
        path: What errors call the video.
        place: Where it lies.
        quick: Let libav's look at the first packets do without decoding a frame of H.264, which
            takes longer than all the rest of opening. The price: nothing is known of the pixel
            format, nor of the delay by reordering unless the stream states it.
    """
    elsewhere = "" if place.file == path else f" {place.file}"
    if not place.file.exists():
        raise UnreadableVideo(path, f"there is no such file or folder{elsewhere}")
    if not place.stat()[0]:
        raise UnreadableVideo(path, f"the file{elsewhere} is empty")
    if fault := place.fault():
        raise UnreadableVideo(path, fault)
    try:
        options = {"skip_frame": "all"} if quick else {}
        return av.open(place.url, metadata_errors="replace", options=options)
    except av.FFmpegError as error:
        reason = f"it cannot be opened as a video ({words(error)})"
        raise UnreadableVideo(path, reason) from error


def only_stream(container: av.container.InputContainer, index: int) -> av.VideoStream:
    """The stream of that number; the container reads no other."""
    for other in container.streams:
        if other.index != index:
            other.discard = Discard.all
    return next(stream for stream in container.streams.video if stream.index == index)


def words(error: av.FFmpegError) -> str:
    """What libav says."""
    return error.strerror or str(error)


def stamp(value: int | None) -> int:
    """A time stamp as a number."""
    return NONE if value is None else value


def increasing(stamps: Indices) -> bool:
    """Whether all stamps are there and each is later than the one before."""
    return bool((stamps != NONE).all() and (np.diff(stamps) > 0).all())


def may_turn(place: Place) -> bool:
    """Whether an MP4 or MOV file may ask for its frames to be turned.

    False only if the matrices of the movie and of all its tracks are the identity, which is quicker
    to find out than decoding a frame.
    """
    with place.open() as file:
        matrices = list(_matrices(file, place.offset, place.offset + place.stat()[0]))
    return not matrices or any(matrix != _IDENTITY for matrix in matrices)


def _matrices(file: BinaryIO, at: int, end: int) -> Iterator[bytes]:
    """Matrices of the movie header and the track headers between two places of a file."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        start = at + 8
        if size == 1:
            size, start = int.from_bytes(head[8:], "big"), at + 16
        stop = at + size if size else end
        if stop < start:
            yield b""  # not a box: nothing is known
            return
        if kind in (b"moov", b"trak"):
            yield from _matrices(file, start, min(stop, end))
        elif kind in (b"mvhd", b"tkhd"):
            file.seek(start)
            body = file.read(100)
            place = (36 if kind == b"mvhd" else 40) + (12 if body[:1] == b"\x01" else 0)
            yield body[place : place + 36]
        at = stop


def _coded_order(kinds: list[str]) -> Indices | None:
    """Display order of MPEG-4 part 2 pictures: a reference is shown once the next one is coded.

    None if a B picture comes before both its references, as it is then not shown.
    """
    if "B" not in kinds:
        return np.arange(len(kinds))
    order: list[int] = []
    held = -1
    references = 0
    for number, kind in enumerate(kinds):
        if kind == "B":
            if references < 2:
                return None
            order.append(number)
            continue
        references += 1
        if held >= 0:
            order.append(held)
        held = number
    return np.array([*order, held], dtype=np.int64)


# --- what a packet says of itself ---------------------------------------------------------------

# (decoding may start here, nothing later depends on what is before, kind of `Packets`, shown)
_Said = tuple[bool, bool, str, bool]


def _look(codec: str, extradata: bytes | None) -> Callable[[_Packet], _Said]:
    """How to look into the packets of a codec."""
    extradata = extradata or b""
    if codec in _INTRA:
        return lambda packet: (True, True, "", True)
    match codec:
        case "h264":
            width = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" else 0
            return partial(_look_h264, width=width)
        case "hevc":
            width = (extradata[21] & 3) + 1 if extradata[:1] == b"\x01" else 0
            return partial(_look_hevc, width=width)
        case "mpeg4":
            return _look_mpeg4
        case "vp8" | "libvpx":
            return _look_vp8
        case "vp9" | "libvpx-vp9":
            return _look_vp9
    return lambda packet: (packet.is_keyframe, packet.is_keyframe, "", True)


def _units(data: bytes, width: int) -> Iterator[bytes]:
    """Beginnings of the NAL units of a packet; `width` bytes of length each, 0: start codes."""
    if not width:
        yield from (data[m.end() : m.end() + 64] for m in re.finditer(rb"\x00\x00\x01", data))
        return
    at = 0
    while at + width < len(data):
        size = int.from_bytes(data[at : at + width], "big")
        yield data[at + width : at + width + min(size, 64)]
        at += width + size


def _look_h264(packet: _Packet, *, width: int) -> _Said:
    if not packet.is_keyframe:
        return False, False, "", True
    entry = False
    for unit in _units(bytes(packet), width):
        kind = unit[0] & 31 if unit else 0
        if kind == 5:
            return True, True, "", True
        entry = entry or (kind == 6 and _recovers_at_once(unit[1:]))
    return entry, False, "", True


def _recovers_at_once(payload: bytes) -> bool:
    """Whether supplemental information holds a recovery point that is this very picture."""
    at = 0
    while at + 2 < len(payload):
        kind = payload[at]
        size = payload[at + 1]
        if kind == 6:
            return bool(payload[at + 2] & 0x80)  # recovery_frame_cnt, ue(v): a leading 1 is zero
        if kind == 0xFF or size == 0xFF:
            return False
        at += 2 + size
    return False


def _look_hevc(packet: _Packet, *, width: int) -> _Said:
    if not packet.is_keyframe:
        return False, False, "", True
    kinds = {unit[0] >> 1 & 63 for unit in _units(bytes(packet), width) if unit}
    return any(16 <= kind <= 21 for kind in kinds), bool(kinds & {19, 20}), "", True


def _look_mpeg4(packet: _Packet) -> _Said:
    data = bytes(packet)
    at = data.find(_VOP)
    single = 0 <= at < len(data) - 4 and data.find(_VOP, at + 4) < 0
    if not single or len(data) <= _MPEG4_NOT_CODED:
        return False, False, "?", True
    kind = "IPBS"[data[at + 4] >> 6]
    return kind == "I", kind == "I", kind, True


def _look_vp8(packet: _Packet) -> _Said:
    head = bytes(packet)[0]
    key = not head & 1
    return key, key, "", bool(head & 0x10)


def _look_vp9(packet: _Packet) -> _Said:
    data = bytes(packet)
    key = packet.is_keyframe
    if data[-1] & 0xE0 == 0xC0:  # several frames of which the last is shown
        return key, key, "", True
    profile_3 = data[0] & 0x30 == 0x30
    show_existing, show = (0x04, 0x01) if profile_3 else (0x08, 0x02)
    return key, key, "", bool(data[0] & (show_existing | show))
