"""Tests of several variants of the same videos, which `lightning_vssl.jobs.backgrounds` renders."""

from pathlib import Path

from lightning_vssl.data.backgrounds import VARIANTS, Variant, rendered_file
from lightning_vssl.data.manifest import Entry


def rendered_folder(rendered: Path | None, variants: tuple[Variant, ...]) -> Path | None:
    """The folder of the variants, absolute.

    Raises:
        ValueError: If a variant is unknown, or given twice.
    """
    if any(name not in VARIANTS for name in variants) or len(set(variants)) < len(variants):
        raise ValueError(f"variants={variants}: some of {', '.join(VARIANTS)}, each once")
    return None if rendered is None else Path(rendered).expanduser().absolute()


def in_variants(
    entries: list[Entry],
    classes: tuple[str, ...],
    rendered: Path,
    variants: tuple[Variant, ...],
) -> list[Entry]:
    """The rows of all variants of some videos, variant after variant.

    Raises:
        FileNotFoundError: If the folder, or that of a variant, is not there.
    """
    missing = [name for name in variants if not (rendered / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"no folder of {', '.join(missing)} in {rendered}: lightning-vssl predict --config "
            "recipes/jobs/backgrounds.yaml renders it; rendered must be the folder variants of "
            "that run"
        )
    return [
        Entry(str(rendered_file(rendered, variant, classes[entry.label], entry.path)), entry.label)
        for variant in variants
        for entry in entries
    ]
