"""PIPO's formulas, and the claims of its specification under their numbers (section 6): 2-4 and 6-10 here, 1, 5 and 11 in test_pipo_steps.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tacit.rl import advantages
from tacit.rl.losses import clipped_ratio, gspo
from tacit.rl.pipo import PIPO, attribution, improvement, rectified

K, G, LAM = 8, 8, 0.1
means = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=K + 1, max_size=K + 1)


def test_xi_by_hand():
    """Window 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14."""
    assert improvement(5.0, [1.0, 2.0, 3.0, 6.0]) == pytest.approx(2 / math.sqrt(14 / 3), abs=1e-12)
    assert improvement(5.0, [1.0, 2.0, 3.0, 6.0], ddof=0) == pytest.approx(2 / math.sqrt(14 / 4), abs=1e-12)
    assert improvement(0.75, [0.5] * 8) == 0.25  # a flat window has a spread of 1
    assert improvement(0.75, [0.5, 0.5 + 1e-9]) == pytest.approx(0.25, abs=1e-8)
    with pytest.raises(ValueError, match="ξ needs a window of at least 2 batch means, not 1"):
        improvement(0.5, [0.5])


@given(means, st.floats(0.1, 10), st.floats(-5, 5))
def test_2_xi_does_not_depend_on_shift_and_scale(values, a, b):
    history, mean = values[:-1], values[-1]
    if np.std(history) < 1e-3:
        return
    xi = improvement(mean, history)
    moved = [a * x + b for x in history]
    assert improvement(a * mean + b, moved) == pytest.approx(xi, rel=1e-6, abs=1e-6)
    assert improvement(-a * mean + b, [-a * x + b for x in history]) == pytest.approx(-xi, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("slope", [1e-3, 0.5, 40.0])
def test_2_a_linear_trend_gives_a_constant_whatever_its_slope(slope):
    trend = [0.3 + slope * t for t in range(K + 1)]
    assert improvement(trend[K], trend[:K]) == pytest.approx(math.sqrt(3 * (K + 1) / K), abs=1e-6)
    assert improvement(trend[K], trend[:K]) == pytest.approx(1.8371, abs=5e-5)
    assert improvement(trend[K], trend[:K], ddof=0) == pytest.approx(1.9640, abs=5e-5)
    assert improvement(-trend[K], [-x for x in trend[:K]]) == pytest.approx(-1.8371, abs=5e-5)


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 1), st.floats(0, 10))
def test_3_the_rectifier_is_monotone_and_homogeneous(x, y, lam, scale):
    low, high = sorted((x, y))
    assert rectified(low, lam) <= rectified(high, lam)
    assert rectified(scale * x, lam) == pytest.approx(scale * rectified(x, lam), abs=1e-9)
    assert rectified(x, 0.0) == max(x, 0) and rectified(x, 1.0) == x
    assert rectified(0.0, lam) == 0 and abs(rectified(-1e-12, lam)) <= 1e-12


def test_attribution_by_hand():
    """Group 0: advantages 1, -2, 3 and one that was not scored; group 1: all 0; group 2: alone. 3 members, 6 in all."""
    a = torch.tensor([1.0, -2, 3, 99, 0, 0, 7], dtype=torch.float64)
    groups, counted = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([True, True, True, False, True, True, True])
    assert attribution(a, groups, counted).tolist() == [0.5, -1.0, 1.5, 0, 0, 0, 1.0]


@given(st.lists(st.floats(-3, 3), min_size=2 * G, max_size=2 * G), st.floats(0.01, 100))
def test_4_attributions_have_a_fixed_size_and_no_scale(values, scale):
    a, groups = torch.tensor(values, dtype=torch.float64), torch.arange(2 * G) // G
    a = a.where(a.abs() > 1e-3, 0)
    found = attribution(a, groups, torch.ones(2 * G, dtype=torch.bool))
    for group in (0, 1):
        whole = float(found[groups == group].abs().sum())
        assert whole == pytest.approx(G if a[groups == group].any() else 0, abs=1e-9)
    everything = torch.ones(2 * G, dtype=torch.bool)
    torch.testing.assert_close(attribution(scale * a, groups, everything), found)
    torch.testing.assert_close(attribution(-scale * a, groups, everything), -found)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
@pytest.mark.parametrize("right", range(G + 1))
def test_4_binary_rewards_have_a_closed_form_whatever_the_estimator(estimator, right):
    rewards = (torch.arange(G) < right).double()
    other = torch.tensor([1.0, 0.0], dtype=torch.float64)  # a second group, so that a batch statistic has something to say
    rewards, groups, scored = torch.cat([rewards, other]), torch.tensor([0] * G + [1] * 2), torch.ones(G + 2, dtype=torch.bool)
    found = attribution(advantages.ADVANTAGES[estimator](rewards, groups, scored), groups, scored)[:G]
    if right in (0, G):
        assert not found.any()
    else:
        expected = [G / (2 * right)] * right + [-G / (2 * (G - right))] * (G - right)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
        assert float(found.sum()) == pytest.approx(0, abs=1e-9)


# --- a bandit whose performance can be computed ---


def performance(theta: Tensor, rewards: Tensor) -> Tensor:
    return (theta.softmax(-1) * rewards).sum()


@pytest.mark.parametrize("seed", range(20))
def test_6_and_7_the_replay_climbs_when_its_sign_is_right_and_displacements_add_up(seed):
    """A step u, judged by its true gain, then a replay of u times φ: performance rises for both signs of the gain, and falls for the wrong sign."""
    rng = torch.Generator().manual_seed(seed)
    theta, rewards, u = (torch.randn(6, generator=rng, dtype=torch.float64) for _ in range(3))
    small = 1e-5
    first = theta + small * u
    gain = performance(first, rewards) - performance(theta, rewards)
    for phi in (float(gain.sign()), -float(gain.sign())):
        second = first + small * phi * u
        change = performance(second, rewards) - performance(first, rewards)
        assert (change > 0) == (phi * gain > 0)
        torch.testing.assert_close(second - theta, small * (1 + phi) * u, rtol=1e-9, atol=1e-15)  # booster, or brake


def mean_gradient(per_group: dict[tuple[float, ...], Tensor], p: float, conditional: bool) -> float:
    """E[mean_i A_i ∂ log π(y_i)] / ∂J for one prompt whose answer is right with probability p = sigmoid(θ), over every vector of rewards.

    ∂ log π(y_i) = r_i - p and ∂J = p (1 - p).
    """
    total = 0.0
    for rewards, a in per_group.items():
        right = sum(rewards)
        total += p**right * (1 - p) ** (G - right) * sum(float(x) * (r - p) for x, r in zip(a, rewards, strict=True)) / G
    degenerate = p**G + (1 - p) ** G
    return total / (p * (1 - p)) / ((1 - degenerate) if conditional else 1)


ALL = torch.ones(G, dtype=torch.bool)
VECTORS = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product([0.0, 1.0], repeat=G)]
GRPO = {tuple(r.tolist()): advantages.grpo(r, torch.zeros(G, dtype=torch.int64), ALL, eps=0.0, ddof=0) for r in VECTORS}
SHARES = {rewards: attribution(a, torch.zeros(G, dtype=torch.int64), ALL) for rewards, a in GRPO.items()}


@pytest.mark.parametrize(("p", "table"), [(0.5, 1.870), (0.1, 4.087), (0.05, 7.348), (0.01, 33.77)])
def test_8_group_normalisation_distorts_the_gradient_as_the_theorem_says(p, table):
    """Through the code's own advantages, over all 256 outcomes, against the closed form and the published table."""
    degenerate = p**G + (1 - p) ** G
    terms = (math.sqrt(k * (G - k)) * math.comb(G, k) * p**k * (1 - p) ** (G - k) for k in range(1, G))
    eta = sum(terms) / (G * p * (1 - p) * (1 - degenerate))
    assert mean_gradient(GRPO, p, True) == pytest.approx(eta, abs=1e-6)
    assert eta == pytest.approx(table, rel=3e-4)


