"""Procedural: the stream and the held-out set of a task that draws its prompts from a generator of random numbers."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from tacit.core.rollouts import Prompt

HELD_OUT = 16  # one prompt in so many is held out
PATIENCE = 1000  # draws after which a stream that meets nothing but held-out prompts gives up


class Procedural:
    """A subclass gives `name`, `alphabet` and `draw`; `key` too where two prompts ask the same thing in other words.

    A prompt is held out when a hash of its key says so, so that the held-out set is the same for every stream, and disjoint from it. Where the
    difficulty varies, `info["difficulty"]` names it.
    """

    name: str
    alphabet: str

    def draw(self, rng: np.random.Generator) -> Prompt:
        """Any prompt of the task, held out or not."""
        raise NotImplementedError

    def key(self, prompt: Prompt) -> str:
        """What the prompt asks: prompts with one key are held out together."""
        return prompt.text

    def prompt_at(self, ordinal: int, seed: int) -> Prompt:
        rng = np.random.Generator(np.random.Philox(key=(seed, ordinal)))
        for _ in range(PATIENCE):
            if not is_held_out(self.key(prompt := self.draw(rng))):
                return prompt
        raise ValueError(f"task {self.name!r} has too few prompts with these options: all that are drawn are held out")

    def heldout(self, count: int) -> list[Prompt]:
        rng = np.random.Generator(np.random.Philox(key=0))
        found: dict[str, Prompt] = {}
        for _ in range(1000 + 100 * HELD_OUT * count):
            if len(found) == count:
                return list(found.values())
            if is_held_out(key := self.key(prompt := self.draw(rng))):
                found.setdefault(key, prompt)
        raise ValueError(
            f"task {self.name!r} has only {len(found)} held-out prompts with these options, {count} were asked for: "
            f"lower evaluation.prompts to {len(found)}, or make the task larger"
        )

    def solve(self, prompt: Prompt) -> str | None:
        return str(prompt.answer)

    def verify(self, prompt: Prompt, completion: str) -> float | dict[str, float] | None:
        """1 when the completion is the answer to the letter."""
        return float(completion == prompt.answer)

    def baselines(self) -> dict[str, float]:
        return {}


def is_held_out(key: str, one_in: int = HELD_OUT) -> bool:
    return blake2b(key.encode(), digest_size=8).digest()[0] % one_in == 0


def check_range(task: str, name: str, low: int, high: int, least: int) -> None:
    """Raises ValueError unless least <= min_name <= max_name."""
    if not least <= low <= high:
        raise ValueError(f"{task} needs {least} <= min_{name} <= max_{name}, not min_{name} {low} and max_{name} {high}")
