"""Finite: a task over a fixed set of problems, some to train on and the others held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from tacit.core.rollouts import Prompt
from tacit.tasks.base import first, stream_order
from tacit.tasks.data import locate, read_jsonl

Item = TypeVar("Item")
Row = dict[str, Any]


class Finite:
    """A subclass gives `name` and `verify`, and `solve` where it knows a right completion.

    A problem that is held out word for word is not trained on. Every epoch over the training problems has an order of its own.
    """

    name: str

    def __init__(self, train: Sequence[Prompt], test: Sequence[Prompt]):
        held = {prompt.text for prompt in test}
        self.train, self.test = [prompt for prompt in train if prompt.text not in held], list(test)

    @property
    def alphabet(self) -> str:
        return "".join(sorted({c for p in [*self.train, *self.test] for c in p.text + (self.solve(p) or "")}))

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        if not self.train:
            raise ValueError(
                f"task {self.name!r} has nothing to train on, all its problems are held out: "
                "set task.options.heldout_share below 1 where it has that option, or give it other problems to train on"
            )
        return self.train[stream_order(ordinal, len(self.train), seed)]

    def heldout(self, count: int) -> list[Prompt]:
        return first(self.test, count, self.name)

    def solve(self, prompt: Prompt) -> str | None:
        return None

    def verify(self, prompt: Prompt, completion: str) -> float | dict[str, float] | None:
        """No verdict here: the task names its default reward as `reward`."""
        return None

    def baselines(self) -> dict[str, float]:
        return {}


def load(path: str | None, default: str, read: Callable[[Row, Path, int], Prompt]) -> list[Prompt]:
    """A prompt from each row of the file `path`, or of $TACIT_DATA/`default`; `read` gets the row, the file and the line. Raises DataError."""
    source = Path(path) if path else locate(default)
    return [read(row, source, line) for line, row in read_jsonl(source)]


def split(items: Sequence[Item], share: float, key: Callable[[Item], str]) -> tuple[list[Item], list[Item]]:
    """(to train on, held out): about `share` of the items are held out, by a hash of their keys, so that a split lasts whatever the order.

    Raises ValueError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"heldout_share must lie above 0 and at most at 1, not at {share}")
    held = [int.from_bytes(blake2b(key(item).encode(), digest_size=8).digest()) < share * 2**64 for item in items]
    return [item for item, out in zip(items, held, strict=True) if not out], [item for item, out in zip(items, held, strict=True) if out]
