"""What holds of the real data sets; skipped where TACIT_DATA does not hold them."""

from __future__ import annotations

import inspect
from collections import Counter
from itertools import pairwise

import pytest

from tacit.core.answers import last_boxed
from tacit.core.numbers import parse_number
from tacit.rewards.instruction_checks import CHECKS
from tacit.tasks.aqua import Aqua
from tacit.tasks.expressions import parse
from tacit.tasks.ifeval import IfEval
from tacit.tasks.math500 import Math500
from tacit.tasks.python_problems import HumanEval, Mbpp
from tacit.tasks.svamp import Svamp


def test_the_boxed_answers_of_math500_are_right_however_they_are_written(real_data):
    """The references in a box, and in three other ways: read back by math-verify itself, not by comparing text. Neighbours' answers are wrong."""
    real_data("math500")
    pytest.importorskip("math_verify", reason="needs the extra 'math': pip install 'tacit[math]'")
    from tacit.rewards.math import equivalent, math_equal

    task = Math500()
    answers = [p.answer for p in task.test]
    assert all(last_boxed(task.solve(p)) == p.answer for p in task.test)
    assert all(math_equal(p.answer, task.solve(p)) for p in task.test)
    for write in (r"\boxed{{{}}}", r"\boxed{{ {} }}", r"\fbox{{1}}, no, \boxed{{{}}}", "we get ${}$."):
        assert sum(equivalent(a, write.format(a)) for a in answers) >= 0.99 * len(answers), write
    assert sum(math_equal(a.replace("\\frac", "\\dfrac"), rf"\boxed{{{a}}}") for a in answers) >= 0.99 * len(answers)
    wrong = [(a, b) for a, b in pairwise(answers) if a != b]
    assert sum(math_equal(a, rf"\boxed{{{b}}}") for a, b in wrong) <= 0.01 * len(wrong)
    assert {p.info["difficulty"] for p in task.test} == {f"level {i}" for i in range(1, 6)}


def test_svamp_equations_give_their_answers_and_solutions_are_right(real_data):
    real_data("svamp")
    task = Svamp(heldout_share=1)
    assert all(task.verify(p, task.solve(p)) == 1 for p in task.test)
    assert sum(parse(task.solve(p).partition("=")[0]).value == parse_number(p.answer) for p in task.test) >= 0.98 * len(task.test)
    assert set(Counter(p.info["difficulty"] for p in task.test)) == {"addition", "subtraction", "multiplication", "common-division"}
    half = Svamp()
    assert len(half.train) + len(half.test) == 500 and 200 < len(half.test) < 300


def test_aqua_solutions_are_right_and_a_majority_is_not_enough(real_data):
    real_data("aqua")
    task = Aqua()
    assert all(task.verify(p, task.solve(p)) == 1 for p in [*task.train, *task.test])
    assert 0.2 < task.baselines()["majority"] < 0.35


def test_rationales_of_aqua_end_on_their_letter(real_data):
    """The reader of choices without the marker: it finds the right letter, or none, in what people wrote; rarely a wrong one."""
    real_data("aqua")
    task = Aqua()
    verdicts = [(task.verify(p, p.info["solution"].rpartition("####")[0]), p) for p in task.train]
    assert sum(verdict for verdict, _ in verdicts) > 0.6 * len(verdicts)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_programs_of_mbpp_and_humaneval_have_what_testing_them_needs(real_data):
    """Heads, tests and entry points fit together, by compiling them; nothing is run here."""
    real_data("mbpp"), real_data("humaneval")
    mbpp, human = Mbpp(), HumanEval(heldout_share=1)
    for prompt in [*mbpp.train, *mbpp.test]:
        compile("\n".join([mbpp.solve(prompt), prompt.info["setup"], *prompt.info["tests"]]), prompt.id, "exec")
        assert len(prompt.info["tests"]) == 3 and prompt.info["entry_point"]
    for prompt in human.test:
        compile(prompt.text + human.solve(prompt) + prompt.info["tests"][0], prompt.id, "exec")
        assert f"def {prompt.info['entry_point']}(" in prompt.text and "def check(" in prompt.info["tests"][0]


def test_every_instruction_of_ifeval_has_a_check_that_takes_its_arguments(real_data):
    real_data("ifeval")
    task = IfEval(heldout_share=1)
    instructions = [instruction for prompt in task.test for instruction in prompt.info["instructions"]]
    assert {instruction["id"] for instruction in instructions} == set(CHECKS)
    for instruction in instructions:
        inspect.signature(CHECKS[instruction["id"]]).bind("text", **instruction["arguments"])
