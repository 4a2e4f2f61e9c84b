"""Several processes for one job on this machine without torchrun: this process is the first, and starts the others with the same command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from tacit.core.processors import usable_processors

PATIENCE = 20.0  # seconds for the others to end after this one, and for this one after one of them has failed


class CompanionError(RuntimeError):
    """A process of the job failed while this one had no error of its own."""


@contextmanager
def companions(count: int, arguments: Sequence[str]) -> Iterator[None]:
    """While it is open this process is rank 0 of `count`; the others run `tacit` with these arguments.

    Nothing happens for a count of 1, nor where torchrun or another such context has given this process its rank. Threads are shared out.
    When one of the others fails, this process ends too: by its own error when it finds the connection gone, else at once.
    Raises CompanionError with what the other one said.
    """
    if count == 1 or "RANK" in os.environ:
        yield
        return
    threads = str(max(1, usable_processors() // count))
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    mine = {"OMP_NUM_THREADS": threads, **os.environ, **shared, "RANK": "0", "LOCAL_RANK": "0"}
    before = dict(os.environ)
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        others = [
            subprocess.Popen(
                [sys.executable, "-m", "tacit", *arguments],
                env=mine | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs, start=1)
        ]
        stack.callback(_stop, others)
        done = threading.Event()
        threading.Thread(target=_watch, args=(others, logs, done), daemon=True).start()
        os.environ.update(mine)
        try:
            yield
            failed = [i for i, other in enumerate(others) if other.wait(PATIENCE) != 0]
            if failed:
                raise CompanionError(_told(failed[0], others, logs))
        finally:
            done.set()
            os.environ.clear()
            os.environ.update(before)


def _watch(others: list[subprocess.Popen[bytes]], logs: Sequence[IO[bytes]], done: threading.Event) -> None:
    """Ends this process when another has failed and this one does not come back from waiting for it."""
    while not done.wait(0.5):
        failed = [i for i, other in enumerate(others) if other.poll() not in (None, 0)]
        if failed and not done.wait(PATIENCE):
            print(_told(failed[0], others, logs), file=sys.stderr, flush=True)
            os._exit(1)


def _told(index: int, others: list[subprocess.Popen[bytes]], logs: Sequence[IO[bytes]]) -> str:
    log = logs[index]
    log.seek(0)
    said = log.read().decode(errors="replace").strip()
    return f"process {index + 2} of {len(others) + 1} failed with exit code {others[index].returncode}" + (
        f"; it said: {said[-2000:]}" if said else ""
    )


def _stop(others: list[subprocess.Popen[bytes]]) -> None:
    for other in others:
        try:
            other.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
