from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tacit.core.rollouts import Prompt
from tacit.rewards.base import Score
from tacit.rewards.pool import Answer
from tacit.rewards.programs import ProgramTests, complete, program_of, score_of
from tacit.rewards.sandbox import Limits, guards, missing

PARTS = {"timed_out": 0.0, "crashed": 0.0, "refused": 0.0}
RIGHT = {"passed": 1.0, **PARTS}


def prompt(*tests: str, setup: str = "", entry_point: str | None = None, text: str = "") -> Prompt:
    return Prompt("p", text, None, {"tests": list(tests), "setup": setup, "entry_point": entry_point})


@pytest.fixture(scope="module")
def judge():
    """(prompt, completion) -> Score. Where programs are refused, what the sandbox would have said cannot be tested, and the refusal is."""
    if missing(guards()):
        with pytest.raises(ValueError, match="cannot be isolated on this machine"):
            ProgramTests()
    reward = ProgramTests(limits=Limits(deadline=3), workers=1, sandbox="unsafe")  # our own programs, below
    yield lambda prompt, completion: reward([prompt], [completion])[0]
    reward.close()


def test_right_wrong_and_half_right(judge):
    square = prompt("assert square(3) == 9", "assert square(-2) == 4")
    assert judge(square, "def square(x): return x * x") == Score(1.0, RIGHT)
    assert judge(square, "def square(x): return 3 * x") == Score(0.0, {**PARTS, "passed": 0.5}, "assertion failed")
    assert judge(square, "def cube(x): return x") == Score(0.0, {**PARTS, "passed": 0.0}, "raised NameError: name 'square' is not defined")
    assert judge(square, "def square(x) return x").failure.startswith("raised SyntaxError: ")
    assert judge(square, "def square(x): return x.y").failure.startswith("raised AttributeError: ")


def test_how_a_program_failed_is_a_part(judge):
    one = prompt("assert f() == 1")
    assert judge(one, "def f():\n while True: pass") == Score(0.0, {**PARTS, "passed": 0.0, "timed_out": 1.0}, "timed out after 3 s")
    assert judge(one, "import os\nos._exit(0)").parts == {**PARTS, "passed": 0.0, "crashed": 1.0}
    assert judge(one, "import os\nos._exit(0)").failure == "the program ended before it answered (exit code 0)"
    assert judge(one, "print('x' * 2**22)").parts == {**PARTS, "passed": 0.0, "refused": 1.0}


def test_no_tests_and_a_broken_sandbox_leave_it_unscored(judge):
    assert judge(Prompt("q", ""), "x") == Score(None, failure="prompt 'q' has no tests: its info needs 'tests', a list of texts")
    assert score_of(Answer(failure="the worker died (signal 9)"), 1) == Score(None, failure="the sandbox failed: the worker died (signal 9)")


def test_too_few_verdicts_are_not_a_pass():
    assert score_of(Answer({"verdicts": [""], "ending": "", "output": ""}), 2).value == 0.0
    assert score_of(Answer({"verdicts": [""], "ending": "timed out after 1 s", "output": ""}), 1).value == 0.0
    assert score_of(Answer({"verdicts": [], "ending": "", "output": ""}), 1) == Score(0.0, {**PARTS, "passed": 0.0}, "only 0 of 1 tests were run")


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("(1, [2.5, None], {'a': {3}}, True)", "assert f() == (1, [2.5, None], {'a': {3}}, True)"),
        ("10 ** 5000", "assert f() == 10 ** 5000"),
        ("b'\\x00' + bytes(bytearray(b'y'))", "assert f() == b'\\x00y'"),
        ("float('nan')", "assert f() != f() and type(f()) is float"),
        ("-float('inf'), 2j, range(3), frozenset({1})", "assert f() == (-float('inf'), 2j, range(3), frozenset({1}))"),
        ("'\\ud800 \\u202e'", "assert f() == '\\ud800 \\u202e'"),
        ("__import__('fractions').Fraction(1, 3)", "from fractions import Fraction\nassert f() * 3 == 1"),
        ("__import__('decimal').Decimal('0.10')", "assert str(f()) == '0.10'"),
        ("__import__('collections').Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
        ("__import__('collections').deque([1])", "assert list(f()) == [1]"),
        ("(i * i for i in range(3))", "assert list(f()) == [0, 1, 4]"),
        ("(i for i in range(2))", "g = f()\nassert next(g) == 0 and next(g) == 1"),
        ("lambda x: x + 1", "assert f()(1) == 2"),
        ("0.1 + 0.2", "assert math.isclose(f(), 0.3)"),
        ("[1, 2, 2]", "assert set(f()) == {1, 2} and sorted(f()) == [1, 2, 2] and len(f()) == 3"),
        ("int", "assert f() is int"),
    ],
)
def test_results_arrive_as_what_they_were(judge, value, test):
    assert judge(prompt(test), f"def f():\n    return {value}") == Score(1.0, RIGHT)


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(xs): xs.sort()", "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]"),
        ("def f(d): d['x'] = 1; d.pop('y')", "d = {'y': 2}\nf(d)\nassert d == {'x': 1}"),
        ("def f(g, x): return g(g(x))", "assert f(lambda x: 3 * x, 2) == 18"),
        ("def f(g): return sorted([3, -4, 1], key=g)", "assert f(abs) == [1, 3, -4]"),
        ("def f(xs, kind): return [x for x in xs if isinstance(x, kind)]", "assert f([1, 'a'], str) == ['a']"),
        ("def f(x=1, *, y=2): return x - y", "assert f() == -1 and f(y=5, x=3) == -2"),
        ("def f(x): raise ValueError('negative')", "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)"),
        ("class Odd(Exception): pass\ndef f(): raise Odd('x')", "try:\n    f()\nexcept Exception as e:\n    assert str(e) == 'Odd: x'"),
        ("LIMIT = 7", "assert LIMIT == 7"),
    ],
)
def test_calls_work_as_in_one_process(judge, program, test):
    assert judge(prompt(test), program) == Score(1.0, RIGHT)


