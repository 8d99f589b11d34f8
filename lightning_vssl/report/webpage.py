"""The report as one page of HTML that needs nothing beside it."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
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
from lightning_vssl.report.tables import Cell, Row, Table

_STYLE = Path(__file__).with_name("style.css")
_WHOLE = 20  # letters of a name that is not broken: what fits beside the numbers on a phone
_EMBEDDED = 2_000_000  # bytes of a picture that goes into the page; a larger one is linked


def html(report: Report, folder: Path) -> str:
    """The report as one page: style inside, pictures inside up to 2 MB each, no request elsewhere.

    Args:
        report: What to tell.
        folder: Where it will lie: larger pictures are linked from there.
    """
    parts = ["<h1>Results</h1>", _p(report.summary), _p(EXPLAINED)]
    for paper, tables in groupby(report.tables, lambda table: table.paper):
        parts += [f"<h2>{escape(paper)}</h2>", _p(f"{CITED[paper]}.")]
        parts += [_table(table) for table in tables]
    parts += [_p(report.missing)] if report.missing else []
    parts.append("<h2>Runs</h2>")
    parts += [_run(number, run, folder) for number, run in enumerate(report.runs, 1)]
    if report.others:
        parts.append("<h2>Runs without a result</h2>")
        parts += [_other(run, folder) for run in report.others]
    body = "\n".join(parts)
    style = _STYLE.read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Results</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _p(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(table: Table) -> str:
    footnotes = footnotes_of(table)
    groups = [
        (name, len(list(found))) for name, found in groupby(c.benchmark for c in table.columns)
    ]
    upper = "".join(
        f'<th class="group" scope="colgroup" colspan="{span}">{_unbroken(name)}</th>'
        for name, span in groups
    )
    lower = "".join(
        f'<th scope="col">{_unbroken(metric_name(column.metric))}</th>' for column in table.columns
    )
    rows = "\n".join(_row(row, table.columns, footnotes) for row in table.rows)
    notes = "".join(f"<li>{escape('; '.join(reasons))}.</li>" for reasons in footnotes)
    upper = f'<th class="row" rowspan="2">Method</th>{upper}'
    return (
        f"<h3>{escape(f'{table.paper}, {table.name}: {table.about}')}</h3>\n"
        f'<div class="scroll"><table>\n<thead><tr>{upper}</tr>'
        f"<tr>{lower}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        + (f'\n<ol class="notes">{notes}</ol>' if notes else "")
    )


def _row(row: Row, columns: Iterable[Column], footnotes: dict[tuple[str, ...], int]) -> str:
    parts = [row.backbone, row.data, *row.setting.split("; ")]
    beneath = ", ".join(_unbroken(part) for part in parts if part)
    method = f"<b>ours:</b> {escape(row.method)}" if row.ours else escape(row.method)
    first = f'<td class="row">{method}<small>{beneath}</small></td>'
    cells = "".join(_cell(row.cells.get(column), footnotes) for column in columns)
    return f"<tr{' class=ours' * row.ours}>{first}{cells}</tr>"


def _unbroken(text: str) -> str:
    """A name that keeps to one line on a narrow screen, unless it is long."""
    name = escape(text)
    return f'<span class="whole">{name}</span>' if len(text) <= _WHOLE else name


def _cell(cell: Cell | None, footnotes: dict[tuple[str, ...], int]) -> str:
    if cell is None:
        return "<td></td>"
    if cell.run is None:
        return f"<td>{cell.number:.1f}</td>"
    kind, mark = "paper", ""
    if cell.notes:
        kind, mark = "noted", f"<sup>{footnotes[cell.notes]}</sup>"
    link = f'<a href="#run{cell.run + 1}">{cell.number:.1f}{mark}</a>'
    return f'<td class="{kind}">{link}</td>'


def _run(number: int, run: Run, folder: Path) -> str:
    results = "; ".join(f"{metric_name(k)} {v:.1f}" for k, v in run.results.items())
    parts = [
        f'<section class="run" id="run{number}"><h3>{number}. {escape(title(run))}</h3>',
        f"<p>{escape(trained(run))}<br><code>{escape(str(run.folder))}</code></p>",
        f"<p><b>{escape(results)}</b></p>",
    ]
    if notes := run.notes():
        said = escape(f"Not a paper's protocol: {'; '.join(notes)}.")
        parts.append(f'<p class="notes">{said}</p>')
    elif run.setup.recipe:
        parts.append(_p(f"As recipes/{run.setup.recipe}.yaml."))
    if changes := changes_of(run):
        parts.append(_changes(changes))
    return "\n".join([*parts, *_pictures(run.pictures, folder), "</section>"])


def _changes(changes: Sequence[tuple[str, str, str]]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(a)}</td><td>{escape(b)}</td></tr>"
        for name, a, b in changes
    )
    heads = "<tr><th>Setting</th><th>Recipe</th><th>Here</th></tr>"
    return (
        f"<details><summary>{count(len(changes), 'setting')} other than the recipe's</summary>"
        f'<div class="scroll"><table><thead>{heads}</thead><tbody>{lines}</tbody></table></div>'
        "</details>"
    )


def _other(run: Other, folder: Path) -> str:
    head = f'<section class="run"><h3>{escape(run.title)}</h3>'
    where = f"<p><code>{escape(str(run.folder))}</code></p>"
    return "\n".join([head, where, *_pictures(run.pictures, folder), "</section>"])


def _pictures(pictures: Sequence[Path], folder: Path) -> Iterator[str]:
    for picture in pictures[:PICTURES]:
        source = escape(relative(picture, folder))
        if picture.stat().st_size <= _EMBEDDED:
            content = base64.b64encode(picture.read_bytes()).decode("ascii")
            source = f"data:image/png;base64,{content}"
        name = escape(picture.stem.replace("_", " "))
        yield f'<figure><img src="{source}" alt="{name}"><figcaption>{name}</figcaption></figure>'
    if len(pictures) > PICTURES:
        yield _p(f"{count(len(pictures) - PICTURES, 'more picture')} in the run's folder.")
