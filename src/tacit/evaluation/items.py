"""Items of an evaluation, what was answered, and the log that remembers it over interruptions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tacit.core.rollouts import Prompt

Key = tuple[str, str, int]  # task, id of the prompt, sample


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to ask for: the `sample`-th of the prompt at `ordinal` of a task's held-out set."""

    task: str
    ordinal: int
    sample: int
    prompt: Prompt

    @property
    def key(self) -> Key:
        return self.task, self.prompt.id, self.sample


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion, or in `error` the reason why there is none. `cached`: it cost nothing this time."""

    text: str = ""
    finished: bool = True
    tokens: int | None = None
    prompt_tokens: int | None = None
    cost: float | None = None
    cached: bool = False
    error: str = ""


class Stop(Protocol):
    def is_set(self) -> bool: ...


Take = Callable[[list[tuple[Item, Answer]]], None]


class Answerer(Protocol):
    """What is evaluated."""

    def answer(self, items: Sequence[Item], take: Take, stop: Stop) -> None:
        """Hands each item over to `take` as soon as it is answered; once `stop` is set, asks for no more and ends with what is under way."""
        ...


class ItemLog:
    """One JSON line an item, on the disk before the next is taken. A last line that was torn off is cut away when the log is opened.

    Raises ValueError when a line in the middle is damaged.
    """

    def __init__(self, path: Path):
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.records: dict[Key, dict[str, Any]] = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                self._remember(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: this is no item of an evaluation; remove the line, and the item is asked for again"
                ) from None
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as the log
        self._file.truncate(len(whole))

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self._file.flush()
        os.fsync(self._file.fileno())
        for record in records:
            self._remember(record)

    def close(self) -> None:
        self._file.close()

    def _remember(self, record: dict[str, Any]) -> None:
        self.records[record["task"], record["prompt"], record["sample"]] = record
