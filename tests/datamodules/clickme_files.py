"""Writes files as ClickMe's are: the record and message formats spelled out byte by byte."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**values: bytes | int | list[int]) -> bytes:
    """tf.train.Example: features (1) > map entry (1) > key (1), feature (2) > list > values."""
    entries = b""
    for name, value in values.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))  # bytes_list
        elif isinstance(value, int):
            feature = field(3, field(1, varint(value)))  # int64_list, packed
        else:
            feature = field(3, b"".join(varint(1 << 3) + varint(v) for v in value))  # not packed
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def record(payload: bytes) -> bytes:
    return struct.pack("<Q", len(payload)) + b"\0" * 4 + payload + b"\0" * 4


def png(pixels: np.ndarray) -> bytes:
    """PNG in place of JPEG where pixels must come back as they are."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, pictures: np.ndarray, maps: np.ndarray, per_file: int = 4) -> Path:
    """Pictures (N, 256, 256, 3) and maps (N, 256, 256) as val-0, val-1, ...; label = number."""
    folder = root / "val"
    folder.mkdir(parents=True)
    for start in range(0, len(pictures), per_file):
        rows = range(start, min(start + per_file, len(pictures)))
        content = [
            record(example(image=png(pictures[i]), heatmap=png(maps[i]), label=i)) for i in rows
        ]
        (folder / f"val-{start // per_file}.tfrecords").write_bytes(b"".join(content))
    return root


def blobs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright spot on noise, and a map that is bright where the spot is."""
    rng = np.random.Generator(np.random.Philox(key=5))
    y, x = np.mgrid[:256, :256]
    pictures = rng.integers(0, 40, (count, 256, 256, 3), dtype=np.uint8)
    maps = np.zeros((count, 256, 256), np.uint8)
    for i in range(count):
        cy, cx = rng.integers(60, 196, 2)
        near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 30**2))
        maps[i] = np.round(255 * near)
        pictures[i] += np.round(200 * near).astype(np.uint8)[..., None]
    return pictures, maps
