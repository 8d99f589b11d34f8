"""The report in Markdown."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from lightning_vssl.report.content import (
    EXPLAINED,
    PICTURES,
    Report,
    changes_of,
    count,
    footnotes_of,
    metric_name,
    relative,
    title,
    trained,
)
from lightning_vssl.report.papers import CITED, Column
from lightning_vssl.report.runs import Other, Run
from lightning_vssl.report.tables import Cell, Table


def markdown(report: Report, folder: Path) -> str:
    """The report in Markdown.

    Args:
        report: What to tell.
        folder: Where it will lie: pictures are linked from there.
    """
    parts = ["# Results", report.summary, EXPLAINED]
    for paper, tables in groupby(report.tables, lambda table: table.paper):
        parts += [f"## {paper}", f"{CITED[paper]}."]
        for table in tables:
            parts += [f"### {paper}, {table.name}: {table.about}", *_table(table)]
    parts += [report.missing] if report.missing else []
    parts += ["## Runs", *(_run(i, run, folder) for i, run in enumerate(report.runs, 1))]
    if report.others:
        parts.append("## Runs without a result")
        parts += [_other(run, folder) for run in report.others]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> Iterator[str]:
    footnotes = footnotes_of(table)
    setting = any(row.setting for row in table.rows)
    heads = ["", "Method", "Backbone", "Pretrained on", *(["Setting"] * setting)]
    heads += [_head(column, table) for column in table.columns]
    lines = [heads, ["---"] * 4 + ["---"] * setting + ["---:"] * len(table.columns)]
    for row in table.rows:
        cells = ["**ours**" if row.ours else "", row.method, row.backbone, row.data]
        cells += [row.setting] * setting
        cells += [_cell(row.cells.get(column), footnotes) for column in table.columns]
        lines.append(cells)
    yield "\n".join(f"| {' | '.join(map(_in_table, cells))} |" for cells in lines)
    if footnotes:
        yield "\n".join(f"{n}. {'; '.join(notes)}." for notes, n in footnotes.items())


def _head(column: Column, table: Table) -> str:
    alone = len({c.benchmark for c in table.columns}) == 1 and len(table.columns) > 1
    metric = metric_name(column.metric)
    return metric if alone else f"{column.benchmark}, {metric}"


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _cell(cell: Cell | None, footnotes: dict[tuple[str, ...], int]) -> str:
    if cell is None:
        return ""
    if cell.notes:
        return f"*{cell.number:.1f}* ({footnotes[cell.notes]})"
    return f"{cell.number:.1f}" if cell.run is None else f"**{cell.number:.1f}**"


def _run(number: int, run: Run, folder: Path) -> str:
    lines = [f"### {number}. {title(run)}", "", f"{trained(run)}; `{run.folder}`.", ""]
    lines.append("; ".join(f"{metric_name(k)} {v:.1f}" for k, v in run.results.items()) + ".")
    if notes := run.notes():
        lines += ["", f"Not a paper's protocol: {'; '.join(notes)}."]
    elif run.setup.recipe:
        lines += ["", f"As recipes/{run.setup.recipe}.yaml."]
    if changes := changes_of(run):
        lines += ["", "| Setting | Recipe | Here |", "|---|---|---|"]
        lines += [f"| `{n}` | {_in_table(a)} | {_in_table(b)} |" for n, a, b in changes]
    return "\n".join([*lines, *_pictures(run.pictures, folder)])


def _other(run: Other, folder: Path) -> str:
    head = f"### {run.title}\n\n`{run.folder}`."
    return "\n".join([head, *_pictures(run.pictures, folder)])


def _pictures(pictures: Sequence[Path], folder: Path) -> Iterator[str]:
    for picture in pictures[:PICTURES]:
        yield f"\n![{picture.stem}](<{relative(picture, folder)}>)"
    if len(pictures) > PICTURES:
        yield f"\n{count(len(pictures) - PICTURES, 'more picture')} in the run's folder."
