"""Reads the folders of runs: results, settings, and the pretraining that the weights come from."""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from lightning_vssl.backbones.weights import CONFIG_FILE, sha256
from lightning_vssl.data.synthetic_layouts import is_built_in
from lightning_vssl.evaluation.result import RESULT
from lightning_vssl.report.names import DATA, METHODS, backbone_name
from lightning_vssl.report.runs import Other, Pretraining, Run, Setup
from lightning_vssl.report.settings import Settings, differences, read_settings, recipes

R = TypeVar("R")

_CURVE = "curve.json"  # of `lightning-vssl efficiency`
_ASIDE = ("checkpoints", "masks", "export", "variants")  # of a run's folder: no pictures to look at
_NEEDED = ("evaluation", "method", "backbone", "split", "results", "paper", "complete", "protocol")
_CHAIN = 4  # fine-tuned on one set of data, then on another, as PreViTS's background test


def find(folders: Iterable[Path]) -> tuple[list[Run], list[Other]]:
    """Reads all runs below some folders.

    Args:
        folders: Runs' folders, or folders above them.

    Returns:
        The runs with a result, and those without, each sorted by folder.

    Raises:
        FileNotFoundError: If a folder is not there.
        ValueError: If a folder holds no run, or files cannot be read: all of them are named.
    """
    results: set[Path] = set()
    others: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; name folders of runs, such as runs")
        found = dict(_runs_below(folder))
        if not found:
            raise ValueError(
                f"{folder} holds no run: neither {RESULT} nor config.yaml lies in it or below; "
                "an evaluation writes the first into trainer.default_root_dir"
            )
        results.update(path for path, has_result in found.items() if has_result)
        others.update(path for path, has_result in found.items() if not has_result)
    broken: list[str] = []
    runs = [run for path in sorted(results) for run in _unless_broken(_run, path, broken)]
    rest = [run for path in sorted(others) for run in _unless_broken(_other, path, broken)]
    if broken:
        raise ValueError("\n".join(broken))
    return runs, rest


def _runs_below(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Every run's folder, and whether it has a result."""
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _ASIDE and not name.startswith(".")]
        if {RESULT, "config.yaml", _CURVE} & set(names):
            yield Path(path), RESULT in names


def _unless_broken(read: Callable[[Path], R], path: Path, broken: list[str]) -> Iterator[R]:
    try:
        yield read(path)
    except ValueError as error:
        broken.append(str(error))


def _run(folder: Path) -> Run:
    content = _content(folder / RESULT)
    data = _mapping(content, "protocol", "data", folder=folder)
    network = _mapping(content, "backbone", folder=folder)
    method = str(content["method"]).removesuffix(", FineTune")
    weights = content.get("weights")
    pretraining = None if weights is None else _pretraining(folder, str(weights), content)
    if pretraining is not None and method in ("MoCo", "RSPNet") and pretraining.settings:
        tracked = pretraining.settings.get("data.init_args.tubes") is not None
        method += ", tracked sampling" * tracked
    results = {
        name: float(value)
        for name, value in _mapping(content, "results", folder=folder).items()
        if isinstance(value, int | float)
    }
    label, small = backbone_name(network)
    epochs, steps = content.get("epochs_trained"), content.get("steps_trained")
    return Run(
        folder=folder,
        evaluation=str(content["evaluation"]),
        data=DATA.get(str(data["class"]), str(data["class"])),
        built_in=_built_in(data),
        split=str(content["split"]),
        method=METHODS.get(method, method),
        backbone=label,
        small=small,
        weights=None if weights is None else str(content.get("weights_sha256")),
        results=results,
        complete=content["complete"] is True,
        stopped=_stopped(epochs, steps, _settings(folder)),
        protocol=_mapping(content, "protocol", folder=folder),
        setup=_evaluated_as(folder, content, str(data["class"])),
        pretraining=pretraining,
        pictures=pictures(folder),
    )


def _content(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is no JSON ({error}); run the evaluation again, or move the file away"
        ) from error
    lacking = [name for name in _NEEDED if not isinstance(content, dict) or name not in content]
    if lacking:
        raise ValueError(f"{file} is no result of an evaluation: it lacks {', '.join(lacking)}")
    return dict(content)


def _mapping(content: Mapping[str, object], *names: str, folder: Path) -> dict[str, object]:
    value: object = content
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    needed = {"data": "class", "backbone": "class_path"}.get(names[-1])
    if not isinstance(value, Mapping) or (needed is not None and needed not in value):
        path = ".".join((*names, needed) if needed else names)
        raise ValueError(f"{folder / RESULT} is no result of an evaluation: it lacks {path}")
    return {str(name): item for name, item in value.items()}


def _built_in(data: Mapping[str, object]) -> bool | None:
    """From result.json; for one of an earlier version from the folder, if it is still there."""
    said, root = data.get("built_in"), data.get("root")
    if isinstance(said, bool):
        return said
    if data["class"] == "Demo":
        return True
    return is_built_in(Path(str(root))) if root and Path(str(root)).is_dir() else None


