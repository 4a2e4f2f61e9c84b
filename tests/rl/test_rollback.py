"""The guard inside the trainer: planted harm is undone to the bit, everybody is told, the version goes on, and it resumes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import Role
from tacit.generation.noise import row_keys
from tacit.rl.component import Component
from tacit.rl.pipo import PIPO
from tacit.rl.probes import GROUPS, Probes
from tacit.rl.rollback import Rollback, copied, put_back, take

OPTIONS: dict[str, Any] = {"probes": 120, "every": 2, "keep": 3}


class Poison(Component):
    """After the update of certain steps the weights are scrambled."""

    def __init__(self, *steps: int):
        self.steps, self.told = set(steps), 0

    def observe(self, step, agent):
        if step.index in self.steps:
            rng = torch.Generator().manual_seed(step.index)
            with torch.no_grad():
                for _, p in agent.policy.trainable():
                    p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * p.std())

    def on_rollback(self):
        self.told += 1


def trainer_of(lab, *components: Component, sampling: dict[str, Any] | None = None, steps: int = 20, **more: Any):
    sampling = {"prompts": 6, "group_size": 8, "max_new_tokens": 2, **(sampling or {})}
    return lab.trainer(lab.agent(components=list(components), sampling=sampling, optimiser={"lr": 0.03}, steps=steps, **more))


def weights_at(lab, trainer, steps: int) -> list[dict[str, torch.Tensor]]:
    """Weights before each step."""
    found = []
    for _ in range(steps):
        found.append(lab.weights(trainer.agents[0].policy))
        trainer.step()
    return found


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(p, other[name]) for name, p in one.items())


def moments(agent) -> list[torch.Tensor]:
    return [t.clone() for s in agent.optimiser.state_dict()["state"].values() for t in s.values()]


def test_planted_harm_is_undone_to_the_bit_and_everybody_is_told(lab, caplog):
    """Scrambled after step 9, found by the probes of step 10, which is spent without an update; step 11 has fresh rollouts of the restored policy."""
    guard, poison, pipo = Rollback(**OPTIONS), Poison(9), PIPO(window=3)
    trainer = trainer_of(lab, pipo, guard, poison)
    agent, before = trainer.agents[0], []
    kept: list[list[torch.Tensor]] = []
    for _ in range(10):
        before.append(lab.weights(agent.policy))
        kept.append(moments(agent))
        trainer.step()
    best, version = guard.best(), agent.policy.version
    assert best.step in (4, 6, 8) and best.level > 0.6

    with caplog.at_level(logging.WARNING, logger="tacit"):
        step = trainer.step()
    assert step.metrics["rollback/harm"] == 1 and step.metrics["rollback/evidence"] > 0 and step.metrics["rollback/count"] == 1
    assert equal(lab.weights(agent.policy), before[best.step])
    assert all(torch.equal(a, b) for a, b in zip(moments(agent), kept[best.step], strict=True))
    assert "optimiser/steps" not in step.metrics and "agent0/replay/optimiser/steps" not in step.metrics
    assert poison.told == 1 and not pipo.window and pipo.cache is None
    assert f"step 11: the probes fell; back to the policy of step {best.step}" in caplog.text
    assert agent.optimiser.param_groups[0]["lr"] == 0.015

    again = trainer.step()  # measured anew at once, with new luck
    assert "rollback/level" in again.metrics and "rollback/evidence" not in again.metrics
    assert again.drawn.version.unique().tolist() == [version + 1]  # never seen before, though the weights were
    assert again.metrics["reward/mean"] > 0.5 and again.metrics["optimiser/lr"] == 0.015
    assert max(s.metrics["rollback/count"] for s in trainer.steps(6) if "rollback/count" in s.metrics) == 1


def test_a_guard_that_sees_no_harm_changes_nothing(lab):
    guarded, plain = trainer_of(lab, guard := Rollback(**OPTIONS)), trainer_of(lab)
    for trainer in (guarded, plain):
        list(trainer.steps(12))
    assert guard.done == 0 and len(guard.ring) == 3 and guard.best() in guard.ring
    assert equal(*(lab.weights(t.agents[0].policy) for t in (guarded, plain)))


def test_the_ring_keeps_the_newest_and_the_best(lab):
    agent = lab.agent()
    guard = Rollback(keep=3)
    for step, level in enumerate([0.2, 0.9, 0.3, 0.4, 0.9, 0.1]):
        guard.remember(take(agent, step, level))
    assert [s.step for s in guard.ring] == [3, 4, 5] and guard.best().step == 4  # of equals the newest
    guard = Rollback(keep=2)
    for step, level in enumerate([0.9, 0.2, 0.3]):
        guard.remember(take(agent, step, level))
    assert [s.step for s in guard.ring] == [0, 2]


@pytest.mark.parametrize("lora", [False, True])
def test_a_snapshot_holds_what_training_changes_and_is_not_changed_by_it(lab, lora):
    policy = lab.policy(lora=lora)
    trainer = lab.trainer(lab.agent(policy, optimiser={"lr": 0.03, "schedule": "linear", "warmup": 2}, steps=10))
    agent = trainer.agents[0]
    list(trainer.steps(3))
    snapshot, before, then = take(agent, 3, 0.5), lab.weights(policy), moments(agent)
    assert snapshot.policy.keys() == before.keys() and all(("lora" in name) == lora for name in snapshot.policy)
    trained = sum(p.nbytes for _, p in policy.trainable())
    assert 3 * trained <= snapshot.bytes <= 3 * trained + 8 * len(before)  # weights, two moments and a counter for each
    for _ in range(2):  # the second time from the same snapshot, which nothing has changed
        list(trainer.steps(2))
        assert not equal(lab.weights(policy), before)
        version, epoch, rate = policy.version, agent.scheduler.last_epoch, agent.optimiser.param_groups[0]["lr"]
        put_back(agent, snapshot, 0.5)
        assert equal(lab.weights(policy), before) and all(torch.equal(a, b) for a, b in zip(moments(agent), then, strict=True))
        assert policy.version == version + 1 and agent.scheduler.last_epoch == epoch  # the schedule goes on
        assert agent.optimiser.param_groups[0]["lr"] == pytest.approx(rate / 2) and agent.optimiser.param_groups[0]["initial_lr"] < 0.03
    rates = [step.metrics["optimiser/lr"] for step in trainer.steps(2)]
    assert rates == pytest.approx([0.03 / 4 * (1 - (t - 2) / 8) for t in (8, 9)])


def test_when_nothing_helps_the_run_ends_with_the_best_policy(lab):
    """Scrambled again and again: after two rollbacks in a row the third time is the last."""
    guard = Rollback(**OPTIONS, most=2)
    trainer = trainer_of(lab, guard, Poison(9, 11, 14), steps=40)  # found at 10, 13 and 16
    before = weights_at(lab, trainer, 9)
    best = guard.best().step
    rest = list(trainer.steps(31))
    assert guard.done == 3 and len(rest) < 31 and trainer.ended
    assert trainer.ended.startswith("training did harm again after 2 rollbacks in a row, at a learning rate of 0.0075; the policy of step ")
    assert rest[-1].metrics["rollback/count"] == 3 and best < len(before)
    assert list(trainer.steps(3)) == []
    fresh = trainer_of(lab, Rollback(**OPTIONS, most=2))
    fresh.agents[0].components[0].load_state_dict(guard.state_dict())
    assert fresh.ended == trainer.ended, "a run that is resumed after its end stays ended"


def test_resumes_bit_for_bit_across_a_rollback(lab, tmp_path):
    def make():
        return trainer_of(lab, PIPO(window=2), Rollback(**OPTIONS), Poison(7), algorithm={"minibatch_rows": 24})

    whole, interrupted = make(), make()
    expected = list(whole.steps(14))
    assert sum(step.metrics.get("rollback/harm", 0) for step in expected) == 1
    for cut in (7, 9, 11):  # before the harm, right after the rollback, later
        list(interrupted.steps(cut - interrupted.index))
        CheckpointStore(tmp_path).save(cut, interrupted.state_dict())
        resumed = make()
        resumed.load_state_dict(CheckpointStore(tmp_path).read(cut))
        rest = list(resumed.steps(14 - cut))
        assert equal(*(lab.weights(t.agents[0].policy) for t in (resumed, whole)))
        for ours, theirs in zip(rest, expected[cut:], strict=True):
            numbers = [{k: repr(v) for k, v in s.metrics.items() if not k.startswith(("time/", "throughput/"))} for s in (ours, theirs)]
            assert numbers[0] == numbers[1]


# --- probes ---


def test_probes_never_share_random_numbers_with_training(lab):
    """The sampler's key knows no role: two completions with one group id would be one and the same."""
    guard = Rollback(probes=6, every=1)
    step = trainer_of(lab, guard).step()
    probes, train = (step.drawn.select(step.drawn.role == role) for role in (Role.PROBE, Role.TRAIN))
    assert (probes.group >= GROUPS).all() and (train.group < GROUPS).all()
    keys = [set(row_keys(0, number, batch.group.numpy(), batch.sample.numpy()).tolist()) for number in range(3) for batch in (probes, train)]
    assert len(set().union(*keys)) == 3 * (6 + 48)
    two = trainer_of(lab, Rollback(probes=6, every=1), PIPO(probes=6)).step()
    assert (two.drawn.role == Role.PROBE).sum() == 12 == len(two.drawn.group.unique()) - 6


