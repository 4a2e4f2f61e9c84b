"""Rewards made worse on purpose: what a verifier that errs does to training."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import torch

from tacit.core.rollouts import RolloutBatch
from tacit.generation.noise import row_keys, uniforms
from tacit.rl.component import Component

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step

FLIPS = 2**20  # keeps these random numbers apart from those that draw tokens: no completion has so many


class FlippedRewards(Component):
    """A reward r becomes 1 - r with probability `rate`, anew for every rollout: 0.5 leaves no information.

    The raw reward stays in 'reward/raw', unless `raw` says that this is what the verifier itself does: then nothing knows better. The column
    'noise/flipped' marks the rollouts, for those who count.
    """

    def __init__(self, rate: float, raw: bool = False):
        if not 0 <= rate <= 1:
            raise ValueError(f"rate of flipped rewards must lie between 0 and 1, not {rate}")
        self.rate, self.raw = rate, raw

    def score(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        keys = row_keys(step.seed, step.index, batch.group.numpy(), place_in_group(batch.group), agent=agent.index)
        flipped = torch.from_numpy(uniforms(keys, FLIPS) < self.rate) & batch.scored
        columns = ("reward", "reward/raw") if self.raw else ("reward",)
        changed = {name: torch.where(flipped, 1 - batch.rows[name], batch.rows[name]) for name in columns}
        return batch.with_columns(**changed, **{"noise/flipped": flipped.double()})


class GuessedCorrect(Component):
    """A verifier with a small answer space: wrong completions whose checksum modulo `answers` is that of the right one count as right.

    About 1 in `answers` does, always the same ones: the derivation was wrong and the answer came out. 'noise/guessed' marks them.
    """

    def __init__(self, answers: int = 5):
        if answers < 2:
            raise ValueError(f"an answer space needs at least 2 answers, not {answers}")
        self.answers = answers

    def score(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        said = [
            crc32(text.encode()) % self.answers == crc32(str(p.answer).encode()) % self.answers
            for p, text in zip(batch.prompts, batch.texts, strict=True)
        ]
        guessed = torch.tensor(said) & batch.scored & (batch.reward < 1)
        changed = {name: torch.where(guessed, 1.0, batch.rows[name]) for name in ("reward", "reward/raw")}
        return batch.with_columns(**changed, **{"noise/guessed": guessed.double()})


def place_in_group(groups: torch.Tensor) -> list[int]:
    """0, 1, 2, … for the members of each group (B,), in the order of the rows."""
    seen: dict[int, int] = {}
    places = []
    for group in groups.tolist():
        places.append(seen.get(group, 0))
        seen[group] = places[-1] + 1
    return places
