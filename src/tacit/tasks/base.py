"""Task: an endless deterministic stream of prompts, a fixed held-out set apart from it, and a verifier."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tacit.config import TaskConfig
from tacit.core.imports import is_own_part, load_object
from tacit.core.options import checked
from tacit.core.rollouts import Prompt
from tacit.tasks.tables import FILE_ENDINGS, HUB

Item = TypeVar("Item")
BUILT_IN = {
    "sorting": "tacit.tasks.sorting:Sorting",
    "reversal": "tacit.tasks.reversal:Reversal",
    "brackets": "tacit.tasks.brackets:Brackets",
    "addition": "tacit.tasks.addition:Addition",
    "addition_scratchpad": "tacit.tasks.addition:ScratchpadAddition",
    "multiplication_scratchpad": "tacit.tasks.multiplication:ScratchpadMultiplication",
    "countdown": "tacit.tasks.countdown:Countdown",
    "string_edits": "tacit.tasks.string_edits:StringEdits",
    "stack_machine": "tacit.tasks.stack_machine:StackMachine",
    "list_programs": "tacit.tasks.list_programs:ListPrograms",
    "short_programs": "tacit.tasks.short_programs:ShortPrograms",
    "postfix_programs": "tacit.tasks.postfix_programs:PostfixPrograms",
    "gsm8k_steps": "tacit.tasks.gsm8k_steps:Gsm8kSteps",
    "gsm8k": "tacit.tasks.gsm8k:Gsm8k",
    "math500": "tacit.tasks.math500:Math500",
    "svamp": "tacit.tasks.svamp:Svamp",
    "aqua": "tacit.tasks.aqua:Aqua",
    "mbpp": "tacit.tasks.python_problems:Mbpp",
    "humaneval": "tacit.tasks.python_problems:HumanEval",
    "ifeval": "tacit.tasks.ifeval:IfEval",
    "reasoning_gym": "tacit.tasks.gym:ReasoningGym",
}
RECORDS = "tacit.tasks.records:Records"
HUB_RECORDS = "tacit.tasks.records:HubRecords"


@runtime_checkable
class Task(Protocol):
    """What training, evaluation and the demo need to know of a task. Everything here is a pure function of its arguments.

    Where prompts differ in difficulty, `info["difficulty"]` names the bin, for evaluation by difficulty. A task whose verdict takes a worker or a
    sandbox has an attribute `reward` besides, the dotted name of its default reward, and a `verify` that returns None.
    """

    name: str
    alphabet: str  # every character of prompts and answers: the vocabulary of a tiny model

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        """The prompt at a place of the endless stream: the data cursor of a run is this one integer."""
        ...

    def heldout(self, count: int) -> list[Prompt]:
        """The first `count` prompts of a fixed held-out set, disjoint from every stream. Raises ValueError when it has fewer."""
        ...

    def solve(self, prompt: Prompt) -> str | None:
        """A right completion without its end-of-sequence token, for supervised training; None when the task knows none."""
        ...

    def verify(self, prompt: Prompt, completion: str) -> float | dict[str, float] | None:
        """The default reward of a completion: one number, or named parts (see rewards.base); None when it cannot be judged."""
        ...

    def baselines(self) -> dict[str, float]:
        """Held-out accuracy of simple rules that a learner must beat, by name; may be empty."""
        ...


def stream_order(ordinal: int, size: int, seed: int) -> int:
    """Which of `size` items stands at `ordinal` of the endless stream: every epoch of `size` ordinals is a permutation of its own."""
    if ordinal < 0:
        raise ValueError(f"a stream has no ordinal {ordinal}: it starts at 0")
    epoch, place = divmod(ordinal, size)
    return int(_permutation(size, seed, epoch)[place])


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=(seed, epoch))).permutation(size)


def first(prompts: list[Item], count: int, name: str) -> list[Item]:
    """The first `count` held-out prompts. Raises ValueError when there are fewer."""
    if count > len(prompts):
        raise ValueError(f"task {name!r} has {len(prompts)} held-out prompts, {count} were asked for: lower evaluation.prompts to {len(prompts)}")
    return prompts[:count]


def resolve_task(config: TaskConfig) -> Task:
    """The task of a recipe: a built-in name, a file of JSON lines or Parquet, `hub:owner/name`, or the user's own `file.py:Class`.

    Raises ValueError in one sentence: unknown name, unknown or missing option, a class that is not a task.
    """
    name, options = config.name, dict(config.options)
    if name.endswith(FILE_ENDINGS):
        return _build(_class_at(RECORDS), name, {"path": name, "columns": config.columns, **options})
    if name.startswith(HUB):
        return _build(_class_at(HUB_RECORDS), name, {"path": name.removeprefix(HUB), "columns": config.columns, **options})
    if config.columns:
        raise ValueError(f"task.columns maps the columns of a file or a hub data set, and task {name!r} is none: remove it")
    if name in BUILT_IN:
        return _build(_class_at(BUILT_IN[name]), name, options)
    if is_own_part(name):
        return _build(load_object(name, "task"), name, options)
    near = get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"unknown task {name!r}: {hint}choose one of {', '.join(BUILT_IN)}, a .jsonl or .parquet file, hub:owner/name, or your own as file.py:Class"
    )


def _class_at(spec: str) -> Any:
    module, name = spec.split(":")
    return getattr(import_module(module), name)


def _build(cls: Any, name: str, options: Mapping[str, Any]) -> Task:
    """`cls(**options)`, the options checked against its signature first."""
    if not callable(cls):
        raise ValueError(f"task {name!r} is a {type(cls).__name__}, expected a class or a function that returns a task")
    task: Any = cls(**checked(cls, f"task {name!r}", options, hidden=("path", "columns")))
    missing = [m for m in ("name", "alphabet", "prompt_at", "heldout", "solve", "verify", "baselines") if not hasattr(task, m)]
    if missing:
        raise ValueError(f"task {name!r} lacks {', '.join(missing)}: see tacit.tasks.base.Task for what a task has")
    return task
