"""PIPO inside the trainer: what is replayed, when, against which log-probs, and that it resumes. Claims 1, 5 and 11 of its specification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import Role
from tacit.core.runtime import Runtime
from tacit.rl import aggregation
from tacit.rl.component import Component
from tacit.rl.pipo import ATTRIBUTION, PIPO, attribution, improvement, rectified
from tacit.rl.update import Meter, objective, run_update

BASES: dict[str, dict[str, Any]] = {
    "grpo": {"advantage": "grpo"},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "seq-mean-token-sum-norm"},
    "gspo": {"advantage": "grpo", "loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean"},
    "dapo": {"advantage": "grpo", "clip_high": 0.28, "filter": {"drop_constant": True, "max_rounds": 3}},
    "rloo": {"advantage": "rloo", "loss": "policy_gradient", "aggregation": "seq-mean-token-sum"},
    "two minibatches": {"advantage": "grpo", "minibatch_rows": 8},
    "two epochs": {"advantage": "grpo", "epochs": 2},
    "kl": {"advantage": "grpo", "kl": {"coefficient": 0.05}},
    "recomputed": {"advantage": "grpo", "old_logprobs": "recompute", "importance_cap": 2.0},
}
W = 3


def run(lab, *, algorithm: dict[str, Any] | None = None, steps: int = 0, window: int = W, optimiser: dict[str, Any] | None = None, **options: Any):
    """A trainer with PIPO and a spy behind it, and its steps."""
    agent = lab.agent(algorithm=algorithm, optimiser=optimiser, components=[PIPO(window=window, **options), lab.spy()], steps=max(1, steps))
    trainer = lab.trainer(agent)
    return trainer, list(trainer.steps(steps))


def parts(trainer) -> tuple[PIPO, Any]:
    return trainer.agents[0].components[-2:]


def weights(lab, trainer):
    return lab.weights(trainer.agents[0].policy)


def equal(one, other) -> bool:
    return all(torch.equal(p, other[name]) for name, p in one.items())


@pytest.mark.parametrize("base", BASES)
def test_with_the_gate_off_or_the_window_not_full_it_is_the_base_bit_for_bit(lab, base):
    plain = lab.trainer(lab.agent(algorithm=BASES[base]))
    list(plain.steps(W))
    waiting, _ = run(lab, algorithm=BASES[base], steps=W)
    assert equal(weights(lab, waiting), weights(lab, plain))
    list(plain.steps(3))
    off, steps = run(lab, algorithm=BASES[base], steps=W + 3, constant=0.0)
    assert equal(weights(lab, off), weights(lab, plain))
    assert all(step.metrics["pipo/extra_steps"] == 0 for step in steps[W:])
    on, _ = run(lab, algorithm=BASES[base], steps=W + 3, constant=0.5)
    assert not equal(weights(lab, on), weights(lab, plain)), "the comparison sees a replay"


@pytest.mark.parametrize("base", BASES)
def test_xi_and_coefficient_are_those_of_the_raw_means_of_everything_drawn(lab, base):
    trainer, steps = run(lab, algorithm=BASES[base], steps=W + 6, xi_clip=1.5)
    means = []
    for t, step in enumerate(steps):
        mean = float(step.drawn.rows["reward/raw"][step.drawn.scored].mean())  # all rounds, kept or not
        assert step.metrics["pipo/mean"] == mean
        if t < W:
            assert "pipo/xi" not in step.metrics and "pipo/coefficient" not in step.metrics
        else:
            xi = improvement(mean, means[-W:])
            held = min(1.5, max(-1.5, xi))
            assert step.metrics["pipo/xi"] == pytest.approx(xi, abs=1e-12)
            assert step.metrics["pipo/coefficient"] == pytest.approx(rectified(held, 0.1), abs=1e-12)
            assert step.metrics["pipo/xi_clipped"] == (held != xi)
            rows = len(parts(trainer)[1].plans[t][0].batch)
            extra = 0 if xi == 0 else -(-rows // 8) if "minibatch_rows" in BASES[base] else 1
            assert step.metrics["pipo/extra_steps"] == step.metrics.get("agent0/replay/optimiser/steps", 0) == extra
        means.append(mean)
    assert len({round(step.metrics["pipo/xi"], 6) for step in steps[W:]}) > 2
    plain = lab.trainer(lab.agent(algorithm=BASES[base])).step()
    assert len(plain.drawn) == len(steps[0].drawn)  # no rollouts of its own


def test_what_is_replayed_is_what_was_trained_with_attributions_of_whole_groups(lab):
    """A component after the credit keeps even samples only: the replay has those rows, attributed among all four of their group."""

    class Half(Component):
        def select(self, step, agent, batch):
            return batch.select(batch.sample % 2 == 0)

    pipo, spy = PIPO(window=W, constant=0.5), lab.spy()
    trainer = lab.trainer(lab.agent(components=[Half(), pipo, spy]))
    steps = list(trainer.steps(W + 2))
    replay, base = spy.plans[W + 1]
    before = steps[W]
    expected = attribution(before.pool.advantage, before.pool.group, before.pool.scored)[before.pool.sample % 2 == 0]
    torch.testing.assert_close(replay.advantages, 0.5 * expected[replay.batch.row_of_token])
    assert len(replay.batch) == 8 and replay.batch.token.tolist() == spy.plans[W][-1].batch.token.tolist()
    assert (replay.tag, base.tag, replay.epochs, replay.aggregation, replay.loss) == ("replay", "policy", 1, base.aggregation, base.loss)


@pytest.mark.parametrize("algorithm", [{}, {"minibatch_rows": 8}])
def test_11_old_log_probs_are_frozen_before_the_replay_and_never_taken_again(lab, algorithm):
    """The very tensors that the batch was drawn with are those that its update is measured against, whatever was replayed in between."""
    seen: list[tuple[str, float, Any]] = []
    trainer, _ = run(lab, algorithm=algorithm, steps=W + 1, constant=0.8)
    agent = trainer.agents[0]
    _, spy = parts(trainer)
    inner = agent.loss

    def loss(x):
        seen.append((x.tag, float((x.logp - x.old_logp).detach().abs().max()), x.batch))
        return inner(x)

    agent.loss = loss
    collected = trainer.collect()
    column = "old_logp" if algorithm else "behaviour_logp"
    frozen = getattr(collected.drawn, column).clone()
    trainer.learn(collected)
    replay, base = spy.plans[-1]
    assert torch.equal(getattr(base.batch, column), frozen)
    assert ("old_logp" in base.batch) == bool(algorithm)
    previous = spy.plans[-2][-1].batch
    assert getattr(replay.batch, column) is getattr(previous, column), "the replayed batch keeps its own tensors"
    gaps = {tag: gap for tag, gap, _ in reversed(seen)}  # the first of each
    assert gaps["replay"] > 1e-6  # its policy has been updated since
    assert gaps["policy"] > 1e-6  # and the fresh batch's by the replay


def test_11_without_a_replay_the_first_ratio_is_one(lab):
    seen = []
    trainer, _ = run(lab, steps=W + 1, constant=0.0)
    inner = trainer.agents[0].loss
    trainer.agents[0].loss = lambda x: seen.append(float((x.logp - x.old_logp).detach().abs().max())) or inner(x)
    trainer.step()
    assert seen == [0.0]


@pytest.mark.parametrize("coefficient", [0.7, -0.07])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_5_at_ratio_one_the_gradient_is_phi_times_the_attributed_score(lab, coefficient, mode):
    """∇ = -φ Σ w a ∇ log π, in the base's aggregation; it flips with the sign of φ, and is φ times what the attributions alone give."""
    agent = lab.agent(algorithm={"aggregation": mode}, optimiser={"lr": 1e-30}, components=[PIPO(window=W)])  # nothing moves: θ stays θ_{t-1}
    step = lab.trainer(agent).step()
    batch = step.pool.with_columns(old_logp=agent.policy.token_stats(step.pool.prompt_tokens, step.pool.completions).logp)
    update = agent.components[-1].replayed(agent, batch, coefficient)
    denominators = aggregation.denominators(batch.action, batch.offsets, agent.sampling.max_new_tokens)
    named = agent.policy.trainable()

    found = torch.autograd.grad(
        objective(agent, update, batch.with_columns(token_advantage=update.advantages), denominators, 0, Meter()), [p for _, p in named]
    )
    logp = agent.policy.score(batch.prompt_tokens, batch.completions).logp
    a = attribution(batch.advantage, batch.group, batch.scored)
    assert a.any() and torch.equal(a, batch.rows[ATTRIBUTION])
    loss = -coefficient * aggregation.aggregate(a[batch.row_of_token] * logp, batch.action, batch.offsets, mode, denominators)
    expected = torch.autograd.grad(loss, [p for _, p in named])
    assert any(g.abs().max() > 1e-6 for g in expected)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)  # log-probs pass through float32 on their way


