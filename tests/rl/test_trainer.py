from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tacit.config import TinyConfig
from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import RolloutBatch
from tacit.rl.component import Component
from tacit.rl.step import STAGES, Step
from tacit.rl.trainer import Trainer, with_scores
from tacit.rl.update import Update

# --- one step ---


def test_nine_stages_timed_and_in_order(lab, monkeypatch):
    entered = []
    timed = Step.timed

    @contextmanager
    def spy(self, stage):
        entered.append(stage)
        with timed(self, stage):
            yield

    monkeypatch.setattr(Step, "timed", spy)
    step = lab.trainer().step()
    assert tuple(entered) == tuple(step.times) == STAGES and len(STAGES) == 9
    assert all(seconds > 0 for seconds in step.times.values())
    assert step.metrics["time/step"] == pytest.approx(sum(step.metrics[f"time/{stage}"] for stage in STAGES))


def test_steps_walk_through_the_stream(lab):
    trainer = lab.trainer(seed=1)
    steps = list(trainer.steps(2))
    assert [step.index for step in steps] == [0, 1] and (trainer.index, trainer.cursor) == (2, 8)
    for step in steps:
        assert step.drawn.group.tolist() == [4 * step.index + i for i in range(4) for _ in range(4)]
        assert [p.id for p in step.drawn.prompts] == [f"letter-{g}" for g in step.drawn.group.tolist()]
        assert [p.answer for p in step.drawn.prompts[::4]] == ["bca"[(4 * step.index + i + 1) % 3] for i in range(4)]
        assert step.pool.reward.tolist() == [float(text.startswith(p.answer)) for p, text in zip(step.pool.prompts, step.pool.texts, strict=True)]
    assert set(steps[0].drawn.version.tolist()) == {0} and set(steps[1].drawn.version.tolist()) == {1}


