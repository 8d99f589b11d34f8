"""The table of recipes: every recipe has its line, and the line says what the recipe says."""

import re
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes"
TEXT = (RECIPES / "README.md").read_text(encoding="utf-8")
STATES = ("parses", "runs on built-in data", "run at size")
ALL = sorted(p.relative_to(RECIPES).as_posix() for p in RECIPES.rglob("*.yaml"))
NAMED = [name for name in ALL if not name.startswith("overlay/")]
HEADS = ["paper", "recipe", "command", "hardware", "expected", "state"]


def lines():
    """Every line of the tables by the recipe that it links to, as often as there is one."""
    found = {}
    for line in TEXT.splitlines():
        if line.startswith("| ") and (link := re.search(r"\]\((?P<name>[\w/]+\.yaml)\)", line)):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            found.setdefault(link["name"], []).append(cells)
    return found


LINES = lines()
each = pytest.mark.parametrize("name", NAMED)


def cells_of(name):
    assert len(LINES[name][0]) == len(HEADS), LINES[name][0]
    return dict(zip(HEADS, LINES[name][0], strict=True))


def test_every_recipe_has_one_line():
    assert sorted(LINES) == ALL
    assert {name: len(found) for name, found in LINES.items() if len(found) != 1} == {}


def test_every_line_has_its_state():
    assert {found[0][-1] for found in LINES.values()} <= set(STATES)


@each
def test_every_cell_says_something(name):
    assert all(cells_of(name).values())


@each
def test_the_state_is_what_the_tests_do(name):
    # What has a file of lowered numbers is run on drawn data by test_recipes.
    small = HERE / "small" / name.replace("/", "_")
    assert (cells_of(name)["state"] == "parses") == (not small.is_file())


@each
def test_the_command_is_the_headers(name):
    text = (RECIPES / name).read_text()
    header = re.findall(rf"lightning-vssl (\w+) --config recipes/{re.escape(name)}", text)
    verbs = re.findall(r"`(fit|test|predict)\b", cells_of(name)["command"])
    assert verbs[0] == header[0]


@each
def test_the_papers_table_is_in_the_header(name):
    paper = cells_of(name)["paper"]
    header = " ".join((RECIPES / name).read_text().partition("seed_everything")[0].split())
    for number in re.findall(r"(?:Tables?|Figure) (B\.\d|\d)", paper):
        assert re.search(rf"\b{re.escape(number)}[a-d]?\b", header), (
            f"{paper}: no {number} in {header}"
        )


@each
def test_the_expected_number_is_the_recipes(name):
    recipe = yaml.safe_load((RECIPES / name).read_text())
    paper = recipe["model"]["init_args"].get("paper")
    expected = cells_of(name)["expected"]
    if paper:
        numbers = {float(n) for n in re.findall(r"-?\d+\.\d+", expected)}
        assert any(abs(n - v) < 0.051 for n in numbers for v in list(paper.values())[:1]), expected
    elif name.startswith("eval/"):
        assert "no paper's number" in expected or "no numbers" in expected


def test_a_line_that_is_missing_is_seen(monkeypatch):
    monkeypatch.setitem(globals(), "LINES", {k: v for k, v in LINES.items() if k != "ctp.yaml"})
    with pytest.raises(AssertionError):
        test_every_recipe_has_one_line()
