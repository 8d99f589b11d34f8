"""Small files for the backgrounds challenges: variants of clips, ImageNet-9, lists of names."""

from pathlib import Path

import numpy as np
from PIL import Image

from lightning_vssl.data.backgrounds import VARIANTS, rendered_file
from lightning_vssl.data.imagenet9 import CLASSES
from lightning_vssl.datamodules.jhmdb import JHMDB
from lightning_vssl.datamodules.mini_kinetics import MiniKinetics
from tests.videos import numbered_frames, write_video


def write_imagenet9(root: Path, size: int = 32) -> Path:
    """Nine classes to train on, ``train`` and ``val``, as the release names its folders."""
    for split, count in (("train", 3), ("val", 1)):
        _pictures(root / split, count, size, seed=len(split))
    return root


def write_challenge(folder: Path, size: int = 32, variants: tuple[str, ...] = VARIANTS) -> Path:
    """The variants of ImageNet-9, one picture a class."""
    for number, name in enumerate(variants):
        _pictures(folder / name / "val", 1, size, seed=10 + number)
    return folder


def _pictures(folder: Path, count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        place = folder / f"{label:02d}_{name}"
        place.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{seed}_{i}.JPEG")


def write_lists(folder: Path, root: Path) -> Path:
    """Mini-Kinetics's two lists, naming all clips below a folder of Kinetics."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        names = sorted(file.stem[:-14] for file in (root / split).rglob("*.mp4"))
        (folder / f"{split}_ytid_list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def write_rendered(data: JHMDB | MiniKinetics, folder: Path, variants: tuple[str, ...]) -> Path:
    """Files in place of the variants of a test, each the texture of its variant."""
    entries, classes = data.entries("test")
    for number, variant in enumerate(variants):
        frames = numbered_frames(6, 32, 48, seed=number)
        for entry in entries:
            write_video(rendered_file(folder, variant, classes[entry.label], entry.path), frames)
    return folder


def lay_out_backgrounds(arguments: dict, root: Path) -> None:
    """Writes what a recipe's data module reads beside its root, where the recipe says."""
    if "challenge" in arguments:
        write_challenge(Path(arguments["challenge"]))
    if "lists" in arguments:
        write_lists(Path(arguments["lists"]), root)
    if "rendered" in arguments:
        lists = arguments.get("lists")
        data = JHMDB(root) if lists is None else MiniKinetics(root, lists=Path(lists))
        write_rendered(data, Path(arguments["rendered"]), tuple(arguments["variants"]))
