from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tacit.config import AlgorithmConfig
from tacit.core.rollouts import Prompt, Role, RolloutBatch
from tacit.rl import advantages
from tacit.rl.agent import bind_advantage, bind_loss, optimiser_steps
from tacit.rl.component import Component
from tacit.rl.step import Step

# --- which columns are annotated ---


class Needy(Component):
    needs = frozenset({"entropy", "hidden"})


@pytest.mark.parametrize(
    ("algorithm", "components", "expected"),
    [
        ({}, (), set()),
        ({"epochs": 2}, (), {"old_logp"}),
        ({"minibatch_rows": 15}, (), {"old_logp"}),
        ({"minibatch_rows": 16}, (), set()),
        ({"epochs": 2, "old_logprobs": "behaviour"}, (), set()),
        ({"old_logprobs": "recompute"}, (), {"old_logp"}),
        ({"kl": {"coefficient": 0.1}}, (), {"ref_logp"}),
        ({"kl": {"coefficient": 0.1, "where": "reward"}}, (), {"ref_logp", "old_logp"}),
        ({"kl": {"coefficient": 0.0, "where": "reward"}}, (), set()),
        ({}, (Needy(), Component()), {"entropy", "hidden"}),
        ({"epochs": 3, "kl": {"coefficient": 0.1}}, (Needy(),), {"entropy", "hidden", "old_logp", "ref_logp"}),
    ],
)
def test_needs(lab, algorithm, components, expected):
    assert lab.agent(algorithm=algorithm, components=components).needs == expected


def draw(agent: Any, letters: str = "ab") -> RolloutBatch:
    prompts = [Prompt(str(i), letter + ":", answer=letter) for i, letter in enumerate(letters)]
    return agent.draw(Step(0, 0), prompts, list(range(len(letters))))


@pytest.mark.parametrize("columns", [{"old_logp"}, {"entropy"}, {"ref_logp"}, {"hidden", "ref_logp"}, {"old_logp", "ref_logp", "entropy", "hidden"}])
def test_annotate_fills_what_is_asked_for_and_no_more(lab, columns):
    """At the sampler's temperature, in any micro-batches. Another column would change what a ratio is taken against."""
    agent = lab.agent(algorithm={"micro_batch_tokens": 7}, sampling={"temperature": 0.7})
    agent.require(frozenset(columns))
    batch = agent.annotate(draw(agent))
    assert set(batch.tokens) == {"token", "action", "forced", "behaviour_logp"} | columns
    stats = lab.policy().token_stats(batch.prompt_tokens, batch.completions, temperature=0.7, entropy=True, hidden=True)
    expected = {"old_logp": stats.logp, "ref_logp": stats.logp, "entropy": stats.entropy, "hidden": stats.hidden}
    for name in columns:
        assert_close(batch.tokens[name], expected[name], rtol=1e-9, atol=1e-12)
    assert_close(stats.logp.float(), batch.behaviour_logp, rtol=0, atol=1e-6)


def test_annotate_leaves_what_a_component_filled(lab):
    agent = lab.agent()
    agent.require(frozenset({"old_logp", "entropy"}))
    batch = draw(agent)
    batch = agent.annotate(batch.with_columns(old_logp=torch.zeros(len(batch.token))))
    assert not batch.old_logp.any() and batch.entropy.all()
    again = agent.annotate(batch)
    assert again is batch


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_policy_before_training(lab, lora):
    """Also when a component asks for it and no KL is configured."""

    class Refers(Component):
        needs = frozenset({"ref_logp"})

    agent = lab.agent(lab.policy(lora=lora), components=[Refers()])
    batch = agent.annotate(draw(agent))
    with torch.no_grad():
        for _, p in agent.policy.trainable():
            p.add_(0.1)
    again = agent.annotate(draw(agent).select(torch.tensor([], dtype=torch.int64)).cat([strip(batch)]))
    assert_close(again.ref_logp, batch.ref_logp, rtol=0, atol=0)
    assert (again.behaviour_logp - agent.policy.token_stats(batch.prompt_tokens, batch.completions).logp).abs().max() > 1e-3


