"""Where the bytes of a video lie: in a file of its own, or in a tar shard among others."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE  # a member's header, right before its bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or a member of a tar shard.

    A member is opened where it lies, by libav's ``subfile`` protocol: nothing else of the shard is
    read, no Python stands between the file and the decoder, and the bytes that the decoder sees
    are those of a file of its own.

    Attributes:
        file: The file, or the shard.
        offset: Where in the shard the member's first byte is; 0 for a file of its own.
        size: The member's bytes; not used for a file of its own.
    """

    file: Path
    offset: int = 0
    size: int = 0

    @property
    def url(self) -> str:
        """What libav opens."""
        if not self.offset:
            return f"file:{self.file}"
        return f"subfile,,start,{self.offset},end,{self.offset + self.size},,:file:{self.file}"

    def stat(self) -> tuple[int, int]:
        """Bytes of the video, and when its file was last changed, in nanoseconds.

        Raises:
            OSError: If there is no such file.
        """
        found = self.file.stat()
        return (self.size if self.offset else found.st_size), found.st_mtime_ns

    def open(self) -> BinaryIO:
        """Opens the file at the video's first byte.

        Raises:
            OSError: If there is no such file.
        """
        file = self.file.open("rb")
        file.seek(self.offset)
        return file

    def fault(self) -> str:
        """Says what is wrong with the shard at this place; empty if nothing is, or for a file.

        A shard that was cut short, or packed anew since it was listed, would otherwise give
        another video, or a broken one, under this one's name.
        """
        if not self.offset:
            return ""
        length = self.file.stat().st_size
        if length < self.offset + self.size:
            return (
                f"the shard {self.file} ends at byte {length}, before the video at {self.offset} "
                f"does: it holds {self.size}; copy the shard again"
            )
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset - _BLOCK)
                header = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "replace")
        except tarfile.TarError as error:
            wrong = f"no member begins at byte {self.offset} ({error})"
        else:
            if header.size == self.size:
                return ""
            wrong = f"the member at byte {self.offset} has {header.size} bytes, not {self.size}"
        return f"{wrong} in {self.file}: it is not the shard that was listed; copy both again"
