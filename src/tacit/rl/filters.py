"""DAPO's filters as components: dynamic sampling and the treatment of over-long completions (arXiv 2503.14476, sections 3.2 and 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tacit.core.rollouts import Role, RolloutBatch
from tacit.rl.component import Component

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step


def has_signal(rewards: Tensor, groups: Tensor, scored: Tensor) -> Tensor:
    """(B,) bool: scored members of a group whose scored rewards are not all equal (DAPO eq. 11, for any reward scale)."""
    ids, inverse = groups.unique(return_inverse=True)
    inverse = inverse[scored]
    low = torch.full((len(ids),), torch.inf, dtype=rewards.dtype).scatter_reduce_(0, inverse, rewards[scored], "amin")
    high = torch.full((len(ids),), -torch.inf, dtype=rewards.dtype).scatter_reduce_(0, inverse, rewards[scored], "amax")
    keep = torch.zeros_like(scored)
    keep[scored] = (high > low)[inverse]
    return keep


def overlong_penalty(lengths: Tensor, limit: int, buffer: int, penalty: float) -> Tensor:
    """Soft over-long punishment (DAPO eq. 13), (B,) <= 0: nothing up to limit - buffer tokens, then linear, -penalty at the limit."""
    over = (lengths - (limit - buffer)).clamp(0, buffer)
    return -penalty * over.double() / buffer


class DynamicSampling(Component):
    """Groups whose rewards are all equal carry no gradient: they are dropped and other prompts drawn, at most `rounds` times a step."""

    def __init__(self, rounds: int = 4):
        self.rounds = rounds

    def keep(self, step: Step, agent: Agent, batch: RolloutBatch) -> Tensor:
        return has_signal(batch.rows["reward/raw"], batch.group, batch.scored & (batch.role == Role.TRAIN) & (batch.agent == agent.index))


class Overlong(Component):
    """Completions near or at the length limit: a growing penalty, or no training at all on those that were cut off."""

    def __init__(self, limit: int, buffer: int, penalty: float, drop: bool):
        self.limit, self.buffer, self.penalty, self.drop = limit, buffer, penalty, drop

    def score(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        if not self.buffer:
            return batch
        penalty = overlong_penalty(batch.lengths, self.limit, self.buffer, self.penalty) * (batch.agent == agent.index)
        so_far = batch.rows.get("reward/overlong", torch.zeros_like(penalty))  # of other agents, in their own rows
        return batch.with_columns(**{"reward": batch.reward + penalty, "reward/overlong": so_far + penalty})

    def select(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        """Cut-off completions lose their tokens' part in the loss, but keep their place in the group and in the sequence count."""
        if not self.drop:
            return batch
        return batch.with_columns(action=batch.action & batch.finished[batch.row_of_token])