def strip(batch: RolloutBatch) -> RolloutBatch:
    """Without the columns that annotate fills."""
    tokens = {name: batch.tokens[name] for name in ("token", "action", "forced", "behaviour_logp")}
    return RolloutBatch(batch.prompts, batch.prompt_tokens, batch.offsets, texts=batch.texts, rows=batch.rows, tokens=tokens)


# --- drawing ---


def test_draw_marks_rows_with_agent_version_and_group(lab):
    agent = lab.agent(index=3)
    agent.policy.version = 7
    batch = draw(agent, "cab")
    assert batch.group.tolist() == [g for g in range(3) for _ in range(4)]
    assert set(batch.agent.tolist()) == {3} and set(batch.version.tolist()) == {7} and set(batch.role.tolist()) == {Role.TRAIN}
    assert batch.lengths.max() == 3


def test_a_component_may_change_what_is_drawn(lab):
    class Halve(Component):
        def sample(self, step, agent, prompts, groups, batch):
            assert [p.text for p in prompts] == ["a:", "b:"] and groups == [0, 1]
            return batch.select(batch.sample < len(batch) // 4)

    assert len(draw(lab.agent(components=[Halve()]))) == 4
    assert len(draw(lab.agent(components=[Halve(), Halve()]))) == 2


def test_what_draws_follows_what_trains(lab):
    """A mirror takes over the weights before it draws, and only then."""
    mirror = lab.policy(seed=1)
    agent = lab.agent(lab.policy(seed=0), mirror=mirror)
    agent.policy.version = 1
    agent.sync()
    assert mirror.version == 1 and all(torch.equal(a, b) for (_, a), (_, b) in zip(agent.policy.trainable(), mirror.trainable(), strict=True))
    with torch.no_grad():
        agent.policy.trainable()[0][1].add_(1)
    agent.sync()  # the same version: nothing is copied
    assert not torch.equal(agent.policy.trainable()[0][1], mirror.trainable()[0][1])
    alone = lab.agent()
    assert alone.mirror is alone.policy
    alone.sync()


def test_gradient_checkpointing_is_honoured(lab, monkeypatch):
    """transformers does it in training mode alone, and sampling must not leave another mode behind."""
    policy = lab.policy()
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    for module in policy.model.modules():
        if run := getattr(module, "_gradient_checkpointing_func", None):
            monkeypatch.setattr(module, "_gradient_checkpointing_func", lambda *a, run=run, **k: calls.append(1) or run(*a, **k))
    trainer = lab.trainer(lab.agent(policy, algorithm={"epochs": 2, "minibatch_rows": 8}))
    plain = lab.trainer(lab.agent(algorithm={"epochs": 2, "minibatch_rows": 8}))
    found = [t.step().metrics["optimiser/grad_norm"] for t in (trainer, plain)]
    assert len(calls) >= 4
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_dropout_is_off(lab):
    """Sampler and trainer are one network, also in training mode and with the dropout of an adapter."""
    trainer = lab.trainer(lab.agent(lab.policy(lora=True), optimiser={"lr": 0.1}))
    assert all(step.metrics["health/logp_gap"] < 1e-6 for step in trainer.steps(3))
    assert any(p.abs().max() > 0.1 for name, p in trainer.agents[0].policy.trainable() if "lora_B" in name)


# --- credit ---


def credited(agent: Any, pool: RolloutBatch) -> list[float]:
    step = Step(0, 0)
    step.add(pool, torch.ones(len(pool), dtype=torch.bool))
    return agent.credit(step).advantage.tolist()


def test_kl_in_the_reward_by_hand(lab):
    """r - 0.5 sum over trained tokens of (logp - ref_logp); k1 sums are 2, -1 and 1 (+ 9 at an untrained token)."""
    agent = lab.agent(algorithm={"advantage": "dr_grpo", "kl": {"coefficient": 0.5, "form": "k1", "where": "reward"}})
    tokens = {"old_logp": [-1.0, -1, -2, -1, -1], "ref_logp": [-2.0, -2, -1, -2, -10], "action": [True, True, True, True, False]}
    pool = lab.batch([([2], [3, 1]), ([2], [3]), ([2], [3, 4])], reward=[1.0, 0, 1], tokens=tokens)
    shaped = [1 - 1.0, 0 + 0.5, 1 - 0.5]
    assert credited(agent, pool) == pytest.approx([s - 1 / 3 for s in shaped])
    assert agent.base_update(pool).kl is None  # not twice
    in_loss = lab.agent(algorithm={"advantage": "dr_grpo", "kl": {"coefficient": 0.5}})
    assert credited(in_loss, pool) == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    assert in_loss.base_update(pool).kl.coefficient == 0.5


def test_credit_is_for_the_learners_own_rows(lab):
    pool = lab.batch([([2], [3])] * 4, agent=[0, 1, 0, 1], reward=[1.0, 5, 0, 5])
    assert credited(lab.agent(algorithm={"advantage": "dr_grpo"}), pool) == [0.5, 0, -0.5, 0]


def test_remax_by_hand(lab):
    """The greedy rollout of each group is the baseline, in no mean, and not trained on."""
    agent = lab.agent(algorithm={"advantage": "remax"})
    pool = lab.batch([([2], [3])] * 5, group=[0, 0, 1, 0, 1], role=[0, 0, 0, 1, 1], reward=[1.0, 0, 1, 1, 0.25])
    assert credited(agent, pool) == [0, -1, 0.75, 0, 0]
    others = lab.agent(algorithm={"advantage": "dr_grpo"})
    assert credited(others, pool) == [0.5, -0.5, 0, 0, 0]  # no other estimator counts them


def test_remax_draws_one_greedy_rollout_a_prompt(lab):
    agent = lab.agent(algorithm={"advantage": "remax"})
    batch = draw(agent, "abc")
    greedy = batch.select(batch.role == Role.GREEDY)
    assert greedy.group.tolist() == [0, 1, 2] and len(batch) == 15
    step = Step(0, 0)
    batch = batch.with_columns(**{"scored": torch.ones(15, dtype=torch.bool), "reward/raw": torch.zeros(15, dtype=torch.float64)})
    step.add(batch, agent.keep(step, batch))
    trained = agent.select(step, agent.credit(step))
    assert len(trained) == 12 and set(trained.role.tolist()) == {Role.TRAIN}


def test_length_penalty_by_hand(lab):
    """Ranks 0, ½ and 1 among the right ones, by the verifier's word and not by the shaped reward."""
    agent = lab.agent(algorithm={"advantage": "dr_grpo", "length_penalty": 0.3})
    rows = [([2], [3] * n) for n in (2, 5, 3, 1, 4)]
    pool = lab.batch(rows, reward=[1.0, 1, 1, 0, 1], scored=[True, True, True, True, False])
    shaped = [1.0, 1 - 0.3, 1 - 0.15, 0]
    assert credited(agent, pool) == pytest.approx([s - sum(shaped) / 4 for s in shaped] + [0])
    punished = pool.with_columns(reward=pool.reward - 1)  # an over-long penalty took all of it: still the right ones
    assert credited(agent, punished) == pytest.approx([s - sum(shaped) / 4 for s in shaped] + [0])


# --- the base update ---


def test_the_base_update_is_what_the_recipe_says(lab):
    config = {
        "aggregation": "seq-mean-token-sum",
        "kl": {"coefficient": 0.2, "form": "k2", "importance_weighted": True},
        "importance_cap": 3.0,
        "epochs": 2,
        "minibatch_rows": 5,
    }
    batch = lab.batch([([2], [3, 4]), ([2], [1])], advantage=[0.5, -1.0])
    (update,) = lab.agent(algorithm=config).plan(Step(0, 0), batch)
    assert (update.aggregation, update.importance_cap, update.epochs, update.minibatch_rows, update.tag) == (
        "seq-mean-token-sum",
        3.0,
        2,
        5,
        "policy",
    )
    assert (update.kl.coefficient, update.kl.form, update.kl.importance_weighted) == (0.2, "k2", True)
    assert update.advantages.tolist() == [0.5, 0.5, -1.0]
    assert lab.agent().plan(Step(0, 0), batch.select(torch.tensor([], dtype=torch.int64))) == []


@pytest.mark.parametrize(
    ("algorithm", "expected"), [({}, 1), ({"epochs": 3}, 3), ({"minibatch_rows": 5}, 4), ({"minibatch_rows": 99, "epochs": 2}, 2)]
)
def test_the_schedule_spans_all_optimiser_steps(lab, algorithm, expected):
    """16 rows a step. A linear schedule over 10 RL steps reaches 0 with the last of them, however many optimiser steps each takes."""
    agent = lab.agent(algorithm=algorithm, optimiser={"lr": 0.5, "schedule": "linear"}, steps=10)
    assert optimiser_steps(agent.algorithm, agent.sampling) == expected
    trainer = lab.trainer(agent)
    assert [step.metrics["optimiser/lr"] for step in trainer.steps(3)] == pytest.approx([0.45, 0.4, 0.35])


# --- the user's own parts ---


OWN = """
import torch
from tacit.rl.losses import PolicyLoss

def halved(rewards, groups, scored):
    return torch.where(scored, rewards / 2, 0)

def mean(rewards, groups, scored):
    return rewards.mean()

def plain_list(rewards, groups, scored):
    return [0.0] * len(rewards)

def push(logp, old_logp, advantages, *, rows, mask, clip_low, clip_high, dual_clip):
    assert (clip_low, clip_high, dual_clip) == (0.1, 0.4, 3.0)
    return PolicyLoss(-advantages * logp, (logp - old_logp).exp().detach(), torch.zeros_like(mask))

def reduced(logp, old_logp, advantages, **options):
    return PolicyLoss(logp.mean(), logp, logp)

def bare(logp, old_logp, advantages, **options):
    return -advantages * logp
"""


@pytest.fixture
def own(tmp_path) -> str:
    (tmp_path / "own_parts.py").write_text(OWN)
    return f"{tmp_path / 'own_parts.py'}:"


def test_own_advantage_and_loss_train(lab, own):
    algorithm = {"advantage": own + "halved", "loss": own + "push", "clip_low": 0.1, "clip_high": 0.4, "dual_clip": 3.0}
    step = lab.trainer(lab.agent(algorithm=algorithm)).step()
    assert step.pool.advantage.tolist() == (step.pool.reward / 2).tolist() and step.pool.reward.any()
    tokens = (step.pool.advantage[step.pool.row_of_token] * step.pool.behaviour_logp).mean()
    assert step.metrics["loss/policy"] == pytest.approx(-float(tokens), rel=1e-5)


@pytest.mark.parametrize("name", ["mean", "plain_list"])
def test_an_own_advantage_must_give_one_value_a_rollout(lab, own, name):
    with pytest.raises(ValueError, match=rf"advantage '.*own_parts.py:{name}' must return a tensor with one value for each of its 16 rewards"):
        lab.trainer(lab.agent(algorithm={"advantage": own + name})).step()


@pytest.mark.parametrize("name", ["reduced", "bare"])
def test_an_own_loss_must_be_per_token(lab, own, name):
    with pytest.raises(ValueError, match=rf"loss '.*own_parts.py:{name}' must return a PolicyLoss whose `loss` has one value per token"):
        lab.trainer(lab.agent(algorithm={"loss": own + name})).step()


def test_unknown_names_are_one_sentence(own):
    with pytest.raises(ValueError, match=r"^unknown loss 'ppo': choose one of cispo, clip, .*, or give your own as file.py:function$"):
        bind_loss(AlgorithmConfig(loss="ppo"))
    with pytest.raises(ValueError, match=r"^unknown advantage 'ppo': choose one of dr_grpo, gae, grpo, .*, or give your own as file.py:function$"):
        bind_advantage(AlgorithmConfig(advantage="ppo"))
    with pytest.raises(ValueError, match=r"own_parts\.py defines no 'halve'; did you mean 'halved'"):
        bind_advantage(AlgorithmConfig(advantage=own + "halve"))


@pytest.mark.parametrize("name", advantages.ADVANTAGES)
def test_every_estimator_by_its_name(lab, name):
    agent = lab.agent(algorithm={"advantage": name})
    pool = lab.batch([([2], [3])] * 6, group=[0, 0, 0, 1, 1, 1], role=[0, 0, 1, 0, 0, 1], reward=[1.0, 0, 0, 1, 1, 0])
    train = pool.role == Role.TRAIN
    options = {"greedy": ~train} if name == "remax" else {}
    scored = pool.scored if name == "remax" else train
    assert credited(agent, pool) == advantages.ADVANTAGES[name](pool.reward, pool.group, scored, **options).tolist()