def test_8_what_nobody_conditions_on_stays_bounded():
    """First caveat: with agreeing groups counted as 0, as every implementation does, the factor only goes from 1.86 to sqrt(G - 1)."""
    assert mean_gradient(GRPO, 0.5, False) == pytest.approx(1.86, abs=6e-3)
    factors = [mean_gradient(GRPO, p, False) for p in (0.5, 0.3, 0.1, 0.01, 1e-4)]
    assert factors == sorted(factors) and factors[-1] == pytest.approx(math.sqrt(G - 1), abs=2e-3)
    assert mean_gradient(GRPO, 0.9, False) == pytest.approx(mean_gradient(GRPO, 0.1, False), abs=1e-9)


@pytest.mark.parametrize("p", [0.5, 0.2, 0.05, 0.001])
def test_8_the_attribution_is_steeper_still(p):
    """Second caveat: 1 / (2 p (1 - p)) where groups differ, and G / 2 at the edge without that condition."""
    degenerate = p**G + (1 - p) ** G
    assert mean_gradient(SHARES, p, True) == pytest.approx(1 / (2 * p * (1 - p)), rel=1e-6)
    assert mean_gradient(SHARES, p, False) == pytest.approx((1 - degenerate) / (2 * p * (1 - p)), rel=1e-6)
    if p == 0.001:
        assert mean_gradient(SHARES, p, False) == pytest.approx(G / 2, rel=5e-3)


