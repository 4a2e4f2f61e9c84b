"""Rewards: what a completion is worth, or that nobody can say."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from tacit.core.imports import load_object
from tacit.rewards.workers import Answer, Isolated

if TYPE_CHECKING:
    from tacit.core.rollouts import Prompt  # workers import this file, and no torch

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Score:
    """`value` None means unscored, and `failure` says why; `parts` are logged one by one."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


class RewardFunction(Protocol):
    """One score per completion, in order.

    It may also have `begin(prompts, completions) -> () -> list[Score]`: judging starts at once, elsewhere, and the function that is returned waits
    for the verdicts. Training begins so after each draw, and goes on meanwhile.
    """

    def __call__(self, prompts: list[Prompt], completions: list[str], /) -> list[Score]: ...


class JudgedTask(Protocol):
    """The part of a task that rewards need: its own verdict, and a prompt to see what the user's function can be given."""

    def prompt_at(self, ordinal: int, seed: int) -> Prompt: ...
    def verify(self, prompt: Prompt, completion: str) -> float | dict[str, float] | None: ...


def load_reward(spec: str | None, task: JudgedTask, *, sandbox: str = "required") -> RewardFunction:
    """The reward of a recipe: what `spec` names, or else the task's `reward`, or else the task's own verifier.

    A function is `score(prompt: str, completion: str, answer, **info) -> float | bool | dict[str, float] | None`; of `answer` and the
    task's further columns it gets those it names. A dict has the reward under "reward", and every entry is logged. It may be `async def`, and it
    may be `@isolated`, which has it run in killable workers. A class is a RewardFunction when it is made; `sandbox` reaches it if it takes that.
    Raises ValueError when it cannot be loaded or called so.
    """
    spec = spec or getattr(task, "reward", None)
    if spec is None:
        return each(task.verify)
    function = load_object(spec, "reward")
    if inspect.isclass(function):
        return _make(function, spec, {"sandbox": sandbox})
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

    def call(ask: Callable[..., Any], prompt: Prompt, completion: str) -> Any:
        columns = {**prompt.info, "answer": prompt.answer}
        return ask(prompt.text, completion, **{k: v for k, v in columns.items() if k in wanted or (takes_all and k not in taken)})

    if isinstance(function, Isolated):
        return InWorkers(partial(call, function.submit))
    return each(partial(call, function))


def judged(reward: RewardFunction, prompts: list[Prompt], completions: list[str]) -> list[Score]:
    """What `reward` says. Raises ValueError unless it has one score for each completion."""
    scores, asked = reward(prompts, completions), len(completions)
    if len(scores) != asked:
        raise ValueError(f"the reward function returned {len(scores)} scores for {asked} completions; it must return one for each, in order")
    return scores


def _make(cls: type, spec: str, options: Mapping[str, Any]) -> RewardFunction:
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        raise ValueError(f"reward {spec!r} is a class that does not say what it takes; give it an __init__") from None
    if lacking := [p.name for p in parameters.values() if p.default is p.empty and p.kind in BY_NAME and p.name not in options]:
        raise ValueError(f"reward {spec!r} is a class that needs {lacking[0]!r}; give it a default")
    made = cls(**{name: value for name, value in options.items() if name in parameters})
    if not callable(made):
        raise ValueError(f"reward {spec!r} is a class whose objects cannot be called; define __call__(self, prompts, completions) -> list[Score]")
    return cast(RewardFunction, made)


def each(judge: Callable[[Prompt, str], Any]) -> RewardFunction:
    """A reward function from one that judges a single completion; whatever goes wrong inside it leaves that completion unscored.

    Coroutines are awaited together, in a thread of their own: also where a loop is running already.
    """

    def reward(prompts: list[Prompt], completions: list[str]) -> list[Score]:
        scores = [_score(judge, prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        if waiting := [score for score in scores if not isinstance(score, Score)]:
            with ThreadPoolExecutor(1) as thread:
                awaited = iter(thread.submit(asyncio.run, _all(waiting)).result())
            return [score if isinstance(score, Score) else next(awaited) for score in scores]
        return [score for score in scores if isinstance(score, Score)]

    return reward


@dataclass(frozen=True)
class InWorkers:
    """A reward whose completions are judged in worker processes: `submit` hands one to a pool and returns the future `Answer`."""

    submit: Callable[[Prompt, str], Any]

    def begin(self, prompts: list[Prompt], completions: list[str]) -> Callable[[], list[Score]]:
        waiting = [self.submit(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return lambda: [_of_answer(future.result()) for future in waiting]

    def __call__(self, prompts: list[Prompt], completions: list[str]) -> list[Score]:
        return self.begin(prompts, completions)()


def _of_answer(answer: Answer) -> Score:
    return Score(None, failure=answer.failure) if answer.failure else _score(lambda: answer.value)


def _score(judge: Callable[..., Any], *case: Any) -> Any:
    """A Score, or the coroutine of one."""
    try:
        verdict = judge(*case)
        return _awaited(verdict) if inspect.isawaitable(verdict) else as_score(verdict)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and a failure is not a reward of 0
        return _failed(error)


async def _awaited(verdict: Awaitable[Any]) -> Score:
    try:
        return as_score(await verdict)
    except Exception as error:  # noqa: BLE001 - as above
        return _failed(error)


async def _all(waiting: list[Awaitable[Score]]) -> list[Score]:
    return await asyncio.gather(*waiting)


def _failed(error: Exception) -> Score:
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
