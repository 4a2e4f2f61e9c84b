"""Every data set of reasoning-gym as a task, through one adapter.

Problems are held out by a hash of their question, as in all procedural tasks. A few of the data sets (isomorphic_strings, ransom_note,
polynomial_multiplication and word_ladder, in 0.1.25) iterate over sets of strings: their problems are the same in two processes, and a resumed
run is the same run, only where PYTHONHASHSEED is fixed.
"""

from __future__ import annotations

import string
from importlib import import_module
from typing import Any

import numpy as np

from tacit.core.rollouts import Prompt
from tacit.tasks.procedural import Procedural

SAMPLE = 16  # problems whose characters enter the alphabet, beside those of ASCII that can be printed


class ReasoningGym(Procedural):
    """The data set `dataset`, with `options` as its own configuration has them; drawn from its first `size` problems.

    Answers are judged by the data set itself, which may be slow: in a worker, see `reward`. A completion gives its answer between <answer> and
    </answer>, or else is all answer; `instruction`, behind the question, may ask for that. Raises ValueError without reasoning-gym, for an
    unknown data set and for options that it refuses.
    """

    name = "reasoning_gym"
    reward = "tacit.rewards.gym:score"

    def __init__(self, dataset: str, size: int = 10_000, instruction: str = "", **options: Any):
        self.dataset, self.size, self.instruction, self.options = dataset, size, instruction, options
        try:
            factory = import_module("reasoning_gym.factory")
        except ModuleNotFoundError:
            raise ValueError("the task 'reasoning_gym' needs the library of that name: pip install 'tacit[reasoning-gym]'") from None
        if dataset not in factory.DATASETS:
            raise ValueError(f"reasoning-gym has no data set {dataset!r}: choose one of {', '.join(sorted(factory.DATASETS))}")
        try:
            self.data = factory.create_dataset(dataset, seed=0, size=size, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"reasoning-gym refuses the options of {dataset!r}: {error}") from None
        entries = [self.data[index] for index in range(min(SAMPLE, size))]
        seen = {c for entry in entries for c in entry["question"] + str(entry["answer"] or "")}
        self.alphabet = "".join(sorted(seen | set(string.printable) | set(instruction)))

    def draw(self, rng: np.random.Generator) -> Prompt:
        index = int(rng.integers(self.size))
        entry = self.data[index]
        info = {"dataset": self.dataset, "options": self.options, "entry": entry}
        return Prompt(f"{self.name}/{self.dataset}/{index}", entry["question"] + self.instruction, entry["answer"], info)

    def solve(self, prompt: Prompt) -> str | None:
        """The answer of the data set; None where it has none to show."""
        return None if prompt.answer is None else str(prompt.answer)

    def verify(self, prompt: Prompt, completion: str) -> None:
        """No verdict here: see `reward`."""
        return
