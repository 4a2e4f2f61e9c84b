"""Multiplication with a digit-wise scratchpad, "47*36=" -> "7600:2,4604:8,7380:9,4322:6|2961".

Long multiplication that adds as it goes. A step holds a digit of the first number, a digit of the second, the digit so far at their place and
the carry into it, and the digit that is written there; the carry out of the last place opens a new one. It is at most 9, since
9·9 + 9 + 9 = 99. As in addition, all goes from the low digit up, a bar ends the thought, and traces are redundant.
"""

from __future__ import annotations

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.addition import THINK_END, answered, draw_number, redundant
from tacit.tasks.procedural import Procedural, check_range


class ScratchpadMultiplication(Procedural):
    """The first number has `min_digits` to `max_digits` digits, the second 1 to `max_factor_digits`; only what stands behind the bar is judged."""

    name = "multiplication_scratchpad"
    alphabet = "0123456789*=:,|"
    think_end = THINK_END

    def __init__(self, min_digits: int = 2, max_digits: int = 3, max_factor_digits: int = 1, restate: int = 2, skip: float = 0.15):
        check_range(self.name, "digits", min_digits, max_digits, least=1)
        if not (1 <= max_factor_digits <= 18 and max_digits <= 18):
            raise ValueError(f"{self.name} needs max_digits and max_factor_digits from 1 to 18, not {max_digits} and {max_factor_digits}")
        self.min_digits, self.max_digits, self.max_factor_digits = min_digits, max_digits, max_factor_digits
        self.restate, self.skip = restate, skip

    def draw(self, rng: np.random.Generator) -> Prompt:
        digits = int(rng.integers(self.min_digits, self.max_digits, endpoint=True))
        factor_digits = int(rng.integers(1, self.max_factor_digits, endpoint=True))
        a, b = draw_number(rng, digits), draw_number(rng, factor_digits)
        answer = written(multiplication_steps(str(a), str(b))[1])
        return Prompt(f"{self.name}/{a}*{b}", f"{a}*{b}=", answer, {"difficulty": f"{digits}x{factor_digits} digits"})

    def key(self, prompt: Prompt) -> str:
        return "*".join(sorted(prompt.text.removesuffix("=").split("*")))

    def solve(self, prompt: Prompt) -> str:
        """A redundant trace, always the same for one prompt."""
        a, b = prompt.text.removesuffix("=").split("*")
        return redundant(multiplication_steps(a, b)[0], str(prompt.answer), prompt.text, self.restate, self.skip)

    def verify(self, prompt: Prompt, completion: str) -> float:
        return answered(completion, str(prompt.answer))


def multiplication_steps(a: str, b: str) -> tuple[list[str], list[int]]:
    """The steps of a * b, and the digits of the product, low first and with zeros on top: "12", "3" -> ["2300:6", "1300:3"], [6, 3, 0]."""
    steps, product = [], [0] * (len(a) + len(b))
    for j, y in enumerate(reversed(b)):
        carry = 0
        for i, x in enumerate(reversed(a)):
            total = int(x) * int(y) + product[i + j] + carry
            steps.append(f"{x}{y}{product[i + j]}{carry}:{total % 10}")
            product[i + j], carry = total % 10, total // 10
        product[j + len(a)] = carry
    return steps, product


def written(digits: list[int]) -> str:
    """Digits, low first, without the zeros on top; zero itself is "0"."""
    return "".join(map(str, digits)).rstrip("0") or "0"
