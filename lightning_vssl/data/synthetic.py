"""The built-in videos: drawn, not downloaded, so that everything can be tried and tested offline.

`draw` gives a video with its exact masks, boxes and labels; `make_demo` writes a collection of real
video files in the layout of a benchmark; `demo` is the command ``lightning-vssl demo``.
"""

from pathlib import Path
from typing import Literal

from lightning_vssl.data.synthetic_layouts import LAYOUTS, VERSION, LayoutName, make_demo
from lightning_vssl.data.synthetic_recognition import DemoLayout
from lightning_vssl.data.synthetic_scenes import (
    MOTIONS,
    OBJECTS,
    Drawn,
    Scene,
    compose,
    draw,
    labels,
    render,
)

__all__ = [
    "LAYOUTS",
    "MOTIONS",
    "OBJECTS",
    "VERSION",
    "DemoLayout",
    "Drawn",
    "LayoutName",
    "Scene",
    "compose",
    "demo",
    "draw",
    "labels",
    "make_demo",
    "render",
]


def demo(
    root: Path,
    videos: int = 1000,
    seed: int = 0,
    layout: LayoutName | Literal["all"] = "demo",
    workers: int | None = None,
) -> None:
    """Makes built-in videos.

    Args:
        root: Folder to write to; made if missing. With ``--layout all`` each layout gets a folder
            of its name in it.
        videos: Number of videos (in each layout), 16 to 100,000; a quarter are for testing.
        seed: Seed of all pixels and labels: the same seed, the same pixels.
        layout: Whose folders, lists and codec to use.
        workers: Number of processes; by default as many as there are cores to use.
    """
    names: list[LayoutName] = list(LAYOUTS) if layout == "all" else [layout]
    for name in names:
        folder = root / name if layout == "all" else root
        made = make_demo(folder, name, videos=videos, seed=seed, workers=workers)
        print(f"{videos} videos in {made}")
