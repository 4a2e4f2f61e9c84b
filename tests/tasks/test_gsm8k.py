from __future__ import annotations

import pytest

from tacit.core.numbers import final_number, parse_number
from tacit.core.rollouts import Prompt
from tacit.tasks.base import Task
from tacit.tasks.data import DataError, read_jsonl
from tacit.tasks.gsm8k import INSTRUCTION, Gsm8k

TRAIN = [
    {"question": "48 clips, then half?", "answer": "48/2 = <<48/2=24>>24 in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72", "id": "train-0"},
    {"question": "A house?", "answer": "It costs $<<1000*80=80000>>80,000.\n#### 80,000"},
]
TEST = [{"question": "16-3-4?", "answer": "16-3-4 = <<16-3-4=9>>9\n#### 9", "id": "test-0"}]


@pytest.fixture
def task(write_jsonl) -> Gsm8k:
    return Gsm8k(str(write_jsonl("train.jsonl.gz", TRAIN)), str(write_jsonl("test.jsonl", TEST)))


def test_prompts(task):
    stream = {p.id: p for p in (task.prompt_at(i, 0) for i in range(2))}
    assert set(stream) == {"gsm8k/train-0", "gsm8k/2"}
    assert stream["gsm8k/train-0"].text == f"48 clips, then half?\n{INSTRUCTION}" and stream["gsm8k/train-0"].answer == "72"
    assert [(p.id, p.answer) for p in task.heldout(1)] == [("gsm8k/test-0", "9")]
    with pytest.raises(ValueError, match="has 1 held-out prompts"):
        task.heldout(2)


def test_solutions_have_no_annotations_and_are_right(task):
    assert isinstance(task, Task) and task.baselines() == {}
    prompts = [*task.train, *task.test]
    assert task.solve(task.train[0]) == "48/2 = 24 in May.\nIn all 48+24 = 72.\n#### 72"
    for prompt in prompts:
        assert task.verify(prompt, task.solve(prompt)) == 1
        assert set(prompt.text + task.solve(prompt)) <= set(task.alphabet)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("so 1,234.\n#### 1,234", 1),
        ("#### $1234.00", 1),
        (r"\boxed{1234}", 1),
        ("It makes 1234 dollars.", 1),
        ("#### 1235", 0),
        ("1234\n#### 5", 0),
        ("", 0),
    ],
)
def test_verify(task, completion, reward):
    assert task.verify(Prompt("x", "?", "1,234"), completion) == reward


def test_instruction_is_an_option(write_jsonl):
    train, test = str(write_jsonl("one.jsonl", TEST)), str(write_jsonl("train.jsonl", TRAIN))
    assert Gsm8k(train, test, instruction="Go.").prompt_at(0, 0).text == "16-3-4?\nGo."


def test_answer_without_a_number(write_jsonl):
    path = write_jsonl("train.jsonl", [TRAIN[0], {"question": "q", "answer": "no marker"}])
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: the answer does not end with #### and a number"):
        Gsm8k(str(path), str(path))


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="set TACIT_DATA"):
        Gsm8k()


def test_the_verifier_agrees_with_the_labels_of_published_solutions(real_gsm8k):
    """2,640 solutions of four models with their `is_correct`; there the reference ends on "A: 72"."""
    task = Gsm8k()
    rows = [row for _, row in read_jsonl(real_gsm8k / "model_solutions.jsonl.gz")]
    verdicts: list[tuple[bool, bool]] = []
    for row in rows:
        answer = str(final_number(row["ground_truth"].rpartition("A:")[2]))
        assert parse_number(answer) is not None
        solutions = [value for value in row.values() if isinstance(value, dict)]
        verdicts += [(task.verify(Prompt("x", "?", answer), s["solution"]) == 1, s["is_correct"]) for s in solutions]
    agree, wrong = sum(a == b for a, b in verdicts), sum(not b for _, b in verdicts)
    assert len(verdicts) == 2640 and 500 < wrong < 2200  # both kinds are there in numbers
    assert agree / len(verdicts) >= 0.99


def test_every_real_reference_solution_is_right(real_gsm8k):
    task = Gsm8k()
    assert (len(task.train), len(task.test)) == (7473, 660)
    assert all(task.verify(p, task.solve(p)) == 1 for p in [*task.train, *task.test])
