"""The sequential test of harm: its e-values, its error over whole runs, and what it finds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.rl.harm import STAKES, HarmTest, log_e_values, spent

PROBES, ALPHA = 256, 0.05  # of the study


def test_e_values_by_hand():
    """Three probes fell, one rose, two stayed, one has no verdict: the mean over λ of (1 + λ)^3 (1 - λ)."""
    then = np.array([[1.0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0]])
    now = np.array([0.0, 0, 0, 1, 1, 0, math.nan])
    found = np.exp(log_e_values(now, then))
    assert found[0] == pytest.approx(np.mean((1 + STAKES) ** 3 * (1 - STAKES)), rel=1e-12)
    assert found[1] == pytest.approx(np.mean((1 - STAKES) ** 2), rel=1e-12)
    half = STAKES / 1.5
    with_margin = np.mean((1 + half * 0.5) ** 3 * (1 - half * 1.5) * (1 - half * 0.5) ** 2)
    assert math.exp(log_e_values(now, then, margin=0.5)[0]) == pytest.approx(with_margin, rel=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=4), st.floats(0, 0.5))
def test_without_harm_an_e_value_is_at_most_1_on_average(chances, margin):
    """Over all outcomes of four probes, each as hard as it likes and changed as it likes, the total unchanged: exactly, not by simulation."""
    then, now = np.array(chances).T
    now = np.clip(now + max(0.0, (then - now - margin).mean()), 0, 1)  # lifted until the mean fell by no more than the margin
    if (now - then + margin).sum() < 0:
        return
    expected = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=8):
        x, y = np.array(outcome[:4]), np.array(outcome[4:])
        chance = np.prod(np.where(x > 0, then, 1 - then)) * np.prod(np.where(y > 0, now, 1 - now))
        expected += chance * math.exp(log_e_values(y, x[None], margin)[0])
    assert expected <= 1 + 1e-9


@pytest.mark.parametrize("planned", [1, 20, 1000])
def test_no_more_than_alpha_is_ever_spent(planned):
    total = sum(spent(ALPHA, t, planned) for t in range(1, 200_000))
    assert ALPHA * 0.99 < total <= ALPHA


def runs(count: int, every: int, trend: float, seed: int) -> float:
    """Share of runs of 200 steps without harm in which the test speaks: probes of all difficulties, the hardest case of new luck for each policy."""
    rng, stopped, probings = np.random.default_rng(seed), 0, 200 // every
    for _ in range(count):
        chances, test = rng.beta(0.7, 0.9, PROBES), HarmTest(ALPHA, 0.0, probings)
        for t in range(probings):
            now = np.clip(chances + trend * t / probings, 0, 1)
            if test.harmed((rng.random(PROBES) < now).astype(np.float64)):
                stopped += 1
                break
    return stopped / count


@pytest.mark.parametrize("trend", [0.0, 0.3])
def test_runs_without_harm_are_seldom_stopped(trend):
    assert runs(300, 10, trend, seed=0) <= ALPHA


@pytest.mark.slow
@pytest.mark.parametrize("trend", [0.0, 0.3])
def test_of_1000_runs_without_harm_at_most_alpha_are_stopped(trend):
    assert runs(1000, 5, trend, seed=1) <= ALPHA


def test_single_prompts_may_get_worse_when_others_get_better():
    """Half of the probes fall from 0.8 to 0.2, half rise as much: no harm."""
    rng, stopped = np.random.default_rng(0), 0
    low, high = np.repeat([0.2, 0.8], PROBES // 2), np.repeat([0.8, 0.2], PROBES // 2)
    for _ in range(200):
        test = HarmTest(ALPHA, 0.0, 20)
        stopped += any(test.harmed((rng.random(PROBES) < chances).astype(np.float64)) for chances in [low, high] * 5)
    assert stopped <= 200 * ALPHA


@pytest.mark.parametrize(("fall", "within"), [(0.3, 1), (0.15, 4)])
def test_harm_is_found(fall, within):
    """After ten probings at a mean near 0.44 a fall of 0.3 is found at once, half of it soon: with the same luck, as the probes have it."""
    found, rng = [], np.random.default_rng(0)
    for _ in range(50):
        chances, test, luck = rng.beta(0.7, 0.9, PROBES), HarmTest(ALPHA, 0.0, 20), rng.random(PROBES)
        for t in range(10):
            assert not test.harmed((luck < chances + 0.002 * t).astype(np.float64))
        after = (test.harmed((luck < chances * (1 - fall / chances.mean() * (1 + n / 4))).astype(np.float64)) for n in range(8))
        found.append(next((n for n, harmed in enumerate(after, 1) if harmed), 99))
    assert np.mean(np.array(found) <= within) >= 0.95


def test_a_restart_forgets():
    test = HarmTest(ALPHA, 0.0, 10)
    assert not test.harmed(np.ones(PROBES)) and test.harmed(np.zeros(PROBES)) and test.evidence > 0
    test.restart()
    assert not test.harmed(np.zeros(PROBES)) and test.evidence == -math.inf
