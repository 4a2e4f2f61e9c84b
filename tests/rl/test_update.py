from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import tacit.rl.update as update_module
from tacit.config import AlgorithmConfig
from tacit.core.rollouts import RolloutBatch
from tacit.core.runtime import Runtime
from tacit.rl.agent import Agent, bind_loss
from tacit.rl.losses import LOSSES, PolicyLoss
from tacit.rl.step import Step
from tacit.rl.update import KLTerm, LossInputs, Meter, Update, micro_batches_of_rank, run_update

MODES = ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
RUNTIME = Runtime(device="cpu")


class Watch:
    """What each optimiser step of `run_update` was given: the sum of the micro-batch losses, and the gradients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []
        self.rows: list[list[int]] = []  # per micro-batch
        self._loss = 0.0
        objective, step = update_module.objective, update_module.clip_and_step

        def watched_objective(agent, update, part, *rest):
            loss = objective(agent, update, part, *rest)
            self._loss += float(loss.detach())
            self.rows.append(part.sample.tolist())
            return loss

        def watched_step(optimiser, scheduler, params, max_norm):
            self.gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone() for p in params]))
            self.losses.append(self._loss)
            self._loss = 0.0
            return step(optimiser, scheduler, params, max_norm)

        monkeypatch.setattr(update_module, "objective", watched_objective)
        monkeypatch.setattr(update_module, "clip_and_step", watched_step)


@pytest.fixture
def watch(monkeypatch) -> Watch:
    return Watch(monkeypatch)


# Prompt and completion ids of six rows: <eos> is 1, ":abc" are 2..5. Row 3 has no trained token, row 1 an untrained one in its middle.
ROWS = [([3, 2], [3, 1]), ([4, 2], [4, 4, 5, 1]), ([3, 3, 4, 2], [5]), ([5, 2], [3, 4]), ([2], [3, 5, 4, 5, 1]), ([5, 5, 2], [5, 3, 1])]
MASK = [1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
ADVANTAGES = [1.0, -0.5, 2.0, 0.7, -1.0, 0.3]


@cache
def rollouts(lab: Any, *, old: bool = True) -> RolloutBatch:
    """ROWS, of which 0, 2 and 4 are fresh, with log-probs that differ from the policy's by up to 0.6."""
    policy = lab.policy()
    batch = lab.batch(
        ROWS, group=[0, 0, 0, 1, 1, 1], sample=list(range(6)), version=[0, -1, 0, -1, 0, -1], tokens={"action": [bool(m) for m in MASK]}
    )
    logp = policy.token_stats(batch.prompt_tokens, batch.completions).logp
    noise = torch.linspace(-0.6, 0.6, len(logp), dtype=torch.float64)
    columns = {"behaviour_logp": logp - noise.flip(0), "ref_logp": logp + 0.5 * noise}
    return batch.with_columns(**columns, **({"old_logp": logp + noise.roll(3)} if old else {}))


def per_token(batch: RolloutBatch) -> Tensor:
    """Advantages that differ from token to token."""
    row = torch.tensor(ADVANTAGES, dtype=torch.float64)[batch.sample]
    return row[batch.row_of_token] + 0.01 * batch.token


def planned(batch: RolloutBatch, loss: str = "clip", mode: str = "token-mean", **more: Any) -> Update:
    options: dict[str, Any] = {"kl": KLTerm(0.1, importance_weighted=True), "importance_cap": 1.3}
    return Update(batch, per_token(batch), bind_loss(AlgorithmConfig(loss=loss)), mode, **options | more)


def carry_out(lab: Any, update: Update, budget: int = 10**6, **agent: Any) -> dict[str, float]:
    learner = lab.agent(algorithm={"micro_batch_tokens": budget}, sampling={"max_new_tokens": 5}, optimiser={"max_grad_norm": None}, **agent)
    return run_update(learner, update, 0, RUNTIME, (0,))


# --- what the loss and its gradient must not depend on ---


