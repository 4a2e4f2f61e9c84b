"""Verified rollback: a guard that takes updates back when a fixed set of probes shows that they did harm.

Our own step beyond PIPO, which only pushes against a harmful update. Every few steps the policy answers the same probes with the same random
numbers. Their rewards are compared with those of all its earlier answers by a test that holds its error over the whole run (`tacit.rl.harm`).
On harm, weights and optimiser go back to the best snapshot, the learning rate is damped, and the run goes on with fresh rollouts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tacit.core.rollouts import Prompt, RolloutBatch
from tacit.core.runtime import load_optimiser, whole
from tacit.rl.component import Component
from tacit.rl.harm import HarmTest
from tacit.rl.probes import Probes

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step
    from tacit.rl.trainer import Trainer
    from tacit.rl.update import Update

logger = logging.getLogger("tacit")


@dataclass
class Snapshot:
    """A policy that answered the probes: what training changes of it (with LoRA the adapter), its optimiser, and how well it did."""

    step: int
    level: float
    policy: dict[str, Tensor]
    optimiser: dict[str, Any]
    critic: dict[str, Any] | None = None  # the same of the critic, where there is one

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in tensors_in([self.policy, self.optimiser, self.critic]))


def take(agent: Agent, step: int, level: float) -> Snapshot:
    """A copy on the CPU. Collective where weights are sharded."""
    critic = None if agent.critic is None else {name: agent.critic.state_dict()[name] for name in ("weights", "optimiser")}
    return Snapshot(step, level, copied(agent.policy.state_dict()), copied(whole(agent.optimiser.state_dict())), copied(critic))


def put_back(agent: Agent, snapshot: Snapshot, damping: float) -> None:
    """Weights and moments of the snapshot, the learning rate times `damping`. Version and schedule go on.

    The version must never come back: it tells rollouts of one policy from those of another.
    """
    agent.policy.load_state_dict(snapshot.policy)
    rewind(agent.optimiser, agent.scheduler, snapshot.optimiser, damping)
    if agent.critic is not None and snapshot.critic is not None:  # at its own rate: what it learns moves no policy by itself
        agent.critic.load_weights(snapshot.critic["weights"])
        rewind(agent.critic.optimiser, agent.critic.scheduler, snapshot.critic["optimiser"], damping=1.0)
    agent.policy.version += 1


def rewind(optimiser: torch.optim.Optimizer, scheduler: LambdaLR, state: dict[str, Any], damping: float) -> None:
    """The moments of `state`, and the learning rate where the schedule is now, times `damping`."""
    load_optimiser(optimiser, copied(state))
    scheduler.base_lrs = [damping * lr for lr in scheduler.base_lrs]
    for group, base, factor in zip(optimiser.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = base, base * factor(scheduler.last_epoch)


def copied(state: Any) -> Any:
    """Nested state whose tensors are copies on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state


