"""What curation kept: counts per class, and a picture of how even they are."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

REASONS = ("title", "unreadable", "short", "class")
"""Why a video may be rejected, in the order in which it is asked."""

Counts = dict[str, npt.NDArray[np.int64]]


def counts(table: pa.Table, classes: Sequence[str]) -> Counts:
    """Counts videos per class.

    Args:
        table: Columns ``class``, ``kept`` and ``reason``.
        classes: All classes, C of them.

    Returns:
        ``candidates``, ``kept`` and each of `REASONS`: (C,) int64.
    """
    labels = pc.index_in(table.column("class"), pa.array(classes)).to_numpy()
    reasons = pc.index_in(table.column("reason"), pa.array(["", *REASONS])).to_numpy()
    grid = np.zeros((len(REASONS) + 1, len(classes)), np.int64)
    np.add.at(grid, (reasons, labels), 1)
    named = dict(zip(("kept", *REASONS), grid, strict=True))
    return {"candidates": grid.sum(axis=0), **named}


def count_lines(found: Counts, classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """The counts as lines of a CSV file with a header, one class a line.

    Args:
        found: What `counts` gave.
        classes: Identifier of each class.
        names: What each is called; no comma.
    """
    lines = [",".join(("class", "name", *found))]
    for label, (name, title) in enumerate(zip(classes, names, strict=True)):
        numbers = [str(column[label]) for column in found.values()]
        lines.append(",".join((_quoted(name), _quoted(title), *numbers)))
    return lines


def evenness(kept: npt.NDArray[np.int64]) -> float:
    """How even classes are: entropy of their shares over its largest value, in [0, 1].

    Args:
        kept: Videos of each class, (C,). One class alone, or no video at all, counts as 0.
    """
    total = kept.sum()
    if total == 0 or len(kept) < 2:
        return 0.0
    shares = kept[kept > 0] / total
    return float(max(0.0, -(shares * np.log(shares)).sum()) / np.log(len(kept)))


def balance_picture(found: Counts) -> bytes:
    """Draws candidates and kept videos of each class, most first, and the reasons of the rest.

    Args:
        found: What `counts` gave.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    kept, candidates = found["kept"], found["candidates"]
    order = np.argsort(-kept, kind="stable")
    places = np.arange(1, len(kept) + 1)
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    left.fill_between(places, candidates[order], step="mid", color="0.85", label="candidates")
    left.step(places, kept[order], where="mid", color="C0", label="kept")
    left.axhline(kept.mean(), color="C1", linestyle="--", label="mean of those kept")
    left.set(xlabel="class, most kept first", ylabel="videos", xlim=(0.5, len(kept) + 0.5))
    left.set_ylim(0)
    left.legend()
    empty = int((kept == 0).sum())
    left.set_title(
        f"{kept.sum()} of {candidates.sum()} videos kept; evenness {evenness(kept):.3f}; "
        f"{empty} of {len(kept)} classes empty"
    )
    names = ("kept", *REASONS)
    bars = right.barh(names, [int(found[name].sum()) for name in names], color="C0")
    right.bar_label(bars)
    right.invert_yaxis()
    right.margins(x=0.25)
    right.set(xlabel="videos", title="kept, or why not")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _quoted(text: str) -> str:
    if not set(text) & set(',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'