@pytest.fixture(scope="module")
def still(lab) -> Agent:
    """A learner whose weights stay as they are."""
    return lab.agent(sampling={"max_new_tokens": 5}, optimiser={"lr": 1e-300})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_do_not_depend_on_how_the_batch_is_laid_out(still, lab, watch, loss, mode):
    """Micro-batch split, row order, and padding: a longer row in the batch, itself untrained, against a short one."""
    batch = rollouts(lab)
    short = RolloutBatch.cat([batch, batch.select(torch.tensor([2])).with_columns(action=torch.tensor([False]))])
    wide = lab.batch([([3] * 9, [4] * 11)], tokens={"action": [False] * 11, "ref_logp": [0.0] * 11, "old_logp": [0.0] * 11})
    long = RolloutBatch.cat([batch, wide])
    order = torch.tensor([4, 1, 6, 5, 0, 3, 2])
    found = []
    for rows, budget in [(short, 10**6), (short, 1), (short.select(order), 14), (long, 10**6)]:
        still.algorithm, still.policy.version = AlgorithmConfig(micro_batch_tokens=budget), 0
        found.append(run_update(still, planned(rows, loss, mode), 0, RUNTIME, (0,)))
    assert watch.losses[0] != 0 and watch.gradients[0].norm() > 1e-3
    assert len({len(rows) for rows in watch.rows}) >= 3  # the splits were different ones
    for other in range(1, len(found)):
        assert watch.losses[other] == pytest.approx(watch.losses[0], rel=1e-9)
        assert_close(watch.gradients[other], watch.gradients[0], rtol=1e-9, atol=1e-12)
        assert found[other] == pytest.approx(found[0], rel=1e-9)


def test_a_rank_without_work_adds_nothing(lab, watch):
    """Where passes are collective, `even` hands out empty micro-batches."""

    class TwoMore(Runtime):
        def even(self, rows: list[Tensor]) -> list[Tensor]:
            return [*rows, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)]

    batch = rollouts(lab)
    for runtime in (RUNTIME, TwoMore(device="cpu")):
        run_update(lab.agent(algorithm={"micro_batch_tokens": 14}), planned(batch), 0, runtime, (0,))
    assert watch.losses[0] == watch.losses[1]
    assert_close(watch.gradients[1], watch.gradients[0], rtol=0, atol=0)
    assert watch.rows[-2:] == [[0], [0]]  # a row stands in


def test_ranks_share_a_mini_batch_and_lengths_evenly(lab):
    batch = rollouts(lab)
    lengths = batch.prompt_tokens.lengths + batch.lengths
    ranks = [SimpleNamespace(rank=rank, world_size=2) for rank in range(2)]
    agent = lab.agent(algorithm={"micro_batch_tokens": 6})
    shares = [micro_batches_of_rank(agent, batch, rank) for rank in ranks]
    assert sorted(torch.cat([torch.cat(share) for share in shares]).tolist()) == list(range(6))
    assert [int(lengths[torch.cat(share)].sum()) for share in shares] == [16, 15]
    for share in shares:
        assert all(len(rows) == 1 or len(rows) * int(lengths[rows].max()) <= 6 for rows in share)


# --- rows without a say ---


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("mode", MODES)
def test_leaving_out_silent_rows_changes_nothing(lab, watch, loss, mode):
    batch = rollouts(lab)
    values = torch.tensor([0.0, -0.5, 0.0, 0.7, -1.0, 0.0], dtype=torch.float64)[batch.row_of_token]
    metrics = []
    for skip in (False, True):
        agent = lab.agent(sampling={"max_new_tokens": 5}, optimiser={"max_grad_norm": None})
        bound = bind_loss(AlgorithmConfig(loss=loss, skip_silent=skip))
        metrics.append(run_update(agent, Update(batch, values, bound, mode), 0, RUNTIME, (0,)))
    for name in ("loss/policy", "optimiser/grad_norm"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-12)
    assert sorted(watch.rows[-1]) == [1, 4], "row 3 has no trained token, the others no advantage"
    assert_close(watch.gradients[1], watch.gradients[0], rtol=0, atol=1e-12)
    assert watch.losses[1] == pytest.approx(watch.losses[0], abs=1e-12)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("budget", [None, 14])
