"""What an evaluation leaves behind: one JSON file in the run's folder, and one table."""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_vssl.backbones.weights import is_plain

RESULT = "result.json"

_ACROSS = 6  # numbers that fit beside each other in a terminal of 80 columns


def as_data(value: object) -> object:
    """Turns an argument into plain data that says what it was.

    Args:
        value: Numbers, strings, paths, sequences and mappings stay what they are. A dataclass
            becomes its fields beside its class, a module its settings, any other object the name
            of its class.

    Returns:
        What `json` can write.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): as_data(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_data(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: as_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, nn.Module):
        return _module_as_data(value)
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _module_as_data(module: nn.Module) -> dict[str, object]:
    """Class of a module, its settings, and small buffers: a normalisation's mean and deviation."""
    settings = {
        name: as_data(item)
        for name, item in vars(module).items()
        if not name.startswith("_") and name != "training" and is_plain(item)
    }
    small = {
        name: [round(number, 6) for number in buffer.flatten().tolist()]
        for name, buffer in module.named_buffers()
        if buffer.numel() <= 3 and torch.is_floating_point(buffer)
    }
    return {"class": type(module).__name__, **settings, **small}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file that is either whole or not there.

    Args:
        path: The file; its folder is made. A file that is there stays until the new one is
            complete.
        content: What to write; see `as_data`.

    Raises:
        OSError: If the file cannot be written, for instance on a full disk; names the file.
    """
    text = json.dumps(as_data(content), indent=2, ensure_ascii=False) + "\n"
    unfinished: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            unfinished = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                unfinished.unlink()
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}", str(path)) from error


def table(content: Mapping[str, object]) -> Table:
    """A row of our numbers, and below it the paper's where there are any.

    More than six numbers stand below each other, ours and the paper's side by side.

    Args:
        content: What `write_json` writes, with ``evaluation``, ``method``, ``results`` and
            ``paper``.

    Returns:
        The table, for rich to print.
    """
    results, paper = content["results"], content["paper"]
    if not isinstance(results, Mapping) or not isinstance(paper, Mapping):
        raise TypeError("results and paper must be mappings from a name to a number")
    made = Table(f"{content['evaluation']}, {content['split']}, %")
    names = [*results, *(name for name in paper if name not in results)]
    if len(names) > _ACROSS:
        made.add_column("")
        for numbers, head in ((results, str(content["method"])), (paper, "paper")):
            if numbers:
                made.add_column(head, justify="right")
        for name in names:
            made.add_row(name, *(_number(n, name) for n in (results, paper) if n))
        return made
    for name in names:
        made.add_column(name, justify="right")
    made.add_row(str(content["method"]), *(_number(results, name) for name in names))
    if paper:
        made.add_row("paper", *(_number(paper, name) for name in names))
    return made


def _number(numbers: Mapping[str, object], name: str) -> str:
    value = numbers.get(name)
    return f"{value:.1f}" if isinstance(value, int | float) else "-"


def show(content: Mapping[str, object]) -> None:
    """Prints the table."""
    Console().print(table(content))