def test_the_seed_decides_what_is_drawn(lab):
    tokens = [lab.trainer(seed=seed).step().drawn.token.tolist() for seed in (0, 0, 1)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_every_step_agent_and_seed_shuffles_anew(lab, monkeypatch):
    """The same mini-batches in every step would be the same neighbours in every step."""
    orders = []

    original = Update.minibatches

    def spy(update, seed):
        parts = list(original(update, seed))
        orders.append(tuple(torch.cat(parts).tolist()))
        return iter(parts)

    monkeypatch.setattr(Update, "minibatches", spy)
    for seed in (0, 1):
        list(lab.trainer([lab.agent(index=i, algorithm={"minibatch_rows": 4}) for i in range(2)], seed=seed).steps(2))
    assert len(orders) == len(set(orders)) == 8


def test_the_trainer_agrees_with_the_sampler_after_every_update(lab):
    trainer = lab.trainer(lab.agent(sampling={"temperature": 0.8}, optimiser={"lr": 0.1}))
    gaps = [step.metrics["health/logp_gap"] for step in trainer.steps(3)]
    assert all(0 < gap < 1e-6 for gap in gaps)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_task_is_learnt(lab, seed):
    """Prompt "a:", answer "b": in 15 steps the reward rises by far more than its noise, which is below 0.07 (48 completions a step)."""
    agent = lab.agent(lab.policy(seed), sampling={"prompts": 6, "group_size": 8, "max_new_tokens": 2}, optimiser={"lr": 0.03})
    rewards = [step.metrics["reward/mean"] for step in lab.trainer(agent, seed=seed).steps(15)]
    assert np.mean(rewards[-3:]) > rewards[0] + 0.4


# --- rewards ---


def test_a_reward_of_the_wrong_length_is_one_sentence(lab):
    trainer = lab.trainer(reward=lambda prompts, completions: [lab.score(1.0)] * 3)
    with pytest.raises(ValueError, match=r"^the reward function returned 3 scores for 16 completions; it must return one for each, in order$"):
        trainer.step()


@pytest.mark.parametrize("name", ["raw", "mean", "std", "overlong"])
def test_a_part_cannot_take_the_name_of_a_metric(lab, name):
    trainer = lab.trainer(reward=lambda prompts, completions: [lab.score(1.0, {name: 0.5}) for _ in prompts])
    with pytest.raises(ValueError, match=f"calls one of its parts '{name}', a name that metrics use already; rename it"):
        trainer.step()


def test_an_exception_of_the_reward_is_not_swallowed(lab):
    def broken(prompts, completions):
        raise ZeroDivisionError("in my_reward.py")

    with pytest.raises(ZeroDivisionError, match=r"in my_reward\.py"):
        lab.trainer(reward=broken).step()


def test_nothing_scored_changes_nothing(lab):
    trainer = lab.trainer(reward=lambda prompts, completions: [lab.score(None, failure="the judge is out") for _ in prompts])
    before = lab.weights(trainer.agents[0].policy)
    step = trainer.step()
    assert step.metrics["health/unscored"] == 1 and math.isnan(step.metrics["reward/mean"]) and step.metrics["data/kept"] == 0
    assert set(step.pool.failures) == {"the judge is out"} and not step.pool.advantage.any()
    assert trainer.agents[0].policy.version == 0
    assert all(torch.equal(p, before[n]) for n, p in trainer.agents[0].policy.trainable())
    assert trainer.step().index == 1


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_unscored_rollouts_enter_nothing(lab, advantage):
    """Group 0: all scored; group 1: one scored member, which gets 0; group 2: 1, 0 and two unscored; group 3: none scored."""
    values = [1.0, 0, 0, 0, None, 1, None, None, 1, None, math.nan, 0, None, math.inf, None, None]
    trained = []

    class Spy(Component):
        def plan(self, step, agent, updates):
            trained.extend(updates)
            return updates

    agent = lab.agent(algorithm={"advantage": advantage}, components=[Spy()])
    step = lab.trainer(agent, reward=lambda prompts, completions: [lab.score(v, failure="no verdict" if v is None else "") for v in values]).step()
    scored = [v is not None and math.isfinite(v) for v in values]
    assert step.pool.scored.tolist() == step.kept.tolist() == scored
    assert trained[0].batch.group.tolist() == [0] * 4 + [1] + [2] * 2
    advantages = step.pool.advantage.view(4, 4)
    assert not advantages[1].any() and not advantages[3].any() and advantages[2, 0] == -advantages[2, 3] > 0
    assert advantages[0, 0] > 0 > advantages[0, 1] == advantages[0, 2]
    assert step.metrics["reward/mean"] == pytest.approx(3 / 7) and step.metrics["health/unscored"] == 9 / 16
    assert step.pool.failures == ["" if ok else ("no verdict" if v is None else "not scored") for v, ok in zip(values, scored, strict=True)]


def test_scores_by_hand(lab):
    """Parts become columns, missing ones NaN; a rollout with a broken log-prob cannot be trained on, whatever its verdict."""
    batch = lab.batch([([2], [3, 1]), ([2], [3]), ([2], [4, 1])], tokens={"behaviour_logp": [-1.0, math.inf, -1, -1, -2]})
    found = with_scores(batch, [lab.score(1.0, {"form": 0.5}), lab.score(None, {"form": 1.0}, "no answer"), lab.score(2.0, failure="too long")])
    assert found.scored.tolist() == [False, False, True] and found.reward.tolist() == [0, 0, 2]
    torch.testing.assert_close(found.rows["reward/raw"], torch.tensor([math.nan, math.nan, 2], dtype=torch.float64), equal_nan=True)
    torch.testing.assert_close(found.rows["reward/form"], torch.tensor([0.5, 1, math.nan], dtype=torch.float64), equal_nan=True)
    assert found.failures == ["the sampler gave a non-finite log-prob", "no answer", "too long"]


# --- several agents ---


class Seen(Component):
    """What credit is asked about, and whose rollouts ever had an advantage."""

    def __init__(self) -> None:
        self.with_advantage: set[int] = set()

    def credit(self, step: Step, agent: Any, pool: RolloutBatch) -> RolloutBatch:
        self.agents = pool.agent.tolist()
        self.with_advantage |= set(pool.agent[pool.advantage != 0].tolist())
        return pool


def two_agents(lab, **algorithm: Any) -> list[Any]:
    """A Qwen2 and a smaller Llama; the second also has a KL in its loss and takes two optimiser steps."""
    other = lab.policy(seed=1, config=TinyConfig(family="llama", hidden=8, layers=2, heads=2, mlp=16, context=32))
    sampling, optimiser = {"prompts": 6, "max_new_tokens": 2}, {"lr": 0.03}
    second = {"kl": {"coefficient": 0.01}, "minibatch_rows": 18, **algorithm}
    return [
        lab.agent(index=0, algorithm=algorithm, sampling={**sampling, "group_size": 8}, optimiser=optimiser, components=[Seen()]),
        lab.agent(other, index=1, algorithm=second, sampling={**sampling, "group_size": 6}, optimiser=optimiser, components=[Seen()]),
    ]


def test_two_agents_share_prompts_and_pool_and_both_learn(lab):
    agents = two_agents(lab)
    trainer = lab.trainer(agents)
    steps = list(trainer.steps(14))
    first = steps[0]
    assert len(first.drawn) == 6 * 8 + 6 * 6
    assert first.drawn.group.tolist() == sorted(first.drawn.group.tolist())  # group by group, the agents' rollouts side by side
    for group, rows in first.drawn.groups():
        assert first.drawn.agent[rows].tolist() == [0] * 8 + [1] * 6
        assert {first.drawn.prompts[row].id for row in rows.tolist()} == {f"letter-{group}"}
    for agent in agents:
        (seen,) = agent.components
        assert len(seen.agents) == 84 and set(seen.agents) == {0, 1} and seen.with_advantage == {agent.index}
    assert [agent.policy.version for agent in agents] == [14, 28]
    assert first.metrics["agent1/policy/optimiser/steps"] == 2 and first.metrics["agent1/policy/loss/kl"] >= 0
    for name in ("reward/mean", "agent1/reward/mean"):
        rewards = [step.metrics[name] for step in steps]
        assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2


def test_equal_agents_draw_apart(lab):
    step = lab.trainer([lab.agent(index=0), lab.agent(index=1)]).step()
    assert step.drawn.select(step.drawn.agent == 0).texts != step.drawn.select(step.drawn.agent == 1).texts


def test_an_agent_alone_does_what_it_does_in_company(lab):
    """Without components that share, the pool changes nothing for the first agent; columns that the other needs are filled for both."""
    alone, together = lab.trainer(two_agents(lab, epochs=2)[:1]), lab.trainer(two_agents(lab, epochs=2))
    for _ in range(2):
        step, joint = alone.step(), together.step()
    assert "ref_logp" in joint.drawn and "ref_logp" not in step.drawn
    weights = [t.agents[0].policy.trainable() for t in (alone, together)]
    for (_, p), (_, q) in zip(*weights, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_agents_must_fit_together(lab):
    with pytest.raises(ValueError, match="at least one agent"):
        Trainer([], lab.letters(), lab.first_letter)
    with pytest.raises(ValueError, match=r"numbered 0\.\.1 by their `index`, these are \[0, 0\]"):
        lab.trainer([lab.agent(), lab.agent()])
    with pytest.raises(ValueError, match=r"sampling.prompts must be the same for each, not \[3, 4\]"):
        lab.trainer([lab.agent(), lab.agent(index=1, sampling={"prompts": 3})])


# --- resuming ---


class MovingBaseline(Component):
    """Subtracts a moving mean of the rewards, and dithers with python's and numpy's generators: state of every kind."""

    def __init__(self) -> None:
        self.mean = torch.zeros((), dtype=torch.float64)

    def credit(self, step: Step, agent: Any, pool: RolloutBatch) -> RolloutBatch:
        self.mean = 0.9 * self.mean + 0.1 * pool.reward.mean()
        noise = 1e-3 * (random.random() + np.random.random() + float(torch.rand(())))
        return pool.with_columns(advantage=pool.advantage - self.mean + noise)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "redraw": {"filter": {"drop_constant": True, "max_rounds": 3, "overlong_buffer": 2}},
    "accumulation": {"micro_batch_tokens": 11},
    "epochs": {"epochs": 2, "minibatch_rows": 6},
    "kl": {"kl": {"coefficient": 0.05}},
    "kl lora": {"kl": {"coefficient": 0.05, "where": "reward", "form": "k1"}},
    "remax": {"advantage": "remax"},
    "all": {
        "filter": {"drop_constant": True, "drop_truncated": True},
        "micro_batch_tokens": 20,
        "epochs": 2,
        "minibatch_rows": 7,
        "kl": {"coefficient": 0.05, "importance_weighted": True},
        "importance_cap": 2.0,
        "length_penalty": 0.1,
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumes_bit_for_bit(lab, tmp_path, recipe):
    """Five steps, or two, a checkpoint and three: the same weights and metrics to the last bit."""

    def trainer() -> Any:
        policy = lab.policy(lora="lora" in recipe, dtype=torch.float32)
        agent = lab.agent(
            policy,
            algorithm=RECIPES[recipe],
            optimiser={"lr": 0.02, "warmup": 3, "schedule": "cosine", "weight_decay": 0.01},
            components=[MovingBaseline()],
            steps=5,
        )
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        return lab.trainer(agent)

    straight = trainer()
    expected = [comparable(step) for step in straight.steps(5)]
    interrupted = trainer()
    assert [comparable(step) for step in interrupted.steps(2)] == expected[:2]
    CheckpointStore(tmp_path).save(2, interrupted.state_dict())
    del interrupted

    resumed = trainer()
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    resumed.load_state_dict(CheckpointStore(tmp_path).latest().state)
    assert [comparable(step) for step in resumed.steps(3)] == expected[2:]
    ours, theirs = (dict(t.agents[0].policy.trainable()) for t in (resumed, straight))
    assert ours.keys() == theirs.keys() and all(torch.equal(p, theirs[name]) for name, p in ours.items())
    assert (resumed.index, resumed.cursor, resumed.agents[0].policy.version) == (5, straight.cursor, straight.agents[0].policy.version)
    assert len({str(step) for step in expected}) == 5  # every step did something


def test_two_agents_resume_bit_for_bit(lab, tmp_path):
    straight, interrupted, resumed = (lab.trainer(two_agents(lab)) for _ in range(3))
    expected = [comparable(step) for step in straight.steps(3)]
    next(interrupted.steps(1))
    CheckpointStore(tmp_path).save(1, interrupted.state_dict())
    resumed.load_state_dict(CheckpointStore(tmp_path).latest().state)
    assert [comparable(step) for step in resumed.steps(2)] == expected[1:]
    for agent, other in zip(straight.agents, resumed.agents, strict=True):
        assert all(torch.equal(p, q) for (_, p), (_, q) in zip(agent.policy.trainable(), other.policy.trainable(), strict=True))


def comparable(step: Step) -> dict[str, Any]:
    """What must come back bit for bit: all but the clock, NaN made comparable."""
    numbers = {name: repr(value) for name, value in step.metrics.items() if not name.startswith(("time/", "throughput/"))}
    return numbers | {"tokens": step.drawn.token.tolist(), "advantages": step.pool.advantage.tolist(), "kept": step.kept.tolist()}