def test_9_without_progress_the_gate_still_replays():
    """Batch means without a trend: E[ξ⁺] = 0.476 and E[φ(ξ)] = 0.429; with λ = 1 nothing is left. 200,000 windows."""
    draws = np.random.default_rng(0).normal(0.4, 0.03, size=(200_000, K + 1))
    xi = (draws[:, K] - draws[:, :K].mean(1)) / draws[:, :K].std(1, ddof=1)
    assert xi[:50] == pytest.approx([improvement(row[K], row[:K].tolist()) for row in draws[:50]], abs=1e-12)
    phi = np.array([rectified(x, LAM) for x in xi])
    assert np.maximum(xi, 0).mean() == pytest.approx(0.476, abs=0.01)
    assert phi.mean() == pytest.approx(0.429, abs=0.01)
    assert np.mean([rectified(x, 1.0) for x in xi]) == pytest.approx(0, abs=0.01)
    assert (np.abs(xi) > 3).mean() == pytest.approx(0.026, abs=0.003) and (np.abs(xi) > 5).mean() == pytest.approx(0.002, abs=0.001)


@pytest.mark.parametrize("loss", [clipped_ratio, gspo])
def test_10_clip_table(loss):
    """Positive coefficients: no gradient above 1 + ε, so reinforcement limits itself; negative: none below 1 - ε, and in full above."""
    ratios = [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0]
    for sign, silent in ((1.0, {1.21, 2.0}), (-1.0, {0.5, 0.79})):
        logp = torch.tensor([math.log(r) for r in ratios], dtype=torch.float64, requires_grad=True)
        share = torch.full((len(ratios),), sign, dtype=torch.float64)
        rows, mask = torch.arange(len(ratios)), torch.ones(len(ratios), dtype=torch.bool)
        loss(logp, torch.zeros_like(share), share, rows=rows, mask=mask, clip_low=0.2, clip_high=0.2, dual_clip=None).loss.sum().backward()
        assert logp.grad is not None
        for ratio, gradient in zip(ratios, logp.grad.tolist(), strict=True):
            assert gradient == (0 if ratio in silent else pytest.approx(-sign * ratio, abs=1e-9))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="window of PIPO must be at least 2, not 1"):
        PIPO(window=1)
    with pytest.raises(ValueError, match="ddof of PIPO must be 0 or 1, not 2"):
        PIPO(ddof=2)
    with pytest.raises(ValueError, match="PIPO needs lam >= 0, every >= 1, probes >= 0 and xi_clip > 0, not -1, 1, 0 and None"):
        PIPO(lam=-1)
    with pytest.raises(ValueError, match="xi of PIPO must be measured, shuffled or flipped, not 'random'"):
        PIPO(xi="random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="target of PIPO must be previous or current, not 'next'"):
        PIPO(target="next")  # pyright: ignore[reportArgumentType]
