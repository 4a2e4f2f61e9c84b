"""Trainer: the RL loop. `Trainer.collect` and `Trainer.learn` are the whole algorithm, one line a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from tacit.core.rollouts import Prompt, RolloutBatch
from tacit.core.runtime import Runtime
from tacit.rl.agent import Agent
from tacit.rl.health import step_metrics
from tacit.rl.step import Step
from tacit.rl.update import run_update

RESERVED = {"raw", "mean", "std", "overlong"}  # 'reward/...' names that no part of a reward may take


class PromptStream(Protocol):
    """An endless deterministic stream of prompts: its cursor is one integer."""

    def prompt_at(self, ordinal: int, seed: int) -> Prompt: ...


class ScoreLike(Protocol):
    @property
    def value(self) -> float | None: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def failure(self) -> str: ...


class RewardFunction(Protocol):
    def __call__(self, prompts: list[Prompt], completions: list[str], /) -> Sequence[ScoreLike]: ...


PIECES = 4  # of a draw, for a reward that judges one while the next is drawn
Scores = Callable[[], Sequence[ScoreLike]]  # waits for them


class Trainer:
    """Trains `agents` on prompts of `task` under `reward`. All agents see the same prompts and the same pool of rollouts.

    With several processes every rank holds the same pool: sampling, annotation and the update are shared out, all decisions are
    taken by every rank alike. One agent is the ordinary case.
    """

    def __init__(self, agents: Sequence[Agent], task: PromptStream, reward: RewardFunction, *, seed: int = 0, runtime: Runtime | None = None):
        if not agents:
            raise ValueError("a trainer needs at least one agent")
        if [a.index for a in agents] != list(range(len(agents))):
            raise ValueError(f"agents must be numbered 0..{len(agents) - 1} by their `index`, these are {[a.index for a in agents]}")
        if len(asked := {a.sampling.prompts for a in agents}) > 1:
            raise ValueError(f"all agents answer the same prompts, so sampling.prompts must be the same for each, not {sorted(asked)}")
        if len(agents) > 1 and any(a.critic is not None for a in agents):
            raise ValueError("algorithm.advantage: gae works with one agent: a critic judges no rollouts of other policies; choose another advantage")
        self.agents, self.task, self.reward, self.seed = list(agents), task, reward, seed
        self.runtime = runtime or Runtime()
        self.prompts = agents[0].sampling.prompts
        needs = frozenset[str]().union(*(agent.needs for agent in agents))
        for agent in agents:
            agent.require(needs)  # one pool has one set of columns
        self.index = 0  # steps done
        self.cursor = 0  # prompts taken from the stream
        for agent in agents:
            for component in agent.components:
                component.prepare(self, agent)

    def step(self) -> Step:
        """One RL step: sample → annotate → score → verify → credit → select → plan → update → observe."""
        return self.learn(self.collect())

    def collect(self) -> Step:
        """The first three stages: what the step learns from."""
        step = Step(self.index, self.seed)

        while step.rounds == 0 or self.wants_more(step):  # once, unless a component's filter leaves groups missing
            with step.timed("sample"):
                fresh, scores = self.sample(step)
            with step.timed("annotate"):
                fresh = self.annotate(fresh)
            with step.timed("score"):
                fresh, keep = self.score(step, fresh, scores)
            step.add(fresh, keep)
        step.trim(self.prompts)
        return step

    def learn(self, step: Step) -> Step:
        """The other six. A step that was collected before and kept can be learnt from again, from the state of then: see `tacit.replay`."""
        with step.timed("verify"):
            for agent in self.agents:
                for component in agent.components:
                    component.verify(step, agent)
        with step.timed("credit"):
            pools = [agent.credit(step) for agent in self.agents]
        with step.timed("select"):
            batches = [agent.select(step, pool) for agent, pool in zip(self.agents, pools, strict=True)]
        with step.timed("plan"):
            plans = [agent.plan(step, batch) for agent, batch in zip(self.agents, batches, strict=True)]

        with step.timed("update"):
            for agent, updates in zip(self.agents, plans, strict=True):
                for index, update in enumerate(updates):
                    seed = (self.seed, self.index, agent.index)
                    if agent.critic is not None and update.tag == "policy":  # a replay teaches the critic nothing
                        step.tell(agent, agent.critic.learn(update, index, self.runtime, seed))
                    step.record(agent, update, run_update(agent, update, index, self.runtime, seed))

        with step.timed("observe"):
            step.pool = pools[0]
            for agent in self.agents:
                for component in agent.components:
                    component.observe(step, agent)
        step.metrics |= step_metrics(step, self.agents)
        self.index += 1
        return step

    @property
    def ended(self) -> str:
        """Why a component wants training to stop; '' as long as none does."""
        return next((c.ended for agent in self.agents for c in agent.components if c.ended), "")

    def steps(self, count: int) -> Iterator[Step]:
        """Runs `count` steps, or fewer when training has `ended`, handing each out when it is done."""
        for _ in range(count):
            if self.ended:
                return
            yield self.step()

    # --- the three stages that touch the model or the world; the others are the agent's and its components' ---

    def wants_more(self, step: Step) -> bool:
        rounds = max((c.rounds for a in self.agents for c in a.components), default=1)
        return step.rounds < rounds and len(step.kept_groups) < self.prompts

    def sample(self, step: Step) -> tuple[RolloutBatch, Scores]:
        """`prompts` new prompts, drawn by every agent, each rank its share; in pieces for a reward that works elsewhere: it judges one meanwhile."""
        for agent in self.agents:
            agent.sync()
        groups = list(range(self.cursor, self.cursor + self.prompts))
        self.cursor += self.prompts
        mine = groups[self.runtime.rank :: self.runtime.world_size]
        pieces = min(PIECES, len(mine)) if hasattr(self.reward, "begin") else 1  # what is drawn does not depend on what is drawn together
        draws, waiting = list[RolloutBatch](), list[Scores]()
        for agent in self.agents:
            for ordinals in np.array_split(mine, max(1, pieces)):
                prompts = [self.task.prompt_at(ordinal, self.seed) for ordinal in ordinals.tolist()]
                draws.append(agent.draw(step, prompts, ordinals.tolist()))
                waiting.append(begin(self.reward, draws[-1]))
        return RolloutBatch.cat(draws), lambda: [score for scores in waiting for score in scores()]

    def annotate(self, batch: RolloutBatch) -> RolloutBatch:
        """The columns that somebody declared, from each rollout's own agent."""
        if not any(agent.needs for agent in self.agents):
            return batch
        return RolloutBatch.cat([agent.annotate(batch.select(batch.agent == agent.index)) for agent in self.agents])

    def score(self, step: Step, batch: RolloutBatch, scores: Scores) -> tuple[RolloutBatch, torch.Tensor]:
        """Rewards, then one pool for all ranks, in the order of the groups. What could not be judged stays unscored: never 0."""
        batch = with_scores(batch, scores())
        batch = self.gather(batch)
        keep = torch.zeros(len(batch), dtype=torch.bool)
        for agent in self.agents:
            for component in agent.components:
                batch = component.score(step, agent, batch)
            keep |= agent.keep(step, batch) & (batch.agent == agent.index)
        return batch, keep

    def gather(self, batch: RolloutBatch) -> RolloutBatch:
        if self.runtime.world_size > 1:
            parts = self.runtime.gather_objects(batch.state_dict())
            batch = RolloutBatch.cat([RolloutBatch.from_state_dict(part) for part in parts])
        return batch.select(torch.argsort(batch.group, stable=True))

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on: `load_state_dict` of it continues bit for bit on the CPU."""
        return {
            "index": self.index,
            "cursor": self.cursor,
            "agents": [agent.state_dict() for agent in self.agents],
            "rng": self.runtime.rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.index, self.cursor = state["index"], state["cursor"]
        for agent, saved in zip(self.agents, state["agents"], strict=True):
            agent.load_state_dict(saved)
        self.runtime.set_rng_state(state["rng"])


def begin(reward: RewardFunction, batch: RolloutBatch) -> Scores:
    """What waits for the scores of `batch`. Only a reward with `begin` (one that judges in workers) is under way when this returns; the others run
    in the main thread when they are asked, where they can disturb neither the model nor the random numbers.
    """
    start: Callable[..., Scores] | None = getattr(reward, "begin", None)
    return start(batch.prompts, batch.texts) if start else partial(reward, batch.prompts, batch.texts)


def with_scores(batch: RolloutBatch, scores: Sequence[ScoreLike]) -> RolloutBatch:
    """The batch with reward columns filled; a non-finite log-prob of the sampler makes a row unusable, hence unscored.

    'reward/raw' keeps the verifier's word, whatever shaping follows. Raises ValueError when scores are missing, or a part has a name that is taken.
    """
    if len(scores) != len(batch):
        raise ValueError(f"the reward function returned {len(scores)} scores for {len(batch)} completions; it must return one for each, in order")
    broken = torch.zeros(len(batch), dtype=torch.bool)
    broken[batch.row_of_token[~batch.behaviour_logp.isfinite()]] = True
    values = torch.tensor([torch.nan if s.value is None else s.value for s in scores], dtype=torch.float64)
    scored = values.isfinite() & ~broken
    raw = values.masked_fill(~scored, torch.nan)
    names = sorted({name for s in scores for name in s.parts})
    if taken := RESERVED & set(names):
        raise ValueError(f"the reward function calls one of its parts {min(taken)!r}, a name that metrics use already; rename it")
    parts = {f"reward/{name}": torch.tensor([s.parts.get(name, torch.nan) for s in scores], dtype=torch.float64) for name in names}
    batch = batch.with_columns(**{"reward": raw.nan_to_num(0.0), "scored": scored, "reward/raw": raw, **parts})
    reasons = ["the sampler gave a non-finite log-prob" if b else s.failure for s, b in zip(scores, broken.tolist(), strict=True)]
    batch.failures = [reason or ("" if ok else "not scored") for ok, reason in zip(scored.tolist(), reasons, strict=True)]
    return batch
