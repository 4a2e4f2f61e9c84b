from __future__ import annotations

import itertools
from functools import lru_cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.rollouts import Prompt
from tacit.tasks import procedural
from tacit.tasks.base import Task
from tacit.tasks.data import DataError
from tacit.tasks.expressions import parse
from tacit.tasks.gsm8k_steps import HELD_OUT, Gsm8kSteps, Nearest, Step, edit_distances

is_held_out = partial(procedural.is_held_out, one_in=HELD_OUT)
TRAIN_Q = [q for q in (f"question {i}?" for i in range(40)) if not is_held_out(q)]
HELD_Q = [q for q in (f"question {i}?" for i in range(200)) if is_held_out(q)]


def problem(question: str, *annotations: str) -> dict:
    return {"question": question, "answer": " and ".join(f"<<{a}>>" for a in annotations) + "\n#### 1", "id": question.split()[1]}


ROWS = [
    problem(TRAIN_Q[0], "48/2=24", "48+24=72", "3*8=24", "5=5", "560//10=56", "2+2=5", "1/3=.33", "1/0=1"),
    problem(HELD_Q[0], "24 + 48 = 72", "7*9=63.0", "48/4=12", "07*9=63"),  # the first two terms the other way round; unseen; unseen; as before
    problem(TRAIN_Q[1], "2.50*2=5.00", "-20+10=-10"),
    problem(HELD_Q[1], "2*2.5=5", "9*7=63", "17-8=9"),
]


@pytest.fixture
def task(write_jsonl) -> Gsm8kSteps:
    return Gsm8kSteps(str(write_jsonl("train.jsonl.gz", ROWS)))


def test_counts(task):
    assert task.counts == {"annotations": 17, "no operator": 1, "unreadable": 2, "wrong value": 2}


def test_examples_as_written_with_normalised_values(task):
    stream = {(p.text, p.answer) for p in (task.prompt_at(i, 0) for i in range(5))}
    assert stream == {("48/2=", "24"), ("48+24=", "72"), ("3*8=", "24"), ("2.50*2=", "5"), ("-20+10=", "-10")}
    assert task.prompt_at(0, 0).info["form"] == parse(task.prompt_at(0, 0).text[:-1]).form


def test_heldout_is_by_problem_and_by_form_each_form_once(task):
    assert [(p.text, p.answer) for p in task.heldout(3)] == [("7*9=", "63"), ("48/4=", "12"), ("17-8=", "9")]
    assert [p.text for p in task.heldout(2, unseen=False)] == ["24+48=", "2*2.5="]
    with pytest.raises(ValueError, match=r"has 3 held-out prompts, 4 were asked for: lower evaluation\.prompts to 3"):
        task.heldout(4)


def test_no_stream_shows_a_heldout_form(task):
    stream = {task.prompt_at(i, seed).info["form"] for seed in range(3) for i in range(20)}
    assert not stream & {p.info["form"] for p in task.heldout(3)}
    assert {p.info["form"] for p in task.heldout(2, unseen=False)} <= stream


def test_ids_are_unique(task):
    prompts = [*(task.prompt_at(i, 0) for i in range(5)), *task.heldout(3), *task.heldout(2, unseen=False)]
    assert len({p.id for p in prompts}) == len(prompts)


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("24", "24", 1),
        ("24", "24.0", 1),
        ("24", "024", 1),
        ("0.5", ".5", 1),
        ("0.5", "0.50", 1),
        ("-10", "-10", 1),
        ("24", "25", 0),
        ("24", "2 4", 0),
        ("24", "48/2", 0),
        ("24", "24=", 0),
        ("24", "", 0),
        ("-10", "10", 0),
    ],
)
def test_verify(task, answer, completion, reward):
    assert task.verify(Prompt("x", "?=", answer), completion) == reward


def test_solutions_are_right_and_written_in_the_alphabet(task):
    assert isinstance(task, Task)
    for prompt in [*(task.prompt_at(i, 0) for i in range(5)), *task.heldout(3)]:
        assert task.verify(prompt, task.solve(prompt)) == 1
        assert set(prompt.text + task.solve(prompt)) <= set(task.alphabet)