def _evaluated_as(folder: Path, content: Mapping[str, object], data: str) -> Setup:
    """The recipe with the same classes, the same paper's numbers and the fewest other settings."""
    files = [folder / f"config{suffix}.yaml" for suffix in ("", "_test", "_validate")]
    runs = [read_settings(file) for file in files if file.is_file()]
    paper = content["paper"]
    ranked = []
    for name, recipe in recipes("eval").items():
        kinds = (recipe["model.class_path"], recipe["data.class_path"])
        if kinds == (content["evaluation"], data):
            changed: dict[str, tuple[object, object]] = {}
            for run in runs:
                changed |= differences(recipe, run)
            ranked.append((_paper(recipe) != paper, len(changed), name, changed))
    if not ranked:
        return Setup(None, {} if runs else None)
    _, _, name, changed = min(ranked, key=lambda found: found[:3])
    return Setup(name, changed if runs else None)


def _settings(folder: Path) -> Settings:
    file = folder / "config.yaml"
    return read_settings(file) if file.is_file() else {}


def _stopped(epochs: object, steps: object, settings: Settings) -> str:
    """How far a training came that was to be longer; empty for one that reached its end."""
    planned = [("epochs", epochs, settings.get("trainer.max_epochs"))]
    planned.append(("steps", steps, settings.get("trainer.max_steps")))
    bounds = [(unit, a, b) for unit, a, b in planned if isinstance(b, int) and b > 0]
    known = [(unit, a, b) for unit, a, b in bounds if isinstance(a, int)]
    if not known or any(a >= b for _, a, b in known):  # the first bound that is met ends it
        return ""
    unit, a, b = known[0]
    return f"{a} of {b} {unit}"


def _progress(weights: Path) -> tuple[object, object]:
    """Epochs, that under way among them, and steps of an export or a checkpoint, if it says so."""
    said: Mapping[str, object] = {}
    if weights.is_dir() or weights.suffix == ".safetensors":
        config = (weights if weights.is_dir() else weights.parent) / CONFIG_FILE
        said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    elif zipfile.is_zipfile(weights):
        said = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    epoch = said.get("epoch")
    return epoch + 1 if isinstance(epoch, int) else None, said.get("global_step")


def _paper(recipe: Settings) -> dict[str, object]:
    prefix = "model.init_args.paper."
    return {k.removeprefix(prefix): v for k, v in recipe.items() if k.startswith(prefix)}


def _pretraining(folder: Path, weights: str, content: Mapping[str, object]) -> Pretraining:
    """Follows the weights to the settings of the run that made them."""
    hash_now = content.get("weights_sha256")
    for _ in range(_CHAIN):
        file = _found(weights, folder)
        if file is None or (hash_now is not None and sha256(file) != hash_now):
            return Pretraining()
        run = next((p for p in (file, *file.parents[:2]) if (p / "config.yaml").is_file()), None)
        if run is None:
            return Pretraining()
        settings = read_settings(run / "config.yaml")
        before = settings.get("model.init_args.weights")
        if not isinstance(before, str):
            return _trained(settings, _stopped(*_progress(file), settings))
        folder, weights, hash_now = run, before, None
    return Pretraining()


def _trained(settings: Settings, stopped: str) -> Pretraining:
    kinds = (settings.get("model.class_path"), settings.get("data.class_path"))
    data, root = str(kinds[1] or ""), settings.get("data.init_args.root")
    ranked = [
        (len(changed := differences(recipe, settings)), name, changed)
        for name, recipe in recipes("").items()
        if (recipe["model.class_path"], recipe["data.class_path"]) == kinds
    ]
    _, name, changed = min(ranked, key=lambda found: found[:2], default=(0, None, {}))
    fraction = settings.get("data.init_args.video_fraction", 1.0)
    label = DATA.get(data, data)
    if isinstance(fraction, float) and fraction < 1:
        label += f", {100 * fraction:.3g} %"
    return Pretraining(
        data=label,
        built_in=_built_in({"class": data, "root": root}),
        settings=settings,
        setup=Setup(name, changed),
        stopped=stopped,
    )


def _found(weights: str, folder: Path) -> Path | None:
    """A path as it stands, or from any folder above the run: where the command was given."""
    starts = [Path(), *folder.absolute().parents]
    return next((p for start in starts if (p := start / weights).exists()), None)


def pictures(folder: Path) -> tuple[Path, ...]:
    """Pictures that a run drew into its folder, sorted; masks and other data are left out."""
    found = [*folder.glob("*.png"), *folder.glob("*/*.png")]
    return tuple(sorted(p for p in found if p.relative_to(folder).parts[0] not in _ASIDE))


def _other(folder: Path) -> Other:
    file = folder / "config.yaml"
    if not file.is_file():
        return Other(folder, "Accuracy by the share of labels (CtP, Figure 4)", pictures(folder))
    settings = read_settings(file)
    data = str(settings.get("data.class_path", ""))
    title = f"{settings.get('model.class_path', '')} on {DATA.get(data, data)}"
    return Other(folder, title, pictures(folder))
