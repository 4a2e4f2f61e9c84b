from __future__ import annotations

from functools import partial
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tacit.rl import advantages
from tacit.rl.advantages import ADVANTAGES, broadcast, length_rank_shaping

WITHIN_GROUP = ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"]
OVER_BATCH = ["reinforce_pp", "mean_centred"]

# Group 7 holds rewards 1, 0, 0 and an unscored member, group 3 holds 4 and 2, group 5 one lone member; rows are interleaved.
GROUPS = torch.tensor([7, 3, 7, 5, 7, 3, 7])
REWARDS = torch.tensor([1.0, 4.0, 0.0, 9.0, torch.nan, 2.0, 0.0], dtype=torch.float64)
SCORED = torch.tensor([True, True, True, True, False, True, True])


def f64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def all_scored(rewards: Tensor) -> Tensor:
    return torch.ones(len(rewards), dtype=torch.bool)


def exact(found: Tensor, expected: list[float]) -> None:
    assert_close(found, f64(expected), rtol=1e-14, atol=1e-14)


# --- hand-computed values ---


def test_grpo():
    # group 7: mean 1/3, deviations 2/3, -1/3, -1/3, variance (4 + 1 + 1)/9 / 2 = 1/3; group 3: mean 3, deviations 1, -1, variance 2/1
    a, b = sqrt(1 / 3) + 1e-4, sqrt(2) + 1e-4
    exact(advantages.grpo(REWARDS, GROUPS, SCORED), [2 / 3 / a, 1 / b, -1 / 3 / a, 0, 0, -1 / b, -1 / 3 / a])


def test_grpo_as_literals():
    # rewards 1, 0, 0, 0: mean .25, variance (.5625 + 3 * .0625) / 3 = .25, std .5: .75 / .5001 and -.25 / .5001
    found = advantages.grpo(f64([1, 0, 0, 0]), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    exact(found, [1.4997000599880024, -0.4999000199960008, -0.4999000199960008, -0.4999000199960008])


def test_grpo_with_the_population_std_and_another_eps():
    # group 7: variance 6/9 / 3 = 2/9; group 3: 2/2 = 1
    a, b = sqrt(2) / 3 + 0.5, 1 + 0.5
    found = advantages.grpo(REWARDS, GROUPS, SCORED, eps=0.5, ddof=0)
    exact(found, [2 / 3 / a, 1 / b, -1 / 3 / a, 0, 0, -1 / b, -1 / 3 / a])


def test_dr_grpo():
    exact(advantages.dr_grpo(REWARDS, GROUPS, SCORED), [2 / 3, 1, -1 / 3, 0, 0, -1, -1 / 3])


def test_rloo():
    # group 7: 1 - (0 + 0)/2, 0 - (1 + 0)/2 twice; group 3: 4 - 2, 2 - 4
    exact(advantages.rloo(REWARDS, GROUPS, SCORED), [1, 2, -0.5, 0, 0, -2, -0.5])


def test_reinforce_pp():
    # six scored: 1, 4, 0, 9, 2, 0: mean 16/6 = 8/3; squares 1 + 16 + 81 + 4 = 102, variance (102 - 6 * 64/9) / 5 = (178/3) / 5 = 178/15
    s = sqrt(178 / 15) + 1e-8
    exact(advantages.reinforce_pp(REWARDS, GROUPS, SCORED), [-5 / 3 / s, 4 / 3 / s, -8 / 3 / s, 19 / 3 / s, 0, -2 / 3 / s, -8 / 3 / s])


def test_reinforce_pp_baseline():
    # differences 2/3, 1, -1/3, -1, -1/3; the lone 9 stays out: squares 6/9 + 2 = 8/3 over 5 - 1 degrees of freedom: variance 2/3
    s = sqrt(2 / 3) + 1e-8
    exact(advantages.reinforce_pp_baseline(REWARDS, GROUPS, SCORED), [2 / 3 / s, 1 / s, -1 / 3 / s, 0, 0, -1 / s, -1 / 3 / s])


def test_reinforce_pp_baseline_counts_groups_that_agree():
    # differences 1/2, -1/2, 0, 0: squares 1/2 over 3: std sqrt(1/6)
    found = advantages.reinforce_pp_baseline(f64([1, 0, 5, 5]), torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool), eps=0.0)
    exact(found, [0.5 * sqrt(6), -0.5 * sqrt(6), 0, 0])


