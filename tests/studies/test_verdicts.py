from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tacit.core.statistics import Interval, paired_t_p
from tacit.studies.page import claim as row
from tacit.studies.result import beside, lines, mean
from tacit.studies.study import Claim, Measured
from tacit.studies.verdicts import Contrast, bootstrap_p, contrast, judge, judged


def claim(expected: Any = "a > b", margin: float = 0.0, **more: Any) -> Claim:
    return Claim("id", "a claim", "x", "a", "b", expected, margin, **more)


@pytest.mark.parametrize(
    ("expected", "margin", "low", "high", "p", "verdict"),
    [
        ("a > b", 0.0, 0.1, 0.3, 0.01, "supported"),
        ("a > b", 0.0, 0.1, 0.3, 0.06, "inconclusive"),  # alone it would do; among the others it does not
        ("a > b", 0.0, -0.1, 0.3, 0.01, "inconclusive"),
        ("a > b", 0.2, 0.1, 0.3, 0.01, "inconclusive"),  # does not clear the margin
        ("a > b", 0.2, 0.05, 0.15, 0.01, "refuted"),  # better, but by less than was claimed
        ("a > b", 0.0, -0.3, -0.1, 0.01, "refuted"),
        ("a < b", 0.0, -0.3, -0.1, 0.01, "supported"),
        ("a < b", 0.0, 0.1, 0.3, 0.01, "refuted"),
        ("a = b", 0.2, -0.1, 0.15, 0.9, "supported"),
        ("a = b", 0.2, -0.1, 0.25, 0.9, "inconclusive"),
        ("a = b", 0.2, 0.21, 0.3, 0.01, "refuted"),
    ],
)
def test_verdicts(expected, margin, low, high, p, verdict):
    found = Contrast(Interval((low + high) / 2, low, high), p, p, 5)
    assert judge(claim(expected, margin), found, p) == verdict


def test_one_pair_or_none_decides_nothing():
    assert contrast([], []) is None
    assert judge(claim(), None, 0.0) == "inconclusive"
    found = contrast([2.0], [1.0])
    assert found is not None and found.p == 1.0 and judge(claim(), found, found.p) == "inconclusive"


def simulated(effect: float, n: int, studies: int) -> list[str]:
    rng = np.random.default_rng(0)
    said = []
    for _ in range(studies):
        a, b = rng.normal(effect, 0.5**0.5, n), rng.normal(0.0, 0.5**0.5, n)  # the difference of a pair has a standard deviation of 1
        values = {"a": {s: Measured({"x": x}) for s, x in enumerate(a)}, "b": {s: Measured({"x": x}) for s, x in enumerate(b)}}
        said.append(judged([claim()], values)[0]["verdict"])
    return said


def test_identical_arms_are_seldom_called_different():
    said = simulated(0.0, 5, 500)
    assert said.count("supported") <= 25 and said.count("refuted") <= 25  # 5 % each; 2.5 % expected
    assert said.count("supported") >= 3  # the test is not simply deaf


@pytest.mark.parametrize("n", [5, 8, 12])
def test_an_effect_of_one_standard_deviation_is_found_with_the_power_of_the_t_test(n):
    effect, critical = n**0.5, stats.t.ppf(0.975, n - 1)
    power = float(stats.nct.sf(critical, n - 1, effect))
    share = simulated(1.0, n, 500).count("supported") / 500
    assert share == pytest.approx(power, abs=4 * (power * (1 - power) / 500) ** 0.5)


def test_values_are_paired_by_seed_and_corrected_together():
    values = {
        "a": {seed: Measured({"x": seed + 1.0 + 0.01 * seed, "y": 1.0}) for seed in (0, 1, 2, 3)},
        "b": {seed: Measured({"x": float(seed)}) for seed in (3, 2, 1)},
    }
    one, other = judged([claim(), Claim("none", "nothing there", "y", "a", "b")], values)
    assert one["seeds"] == [1, 2, 3] and one["arms"]["a"]["values"] == [2.01, 3.02, 4.03] and one["arms"]["b"]["values"] == [1.0, 2.0, 3.0]
    assert one["contrast"]["mean_diff"] == pytest.approx(1.02) and one["contrast"]["p_sign_flip"] == 0.25
    assert one["contrast"]["p_holm"] == pytest.approx(2 * one["contrast"]["p"]) and one["verdict"] == "supported"
    assert other["verdict"] == "inconclusive" and other["contrast"] == {"a": "a", "b": "b", "margin": 0.0, "n": 0}


def test_what_must_be_read_beside_a_difference_is_told_of_the_arms_that_have_it():
    values = {
        "a": {0: Measured({"x": 1.0, "noise": 0.1}), 1: Measured({"x": 2.0, "noise": 0.3})},
        "b": {0: Measured({"x": 0.0}), 1: Measured({"x": 0.5})},
    }
    with_it, without = judged([claim(beside=("noise", "unknown")), claim()], values)
    assert with_it["beside"] == {"noise": {"a": pytest.approx(0.2)}} and "beside" not in without
    assert beside(with_it) == ["noise of a 0.2"] and beside(without) == []
    result = {"flags": [], "claims": [with_it], "properties": [], "missing": []}
    assert lines(result)[0].endswith("n 2); noise of a 0.2") and "x: a &gt; b; noise of a 0.2<" in row(with_it)


def test_items_are_resampled_by_cluster():
    rng = np.random.default_rng(0)
    per_document = rng.normal(0.2, 1.0, 20)
    a = np.repeat(per_document, 10).tolist()  # ten questions of a document that all agree
    clusters = tuple(np.repeat([f"d{n}" for n in range(20)], 10))
    values = {"a": {0: Measured({"x": a}, clusters=clusters)}, "b": {0: Measured({"x": [0.0] * 200}, clusters=clusters)}}
    [found] = judged([claim(unit="document")], values)
    low, high = found["contrast"]["ci95"]
    half = 1.96 * per_document.std() / 20**0.5  # twenty documents, not two hundred questions
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert found["contrast"]["n"] == 20 and found["arms"]["a"]["mean"] == pytest.approx(per_document.mean())
    assert bootstrap_p(a, clusters) == pytest.approx(paired_t_p(per_document, np.zeros(20)), abs=0.03)


def test_items_that_a_metric_does_not_count_are_left_out():
    clusters = ("d0", "d0", "d1", "d2")
    values = {
        "a": {0: Measured({"x": [1.0, None, 3.0, 5.0]}, clusters=clusters)},
        "b": {0: Measured({"x": [0.0, None, 1.0, None]}, clusters=clusters)},
    }
    [found] = judged([claim(unit="query")], values)
    assert found["contrast"]["n"] == 2 and found["contrast"]["mean_diff"] == pytest.approx(1.5)
    assert found["arms"]["a"]["mean"] == pytest.approx(2.0)
    assert mean([1.0, None, 2.0]) == pytest.approx(1.5) and mean([None]) is None and mean(3.0) == pytest.approx(3.0) and mean(None) is None
