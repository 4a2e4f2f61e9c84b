"""Brackets: what closes all that is open, "([]{:" -> "})". Procedural, needs no data."""

from __future__ import annotations

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural, check_range

CLOSES = dict(zip("([{<", ")]}>", strict=True))
OPENING = "".join(CLOSES)
P_CLOSE = 0.4  # of closing the innermost open bracket, where there is one


class Brackets(Procedural):
    """Prompts of `min_length` to `max_length` brackets of four kinds, of which at least one is still open. The difficulty is how many are."""

    name = "brackets"
    alphabet = "()[]{}<>:"

    def __init__(self, min_length: int = 6, max_length: int = 14):
        check_range("brackets", "length", min_length, max_length, least=2)
        self.min_length, self.max_length = min_length, max_length

    def draw(self, rng: np.random.Generator) -> Prompt:
        length = int(rng.integers(self.min_length, self.max_length, endpoint=True))
        text, missing = "", ""
        while not missing:
            text, missing = _walk(rng, length)
        return Prompt(f"brackets/{text}", f"{text}:", missing, {"difficulty": f"{len(missing)} open"})


def _walk(rng: np.random.Generator, length: int) -> tuple[str, str]:
    """`length` brackets, and those that would close what they leave open."""
    text, missing = "", ""
    for kind, close in zip(rng.integers(len(OPENING), size=length), rng.random(length) < P_CLOSE, strict=True):
        if close and missing:
            text, missing = text + missing[0], missing[1:]
        else:
            text, missing = text + OPENING[kind], CLOSES[OPENING[kind]] + missing
    return text, missing
