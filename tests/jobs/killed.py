"""A job whose process is killed after its first shard, and that two processes finish.

The processes fork from a server that has imported the package, the one of `tests.ddp.pool`: a new
interpreter would take five seconds of processor time each.
"""

import os
import signal
import socket
import time
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

SECONDS = 200  # a job that takes longer hangs


def _run(words: list[str], environment: dict[str, str], slowly: bool) -> None:
    from lightning_vssl import cli
    from lightning_vssl.jobs.base import Job

    os.environ.update(environment)
    torch.set_num_threads(1)
    step = Job.predict_step

    def slow(job: Job, batch: object, batch_idx: int) -> object:
        time.sleep(1 if batch_idx > 3 else 0)  # one shard, and then time to kill it
        return step(job, batch, batch_idx)

    if slowly:
        Job.predict_step = slow
    cli.main(words)


def _started(
    words: list[str], environment: dict[str, str] | None = None, *, slowly: bool = False
) -> ForkServerProcess:
    context = get_context("forkserver")
    context.set_forkserver_preload(["lightning_vssl.run"])
    process = context.Process(target=_run, args=(words, environment or {}, slowly))
    process.start()
    return process


def one_is_killed(words: list[str], folder: Path) -> dict[Path, int]:
    """Kills a job as soon as a shard is there.

    Args:
        words: The command.
        folder: The run's folder.

    Returns:
        The shard's file and its inode, which another file of the same name would not have.
    """
    process = _started(words, slowly=True)
    until = time.monotonic() + SECONDS
    while not list(folder.glob("shards/*.parquet")) and time.monotonic() < until:
        if not process.is_alive():
            break
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before its first shard"
    before = {path: path.stat().st_ino for path in folder.glob("shards/0*.parquet")}
    assert len(before) == 1
    return before


def two_go_on(words: list[str]) -> None:
    """Runs a job on two processes, which are told what Lightning tells those that it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    words = [*words, "--trainer.devices=2", "--trainer.strategy=ddp"]
    ranks = [_started(words, {**meeting, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for process in ranks:
        process.join(SECONDS)
        process.kill()  # if it hangs
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
