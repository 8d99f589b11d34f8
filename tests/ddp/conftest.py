from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ddp.pool import TwoProcesses


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ddp)


@pytest.fixture(scope="session")
def two_processes() -> Iterator[TwoProcesses]:
    """Calls a picklable function in two gloo processes: ``two_processes(fn, *args)``."""
    pool = TwoProcesses()
    yield pool
    pool.close()
