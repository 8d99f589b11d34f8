"""Folders of runs as the command line leaves them, written by hand."""

import functools
import json
from pathlib import Path

import yaml

from lightning_vssl.backbones.weights import sha256

RECIPES = Path(__file__).parent.parent.parent / "recipes"
R3D18 = {
    "class_path": "lightning_vssl.backbones.R3D18",
    "init_args": {"width": 64, "depth": [2, 2, 2, 2], "last_stride": 2},
}


def changed(tree, changes):
    """A tree with some leaves replaced, each named by its dotted path."""
    tree = json.loads(json.dumps(tree))
    for path, value in changes.items():
        *above, last = path.split(".")
        part = tree
        for name in above:
            part = part[name]
        part[last] = value
    return tree


def pretrain(folder, recipe="ctp", changes=None, root="data/kinetics400"):
    """A run of a method: its settings and an export, of which only the name and bytes matter."""
    settings = changed(written_in(recipe), {"data.init_args.root": str(root), **(changes or {})})
    (folder / "export").mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(settings))
    (folder / "export" / "backbone.safetensors").write_bytes(str(folder).encode())
    (folder / "export" / "config.json").write_text("{}")
    return folder / "export"


@functools.cache
def written_in(recipe):
    """A recipe as it stands."""
    return yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())


def evaluate(folder, recipe, results, weights=None, method="CtP", settings=None, **changes):
    """A run of an evaluation: result.json and the settings of fit and test.

    ``changes`` name leaves of result.json with ``__`` for dots, ``settings`` those of the recipe.
    """
    written = written_in(recipe)
    model, data = written["model"], written["data"]
    content = {
        "evaluation": model["class_path"].rpartition(".")[2],
        "method": method if weights else "untouched",
        "weights": None if weights is None else str(weights),
        "weights_sha256": None if weights is None else sha256(weights),
        "backbone": R3D18,
        "split": "test",
        "unit": "percent",
        "results": results,
        "paper": model["init_args"].get("paper") or {},
        "complete": True,
        "protocol": {
            "data": {
                "class": data["class_path"].rpartition(".")[2],
                "built_in": False,
                "root": "data/real",
            }
        },
        "library": "0",
    }
    content = changed(content, {k.replace("__", "."): v for k, v in changes.items()})
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))
    for name in ("config.yaml", "config_test.yaml"):  # JSON is YAML, and quicker
        (folder / name).write_text(json.dumps(changed(written, settings or {})))
    return folder
