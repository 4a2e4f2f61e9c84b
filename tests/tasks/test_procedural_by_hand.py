"""Procedural tasks against values worked out by hand, and against a second route to the same answer."""

from __future__ import annotations

import re

import pytest

from tacit.core.rollouts import Prompt
from tacit.tasks.addition import ScratchpadAddition, addition_steps, redundant
from tacit.tasks.brackets import CLOSES, Brackets
from tacit.tasks.countdown import Countdown, value_over
from tacit.tasks.list_programs import ListPrograms
from tacit.tasks.multiplication import ScratchpadMultiplication, multiplication_steps, written
from tacit.tasks.postfix_programs import INPUTS, PostfixPrograms
from tacit.tasks.reversal import Reversal
from tacit.tasks.short_programs import EXAMPLES, ShortPrograms
from tacit.tasks.stack_machine import StackMachine, execute
from tacit.tasks.string_edits import StringEdits, edit

STREAM = range(300)


def test_reversal():
    prompt = Reversal().prompt_at(0, 0)
    assert prompt.text[:-1] == "".join(reversed(prompt.answer)) and 6 <= len(prompt.answer) <= 12


def test_brackets_close_what_is_open():
    for i in STREAM:
        prompt = Brackets().prompt_at(i, 0)
        text = prompt.text[:-1] + prompt.answer
        while text != (text := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)):
            pass
        assert text == "" and prompt.answer and set(prompt.answer) <= set(CLOSES.values())
        assert prompt.info["difficulty"] == f"{len(prompt.answer)} open"


def test_the_scratchpad_of_an_addition():
    """588 + 466: 8+6 = 14, 8+6+1 = 15, 5+4+1 = 10, so 1054, low digit first."""
    assert addition_steps("588", "466") == ["860:4", "861:5", "541:0"]
    assert addition_steps("95", "7") == ["570:2", "901:0"]
    assert redundant(addition_steps("588", "466"), "4501", "", restate=0, skip=0) == "860:4,861:5,541:0|4501"
    assert redundant(["a", "b"], "c", "", restate=0, skip=1) == "|c"


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("860:4,861:5,541:0|4501", 1),
        ("|4501", 1),
        ("nonsense|4501", 1),
        ("|1|4501", 1),
        ("4501", 0),
        ("|1054", 0),
        ("|4501,", 0),
        ("", 0),
    ],
)
def test_only_what_stands_behind_the_bar_is_judged(completion, reward):
    task = ScratchpadAddition()
    assert task.think_end == "|"
    assert task.verify(Prompt("x", "588+466=", "4501"), completion) == reward


def test_traces_are_redundant_and_sometimes_empty():
    task, times, empty, count = ScratchpadAddition(3, 3), [], 0, 2000
    for i in range(count):
        prompt = task.prompt_at(i, 0)
        a, b = map(int, prompt.text[:-1].split("+"))
        assert int(prompt.answer[::-1]) == a + b
        thought, _, answer = task.solve(prompt).partition("|")
        assert answer == prompt.answer
        said = thought.split(",") if thought else []
        empty += not said
        times += [said.count(step) for step in addition_steps(str(a), str(b))] if len(set(said)) == 3 else []
        assert list(dict.fromkeys(said)) == list(dict.fromkeys(addition_steps(str(a), str(b)))) or not said
    assert abs(empty / count - 0.15) < 4 * (0.15 * 0.85 / count) ** 0.5
    assert set(times) == {1, 2, 3} and abs(times.count(2) / len(times) - 1 / 3) < 0.03


def test_the_scratchpad_of_a_multiplication():
    """47 * 36: 7·6 = 42, 4·6+4 = 28, then on 28 tens: 7·3+8 = 29, 4·3+2+2 = 16, so 1692."""
    steps, product = multiplication_steps("47", "36")
    assert steps == ["7600:2", "4604:8", "7380:9", "4322:6"] and written(product) == "2961"
    assert multiplication_steps("99", "99")[0][-1] == "9989:8"  # 81 + 8 + 9 = 98
    assert written(multiplication_steps("40", "0")[1]) == "0"
    assert all(int(written(multiplication_steps(str(a), str(b))[1])[::-1]) == a * b for a in range(0, 1000, 37) for b in range(100))
    task = ScratchpadMultiplication(max_factor_digits=2)
    prompt = Prompt("x", "47*36=", "2961")
    assert task.think_end == "|" and task.solve(prompt).endswith("|2961")
    assert [task.verify(prompt, c) for c in ("7600:2|2961", "2961", "|1692")] == [1, 0, 0]


def test_a_product_is_written_without_leading_zeros_and_keeps_those_behind():
    """Low digit first, 20 * 5 = 100 is "001", and 12 * 0 is "0"."""
    assert written([0, 0, 1]) == "001" and written([6, 3, 0]) == "63" and written([0, 0]) == "0"


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("(7+2)*3", 1),
        ("3*(2+7)", 1),
        (" 3 * ( 2+07 ) ", 1),
        ("7*3+3*2", 0),  # 3 twice
        ("3*9", 0),
        ("7+2*3", 0),
        ("(7+2)*3=27", 0),
        ("27", 0),
        ("3**(7+2)", 0),
        ("3//(7+2)", 0),
        ("(7+2)*3.0", 0),
        ("7/(2-2)*3", 0),
        ("(7+2*3", 0),
        ("", 0),
        ("__import__('os')", 0),
    ],
)
def test_countdown_takes_every_right_expression(completion, reward):
    assert Countdown().verify(Prompt("x", "3,7,2:27=", "27", {"numbers": [3, 7, 2]}), completion) == reward


