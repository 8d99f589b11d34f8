"""README.md keeps its word: its lines run, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from lightning_vssl import cli
from lightning_vssl.run import RunCLI

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(heading, text=TEXT):
    """The code blocks under a heading, in order."""
    section = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE
    )
    assert section is not None, f"README.md has no heading {heading!r}"
    return re.findall(r"^```\w*\n(.*?)^```", section.group(1), re.DOTALL | re.MULTILINE)


def test_quick_start_is_one_line():
    line = "pip install -e . && lightning-vssl fit --config recipes/quickstart.yaml\n"
    assert blocks("Quick start")[0] == line


def test_tests_are_one_line():
    assert blocks("Tests")[0] == "pip install -e '.[test]' && pytest\n"


def test_python_lines_run(capsys):
    code = blocks("In Python")[0]
    lines = [line for line in code.splitlines() if line]
    assert len(lines) <= 10
    exec(compile(code, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "torch.Size([1, 512])" in shown
    assert "'layer2': (1, 128, 8, 28, 28)" in shown


COMMANDS = [
    line for block in blocks("Pretrain, evaluate, export") for line in block.splitlines() if line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the packaged recipes are found
    program, *words = shlex.split(command)
    assert program == "lightning-vssl"
    missing = {"export": r"last\.ckpt", "report": "runs", "efficiency": "runs/ctp/seed0/export"}
    if words[0] in missing:  # what it asks for is not here, and is what it names
        with pytest.raises(SystemExit, match=missing[words[0]]):
            cli.main(words)
        return
    monkeypatch.setattr(RunCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, subcommand: None)
    cli.main(words)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "recipes/README.md"])
def test_links_lead_to_files(name):
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_table_of_methods_says_what_is_there():
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\|([^|]*)\| ([^|]+) \|$", TEXT, re.MULTILINE)
    for _, recipe, status in rows[1:]:
        assert ("available" in status) == bool(recipe.strip()) or status.startswith("---")
