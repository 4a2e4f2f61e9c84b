"""Several verifiers as one: weighted sums and gates, with every part logged.

A scorer is called like a reward function of the user's, score(prompt, completion, answer, **info), and gets of these what it names. The
combinations are scorers again, so they nest; the parts of a part `style` are logged as `style.NAME`. A part without a verdict leaves the whole
without one, unless a closed gate decides it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

Verdict = float | Mapping[str, float | None] | None
Scorer = Callable[..., Verdict]
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def scorer(verdict: Callable[..., float | None], **options: Any) -> Scorer:
    """A scorer from a verdict on (completion, answer), such as those of `verifiers`; `options` are handed on to it."""

    def score(prompt: str, completion: str, answer: Any = None) -> float | None:
        return None if answer is None else verdict(completion, str(answer), **options)

    return score


def weighted(**parts: tuple[float, Scorer]) -> Scorer:
    """The sum of weight · value over its parts: `weighted(right=(1.0, a), short=(0.1, b))`. Raises ValueError without parts."""
    if not parts:
        raise ValueError("weighted() needs at least one part, as name=(weight, scorer)")
    calls = {name: _caller(part) for name, (_, part) in parts.items()}

    def score(prompt: str, completion: str, answer: Any = None, **info: Any) -> Verdict:
        values, logged = _evaluate(calls, prompt, completion, {**info, "answer": answer})
        missing = any(value is None for value in values.values())
        return {**logged, "reward": None if missing else sum(parts[name][0] * cast(float, value) for name, value in values.items())}

    return score


def gated(gate: Scorer, reward: Scorer, *, threshold: float = 1.0) -> Scorer:
    """The reward where the gate's value reaches the threshold, else 0, whatever the reward says: a format before its content."""
    calls = {"gate": _caller(gate), "passed": _caller(reward)}

    def score(prompt: str, completion: str, answer: Any = None, **info: Any) -> Verdict:
        values, logged = _evaluate(calls, prompt, completion, {**info, "answer": answer})
        if values["gate"] is None:
            return {**logged, "reward": None}
        if values["gate"] >= threshold:
            return {**logged, "reward": values["passed"]}
        return {name: value for name, value in logged.items() if value is not None} | {"reward": 0.0}

    return score


def _evaluate(
    calls: Mapping[str, Scorer], prompt: str, completion: str, columns: dict[str, Any]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Each part's value, and what is logged: the values and the parts of the parts."""
    values, logged = dict[str, float | None](), dict[str, float | None]()
    for name, call in calls.items():
        verdict = call(prompt, completion, **columns)
        if isinstance(verdict, Mapping):
            inner = {f"{name}.{key}": value for key, value in verdict.items() if key != "reward"}
            values[name], logged = verdict["reward"], logged | inner
        else:
            values[name] = verdict
        logged[name] = values[name]
    return values, logged


def _caller(part: Scorer) -> Scorer:
    """The same scorer, called with those columns that it names. Raises ValueError for a coroutine function, which only a whole reward may be."""
    if inspect.iscoroutinefunction(part):
        raise ValueError(f"{part.__name__!r} is async, and parts of a combined reward are called one after the other: write it without async")
    parameters = list(inspect.signature(part).parameters.values())[2:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return part
    named = {p.name for p in parameters if p.kind in NAMED}
    return lambda prompt, completion, **columns: part(prompt, completion, **{k: v for k, v in columns.items() if k in named})