def test_a_replay_does_not_shorten_the_schedule(lab):
    options = {"schedule": "linear", "lr": 1e-2}
    plain = lab.trainer(lab.agent(optimiser=options, steps=W + 3))
    rates = [step.metrics["optimiser/lr"] for step in plain.steps(W + 3)]
    _, steps = run(lab, steps=W + 3, optimiser=options, constant=0.5)
    assert [step.metrics["optimiser/lr"] for step in steps] == rates and rates[-1] == 0
    assert sum(step.metrics["optimiser/steps"] + step.metrics.get("agent0/replay/optimiser/steps", 0) for step in steps) == 2 * W + 6 - W


def test_controls(lab):
    """Flipped and shuffled ξ act in place of the measured one; every second step; the reinforcing clip."""
    _, steps = run(lab, steps=W + 5, xi="flipped", lam=0.25)
    for step in steps[W:]:
        assert step.metrics["pipo/coefficient"] == pytest.approx(rectified(-step.metrics["pipo/xi"], 0.25), abs=1e-12)
    _, steps = run(lab, steps=W + 6, xi="shuffled", lam=1.0)
    measured = [step.metrics["pipo/xi"] for step in steps[W:]]
    assert "pipo/coefficient" not in steps[W].metrics  # nothing to draw from yet
    for n, step in enumerate(steps[W + 1 :], 1):
        assert step.metrics["pipo/coefficient"] in measured[:n]
    _, steps = run(lab, steps=W + 4, constant=0.5, every=2)
    assert [step.metrics.get("pipo/coefficient") for step in steps] == [None] * W + [0.0, 0.5, 0.0, 0.5]

    trainer, _ = run(lab, steps=W, clip_high=0.5)
    agent, pipo = trainer.agents[0], parts(trainer)[0]
    assert pipo.cache is not None
    losses: list[Any] = [pipo.replayed(agent, pipo.cache, c).loss for c in (0.3, -0.3)]
    assert [loss.config.clip_high for loss in losses] == [0.5, 0.2]


