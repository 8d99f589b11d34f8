"""The papers' tables with our rows beside theirs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lightning_vssl.report.papers import Column, Number, tables
from lightning_vssl.report.runs import Run, names
from lightning_vssl.report.settings import value_of


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        number: In percent.
        run: Which run of ours gave it, counted from 0; None in a row of the paper.
        notes: Why it is not the paper's protocol; nothing if it is.
    """

    number: float
    run: int | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Row:
    """A row of a table.

    Attributes:
        method: What was pretrained.
        backbone: The network.
        data: What it was pretrained on; empty if not known.
        setting: What an ablation varies.
        ours: Whether a run of ours gave it.
        cells: The numbers, by column.
    """

    method: str
    backbone: str
    data: str
    setting: str
    ours: bool
    cells: dict[Column, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """One table of a paper.

    Attributes:
        paper: Name of the paper.
        name: The table as the paper counts it.
        about: What it compares.
        columns: Its columns.
        rows: Theirs in the paper's order, each of ours behind the one that is nearest to it.
    """

    paper: str
    name: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def ours(self) -> bool:
        """Whether any run of ours stands in it."""
        return any(row.ours for row in self.rows)


def filled(runs: Sequence[Run]) -> list[Table]:
    """All tables of the papers, with what was run.

    A run stands in a table if the table has a column of its recipe: the one that the run's
    evaluation, data and paper's numbers name. In an ablation its pretraining must also have the
    setting of a row, and other data than that row's are a note.

    Args:
        runs: All of ours.

    Returns:
        The tables, also those without a run of ours, in the order of the papers.
    """
    return [
        Table(paper, name, about, _columns(found), _rows(found, runs))
        for paper, name, about, found in tables()
    ]


def _columns(numbers: Sequence[Number]) -> tuple[Column, ...]:
    return tuple(dict.fromkeys(n.column for n in numbers))


def _rows(numbers: Sequence[Number], runs: Sequence[Run]) -> tuple[Row, ...]:
    theirs: dict[tuple[str, str, str, str], Row] = {}
    for n in numbers:
        key = (n.method, n.backbone, n.data, n.setting)
        row = theirs.setdefault(key, Row(*key, ours=False))
        row.cells[n.column] = Cell(n.number)
    behind: dict[int, list[Row]] = {}
    known = list(theirs.values())
    for row in _ours(numbers, known, runs):
        behind.setdefault(_nearest(row, known), []).append(row)
    return tuple(r for i, row in enumerate(known) for r in (row, *behind.get(i, ())))


def _ours(numbers: Sequence[Number], known: Iterable[Row], runs: Sequence[Run]) -> list[Row]:
    """Rows of ours: numbers of the same weights stand in one row while their cells are free."""
    ablation = any(row.setting for row in known)
    made: list[tuple[object, Row]] = []
    for number, run in enumerate(runs):
        settings = [row.setting for row in known if row.method == run.method] if ablation else [""]
        setting = next((s for s in settings if _has(run, s)), None)
        if setting is None:
            continue
        notes = (*run.notes(setting), *_other_data(run, setting, known))
        cells = {
            n.column: Cell(run.results[n.column.metric], number, notes)
            for n in numbers
            if _fits(run, n)
        }
        if not cells:
            continue
        data = run.pretraining.data if run.pretraining else ""
        network = f"{run.backbone}, small" if run.small else run.backbone
        label = (run.method, network, data, setting)
        key = (label, run.small, run.weights)
        row = next((r for k, r in made if k == key and not r.cells.keys() & cells.keys()), None)
        if row is None:
            row = Row(*label, ours=True)
            made.append((key, row))
        row.cells.update(cells)
    return [row for _, row in made]


def _fits(run: Run, number: Number) -> bool:
    data = run.protocol["data"]
    said = {**run.protocol, **(data if isinstance(data, dict) else {})}
    return (
        run.setup.recipe == number.recipe
        and number.column.metric in run.results
        and all(said.get(name) == value for name, value in number.where)
    )


def _has(run: Run, setting: str) -> bool:
    """Whether a run's pretraining had what an ablation's row names."""
    settings = (run.pretraining.settings if run.pretraining else None) or {}
    return all(
        any(names(k, name) and v == value_of(value) for k, v in settings.items())
        for name, _, value in (part.partition("=") for part in setting.split("; ") if part)
    )


def _other_data(run: Run, setting: str, known: Iterable[Row]) -> Iterator[str]:
    """An ablation's rows are of one set of data: another says nothing of what is varied."""
    theirs = {r.data for r in known if (r.method, r.setting) == (run.method, setting) and setting}
    mine = run.pretraining
    if mine is not None and theirs and mine.data and mine.data not in theirs and not mine.built_in:
        yield f"not pretrained on {' or '.join(sorted(theirs))}"


def _nearest(row: Row, known: Sequence[Row]) -> int:
    """Which of the paper's rows one of ours stands behind: the last of those most alike."""

    def alike(theirs: Row) -> tuple[bool, ...]:
        return (
            theirs.method == row.method,
            theirs.setting == row.setting,
            theirs.backbone == row.backbone.removesuffix(", small"),
            theirs.data == row.data,
        )

    return max(range(len(known)), key=lambda i: (alike(known[i]), i))
