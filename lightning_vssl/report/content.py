"""What a report tells, whatever it is written as."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lightning_vssl.report.runs import Other, Run
from lightning_vssl.report.tables import Table

_METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mixed_same": "mixed-same",
    "mixed_rand": "mixed-rand",
    "mixed_next": "mixed-next",
    "only_fg": "only-FG",
    "no_fg": "no-FG",
    "no_fg_drop": "no-FG, drop",
    "only_bg_b": "only-BG-B",
    "only_bg_t": "only-BG-T",
    "bg_gap": "BG-gap",
}
PICTURES = 6
"""How many pictures of a run are shown; the rest is counted."""

EXPLAINED = (
    "All numbers are percent. A number of ours without a footnote was measured on the paper's data "
    "under its recipe, complete. One with a footnote was not, and the footnote says why: it is no "
    "result beside the paper's."
)
"""What a reader must know of the numbers."""


@dataclass(frozen=True)
class Report:
    """What there is to tell.

    Attributes:
        tables: The tables to show.
        left_out: Tables of which nothing was run, by paper.
        runs: Runs with a result; cells of the tables count them from 0.
        others: Runs without one.
    """

    tables: Sequence[Table]
    left_out: Sequence[Table]
    runs: Sequence[Run]
    others: Sequence[Other]

    @property
    def summary(self) -> str:
        """How many runs there are, and how many of them are a paper's protocol."""
        plain = sum(not run.notes() for run in self.runs)
        return (
            f"{count(len(self.runs), 'result')}, {plain} of them under a paper's protocol; "
            f"{count(len(self.others), 'run')} without a result."
        )

    @property
    def missing(self) -> str:
        """The tables of which nothing was run, in one sentence; empty if there are none."""
        papers = groupby(self.left_out, lambda table: table.paper)
        named = [f"{paper}: {', '.join(t.name for t in found)}" for paper, found in papers]
        return f"Nothing was run of {'; '.join(named)}." if named else ""


def count(number: int, what: str) -> str:
    """A number of things in words, with their plural."""
    return f"{number} {what}{'s' * (number != 1)}"


def metric_name(metric: str) -> str:
    """A number's name as the papers write it."""
    return _METRICS.get(metric, metric.replace("_", " "))


def footnotes_of(table: Table) -> dict[tuple[str, ...], int]:
    """Every set of reasons in a table, numbered from 1 in the order in which it is met."""
    found: dict[tuple[str, ...], int] = {}
    for row in table.rows:
        for column in table.columns:
            cell = row.cells.get(column)
            if cell is not None and cell.notes:
                found.setdefault(cell.notes, len(found) + 1)
    return found


def title(run: Run) -> str:
    """What was measured on what."""
    built_in = " (built-in)" if run.built_in else ""
    return f"{run.evaluation} on {run.data}{built_in}"


def trained(run: Run) -> str:
    """The network, and what trained it on what."""
    on = f" on {run.pretraining.data}" if run.pretraining and run.pretraining.data else ""
    network = f"{run.backbone} ({run.small})" if run.small else run.backbone
    return f"{network}, {'untouched' if run.weights is None else run.method + on}"


def changes_of(run: Run) -> list[tuple[str, str, str]]:
    """Setting, the recipe's value, the run's: of the evaluation, then of the pretraining."""
    setups = [("", run.setup)]
    if run.pretraining is not None:
        setups.append(("pretraining: ", run.pretraining.setup))
    return [
        (prefix + name.replace(".init_args", ""), _plain(recipe), _plain(ours))
        for prefix, setup in setups
        for name, (recipe, ours) in (setup.changed or {}).items()
    ]


def _plain(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def relative(file: Path, folder: Path) -> str:
    """The way to a file from the report's folder, as a link writes it."""
    return Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()