@pytest.mark.parametrize("count", [3, 10, 64])
@pytest.mark.parametrize("shares", [[[0, 1, 2, 3]], [[0, 2], [1, 3]], [[0], [1], [2], [3]]])
def test_every_probe_is_drawn_once_however_a_draw_is_shared_out(lab, count, shares):
    trainer = lab.trainer(lab.agent())
    probes = Probes(count, every=1)
    probes.prepare(trainer, place=0)
    step, agent = trainer.collect(), trainer.agents[0]
    step.rounds = 0
    base = step.drawn.select(torch.tensor([0]))
    for first in (0, 4, 40):  # the groups of later steps
        drawn = [probes.draw(step, agent, [first + place for place in share], base).group.tolist()[1:] for share in shares]
        assert sorted(group for part in drawn for group in part) == list(range(GROUPS, GROUPS + count))
    step.rounds = 1
    assert len(probes.draw(step, agent, [0], base)) == 1  # once a step, however often it draws


def test_an_unscored_probe_is_no_verdict(lab):
    def reward(prompts, completions):
        found = lab.first_letter(prompts, completions)
        return [lab.score(None, failure="no") if n % 2 and len(found) > 48 else score for n, score in enumerate(found)]

    agent = lab.agent(components=[guard := Rollback(**OPTIONS)], sampling={"prompts": 6, "group_size": 8})
    trainer = lab.trainer(agent, reward=reward)
    list(trainer.steps(4))
    assert len(guard.test.past) == 2 and 0 < np.isnan(guard.test.past[0]).mean() < 1 and np.isfinite(guard.test.evidence)