def test_sharing_prompts_changes_nothing(lab, watch, loss, budget):
    """Loss and gradient, with completions of unlike lengths, in one piece and in micro-batches that cut a group."""
    prompts, lengths = [[3, 2, 4, 3], [5, 2, 3, 4, 3]], [1, 4, 2, 5, 3, 1, 2, 2]
    batch = lab.batch([(prompts[i % 2], [2 + (i + j) % 4 for j in range(n)]) for i, n in enumerate(lengths)])
    values = torch.linspace(-1, 1, len(batch.token), dtype=torch.float64)
    metrics = []
    for shared in (False, True):
        algorithm = {"prefix_sharing": shared, "micro_batch_tokens": budget, "loss": loss}
        agent = lab.agent(algorithm=algorithm, sampling={"max_new_tokens": 5}, optimiser={"max_grad_norm": None})
        metrics.append(run_update(agent, Update(batch, values, agent.loss, kl=None), 0, RUNTIME, (0,)))
        assert agent.policy.scorer.shares is (True if shared else None)
    assert_close(watch.gradients[1], watch.gradients[0], rtol=0, atol=1e-12)
    assert watch.gradients[0].abs().max() > 1e-3
    for name in ("loss/policy", "optimiser/grad_norm"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-12)


def trained_by(lab, watch: Watch, aggregation: str, **algorithm: Any) -> dict[str, float]:
    """One planned update of four groups: of unlike lengths, with empty completions, with rows that nobody could score, and one that agrees."""
    prompts, lengths = [[3, 2, 4, 3], [5, 2], [3, 3, 4, 3, 2], [5]], [1, 4, 0, 5, 3, 0, 2, 2, 5, 1, 4, 3, 2, 0, 5, 1]
    rows = [(prompts[i // 4], [2 + (i + j) % 4 for j in range(n)]) for i, n in enumerate(lengths)]
    reward = [0.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 0.0, 1.0, 0.0, 0.0, 3.0]
    scored = [i not in (3, 8, 13) for i in range(16)]
    batch = lab.batch(rows, group=[i // 4 for i in range(16)], sample=list(range(16)), reward=reward, scored=scored, finished=[True] * 16)
    agent = lab.agent(algorithm={"aggregation": aggregation, **algorithm}, sampling={"max_new_tokens": 5}, optimiser={"max_grad_norm": None})
    if algorithm.get("micro_batch_tokens"):
        agent.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    step = Step(0, 0)
    step.add(batch, agent.keep(step, batch))
    [update] = agent.plan(step, agent.select(step, agent.credit(step)))
    return run_update(agent, update, 0, RUNTIME, (0,))


@pytest.mark.parametrize("mode", MODES)
def test_all_savings_together_change_nothing(lab, watch, mode):
    """Shared prompts, silent rows left out, micro-batches and gradient checkpointing, against none of them."""
    plain = trained_by(lab, watch, mode, prefix_sharing=False, skip_silent=False)
    assert sorted(i for rows in watch.rows for i in rows) == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15], "what has a score"
    watch.rows.clear()
    saving = trained_by(lab, watch, mode, micro_batch_tokens=16)
    assert sorted(i for rows in watch.rows for i in rows) == [0, 1, 9, 11, 12, 14, 15] and len(watch.rows) > 1, "tokens and an advantage"
    assert watch.losses[1] == pytest.approx(watch.losses[0], abs=1e-9) and watch.gradients[0].abs().max() > 1e-3
    assert_close(watch.gradients[1], watch.gradients[0], rtol=0, atol=1e-9)
    for name in ("loss/policy", "optimiser/grad_norm"):
        assert saving[name] == pytest.approx(plain[name], abs=1e-9)


def test_only_losses_that_say_so_are_silent(lab):
    own = Update(rollouts(lab), per_token(rollouts(lab)), lambda x: PolicyLoss(x.logp, x.logp, x.mask))
    assert not own.silent_at_zero
    assert replace(own, loss=lab.agent().loss).silent_at_zero
    assert not replace(own, loss=lab.agent().loss, kl=KLTerm(0.1)).silent_at_zero


def test_a_batch_that_is_silent_altogether_is_a_step_with_gradient_zero(lab, watch):
    agents = [lab.agent(algorithm={"skip_silent": skip}) for skip in (False, True)]
    loud, silent = per_token(rollouts(lab)), torch.zeros(len(MASK), dtype=torch.float64)
    for agent in agents:
        for values in (loud, silent):  # the second step moves by the momentum of the first
            run_update(agent, Update(rollouts(lab), values, agent.loss), 0, RUNTIME, (0,))
    assert watch.gradients[-1].abs().sum() == 0
    (plain, skipping) = (agent.policy.state_dict() for agent in agents)
    for name, weight in plain.items():
        assert_close(skipping[name], weight, rtol=0, atol=1e-12)


# --- by hand ---


def test_objective_by_hand(lab, watch):
    """Two rows, three trained tokens: clipping, importance weight and KL k3, with the coefficient of each d(logp) written out."""
    policy = lab.policy()
    batch = lab.batch([([3, 2], [4, 5]), ([5, 2], [3, 3])], version=[-1, -1], tokens={"action": [True, True, True, False]})
    logp = policy.token_stats(batch.prompt_tokens, batch.completions).logp
    ratio = torch.tensor([1.5, 1.0, 0.9, 1.0], dtype=torch.float64)
    behind = torch.tensor([log(0.5), log(4.0), 0.0, 0.0], dtype=torch.float64)  # importance weights .5 and min(4, 2)
    reference = torch.tensor([log(2.0), 0.0, log(0.5), 0.0], dtype=torch.float64)
    old = logp - ratio.log()
    batch = batch.with_columns(old_logp=old, behaviour_logp=old - behind, ref_logp=logp + reference)
    update = Update(
        batch, torch.tensor([2.0, -1.0, 3.0, 9.0]), bind_loss(AlgorithmConfig(clip_high=0.3)), "token-mean", kl=KLTerm(0.1), importance_cap=2.0
    )
    metrics = carry_out(lab, update)

    # -min(r A, clip(r) A): A = 2, r = 1.5 > 1.3 clipped; A = -1, r = 1; A = 3, r = .9 inside
    policy_loss, slope = [-1.3 * 2, 1.0, -0.9 * 3], [0.0, 1.0, -0.9 * 3]
    weight = [0.5, 2.0, 1.0]
    k3, k3_slope = [2 - 1 - log(2), 0.0, 0.5 - 1 + log(2)], [1 - 2.0, 0.0, 1 - 0.5]  # d(k3)/d(logp) = 1 - r_ref
    by_hand = sum(w * p + 0.1 * k for w, p, k in zip(weight, policy_loss, k3, strict=True)) / 3
    assert watch.losses[0] == pytest.approx(by_hand, rel=1e-6)  # the sampler's log-probs are kept in float32

    coefficients = torch.tensor([w * s + 0.1 * k for w, s, k in zip(weight, slope, k3_slope, strict=True)], dtype=torch.float64) / 3
    again = lab.policy()
    scored = again.score(batch.prompt_tokens, batch.completions).logp[:3]
    gradient = torch.autograd.grad(coefficients @ scored, [p for _, p in again.trainable()])
    assert_close(watch.gradients[0], torch.cat([g.flatten() for g in gradient]), rtol=1e-5, atol=1e-8)

    assert metrics["loss/policy"] == pytest.approx(sum(policy_loss) / 3)
    assert metrics["loss/kl"] == pytest.approx(sum(k3) / 3)
    assert metrics["health/clip_fraction"] == pytest.approx(1 / 3)
    assert metrics["health/importance_weight"] == pytest.approx(3.5 / 3)
    assert metrics["health/effective_sample_size"] == pytest.approx(3.5**2 / (3 * (0.25 + 4 + 1)))
    assert metrics["optimiser/grad_norm"] == pytest.approx(float(watch.gradients[0].norm()))
    assert "health/logp_gap" not in metrics  # no row is of this version
    assert "health/importance_weight_squared" not in metrics


def test_temperature_is_that_of_the_sampler(lab, watch):
    batch = rollouts(lab, old=False)
    seen = []
    update = Update(batch, per_token(batch), lambda x: seen.append(x.logp.detach()[x.mask]) or PolicyLoss(x.logp, x.logp.exp(), x.mask))
    run_update(lab.agent(sampling={"temperature": 0.5}), update, 0, RUNTIME, (0,))
    batch = batch.select(torch.tensor(watch.rows[0]))
    expected = lab.policy().token_stats(batch.prompt_tokens, batch.completions, temperature=0.5).logp
    assert_close(seen[0], expected[batch.action], rtol=1e-9, atol=1e-12)


# --- what the ratio is taken against ---


def seen_by_the_loss(lab: Any, batch: RolloutBatch, agent: Any = None, tag: str = "policy", index: int = 0) -> list[LossInputs]:
    seen = []

    def loss(x: LossInputs) -> PolicyLoss:
        seen.append(x)
        return PolicyLoss(-x.logp, torch.ones_like(x.logp), torch.zeros_like(x.mask))

    update = Update(batch, per_token(batch), loss, tag=tag)
    run_update(agent or lab.agent(algorithm={"micro_batch_tokens": 20}), update, index, RUNTIME, (0,))
    return seen


def test_fresh_rows_have_ratio_one_and_stale_ones_the_samplers_log_probs(lab):
    """Decided row by row: both kinds are in one micro-batch."""
    kinds = set()
    for x in seen_by_the_loss(lab, rollouts(lab, old=False)):
        fresh = (x.batch.version == 0)[x.batch.row_of_token]
        kinds.add(frozenset(fresh.tolist()))
        assert torch.equal(x.old_logp[fresh], x.logp.detach()[fresh])
        assert torch.equal(x.old_logp[~fresh & x.mask], x.batch.behaviour_logp.double()[~fresh & x.mask])
        assert not x.old_logp.requires_grad and x.logp.requires_grad
    assert frozenset({True, False}) in kinds


def test_a_column_of_old_log_probs_goes_before_both(lab):
    for x in seen_by_the_loss(lab, rollouts(lab)):
        assert torch.equal(x.old_logp[x.mask], x.batch.old_logp[x.mask])


def test_another_agents_rollouts_are_never_fresh(lab):
    """Its version counts the steps of another policy: an equal number says nothing."""
    batch = rollouts(lab, old=False).with_columns(agent=torch.ones(6), version=torch.zeros(6))
    for x in seen_by_the_loss(lab, batch):
        assert torch.equal(x.old_logp[x.mask], x.batch.behaviour_logp.double()[x.mask])


def test_after_an_optimiser_step_nothing_is_fresh(lab):
    batch = rollouts(lab, old=False).with_columns(version=torch.zeros(6))
    agent = lab.agent()
    update = planned(batch, epochs=2)
    metrics = run_update(agent, update, 0, RUNTIME, (0,))
    assert agent.policy.version == 2
    gap = (lab.policy().token_stats(batch.prompt_tokens, batch.completions).logp - batch.behaviour_logp).abs()
    assert metrics["health/logp_gap"] == pytest.approx(float(gap[batch.action].mean()))  # of the first epoch alone
    for x in seen_by_the_loss(lab, batch, agent):
        assert torch.equal(x.old_logp[x.mask], x.batch.behaviour_logp.double()[x.mask])


def test_the_loss_is_told_tag_and_index_and_sees_the_columns(lab):
    for x in seen_by_the_loss(lab, rollouts(lab), tag="replay", index=3):
        assert (x.tag, x.update) == ("replay", 3)
        assert x.mask.dtype == torch.bool and len(x.logp) == len(x.rows) == len(x.mask) == len(x.advantages)
        assert torch.equal(x.advantages[x.mask], per_token(x.batch)[x.mask])
        assert not x.logp[~x.mask].any() and not x.old_logp[~x.mask].any()  # ratio 1, whatever stood there


def test_a_kl_in_the_loss_can_be_importance_weighted(lab):
    plain, weighted = (carry_out(lab, planned(rollouts(lab), kl=KLTerm(0.1, "k3", w), importance_cap=None)) for w in (False, True))
    batch = rollouts(lab)
    logp = lab.policy().token_stats(batch.prompt_tokens, batch.completions).logp
    k3 = (batch.ref_logp - logp).exp() - 1 - (batch.ref_logp - logp)
    assert plain["loss/kl"] == pytest.approx(float(k3[batch.action].mean()), rel=1e-9)
    assert weighted["loss/kl"] == pytest.approx(float(((logp - batch.old_logp).exp() * k3)[batch.action].mean()), rel=1e-9)


# --- epochs and mini-batches ---


def test_mini_batches_cover_every_row_once_an_epoch(lab):
    update = planned(rollouts(lab), epochs=3, minibatch_rows=4)
    parts = [rows.tolist() for rows in update.minibatches((7, 0))]
    assert [len(p) for p in parts] == [4, 2] * 3
    epochs = [parts[i] + parts[i + 1] for i in (0, 2, 4)]
    assert all(sorted(e) == list(range(6)) for e in epochs) and len({tuple(e) for e in epochs}) == 3
    assert [rows.tolist() for rows in update.minibatches((7, 0))] == parts
    assert [rows.tolist() for rows in update.minibatches((8, 0))] != parts
    update.shuffle = False
    assert [rows.tolist() for rows in update.minibatches((7, 0))] == [[0, 1, 2, 3], [4, 5]] * 3
    whole = planned(rollouts(lab), epochs=2)
    assert [rows.tolist() for rows in whole.minibatches((7, 0))] == [list(range(6))] * 2


def test_each_mini_batch_is_a_step_over_its_own_denominators(lab, watch):
    """The same two steps, planned as two mini-batches or as two updates."""
    batch = rollouts(lab)
    together, apart = lab.agent(), lab.agent()
    metrics = run_update(together, planned(batch, minibatch_rows=3, shuffle=False), 0, RUNTIME, (0,))
    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])):
        run_update(apart, planned(batch.select(rows)), 0, RUNTIME, (0,))
    assert metrics["optimiser/steps"] == 2 and together.policy.version == apart.policy.version == 2
    assert together.scheduler.last_epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(watch.gradients[:2], watch.gradients[2:], strict=True))
    assert metrics["optimiser/grad_norm"] == pytest.approx(float(sum(g.norm() for g in watch.gradients[:2]) / 2))