def test_the_current_batch_may_be_gated_instead(lab):
    trainer, steps = run(lab, steps=W + 4, target="current")
    _, spy = parts(trainer)
    for t, step in enumerate(steps):
        (update,) = spy.plans[t]
        factor = 1.0 if t < W else float(np.clip(step.metrics["pipo/xi"], -2, 2))
        torch.testing.assert_close(update.advantages, factor * step.pool.advantage[step.pool.row_of_token])


def test_1_gains_telescope_and_probes_change_nothing(lab):
    """Σ ΔJ = J_T - J_0 over the probes; their completions repeat as long as the policy does, and no weight depends on them."""
    trainer, steps = run(lab, steps=W + 6, probes=10)
    levels = []
    for step in steps:
        probes = step.drawn.select(step.drawn.role == Role.PROBE)
        assert len(probes) == 10 and not step.kept[step.drawn.role == Role.PROBE].any()
        levels.append(float(probes.rows["reward/raw"].mean()))
    gains = [step.metrics["pipo/gain"] for step in steps[1:]]
    assert sum(gains) == pytest.approx(levels[-1] - levels[0], abs=1e-12) and len(set(levels)) > 2
    for step in steps[W:]:
        if step.metrics["pipo/gain"] and step.metrics["pipo/xi"]:
            assert step.metrics["pipo/agreement"] == (step.metrics["pipo/gain"] * step.metrics["pipo/xi"] > 0)
    assert any("pipo/agreement" in step.metrics for step in steps)
    without, others = run(lab, steps=W + 6)
    assert equal(weights(lab, trainer), weights(lab, without))
    assert [s.metrics["reward/mean"] for s in steps] == [s.metrics["reward/mean"] for s in others]
    still, _ = run(lab, steps=3, probes=10, optimiser={"lr": 1e-30})
    texts = [s.drawn.select(s.drawn.role == Role.PROBE).texts for s in still.steps(2)]
    assert texts[0] == texts[1]
    assert parts(trainer)[0].note(trainer.agents[0]).endswith("10 probes a step measure what an update gained")


