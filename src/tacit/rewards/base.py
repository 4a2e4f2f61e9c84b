"""Rewards: what a completion is worth, or that nobody can say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tacit.core.imports import load_object
from tacit.core.rollouts import Prompt


@dataclass(frozen=True, slots=True)
class Score:
    """`value` None means unscored, and `failure` says why; `parts` are logged one by one."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


class RewardFunction(Protocol):
    """One score per completion, in order."""

    def __call__(self, prompts: list[Prompt], completions: list[str], /) -> list[Score]: ...


class Verifier(Protocol):
    """The part of a task that judges."""

    def verify(self, prompt: Prompt, completion: str) -> float | dict[str, float] | None: ...


def load_reward(spec: str | None, task: Verifier) -> RewardFunction:
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
    names, takes_all = _parameters(function, spec)

    def judge(prompt: Prompt, completion: str) -> Any:
        offered = {**prompt.info, "answer": prompt.answer}
        return function(prompt.text, completion, **{k: v for k, v in offered.items() if takes_all or k in names})

    return each(judge)


def each(judge: Callable[[Prompt, str], Any]) -> RewardFunction:
    """A reward function from one that judges a single completion; whatever goes wrong inside it leaves that completion unscored."""

    def reward(prompts: list[Prompt], completions: list[str]) -> list[Score]:
        return [_score(judge, prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    return reward


def _score(judge: Callable[[Prompt, str], Any], prompt: Prompt, completion: str) -> Score:
    try:
        verdict = judge(prompt, completion)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and a failure is not a reward of 0
        return Score(None, failure=f"{type(error).__name__}: {error}")
    return as_score(verdict)


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
    try:
        value = float(verdict)
    except (TypeError, ValueError):
        return Score(None, failure=f"the reward function returned a {type(verdict).__name__}, expected a number, a dict or None")
    if not math.isfinite(value):
        return Score(None, failure=f"the reward function returned {value}")
    return Score(value)


def _parameters(function: Callable[..., Any], spec: str) -> tuple[Sequence[str], bool]:
    """Names a function takes beyond prompt and completion, and whether it takes any."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise ValueError(f"reward {spec!r} takes {len(positional)} arguments; write it as score(prompt, completion, answer) -> float")
    return [p.name for p in parameters if p not in positional[:2]], any(p.kind is p.VAR_KEYWORD for p in parameters)
