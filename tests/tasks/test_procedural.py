"""What every procedural task keeps: pure streams, a held-out set apart from them, right solutions, written in its alphabet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.config import TaskConfig
from tacit.core.rollouts import Prompt
from tacit.tasks.base import BUILT_IN, Task, resolve_task
from tacit.tasks.procedural import Procedural, is_held_out

NAMES = [name for name in BUILT_IN if not name.startswith(("gsm8k", "math", "svamp", "aqua", "mbpp", "humaneval", "ifeval", "reasoning_gym"))]
SMALL = {  # options under which streams and held-out sets could meet, were they not kept apart
    "sorting": {"min_length": 2, "max_length": 3},
    "reversal": {"min_length": 2, "max_length": 3},
    "brackets": {"min_length": 3, "max_length": 5},
    "addition": {"min_digits": 1, "max_digits": 2},
    "addition_scratchpad": {"min_digits": 1, "max_digits": 2},
    "multiplication_scratchpad": {"min_digits": 1, "max_digits": 2, "max_factor_digits": 2},
    "countdown": {"max_numbers": 4, "largest": 6},
    "short_programs": {"largest": 9},
}


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return resolve_task(TaskConfig(name=request.param, options=SMALL.get(request.param, {})))


def test_the_tasks_are_there():
    assert {"reversal", "brackets", "addition", "addition_scratchpad", "multiplication_scratchpad", "countdown"} < set(NAMES)
    assert {"string_edits", "stack_machine", "list_programs", "short_programs", "postfix_programs"} < set(NAMES)


def test_a_prompt_is_a_function_of_ordinal_and_seed_alone(task):
    there = [task.prompt_at(i, 3) for i in range(40)]
    assert [task.prompt_at(i, 3) for i in reversed(range(40))] == there[::-1]
    assert [task.prompt_at(i, 4).text for i in range(40)] != [p.text for p in there]


def test_heldout_prompts_are_fixed_distinct_and_disjoint_from_every_stream(task):
    held = task.heldout(15)
    assert task.heldout(15) == held and task.heldout(4) == held[:4] and task.heldout(0) == []
    keys = {task.key(p) for p in held}
    assert len(keys) == len({p.id for p in held}) == 15
    assert keys.isdisjoint(task.key(task.prompt_at(i, seed)) for seed in (0, 1) for i in range(600))


def test_without_the_rule_streams_would_meet_the_heldout_prompts(task, monkeypatch):
    """The disjointness above says something: the same draws, not filtered, do hit held-out keys."""
    keys = {task.key(task.prompt_at(i, 0)) for i in range(600)}
    monkeypatch.setattr("tacit.tasks.procedural.is_held_out", lambda key: False)
    free = {task.key(task.prompt_at(i, 0)) for i in range(600)}
    assert not any(map(is_held_out, keys)) and any(map(is_held_out, free))


def test_solutions_are_right_and_prompts_and_solutions_are_written_in_the_alphabet(task):
    assert isinstance(task, Task) and isinstance(task.baselines(), dict)
    assert len(task.alphabet) == len(set(task.alphabet))
    for prompt in [*task.heldout(10), *(task.prompt_at(i, 0) for i in range(100))]:
        solution = task.solve(prompt)
        assert solution == task.solve(prompt)
        assert set(prompt.text + solution) <= set(task.alphabet)
        assert task.verify(prompt, solution) == (None if task.name in ("short_programs", "postfix_programs") else 1)


def test_ids_name_prompts_and_every_prompt_has_a_difficulty(task):
    prompts = [task.prompt_at(i, 0) for i in range(300)]
    assert len({p.id for p in prompts}) == len({(p.id, p.text) for p in prompts}) == len({p.text for p in prompts})
    assert all(p.id.startswith(f"{task.name}/") for p in prompts)
    assert len({p.info["difficulty"] for p in prompts}) > 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(
    text=st.text(max_size=60) | st.text("0123456789+-*/() |:,", max_size=60) | st.sampled_from(["", "(" * 10**5, "9" * 10**5, "\ud800", "-" * 199])
)
def test_no_completion_makes_a_verifier_raise(name, text):
    task = resolve_task(TaskConfig(name=name))
    assert task.verify(task.prompt_at(0, 0), text) in (0, 1, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reversal", {"min_length": 1}),
        ("brackets", {"min_length": 5, "max_length": 4}),
        ("addition", {"min_digits": 0}),
        ("addition", {"max_digits": 19}),
        ("addition_scratchpad", {"max_digits": 1}),
        ("multiplication_scratchpad", {"max_factor_digits": 0}),
        ("multiplication_scratchpad", {"min_digits": 4}),
        ("countdown", {"min_numbers": 1}),
        ("countdown", {"max_numbers": 9}),
        ("string_edits", {"min_edits": 0}),
        ("stack_machine", {"min_length": 9}),
        ("list_programs", {"min_depth": 0}),
        ("list_programs", {"max_depth": 13}),
        ("short_programs", {"largest": 1}),
        ("postfix_programs", {"min_operators": 5}),
        ("postfix_programs", {"max_operators": 13}),
    ],
)
def test_options_that_make_no_sense_are_told_by_name(name, options):
    with pytest.raises(ValueError, match=f"^{name} needs .*{next(iter(options))}"):
        resolve_task(TaskConfig(name=name, options=options))


def test_a_task_whose_every_prompt_is_held_out_says_so():
    class One(Procedural):
        name = "one"

        def draw(self, rng):
            return Prompt("one/1", next(text for i in range(100) if is_held_out(text := str(i))), "a")

    with pytest.raises(ValueError, match="task 'one' has too few prompts with these options"):
        One().prompt_at(0, 0)
    assert One().heldout(1)[0].id == "one/1"
    with pytest.raises(ValueError, match="has only 1 held-out prompts with these options, 2 were asked for"):
        One().heldout(2)