def test_rewards_out_of_range_and_settings_out_of_range_are_refused(lab):
    double = lambda prompts, completions: [lab.score(2.0) for _ in prompts]  # noqa: E731
    with pytest.raises(ValueError, match="the test needs rewards between 0 and 1, and a probe got 2; set low and high"):
        lab.trainer(lab.agent(components=[Rollback(**OPTIONS)]), reward=double).step()
    guard = Rollback(**OPTIONS, low=-2.0, high=2.0)
    lab.trainer(lab.agent(components=[guard]), reward=double).step()
    assert guard.best().level == 1.0
    with pytest.raises(ValueError, match="rollback needs probes, every and keep of at least 1 and most >= 0, not 0, 5, 4 and 3"):
        Rollback(probes=0)
    with pytest.raises(ValueError, match="rollback needs 0 < alpha < 1, 0 <= margin < 1, 0 < damping <= 1 and low < high"):
        Rollback(alpha=0)


def test_it_says_what_it_costs(lab):
    agent = lab.agent(components=[Rollback(probes=50, every=5)])
    note = agent.components[0].note(agent)
    assert note.startswith("rollback: 50 probes every 5 steps are 10 completions a step beside 16; up to 4 snapshots of 0.")


def test_copies_are_copies():
    state = {"a": [torch.zeros(2), (torch.ones(1), 3)], "b": None}
    found = copied(state)
    state["a"][0] += 1
    assert found["a"][0].tolist() == [0, 0] and found["a"][1][1] == 3 and found["b"] is None


class InPieces:
    """A reward that judges elsewhere, so that a step is drawn in pieces, each with its share of the probes."""

    def __init__(self, judge):
        self.judge, self.calls = judge, 0

    def __call__(self, prompts, completions):
        return self.judge(prompts, completions)

    def begin(self, prompts, completions):
        self.calls += 1
        return lambda: self.judge(prompts, completions)


@pytest.mark.parametrize("needs", ["recompute", "behaviour"])
def test_probes_are_not_annotated_and_every_rollout_keeps_its_own_score(lab, needs):
    reward = InPieces(lab.first_letter)
    agent = lab.agent(components=[Rollback(probes=9, every=1)], algorithm={"old_logprobs": needs})
    step = lab.trainer(agent, reward=reward).step()
    assert reward.calls == 4 and step.drawn.role.tolist() == [0] * 16 + [2] * 9
    expected = [score.value for score in lab.first_letter(step.drawn.prompts, step.drawn.texts)]
    assert step.drawn.reward.tolist() == expected and 0 < sum(expected) < 25
    assert ("old_logp" in step.drawn) == (needs == "recompute")
    if needs == "recompute":
        probes = step.drawn.role[step.drawn.row_of_token] == Role.PROBE
        assert step.drawn.old_logp.isnan().equal(probes)
        torch.testing.assert_close(step.drawn.old_logp[~probes], step.drawn.behaviour_logp[~probes], rtol=1e-4, atol=1e-4, check_dtype=False)
