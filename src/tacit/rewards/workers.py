"""Workers: killable child processes for whatever may hang or crash, with a deadline that the parent owns.

    @isolated(deadline=2.0)
    def score(prompt, completion, answer): ...

Nothing here uses signals or alarms, so it works from any thread and inside asyncio. Children are fresh interpreters that share no memory, lock
or thread with the parent. Each call is sent once; it comes back as a value, or as the reason why there is none.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tacit.rewards.pool import Answer, Pool, Worker

START_DEADLINE = 120.0  # seconds to start a worker, within which it imports the user's module


class WorkerPool(Pool):
    """Calls `function` in `workers` child processes, each call for at most `deadline` seconds. Workers start with the first call.

    `function` is one of a module's top level, or its name as file.py:name or package.module:name. `memory_mb` bounds what a worker may allocate.
    Raises ValueError for a function that a fresh interpreter could not find, and for settings out of range.
    """

    def __init__(self, function: Callable[..., Any] | str, *, deadline: float = 10.0, workers: int | None = None, memory_mb: int | None = 4096):
        spec = function if isinstance(function, str) else name_of(function)
        super().__init__(lambda slot: FunctionWorker(spec, memory_mb), deadline=deadline, workers=workers)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Answer]:
        """The answer to one call, in time. Never raises because of what the function does."""
        try:
            return self.put(pickle.dumps((args, kwargs), protocol=pickle.HIGHEST_PROTOCOL))
        except Exception as error:  # noqa: BLE001 - pickle runs code of the arguments
            future: Future[Answer] = Future()
            future.set_result(Answer(failure=f"its arguments cannot be sent to a worker: {type(error).__name__}: {error}"))
            return future

    def map(self, calls: list[tuple[Any, ...]]) -> list[Answer]:
        """One answer for each tuple of arguments, in order."""
        return [future.result() for future in [self.submit(*call) for call in calls]]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FunctionWorker(Worker):
    """Has one function and calls it; worker_main.py is its side."""

    def __init__(self, spec: str, memory_mb: int | None):
        self.first = pickle.dumps((spec, memory_mb))
        code = f"import sys; sys.path[:] = {sys.path!r}; from tacit.rewards.worker_main import main; main(int(sys.argv[1]), {os.getpid()})"
        super().__init__([sys.executable, "-c", code])

    def start(self) -> None:
        try:
            told = self.ask([self.first], START_DEADLINE).decode()
        except TimeoutError:
            told = f"its module is not imported after {START_DEADLINE:g} s"
        if told:
            raise ValueError(f"a worker could not start: {told}")


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
