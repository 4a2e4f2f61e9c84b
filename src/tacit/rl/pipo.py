"""PIPO: every step asks the fresh rewards what the last update did, and replays that update, reinforced where it helped, reversed where it harmed.

Source: "Policy Improvement Reinforcement Learning", arXiv 2604.00860, in its final form (v4: leaky rectifier, replay of the previous batch).
Departures, and what we chose where paper and official code (JacckMa/pipo_verl) disagree:

    window         K strictly previous means, as in the paper; the code's window holds the current mean as well, which bounds ξ
    deviation      sample std, as in the paper; the code's is the population std (`ddof: 0`)
    clip           the paper's pessimistic min in every loss; the code's GRPO takes the min of the ratios instead
    coefficient 0  no update at all; under Adam the code's step with gradient 0 still moves the weights
    batch mean     of the verifier's own word on everything drawn; the code's DAPO takes it after its filter, which hides groups that agree
    schedule       a replay does not count as a step of the learning-rate schedule, or the schedule would end early
    resume         window and cached batch are in the checkpoint; the code forgets them
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tacit.core.rollouts import Prompt, Role, RolloutBatch
from tacit.rl.advantages import broadcast
from tacit.rl.aggregation import sum_within
from tacit.rl.component import Component
from tacit.rl.probes import Probes

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step
    from tacit.rl.trainer import Trainer
    from tacit.rl.update import Update

FLAT = 1e-8  # a window whose std is below this has no scale of its own
NOTHING = 1e-12  # a coefficient of this size is none
CURRENT_BOUND = 2.0  # of ξ as a factor on the current batch
ATTRIBUTION = "pipo/attribution"  # row column


def improvement(mean: float, history: Sequence[float], ddof: int = 1) -> float:
    """ξ = (mean - mean of `history`) / std of `history`: the latest batch mean against the K before it, in units of their spread.

    A std below 1e-8 counts as 1. With `ddof` 1 a linear trend gives sqrt(3 (K + 1) / K) whatever its slope.
    Source: arXiv 2604.00860, the definitions of anchor and ξ; the treatment of a flat window is that of the official code.
    Raises ValueError for a history too short to have a std.
    """
    if len(history) <= ddof:
        raise ValueError(f"ξ needs a window of at least {ddof + 1} batch means, not {len(history)}")
    past = np.asarray(history, np.float64)
    spread = float(past.std(ddof=ddof))
    return float((mean - past.mean()) / (spread if spread >= FLAT else 1.0))


def rectified(xi: float, lam: float) -> float:
    """φ(ξ) = ξ where it is positive, else lam ξ. Source: arXiv 2604.00860 v2 and later, the leaky rectifier (lam = 0.1)."""
    return xi if xi >= 0 else lam * xi


def attribution(advantages: Tensor, groups: Tensor, counted: Tensor) -> Tensor:
    """n A_i / Σ_j |A_j| over the n members of a group that are `counted` (B,) bool, (B,); 0 for the others, and where a group's advantages are all 0.

    Only the direction of a group's advantages is left: whether they were divided by the group's std makes no difference.
    Source: arXiv 2604.00860, local attribution for group-relative methods.
    """
    held = torch.where(counted, advantages, 0)
    size, total = sum_within(counted.to(held.dtype), groups), sum_within(held.abs(), groups)
    return torch.where(total > NOTHING, size * held / total.clamp(min=NOTHING), 0)


class PIPO(Component):
    """Verify, credit, plan, observe. Put it after components that change advantages.

    window       K, how many batch means make the anchor; the first replay comes after as many steps
    lam          λ, the weight of the evidence of harm
    ddof         1: sample std of the window; 0: the official code's
    xi_clip      ξ is held within ± this; null: as in the paper
    every        steps between replays
    clip_high    upper clip of a reinforcing replay; null: that of the algorithm
    xi           measured; or, as controls, shuffled (a ξ of an earlier step, drawn at random) or flipped (-ξ)
    constant     a control: replays with this coefficient, whatever ξ is
    target       previous; or current: no replay, ξ within ±2 multiplies the advantages of the fresh batch (the method's second version)
    probes       prompts whose completions measure, at every step, what the last update gained, to see how often ξ has the right sign; 0: none
    """

    def __init__(
        self,
        window: int = 8,
        lam: float = 0.1,
        ddof: int = 1,
        xi_clip: float | None = None,
        every: int = 1,
        clip_high: float | None = None,
        xi: Literal["measured", "shuffled", "flipped"] = "measured",
        constant: float | None = None,
        target: Literal["previous", "current"] = "previous",
        probes: int = 0,
    ):
        if ddof not in (0, 1):
            raise ValueError(f"ddof of PIPO must be 0 or 1, not {ddof}")
        if window <= ddof:
            raise ValueError(f"window of PIPO must be at least {ddof + 1}, not {window}: a spread needs as many batch means")
        if lam < 0 or every < 1 or probes < 0 or (xi_clip is not None and xi_clip <= 0):
            raise ValueError(f"PIPO needs lam >= 0, every >= 1, probes >= 0 and xi_clip > 0, not {lam}, {every}, {probes} and {xi_clip}")
        if xi not in ("measured", "shuffled", "flipped"):
            raise ValueError(f"xi of PIPO must be measured, shuffled or flipped, not {xi!r}")
        if target not in ("previous", "current"):
            raise ValueError(f"target of PIPO must be previous or current, not {target!r}")
        self.lam, self.ddof, self.xi_clip, self.every, self.clip_high = lam, ddof, xi_clip, every, clip_high
        self.xi, self.constant, self.target = xi, constant, target
        self.probes = Probes(probes, every=1)
        self.window: deque[float] = deque(maxlen=window)
        self.seen: list[float] = []  # every ξ that was measured
        self.cache: RolloutBatch | None = None  # what the last ordinary update was trained on
        self.level: float | None = None  # the probes' mean after the last update but one
        # of the step under way
        self.mean: float | None = None
        self.factor: float | None = None  # the ξ that acts
        self.trained: RolloutBatch | None = None
        self.void = False  # the policy was rolled back: the step says nothing about the one that goes on

    def prepare(self, trainer: Trainer, agent: Agent) -> None:
        self.probes.prepare(trainer, agent.components.index(self))

    def note(self, agent: Agent) -> str:
        probing = f"; {len(self.probes)} probes a step measure what an update gained" if len(self.probes) else ""
        return f"PIPO: at most one more update a step, from step {self.window.maxlen} on, and no rollouts beyond those of the base{probing}"

    # --- the stages ---

    def sample(self, step: Step, agent: Agent, prompts: list[Prompt], groups: list[int], batch: RolloutBatch) -> RolloutBatch:
        return self.probes.draw(step, agent, groups, batch)

    def verify(self, step: Step, agent: Agent) -> None:
        """Judges the last update by the fresh rewards, and decides how it is replayed."""
        drawn = step.drawn
        mine = drawn.scored & (drawn.agent == agent.index) & (drawn.role == Role.TRAIN)
        if self.void or not mine.any():
            return
        self.mean, self.factor = float(drawn.rows["reward/raw"][mine].mean()), None
        told = {"pipo/mean": self.mean}
        xi = None
        if len(self.window) == self.window.maxlen:
            xi = improvement(self.mean, self.window, self.ddof)
            self.factor = self.gate(xi, step)
            self.seen.append(xi)
            flat, clipped = np.std(self.window, ddof=self.ddof) < FLAT, self.held(xi) != xi
            told |= {"pipo/xi": xi, "pipo/flat_window": float(flat), "pipo/xi_clipped": float(clipped)}
        step.tell(agent, told | self.gain(step, agent, xi))

    def credit(self, step: Step, agent: Agent, pool: RolloutBatch) -> RolloutBatch:
        """The attribution of every rollout, from its whole group: what is trained on may be less."""
        if agent.critic is not None:  # its advantages are replayed as they are, token by token
            return pool
        counted = pool.scored & (pool.agent == agent.index) & (pool.role == Role.TRAIN)
        return pool.with_columns(**{ATTRIBUTION: attribution(pool.advantage, pool.group, counted)})

    def plan(self, step: Step, agent: Agent, updates: list[Update]) -> list[Update]:
        """The replay goes first. The log-probs that the fresh batch is measured against were taken when it was drawn, and stay."""
        base = next((update for update in updates if update.tag == "policy"), None)
        self.trained = None if base is None else base.batch
        if self.factor is None:
            return updates
        if self.target == "current":
            bound = float(np.clip(self.factor, -CURRENT_BOUND, CURRENT_BOUND))
            return [replace(update, advantages=bound * update.advantages) if update is base else update for update in updates]

        coefficient = self.constant if self.constant is not None else rectified(self.held(self.factor), self.lam)
        if self.cache is None or step.index % self.every or abs(coefficient) <= NOTHING:
            step.tell(agent, {"pipo/coefficient": 0.0, "pipo/extra_steps": 0.0})
            return updates
        again = self.replayed(agent, self.cache, coefficient)
        step.tell(
            agent, {"pipo/coefficient": coefficient, "pipo/extra_steps": float(-(-len(self.cache) // (again.minibatch_rows or len(self.cache))))}
        )
        return [again, *updates]

    def observe(self, step: Step, agent: Agent) -> None:
        """The window moves on after use: it never holds the mean that it judges."""
        if not self.void:
            self.cache = self.trained
            if self.mean is not None:
                self.window.append(self.mean)
        self.mean, self.factor, self.trained, self.void = None, None, None, False

    # --- what they are made of ---

    def gate(self, xi: float, step: Step) -> float | None:
        """The ξ that acts: the one that was measured, or what a control puts in its place."""
        match self.xi:
            case "flipped":
                return -xi
            case "shuffled":
                return float(np.random.default_rng((step.seed, step.index)).choice(self.seen)) if self.seen else None
            case _:
                return xi

    def held(self, xi: float) -> float:
        return xi if self.xi_clip is None else float(np.clip(xi, -self.xi_clip, self.xi_clip))

    def replayed(self, agent: Agent, batch: RolloutBatch, coefficient: float) -> Update:
        """One pass over `batch` with the base's loss, mini-batches and KL, under attributions times the coefficient.

        Its ratios are against the policy that drew the batch: the frozen column old_logp where the run has one, else the sampler's log-probs.
        """
        base = agent.base_update(batch)
        if coefficient > 0 and self.clip_high is not None:
            base = replace(base, loss=replace(agent.loss, config=agent.algorithm.model_copy(update={"clip_high": self.clip_high})))
        share = broadcast(batch.rows[ATTRIBUTION].nan_to_num(), batch.offsets) if agent.critic is None else batch.gae
        return replace(base, advantages=coefficient * share, epochs=1, tag="replay", scheduled=False)

    def gain(self, step: Step, agent: Agent, xi: float | None) -> dict[str, float]:
        """What the last update gained on the probes, and whether ξ has the same sign."""
        scores = self.probes.scores(step, agent)
        if scores is None or np.isnan(scores).all():
            return {}
        before, self.level = self.level, float(np.nanmean(scores))
        if before is None:
            return {}
        found = {"pipo/gain": self.level - before}
        if xi and self.level != before:
            found["pipo/agreement"] = float((xi > 0) == (self.level > before))
        return found

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        cache = None if self.cache is None else self.cache.state_dict()
        return {"window": list(self.window), "seen": list(self.seen), "cache": cache, "level": self.level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.window = deque(state["window"], maxlen=self.window.maxlen)
        self.seen, self.level = list(state["seen"]), state["level"]
        self.cache = None if state["cache"] is None else RolloutBatch.from_state_dict(state["cache"])

    def on_rollback(self) -> None:
        """The batch to replay, and the means to judge by, came from policies that are gone: the window fills anew."""
        self.window.clear()
        self.cache, self.level, self.mean, self.factor, self.void = None, None, None, None, True
