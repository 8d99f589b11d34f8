"""The command `lightning-vssl report`: what was run, beside the papers' tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_vssl.data.atomic import whole_file
from lightning_vssl.report.content import Report
from lightning_vssl.report.markdown import markdown
from lightning_vssl.report.read import find
from lightning_vssl.report.tables import filled
from lightning_vssl.report.webpage import html

__all__ = ["report", "report_command"]


def report(folders: Sequence[Path], out: Path = Path("report"), every: bool = False) -> list[Path]:
    """Tabulates what was run beside what the papers say, as Markdown and as one page of HTML.

    Args:
        folders: Folders of runs, or folders above them, such as ``runs``.
        out: Path of the two files without suffix; files that are there are replaced.
        every: Whether to print the papers' tables of which nothing was run, too.

    Returns:
        The two files.

    Raises:
        FileNotFoundError: If a folder is not there.
        ValueError: If a folder holds no run, or a file in it cannot be read.
        OSError: If the files cannot be written.
    """
    runs, others = find(folders)
    tables = filled(runs)
    shown = [table for table in tables if every or table.ours]
    left_out = [table for table in tables if not (every or table.ours)]
    told = Report(shown, left_out, runs, others)
    written = []
    for suffix, make in ((".md", markdown), (".html", html)):
        file = out.with_name(out.name + suffix)
        with whole_file(file) as unfinished:
            unfinished.write_text(make(told, file.parent), encoding="utf-8")
        written.append(file)
    print(told.summary)
    for file in written:
        print(file)
    return written


def report_command(arguments: Sequence[str]) -> None:
    """Runs `report` from a command line.

    Args:
        arguments: What stands behind `lightning-vssl report`.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-vssl report",
        description="Tabulates what was run beside what the papers say, in Markdown and in HTML.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders of runs, or folders above"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="the two files without suffix [report]"
    )
    parser.add_argument(
        "--every", action="store_true", help="also the papers' tables of which nothing was run"
    )
    given = parser.parse_args(arguments)
    report(given.folders, given.out, given.every)
