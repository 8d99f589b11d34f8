"""What becomes of a cell: it runs, or one of the package's own checks refuses it."""

import traceback
from collections.abc import Callable
from pathlib import Path

import lightning_vssl
from tests.matrix.families import Family

PACKAGE = Path(lightning_vssl.__file__).parent


def refusal(run: Callable[[], object], family: Family) -> str | None:
    """Runs a cell.

    Args:
        run: The cell.
        family: Of the backbone, whose class is not named in the reason.

    Returns:
        None if it runs, else why the package refuses it.

    Raises:
        Exception: Whatever else goes wrong: an error of torch, or of the test.
    """
    try:
        run()
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        # Not an error of Python's own in a line of the package, such as zip's.
        said = (last.line or "").startswith("raise ValueError(")
        if not said or not Path(last.filename).is_relative_to(PACKAGE):
            raise
        kind = type(family.backbone("")).__name__
        return str(error).replace(kind, "this network")
    return None
