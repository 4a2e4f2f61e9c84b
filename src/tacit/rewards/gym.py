"""Answers to problems of reasoning-gym, judged by the data set that they come from, in killable workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from tacit.rewards.workers import isolated


@isolated(deadline=10.0)
def score(prompt: str, completion: str, dataset: str, options: Mapping[str, Any], entry: Mapping[str, Any]) -> float:
    """From 0 to 1, as the data set grades it; see tasks.gym for where a completion has its answer."""
    return float(_dataset(dataset, json.dumps(options)).score_answer(answer_of(completion), dict(entry)))


def answer_of(completion: str) -> str:
    """What stands in the last <answer> that is closed, or else all of it; without white space around it."""
    before, closed, _ = completion.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    return (answer if closed and opened else completion).strip()


@lru_cache
def _dataset(name: str, options: str) -> Any:
    return import_module("reasoning_gym.factory").create_dataset(name, seed=0, size=1000, **json.loads(options))
