"""Sorting: the digits of a number in ascending order, "52917:" -> "12579". Procedural, needs no data."""

from __future__ import annotations

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range


class Sorting(Procedural):
    """Prompts are uniform in length between `min_length` and `max_length`, and their digits uniform, repetitions allowed."""

    name = "sorting"
    alphabet = "0123456789:"

    def __init__(self, min_length: int = 5, max_length: int = 9):
        check_range("sorting", "length", min_length, max_length, least=2)
        self.min_length, self.max_length = min_length, max_length

    def draw(self, rng: np.random.Generator) -> Prompt:
        length = rng.integers(self.min_length, self.max_length, endpoint=True)
        digits = "".join(map(str, rng.integers(10, size=length)))
        return Prompt(f"sorting/{digits}", f"{digits}:", "".join(sorted(digits)), {"difficulty": f"{length} digits"})

    def solve(self, prompt: Prompt) -> str:
        return "".join(sorted(prompt.text.removesuffix(":")))

    def verify(self, prompt: Prompt, completion: str) -> float:
        return float(completion == self.solve(prompt))