def test_mean_centred():
    # mean 16/6
    exact(advantages.mean_centred(REWARDS, GROUPS, SCORED), [-5 / 3, 4 / 3, -8 / 3, 19 / 3, 0, -2 / 3, -8 / 3])


def test_remax():
    # group 0: greedy .5; group 1: greedy unscored; group 2: none; group 3: one sample beside the greedy one; group 4: greedy 2, constant
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4])
    greedy = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0], dtype=torch.bool)
    scored = torch.tensor([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=torch.bool)
    rewards = f64([1, 0, 0.5, 1, 0, 9, 1, 0, 0.25, 1, 2, 2])
    exact(advantages.remax(rewards, groups, scored, greedy), [0.5, -0.5, 0, 0, 0, 0, 0, 0, 0, 0.75, 0, 0])


def test_remax_leaves_an_unscored_sample_at_zero():
    found = advantages.remax(
        f64([0, torch.nan, 1]), torch.zeros(3, dtype=torch.int64), torch.tensor([True, False, True]), torch.tensor([True, False, False])
    )
    exact(found, [0, 0, 1])


def test_remax_averages_several_greedy_rollouts():
    found = advantages.remax(f64([1, 0, 1]), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), torch.tensor([False, True, True]))
    exact(found, [0.5, 0, 0])


# --- nothing to compare ---


@pytest.mark.parametrize("name", WITHIN_GROUP)
def test_a_lone_member_gets_exactly_zero(name):
    found = ADVANTAGES[name](f64([3, 1, 0]), torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.bool))
    assert found[0] == 0 and found[1] > 0 > found[2]


@pytest.mark.parametrize("name", WITHIN_GROUP)
def test_a_member_whose_peers_are_unscored_gets_exactly_zero(name):
    found = ADVANTAGES[name](f64([3, 8, 1, 0]), torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, True, True]))
    assert found[0] == 0 and found[1] == 0 and found[2] > 0


@pytest.mark.parametrize("name", WITHIN_GROUP + OVER_BATCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 0.0, -7.3, 1e9])
def test_peers_that_agree_get_exactly_zero(name, dtype, value):
    rewards = torch.full((3,), value, dtype=dtype)  # the mean of three 0.1 is not 0.1
    assert torch.equal(ADVANTAGES[name](rewards, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)), torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("name", WITHIN_GROUP + OVER_BATCH)
def test_peers_that_agree_up_to_rounding_get_exactly_zero(name):
    rewards = f64([0.3, 0.1 + 0.2, 0.3])
    assert rewards[0] != rewards[1]
    assert torch.equal(ADVANTAGES[name](rewards, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)), torch.zeros(3).double())


@pytest.mark.parametrize("name", WITHIN_GROUP)
def test_a_constant_group_beside_a_varied_one_gets_exactly_zero(name):
    found = ADVANTAGES[name](f64([0.1, 1, 0.1, 0, 0.1]), torch.tensor([4, 2, 4, 2, 4]), torch.ones(5, dtype=torch.bool))
    assert torch.equal(found[[0, 2, 4]], torch.zeros(3).double()) and found[1] > 0


@pytest.mark.parametrize("name", OVER_BATCH)
def test_over_the_batch_a_lone_or_constant_group_still_teaches(name):
    found = ADVANTAGES[name](f64([1, 0, 0]), torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.bool))
    assert found[0] > 0 and found[1] == found[2] < 0
    assert ADVANTAGES[name](f64([3]), torch.tensor([0]), torch.ones(1, dtype=torch.bool)) == 0


