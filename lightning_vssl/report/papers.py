"""The papers' tables as data: every number that an evaluation of this library can stand beside."""

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

CITED = {
    "CtP": "Wang et al., Unsupervised Visual Representation Learning by Tracking Patches in Video, "
    "CVPR 2021",
    "PreViTS": "Chen et al., PreViTS: Contrastive Pretraining with Video Tracking Supervision, "
    "WACV 2023",
    "ConST-CL": "Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with "
    "Self-Supervision, CVPR 2022",
    "VITO": "Parthasarathy et al., Self-supervised Video Pretraining Yields Robust and More "
    "Human-Aligned Visual Representations, NeurIPS 2023",
}
"""The papers, by the name under which ``papers.csv`` lists their numbers."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        benchmark: Its data and, where needed, what is done with them.
        metric: Name of the number, as in ``results`` of result.json.
    """

    benchmark: str
    metric: str


@dataclass(frozen=True)
class Number:
    """One number of a paper.

    Attributes:
        paper: Key of `CITED`.
        table: The table as the paper counts it.
        method: What was pretrained; ``none`` for a network from scratch.
        backbone: The network; empty where the paper does not say.
        data: What it was pretrained on; empty where the paper does not say.
        setting: What an ablation varies: ``name=value`` as in the recipe of the pretraining, the
            parts separated by semicolons, or words where no value says it.
        column: Where it stands.
        recipe: The evaluation's recipe, such as ``eval/davis``, without suffix.
        where: What must hold in the protocol beside it, for instance ``box_source``.
        number: In percent.
    """

    paper: str
    table: str
    method: str
    backbone: str
    data: str
    setting: str
    column: Column
    recipe: str
    where: tuple[tuple[str, str], ...]
    number: float


@functools.cache
def numbers() -> tuple[Number, ...]:
    """All of ``papers.csv``, table by table, row by row as in the papers.

    Shares that a paper gives from 0 to 1 (PreViTS, Table 6) stand in percent, like our results.
    """
    return tuple(map(_number, _rows("papers.csv")))


def _rows(name: str) -> list[dict[str, str]]:
    with (_FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(row: dict[str, str]) -> Number:
    recipe, *conditions = row["recipe"].split()
    where = tuple((name, value) for name, _, value in (c.partition("=") for c in conditions))
    return Number(
        paper=row["paper"],
        table=row["table"],
        method=row["method"],
        backbone=row["backbone"],
        data=row["data"],
        setting=row["setting"],
        column=Column(row["benchmark"], row["metric"]),
        recipe=recipe,
        where=where,
        number=float(row["number"]),
    )


def tables() -> Iterator[tuple[str, str, str, list[Number]]]:
    """The tables in the order of the papers.

    Yields:
        Paper, table, what it compares, and its numbers.
    """
    about = {(row["paper"], row["table"]): row["about"] for row in _rows("tables.csv")}
    for (paper, table), found in groupby(numbers(), attrgetter("paper", "table")):
        yield paper, table, about[paper, table], list(found)
