"""Countdown: the numbers 3, 7 and 2 make 27, "3,7,2:27=" -> "(7+2)*3". Several answers are right. Procedural, needs no data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.expressions import parse
from tacit.tasks.procedural import Procedural, check_range

WRITTEN = re.compile(r"[0-9+\-*/() ]+")
LONGEST = 200  # characters; brackets without end are no answer


class Countdown(Procedural):
    """`min_numbers` to `max_numbers` numbers from 1 to `largest`, each to be used exactly once, and a target from 1 to `largest_target`.

    A prompt is held out together with those that give its numbers in another order.
    """

    name = "countdown"
    alphabet = "0123456789+-*/(),:="

    def __init__(self, min_numbers: int = 3, max_numbers: int = 3, largest: int = 20, largest_target: int = 99):
        check_range("countdown", "numbers", min_numbers, max_numbers, least=2)
        if max_numbers > 8 or min(largest, largest_target) < 2:
            raise ValueError("countdown needs max_numbers of at most 8, and largest and largest_target of at least 2")
        self.min_numbers, self.max_numbers, self.largest, self.largest_target = min_numbers, max_numbers, largest, largest_target

    def draw(self, rng: np.random.Generator) -> Prompt:
        count = int(rng.integers(self.min_numbers, self.max_numbers, endpoint=True))
        while True:
            numbers = [int(n) for n in rng.integers(1, self.largest, size=count, endpoint=True)]
            target, solution = _combine(rng, numbers)
            if 1 <= target <= self.largest_target:
                break
        text = f"{','.join(map(str, numbers))}:{target}="
        info = {"numbers": numbers, "solution": solution, "difficulty": f"{count} numbers"}
        return Prompt(f"countdown/{text[:-1]}", text, str(target), info)

    def key(self, prompt: Prompt) -> str:
        return f"{sorted(prompt.info['numbers'])}:{prompt.answer}"

    def solve(self, prompt: Prompt) -> str:
        """The expression that the prompt was made from."""
        return str(prompt.info["solution"])

    def verify(self, prompt: Prompt, completion: str) -> float:
        """1 when the completion is an expression over exactly the given numbers, each used once, whose exact value is the target."""
        return float(value_over(completion, prompt.info["numbers"]) == int(prompt.answer))


def value_over(text: str, numbers: Sequence[int]) -> Fraction | None:
    """The exact value of an expression in + - * / ( ) that uses just these numbers, each once; None when it is none. Evaluates no code."""
    if len(text) > LONGEST or not WRITTEN.fullmatch(text) or sorted(map(int, re.findall(r"[0-9]+", text))) != sorted(numbers):
        return None
    try:
        return parse(text).value
    except (ValueError, ZeroDivisionError):
        return None


def _combine(rng: np.random.Generator, numbers: Sequence[int]) -> tuple[int, str]:
    """Joins numbers two by two, in random order and by random operations that stay among the integers; the value and how it is written."""
    terms = [(number, str(number)) for number in numbers]
    while len(terms) > 1:
        i, j = rng.choice(len(terms), size=2, replace=False)
        (a, left), (b, right) = terms[i], terms[j]
        choices = [(a + b, "+"), (a - b, "-"), (a * b, "*")] + ([(a // b, "/")] if b and a % b == 0 else [])
        value, sign = choices[rng.integers(len(choices))]
        terms = [term for k, term in enumerate(terms) if k not in (i, j)] + [(value, f"({left}{sign}{right})")]
    return terms[0][0], terms[0][1][1:-1]
