from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.rollouts import Prompt
from tacit.tasks.base import Task
from tacit.tasks.procedural import is_held_out
from tacit.tasks.sorting import Sorting


@given(ordinal=st.integers(0, 2**40), seed=st.integers(0, 2**31))
def test_prompts_are_digits_of_the_asked_lengths_and_never_held_out(ordinal, seed):
    task = Sorting(3, 6)
    prompt = task.prompt_at(ordinal, seed)
    digits, colon = prompt.text[:-1], prompt.text[-1]
    assert colon == ":" and digits.isdigit() and 3 <= len(digits) <= 6
    assert not is_held_out(prompt.text)
    assert prompt == task.prompt_at(ordinal, seed)
    assert prompt.answer == task.solve(prompt) == "".join(sorted(digits))


def test_streams_differ_by_seed_and_place():
    task = Sorting()
    texts = [task.prompt_at(i, seed).text for seed in (0, 1) for i in range(200)]
    assert len(set(texts)) > 395


def test_lengths_are_uniform():
    counts = Counter(len(Sorting().prompt_at(i, 0).text) - 1 for i in range(2000))
    assert set(counts) == {5, 6, 7, 8, 9}
    assert all(abs(n - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5 for n in counts.values())


def test_heldout_is_fixed_distinct_and_a_prefix():
    task = Sorting()
    prompts = task.heldout(300)
    assert task.heldout(300) == prompts and task.heldout(10) == prompts[:10]
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == 300
    assert all(is_held_out(p.text) for p in prompts)
    assert task.heldout(0) == []


def test_one_prompt_in_sixteen_is_held_out():
    share = sum(is_held_out(f"{i}:") for i in range(100_000, 120_000)) / 20_000
    assert share == pytest.approx(1 / 16, abs=0.006)


@pytest.mark.parametrize(("completion", "reward"), [("12579", 1), ("12597", 0), ("1257", 0), ("125799", 0), ("", 0), (" 12579", 0)])
def test_verify(completion, reward):
    assert Sorting().verify(Prompt("x", "52917:"), completion) == reward


def test_a_solution_is_right_and_written_in_the_alphabet():
    task = Sorting()
    assert isinstance(task, Task) and task.baselines() == {}
    for prompt in task.heldout(20):
        assert task.verify(prompt, task.solve(prompt)) == 1
        assert set(prompt.text + task.solve(prompt)) <= set(task.alphabet)


@pytest.mark.parametrize(("low", "high"), [(1, 3), (5, 4)])
def test_lengths_that_make_no_sense(low, high):
    with pytest.raises(ValueError, match="2 <= min_length <= max_length"):
        Sorting(low, high)


def test_more_heldout_prompts_than_there_are():
    with pytest.raises(
        ValueError, match=r"task 'sorting' has only \d held-out prompts with these options, 100 were asked for: lower evaluation\.prompts to \d"
    ):
        Sorting(2, 2).heldout(100)
