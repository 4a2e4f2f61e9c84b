"""Rewards made worse on purpose: what a verifier that errs does to training."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    The raw reward stays in 'reward/raw', unless `raw` says that this is what the verifier itself does: then nothing knows better.
    """

    def __init__(self, rate: float, raw: bool = False):
        if not 0 <= rate <= 1:
            raise ValueError(f"rate of flipped rewards must lie between 0 and 1, not {rate}")
        self.rate, self.raw = rate, raw

    def score(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        keys = row_keys(step.seed, step.index, batch.group.numpy(), place_in_group(batch.group), agent=agent.index)
        flipped = torch.from_numpy(uniforms(keys, FLIPS) < self.rate) & batch.scored
        columns = ("reward", "reward/raw") if self.raw else ("reward",)
        return batch.with_columns(**{name: torch.where(flipped, 1 - batch.rows[name], batch.rows[name]) for name in columns})


def place_in_group(groups: torch.Tensor) -> list[int]:
    """0, 1, 2, … for the members of each group (B,), in the order of the rows."""
    seen: dict[int, int] = {}
    places = []
    for group in groups.tolist():
        places.append(seen.get(group, 0))
        seen[group] = places[-1] + 1
    return places