CLASSES = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __contains__(self, x): return x in self.items
    def __repr__(self): return f"Stack({self.items})"
class Node:
    def __init__(self, value): self.value, self.left = value, None
def depth(node): return 0 if node is None else 1 + depth(node.left)
"""


def test_objects_of_the_program_stay_there_and_can_be_used(judge):
    test = "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s[0] == 1 and 2 in s and s.items == [1, 2] and str(s) == 'Stack([1, 2])' and s"
    assert judge(prompt(test + "\nassert s.pop() == 2 and list(s) == [1]"), CLASSES) == Score(1.0, RIGHT)
    assert judge(prompt("assert depth(root) == 2", setup="root = Node(1)\nroot.left = Node(2)"), CLASSES) == Score(1.0, RIGHT)


def test_a_name_of_pythons_is_pythons_unless_it_is_the_function_under_test(judge):
    cheat = "def set(x): return 7\ndef sorted(x): return 7\nclass math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return x\n"
    for test in ("assert set(f([1])) == set([2])", "assert sorted(f([1])) == sorted([2])", "assert math.isclose(f(1), 2)"):
        assert judge(prompt(test), cheat).value == 0.0
    own = "def sum(a, b): return a + b\ndef bisect(a): return a"
    assert judge(prompt("assert sum(10, 15) == 25", entry_point="sum"), own) == Score(1.0, RIGHT)
    assert judge(prompt("assert bisect(1) == 1"), own) == Score(1.0, RIGHT)


def test_humaneval(judge):
    head = "from typing import List\n\ndef add(xs: List[int]) -> int:\n    '''Adds.'''\n"
    case = prompt(
        "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert add([]) == 0", entry_point="add", text="Complete this.\n" + head
    )
    assert judge(case, "    return sum(xs)\n") == Score(1.0, RIGHT)  # a base model goes on where the prompt ends
    assert judge(case, f"Sure!\n```python\n{head}    return sum(xs)\n```\nDone.") == Score(1.0, RIGHT)
    assert judge(case, "    return 3\n").value == 0.0
    assert complete("def check(c): pass\ncheck(f)", "f") == "def check(c): pass\ncheck(f)"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\n", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("~~~py\nx = 1\n~~~", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = = 2\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("", ""),
    ],
)
def test_the_code_of_a_completion(completion, code):
    assert program_of(completion) == code


def test_the_block_that_defines_the_function_is_the_one():
    assert program_of("```\ndef f(): pass\n```\nExample:\n```\nf()\n```", entry_point="f") == "def f(): pass\n"


def test_from_another_thread_inside_asyncio_and_meanwhile():
    reward = ProgramTests(workers=1, sandbox="unsafe")
    cases, found = ([prompt("assert f() == 1")], ["def f(): return 1"]), []
    thread = threading.Thread(target=lambda: found.extend(reward(*cases)))
    thread.start()
    thread.join()

    async def inside():
        return reward(*cases)

    assert found == asyncio.run(inside()) == reward.begin(*cases)() == [Score(1.0, RIGHT)]
    reward.close()


def test_fifteen_programs_a_second():
    reward = ProgramTests(workers=2, sandbox="unsafe")
    many = [prompt("assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4")] * 60
    reward(many[:2], ["def f(x): return x + 1"] * 2)
    began = time.perf_counter()
    scores = reward(many, ["def f(x): return x + 1"] * 60)
    assert scores == [Score(1.0, RIGHT)] * 60
    assert 60 / (time.perf_counter() - began) > 15
    assert reward.sandbox.pool.stats.answered == 62
    reward.close()
