"""Reversal: a word from back to front, "bdeac:" -> "caedb". Procedural, needs no data."""

from __future__ import annotations

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range

LETTERS = "abcdefghij"


class Reversal(Procedural):
    """Words are uniform in length between `min_length` and `max_length`, and their letters uniform among ten."""

    name = "reversal"
    alphabet = f"{LETTERS}:"

    def __init__(self, min_length: int = 6, max_length: int = 12):
        check_range("reversal", "length", min_length, max_length, least=2)
        self.min_length, self.max_length = min_length, max_length

    def draw(self, rng: np.random.Generator) -> Prompt:
        length = rng.integers(self.min_length, self.max_length, endpoint=True)
        word = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=length))
        return Prompt(f"reversal/{word}", f"{word}:", word[::-1], {"difficulty": f"{length} letters"})