def test_nothing_to_train_on_is_no_step(lab, watch):
    """Mini-batches without a trained token are passed over; an update without any changes nothing."""
    batch = rollouts(lab)
    agent = lab.agent()
    before = lab.weights(agent.policy)
    metrics = run_update(agent, planned(batch, minibatch_rows=1, shuffle=False), 0, RUNTIME, (0,))
    assert metrics["optimiser/steps"] == agent.policy.version == 5  # row 3 has none
    assert any(not torch.equal(p, before[n]) for n, p in agent.policy.trainable())

    idle = lab.agent()
    for nothing in (batch.select(torch.tensor([3])), batch.select(torch.tensor([], dtype=torch.int64))):
        metrics = run_update(idle, planned(nothing), 0, RUNTIME, (0,))
        assert metrics == {"optimiser/steps": 0.0, "optimiser/grad_norm": 0.0, "health/skipped_steps": 0.0}
    assert idle.policy.version == 0 and all(torch.equal(p, before[n]) for n, p in idle.policy.trainable())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(lab, bad):
    def loss(x: LossInputs) -> PolicyLoss:
        scale = bad if (x.batch.sample < 2).any() else 1.0
        return PolicyLoss(x.logp * scale, torch.ones_like(x.logp), torch.zeros_like(x.mask))

    batch = rollouts(lab)
    agent = lab.agent()
    update = Update(batch, per_token(batch), loss, minibatch_rows=2, shuffle=False)
    metrics = run_update(agent, update, 0, RUNTIME, (0,))
    assert metrics["health/skipped_steps"] == 1 and metrics["optimiser/steps"] == 3
    assert 0 < metrics["optimiser/grad_norm"] < torch.inf
    assert agent.scheduler.last_epoch == 2
    assert all(p.isfinite().all() for _, p in agent.policy.trainable())


def test_means_are_over_the_tokens_of_all_ranks():
    mine, other = Meter(), Meter()
    mine.add("a", torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([True, True, False]))
    other.add("a", torch.tensor([9.0]), torch.tensor([True]))
    other.add("b", torch.tensor([5.0]), torch.tensor([True]))
    other.add("c", torch.tensor([5.0]), torch.tensor([False]))
    means = mine.means(SimpleNamespace(gather_objects=lambda sums: [sums, other.sums]))
    assert means["a"] == 4.0 and means["b"] == 5.0 and "c" not in means


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_stands_at_untrained_positions_is_never_used(lab, watch, loss, poison):
    batch = rollouts(lab)
    columns = {name: torch.where(batch.action, batch.tokens[name], poison) for name in ("old_logp", "ref_logp", "behaviour_logp")}
    found = [carry_out(lab, planned(b, loss)) for b in (batch, batch.with_columns(**columns))]
    assert watch.losses[0] == watch.losses[1] and torch.equal(*watch.gradients) and watch.gradients[0].isfinite().all()
    assert found[0] == found[1]
