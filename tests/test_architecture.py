"""The arrows of the house point down, and its public names change only on purpose.

After a deliberate change of public names, write the new snapshot with
`python tests/test_architecture.py` and commit it with the change.
"""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_vssl"
SNAPSHOT = Path(__file__).parent / "public_names.json"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the top. A room may import any room of a lower level, and none of its own level.
LEVELS = (
    {"cli", "run", "efficiency", "report", "__main__"},
    {"methods", "evaluation", "jobs", "datamodules", "callbacks"},
    {"augment", "backbones", "proposals", "tracking", "curation"},
    {"data", "optim"},
    {"losses", "metrics"},
    {"nn"},  # a loss over the global batch stands on the gather
)
LEVEL = {room: depth for depth, rooms in enumerate(LEVELS) for room in rooms}
NO_LIGHTNING = {"augment", "backbones", "proposals", "tracking", "data", "losses", "metrics", "nn"}
HOOKS = {"on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"}


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree):
    """Every module a file imports, at any depth of the file, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "lightning_vssl":  # from lightning_vssl import methods
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def broken_arrows(room, tree):
    """What a file of ``room`` imports against the rules."""
    for name, line in imports(tree):
        first, *rest = name.split(".")
        if name.startswith("."):
            yield f"line {line}: relative import {name}"
        elif first == "pytorch_lightning":
            yield f"line {line}: pytorch_lightning does not mix with lightning.pytorch"
        elif first in ("lightning", "lightning_fabric") and room in NO_LIGHTNING:
            yield f"line {line}: {room} knows no Lightning"
        elif first == "lightning_vssl" and rest and rest[0] in LEVEL:
            same = room == rest[0] or {room, rest[0]} <= LEVELS[0]
            if not same and LEVEL[rest[0]] <= LEVEL[room]:
                yield f"line {line}: {room} imports {rest[0]}"


def public_names():
    """The public top-level names of every module."""
    snapshot = {}
    for path in MODULES:
        names = set()
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
        public = sorted(n for n in names if not n.startswith("_"))
        if public:
            module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            snapshot[module.removesuffix(".__init__")] = public
    return snapshot


def test_every_room_has_a_level():
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(LEVEL), f"place these in LEVELS: {rooms - set(LEVEL)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    if room_of(path) != "__init__":
        assert list(broken_arrows(room_of(path), parsed(path))) == []


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("methods", "from lightning_vssl.datamodules.base import X", "methods imports datamodules"),
        ("evaluation", "import lightning_vssl.methods.ctp", "evaluation imports methods"),
        ("data", "def f():\n    from lightning_vssl.augment import views", "data imports augment"),
        ("nn", "from lightning_vssl.losses.info_nce import nt_xent", "nn imports losses"),
        ("nn", "from lightning.pytorch import Trainer", "nn knows no Lightning"),
        ("nn", "from .gather import gather", "relative import .gather"),
        ("run", "import pytorch_lightning", "does not mix"),
        ("backbones", "from lightning_vssl import evaluation", "backbones imports evaluation"),
    ],
)
def test_a_broken_arrow_is_seen(room, source, complaint):
    found = list(broken_arrows(room, ast.parse(source)))
    assert len(found) == 1
    assert complaint in found[0]


def test_no_datamodule_defines_a_transfer_hook():
    # Lightning would take the DataModule's hook and silently leave out the method's augmentation.
    for path in sorted((PACKAGE / "datamodules").glob("*.py")):
        for node in ast.walk(parsed(path)):
            name = getattr(node, "name", None) or getattr(node, "id", None)
            assert name not in HOOKS, f"{path.name} defines {name}"


def test_class_names_are_unique():
    # `--model CtP` finds a class by its name alone.
    counts = Counter(
        node.name
        for path in MODULES
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in counts.items() if count > 1] == []


def test_method_base_stays_small():
    assert len((PACKAGE / "methods" / "base.py").read_text().splitlines()) < 150


def test_no_source_names_a_machine():
    for path in [*MODULES, *sorted((ROOT / "recipes").rglob("*.*"))]:
        found = re.search(r"(?<![\w.])/(home|root|work|opt|tmp)/", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_public_names_change_only_on_purpose():
    assert public_names() == json.loads(SNAPSHOT.read_text()), (
        "public names changed: if that is meant, run `python tests/test_architecture.py`"
    )


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(public_names(), indent=1) + "\n")
