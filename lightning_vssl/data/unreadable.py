"""What cannot be read: evaluations stop at it; training logs it, counts it and takes another."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

_log = logging.getLogger(__name__)

_WORD = (1 << 64) - 1
_NAMED = 10


class UnreadableFile(Exception):
    """A file that is missing, broken or cut off. The message names it.

    Args:
        path: The file or folder.
        reason: What is wrong with it, in words.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # both, so that it crosses a worker's pipe
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class TooManyUnreadable(RuntimeError):
    """More files failed while they were read than the limit allows."""


class Unreadable:
    """What of a training set broke while it was read, here and in the workers of this process.

    Args:
        name: Names what has a number: a video by its path, a sequence by its folder.
        count: How many there are, numbered from 0.
        limit: Share of them, in [0, 1], that may break before the run stops.
        what: What they are, in the plural.

    Raises:
        ValueError: If ``limit`` is no share.
    """

    def __init__(
        self,
        name: Callable[[int], str | Path],
        count: int,
        *,
        limit: float,
        what: str = "videos",
    ) -> None:
        if not 0 <= limit <= 1:
            raise ValueError(f"max_unreadable={limit}: a share of the {what}, 0 to 1")
        self.limit = limit
        self._name = name
        self._what = what
        self._broken = torch.zeros(count, dtype=torch.bool)
        self._broken.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it so

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The numbers of those that broke, ascending."""
        return np.flatnonzero(self._broken.numpy())

    def note(self, number: int, error: UnreadableFile) -> None:
        """Counts one that broke, and logs it the first time.

        Args:
            number: Which one.
            error: The file that failed, and why.

        Raises:
            TooManyUnreadable: If more broke than the limit allows, or all of them; lists them.
        """
        if not self._broken[number]:
            self._broken[number] = True
            _log.warning("cannot read %s; another of the %s takes its place", error, self._what)
        broken, count = self.numbers, len(self._broken)
        if len(broken) > self.limit * count or len(broken) == count:
            lines = [f"  {self._name(int(one))}" for one in broken[:_NAMED]]
            if len(broken) > _NAMED:
                lines.append(f"  and {len(broken) - _NAMED} more")
            raise TooManyUnreadable(
                f"{len(broken)} of {count} {self._what} could not be read:\n"
                + "\n".join(lines)
                + f"\nThe last failure: {error}\nMore than max_unreadable={self.limit:g} allows: "
                "repair or remove these files, or raise it."
            )


def stand_ins(row: int, rows: int, key: int) -> Iterator[int]:
    """A row, and those that take its place one after the other where it cannot be read.

    Args:
        row: The row asked for.
        rows: How many there are.
        key: The sample's key, which names the others' order.

    Yields:
        ``row``, then every other row once.
    """
    yield row
    order = np.random.Generator(np.random.Philox(key=(key & _WORD) | 1 << 64)).permutation(rows)
    yield from order[order != row].tolist()