def test_a_step_without_a_verdict_says_nothing(lab):
    """Unscored: neither a mean for the window nor an update, hence nothing to replay at the next step."""
    failing = iter([False] * (W + 1) + [True] + [False] * 3)

    def reward(prompts, completions):
        fails = next(failing)
        return [lab.score(None, failure="no") if fails else score for score in lab.first_letter(prompts, completions)]

    pipo = PIPO(window=W, constant=0.5)
    trainer = lab.trainer(lab.agent(components=[pipo]), reward=reward)
    steps = list(trainer.steps(W + 4))
    assert "pipo/mean" not in steps[W + 1].metrics
    assert [step.metrics.get("pipo/coefficient") for step in steps] == [None] * W + [0.5, None, 0.0, 0.5]
    assert list(pipo.window) == [steps[n].metrics["pipo/mean"] for n in (W, W + 2, W + 3)]


def test_after_a_rollback_the_window_fills_anew(lab):
    trainer, _ = run(lab, steps=W + 1)
    pipo, _ = parts(trainer)

    class Back(Component):
        def verify(self, step, agent):
            for component in agent.components:
                component.on_rollback()

        def select(self, step, agent, batch):
            return batch.select(torch.empty(0, dtype=torch.int64))

    agent = trainer.agents[0]
    for place in (0, len(agent.components) + 1):  # before PIPO has judged, and after
        agent.components.insert(place, back := Back())
        trainer.step()
        agent.components.remove(back)
        assert pipo.cache is None and not pipo.window
        steps = list(trainer.steps(W + 1))
        assert ["pipo/xi" in step.metrics for step in steps] == [False] * W + [True]


@pytest.mark.parametrize(("options", "after"), [({}, 2), ({}, W), ({"xi": "shuffled"}, W + 2), ({"probes": 5, "ddof": 0}, W + 1)])
def test_resumes_bit_for_bit(lab, tmp_path, options, after):
    algorithm = {"minibatch_rows": 8, "filter": {"drop_constant": True, "max_rounds": 2}, "kl": {"coefficient": 0.02}}
    whole, steps = run(lab, algorithm=algorithm, steps=W + 5, **options)
    first, _ = run(lab, algorithm=algorithm, steps=after, **options)
    CheckpointStore(tmp_path).save(after, first.state_dict())
    resumed, _ = run(lab, algorithm=algorithm, **options)
    resumed.load_state_dict(CheckpointStore(tmp_path).read(after))
    rest = list(resumed.steps(W + 5 - after))
    assert equal(weights(lab, resumed), weights(lab, whole))
    for ours, theirs in zip(rest, steps[after:], strict=True):
        numbers = [{k: repr(v) for k, v in s.metrics.items() if not k.startswith(("time/", "throughput/"))} for s in (ours, theirs)]
        assert numbers[0] == numbers[1]


def test_a_replay_of_nothing_to_learn_from_leaves_the_weights(lab):
    """A group that agrees has attribution 0, and a batch of such groups gives gradient 0."""
    agent = lab.agent(components=[PIPO(window=W)], optimiser={"lr": 1e-2})
    step = lab.trainer(agent, reward=lambda prompts, completions: [lab.score(1.0) for _ in prompts]).step()
    before = lab.weights(agent.policy)
    found = run_update(agent, agent.components[-1].replayed(agent, step.pool, 2.0), 0, Runtime(), (0, 0, 0))
    assert found["optimiser/grad_norm"] == 0 and equal(lab.weights(agent.policy), before)
    assert math.isfinite(found["loss/policy"])
