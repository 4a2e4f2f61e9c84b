"""CBS inside the trainer: what it chooses, is told and remembers. Claims 2, 3, 8, 9 and 10 of section 6 of its specification, by number."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tacit.core.checkpoint import CheckpointStore
from tacit.core.rollouts import Role, Source
from tacit.core.statistics import spearman
from tacit.rl.component import Component
from tacit.rl.rollback import Rollback
from tacit.rl.rollout_bandit import CBS, PASS_RATE, explained
from tacit.rl.scheduler import FEATURES, arm_reward
from tacit.rl.selectors import TRUTH, Selector
from tacit.rl.true_value import TrueValue
from tacit.rl.update import Update

BASES: dict[str, dict[str, Any]] = {
    "grpo": {"advantage": "grpo"},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "seq-mean-token-sum-norm"},
    "gspo": {"advantage": "grpo", "loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean"},
    "dapo": {"advantage": "grpo", "clip_high": 0.28, "filter": {"drop_constant": True, "max_rounds": 3}},
    "two epochs": {"advantage": "grpo", "epochs": 2, "minibatch_rows": 16},
    "kl": {"advantage": "grpo", "kl": {"coefficient": 0.05}},
}
WHOLE = {"intra": {"share": 1.0}, "global": {"mode": "global", "rounds": 1}, "nested": {"mode": "nested", "rounds": 1, "share": 1.0}}


def trainer_of(lab, *, before=(), after=(), algorithm=None, group: int = 8, prompts: int = 4, optimiser=None, seed: int = 0, **options):
    sampling = {"group_size": group, "prompts": prompts}
    components = [*before, CBS(**({"warmup": 2, "epochs": 1} | options)), *after]
    return lab.trainer(lab.agent(algorithm=algorithm, sampling=sampling, optimiser=optimiser, components=components), seed=seed)


def cbs_of(trainer) -> CBS:
    return next(c for c in trainer.agents[0].components if isinstance(c, CBS))


def same_weights(lab, one, other) -> bool:
    return all(torch.equal(p, lab.weights(other.agents[0].policy)[name]) for name, p in lab.weights(one.agents[0].policy).items())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mode", WHOLE)
def test_claim_2_everything_selected_is_the_base_bit_for_bit(lab, base, mode):
    plain = lab.trainer(lab.agent(algorithm=BASES[base], sampling={"group_size": 8}))
    list(plain.steps(5))
    trainer = trainer_of(lab, algorithm=BASES[base], **WHOLE[mode])
    steps = list(trainer.steps(5))
    assert same_weights(lab, trainer, plain)
    assert cbs_of(trainer).scheduler.labelled == 4 and "cbs/epsilon" in steps[-1].metrics
    half = trainer_of(lab, algorithm=BASES[base])
    list(half.steps(5))
    assert not same_weights(lab, half, plain), "the comparison sees a selection"


def test_labels_are_the_gain_of_the_step_after(lab):
    trainer = trainer_of(lab, w_e=0.3, e_min=0.1)
    steps = list(trainer.steps(5))
    value = [float(s.drawn.rows["reward/raw"].mean()) for s in steps]
    for s in steps:
        by_row = [s.drawn.entropy[s.drawn.row_of_token == row].double().mean() for row in range(len(s.drawn))]
        assert s.metrics["cbs/entropy"] == pytest.approx(float(torch.stack(by_row).mean()), abs=1e-12)
        assert s.metrics["cbs/value"] == float(s.drawn.rows["reward/raw"].mean())
    entropy = [s.metrics["cbs/entropy"] for s in steps]
    assert "cbs/label" not in steps[0].metrics
    for t in range(1, 5):
        expected = arm_reward(value[t - 1], value[t], entropy[t - 1], entropy[t], 0.3, 0.1)
        assert steps[t].metrics["cbs/label"] == pytest.approx(expected, abs=1e-12)
        assert steps[t].metrics["cbs/gain"] == pytest.approx(value[t] - value[t - 1], abs=1e-12)
    decision = cbs_of(trainer).scheduler.pool[1]
    assert (decision.v, decision.v_next) == (value[1], value[2]) and len(decision.features) == 16


def test_v_is_that_of_everything_drawn_before_any_filter(lab):
    trainer = trainer_of(lab, algorithm=BASES["dapo"])
    for step in trainer.steps(4):
        assert step.metrics["cbs/value"] == float(step.drawn.rows["reward/raw"].mean())
        assert len(step.drawn) >= step.kept.sum()


def test_features_of_fresh_rollouts_come_from_the_columns_of_sampling(lab):
    spy = lab.spy()
    trainer = trainer_of(lab, after=[spy], share=1.0)
    step, cbs = trainer.step(), cbs_of(trainer)
    found, batch, limit = cbs.pending.features, spy.batches[0], 3
    column = {name: found[:, i] for i, name in enumerate(FEATURES)}
    torch.testing.assert_close(column["reward"], batch.reward.float())
    torch.testing.assert_close(column["advantage"], (batch.advantage.clamp(-3, 3) / 3).float())
    torch.testing.assert_close(column["length"], batch.lengths.float() / limit)
    assert column["truncated"].tolist() == (~batch.finished).float().tolist()
    rates = [float(step.pool.reward[step.pool.group == g].mean()) for g in batch.group]
    torch.testing.assert_close(column["pass_rate"], torch.tensor(rates))
    assert not column["entropy"].any() and not column["logp"].any(), "nothing is past at the first step"
    assert not column["clip_ratio"].any() and not column["age"].any() and not column["usage"].any()
    trainer.step()
    assert cbs.pending.features[:, FEATURES.index("entropy")].any()


def test_entropies_of_the_sampler_are_those_of_a_forward_pass(lab):
    step = trainer_of(lab).step()
    policy = lab.policy()
    exact = policy.token_stats(step.drawn.prompt_tokens, step.drawn.completions, entropy=True).entropy
    torch.testing.assert_close(step.drawn.entropy.double(), exact.double(), atol=1e-4, rtol=1e-4)


def test_features_are_blind_to_what_other_rows_of_the_round_are(lab):
    """The same rollout among others: with statistics of the past only, its features stay."""
    trainer = trainer_of(lab, share=1.0)
    list(trainer.steps(2))
    cbs, agent = cbs_of(trainer), trainer.agents[0]
    step = trainer.collect()
    batch = agent.credit(step)
    groups = batch.group.numpy()
    cbs.scores(step, agent, batch, groups, np.array([8] * 4))
    every = cbs.scored[1]
    cbs.scores(step, agent, batch.select(torch.arange(3)), groups[:3], np.array([3]))
    torch.testing.assert_close(cbs.scored[1], every[:3], atol=0, rtol=0)


def test_after_the_warm_up_the_scores_decide(lab):
    spy = lab.spy()
    trainer = trainer_of(lab, after=[spy], warmup=2, explore=(0.0, 0.0, 1))
    steps = list(trainer.steps(5))
    assert [s.metrics["cbs/epsilon"] for s in steps] == [1, 1, 0, 0, 0]
    cbs, step = cbs_of(trainer), trainer.collect()
    agent = trainer.agents[0]
    cbs.verify(step, agent)
    pool = agent.credit(step)
    scores = cbs.scores(step, agent, pool, pool.group.numpy(), np.array([8] * 4))
    chosen = cbs.select(step, agent, pool)
    for group in pool.group.unique().tolist():
        there = scores[(pool.group == group).numpy()]
        cut = np.sort(there)[-4:]
        taken = [float(scores[i]) for i in range(len(pool)) if pool.group[i] == group and int(pool.sample[i]) in chosen.sample[chosen.group == group]]
        assert sorted(taken) == pytest.approx(cut.tolist())


def test_claim_3_ages_and_uses_in_global_mode(lab):
    spy = lab.spy()
    trainer = trainer_of(lab, after=[spy], mode="global", rounds=3, count=0.5)
    used: dict[tuple[int, int], int] = {}
    for step in trainer.steps(7):
        batch = spy.batches[-1]
        ages = step.index - batch.rows["replay/round"]
        assert int(ages.min()) >= 0 and int(ages.max()) <= 2 and len(batch) == 16
        for name, usage in zip(zip(batch.group.tolist(), batch.sample.tolist(), strict=True), batch.usage.tolist(), strict=True):
            assert usage == used.get(name, 0)
            used[name] = used.get(name, 0) + 1
        assert step.metrics["select/age"] == float(ages.double().mean())
        buffer = cbs_of(trainer).buffer
        assert sorted(buffer.held) == list(range(max(0, step.index - 2), step.index + 1))
    assert max(used.values()) > 1


def test_replayed_rollouts_are_looked_at_again(lab):
    """Entropy, log-prob and clip ratio of what is in the buffer are those under the policy of now."""
    trainer = trainer_of(lab, mode="global", rounds=2, optimiser={"lr": 0.05})
    list(trainer.steps(3))
    cbs, agent = cbs_of(trainer), trainer.agents[0]
    step = trainer.collect()
    cbs.verify(step, agent)
    batch = agent.credit(step)
    cbs.buffer.push(step.index, batch)
    candidates = cbs.buffer.candidates(step.index, agent.policy.version)
    context, old = cbs.context(step, agent, candidates), candidates.source == Source.REPLAYED
    stats = agent.policy.token_stats(candidates.prompt_tokens, candidates.completions, entropy=True)
    for row in range(len(candidates)):
        tokens = candidates.row_of_token == row
        assert float(context.entropy[row]) == pytest.approx(float(stats.entropy[tokens].double().mean()), abs=1e-4)
        assert float(context.logp[row]) == pytest.approx(float(stats.logp[tokens].double().mean()), abs=1e-4)
        ratio = (stats.logp - candidates.behaviour_logp).double().exp()[tokens]
        assert float(context.clip_ratio[row]) == pytest.approx(float(((ratio < 0.8) | (ratio > 1.2)).double().mean()) * float(old[row]))
    assert context.clip_ratio[old].any() and old.sum() == 32 and context.age.tolist() == [0] * 32 + [1] * 32


@pytest.mark.parametrize(("mode", "rounds", "passes"), [("intra", 4, 0), ("global", 1, 0), ("global", 3, 2), ("nested", 3, 2)])
def test_a_buffered_round_costs_at_most_one_log_prob_pass(lab, monkeypatch, mode, rounds, passes):
    """What the policy looks at again for the features: every rollout of an earlier round once a step, fresh ones never."""
    trainer = trainer_of(lab, mode=mode, rounds=rounds)
    agent, seen = trainer.agents[0], []
    plain = agent.mirror.token_stats
    monkeypatch.setattr(
        agent.mirror, "token_stats", lambda prompts, completions, **how: seen.append(len(completions)) or plain(prompts, completions, **how)
    )
    pushed = 32 if mode == "global" else 16  # nested: what is left of the groups goes into the buffer
    for index in range(5):
        seen.clear()
        step = trainer.collect()
        before = len(seen)
        trainer.learn(step)
        looked = seen[before:]
        assert sum(looked) == min(index, passes) * pushed and len(looked) <= 1


@pytest.mark.parametrize("ratios", ["stored", "fresh"])
def test_ratios_of_replayed_rollouts(lab, ratios):
    seen = []

    class Look(Component):
        def plan(self, step, agent, updates):
            (update,) = updates
            inner = update.loss

            def loss(x):
                seen.append(float((x.logp.detach() - x.old_logp).abs().max()))
                return inner(x)

            update.loss = loss
            return updates

    list(trainer_of(lab, after=[Look()], mode="global", rounds=3, ratios=ratios, optimiser={"lr": 0.05}).steps(3))
    assert seen[0] < 1e-6 and (seen[2] < 1e-6 if ratios == "fresh" else seen[2] > 1e-3)


def test_probes_measure_the_gain_with_the_same_luck(lab):
    trainer = trainer_of(lab, probes=12)
    steps = list(trainer.steps(4))
    levels = []
    for s in steps:
        rows = s.drawn.role == Role.PROBE
        assert rows.sum() == 12
        levels.append(float(s.drawn.rows["reward/raw"][rows].mean()))
        assert s.metrics["cbs/value"] == float(s.drawn.rows["reward/raw"][~rows].mean())
    assert [s.metrics["cbs/gain"] for s in steps[1:]] == pytest.approx(np.diff(levels).tolist(), abs=1e-12)


def test_spearman_with_the_true_values(lab):
    spy = lab.spy()
    trainer = trainer_of(lab, before=[TrueValue(prompts=6)], after=[spy], share=1.0, warmup=2)
    steps = list(trainer.steps(4))
    assert "cbs/spearman" not in steps[0].metrics, "before the scheduler decides, all scores are equal"
    assert -1 <= steps[3].metrics["cbs/spearman"] <= 1
    for step, batch in zip(steps, spy.batches, strict=True):
        expected = spearman(batch.advantage, batch.rows[TRUTH])
        assert step.metrics["cbs/spearman_advantage"] == pytest.approx(expected)
        assert step.metrics["cbs/explained"] <= 1


def test_explained_by_hand():
    x = np.random.default_rng(0).normal(size=(50, 10))
    assert explained(x, x @ np.arange(10.0)) == pytest.approx(1)
    assert abs(np.mean([explained(x, np.random.default_rng(i).normal(size=50)) for i in range(200)])) < 0.03
    assert np.isnan(explained(x[:8], x[:8, 0])) and np.isnan(explained(x, np.ones(50)))


def paid(lab, worth, **options) -> list[Any]:
    """The last steps of a course in which the gain of a step is what `worth` says of its choice, not what training did to the policy."""
    spy = lab.spy()
    options = {"mode": "global", "rounds": 1, "count": 0.5, "warmup": 10, "epochs": 8, "dropout": 0.0, "explore": (0.0, 0.0, 1)} | options
    trainer = trainer_of(lab, after=[spy], group=4, prompts=8, optimiser={"lr": 1e-6}, **options)
    cbs_of(trainer).gain.compare = lambda now: (0.0, float(worth(spy.batches[-1]).double().mean()), 0.0) if spy.batches else None
    return list(trainer.steps(50))[-20:]


def test_claim_8_rows_without_an_advantage_are_chosen_less_where_they_pay_nothing(lab):
    """Gains are in proportion to the share of the choice that has an advantage, which none of the ten features says in so many words."""
    steps = paid(lab, lambda batch: batch.advantage != 0, label="set")
    drawn, chosen = (np.mean([s.metrics[f"select/zero_advantage{x}"] for s in steps]) for x in ("_drawn", ""))
    assert 0.1 < drawn < 0.9 and chosen < 0.6 * drawn


def test_claim_10_with_shuffled_labels_it_is_as_good_as_random(lab):
    found = {}
    for labels in ("measured", "shuffled"):
        steps = paid(lab, lambda batch: batch.reward, labels=labels)
        found[labels] = np.mean([s.metrics["select/reward"] - float(s.pool.reward.mean()) for s in steps])
    assert found["measured"] > 0.15 and abs(found["shuffled"]) < 0.1


def test_claim_9_the_price_of_entropy_turns_the_choice(lab):
    """A choice of high-entropy rollouts gains in reward, and in entropy. Without a price it is learnt; with one it is avoided."""
    found = {}
    for w_e in (0.0, 3.0):
        spy = lab.spy()

        class World(Component):
            level, entropy = 0.5, 1.0

            def verify(self, step, agent, spy=spy):
                if spy.batches:
                    batch = spy.batches[-1]
                    per_row = torch.zeros(len(batch)).index_add_(0, batch.row_of_token, batch.entropy.float()) / batch.lengths
                    excess = float(per_row.mean()) - World.usual
                    World.level, World.entropy = World.level + 0.5 * excess, World.entropy + 0.5 * excess
                drawn = step.drawn
                per_row = torch.zeros(len(drawn)).index_add_(0, drawn.row_of_token, drawn.entropy.float()) / drawn.lengths
                World.usual = float(per_row.mean())
                drawn.rows["reward/raw"] = torch.full((len(drawn),), World.level, dtype=torch.float64)
                self.shift = World.entropy - World.usual

        world = World()

        class Shifted(CBS):
            """Its E is that of the world."""

            def verify(self, step, agent, world=world):
                inner, self.entropies = self.entropies, lambda batch: inner(batch) + world.shift
                super().verify(step, agent)
                self.entropies = inner

        options = {"mode": "global", "rounds": 1, "count": 0.5, "warmup": 8, "epochs": 4, "dropout": 0.0, "explore": (0.0, 0.0, 1)}
        cbs = Shifted(w_e=w_e, e_min=0.0, **options)
        policy = lab.policy()
        with torch.no_grad():
            for _, p in policy.trainable():
                p.mul_(4)  # entropies that differ from token to token
        sampling = {"group_size": 4, "prompts": 8}
        trainer = lab.trainer(lab.agent(policy, sampling=sampling, optimiser={"lr": 1e-6}, components=[world, cbs, spy]))
        list(trainer.steps(40))
        found[w_e] = World.entropy - 1.0
    assert found[0.0] > 0.1 and found[3.0] < -0.1


MODES = {
    "intra": {},
    "global": {"mode": "global", "rounds": 3, "count": 0.5},
    "nested": {"mode": "nested", "rounds": 2},
    "less noise": {"probes": 5, "control": "prompt", "window": 3, "label": "set"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_it_continues_bit_for_bit(lab, tmp_path, mode, stop):
    """With buffer, scorer, its optimiser, and the label that is not there yet."""
    whole, first, second = (trainer_of(lab, **MODES[mode]) for _ in range(3))
    expected = [s.metrics for s in whole.steps(7)]
    list(first.steps(stop))
    store = CheckpointStore(tmp_path)
    store.save(stop, first.state_dict())
    second.load_state_dict(store.latest().state)
    found = [s.metrics for s in second.steps(7 - stop)]
    assert same_weights(lab, second, whole)
    for one, other in zip(expected[stop:], found, strict=True):
        timeless = [{k: v for k, v in m.items() if not k.startswith(("time/", "throughput/", "cbs/seconds"))} for m in (one, other)]
        assert timeless[0] == pytest.approx(timeless[1], abs=0, rel=0, nan_ok=True)
    x = torch.linspace(-1, 1, 50).view(5, 10)
    assert np.array_equal(cbs_of(second).scheduler.scores(x), cbs_of(whole).scheduler.scores(x))


def test_a_round_without_any_verdict_has_no_label(lab):
    calls = {"n": 0}

    def reward(prompts, completions):
        calls["n"] += 1
        scores = lab.first_letter(prompts, completions)
        return [lab.score(None) for _ in scores] if calls["n"] == 3 else scores

    agent = lab.agent(sampling={"group_size": 8}, components=[CBS(warmup=2)])
    steps = list(lab.trainer(agent, reward=reward).steps(6))
    assert ["cbs/label" in s.metrics for s in steps] == [False, True, False, False, True, True]


class Extra(Component):
    """A second update in every step."""

    def plan(self, step, agent, updates):
        return [Update(u.batch, 0 * u.batch.advantage[u.batch.row_of_token], u.loss, tag="replay") for u in updates] + updates


@pytest.mark.parametrize("confounded", ["keep", "drop"])
def test_labels_of_steps_with_other_updates(lab, confounded):
    steps = list(trainer_of(lab, after=[Extra()], confounded=confounded).steps(3))
    assert all(s.metrics["cbs/confounded"] == 1 for s in steps)
    assert ["cbs/label" in s.metrics for s in steps] == ([False, True, True] if confounded == "keep" else [False] * 3)
    assert list(trainer_of(lab).steps(2))[1].metrics["cbs/confounded"] == 0


def test_every_update_counts_as_a_use(lab):
    trainer = trainer_of(lab, after=[Extra()], mode="global", rounds=2, count=0.25)
    trainer.step()
    held = cbs_of(trainer).buffer.held[0]
    assert sorted(held.usage.tolist()) == [0] * 24 + [2] * 8


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_rollback_voids_the_step_the_buffer_and_the_pending_label(lab, order):
    class Back(Component):
        def verify(self, step, agent):
            if step.index == 3:
                for component in agent.components:
                    component.on_rollback()

        def select(self, step, agent, batch):
            return batch.select(torch.empty(0, dtype=torch.int64)) if step.index == 3 else batch

    trainer = trainer_of(lab, mode="global", rounds=4, **{order: [Back()]})
    steps = list(trainer.steps(6))
    judged = ["cbs/label" in s.metrics for s in steps]
    assert judged == [False, True, True, order == "after", False, True]  # judged before it was undone, the harmful choice has its label
    assert sorted(cbs_of(trainer).buffer.held) == [4, 5]
    assert "loss/policy" not in steps[3].metrics and cbs_of(trainer).scheduler.labelled == sum(judged)


def test_beside_the_real_guard(lab):
    trainer = trainer_of(lab, after=[Rollback(probes=4, every=1)])
    assert all("rollback/level" in s.metrics and s.metrics["select/rows"] == 16 for s in trainer.steps(3))


def test_features_can_be_left_out(lab):
    trainer = trainer_of(lab, without=("age", "usage", "reward"), share=1.0)
    trainer.step()
    found = cbs_of(trainer).pending.features
    assert not found[:, [FEATURES.index(n) for n in ("age", "usage", "reward")]].any() and found[:, FEATURES.index("length")].any()


def test_shaped_rewards_are_seen_where_asked_for(lab):
    class Flip(Component):
        def score(self, step, agent, batch):
            return batch.with_columns(reward=1 - batch.reward)

    raw, shaped = (trainer_of(lab, before=[Flip()], reward=r).step() for r in ("raw", "shaped"))
    assert raw.metrics["cbs/value"] + shaped.metrics["cbs/value"] == pytest.approx(1)
    assert raw.pool.rows[PASS_RATE].tolist() == pytest.approx((1 - shaped.pool.rows[PASS_RATE]).tolist())


def test_what_it_says_before_training(lab):
    agent = lab.agent(sampling={"group_size": 8})
    said, fit = CBS(pool=4).note(agent).rsplit("; ", 1)
    assert said == "CBS: about 16 of 32 fresh rollouts' worth trained on a step, no forward pass beyond those of the base"
    assert re.fullmatch(r"the scheduler's fit takes about \d+ ms of a step here", fit)
    told = CBS(mode="global", probes=9).note(agent)
    assert "about 32 of 32" in told and "one log-prob pass over what the buffer holds" in told and "9 probes" in told


@pytest.mark.parametrize(
    "options",
    [
        {"label": "x"},
        {"reward": "x"},
        {"control": "x"},
        {"confounded": "x"},
        {"ratios": "x"},
        {"labels": "x"},
        {"without": ("luck",)},
        {"warmup": 0},
        {"window": 0},
        {"probes": -1},
        {"explore": (0.1, 0.2, 10)},
        {"explore": (0.1, 0.02)},
        {"explore": 0.1},
        {"explore": ("a", "b", "c")},
        {"without": "age"},
        {"warmup": "x"},
        {"probes": 1.5},
        {"width": -1},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"pool": 0},
        {"epochs": 0},
        {"w_e": "much"},
        {"standardise": "maybe"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="CBS"):
        CBS(**options)


def test_random_selection_is_what_the_warm_up_is_like(lab):
    """The same sizes and the same kind of choice, with random numbers of their own."""
    spy, other = lab.spy(), lab.spy()
    trainer_of(lab, after=[spy], warmup=50).step()
    lab.trainer(lab.agent(sampling={"group_size": 8}, components=[Selector("random"), other])).step()
    assert torch.equal(spy.batches[0].group, other.batches[0].group)
