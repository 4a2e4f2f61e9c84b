"""Rules of selection: what is chosen from scores, in each group or in all, and each rule inside the trainer. Claim 2 of CBS, in part."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.rollouts import Source
from tacit.rl.selectors import Selector, choose, kept_of, max_variance, max_variance_scores, place_in_order


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_places_by_hand():
    groups, scores, ties = np.array([5, 5, 2, 5, 2]), np.array([1.0, 0.0, 7.0, 1.0, 3.0]), np.array([0.9, 0.5, 0.5, 0.1, 0.5])
    assert place_in_order(groups, scores, ties).tolist() == [2, 0, 1, 1, 0]


def test_choice_by_hand():
    groups, scores = np.array([5, 5, 2, 5, 2]), np.array([1.0, 3.0, 7.0, 2.0, 3.0])
    assert choose(scores, groups, np.array([1, 2]), rng()).tolist() == [False, True, True, True, False]
    assert choose(scores, groups, np.array([9, 9]), rng()).all()
    assert not choose(scores, groups, np.array([0, 0]), rng()).any()


def test_shares_of_groups():
    assert kept_of(np.array([1, 2, 3, 4, 8, 10]), 0.5).tolist() == [1, 1, 2, 2, 4, 5]
    assert kept_of(np.array([8]), 0.3).tolist() == [3] and kept_of(np.array([10]), 0.3).tolist() == [3]  # 10 * 0.3 is 3.0000000000000004 somewhere


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_claim_2_choice_follows_the_rows_and_only_the_order_of_scores(seed, size):
    random = rng(seed)
    scores, groups = random.permutation(size).astype(float), random.integers(4, size=size)
    counts = kept_of(np.unique(groups, return_counts=True)[1], 0.5)
    mask = choose(scores, groups, counts, rng(1))
    assert np.array_equal(mask, choose(np.exp(scores / 7) - 3, groups, counts, rng(2)))
    order = random.permutation(size)
    assert np.array_equal(mask[order], choose(scores[order], groups[order], counts, rng(3)))
    assert [mask[groups == g].sum() for g in np.unique(groups)] == counts.tolist()


def test_ties_and_exploration_are_fair():
    """Of 4 equal scores 2: each half the time. Best of 4, with ε = .3: the best .7 of the time, and each of the 4 in .3 / 4."""
    ties = np.mean([choose(np.zeros(4), np.zeros(4, int), np.array([2]), rng(i)) for i in range(2000)], axis=0)
    assert ties == pytest.approx([0.5] * 4, abs=0.05)
    shares = np.mean([choose(np.arange(4.0), np.zeros(4, int), np.array([1]), rng(i), 0.3) for i in range(4000)], axis=0)
    assert shares == pytest.approx([0.075, 0.075, 0.075, 0.775], abs=0.02)
    assert choose(np.zeros(3), np.zeros(3, int), np.array([3]), rng(), 1.0).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_max_variance_is_that_of_all_subsets(values, data):
    rewards, count = np.array(values, float), data.draw(st.integers(1, len(values)))
    mask = max_variance(rewards, count)
    assert mask.sum() == count
    assert rewards[mask].var() == pytest.approx(max(rewards[list(rows)].var() for rows in itertools.combinations(range(len(values)), count)))


def test_max_variance_scores_by_hand():
    """Group 1: rewards 1, 0, 0, 0, two kept: the 1 and any 0. Group 7 agrees: any two."""
    groups, rewards = np.array([7, 7, 7, 1, 1, 1, 1]), np.array([1.0, 1, 1, 1, 0, 0, 0])
    zeros = set()
    for seed in range(20):
        scores = max_variance_scores(rewards, groups, np.array([2, 2]), rng(seed))
        assert scores[:3].sum() == 2 and scores[3] == 1 and scores[4:].sum() == 1
        zeros.add(int(scores[4:].argmax()))
    assert zeros == {0, 1, 2}


def run(lab, steps: int = 4, before=(), seed: int = 0, group: int = 8, **options):
    selector, spy = Selector(**options), lab.spy()
    trainer = lab.trainer(lab.agent(sampling={"group_size": group}, components=[*before, selector, spy]), seed=seed)
    return trainer, list(trainer.steps(steps)), spy.batches


@pytest.mark.parametrize("rule", ["random", "top_advantage", "max_variance"])
def test_half_of_every_group_in_the_order_of_drawing(lab, rule):
    _, steps, batches = run(lab, rule=rule)
    for step, batch in zip(steps, batches, strict=True):
        assert batch.group.tolist() == sorted(step.drawn.group.tolist())[::2]
        assert all(x < y for g in batch.group.unique() for x, y in itertools.pairwise(batch.sample[batch.group == g].tolist()))
        assert step.metrics["select/rows"] == 16 and step.metrics["select/prompts"] == 4
        pool = step.pool
        for g in batch.group.unique():
            there, taken = pool.advantage[pool.group == g], batch.advantage[batch.group == g]
            if rule == "top_advantage":
                assert taken.abs().sum() == pytest.approx(float(there.abs().topk(4).values.sum()))
            if rule == "max_variance":
                rewards = pool.reward[pool.group == g]
                assert float(batch.reward[batch.group == g].sum()) == min(max(2, 4 - int((rewards == 0).sum())), int(rewards.sum()))


def test_rows_without_advantage_are_counted(lab):
    _, steps, batches = run(lab, rule="top_advantage", steps=3)
    for step, batch in zip(steps, batches, strict=True):
        assert step.metrics["select/zero_advantage"] == float((batch.advantage == 0).double().mean())
        assert step.metrics["select/zero_advantage_drawn"] == float((step.pool.advantage == 0).double().mean())
        assert step.metrics["select/zero_advantage"] <= step.metrics["select/zero_advantage_drawn"]


def test_positives_are_positive_and_at_most_half(lab):
    _, _, batches = run(lab, rule="positives", steps=6)
    assert any(batch is not None and len(batch) for batch in batches)
    for batch in batches:
        if batch is not None and len(batch):
            assert (batch.advantage > 0).all() and max(batch.group.unique(return_counts=True)[1]) <= 4


def test_reward_priority_replays_the_rewarded(lab):
    _, steps, batches = run(lab, rule="reward_priority", mode="global", rounds=3, count=0.5, steps=6)
    rewards = []
    for step, batch in zip(steps, batches, strict=True):
        rewards.append(step.pool.reward)
        expected = torch.cat(rewards[-3:]).topk(16).values
        assert batch.reward.sort(descending=True).values.tolist() == expected.tolist()
        assert step.metrics["select/replayed"] == float((batch.source == Source.REPLAYED).double().mean())
    assert any(step.metrics["select/replayed"] > 0 for step in steps)
    ages = [step.index - step_of for step, batch in zip(steps, batches, strict=True) for step_of in batch.rows["replay/round"].tolist()]
    assert min(ages) == 0 and max(ages) == 2


def test_nested_takes_half_of_each_group_and_then_the_best_of_the_buffer(lab):
    _, steps, batches = run(lab, rule="reward_priority", mode="nested", rounds=2, steps=4)
    assert [len(batch) for batch in batches] == [16] * 4
    assert steps[0].metrics["select/replayed"] == 0 and any(step.metrics["select/replayed"] > 0 for step in steps)


def test_the_oracle_needs_true_values(lab):
    with pytest.raises(ValueError, match="list the component true_value before the selector"):
        run(lab, rule="oracle", steps=1)


@pytest.mark.parametrize(
    "options", [{"rule": "best"}, {"mode": "both"}, {"share": 0.0}, {"count": 0.0}, {"rounds": 0}, {"rounds": 2.5}, {"stale": -1}, {"share": "half"}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=r"selector|replay buffer"):
        Selector(**options)


@pytest.mark.parametrize("options", [{"share": 1.0}, {"mode": "global", "rounds": 1}, {"mode": "nested", "rounds": 1, "share": 1.0}])
@pytest.mark.parametrize("rule", ["random", "top_advantage", "max_variance", "reward_priority"])
def test_claim_2_everything_selected_is_the_base_bit_for_bit(lab, rule, options):
    plain = lab.trainer(lab.agent(sampling={"group_size": 8}))
    list(plain.steps(3))
    trainer, _, _ = run(lab, steps=3, rule=rule, **options)
    expected = lab.weights(plain.agents[0].policy)
    assert all(torch.equal(p, expected[name]) for name, p in lab.weights(trainer.agents[0].policy).items())