@pytest.mark.parametrize("name", WITHIN_GROUP + OVER_BATCH)
def test_nobody_scored(name):
    found = ADVANTAGES[name](f64([torch.nan, 1, 2]), torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.bool))
    assert torch.equal(found, torch.zeros(3).double())


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "reinforce_pp_baseline"])
def test_without_eps_zero_stays_zero(name):
    found = ADVANTAGES[name](f64([1, 1]), torch.tensor([0, 0]), torch.ones(2, dtype=torch.bool), eps=0.0)
    assert torch.equal(found, torch.zeros(2).double())


# --- properties ---


@st.composite
def batches(draw) -> tuple[Tensor, Tensor, Tensor]:
    size = draw(st.integers(1, 12))
    column = partial(st.lists, min_size=size, max_size=size)
    rewards = draw(column(st.integers(-20, 20).map(lambda n: n / 4)))
    groups = draw(column(st.integers(-1, 3)))
    scored = draw(column(st.booleans()))
    return f64(rewards), torch.tensor(groups), torch.tensor(scored)


def estimators(names: list[str]):
    return st.sampled_from(names).map(ADVANTAGES.__getitem__)


@settings(deadline=None)
@given(batches(), estimators(WITHIN_GROUP))
def test_a_group_sums_to_zero(batch, estimate):
    rewards, groups, scored = batch
    found = estimate(rewards, groups, scored)
    for group in groups.unique():
        assert_close(found[groups == group].sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-10)


@settings(deadline=None)
@given(batches(), estimators(OVER_BATCH))
def test_the_batch_sums_to_zero(batch, estimate):
    assert_close(estimate(*batch).sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-10)


@settings(deadline=None)
@given(batches(), estimators(WITHIN_GROUP + OVER_BATCH), st.integers(-50, 50))
def test_a_shift_of_all_rewards_changes_nothing(batch, estimate, shift):
    rewards, groups, scored = batch
    assert_close(estimate(rewards + shift, groups, scored), estimate(*batch), rtol=1e-9, atol=1e-11)


@settings(deadline=None)
@given(batches(), estimators(["dr_grpo", "rloo", "mean_centred"]), st.floats(0.1, 10))
def test_without_a_std_advantages_scale_with_the_rewards(batch, estimate, scale):
    rewards, groups, scored = batch
    assert_close(estimate(scale * rewards, groups, scored), scale * estimate(*batch), rtol=1e-9, atol=1e-11)


@settings(deadline=None)
@given(batches(), estimators(["grpo", "reinforce_pp", "reinforce_pp_baseline"]), st.floats(0.1, 10))
def test_with_a_std_the_scale_of_the_rewards_does_not_matter(batch, estimate, scale):
    rewards, groups, scored = batch
    assert_close(estimate(scale * rewards, groups, scored, eps=0.0), estimate(*batch, eps=0.0), rtol=1e-9, atol=1e-11)


