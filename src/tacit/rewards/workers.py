"""Workers: killable child processes for whatever may hang or crash, with a deadline that the parent owns.

    @isolated(deadline=2.0)
    def score(prompt, completion, answer): ...

Nothing here uses signals or alarms, so it works from any thread and inside asyncio. Children are fresh interpreters that share no memory, lock
or thread with the parent. Each call is sent once; it comes back as a value, or as the reason why there is none.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tacit.rewards.worker_main import receive, send

START_DEADLINE = 120.0  # seconds to start a worker, within which it imports the user's module
LARGEST_ANSWER = 2**20  # bytes
CLOSED = "the pool of workers was closed"
_OPEN: weakref.WeakSet[WorkerPool] = weakref.WeakSet()  # to be closed when the interpreter ends


@dataclass(frozen=True, slots=True)
class Answer:
    """`failure` says why there is no value; empty where there is one."""

    value: Any = None
    failure: str = ""


@dataclass(slots=True)
class PoolStats:
    """`started` counts workers, the replacements of dead ones among them; `busy` is the time in s during which some call waited for its answer."""

    answered: int = 0
    failed: int = 0
    started: int = 0
    busy: float = 0.0

    @property
    def per_second(self) -> float:
        return self.answered / self.busy if self.busy else 0.0


class WorkerPool:
    """Calls `function` in `workers` child processes, each call for at most `deadline` seconds. Workers start with the first call.

    `function` is one of a module's top level, or its name as file.py:name or package.module:name. `memory_mb` bounds what a worker may allocate.
    Raises ValueError for a function that a fresh interpreter could not find, and for settings out of range.
    """

    def __init__(self, function: Callable[..., Any] | str, *, deadline: float = 10.0, workers: int | None = None, memory_mb: int | None = 4096):
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if deadline <= 0 or workers < 1:
            raise ValueError(f"a pool needs a deadline above 0 and at least one worker, not deadline={deadline}, workers={workers}")
        self.spec = function if isinstance(function, str) else name_of(function)
        self.deadline, self.workers, self.memory_mb = deadline, workers, memory_mb
        self.stats = PoolStats()
        self._calls: queue.SimpleQueue[tuple[bytes, Future[Answer]] | None] = queue.SimpleQueue()
        self._running: dict[int, Worker] = {}  # by slot
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._pending, self._since, self._closed = 0, 0.0, False
        _OPEN.add(self)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Answer]:
        """The answer to one call, in time. Never raises because of what the function does."""
        future: Future[Answer] = Future()
        try:
            message = pickle.dumps((args, kwargs), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # noqa: BLE001 - pickle runs code of the arguments
            future.set_result(Answer(failure=f"its arguments cannot be sent to a worker: {type(error).__name__}: {error}"))
            return future
        with self._lock:
            if self._closed:
                future.set_result(Answer(failure=CLOSED))
                return future
            if self._pending == 0:
                self._since = time.perf_counter()
            self._pending += 1
            if not self._threads:
                self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in range(self.workers)]
                for thread in self._threads:
                    thread.start()
        self._calls.put((message, future))
        return future

    def map(self, calls: list[tuple[Any, ...]]) -> list[Answer]:
        """One answer for each tuple of arguments, in order."""
        return [future.result() for future in [self.submit(*call) for call in calls]]

    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        with self._lock:
            return [worker.process.pid for worker in self._running.values()]

    def close(self) -> None:
        """Kills every worker; what was waiting is answered with a failure. May be called twice."""
        with self._lock:
            self._closed = True
            for worker in self._running.values():
                worker.kill()
        for _ in self._threads:
            self._calls.put(None)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, slot: int) -> None:
        """A thread for each worker, which starts it, asks it, and replaces it. The kernel ties the worker's life to this thread's."""
        while (item := self._calls.get()) is not None:
            message, future = item
            answer = self._ask(slot, message)
            with self._lock:
                self._pending -= 1
                self.stats.answered += 1
                self.stats.failed += bool(answer.failure)
                now = time.perf_counter()
                self.stats.busy, self._since = self.stats.busy + now - self._since, now
            future.set_result(answer)
        self._drop(slot)

    def _ask(self, slot: int, message: bytes) -> Answer:
        if self._closed:
            return Answer(failure=CLOSED)
        worker = self._running.get(slot)
        try:
            if worker is None or worker.process.poll() is not None:
                self._drop(slot)
                worker = Worker()
                with self._lock:
                    self._running[slot] = worker
                    self.stats.started += 1
                    if self._closed:
                        worker.kill()
                worker.start(self.spec, self.memory_mb)
            found = json.loads(worker.ask(message, self.deadline))
            return Answer(found.get("value"), f"raised {found['failure']}" if "failure" in found else "")
        except (OSError, EOFError, OverflowError, ValueError, RecursionError) as error:
            reason = self._reason(slot, error)
            self._drop(slot)
            return Answer(failure=reason)

    def _reason(self, slot: int, error: Exception) -> str:
        if self._closed:
            return CLOSED
        if isinstance(error, TimeoutError):
            return f"timed out after {self.deadline:g} s"
        if isinstance(error, OSError | EOFError) and slot in self._running:
            return self._running[slot].end()
        return str(error)

    def _drop(self, slot: int) -> None:
        with self._lock:
            worker = self._running.pop(slot, None)
        if worker is not None:
            worker.kill()
            worker.process.wait()
            worker.channel.close()


class Worker:
    """One child process and the socket to it. It has a process group of its own, so that Ctrl-C reaches the parent alone."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from tacit.rewards.worker_main import main; main({theirs.fileno()}, {os.getpid()})"
        with theirs:
            command = [sys.executable, "-c", code]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)

    def start(self, spec: str, memory_mb: int | None) -> None:
        """Waits until the function is there. Raises ValueError with the worker's own sentence when it is not."""
        if told := self.ask(pickle.dumps((spec, memory_mb)), START_DEADLINE):
            raise ValueError(f"a worker could not start: {told.decode()}")

    def ask(self, message: bytes, deadline: float) -> bytes:
        """Raises TimeoutError, EOFError or another OSError when the worker died, OverflowError when it answers with too much."""
        end = time.monotonic() + deadline
        send(self.channel, message, end)
        return receive(self.channel, LARGEST_ANSWER, end)

    def kill(self) -> None:
        """Kills the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> str:
        """How it died, in words; it has closed its end of the socket, or is about to."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its connection"
        return f"the worker died (signal {-code})" if code < 0 else f"the worker died (exit code {code})"


