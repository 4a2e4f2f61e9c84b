"""The folder of one run: who may write to it, and what is written."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tacit.core.checkpoint import Checkpoint, CheckpointStore

logger = logging.getLogger("tacit")

LOCK, CONFIG = ".lock", "config.yaml"
FOLDERS = ("checkpoints", "tensorboard")  # of a run that has not begun


def finished_policy(run: str | Path, key: str) -> Path:
    """Where a finished run has its policy. Raises ValueError, naming the `key` of the recipe, for a run that has not ended."""
    if not (folder := Path(run) / "policy").is_dir():
        raise ValueError(f"{key}: {run} holds no finished run (there is no {folder}); train it first, or finish it with --resume")
    return folder


class RunDirectoryError(ValueError):
    """The folder cannot serve as the output of this run; why, and what to do, in one sentence."""


class RunDirectory:
    """An output folder, held exclusively until `close` or the death of the process, however it dies.

        config.yaml     what the run is
        metrics.jsonl   one JSON object per logged step
        samples.jsonl   completions to look at
        checkpoints/    see CheckpointStore

    As a context it leaves nothing that it made when an error ends it before the first step: what was wrong can be mended, and the same command
    given again. Raises RunDirectoryError when another process holds it, or when it holds an earlier run and `resume` is not set.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, keep: int = 2):
        self.path, self.resume = Path(path), resume
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]  # innermost first
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunDirectoryError(f"{self.path} cannot be an output folder: a file is in the way; choose another output") from error
        except OSError as error:
            raise RunDirectoryError(f"{self.path} cannot be an output folder: {error.strerror}; choose another output") from error
        try:
            self._fresh = self._refuse_what_is_there()
        except RunDirectoryError:
            self.close()
            raise
        self.checkpoints = CheckpointStore(self.path / FOLDERS[0], keep)
        self.metrics = JsonLines(self.path / "metrics.jsonl")
        self.samples = JsonLines(self.path / "samples.jsonl")

    def _refuse_what_is_there(self) -> bool:
        """Whether there is nothing."""
        content = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")}
        if content and CONFIG not in content:
            raise RunDirectoryError(f"{self.path} is not empty and holds no run of tacit (it has {min(content)}); choose another output")
        if content and not self.resume:
            raise RunDirectoryError(f"{self.path} already holds a run; continue it with --resume, or choose another output")
        return not content

    def restore(self) -> Checkpoint | None:
        """The newest whole checkpoint, the logs cut back to its step; None for a run that has to start from the beginning.

        Raises RunDirectoryError when there are checkpoints and none is whole: starting over would erase what the logs hold.
        """
        if not self.resume:
            return None
        checkpoint = self.checkpoints.latest()
        if checkpoint is None and self.checkpoints.steps():
            raise RunDirectoryError(f"{self.path} cannot be resumed: none of its checkpoints is whole; choose another output to start afresh")
        for log in (self.metrics, self.samples):
            log.cut(checkpoint.step if checkpoint else -1)
        return checkpoint

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml, in the order of the fields."""
        write_atomic(self.path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def write_json(self, name: str, content: Any) -> Path:
        """Writes `content` to the file `name`, whole or not at all. Non-finite numbers become null."""
        write_json(path := self.path / name, content)
        return path

    def close(self) -> None:
        """Gives the folder free. Closing twice is harmless."""
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception) and self._fresh and not self._begun():
            self._remove()
        self.close()

    def _begun(self) -> bool:
        """Whether a step was learnt from, or there is anything else to be kept: dumps, answers of an evaluation."""
        written = {entry.name for entry in self.path.iterdir()}
        return bool(written - set(self._logs) - set(FOLDERS)) or any(record["step"] > 0 for record in self.metrics.records())

    @property
    def _logs(self) -> tuple[str, ...]:
        return LOCK, CONFIG, self.metrics.path.name, self.samples.path.name

    def _remove(self) -> None:
        """What this run wrote, and the folders it made as far as nobody else has put anything into them."""
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in self._logs:
            (self.path / name).unlink(missing_ok=True)
        for folder in self._made:
            if any(folder.iterdir()):
                return
            folder.rmdir()


class JsonLines:
    """A log of JSON objects, one a line, each with the field `step`."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        """Adds one line, `step` first; it outlives the process at once. Append before the checkpoint of the same step is saved.

        Non-finite numbers become null; numpy and torch scalars become numbers.
        """
        line = json.dumps(_finite({"step": step, **record}), ensure_ascii=False) + "\n"
        with _explained(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def records(self) -> Iterator[dict[str, Any]]:
        """What was logged, oldest first. Lines that are no JSON object, such as a torn last one, are left out."""
        if self.path.exists():
            with open(self.path, encoding="utf-8", errors="replace") as file:
                yield from filter(None, map(_parsed, file))

    def cut(self, step: int) -> None:
        """Drops every line of a step later than `step`, and torn ones."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n") and (record := _parsed(line)) and record["step"] <= step]
        write_atomic(self.path, b"".join(whole))


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, whole or not at all. Non-finite numbers become null. Raises RunDirectoryError when it cannot be written."""
    write_atomic(path, json.dumps(_finite(content), indent=2) + "\n")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is there whole or as it was before. Raises RunDirectoryError when it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _explained(path):
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"{path} could not be written: {error.strerror}; what was written before is whole") from error


def _parsed(line: str | bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it: arrays and scalars of numpy and torch as numbers, NaN and infinities as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


# --- the lock ---

_held: set[int] = set()  # descriptors of the locks of this process, for the fork hook below


class Lock:
    """An exclusive flock, which the kernel releases when its owner dies. Processes forked from the owner do not hold on to it."""

    def __init__(self, folder: Path):
        self.descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, f"process {os.getpid()} (started {datetime.now():%Y-%m-%d %H:%M:%S})\n".encode(), 0)
        except BlockingIOError:
            owner = os.read(self.descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(self.descriptor)
            raise RunDirectoryError(f"{folder} is in use by {owner}; choose another output or stop it") from None
        except OSError:
            os.close(self.descriptor)
            raise
        _held.add(self.descriptor)

    def release(self) -> None:
        if self.descriptor in _held:
            _held.discard(self.descriptor)
            os.close(self.descriptor)


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)  # else a reward worker that survives its parent would keep the folder locked
