"""PPO's critic: GAE and the value loss by hand and as properties; the network; and both inside the trainer, with PIPO, rollback and resume."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tacit
from tacit.config import CriticConfig, OptimiserConfig
from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import Ragged, lengths_to_offsets
from tacit.core.runtime import Runtime
from tacit.rl.component import Component
from tacit.rl.critic import Critic, ValueModel, at_last, explained_variance, gae, value_loss, whitened
from tacit.rl.pipo import PIPO
from tacit.rl.rollback import Rollback, put_back, take
from tacit.rl.selectors import Selector
from tacit.rl.trainer import Trainer
from tacit.rl.true_value import TrueValue
from tacit.rl.update import Update

PPO: dict[str, Any] = {"advantage": "gae", "minibatch_rows": 8}
NAN = math.nan


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def tokens(draw) -> dict[str, torch.Tensor]:
    """Rows of 0 to 5 tokens, some of them not trained on."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    total = sum(lengths)
    made = {name: torch.randn(total, generator=rng, dtype=torch.float64) for name in ("rewards", "values")}
    return made | {"mask": torch.rand(total, generator=rng) < 0.8, "offsets": lengths_to_offsets(torch.tensor(lengths))}


# --- formulas ---


def test_gae_by_hand():
    """δ = (-0.275, 0.425, 0.25) at γ = 0.9, and γλ = 0.72; the token that is not trained on is no step of time."""
    mask = torch.tensor([True, True, False, True, True])
    found = gae(f64(0, 0, NAN, 1, 0), f64(0.5, 0.25, NAN, 0.75, 0.2), mask, torch.tensor([0, 4, 5]), 0.9, 0.8)
    torch.testing.assert_close(found, f64(0.1606, 0.605, 0, 0.25, -0.2), rtol=0, atol=1e-15)


