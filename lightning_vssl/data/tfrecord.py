"""Reads TensorFlow's record files without TensorFlow.

A file is a row of records: the length (8 bytes, little endian), a checksum of it (4), the payload,
a checksum of that (4). The payload is a ``tf.train.Example``, a protocol buffer of named lists.
Checksums are not looked at; a file that is cut off is an error.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def record_spans(file: Path) -> list[tuple[int, int]]:
    """Where the records of a file lie.

    Args:
        file: The record file.

    Returns:
        First byte and length of every payload.

    Raises:
        ValueError: If the file is cut off or is not of this kind.
    """
    size = file.stat().st_size
    spans, at = [], 0
    with file.open("rb") as stream:
        while at < size:
            head = stream.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if at + 16 + length > size:
                raise ValueError(
                    f"{file} is cut off or no TFRecord file: the record at byte {at} claims "
                    f"{length} bytes, and the file has {size}"
                )
            spans.append((at + 12, length))
            at += 16 + length
            stream.seek(at)
    return spans


def read_example(payload: bytes) -> dict[str, list[bytes] | list[int]]:
    """The byte strings and integers of a ``tf.train.Example``; lists of floats are left out.

    Args:
        payload: The record.

    Returns:
        The values by name.

    Raises:
        ValueError: If the payload is not such a message.
    """
    found: dict[str, list[bytes] | list[int]] = {}
    for features in _submessages(payload, 1):
        for entry in _submessages(features, 1):
            key = b"".join(_submessages(entry, 1)).decode()
            for feature in _submessages(entry, 2):
                for strings in _submessages(feature, 1):
                    found[key] = list(_submessages(strings, 1))
                for integers in _submessages(feature, 3):
                    found[key] = list(_integers(integers))
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and content of every field; a varint as int, everything else as bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if wire == _BYTES:
            length, at = _varint(message, at)
        if length < 0 or at + length > len(message):
            raise ValueError(f"not a tf.train.Example: field {number} does not fit")
        yield number, message[at : at + length]
        at += length


def _submessages(message: bytes, number: int) -> Iterator[bytes]:
    return (v for n, v in _fields(message) if n == number and isinstance(v, bytes))


def _integers(message: bytes) -> Iterator[int]:
    """Of a list of integers, which writers pack into one string or leave apart."""
    for number, value in _fields(message):
        if number != 1:
            continue
        if isinstance(value, int):
            yield _signed(value)
            continue
        at = 0
        while at < len(value):
            one, at = _varint(value, at)
            yield _signed(one)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("not a tf.train.Example: a number does not end")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
