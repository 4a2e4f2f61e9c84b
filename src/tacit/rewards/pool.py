"""A pool of child processes that may be killed at any time: one thread and one socket for each, and deadlines that the parent keeps.

Used from any thread and inside asyncio. A message is sent once; it comes back as a value, or as the reason why there is none.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tacit.core.processors import usable_processors
from tacit.rewards.channel import receive, send

LARGEST_ANSWER = 2**20  # bytes
CLOSED = "the pool of workers was closed"
_OPEN: weakref.WeakSet[Pool] = weakref.WeakSet()  # to be closed when the interpreter ends


@dataclass(frozen=True, slots=True)
class Answer:
    """`failure` says why there is no value; empty where there is one."""

    value: Any = None
    failure: str = ""


@dataclass(slots=True)
class PoolStats:
    """`started` counts workers, the replacements of dead ones among them; `busy` is the time in s during which some message waited for its answer."""

    answered: int = 0
    failed: int = 0
    started: int = 0
    busy: float = 0.0

    @property
    def per_second(self) -> float:
        return self.answered / self.busy if self.busy else 0.0


class Worker:
    """One child process and the socket to it: `command` is a Python interpreter's, without the number of its end of the socket, which follows.

    It has a session of its own, so that Ctrl-C reaches the parent alone and a kill reaches what the worker has started.
    """

    def __init__(self, command: Sequence[str], *, cwd: str | None = None, env: Mapping[str, str] | None = None):
        self.channel, theirs = socket.socketpair()
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": cwd, "env": env, "start_new_session": True}
        with theirs:
            self.process = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], **options)

    def start(self) -> None:
        """Waits until it is ready. Raises ValueError with a sentence when it will not be."""

    def ask(self, messages: Sequence[bytes], deadline: float) -> bytes:
        """Sends all messages and returns the one answer. Raises TimeoutError; EOFError or another OSError when the worker died; OverflowError when
        it answers with too much.
        """
        end = time.monotonic() + deadline
        for message in messages:
            send(self.channel, message, end)
        return receive(self.channel, LARGEST_ANSWER, end)

    def kill(self) -> None:
        """Kills the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def remove(self) -> None:
        """Kills it and leaves nothing behind."""
        self.kill()
        self.process.wait()
        self.channel.close()

    def end(self) -> str:
        """How it died, in words; it has closed its end of the socket, or is about to."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its connection"
        return f"the worker died (signal {-code})" if code < 0 else f"the worker died (exit code {code})"


class Pool:
    """Hands messages to `workers` processes, each for at most `deadline` seconds; `hire` opens one. They start with the first message.

    Raises ValueError for settings out of range.
    """

    def __init__(self, hire: Callable[[int], Worker], *, deadline: float, workers: int | None = None):
        workers = min(8, usable_processors()) if workers is None else workers
        if deadline <= 0 or workers < 1:
            raise ValueError(f"a pool needs a deadline above 0 and at least one worker, not deadline={deadline}, workers={workers}")
        self.hire, self.deadline, self.workers = hire, deadline, workers
        self.stats = PoolStats()
        self._messages: queue.SimpleQueue[tuple[Sequence[bytes], Future[Answer]] | None] = queue.SimpleQueue()
        self._running: dict[int, Worker] = {}  # by slot
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._pending, self._since, self._closed = 0, 0.0, False
        _OPEN.add(self)

    def put(self, *messages: bytes) -> Future[Answer]:
        """The answer to one call, in time: to messages that a worker gets together."""
        future: Future[Answer] = Future()
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
        self._messages.put((messages, future))
        return future

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
            self._messages.put(None)

    def _serve(self, slot: int) -> None:
        """A thread for each worker, which starts it, asks it, and replaces it. The kernel ties the worker's life to this thread's."""
        while (item := self._messages.get()) is not None:
            messages, future = item
            answer = self._ask(slot, messages)
            with self._lock:
                self._pending -= 1
                self.stats.answered += 1
                self.stats.failed += bool(answer.failure)
                now = time.perf_counter()
                self.stats.busy, self._since = self.stats.busy + now - self._since, now
            future.set_result(answer)
        self._drop(slot)

    def _ask(self, slot: int, messages: Sequence[bytes]) -> Answer:
        if self._closed:
            return Answer(failure=CLOSED)
        worker = self._running.get(slot)
        try:
            if worker is None or worker.process.poll() is not None:
                self._drop(slot)
                worker = self._start(slot)
            found = json.loads(worker.ask(messages, self.deadline))
            return Answer(found.get("value"), f"raised {found['failure']}" if "failure" in found else "")
        except (OSError, EOFError, OverflowError, ValueError, RecursionError) as error:
            reason = self._reason(slot, error)
            self._drop(slot)
            return Answer(failure=reason)

    def _start(self, slot: int) -> Worker:
        worker = self.hire(slot)
        with self._lock:
            self._running[slot] = worker
            self.stats.started += 1
            if self._closed:
                worker.kill()
        worker.start()
        return worker

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
            worker.remove()


@atexit.register
def close_all() -> None:
    """Closes every pool that is still open."""
    for pool in list(_OPEN):
        pool.close()
