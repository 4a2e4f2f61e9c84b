"""Probes: completions of a fixed set of prompts, drawn beside the training rollouts to measure the policy, and never trained on.

Each prompt keeps its random numbers from step to step, so that two policies are compared with the same luck, and policies that hardly differ give
hardly different completions. The prompts come from far down the task's stream: unseen for a task that draws its prompts, training problems for a
finite one, and never the held-out set that the run is judged by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tacit.core.rollouts import Prompt, Role, RolloutBatch

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step
    from tacit.rl.trainer import Trainer

FAR = 2**31  # ordinal of the first probe in the task's stream
GROUPS = 2**40  # from here on group ids are those of probes: with a training group's id they would be drawn with its random numbers


class Probes:
    """`count` prompts, one completion each, at step `start` and every `every` steps from there. `noise` numbers the set of random numbers in use."""

    def __init__(self, count: int, every: int):
        self.count, self.every, self.start, self.noise = count, every, 0, 0
        self.prompts: list[Prompt] = []
        self.first_group = GROUPS
        self.per_step = 1

    def __len__(self) -> int:
        return self.count

    def prepare(self, trainer: Trainer, place: int) -> None:
        """Takes its prompts. Components at different places have probes of their own."""
        self.first_group = GROUPS * (1 + place)
        self.per_step = trainer.prompts
        self.prompts = [trainer.task.prompt_at(FAR + self.first_group // GROUPS * 2**24 + i, trainer.seed) for i in range(self.count)]

    def restart(self, start: int) -> None:
        """From step `start` on with other random numbers."""
        self.start, self.noise = start, self.noise + 1

    def due(self, step: Step) -> bool:
        return self.count > 0 and (step.index - self.start) % self.every == 0

    def draw(self, step: Step, agent: Agent, groups: list[int], batch: RolloutBatch) -> RolloutBatch:
        """`batch` with the probes that go with these training groups: every process and every piece of a draw has its share of both."""
        if step.rounds > 0 or not self.due(step):
            return batch
        mine = [i for group in groups for i in range(group % self.per_step, self.count, self.per_step)]
        if not mine:
            return batch
        ids = [self.first_group + i for i in mine]
        how = {"seed": step.seed, "step": self.noise, "groups": ids, "agent": agent.index, "role": Role.PROBE}
        return RolloutBatch.cat([batch, agent.sampler.sample([self.prompts[i] for i in mine], 1, **how)])

    def scores(self, step: Step, agent: Agent) -> NDArray[np.float64] | None:
        """(count,) the reward's own word on each probe, NaN where it could not judge; None at a step without probes."""
        if not self.due(step):
            return None
        drawn = step.drawn
        place = drawn.group - self.first_group
        rows = (drawn.role == Role.PROBE) & (drawn.agent == agent.index) & (place >= 0) & (place < self.count)
        found = np.full(self.count, np.nan)
        found[place[rows].numpy()] = drawn.rows["reward/raw"][rows].numpy()
        return found
