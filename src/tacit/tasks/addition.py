"""Addition of n-digit numbers, "588+466=" -> "1054"; and with a digit-wise scratchpad, "588+466=" -> "860:4,861:5,541:0|4501".

A step of the scratchpad holds the two digits of a place and the carry into it, and the digit that is written: 8, 6 and 0 give 4, low digit first.
The bar ends the thought; behind it stands the sum, low digit first as well. Traces to learn from are redundant: they say each step again up to
`restate` times, and a share `skip` of them has no scratchpad at all. That gives a learner of efficient reasoning something to leave out.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import zip_longest

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range

THINK_END = "|"


class Addition(Procedural):
    """Both numbers have the same number of digits, uniform between `min_digits` and `max_digits`; a + b is held out together with b + a."""

    name = "addition"
    alphabet = "0123456789+="

    def __init__(self, min_digits: int = 2, max_digits: int = 3):
        check_range(self.name, "digits", min_digits, max_digits, least=1)
        if max_digits > 18:
            raise ValueError(f"{self.name} needs max_digits of at most 18, not {max_digits}")
        self.min_digits, self.max_digits = min_digits, max_digits

    def draw(self, rng: np.random.Generator) -> Prompt:
        digits = int(rng.integers(self.min_digits, self.max_digits, endpoint=True))
        a, b = draw_number(rng, digits), draw_number(rng, digits)
        return Prompt(f"{self.name}/{a}+{b}", f"{a}+{b}=", self.write(a + b), {"difficulty": f"{digits} digits"})

    def key(self, prompt: Prompt) -> str:
        return "+".join(sorted(prompt.text.removesuffix("=").split("+")))

    def write(self, total: int) -> str:
        return str(total)


class ScratchpadAddition(Addition):
    """The same sums, to be thought through before they are answered; only what stands behind the last bar is judged."""

    name = "addition_scratchpad"
    alphabet = "0123456789+=:,|"
    think_end = THINK_END

    def __init__(self, min_digits: int = 2, max_digits: int = 3, restate: int = 2, skip: float = 0.15):
        super().__init__(min_digits, max_digits)
        self.restate, self.skip = restate, skip

    def write(self, total: int) -> str:
        return str(total)[::-1]

    def solve(self, prompt: Prompt) -> str:
        """A redundant trace, always the same for one prompt."""
        a, b = prompt.text.removesuffix("=").split("+")
        return redundant(addition_steps(a, b), str(prompt.answer), prompt.text, self.restate, self.skip)

    def verify(self, prompt: Prompt, completion: str) -> float:
        return answered(completion, str(prompt.answer))


def addition_steps(a: str, b: str) -> list[str]:
    """The steps of a + b, low place first: "588", "466" -> ["860:4", "861:5", "541:0"]."""
    steps, carry = [], 0
    for x, y in zip_longest(reversed(a), reversed(b), fillvalue="0"):
        total = int(x) + int(y) + carry
        steps.append(f"{x}{y}{carry}:{total % 10}")
        carry = total // 10
    return steps


def redundant(steps: list[str], answer: str, text: str, restate: int, skip: float) -> str:
    """A trace with every step said 1 to 1 + restate times, or, for a share `skip` of prompts, without any. `text` decides by its hash."""
    rng = np.random.default_rng(int.from_bytes(blake2b(text.encode(), digest_size=8).digest()))
    if rng.random() < skip:
        return THINK_END + answer
    said = rng.integers(1, 1 + restate, size=len(steps), endpoint=True)
    return ",".join(step for step, times in zip(steps, said, strict=True) for _ in range(times)) + THINK_END + answer


def answered(completion: str, answer: str) -> float:
    """1 when the answer, and nothing else, stands behind the last bar."""
    _, bar, said = completion.rpartition(THINK_END)
    return float(bool(bar) and said == answer)


def draw_number(rng: np.random.Generator, digits: int) -> int:
    """Uniform among the numbers of so many digits that do not begin with 0."""
    return int(rng.integers(10 ** (digits - 1), 10**digits))