@settings(deadline=None)
@given(batches(), estimators(WITHIN_GROUP + OVER_BATCH), st.randoms(use_true_random=False))
def test_row_order_and_group_names_do_not_matter(batch, estimate, random):
    rewards, groups, scored = batch
    order = torch.tensor(random.sample(range(len(rewards)), len(rewards)))
    renamed = 1000 - 17 * groups
    assert_close(estimate(rewards[order], renamed[order], scored[order]), estimate(*batch)[order], rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(batches(), estimators(WITHIN_GROUP + OVER_BATCH))
def test_what_an_unscored_reward_holds_does_not_matter(batch, estimate):
    rewards, groups, scored = batch
    found = estimate(torch.where(scored, rewards, torch.nan), groups, scored)
    assert torch.equal(found, estimate(*batch))
    assert (found[~scored] == 0).all()


@settings(max_examples=30, deadline=None)
@given(batches())
def test_rloo_is_leave_one_out(batch):
    rewards, groups, scored = batch
    found = advantages.rloo(*batch)
    for i in scored.nonzero()[:, 0].tolist():
        others = [rewards[j] for j in range(len(rewards)) if j != i and scored[j] and groups[j] == groups[i]]
        expected = rewards[i] - sum(others) / len(others) if others else torch.tensor(0.0).double()
        assert_close(found[i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", WITHIN_GROUP + OVER_BATCH)
def test_single_precision_stays_single(name):
    rewards = REWARDS.float()
    found = ADVANTAGES[name](rewards, GROUPS, SCORED)
    assert found.dtype == torch.float32
    assert_close(found.double(), ADVANTAGES[name](REWARDS, GROUPS, SCORED), rtol=1e-5, atol=1e-6)


# --- length ranks ---


def test_length_ranks():
    # group 0, right answers of 5, 9 and 20 tokens: ranks 0, 1/2, 1, whatever the wrong one's length; group 1: a lone right answer
    groups = torch.tensor([0, 1, 0, 0, 1, 0])
    lengths = torch.tensor([20, 30, 5, 1, 2, 9])
    correct = torch.tensor([True, True, True, False, False, True])
    rewards = f64([1, 1, 1, 0, 0, 1])
    exact(length_rank_shaping(rewards, lengths, correct, groups, all_scored(rewards), 0.4), [1 - 0.4, 1, 1, 0, 0, 1 - 0.2])
    exact(rewards, [1, 1, 1, 0, 0, 1])  # its input is left as it was


def test_equal_lengths_share_their_mean_rank():
    # lengths 3, 8, 8, 8, 9: places 0, (1 + 2 + 3)/3 = 2, 4, over 5 - 1
    rewards, lengths = torch.ones(5).double(), torch.tensor([8, 3, 8, 9, 8])
    found = length_rank_shaping(rewards, lengths, all_scored(rewards), torch.zeros(5, dtype=torch.int64), all_scored(rewards), 1.0)
    exact(found, [0.5, 1, 0.5, 0, 0.5])


def test_an_empty_answer_is_the_shortest_of_its_own_group():
    # the longest of group 0 and the empty one of group 1 are neighbours in the order by group, then length
    rewards, lengths, groups = torch.ones(4).double(), torch.tensor([6, 1, 0, 3]), torch.tensor([0, 0, 1, 1])
    exact(length_rank_shaping(rewards, lengths, all_scored(rewards), groups, all_scored(rewards), 0.5), [0.5, 1, 1, 0.5])


def test_unscored_answers_have_no_rank():
    rewards, lengths = f64([1, 1, torch.nan]), torch.tensor([4, 6, 99])
    scored = torch.tensor([True, True, False])
    found = length_rank_shaping(rewards, lengths, torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64), scored, 0.5)
    exact(found[:2], [1, 0.5])
    assert found[2].isnan()


def test_nobody_right():
    rewards = f64([0, 0])
    found = length_rank_shaping(rewards, torch.tensor([4, 6]), torch.zeros(2, dtype=torch.bool), torch.tensor([0, 0]), all_scored(rewards), 0.5)
    exact(found, [0, 0])


@settings(deadline=None)
@given(batches(), st.data())
def test_length_ranks_by_counting(batch, data):
    rewards, groups, scored = batch
    size = len(rewards)
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)))
    correct = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    found = length_rank_shaping(rewards, lengths, correct, groups, scored, 0.5)
    for i in range(size):
        peers = [j for j in range(size) if correct[j] and scored[j] and groups[j] == groups[i]]
        rank = 0.0
        if i in peers and len(peers) > 1:
            shorter = sum(int(lengths[j] < lengths[i]) for j in peers)
            equal = sum(int(lengths[j] == lengths[i]) for j in peers) - 1
            rank = (shorter + equal / 2) / (len(peers) - 1)
        assert_close(found[i], rewards[i] - 0.5 * rank, rtol=1e-12, atol=1e-12)


def test_broadcast():
    exact(broadcast(f64([1.5, -2, 7]), torch.tensor([0, 2, 2, 5])), [1.5, 1.5, 7, 7, 7])
