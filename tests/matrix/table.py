"""The matrix: its cells, each run once, and the tables of README.md that say what became of them.

    python -m tests.matrix.table README.md

writes the tables between the two marks in that file anew.
"""

import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.matrix.evaluations import EVALUATIONS, Cell, Evaluated
from tests.matrix.families import FAMILIES, Family
from tests.matrix.methods import METHODS, Trained, train
from tests.matrix.outcome import refusal

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
MOCO = next(method for method in METHODS if method.name == "MoCo")
"""The method that trains any network: what it exports stands for all in the second table."""


class Matrix:
    """Runs cells when they are asked for, and remembers what became of them.

    Args:
        folder: Where exports and results lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._methods: dict[tuple[str, str], str | None] = {}
        self._evaluations: dict[tuple[str, str, str], str | None] = {}

    def of_method(self, family: Family, method: Trained) -> str | None:
        """None if the method trains the network for a step and exports it, else why not."""
        key = family.name, method.name
        if key not in self._methods:
            folder = self._at(family, method)
            self._methods[key] = refusal(lambda: train(family, method, folder), family)
        return self._methods[key]

    def of_evaluation(
        self, family: Family, evaluation: Evaluated, method: Trained = MOCO
    ) -> str | None:
        """None if the evaluation takes what the method exported, else why not."""
        key = family.name, method.name, evaluation.name
        if key not in self._evaluations:
            assert self.of_method(family, method) is None
            folder = self._at(family, method) / evaluation.name
            cell = Cell(self._at(family, method) / "export", family, method, folder)
            self._evaluations[key] = refusal(lambda: evaluation.run(cell), family)
        return self._evaluations[key]

    def forget(self, family: Family) -> None:
        """Deletes what a family's cells left on the disk; what became of them is remembered."""
        shutil.rmtree(self._at(family), ignore_errors=True)

    def _at(self, family: Family, method: Trained | None = None) -> Path:
        folder = self.folder / str(FAMILIES.index(family))
        return folder if method is None else folder / str(METHODS.index(method))


def render(matrix: Matrix) -> str:
    """Both tables and the reasons, as Markdown."""
    reasons: dict[str, str] = {}  # letter by reason

    def cell(reason: str | None) -> str:
        if reason is None:
            return "yes"
        return reasons.setdefault(_plain(reason), chr(ord("a") + len(reasons)))

    found = []
    for family in FAMILIES:
        trained = [matrix.of_method(family, method) for method in METHODS]
        evaluated = [matrix.of_evaluation(family, one) for one in EVALUATIONS]
        found.append((family.name, trained, evaluated))
        matrix.forget(family)
    methods = [[name, *map(cell, trained)] for name, trained, _ in found]
    evaluations = [[name, *map(cell, evaluated)] for name, _, evaluated in found]
    return "\n".join(
        [
            *_table(["backbone", *(method.name for method in METHODS)], methods),
            "",
            *_table(["backbone", *(one.name for one in EVALUATIONS)], evaluations),
            "",
            *(f"- **{letter}**: {reason}" for reason, letter in reasons.items()),
        ]
    )


def _plain(reason: str) -> str:
    """A reason without the size that was met, so that equal reasons share a letter."""
    return re.sub(r"; got [\d x]+", "", " ".join(reason.split())).rstrip(".")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---", *[":-:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def in_page(page: str) -> str:
    """What stands between the marks of a page."""
    return _between(page).group(1).rstrip("\n")


def put_in(page: str, tables: str) -> str:
    """A page with other tables between its marks."""
    start, end = _between(page).span(1)
    return page[:start] + tables + page[end:]


def _between(page: str) -> re.Match[str]:
    found = list(re.finditer(rf"^{BEGIN}\n(.*?)^{END}$", page, re.DOTALL | re.MULTILINE))
    if len(found) != 1:
        raise ValueError(f"the page must hold the lines {BEGIN} and, behind it, {END}, once")
    return found[0]


def main(file: Path) -> None:
    """Runs all cells of both tables and writes them into a page."""
    page = file.read_text(encoding="utf-8")
    in_page(page)  # before the minute that the cells take
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        made = render(Matrix(Path(folder)))
    file.write_text(put_in(page, f"{made}\n"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