@given(tokens(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_sum_of_discounted_errors(x, gamma, lam):
    found = gae(**x, gamma=gamma, lam=lam)
    expected = torch.zeros_like(found)
    for start, end in zip(x["offsets"][:-1].tolist(), x["offsets"][1:].tolist(), strict=True):
        at = [t for t in range(start, end) if x["mask"][t]]
        errors = [float(x["rewards"][t] + (gamma * x["values"][at[i + 1]] if i + 1 < len(at) else 0) - x["values"][t]) for i, t in enumerate(at)]
        for i, t in enumerate(at):
            expected[t] = sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, len(at)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(tokens())
def test_with_lambda_1_it_is_return_minus_value_and_with_lambda_0_the_error_of_one_step(x):
    mask, offsets = x["mask"], x["offsets"]
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        inside = mask[start:end]
        reward, value = (x[name][start:end][inside] for name in ("rewards", "values"))
        to_come = reward.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(gae(**x, gamma=1.0, lam=1.0)[start:end][inside], to_come - value)
        ahead = torch.cat([value[1:], value.new_zeros(min(1, len(value)))])
        torch.testing.assert_close(gae(**x, gamma=0.9, lam=0.0)[start:end][inside], reward + 0.9 * ahead - value)


@given(tokens(), st.randoms(use_true_random=False))
def test_neither_order_nor_neighbours_nor_what_stands_at_untrained_tokens_matter(x, random):
    found = gae(**x, gamma=0.9, lam=0.7)
    assert (found[~x["mask"]] == 0).all()
    offsets = x["offsets"].tolist()
    rows = list(pairwise(offsets))
    random.shuffle(rows)
    at = torch.cat([torch.arange(a, b) for a, b in rows])
    lengths = torch.tensor([b - a for a, b in rows])
    moved = {name: x[name][at] for name in ("rewards", "values", "mask")}
    for name in ("rewards", "values"):
        moved[name] = torch.where(moved["mask"], moved[name], NAN)
    torch.testing.assert_close(gae(**moved, offsets=lengths_to_offsets(lengths), gamma=0.9, lam=0.7), found[at])


def test_a_reward_comes_with_the_last_trained_token():
    mask = torch.tensor([True, True, False, False, True])
    assert at_last(f64(1, 2, 3), mask, torch.tensor([0, 3, 4, 5])).tolist() == [0, 1, 0, 0, 3], "the second row has no trained token"


def test_value_loss_by_hand():
    """V = 0.9 was 0.5: clipped to 0.7. Its error counts where it is the larger one, and then gives no gradient."""
    values = f64(0.9, 0.9, 0.6).requires_grad_()
    loss, clipped = value_loss(values, f64(0.5, 0.5, 0.5), f64(1, 0, 1), 0.2)
    torch.testing.assert_close(loss, f64(0.045, 0.405, 0.08))
    assert clipped.tolist() == [True, False, False]
    loss.sum().backward()
    torch.testing.assert_close(values.grad, f64(0, 0.9, -0.4))
    plain, none = value_loss(values.detach(), f64(0.5, 0.5, 0.5), f64(1, 0, 1), None)
    torch.testing.assert_close(plain, f64(0.005, 0.405, 0.08))
    assert not none.any()


def test_whitening_and_explained_variance_by_hand():
    mask = torch.tensor([True, True, False, True])
    torch.testing.assert_close(whitened(f64(1, 2, NAN, 3), mask), f64(-1, 0, 0, 1), rtol=0, atol=1e-7)
    for agreeing in (f64(0.1, 0.1, 5, 0.1), f64(1, 1, 1, 1)):
        assert whitened(agreeing, mask).tolist() == [0, 0, 0, 0]
    assert explained_variance(f64(1, 2, 3), f64(1, 2, 3)) == 1
    assert explained_variance(f64(7, 7, 7), f64(1, 2, 3)) == pytest.approx(0)
    assert explained_variance(f64(0, 0, 1), f64(0, 1, 2)) == pytest.approx(2 / 3)
    assert math.isnan(explained_variance(f64(1, 2), f64(1, 1)))


# --- the network ---


def critic_of(lab, policy=None, *, lr: float = 0.01, micro_batch_tokens: int | None = None, **options: Any) -> Critic:
    optimiser = OptimiserConfig(lr=lr, max_grad_norm=None)
    return Critic(policy or lab.policy(), CriticConfig(**options), optimiser, steps=10, micro_batch_tokens=micro_batch_tokens)


def batch_of(lab):
    rows = [([2, 3], [2, 3, 4, 1]), ([2], [3]), ([4, 3, 2], [4, 4]), ([3], [2, 2, 4]), ([3], [4])]
    extra = {"value": torch.linspace(-0.5, 0.5, 11, dtype=torch.float64), "returns": torch.linspace(1, -1, 11, dtype=torch.float64)}
    action = [True] * 11
    action[2] = action[10] = False
    return lab.batch(rows, group=list(range(5)), tokens={**extra, "action": action})


def update_of(batch, **more: Any) -> Update:
    return Update(batch, torch.zeros(len(batch.token)), lambda x: None, **more)  # pyright: ignore[reportArgumentType]


def moved(critic: Critic) -> Critic:
    """With weights at random in place of an output of 0."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        critic.model.head.weight.copy_(torch.randn(critic.model.head.weight.shape, generator=rng))
        critic.model.head.bias.fill_(0.3)
    return critic


def test_values_start_at_0_and_depend_only_on_what_came_before(lab):
    critic, batch = critic_of(lab), batch_of(lab)
    assert critic.values(batch.prompt_tokens, batch.completions).tolist() == [0.0] * 11
    moved(critic)
    values = critic.values(batch.prompt_tokens, batch.completions)
    assert values.unique().numel() > 8 and values.dtype == torch.float64
    other = batch.token.clone()
    other[1] = 2  # of the first row, whose tokens are the first four
    changed = critic.values(batch.prompt_tokens, Ragged(other, batch.offsets)) != values
    assert changed.tolist() == [False, False, True, True] + [False] * 7


def test_values_do_not_depend_on_padding_or_order(lab):
    batch = batch_of(lab)
    together, apart = moved(critic_of(lab)), moved(critic_of(lab, micro_batch_tokens=1))
    values = together.values(batch.prompt_tokens, batch.completions)
    torch.testing.assert_close(apart.values(batch.prompt_tokens, batch.completions), values, rtol=1e-12, atol=1e-12)
    turned = batch.with_columns(expected=values).select(torch.tensor([3, 0, 4, 2, 1]))
    torch.testing.assert_close(together.values(turned.prompt_tokens, turned.completions), turned.tokens["expected"], rtol=1e-12, atol=1e-12)


def test_learning_takes_the_mean_over_trained_tokens_however_the_batch_is_cut(lab):
    batch, found, metrics = batch_of(lab), [], []
    for budget in (None, 1, 7):
        critic = moved(critic_of(lab, micro_batch_tokens=budget, clip=0.2))
        expected, _ = value_loss(
            critic.model(batch.prompt_tokens, batch.completions)[batch.action], batch.value[batch.action], batch.returns[batch.action], 0.2
        )
        metrics.append(critic.learn(update_of(batch), 0, Runtime(device="cpu"), (0, 0, 0)))
        found.append(torch.cat([p.flatten() for p in critic.weights().values()]))
        assert metrics[-1]["loss/value"] == pytest.approx(float(expected.detach().mean()), rel=1e-12)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-9)
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-9)
    explained = explained_variance(batch.value[batch.action], batch.returns[batch.action])
    assert metrics[0]["critic/explained_variance"] == explained


def test_value_loss_falls_on_a_fixed_batch(lab):
    critic, batch = critic_of(lab, lr=1e-3, clip=None), batch_of(lab)
    losses = [critic.learn(update_of(batch), 0, Runtime(device="cpu"), (0, 0, 0))["loss/value"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_batch_without_a_trained_token_teaches_nothing(lab):
    critic, batch = critic_of(lab), batch_of(lab)
    before = copy.deepcopy(critic.weights())
    told = critic.learn(update_of(batch.with_columns(action=torch.zeros(11, dtype=torch.bool))), 0, Runtime(device="cpu"), (0, 0, 0))
    assert told == {"critic/grad_norm": 0.0, "critic/skipped_steps": 0.0}
    assert equal(critic.weights(), before)


def test_under_lora_only_adapter_and_output_are_its_own(lab):
    policy = lab.policy(lora=True)
    critic = critic_of(lab, policy, lr=1e-3)
    theirs = {id(p) for p in policy.model.parameters()}
    assert all((id(p) in theirs) != p.requires_grad for p in critic.model.parameters())
    before, batch = lab.weights(policy), batch_of(lab)
    losses = [critic.learn(update_of(batch), 0, Runtime(device="cpu"), (0, 0, 0))["loss/value"] for _ in range(20)]
    assert losses[-1] < losses[0] and equal(lab.weights(policy), before)


def test_a_model_without_a_trunk_is_refused(lab, monkeypatch):
    policy = lab.policy()
    monkeypatch.setattr(type(policy.base_model), "base_model", property(lambda self: self))
    with pytest.raises(ValueError, match="a critic needs a model whose trunk can be told from its head"):
        ValueModel(policy)


# --- in the trainer ---


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(p, other[name]) for name, p in one.items())


def trainer_of(lab, *components: Component, algorithm: dict[str, Any] | None = None, steps: int = 8, **more: Any):
    return lab.trainer(lab.agent(algorithm=PPO | (algorithm or {}), components=list(components), steps=steps, **more))


def critic_steps(agent) -> int:
    return max((int(s["step"]) for s in agent.critic.optimiser.state_dict()["state"].values()), default=0)


def test_a_step_has_the_advantages_of_the_formulas(lab):
    spy = lab.spy()
    trainer = trainer_of(lab, spy, algorithm={"critic": {"gamma": 0.9, "lam": 0.8, "whiten": False}})
    step = list(trainer.steps(3))[-1]
    pool, update = step.pool, spy.plans[-1][0]
    assert pool.value.unique().numel() > 4, "the critic has moved"
    rewards = torch.zeros(len(pool.token), dtype=torch.float64)
    rewards[pool.offsets[1:] - 1] = pool.reward
    expected = gae(rewards, pool.value, pool.action, pool.offsets, 0.9, 0.8)
    torch.testing.assert_close(pool.gae, expected)
    torch.testing.assert_close(pool.returns, expected + pool.value)
    assert torch.equal(update.advantages, update.batch.gae)
    assert float(pool.advantage[0]) == pytest.approx(float(expected[: int(pool.offsets[1])].mean()))
    assert {"loss/value", "critic/value", "critic/clip_fraction", "critic/grad_norm", "critic/skipped_steps"} <= step.metrics.keys()
    white = trainer_of(lab).step().pool
    assert float(white.gae.mean()) == pytest.approx(0, abs=1e-9) and float(white.gae.std()) == pytest.approx(1)
    torch.testing.assert_close(white.returns, white.reward[white.row_of_token])  # γ = λ = 1


def test_a_penalty_for_divergence_is_taken_off_token_by_token_and_what_is_not_counted_has_no_advantage(lab):
    batch = lab.batch([([2], [3, 4]), ([2], [3, 4]), ([2], [3])], reward=[1.0, 1.0, 1.0], tokens={"value": f64(0, 0, 0, 0, NAN)})
    critic = critic_of(lab, whiten=False)
    penalties = f64(0.1, 0.2, NAN, 0.4, 0.5)
    found = critic.credit(batch.with_columns(action=torch.tensor([1, 1, 0, 1, 1]).bool()), batch.reward, penalties, torch.tensor([True, True, False]))
    torch.testing.assert_close(found.gae, f64(0.7, 0.8, 0, 0.6, 0))
    torch.testing.assert_close(found.returns, found.gae)
    torch.testing.assert_close(found.advantage, f64(0.75, 0.6, 0))
    trainer = trainer_of(lab, algorithm={"kl": {"coefficient": 0.1, "where": "reward"}})
    steps = list(trainer.steps(3))
    assert all(math.isfinite(s.metrics["loss/value"]) for s in steps)


def test_it_learns_from_one_completion_a_prompt(lab):
    sampling = {"prompts": 24, "group_size": 1, "max_new_tokens": 2}
    steps = list(trainer_of(lab, algorithm={"critic": {"lr": 0.02}}, sampling=sampling, optimiser={"lr": 0.02}, steps=40).steps(40))
    reward, loss = ([s.metrics[name] for s in steps] for name in ("reward/mean", "loss/value"))
    assert sum(reward[-8:]) / 8 > 0.7 > 0.5 > sum(reward[:4]) / 4
    assert sum(loss[-8:]) < sum(loss[:8])


def test_the_rate_is_ten_times_the_policys_unless_given(lab):
    assert [trainer_of(lab).agents[0].critic.optimiser.param_groups[0]["lr"], critic_of(lab, lr=1.0).optimiser.param_groups[0]["lr"]] == [0.1, 10.0]
    assert trainer_of(lab, algorithm={"critic": {"lr": 0.3}}).agents[0].critic.optimiser.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("lora", [False, True])
def test_resume_is_bit_equal(lab, tmp_path, lora):
    def made():
        more = {"optimiser": {"lr": 0.02, "schedule": "cosine"}, "algorithm": PPO | {"critic": {"lam": 0.9}, "epochs": 2}}
        return lab.trainer(lab.agent(lab.policy(lora=lora), components=[PIPO(window=2), Rollback(probes=6, every=2)], steps=8, **more))

    whole, parted = made(), made()
    list(whole.steps(6))
    list(parted.steps(4))
    CheckpointStore(tmp_path).save(4, parted.state_dict())
    resumed = made()
    resumed.load_state_dict(CheckpointStore(tmp_path).latest().state)
    list(resumed.steps(2))
    one, other = whole.agents[0], resumed.agents[0]
    assert equal(lab.weights(one.policy), lab.weights(other.policy))
    assert equal(one.critic.weights(), other.critic.weights())
    assert critic_steps(one) == critic_steps(other) == 6 * 2 * 2
    assert one.critic.scheduler.last_epoch == other.critic.scheduler.last_epoch


def test_pipo_replays_the_native_advantages_and_takes_no_step_of_the_critic(lab):
    spy = lab.spy()
    trainer = trainer_of(lab, PIPO(window=2, constant=0.5), spy)
    list(trainer.steps(4))
    agent = trainer.agents[0]
    assert [[u.tag for u in plan] for plan in spy.plans] == [["policy"], ["policy"], ["replay", "policy"], ["replay", "policy"]]
    again, before = spy.plans[3][0], spy.plans[2][1]
    torch.testing.assert_close(again.advantages, 0.5 * before.advantages)
    assert agent.policy.version == 12 and critic_steps(agent) == 8, "two mini-batches a step, and two a replay"


def test_a_rollback_takes_the_critic_back_at_its_own_rate(lab):
    trainer = trainer_of(lab, optimiser={"schedule": "linear"})
    list(trainer.steps(2))
    agent = trainer.agents[0]
    snapshot = take(agent, 2, 0.5)
    held, moments = copy.deepcopy(agent.critic.weights()), copy.deepcopy(agent.critic.optimiser.state_dict()["state"])
    list(trainer.steps(2))
    assert not equal(agent.critic.weights(), held)
    rate = agent.critic.optimiser.param_groups[0]["lr"]
    put_back(agent, snapshot, damping=0.5)
    assert equal(agent.critic.weights(), held)
    for number, state in agent.critic.optimiser.state_dict()["state"].items():
        assert equal(state, moments[number])
    assert agent.critic.optimiser.param_groups[0]["lr"] == rate
    assert snapshot.bytes > 2 * sum(p.nbytes for p in held.values())


def test_the_guard_goes_back_with_it_and_goes_on(lab):
    guard: Any = Rollback(probes=6, every=1)
    verdicts = iter([False, False, True, False, False])
    guard.test.harmed = lambda scores: next(verdicts)
    trainer = trainer_of(lab, guard)
    fresh, seen = copy.deepcopy(trainer.agents[0].critic.weights()), []
    for step in trainer.steps(5):
        seen.append(copy.deepcopy(trainer.agents[0].critic.weights()))
        assert step.pool is not None and step.pool.gae.isfinite().all(), "probes have no value"
    assert any(equal(seen[2], earlier) for earlier in (fresh, seen[0])), "as it was at one of the two probings before"
    assert not equal(seen[3], seen[2])


# --- what it does not go with ---


@pytest.mark.parametrize("component", [Selector(), TrueValue()], ids=["selector", "true_value"])
def test_components_that_go_by_one_advantage_a_rollout_are_refused(lab, component):
    with pytest.raises(ValueError, match=f"^{type(component).__name__} goes by one advantage for a whole rollout, and algorithm.advantage: gae"):
        trainer_of(lab, component)


def test_several_agents_and_sharded_weights_are_refused(lab):
    with pytest.raises(ValueError, match=r"algorithm\.advantage: gae works with one agent"):
        lab.trainer([lab.agent(algorithm=PPO), lab.agent(lab.policy(1), index=1)])
    with pytest.raises(ValueError, match=r"gae keeps a critic whole in every process; set runtime\.distributed: ddp"):
        lab.agent(algorithm=PPO, mirror=lab.policy())


def test_a_component_that_changes_the_mean_of_the_advantages_is_told_so(lab):
    class Scaled(Component):
        def credit(self, step, agent, pool):
            return pool.with_columns(advantage=2 * pool.advantage)

    with pytest.raises(
        ValueError, match=r"a component changed the column advantage, which is only a mean of what algorithm\.advantage: gae trains on"
    ):
        trainer_of(lab, Scaled()).step()


# --- two processes ---


def two_steps(lab: Any, runtime: Runtime) -> dict[str, Any]:
    policy = lab.policy()
    runtime.distribute(policy.scorer)
    sampling = {"prompts": 5, "group_size": 3, "max_new_tokens": 4}
    agent = lab.agent(policy, algorithm=PPO | {"micro_batch_tokens": 18, "prefix_sharing": False}, sampling=sampling, steps=2)
    trainer = Trainer([agent], lab.letters(), lab.first_letter, runtime=runtime)
    steps = list(trainer.steps(2))
    told = [{n: v for n, v in s.metrics.items() if n.startswith(("critic/", "loss/value"))} for s in steps]
    return {"metrics": told, "critic": {n: p.tolist() for n, p in agent.critic.weights().items()}, "gae": [s.pool.gae.tolist() for s in steps]}


def in_two_processes(folder: Path) -> None:
    from conftest import Lab  # this folder's, beside the script

    runtime = Runtime(device="cpu", threads=1, seed=0, distributed="ddp")
    assert runtime.world_size == 2
    found = two_steps(Lab(), runtime)
    if runtime.is_main:
        (folder / "found.json").write_text(json.dumps(found))
    runtime.close()


def test_two_processes_learn_as_one(lab, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tacit.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found, expected = json.loads((tmp_path / "found.json").read_text()), two_steps(lab, Runtime(device="cpu"))
    for one, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert one == pytest.approx(other, rel=1e-7)
    for one, other in zip(found["gae"], expected["gae"], strict=True):
        assert one == pytest.approx(other, rel=1e-7, abs=1e-9)
    for name, weights in expected["critic"].items():
        torch.testing.assert_close(torch.tensor(found["critic"][name]), torch.tensor(weights), rtol=0, atol=1e-6)


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