def tensors_in(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


class Rollback(Component):
    """Sample, verify, select, plan. Ends the run, with the best policy in place, when `most` rollbacks in a row have not helped.

    probes       prompts of the fixed set, one completion each
    every        steps between probings, and between snapshots
    alpha        chance that a run without harm has any rollback
    margin       a fall of the probes' mean that does not count as harm yet
    keep         snapshots held: the newest ones, and always the best
    damping      factor on the learning rate at each rollback, for good
    most         rollbacks in a row; a rollback starts a new row when `keep` probings have passed without harm since the last one
    low, high    the range of the reward
    """

    def __init__(
        self,
        probes: int = 256,
        every: int = 5,
        alpha: float = 0.05,
        margin: float = 0.0,
        keep: int = 4,
        damping: float = 0.5,
        most: int = 3,
        low: float = 0.0,
        high: float = 1.0,
    ):
        if probes < 1 or every < 1 or keep < 1 or most < 0:
            raise ValueError(f"rollback needs probes, every and keep of at least 1 and most >= 0, not {probes}, {every}, {keep} and {most}")
        if not (0 < alpha < 1 and 0 <= margin < 1 and 0 < damping <= 1 and low < high):
            raise ValueError(
                f"rollback needs 0 < alpha < 1, 0 <= margin < 1, 0 < damping <= 1 and low < high, not {alpha}, {margin}, {damping}, {low} and {high}"
            )
        self.keep_snapshots, self.damping, self.most, self.low, self.high = keep, damping, most, low, high
        self.probes = Probes(probes, every)
        self.test = HarmTest(alpha, margin, planned=1)
        self.ring: list[Snapshot] = []
        self.done = 0  # rollbacks
        self.row = 0  # of them, in a row
        self.void = False  # the rollouts of this step came from a policy that is gone

    def prepare(self, trainer: Trainer, agent: Agent) -> None:
        self.probes.prepare(trainer, agent.components.index(self))
        self.test.planned = -(-agent.steps // self.probes.every)

    def note(self, agent: Agent) -> str:
        usual = agent.sampling.prompts * agent.sampling.group_size
        trained = agent.policy.trainable() + (agent.critic.trainable() if agent.critic is not None else [])
        weights = sum(p.nbytes for _, p in trained)
        return (
            f"rollback: {len(self.probes)} probes every {self.probes.every} steps are {len(self.probes) / self.probes.every:.0f} "
            f"completions a step beside {usual}; up to {self.keep_snapshots} snapshots of {3 * weights / 2**20:.1f} MiB each, "
            "weights and two moments, in the CPU's memory"
        )

    def sample(self, step: Step, agent: Agent, prompts: list[Prompt], groups: list[int], batch: RolloutBatch) -> RolloutBatch:
        return self.probes.draw(step, agent, groups, batch)

    def verify(self, step: Step, agent: Agent) -> None:
        """Judges the policy that drew this step's rollouts, before anything is learnt from them."""
        found = self.probes.scores(step, agent)
        if found is None or np.isnan(found).all():
            return
        scores = self.scaled(found)
        level, harmed = float(np.nanmean(scores)), self.test.harmed(scores)
        told = {"rollback/level": level, "rollback/harm": float(harmed)}
        if math.isfinite(self.test.evidence):
            told["rollback/evidence"] = self.test.evidence
        if harmed:
            self.go_back(agent, step)
        else:
            self.remember(take(agent, step.index, level))
        step.tell(agent, told | {"rollback/count": float(self.done)})

    def scaled(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards (P,) as shares of their range. Raises ValueError where one lies outside."""
        outside = rewards[(rewards < self.low) | (rewards > self.high)]
        if len(outside):
            raise ValueError(
                f"rollback: the test needs rewards between {self.low:g} and {self.high:g}, and a probe got {outside[0]:g}; "
                "set low and high in the component's options to the range of your reward"
            )
        return (rewards - self.low) / (self.high - self.low)

    def remember(self, snapshot: Snapshot) -> None:
        """Adds it to the ring. Over the limit the oldest goes that is not the best."""
        self.ring.append(snapshot)
        if len(self.test.past) > self.keep_snapshots:
            self.row = 0
        if len(self.ring) > self.keep_snapshots:
            best = self.best()
            self.ring.remove(next(s for s in self.ring if s is not best))

    def best(self) -> Snapshot:
        """The one with the highest level, of equals the newest."""
        return max(self.ring, key=lambda s: (s.level, s.step))

    def go_back(self, agent: Agent, step: Step) -> None:
        target = self.best()
        put_back(agent, target, self.damping)
        self.done += 1
        self.row += 1
        self.ring = [s for s in self.ring if s.step < target.step]  # the target itself is measured anew, at the next step
        self.test.restart()
        self.probes.restart(step.index + 1)
        for component in agent.components:
            component.on_rollback()
        self.void = True
        rate = agent.optimiser.param_groups[0]["lr"]
        logger.warning("step %d: the probes fell; back to the policy of step %d, learning rate %.3g", step.index + 1, target.step, rate)
        if self.row > self.most:
            self.ended = (
                f"training did harm again after {self.most} rollbacks in a row, at a learning rate of {rate / self.damping:.3g}; "
                f"the policy of step {target.step} is the one that stays. Look for a faulty reward, or lower optimiser.lr"
            )
            logger.warning("step %d: %s", step.index + 1, self.ended)

    def select(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        """After a rollback nothing of this step is trained on: its rollouts are those of the policy that did harm."""
        return batch.select(torch.empty(0, dtype=torch.int64)) if self.void else batch

    def plan(self, step: Step, agent: Agent, updates: list[Update]) -> list[Update]:
        return [] if self.void else updates

    def observe(self, step: Step, agent: Agent) -> None:
        self.void = False

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "past": list(self.test.past),
            "evidence": self.test.evidence,
            "noise": self.probes.noise,
            "start": self.probes.start,
            "ring": [{f: getattr(s, f) for f in ("step", "level", "policy", "optimiser", "critic")} for s in self.ring],
            "done": self.done,
            "row": self.row,
            "ended": self.ended,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.test.past, self.test.evidence = list(state["past"]), state["evidence"]
        self.probes.noise, self.probes.start = state["noise"], state["start"]
        self.ring = [Snapshot(**snapshot) for snapshot in state["ring"]]
        self.done, self.row, self.ended = state["done"], state["row"], state["ended"]
