"""Tasks over real data sets: in their own formats, small enough to count by hand."""

from __future__ import annotations

import pytest

from tacit.config import TaskConfig
from tacit.core.rollouts import Prompt
from tacit.rewards.base import load_reward
from tacit.tasks.aqua import Aqua
from tacit.tasks.base import Task, resolve_task
from tacit.tasks.data import DataError
from tacit.tasks.finite import Finite, split
from tacit.tasks.ifeval import IfEval
from tacit.tasks.math500 import Math500
from tacit.tasks.python_problems import HumanEval, Mbpp, called_by
from tacit.tasks.svamp import Svamp

MATH = {"id": "math-0", "subject": "Algebra", "level": "Level 3", "problem": "Half of 1?", "answer": "\\frac{1}{2}"}
SVAMP = {
    "ID": "chal-1",
    "Body": "A pack costs 76. It is 25 off",
    "Question": "The price?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}
AQUA = {"question": "1+1?", "options": ["A)1", "B)2", "C)3"], "rationale": "Count.", "correct": "B", "id": "dev-0"}
MBPP = {"text": "Write a function to add one.", "code": "import math\r\ndef plus(x):\r\n  return x+1", "task_id": 601, "test_setup_code": "y = 1\r\n",
        "test_list": ["assert (plus(1)) == 2", "assert plus(y) == 2"], "challenge_test_list": []}  # fmt: skip
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": 'def f(x):\n    """One more."""\n', "entry_point": "f", "canonical_solution": "    return x + 1\n",
             "test": "def check(candidate):\n    assert candidate(1) == 2\n"}  # fmt: skip
IFEVAL = {"key": 1, "prompt": "No commas; 3 words.", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
          "kwargs": [{}, {"num_words": 3, "relation": "at least", "unused": None}]}  # fmt: skip


def test_what_is_held_out_is_not_trained_on_and_epochs_have_orders_of_their_own():
    prompts = [Prompt(str(i), f"q{i}", "a") for i in range(6)]
    task = Finite(prompts[:5], [Prompt("other", "q4"), prompts[5]])
    task.name = "finite"
    assert [p.id for p in task.train] == ["0", "1", "2", "3"] and [p.id for p in task.heldout(2)] == ["other", "5"]
    assert sorted(task.prompt_at(i, 0).id for i in range(4, 8)) == ["0", "1", "2", "3"]
    assert task.alphabet == "012345q" and task.solve(prompts[0]) is None and task.verify(prompts[0], "a") is None and task.baselines() == {}


def test_a_split_does_not_depend_on_the_order_and_takes_its_share():
    items = [str(i) for i in range(4000)]
    train, test = split(items, 0.25, key=str)
    assert sorted([*train, *test]) == sorted(items) and abs(len(test) - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5
    assert set(split(items[::-1], 0.25, key=str)[1]) == set(test) and set(split(items, 0.3, key=str)[1]) > set(test)
    assert split(items, 1, key=str) == ([], items)
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="heldout_share must lie above 0 and at most at 1"):
            split(items, share, key=str)


def test_a_task_that_holds_all_out_says_so(write_jsonl):
    task = Svamp(str(write_jsonl("svamp.jsonl", [SVAMP])), heldout_share=1)
    with pytest.raises(ValueError, match=r"task 'svamp' has nothing to train on.*task\.options\.heldout_share below 1"):
        task.prompt_at(0, 0)


def test_math(write_jsonl):
    path = str(write_jsonl("math.jsonl", [MATH]))
    task = Math500(path, str(write_jsonl("test.jsonl", [{**MATH, "problem": "Of 2?", "unique_id": "u"}])))
    prompt = task.prompt_at(0, 0)
    assert (
        prompt.id == "math500/math-0"
        and prompt.text.startswith("Half of 1?\nSolve")
        and prompt.info == {"difficulty": "level 3", "subject": "Algebra"}
    )
    assert task.solve(prompt) == r"\boxed{\frac{1}{2}}" and task.verify(prompt, task.solve(prompt)) is None
    assert task.heldout(1)[0].id == "math500/u" and task.reward == "tacit.rewards.math:score"


def test_svamp(write_jsonl):
    task = Svamp(str(write_jsonl("svamp.jsonl", [SVAMP])), heldout_share=1, instruction="Go.")
    (prompt,) = task.heldout(1)
    assert prompt == Prompt("svamp/chal-1", "A pack costs 76. It is 25 off. The price?\nGo.", "51",
                            {"difficulty": "subtraction", "solution": "( 76.0 - 25.0 ) = 51\n#### 51"})  # fmt: skip
    assert [task.verify(prompt, c) for c in (task.solve(prompt), "It is 51.0", "It is 52", "")] == [1, 1, 0, 0]
    with pytest.raises(DataError, match=r"svamp\.jsonl, line 1: the column 'Answer' is no number"):
        Svamp(str(write_jsonl("svamp.jsonl", [{**SVAMP, "Answer": None}])))


def test_aqua(write_jsonl):
    path = str(write_jsonl("aqua.jsonl", [AQUA, {**AQUA, "question": "2?", "correct": "C"}, {**AQUA, "question": "1+0+1?"}]))
    task = Aqua(path, str(write_jsonl("test.jsonl", [AQUA, {**AQUA, "question": "3?", "correct": "C"}])), instruction="Go.")
    assert [p.text for p in task.train] == ["2?\nA)1\nB)2\nC)3\nGo.", "1+0+1?\nA)1\nB)2\nC)3\nGo."]
    prompt = task.heldout(1)[0]
    assert [task.verify(prompt, c) for c in (task.solve(prompt), "The answer is (B).", "(C)", "A", "")] == [1, 1, 0, 0, 0]
    assert task.baselines() == {"majority": 0.5}
    for wrong in ({"options": "none"}, {"correct": "D"}):
        with pytest.raises(DataError, match=r"line 1: expected 'options', a list, and 'correct'"):
            Aqua(str(write_jsonl("aqua.jsonl", [AQUA | wrong])), path)


def test_mbpp(write_jsonl):
    path = str(write_jsonl("mbpp.jsonl", [MBPP]))
    task = Mbpp(path, str(write_jsonl("test.jsonl", [{**MBPP, "text": "Another."}])), instruction="Pass:")
    prompt = task.prompt_at(0, 0)
    assert prompt.text == "Write a function to add one.\nPass:\nassert (plus(1)) == 2\nassert plus(y) == 2\n"
    assert prompt.info["tests"] == MBPP["test_list"] and prompt.info["setup"] == "y = 1\n" and prompt.info["entry_point"] == "plus"
    assert task.solve(prompt) == "import math\ndef plus(x):\n  return x+1" and task.verify(prompt, "") is None
    assert called_by("assert len(f(Node(1))) == 2", "class Node: ...\ndef f(x): ...") == "f" and called_by("assert f(1)", "f = abs") is None
    with pytest.raises(DataError, match="line 1: expected 'test_list', a list of asserts"):
        Mbpp(str(write_jsonl("mbpp.jsonl", [{**MBPP, "test_list": []}])), path)


def test_humaneval(write_jsonl):
    task = HumanEval(str(write_jsonl("he.jsonl", [HUMANEVAL])), heldout_share=1)
    (prompt,) = task.heldout(1)
    assert prompt.id == "humaneval/HumanEval/0" and prompt.info["entry_point"] == "f" and prompt.info["setup"] == ""
    space: dict = {}
    exec(prompt.text + task.solve(prompt) + prompt.info["tests"][0] + "check(f)", space)
    assert task.reward == Mbpp.reward == "tacit.rewards.programs:ProgramTests"


def test_ifeval(write_jsonl):
    task = IfEval(str(write_jsonl("if.jsonl", [IFEVAL])), heldout_share=1)
    (prompt,) = task.heldout(1)
    assert prompt.text == "No commas; 3 words." and prompt.info["difficulty"] == "2 instructions"
    assert prompt.info["instructions"] == [
        {"id": "punctuation:no_comma", "arguments": {}},
        {"id": "length_constraints:number_words", "arguments": {"num_words": 3, "relation": "at least"}},
    ]
    (score,) = load_reward(None, task)([prompt], ["One two three"])
    assert score.value == 1 and task.verify(prompt, "One two three") is None
    with pytest.raises(DataError, match="line 1: expected 'instruction_id_list' and 'kwargs'"):
        IfEval(str(write_jsonl("if.jsonl", [{**IFEVAL, "kwargs": []}])))


@pytest.mark.parametrize("name", ["math500", "svamp", "aqua", "mbpp", "humaneval", "ifeval"])
def test_missing_data_are_told_by_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"the file {name}/.* is not in .*set TACIT_DATA to the folder that holds {name}/"):
        resolve_task(TaskConfig(name=name))


@pytest.mark.parametrize(
    ("name", "train", "test", "options"),
    [
        ("gsm8k", 7473, 660, {}),
        ("math500", 4500, 250, {}),
        ("svamp", 0, 500, {"heldout_share": 1}),
        ("aqua", 254, 127, {}),
        ("mbpp", 374, 250, {}),
        ("humaneval", 0, 82, {"heldout_share": 1}),
        ("ifeval", 0, 271, {"heldout_share": 1}),
    ],
)
def test_the_real_sets_have_the_counts_of_their_readmes(name, train, test, options, real_data):
    real_data(name)
    task = resolve_task(TaskConfig(name=name, options=options))
    assert isinstance(task, Finite) and isinstance(task, Task)
    assert (len(task.train), len(task.test)) == (train, test)
    assert len({p.id for p in [*task.train, *task.test]}) == train + test
    assert task.alphabet
