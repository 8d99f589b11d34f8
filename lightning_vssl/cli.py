"""The command `lightning-vssl`.

`fit`, `validate`, `test` and `predict` are Lightning's (`lightning_vssl.run`); the others are typed
functions. Lightning is imported only by the commands that need it.
"""

import errno
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

DEBUG = "LIGHTNING_VSSL_DEBUG"
TOOLS = ("export", "demo", "report", "efficiency")
"""Commands beside Lightning's."""
_OVERVIEW = """\
usage: lightning-vssl <command> [options]

Self-supervised learning from video.

commands:
  fit         trains a method, or an evaluation that learns
  validate    measures an evaluation on the validation split
  test        measures an evaluation and writes result.json
  predict     runs a job over all videos, such as recipes/jobs/transcode.yaml
  export      writes the backbone of a checkpoint as plain weights
  demo        draws the built-in videos, in the layout of a data set
  report      sets all results beside the papers' tables
  efficiency  fine-tunes with 1 to 100 % of the labels and draws the curve

  lightning-vssl fit --config recipes/quickstart.yaml    to begin with
  lightning-vssl fit --help                              the options of a command
  lightning-vssl fit --model.help CtP                    the arguments of a class
  lightning-vssl --version
"""
_MEDIA_ERRORS = ("UnreadableVideo", "TooManyUnreadable", "UnreadableFrame")
_WORKER_ERRORS = (*_MEDIA_ERRORS, "ValueError", "FileNotFoundError", "OSError")


def main(args: "ArgsType" = None) -> None:
    """Runs one command.

    Args:
        args: What would stand behind `lightning-vssl` on the command line; None takes it from
            there. A dict or a jsonargparse Namespace is a parsed configuration, as in LightningCLI.

    Raises:
        SystemExit: After an overview of the commands; after an error that the user can mend: one
            line on stderr, without a traceback unless the variable LIGHTNING_VSSL_DEBUG is 1.
    """
    arguments = sys.argv[1:] if args is None else args
    if isinstance(arguments, list) and (not arguments or arguments[0] in ("-h", "--help")):
        print(_OVERVIEW, end="", file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    try:
        if isinstance(arguments, list) and arguments and arguments[0] in TOOLS:
            _tool(arguments[0], arguments[1:])
        else:
            from lightning_vssl.run import RunCLI

            RunCLI(located(arguments) if isinstance(arguments, list) else arguments)
    except Exception as error:
        message = _plain(error)
        if message is None or os.environ.get(DEBUG) == "1":
            raise
        sys.exit(f"lightning-vssl: error: {message}\n({DEBUG}=1 shows where it was raised)")


def _tool(name: str, arguments: list[str]) -> None:
    from jsonargparse import auto_cli

    if name == "export":
        from lightning_vssl.backbones.weights import export_command

        auto_cli(export_command, args=arguments, prog="lightning-vssl export", as_positional=True)
    elif name == "report":
        from lightning_vssl.report import report_command

        report_command(arguments)
    elif name == "efficiency":
        from lightning_vssl.efficiency import efficiency_command

        efficiency_command(arguments)
    else:
        from lightning_vssl.data.synthetic import demo

        auto_cli(demo, args=arguments, prog="lightning-vssl demo", as_positional=False)


def _plain(error: Exception) -> str | None:
    """Says what the user can mend, or None for anything else.

    That is: a ValueError, an OSError or unreadable videos or frames raised by this package's own
    code, here or in a worker that reads them; an argument that a constructor refused; and a full
    disk whoever met it.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" {error.filename}" if error.filename else ""
        return f"no space left on the disk while writing{where}; free some and run again"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    if module.startswith("jsonargparse.") and isinstance(error, ValueError):
        from lightning_vssl.run import short

        return short(str(error))
    if module.startswith("torch."):
        return _in_worker(str(error))
    known = isinstance(error, ValueError | OSError) or type(error).__name__ in _MEDIA_ERRORS
    return str(error) if known and module.startswith("lightning_vssl.") else None


def _in_worker(text: str) -> str | None:
    """Takes the message of an error of this package out of the traceback of a worker process."""
    found = re.match(r"Caught (\w+) in DataLoader worker process", text)
    frames = re.findall(r'^  File "([^"]*)", line', text, re.MULTILINE)
    ours = bool(frames) and "lightning_vssl" in Path(frames[-1]).parts
    if found is None or found.group(1) not in _WORKER_ERRORS or not ours:
        return None
    return re.split(rf"^(?:[\w.]+\.)?{found.group(1)}: ", text, flags=re.MULTILINE)[-1].strip()


def packaged_recipes() -> Path:
    """The recipes that came with the package.

    Returns:
        `lightning_vssl/recipes` of an installed wheel; beside the package in a source tree.
    """
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def located(arguments: list[str]) -> list[str]:
    """Replaces each `--config recipes/...` that is no local file by the packaged recipe.

    Args:
        arguments: The command line behind `lightning-vssl`.

    Returns:
        The same command line; a local file always wins.

    Raises:
        FileNotFoundError: If a configuration is neither a local file nor a packaged recipe.
    """
    found = list(arguments)
    for i, word in enumerate(found):
        if i > 0 and found[i - 1] in ("-c", "--config"):
            found[i] = _recipe(word)
        elif word.startswith("--config="):
            found[i] = "--config=" + _recipe(word.removeprefix("--config="))
    return found


def _recipe(name: str) -> str:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or path.is_file():
        return name  # jsonargparse also takes a configuration written out as a string
    folder = packaged_recipes()
    packaged = folder.joinpath(*path.parts[1:]) if path.parts[0] == "recipes" else None
    if packaged is not None and packaged.is_file():
        return str(packaged)
    known = sorted(f"recipes/{file.relative_to(folder)}" for file in folder.rglob("*.yaml"))
    close = get_close_matches(name, known, n=1)
    raise FileNotFoundError(
        f"--config {name}: no such file here, and no such recipe in the package"
        + (f"; did you mean {close[0]}?" if close else f", which has {', '.join(known)}")
    )
