"""Postfix programs: a formula in postfix form, and the Python that computes it; judged by running unit tests.

    def f(x):#x3+5*7m
     return             ->      min((x+3)*5,7)

Two numbers and + - *, or M and m for the larger and the smaller, give a number. Any expression that passes is right, however it is written, so
that judging one means running it: `verify` gives no verdict, `info` holds what the reward for programs needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range

OPERATORS: dict[str, tuple[str, Callable[[int, int], int], bool]] = {  # how Python writes it, what it gives, whether it stands between its operands
    "+": ("{}+{}", operator.add, True),
    "-": ("{}-{}", operator.sub, True),
    "*": ("{}*{}", operator.mul, True),
    "M": ("max({},{})", max, False),
    "m": ("min({},{})", min, False),
}
INPUTS = (-7, -3, 0, 1, 4, 12)  # of the unit tests
P_X = 0.4  # of an operand that is x, not a digit


class PostfixPrograms(Procedural):
    """Formulas of `min_operators` to `max_operators` operators in which x occurs. Held out are functions, however they are written: by their values.

    info: `tests` (asserts) and `entry_point`. The program is the prompt with the completion behind it.
    """

    name = "postfix_programs"
    alphabet = "".join(sorted(set("0123456789 \n#:(),+-*maxmin Mm def f(x): return")))
    reward = "tacit.rewards.programs:ProgramTests"

    def __init__(self, min_operators: int = 1, max_operators: int = 4):
        check_range(self.name, "operators", min_operators, max_operators, least=1)
        if max_operators > 12:
            raise ValueError(f"postfix_programs needs max_operators of at most 12, not {max_operators}")
        self.min_operators, self.max_operators = min_operators, max_operators

    def draw(self, rng: np.random.Generator) -> Prompt:
        count = int(rng.integers(self.min_operators, self.max_operators, endpoint=True))
        formula, body, values, _ = _formula(rng, count)
        while "x" not in formula:
            formula, body, values, _ = _formula(rng, count)
        info = {
            "tests": [f"assert f({x}) == {value}" for x, value in zip(INPUTS, values, strict=True)],
            "entry_point": "f",
            "solution": body,
            "values": values,
            "difficulty": f"{count} operator{'s' * (count > 1)}",
        }
        return Prompt(f"postfix_programs/{formula}", f"def f(x):#{formula}\n return ", None, info)

    def key(self, prompt: Prompt) -> str:
        return repr(prompt.info["values"])

    def solve(self, prompt: Prompt) -> str:
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> None:
        """No verdict: a program is judged by running it, and that needs a sandbox."""
        return


def _formula(rng: np.random.Generator, operators: int) -> tuple[str, str, list[int], bool]:
    """A formula of so many operators: postfix, Python, its values at INPUTS, and whether Python needs parentheses around it."""
    if operators == 0:
        if rng.random() < P_X:
            return "x", "x", list(INPUTS), False
        digit = int(rng.integers(1, 10))
        return str(digit), str(digit), [digit] * len(INPUTS), False
    left = int(rng.integers(operators))
    (a, python_a, values_a, loose_a), (b, python_b, values_b, loose_b) = _formula(rng, left), _formula(rng, operators - 1 - left)
    name = list(OPERATORS)[rng.integers(len(OPERATORS))]
    written, compute, infix = OPERATORS[name]
    python = written.format(*(f"({text})" if infix and loose else text for text, loose in ((python_a, loose_a), (python_b, loose_b))))
    return a + b + name, python, [compute(p, q) for p, q in zip(values_a, values_b, strict=True)], infix
