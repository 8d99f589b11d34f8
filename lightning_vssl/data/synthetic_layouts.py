"""Making of whole collections of built-in videos, in parallel, resumable."""

import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_vssl.data.synthetic_annotated import (
    AVALayout,
    DAVISLayout,
    GOT10kLayout,
    JHMDBLayout,
    OTBLayout,
)
from lightning_vssl.data.synthetic_files import Layout, write_lines
from lightning_vssl.data.synthetic_recognition import (
    DemoLayout,
    HMDB51Layout,
    ImagesLayout,
    KineticsLayout,
    SomethingV1Layout,
    SomethingV2Layout,
    UCF101Layout,
    VGGSoundLayout,
)

LayoutName = Literal[
    "demo",
    "images",
    "ucf101",
    "hmdb51",
    "kinetics",
    "vggsound",
    "something-v1",
    "something-v2",
    "ava",
    "davis",
    "otb",
    "got10k",
    "jhmdb",
]

LAYOUTS: dict[LayoutName, type[Layout]] = {
    "demo": DemoLayout,
    "images": ImagesLayout,
    "ucf101": UCF101Layout,
    "hmdb51": HMDB51Layout,
    "kinetics": KineticsLayout,
    "vggsound": VGGSoundLayout,
    "something-v1": SomethingV1Layout,
    "something-v2": SomethingV2Layout,
    "ava": AVALayout,
    "davis": DAVISLayout,
    "otb": OTBLayout,
    "got10k": GOT10kLayout,
    "jhmdb": JHMDBLayout,
}
"""Every layout by its name."""

VERSION = 2
"""Raised whenever the pixels or the files of a given seed change."""

_MARKER = ".built-in.json"
_CHUNK = 8

# --- making -------------------------------------------------------------------------------------


def _write_some(layout: Layout, numbers: range) -> int:
    for number in numbers:
        if not layout.target(number).exists():
            layout.write(number)
    return len(numbers)


def _chunks(total: int) -> list[range]:
    return [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]


def _done(layout: Layout, workers: int) -> Iterator[int]:
    """Writes all videos; yields how many each finished chunk held."""
    work = functools.partial(_write_some, layout)
    chunks = _chunks(layout.videos)
    if workers == 1 or len(chunks) == 1:
        yield from map(work, chunks)
        return
    # fork: the workers draw and encode only, and a user's script needs no __main__ guard.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        try:
            yield from pool.map(work, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def _with_bar(done: Iterable[int], total: int, name: str, shown: bool) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown) as bar:
        task = bar.add_task(f"Drawing built-in videos ({name})", total=total)
        for count in done:
            bar.advance(task, count)


def make_demo(
    root: str | Path,
    layout: LayoutName = "demo",
    *,
    videos: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draws and writes a collection of built-in videos, or goes on with one that was begun.

    Args:
        root: Folder of the collection; made if missing.
        layout: Whose folder layout, lists and codec to use.
        videos: Number of videos, 16 to 100,000; a quarter of them are for testing.
        seed: Seed of all pixels and labels: the same seed, the same pixels.
        workers: Number of processes; None: as many as this process may use cores.
        progress: Whether to show a bar.

    Returns:
        The folder.

    Raises:
        ValueError: If an argument is out of range, or the folder holds another collection.
        OSError: If a file cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not 16 <= videos <= 100_000:
        raise ValueError(f"videos must be in 16..100000, got {videos}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1 (or None: all cores), got {workers}")
    root = Path(root)
    plan = LAYOUTS[layout](root, videos, seed)
    wanted: dict[str, str | int] = {
        "layout": layout,
        "videos": videos,
        "seed": seed,
        "version": VERSION,
    }
    if _begun(root, wanted):
        return root
    write_lines(root / _MARKER, [json.dumps({**wanted, "done": False})])
    _with_bar(_done(plan, workers or _cores()), videos, layout, progress)
    plan.finish()
    write_lines(root / _MARKER, [json.dumps({**wanted, "done": True})])
    return root


def is_built_in(root: Path) -> bool:
    """Whether a folder holds built-in videos, or lies in one that does.

    Args:
        root: Any folder; it need not exist.

    Returns:
        True for what `make_demo` began. A number measured on it is no benchmark's.
    """
    root = root.absolute()
    return any((folder / _MARKER).is_file() for folder in (root, *root.parents))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _begun(root: Path, wanted: dict[str, str | int]) -> bool:
    """Reads the marker: True if the collection is complete, False if it has to be written."""
    marker = root / _MARKER
    if not marker.exists():
        if root.exists() and any(root.iterdir()):
            raise ValueError(
                f"root must be an empty folder or one of built-in videos, got {root}, which holds"
                " other files; name a new folder"
            )
        return False
    found = json.loads(marker.read_text())
    done = bool(found.pop("done", False))
    if found != wanted:
        raise ValueError(
            f"{root} holds other built-in videos ({found}) than asked for ({wanted}); name another"
            " folder or delete this one"
        )
    return done
