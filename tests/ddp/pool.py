"""Two gloo processes that live as long as the test session and run what tests send them."""

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

SECONDS = 120  # a test that takes longer hangs


def _serve(rank: int, store: str, connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SECONDS),
    )
    connection.send_bytes(b"")
    while job := connection.recv_bytes():
        try:
            function, args = pickle.loads(job)
            torch.manual_seed(rank)  # as conftest.py does in the test's own process
            answer = (True, function(*args))
        except BaseException:  # reported to the test, whatever it is
            answer = (False, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


class TwoProcesses:
    """Calls a function in two processes at once and returns [result of rank 0, of rank 1].

    The function is pickled by name: define it at the top of a test module. A failure on either rank
    raises AssertionError here, with the traceback from there; the processes are then replaced.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="two_processes_")
        self._starts = 0
        self._connections: list[Connection] = []
        self._processes = []

    def _start(self) -> None:
        context = get_context("forkserver")  # what is imported once serves both, and a new pair
        context.set_forkserver_preload(["lightning_vssl.run"])
        self._starts += 1
        store = str(Path(self._folder.name) / f"store{self._starts}")
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, there), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv_bytes()

    def __call__(self, function: Callable[..., object], *args: object) -> list[object]:
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send_bytes(pickle.dumps((function, args)))
        until = time.monotonic() + SECONDS
        results: dict[int, object] = {}
        while len(results) < 2:
            for rank, connection in enumerate(self._connections):
                if rank in results or not connection.poll(0.002):
                    continue
                good, result = pickle.loads(connection.recv_bytes())
                if not good:
                    self._kill()
                    raise AssertionError(f"rank {rank} failed:\n{result}")
                results[rank] = result
            if time.monotonic() > until:
                self._kill()
                raise AssertionError(f"no answer within {SECONDS} s; answered: {list(results)}")
        return [results[0], results[1]]

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._connections, self._processes = [], []

    def close(self) -> None:
        for connection in self._connections:
            connection.send_bytes(b"")
        for process in self._processes:
            process.join(timeout=10)
        self._kill()
        self._folder.cleanup()
