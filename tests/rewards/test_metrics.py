"""pass@k and maj@k against enumeration of every subset, and intervals against cases that are known."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.statistics import bootstrap, wilson
from tacit.rewards.metrics import Estimate, maj_at_k, measure, over_problems, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for right in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([1] * right + [0] * (n - right), k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_by_hand_and_in_size():
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold the right one
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3, abs=1e-15)
    product = 1 - math.prod(1 - 5 / i for i in range(1996, 2001))  # as the paper's code has it, (n, c, k) = (2000, 5, 5)
    assert pass_at_k(2000, 5, 5) == pytest.approx(product, rel=1e-9)


@pytest.mark.parametrize(("n", "right", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_where_it_is_not_defined(n, right, k):
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(n, right, k)


def vote(answers, right):
    """The plain definition: count, take the candidates with the most votes, average how right they are."""
    candidates = {a for a in answers if a is not None}
    most = max((answers.count(a) for a in candidates), default=0)
    winners = [a for a in candidates if answers.count(a) == most]
    return sum(right[a] for a in winners) / len(winners) if winners else 0.0


def enumerated(answers, verdicts, k):
    of = {a: [v for b, v in zip(answers, verdicts, strict=True) if a == b] for a in answers}
    right = {a: sum(values) / len(values) for a, values in of.items()}
    subsets = list(combinations(answers, k))
    return sum(vote(list(subset), right) for subset in subsets) / len(subsets)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=9), st.data())
def test_maj_at_k_is_the_average_over_all_subsets(drawn, data):
    answers, verdicts = [a for a, _ in drawn], [v for _, v in drawn]
    k = data.draw(st.integers(1, len(drawn)))
    assert maj_at_k(answers, verdicts, k) == pytest.approx(enumerated(answers, verdicts, k), abs=1e-12)


def test_maj_at_k_by_hand():
    assert maj_at_k(["4", "4", "5"], [1, 1, 0], 3) == 1
    assert maj_at_k(["4", "5"], [1, 0], 2) == 0.5  # a tie of two, each wins half of the time
    assert maj_at_k(["4", "5", "6"], [1, 0, 0], 3) == pytest.approx(1 / 3)
    assert maj_at_k([None, None, "4"], [0, 0, 1], 3) == 1  # who abstains has no vote
    assert maj_at_k([None, None], [1, 1], 2) == 0  # nobody votes
    assert maj_at_k(["4", "4", "5", "5", "5"], [1, 1, 0, 0, 0], 5) == 0


def test_maj_at_1_is_pass_at_1():
    answers, right = ["a", "b", "a", "c"], [1.0, 0.0, 1.0, 1.0]
    assert maj_at_k(answers, right, 1) == pytest.approx(pass_at_k(4, 3, 1))


def test_maj_at_k_of_many():
    """64 votes, 24 of them right and 40 wrong in 40 ways: the right candidate nearly always leads."""
    answers, right = ["r"] * 24 + [f"w{i}" for i in range(40)], [1.0] * 24 + [0.0] * 40
    assert maj_at_k(answers, right, 64) == 1
    assert 0.999 < maj_at_k(answers, right, 32) <= 1


@pytest.mark.parametrize(("answers", "right", "k"), [(["a"], [1], 2), (["a"], [1], 0), (["a", "b"], [1], 1)])
def test_maj_at_k_where_it_is_not_defined(answers, right, k):
    with pytest.raises(ValueError, match=f"maj@{k} needs"):
        maj_at_k(answers, right, k)


def test_intervals():
    assert over_problems([1.0] * 20) == Estimate(*wilson(20, 20), 20)
    assert over_problems([1.0] * 20).low == pytest.approx(0.8389, abs=1e-4)  # 20 / (20 + 1.959964**2)
    assert over_problems([0.0, 1.0, 1.0]) == Estimate(*wilson(2, 3), 3)
    assert over_problems([0.25, 1.0, 0.5]) == Estimate(*bootstrap([0.25, 1.0, 0.5]), 3)
    assert math.isnan(over_problems([]).mean) and over_problems([]).problems == 0


def test_measure_leaves_out_what_says_nothing():
    """Three problems with 4, 2 and 0 scored completions."""
    found = measure([[1, 0, 0, 0], [1, 1], []], [["4", "5", "5", "6"], ["7", "7"], []], 4, [1, 2, 4])
    assert {name: (estimate.mean, estimate.problems) for name, estimate in found.items()} == {
        "avg@4": (pytest.approx(0.625), 2),
        "pass@1": (pytest.approx(0.625), 2),
        "pass@2": (pytest.approx(0.75), 2),
        "pass@4": (1.0, 1),
        "maj@2": (pytest.approx((3 * 0.5 / 6 + 1) / 2), 2),  # pairs with the right one: 3 of 6, all ties
        "maj@4": (0.0, 1),  # two votes for 5
    }


def test_measure_counts_partial_rewards_in_the_mean_only():
    found = measure([[0.5, 0.9]], [["a", "b"]], 2, [1])
    assert found["avg@2"].mean == pytest.approx(0.7) and found["pass@1"].mean == 0.5
    assert measure([], [], 1, [1])["pass@1"].problems == 0