class Isolated:
    """A function that runs in workers, wherever it is called from; `isolated` makes it. Its pool starts with the first call.

    Called as usual it returns the value, or raises RuntimeError with the reason why there is none. `submit` returns a future `Answer`.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        functools.update_wrapper(self, function)
        self._open = functools.partial(WorkerPool, name_of(function), **options)
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    @property
    def pool(self) -> WorkerPool:
        with self._lock:
            if self._pool is None:
                self._pool = self._open()
            return self._pool

    def submit(self, *args: Any, **kwargs: Any) -> Future[Answer]:
        return self.pool.submit(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.submit(*args, **kwargs).result()
        if answer.failure:
            raise RuntimeError(answer.failure)
        return answer.value


def isolated(function: Callable[..., Any] | None = None, *, deadline: float = 10.0, workers: int | None = None, memory_mb: int | None = 4096) -> Any:
    """Has a function run in killable workers: `isolated(function, deadline=2)`, or `@isolated(deadline=2)` above it. Raises as WorkerPool does."""
    if function is None:
        return functools.partial(isolated, deadline=deadline, workers=workers, memory_mb=memory_mb)
    return Isolated(function, deadline=deadline, workers=workers, memory_mb=memory_mb)


def name_of(function: Callable[..., Any]) -> str:
    """file.py:name or package.module:name, by which a fresh interpreter finds the function. Raises ValueError where it could not."""
    name, module = getattr(function, "__qualname__", ""), sys.modules.get(getattr(function, "__module__", None) or "")
    if not name.isidentifier() or module is None:
        said = name or type(function).__name__
        raise ValueError(f"{said!r} cannot run in a worker, which finds functions by name: define it with def at the top level of a file")
    if module.__name__ != "__main__" and PathFinder.find_spec(module.__name__.partition(".")[0]):
        return f"{module.__name__}:{name}"
    if not (path := getattr(module, "__file__", None)):
        raise ValueError(f"{name!r} cannot run in a worker, which has no file to load it from: write it to a .py file")
    return f"{Path(path).resolve()}:{name}"


@atexit.register
def close_all() -> None:
    """Closes every pool that is still open."""
    for pool in list(_OPEN):
        pool.close()