def test_countdown_is_exact_and_safe():
    assert value_over("8/(3-8/3)", [8, 3, 8, 3]) == 24  # through thirds
    assert value_over("7/(2-2)", [7, 2, 2]) is None
    assert value_over("(" * 90 + "1" + ")" * 90, [1]) == 1 and value_over("(" * 101 + "1" + ")" * 100, [1]) is None
    assert value_over("٣", [3]) is None


def test_countdown_prompts_can_be_read_and_keys_forget_the_order():
    task = Countdown(2, 5)
    for i in STREAM:
        prompt = task.prompt_at(i, 0)
        numbers, _, target = prompt.text[:-1].partition(":")
        assert list(map(int, numbers.split(","))) == prompt.info["numbers"] and target == prompt.answer and 1 <= int(target) <= 99
        assert prompt.info["difficulty"] == f"{len(prompt.info['numbers'])} numbers"
    assert task.key(Prompt("", "", "27", {"numbers": [3, 7, 2]})) == task.key(Prompt("", "", "27", {"numbers": [2, 3, 7]}))


@pytest.mark.parametrize(
    ("command", "after"), [("d3", "abde"), ("i3x", "abxcde"), ("r3x", "abxde"), ("s25", "aecdb"), ("s52", "aecdb"), ("v", "edcba")]
)
def test_edits(command, after):
    assert edit("abcde", command) == after


def test_edits_stay_within_the_word():
    for i in STREAM:
        word, *commands = StringEdits(8, 8).prompt_at(i, 0).text[:-1].split(";")
        assert len(commands) == 8
        for command in commands:
            assert all(1 <= int(place) <= len(word) <= 9 for place in re.findall(r"\d", command))
            word = edit(word, command)


def run(program: str) -> list[int]:
    stack: list[int] = []
    for instruction in program:
        stack = execute(instruction, stack)
    return stack


@pytest.mark.parametrize(
    ("program", "stack"), [("34+", [7]), ("34-", [9]), ("78*", [6]), ("34+2ds", [7, 2, 2]), ("12s", [2, 1]), ("12p", [1]), ("99+", [8])]
)
def test_stack_machine(program, stack):
    assert run(program) == stack


def test_stack_programs_run_without_underflow():
    for i in STREAM:
        prompt = StackMachine().prompt_at(i, 0)
        assert "".join(map(str, run(prompt.text[:-1]))) == prompt.answer != ""


def test_list_programs_mean_what_python_says():
    python = {
        "rev": lambda x: x[::-1],
        "sort": sorted,
        "tail": lambda x: x[1:],
        "inc": lambda x: [(n + 1) % 10 for n in x],
        "uniq": lambda x: [n for i, n in enumerate(x) if n not in x[:i]],
        "cat": lambda x, y: [*x, *y],
    }
    seen = set()
    for i in STREAM:
        prompt = ListPrograms(1, 6).prompt_at(i, 0)
        literal = re.sub(r"\d+", lambda m: str(list(map(int, m[0]))), prompt.text[:-1])
        assert "".join(map(str, eval(literal, python))) == prompt.answer != ""
        depth = max(prompt.text[:k].count("(") - prompt.text[:k].count(")") for k in range(len(prompt.text)))
        assert prompt.info["difficulty"] == f"depth {depth}"
        seen |= set(re.findall("[a-z]+", prompt.text))
    assert seen == set(python) - {"__builtins__"}


def test_short_programs_pass_their_tests_and_others_do_not():
    task, failed = ShortPrograms(), 0
    for i in range(100):
        prompt = task.prompt_at(i, 0)
        assert prompt.answer is None and "setup" not in prompt.info and prompt.info["entry_point"] == "f"
        assert len(prompt.info["tests"]) == 8 and all(t.removeprefix("assert ") in prompt.text for t in prompt.info["tests"][:EXAMPLES])
        space: dict = {}
        exec(prompt.text + task.solve(prompt), space)
        for test in prompt.info["tests"]:
            exec(test, space)
        exec(prompt.text + "    return x+1", space)
        try:
            for test in prompt.info["tests"]:
                exec(test, space)
        except AssertionError:
            failed += 1
    assert failed > 95
    assert task.verify(task.prompt_at(0, 0), "    return x") is None


def test_postfix_programs_compute_their_formula():
    """Python's own parser on the solution, and a stack on the formula, agree with the unit tests."""
    task, seen = PostfixPrograms(1, 5), set()
    pick = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "M": max, "m": min}
    for i in range(300):
        prompt = task.prompt_at(i, 0)
        formula = prompt.text.removeprefix("def f(x):#").removesuffix("\n return ")
        space: dict = {}
        exec(prompt.text + task.solve(prompt), space)
        for test, x in zip(prompt.info["tests"], INPUTS, strict=True):
            stack = []
            for c in formula:
                stack.append(pick[c](*[stack.pop(), stack.pop()][::-1]) if c in pick else x if c == "x" else int(c))
            assert test == f"assert f({x}) == {stack[0]}" and space["f"](x) == stack[0] and len(stack) == 1
        operators = sum(c in pick for c in formula)
        assert prompt.info["difficulty"] == f"{operators} operator{'s' * (operators > 1)}" and "x" in formula
        seen |= set(formula)
    assert seen == set("123456789x+-*Mm") and task.verify(prompt, "x") is None  # pyright: ignore[reportPossiblyUnboundVariable]
