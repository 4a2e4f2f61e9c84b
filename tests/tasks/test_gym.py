"""The adapter of reasoning-gym: against a stand-in for the library, and against the library where it is installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tacit.config import TaskConfig
from tacit.rewards.gym import _dataset, answer_of, score
from tacit.tasks.base import Task, resolve_task
from tacit.tasks.gym import ReasoningGym


class Doubling:
    """x -> 2x; half the credit for x."""

    def __init__(self, seed: int, size: int, step: int = 1):
        if step < 1:
            raise AssertionError("step must be positive")
        self.step = step

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = index * self.step
        return {"question": f"Twice {x}?", "answer": None if x == 7 else str(2 * x), "metadata": {"x": x}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return 1.0 if answer == str(2 * entry["metadata"]["x"]) else 0.5 if answer == str(entry["metadata"]["x"]) else 0.0


@pytest.fixture
def library(monkeypatch) -> None:
    factory = ModuleType("reasoning_gym.factory")
    factory.DATASETS = {"doubling": Doubling}
    factory.create_dataset = lambda name, **options: factory.DATASETS[name](**options)
    monkeypatch.setitem(sys.modules, "reasoning_gym", ModuleType("reasoning_gym"))
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    _dataset.cache_clear()


def test_problems_come_from_the_data_set_and_are_held_out_by_their_question(library):
    task = resolve_task(TaskConfig(name="reasoning_gym", options={"dataset": "doubling", "instruction": " Say.", "step": 3, "size": 200}))
    assert isinstance(task, Task) and isinstance(task, ReasoningGym)
    prompt = task.prompt_at(5, 0)
    x = prompt.info["entry"]["metadata"]["x"]
    assert prompt == task.prompt_at(5, 0) and prompt.text == f"Twice {x}? Say." and x % 3 == 0
    assert prompt.id == f"reasoning_gym/doubling/{x // 3}" and task.solve(prompt) == str(2 * x) and task.verify(prompt, str(2 * x)) is None
    held = {p.text for p in task.heldout(8)}
    assert held.isdisjoint(task.prompt_at(i, 0).text for i in range(400))
    assert set(prompt.text) <= set(task.alphabet)


def test_problems_without_an_answer_to_show_have_no_solution(library):
    task = ReasoningGym("doubling", size=8)
    (prompt,) = {p.id: p for p in (task.draw(np.random.default_rng(i)) for i in range(60)) if p.answer is None}.values()
    assert prompt.text == "Twice 7?" and task.solve(prompt) is None


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("42 ", "42"),
        ("so <answer> 42</answer>.", "42"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1", "<answer>1"),
        ("1</answer>", "1</answer>"),
    ],
)
def test_where_a_completion_has_its_answer(completion, answer):
    assert answer_of(completion) == answer


def test_the_data_set_grades(library):
    entry = Doubling(0, 10)[4]
    grade = score.__wrapped__
    assert [grade("?", c, "doubling", {}, entry) for c in ("<answer>8</answer>", "4", "9")] == [1, 0.5, 0]


def test_mistakes_are_told_in_one_sentence(library, monkeypatch):
    with pytest.raises(ValueError, match="reasoning-gym has no data set 'halving': choose one of doubling"):
        ReasoningGym("halving")
    with pytest.raises(ValueError, match="reasoning-gym refuses the options of 'doubling': step must be positive"):
        ReasoningGym("doubling", step=0)
    with pytest.raises(ValueError, match=r"refuses the options of 'doubling': .*'speed'"):
        ReasoningGym("doubling", speed=0)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=r"pip install 'tacit\[reasoning-gym\]'"):
        ReasoningGym("doubling")


@pytest.mark.slow
def test_every_data_set_of_the_real_library_makes_a_task_that_grades_its_own_answers():
    pytest.importorskip("reasoning_gym", reason="needs the extra 'reasoning-gym': pip install 'tacit[reasoning-gym]'")
    from reasoning_gym.factory import DATASETS

    graded = 0
    for name in DATASETS.keys() - {"composite"}:  # which is made of others and has no problems without being told of which
        task = ReasoningGym(name, size=1000)
        prompt = task.prompt_at(0, 0)
        assert prompt.text and prompt.info["entry"]["question"] == prompt.text
        if (solution := task.solve(prompt)) is not None:
            graded += score.__wrapped__(prompt.text, solution, name, {}, prompt.info["entry"]) == 1
    assert len(DATASETS) > 90 and graded > 0.9 * len(DATASETS)


def test_the_real_library_grades_in_a_worker():
    pytest.importorskip("reasoning_gym", reason="needs the extra 'reasoning-gym': pip install 'tacit[reasoning-gym]'")
    task = ReasoningGym("leg_counting", size=100)
    prompt = task.prompt_at(0, 0)
    assert score(prompt.text, f"<answer>{prompt.answer}</answer>", **prompt.info) == 1
    assert score(prompt.text, "none", **prompt.info) < 1