def test_baselines_by_hand(write_jsonl):
    """The majority answer, 24, is right for 12+12 and 25-1. So is the nearest: 26-2 for 25-1, and the majority where no sum was seen."""
    train = problem(TRAIN_Q[0], "3*8=24", "3*8=24", "48-2=46", "26-2=24", "5*6=30")
    held = problem(HELD_Q[0], "12+12=24", "25-1=24", "8-4=4", "5*7=35", "3*8.0=24")
    task = Gsm8kSteps(str(write_jsonl("steps.jsonl", [train, held])))
    assert [step.text for step in task.unseen] == ["12+12", "25-1", "8-4", "5*7"]
    assert task.baselines() == {"lookup": 0.0, "majority": 0.5, "nearest": 0.5}


def test_nearest_has_the_same_operators_and_ties_go_to_the_more_frequent():
    steps = [Step("", text, answer, "") for text, answer in [("1+2", "3"), ("1+9", "10"), ("1+9", "10"), ("1-3", "-2"), ("55+66+7", "128")]]
    nearest = Nearest(steps)
    assert nearest.answer("1+3") == "10"  # as near to 1+2, which is rarer; nearest of all is 1-3, another operation
    assert nearest.answer("2+2") == "3"
    assert nearest.answer("5+6+7") == "128"
    assert nearest.answer("1*3") is None


def levenshtein(a: str, b: str) -> int:
    """The recursive definition."""

    @lru_cache(None)
    def distance(i: int, j: int) -> int:
        if not (i and j):
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))


@given(text=st.text("012*", max_size=6), others=st.lists(st.text("012*", min_size=1, max_size=8), min_size=1, max_size=5))
def test_edit_distances_are_levenshteins(text, others):
    assert edit_distances(text, np.array(others)).tolist() == [levenshtein(text, other) for other in others]


def test_data_from_the_environment(write_jsonl, tmp_path, monkeypatch):
    write_jsonl("gsm8k/train.jsonl.gz", ROWS)
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    assert len(Gsm8kSteps().train) == 5


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"gsm8k/train\.jsonl\.gz is not in .*: set TACIT_DATA to the folder that holds gsm8k/"):
        Gsm8kSteps()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROWS[0]], "gives 3 steps to train on and 0 unseen ones to hold out"),
        ([ROWS[1]], "gives 0 steps to train on and 3 unseen ones"),
        ([ROWS[0], {"question": "q"}], "line 2: there is no column 'answer', only question"),
        ([{"question": 1, "answer": "a"}], "line 1: column 'question' is int, not text"),
        ([ROWS[0], '{"question": "q", "ans'], "line 2: this is not valid JSON"),
    ],
)
def test_files_that_will_not_do(rows, told, write_jsonl):
    with pytest.raises(DataError, match=told):
        Gsm8kSteps(str(write_jsonl("train.jsonl", rows)))


def test_one_problem_in_ten_is_held_out():
    assert sum(is_held_out(f"question {i}?") for i in range(5000)) / 5000 == pytest.approx(0.1, abs=0.02)


def test_the_real_counts(real_gsm8k):
    task = Gsm8kSteps()
    assert task.counts == {"annotations": 23716, "no operator": 357, "unreadable": 2}
    assert (len(task.train), len(task.unseen), len(task.seen)) == (21135, 709, 873)
    stream = {parse(task.prompt_at(i, 0).text[:-1]).form for i in range(3000)}
    assert not stream & {p.info["form"] for p in task.heldout(709)}
    assert all(set(p.text + p.answer) <= set(task.alphabet) for p in itertools.chain(task.heldout(709), task.heldout(873, unseen=False)))
    baselines = task.baselines()
    assert baselines["lookup"] == 0 and 0 < baselines["majority"] < 0.02 and 0 < baselines["nearest"] < 0.05
