"""The true value of a rollout: slopes, the gradient of the expected reward, and the gain that they foretell. Claims 7 and 8 of CBS."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tacit.core.rollouts import Role
from tacit.core.runtime import Runtime
from tacit.rl import advantages
from tacit.rl.aggregation import denominators
from tacit.rl.selectors import TRUTH, Selector
from tacit.rl.true_value import TrueValue, along, reward_gradient, true_values
from tacit.rl.update import Meter, objective, run_update


def agent_of(lab, **options):
    """Its embedding learns from the padding token too, which an untrained model draws like any other."""
    agent = lab.agent(**options)
    agent.policy.model.get_input_embeddings().padding_idx = None
    return agent


def drawn(lab, agent, prompts: int = 6, group: int = 8, seed: int = 0):
    """Scored rollouts with GRPO advantages."""
    task = lab.letters()
    batch = agent.sampler.sample([task.prompt_at(i, 0) for i in range(prompts)], group, seed=seed, step=0, groups=list(range(prompts)))
    reward = torch.tensor([s.value for s in lab.first_letter(batch.prompts, batch.texts)], dtype=torch.float64)
    batch = batch.with_columns(**{"reward": reward, "scored": torch.ones(len(batch), dtype=torch.bool), "reward/raw": reward})
    return batch.with_columns(advantage=advantages.grpo(reward, batch.group, batch.scored))


def expected_reward(agent, task) -> torch.Tensor:
    """J exactly, with its graph: the mean over the three prompts of the probability of the right first letter."""
    policy, total = agent.policy, 0.0
    for i in range(3):
        prompt = task.prompt_at(i, 0)
        ids = policy.encode_prompt(prompt)
        logits = policy.model(torch.tensor([ids])).logits[0, -1]
        total = total + torch.softmax(logits, -1)[policy.tokenizer.encode(prompt.answer, add_special_tokens=False)[0]]
    return total / 3


def test_the_derivative_is_that_of_autograd_and_leaves_the_weights_alone(lab):
    agent = agent_of(lab)
    batch, before = drawn(lab, agent), lab.weights(agent.policy)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for _, p in agent.policy.trainable()]
    found = along(agent.policy, batch, direction)
    assert all(torch.equal(p, before[name]) for name, p in agent.policy.trainable())
    params = [p for _, p in agent.policy.trainable()]
    for token in (0, 5, len(found) - 1):
        logp = agent.policy.score(batch.prompt_tokens, batch.completions).logp[token]
        exact = sum((g * d).sum() for g, d in zip(torch.autograd.grad(logp, params), direction, strict=True))
        assert float(found[token]) == pytest.approx(float(exact), rel=1e-3, abs=1e-4)
    assert not along(agent.policy, batch, [torch.zeros_like(d) for d in direction]).any()


def test_in_single_precision_too(lab):
    double, agent = agent_of(lab), agent_of(lab, policy=lab.policy(dtype=torch.float32))
    agent.policy.load_state_dict({name: p.float() for name, p in lab.weights(double.policy).items()})
    batch = drawn(lab, agent)
    direction = [torch.ones_like(p) for _, p in double.policy.trainable()]
    found, exact = along(agent.policy, batch, [d.float() for d in direction]), along(double.policy, batch, direction)
    assert np.corrcoef(found, exact)[0, 1] > 0.999


def test_reward_gradient_is_that_of_the_expected_reward(lab):
    """With many completions it points where the exact gradient points, and has its length."""
    agent = agent_of(lab)
    batch = drawn(lab, agent, prompts=3, group=3000)
    found = torch.cat([g.flatten() for g in reward_gradient(agent.policy, batch)])
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(expected_reward(agent, lab.letters()), [p for _, p in agent.policy.trainable()])])
    assert float(torch.nn.functional.cosine_similarity(found, exact, dim=0)) > 0.95
    assert float(found.norm()) == pytest.approx(float(exact.norm()), rel=0.15)
    halves = reward_gradient(agent.policy, batch, budget=2000)
    torch.testing.assert_close(torch.cat([g.flatten() for g in halves]), found)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_the_sum_over_a_batch_is_the_slope_along_its_own_update(lab, aggregation):
    """Σ h* = <gradient of the objective of the update, direction>, whatever the aggregation."""
    agent = agent_of(lab, algorithm={"aggregation": aggregation})
    batch = drawn(lab, agent)
    direction = reward_gradient(agent.policy, drawn(lab, agent, seed=9))
    update = agent.base_update(batch)
    whole = batch.with_columns(token_advantage=update.advantages)
    loss = objective(agent, update, whole, denominators(batch.action, batch.offsets, agent.sampling.max_new_tokens), 0, Meter())
    gradients = torch.autograd.grad(-loss, [p for _, p in agent.policy.trainable()])
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    values = true_values(agent, batch, direction)
    assert float(values.sum()) == pytest.approx(slope, rel=2e-3)
    assert not values[batch.advantage == 0].any()  # claim 8: what has no advantage is worth nothing


def test_claim_7_foretells_the_gain_of_a_small_step(lab):
    """Over random subsets of a batch, Σ η h* against what the expected reward really gained from one small step of gradient ascent on each."""
    agent = agent_of(lab, optimiser={"max_grad_norm": None})
    batch, task, eta = drawn(lab, agent, prompts=6, group=12), lab.letters(), 0.005
    params = [p for _, p in agent.policy.trainable()]
    direction = reward_gradient(agent.policy, drawn(lab, agent, prompts=3, group=3000, seed=5))
    values = true_values(agent, batch, direction)
    agent.optimiser = torch.optim.SGD(params, lr=eta)
    start, rng, foretold, gained = [p.detach().clone() for p in params], np.random.default_rng(0), [], []
    for _ in range(24):
        rows = torch.from_numpy(np.sort(rng.choice(len(batch), 18, replace=False)))
        part = batch.select(rows)
        before = float(expected_reward(agent, task).detach())
        update = agent.base_update(part)
        update.scheduled = False
        run_update(agent, update, 0, Runtime(), (0,))
        gained.append(float(expected_reward(agent, task).detach()) - before)
        foretold.append(eta * float(values[rows].sum()) * int(batch.action.sum()) / int(part.action.sum()))  # token-mean over fewer tokens
        with torch.no_grad():
            for p, q in zip(params, start, strict=True):
                p.copy_(q)
    assert np.corrcoef(foretold, gained)[0, 1] > 0.9
    assert np.polyfit(foretold, gained, 1)[0] == pytest.approx(1.0, abs=0.25)


def test_in_the_trainer_it_changes_nothing_and_an_oracle_chooses_by_it(lab):
    plain = lab.trainer(lab.agent())
    list(plain.steps(2))
    watched = lab.trainer(lab.agent(components=[TrueValue(prompts=6, group=4)]))
    steps = list(watched.steps(2))
    assert all(torch.equal(p, lab.weights(plain.agents[0].policy)[name]) for name, p in watched.agents[0].policy.trainable())
    for step in steps:
        probes = step.pool.role == Role.PROBE
        assert probes.sum() == 24 and step.pool.rows[TRUTH][probes].isnan().all() and step.pool.rows[TRUTH][~probes].isfinite().all()
        assert step.metrics["truth/sum"] == pytest.approx(float(step.pool.rows[TRUTH][~probes].sum()))
        assert step.metrics["truth/gradient"] > 0 and step.metrics["truth/spread"] > 0
    one, other = (s.drawn.token[(s.drawn.role == Role.PROBE)[s.drawn.row_of_token]].tolist() for s in steps)
    assert one != other, "each step has random numbers of its own"

    spy = lab.spy()
    oracle = lab.trainer(lab.agent(sampling={"group_size": 8}, components=[TrueValue(prompts=6), Selector("oracle"), spy]))
    (step,) = oracle.steps(1)
    for group in range(4):
        there = step.pool.rows[TRUTH][(step.pool.group == group) & (step.pool.role == Role.TRAIN)]
        taken = spy.batches[0].rows[TRUTH][spy.batches[0].group == group]
        assert taken.sort().values.tolist() == there.sort().values[-4:].tolist()


def test_only_every_so_often(lab):
    steps = list(lab.trainer(lab.agent(components=[TrueValue(prompts=2, every=2)])).steps(3))
    assert [bool(s.pool.rows[TRUTH].isfinite().any()) for s in steps] == [True, False, True]
    assert ["truth/sum" in s.metrics for s in steps] == [True, False, True]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="group >= 2"):
        TrueValue(group=1)
