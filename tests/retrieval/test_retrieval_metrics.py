"""Metrics against values worked out by hand, and what must hold for any ranking."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.retrieval import metrics as m
from tacit.retrieval.fusion import reciprocal_rank_fusion

L3 = math.log2(3)
GRADES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=40)
FLAGS = st.lists(st.booleans(), min_size=1, max_size=40)


def test_ndcg_with_both_discounts():
    """Claim 6.14. Late: (2 + 1 + 2/log2 3) / (2 + 2 + 1/log2 3). Early: (2 + 1/log2 3 + 2/2) / (2 + 2/log2 3 + 1/2)."""
    grades = [2, 1, 2, 0]
    assert m.ndcg(grades, 4) == pytest.approx((3 + 2 / L3) / (4 + 1 / L3), abs=1e-12) == pytest.approx(0.9203, abs=5e-5)
    early = m.ndcg(grades, 4, m.discount_early)
    assert early == pytest.approx((3 + 1 / L3) / (2.5 + 2 / L3), abs=1e-12) == pytest.approx(0.9652, abs=5e-5)


def test_ndcg_is_cut_but_its_ideal_is_that_of_the_whole_pool():
    assert m.ndcg([1, 0, 3], 2) == pytest.approx(1 / 4)  # ideal down to rank 2: 3 + 1
    assert m.ndcg([0, 0], 2) == 0 and m.ndcg([1, 2], 0) == 0
    assert [m.at_share([0] * n, 0.20) for n in (4, 5, 99, 100)] == [0, 1, 19, 20]


def test_binary_metrics_by_hand():
    flags = [False, True, True, False, True, False]
    assert m.average_precision(flags) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert m.reciprocal_rank(flags) == 1 / 2 and m.reciprocal_rank(flags, 1) == 0
    assert m.precision_at(flags, 4) == 1 / 2 and m.precision_at(flags, 20) == 3 / 20
    assert m.recall_at(flags, 3) == 2 / 3
    assert m.r_precision(flags) == 2 / 3  # two of the first three
    assert m.precision_to_last(flags) == 3 / 5  # what CSFCube's script calls R-precision


@pytest.mark.parametrize("metric", [m.average_precision, m.reciprocal_rank, m.r_precision, m.precision_to_last, lambda flags: m.recall_at(flags, 3)])
def test_nothing_relevant_gives_zero(metric):
    assert metric([False] * 5) == 0


def test_equal_scores_are_ordered_by_id_and_undefined_ones_refused():
    assert m.ranked({"b": 1.0, "a": 1.0, "c": 2.0, "0": -1.0}) == ["c", "a", "b", "0"]
    with pytest.raises(ValueError, match="the score of 'b' is not a number; 1 of 2 scores are undefined"):
        m.ranked({"a": 0.0, "b": math.nan})


def test_a_ranking_is_completed_and_cleaned():
    assert m.completed(["c", "stranger", "a", "c"], {"a": 1.0, "b": 2.0, "c": 0.0, "0": 0.0}) == ["c", "a", "0", "b"]


@given(GRADES)
def test_the_perfect_ranking_has_one_and_its_reverse_the_least(grades):
    """Claim 6.13."""
    best = sorted(grades, reverse=True)
    for discount in (m.discount_late, m.discount_early):
        top = m.ndcg(best, None, discount)
        assert top == pytest.approx(1 if best[0] > 0 else 0)
        assert m.ndcg(best[::-1], None, discount) - 1e-12 <= m.ndcg(grades, None, discount) <= top + 1e-12
    flags, perfect = [g >= 2 for g in grades], [g >= 2 for g in best]
    assert m.average_precision(perfect) == m.precision_to_last(perfect) == m.r_precision(perfect) == float(any(flags))
    assert m.average_precision(perfect[::-1]) - 1e-12 <= m.average_precision(flags) <= m.average_precision(perfect)


@given(GRADES, st.floats(0.1, 9))
def test_ndcg_knows_no_unit(grades, factor):
    assert m.ndcg([g * factor for g in grades], 7) == pytest.approx(m.ndcg(grades, 7))


@given(FLAGS, st.integers(1, 50))
def test_metrics_lie_between_zero_and_one(flags, cut):
    for value in (
        m.average_precision(flags),
        m.recall_at(flags, cut),
        m.precision_at(flags, cut),
        m.r_precision(flags),
        m.reciprocal_rank(flags, cut),
    ):
        assert 0 <= value <= 1


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 3).map(float), min_size=1), st.randoms())
def test_a_ranking_depends_on_scores_alone(scores, random):
    names = list(scores)
    random.shuffle(names)
    assert m.ranked({n: scores[n] for n in names}) == m.ranked(scores)


def test_fusion_by_hand():
    scores = reciprocal_rank_fusion([["a", "b"], ["b", "c"]])
    assert scores == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})
    assert m.ranked(scores) == ["b", "a", "c"]
    assert reciprocal_rank_fusion([["a"]], damping=0) == {"a": 1.0}


@given(st.permutations(list("abcdef")))
def test_a_ranking_fused_with_itself_stays(order):
    assert m.ranked(reciprocal_rank_fusion([order, order])) == order
