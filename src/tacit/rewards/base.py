"""Rewards: what a completion is worth, or that nobody can say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tacit.core.imports import load_object
from tacit.core.rollouts import Prompt

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Score:
    """`value` None means unscored, and `failure` says why; `parts` are logged one by one."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


class RewardFunction(Protocol):
    """One score per completion, in order."""

    def __call__(self, prompts: list[Prompt], completions: list[str], /) -> list[Score]: ...


class JudgedTask(Protocol):
    """The part of a task that rewards need: its own verdict, and a prompt to see what the user's function can be given."""

    def prompt_at(self, ordinal: int, seed: int) -> Prompt: ...
    def verify(self, prompt: Prompt, completion: str) -> float | dict[str, float] | None: ...


def load_reward(spec: str | None, task: JudgedTask) -> RewardFunction:
    """The reward of a recipe: the task's own verifier, or the user's `file.py:function`.

    The user's function is `score(prompt: str, completion: str, answer, **info) -> float | bool | dict[str, float] | None`; of `answer` and the
    task's further columns it gets those it names. A dict has the reward under "reward", and every entry is logged.
    Raises ValueError when it cannot be loaded or called so.
    """
    if spec is None:
        return each(task.verify)
    function = load_object(spec, "reward")
    if not callable(function):
        raise ValueError(f"reward {spec!r} is a {type(function).__name__}, expected a function score(prompt, completion, answer)")
    parameters = _parameters(function, spec)
    taken = {p.name for p in parameters[:2]}  # by the prompt and the completion, whatever the task's columns are called
    wanted = {p.name for p in parameters[2:]}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    offered = {"answer", *task.prompt_at(0, 0).info}
    if lacking := [p.name for p in parameters[2:] if p.default is p.empty and p.kind in BY_NAME and p.name not in offered]:
        has = ", ".join(sorted(offered))
        raise ValueError(f"reward {spec!r} asks for {lacking[0]!r}, and the task has {has}: rename the argument, or give it a default")

    def judge(prompt: Prompt, completion: str) -> Any:
        columns = {**prompt.info, "answer": prompt.answer}
        return function(prompt.text, completion, **{k: v for k, v in columns.items() if k in wanted or (takes_all and k not in taken)})

    return each(judge)


def each(judge: Callable[[Prompt, str], Any]) -> RewardFunction:
    """A reward function from one that judges a single completion; whatever goes wrong inside it leaves that completion unscored."""

    def reward(prompts: list[Prompt], completions: list[str]) -> list[Score]:
        return [_score(judge, prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    return reward


def _score(judge: Callable[[Prompt, str], Any], prompt: Prompt, completion: str) -> Score:
    try:
        return as_score(judge(prompt, completion))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and a failure is not a reward of 0
        return Score(None, failure=f"{type(error).__name__}: {error}")


def as_score(verdict: Any) -> Score:
    """What a judge returned, as a score."""
    if verdict is None:
        return Score(None, failure="the verifier could not judge this completion")
    if isinstance(verdict, Mapping):
        if "reward" not in verdict:
            return Score(None, failure=f"the reward function returned a dict without 'reward', only {', '.join(map(str, verdict)) or 'nothing'}")
        parts = {str(name): as_score(value) for name, value in verdict.items()}
        if (bad := next((n for n, s in parts.items() if s.value is None), None)) is not None:
            return Score(None, failure=f"part {bad!r}: {parts[bad].failure}")
        values = {name: score.value for name, score in parts.items() if score.value is not None}
        return Score(values.pop("reward"), values)
    if isinstance(verdict, str | bytes) or not hasattr(verdict, "__float__"):
        return Score(None, failure=f"the reward function returned a {type(verdict).__name__}, expected a number, a dict or None")
    value = float(verdict)
    if not math.isfinite(value):
        return Score(None, failure=f"the reward function returned {value}")
    return Score(value)


def _parameters(function: Callable[..., Any], spec: str) -> list[inspect.Parameter]:
    """Its parameters, the first two of which take prompt and completion by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ValueError(f"reward {spec!r} does not say what it takes; wrap it in a function score(prompt, completion, answer)") from None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise ValueError(f"reward {spec!r} takes {len(positional)} arguments; write it as score(prompt, completion, answer) -> float")
    return parameters
