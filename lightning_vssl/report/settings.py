"""What a run set otherwise than the recipe of the paper that is nearest to it."""

import functools
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lightning_vssl.backbones.weights import is_plain
from lightning_vssl.cli import packaged_recipes

# What a recipe leaves alone and a run must not change unseen.
_DEFAULTS: dict[str, object] = {
    "trainer.max_epochs": None,
    "trainer.max_steps": -1,
    "trainer.max_time": None,
    "trainer.limit_train_batches": None,
    "trainer.overfit_batches": 0.0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": None,
}
# What is a protocol's; the rest belongs to the machine, or has a column of its own in the tables.
_OURS = re.compile(
    r"trainer\.(max_epochs|max_steps|max_time|limit_train_batches|overfit_batches"
    r"|accumulate_grad_batches|gradient_clip_val)$"
    r"|(model|data)\.init_args\."
)
_ASIDE = re.compile(
    r"model\.init_args\.(weights|paper|clips_at_once|queries_at_once|tokens_at_once)\b"
    r"|model\.init_args\.backbone\.(class_path|init_args\.(name|width|depth|weights|config)\b)"
    r"|model\.init_args\.optimizer\.init_args\.(foreach|fused|capturable|differentiable)$"
    r"|data\.init_args\.(.*\.)?(root|cache_dir|num_workers|prefetch_factor|eval_batch_size|seed"
    r"|rendered|detections|boxes|tubes|make_workers|lists|challenge|store|verify)$"
    r"|.*\.(recompute|tile)$"
)
_BACKBONE = "model.init_args.backbone."

Settings = dict[str, object]

# libyaml's where it is there: ten times as fast, and equal.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def leaves(tree: object, prefix: str = "") -> Settings:
    """Flattens nested settings to dotted names; a list is a leaf, a class is its bare name.

    Args:
        tree: What a YAML file holds.
        prefix: The name it stands under.

    Returns:
        Every leaf by its name.
    """
    if not isinstance(tree, Mapping) or not tree:
        bare = tree.rpartition(".")[2] if isinstance(tree, str) and _is_class(prefix) else tree
        return {prefix: bare}
    found: Settings = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _is_class(name: str) -> bool:
    return name.endswith("class_path")


def _with_defaults(tree: object) -> object:
    """Adds what classes take by default where a file leaves it out, so that a change is seen."""
    if not isinstance(tree, Mapping):
        return tree
    found = {name: _with_defaults(value) for name, value in tree.items()}
    if "class_path" in found:
        given = found.pop("init_args", None)
        named = given if isinstance(given, Mapping) else {}
        if every := {**defaults(str(found["class_path"])), **named}:
            found["init_args"] = every
    return found


@functools.cache
def defaults(class_path: str) -> Settings:
    """The arguments of a class of ours, or of torch's optimisers, that have plain defaults.

    Args:
        class_path: Module and class; of others nothing is known.

    Returns:
        The defaults by name, with those of what it is derived from where it hands them on.
    """
    module, _, kind = class_path.rpartition(".")
    if not module.startswith(("lightning_vssl.", "torch.optim")):
        return {}
    try:
        owner = getattr(importlib.import_module(module), kind, None)
    except ImportError:  # a class of another version
        return {}
    found: Settings = {}
    for base in owner.__mro__ if isinstance(owner, type) else ():
        if "__init__" in vars(base):
            given = inspect.signature(base).parameters
            found = {name: parameter.default for name, parameter in given.items()} | found
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in given.values()):
                break
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if is_plain(value)
    }


def value_of(text: str) -> object:
    """A value as YAML reads it: what stands behind ``=`` on a command line."""
    value: object = yaml.safe_load(text)
    return value


def read_settings(file: Path) -> Settings:
    """Every value that a run was started with, by its dotted name.

    Args:
        file: The ``config*.yaml`` of a run, or a recipe.

    Raises:
        ValueError: If it is no YAML, naming the file and the line.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(
            f"{file} is no YAML ({where}); mend it, or move it away and run again"
        ) from error
    if isinstance(tree, Mapping):
        tree = {k: _with_defaults(v) if k in ("model", "data") else v for k, v in tree.items()}
    return leaves(tree)


@functools.cache
def recipes(kind: str) -> dict[str, Settings]:
    """The recipes that came with the package.

    Args:
        kind: ``eval`` for evaluations, an empty string for pretraining.

    Returns:
        The settings of each, by its name without suffix (``eval/davis``, ``ctp``).
    """
    root = packaged_recipes()
    files = sorted((root / kind).glob("*.yaml"))
    return {
        file.relative_to(root).with_suffix("").as_posix(): read_settings(file) for file in files
    }


def differences(recipe: Settings, run: Settings) -> dict[str, tuple[object, object]]:
    """What a run set otherwise than a recipe says.

    Args:
        recipe: Of the paper's protocol.
        run: Every value in force in the run.

    Returns:
        The recipe's value and the run's, by the name of the setting. What belongs to the machine
        and the places of files are left out, and another network, which the tables name.
    """
    network = [f"{_BACKBONE}{name}" for name in ("class_path", "init_args.name")]
    another = any(recipe.get(name) != run.get(name) for name in network)
    found: dict[str, tuple[object, object]] = {}
    for name, value in {**_DEFAULTS, **recipe}.items():
        if not _OURS.match(name) or _ASIDE.match(name):
            continue
        if another and name.startswith(_BACKBONE):
            continue
        mine = run.get(name, _DEFAULTS.get(name, "not set"))
        if not _same(value, mine):
            found[name] = (value, mine)
    return found


def _same(a: object, b: object) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return float(a) == float(b)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return a == b
