"""Step: everything one RL step knows about itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tacit.core.rollouts import Role, RolloutBatch

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.update import Update

STAGES = ("sample", "annotate", "score", "verify", "credit", "select", "plan", "update", "observe")


@dataclass
class Step:
    """`drawn` is every rollout of the step, by all agents, and feeds the statistics; `kept` (B,) bool marks what may be trained on."""

    index: int
    seed: int
    rounds: int = 0
    batches: list[RolloutBatch] = field(default_factory=list)
    keeps: list[Tensor] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    pool: RolloutBatch | None = None  # everything drawn, with the first learner's advantages, once the step is done
    updates: list[tuple[int, Update]] = field(default_factory=list)  # (agent, update) as they were carried out
    _drawn: RolloutBatch | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.times[stage] += time.perf_counter() - start

    def add(self, batch: RolloutBatch, keep: Tensor) -> None:
        """Takes in the rollouts of one draw."""
        self.rounds += 1
        self.batches.append(batch)
        self.keeps.append(keep)
        self._drawn = None

    def record(self, agent: Agent, update: Update, metrics: dict[str, float]) -> None:
        """Takes in an update that was carried out and what it reported, named after agent and tag unless it is the first agent's base update."""
        self.updates.append((agent.index, update))
        place = "" if agent.index == 0 and update.tag == "policy" else f"agent{agent.index}/{update.tag}/"
        self.metrics |= {place + name: value for name, value in metrics.items()}

    def tell(self, agent: Agent, metrics: Mapping[str, float]) -> None:
        """Takes in what a component reports; of any agent but the first it is named after the agent."""
        place = "" if agent.index == 0 else f"agent{agent.index}/"
        self.metrics |= {place + name: value for name, value in metrics.items()}

    @property
    def drawn(self) -> RolloutBatch:
        if self._drawn is None:
            self._drawn = RolloutBatch.cat(self.batches)
        return self._drawn

    @property
    def kept(self) -> Tensor:
        return torch.cat(self.keeps)

    @property
    def kept_groups(self) -> Tensor:
        """Ids of the groups with at least one kept training rollout, in the order of drawing, in which they grow."""
        return self.drawn.group[self.kept & (self.drawn.role == Role.TRAIN)].unique()

    def trim(self, groups: int) -> None:
        """Keeps the first `groups` kept groups: a redraw may have brought more than the update asked for."""
        wanted = self.kept_groups[:groups]
        self.keeps = [k & torch.isin(b.group, wanted) for b, k in zip(self.batches, self.keeps, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """What a collected step is learnt from."""
        batches = [batch.state_dict() for batch in self.batches]
        return {"index": self.index, "seed": self.seed, "rounds": self.rounds, "batches": batches, "keeps": self.keeps}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Step:
        batches = [RolloutBatch.from_state_dict(batch) for batch in state["batches"]]
        return cls(state["index"], state["seed"], state["rounds"], batches, list(state["keeps"]))
