"""Sorting: the digits of a number in ascending order, "52917:" -> "12579". Procedural, needs no data."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from tacit.core.rollouts import Prompt

HELD_OUT = 16  # one prompt in so many is held out


class Sorting:
    """Prompts are uniform in length between `min_length` and `max_length`, and their digits uniform, repetitions allowed.

    A prompt is held out when a hash of its text says so, so that the held-out set is the same for every stream, and disjoint from it.
    """

    name = "sorting"
    alphabet = "0123456789:"

    def __init__(self, min_length: int = 5, max_length: int = 9):
        if not 2 <= min_length <= max_length:
            raise ValueError(f"sorting needs 2 <= min_length <= max_length, not min_length {min_length} and max_length {max_length}")
        self.min_length, self.max_length = min_length, max_length

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        rng = np.random.Generator(np.random.Philox(key=(seed, ordinal)))
        while is_held_out(text := self._draw(rng)):
            pass
        return _prompt(text)

    def heldout(self, count: int) -> list[Prompt]:
        rng = np.random.Generator(np.random.Philox(key=0))
        found: dict[str, None] = {}
        for _ in range(1000 + 100 * HELD_OUT * count):
            if len(found) == count:
                return [_prompt(text) for text in found]
            if is_held_out(text := self._draw(rng)):
                found[text] = None
        raise ValueError(f"sorting {self.min_length} to {self.max_length} digits has only {len(found)} held-out prompts, {count} were asked for")

    def solve(self, prompt: Prompt) -> str:
        return "".join(sorted(prompt.text.removesuffix(":")))

    def verify(self, prompt: Prompt, completion: str) -> float:
        return float(completion == self.solve(prompt))

    def baselines(self) -> dict[str, float]:
        return {}

    def _draw(self, rng: np.random.Generator) -> str:
        length = rng.integers(self.min_length, self.max_length, endpoint=True)
        return "".join(map(str, rng.integers(10, size=length))) + ":"


def is_held_out(text: str) -> bool:
    return blake2b(text.encode(), digest_size=8).digest()[0] % HELD_OUT == 0


def _prompt(text: str) -> Prompt:
    return Prompt(id=f"sorting/{text[:-1]}", text=text, answer="".join(sorted(text[:-1])))
