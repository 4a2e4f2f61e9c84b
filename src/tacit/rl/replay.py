"""Replay buffer: the rollouts of the last rounds, as they were drawn, with their age and how often each was used.

What a rollout needs to be trained on later stays with it: the log-probs of the policy that drew it, against which its ratio is taken (see
`update.objective`), that policy's version, and its advantage, since its group is complete only when it is drawn. Prompts are told apart by their
ids, rollouts by group, sample and agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tacit.core.rollouts import RolloutBatch, Source

DROPPED = ("hidden",)  # columns too large to keep, which no update reads
BORN = "replay/round"  # row column: the step in which it was drawn


def identity(batch: RolloutBatch) -> Tensor:
    """(B,) int64: a number for each rollout that no other one has."""
    return (batch.group * 2**12 + batch.sample) * 2**4 + batch.agent


class ReplayBuffer:
    """Rounds t - `rounds` + 1 … t, the oldest out first. `stale`: optimiser steps beyond which a rollout is no candidate, though it stays."""

    def __init__(self, rounds: int, stale: int | None = None):
        if rounds < 1 or (stale is not None and stale < 0):
            raise ValueError(f"a replay buffer needs rounds >= 1 and stale >= 0, not {rounds} and {stale}")
        self.rounds, self.stale = rounds, stale
        self.held: dict[int, RolloutBatch] = {}  # by round

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.held.values())

    @property
    def prompts(self) -> int:
        """Distinct prompts among the rollouts."""
        return len({prompt.id for batch in self.held.values() for prompt in batch.prompts})

    def push(self, index: int, batch: RolloutBatch) -> None:
        """Takes in what was drawn in round `index`, and lets go of what is too old by then. Rounds may be missing."""
        born = torch.full((len(batch),), index, dtype=torch.int64)
        kept = batch.with_columns(**{BORN: born})
        kept.tokens = {name: column for name, column in kept.tokens.items() if name not in DROPPED}
        self.held = {i: b for i, b in self.held.items() if index - self.rounds < i < index} | {index: kept}

    def candidates(self, index: int, version: int) -> RolloutBatch:
        """What may be trained on in round `index`, the fresh round first and as it came, then backwards in time, marked as replayed.

        Raises ValueError when round `index` has not been pushed.
        """
        if index not in self.held:
            raise ValueError(f"round {index} is not in the buffer: push it first")
        older = [self.held[i] for i in sorted(self.held, reverse=True) if i < index]
        if self.stale is not None:
            older = [batch.select(version - batch.version <= self.stale) for batch in older]
        replayed = [batch.with_columns(source=torch.full_like(batch.source, Source.REPLAYED)) for batch in older if len(batch)]
        return RolloutBatch.cat([self.held[index], *replayed])

    def born(self, batch: RolloutBatch) -> Tensor:
        """(B,) the rounds in which these candidates were drawn."""
        return batch.rows[BORN]

    def count(self, used: RolloutBatch) -> None:
        """One more use of each rollout that `used` holds and the buffer too."""
        names = identity(used)
        for index, batch in self.held.items():
            hits = torch.isin(identity(batch), names)
            self.held[index] = batch.with_columns(usage=batch.usage + hits)

    def clear(self) -> None:
        self.held = {}

    def state_dict(self) -> dict[str, Any]:
        return {"held": {str(index): batch.state_dict() for index, batch in self.held.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.held = {int(index): RolloutBatch.from_state_dict(batch) for index, batch in state["held"].items()}
