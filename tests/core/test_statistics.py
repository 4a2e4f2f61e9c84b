from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tacit.core import statistics
from tacit.core.statistics import Interval, bootstrap, holm, paired_bootstrap, paired_t, paired_t_p, sign_flip, spearman, wilson


def test_mean_interval_equals_the_analytic_one():
    x = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = bootstrap(x, samples=20_000)
    half = 1.959964 * x.std() / np.sqrt(len(x))  # the bootstrap's variance is the biased one
    assert found.mean == pytest.approx(x.mean(), abs=1e-12)
    assert found.low == pytest.approx(x.mean() - half, abs=0.03 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.03 * half)


def test_equals_scipy():
    x = np.random.default_rng(1).exponential(size=60)
    reference = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)).confidence_interval
    found = bootstrap(x, samples=20_000)
    assert found.low == pytest.approx(reference.low, abs=0.01) and found.high == pytest.approx(reference.high, abs=0.01)


def test_resampled_means_of_two_values_are_known():
    """Two values give the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    means = statistics._resampled_means(np.array([0.0, 1.0]), np.ones(2), 40_000, np.random.default_rng(0))
    assert [float((means == m).mean()) for m in (0.0, 0.5, 1.0)] == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_clusters_widen_the_interval_as_they_should():
    """20 prompts, 30 identical values each: the interval must be that of 20 values, not of 600."""
    per_prompt = np.random.default_rng(3).normal(size=20)
    values, names = np.repeat(per_prompt, 30), [f"p{i}" for i in range(20) for _ in range(30)]
    clustered, alone, naive = bootstrap(values, names), bootstrap(per_prompt), bootstrap(values)
    assert clustered == pytest.approx(alone, abs=1e-12)  # the same draws
    assert clustered.high - clustered.low > 4 * (naive.high - naive.low)


def test_unequal_clusters_are_weighted_by_size():
    """Clusters {1, 1, 1} and {0}: the mean is 3/4, and only 0, 3/4 and 1 can be drawn."""
    assert bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"]) == Interval(0.75, 0.0, 1.0)
    sums, counts = statistics._per_cluster(np.array([1.0, 0, 1, 1]), ["a", "b", "a", "a"])
    assert set(statistics._resampled_means(sums, counts, 100, np.random.default_rng(0))) == {0.0, 0.75, 1.0}


def test_pairing_removes_what_items_share():
    rng = np.random.default_rng(4)
    difficulty = rng.normal(0, 10, 200)
    b = difficulty + rng.normal(0, 0.1, 200)
    a = difficulty + 0.5 + rng.normal(0, 0.1, 200)
    found = paired_bootstrap(a, b)
    assert found.low > 0.4 and found.high < 0.6 and found.mean == pytest.approx((a - b).mean())
    assert paired_bootstrap(b, a) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-3)


def test_coverage():
    """Of 300 intervals of 80 values, a share of .945 hold the true mean, within three standard errors; percentile ones are a little narrow."""
    rng = np.random.default_rng(5)
    intervals = [bootstrap(rng.exponential(size=80), samples=500, seed=i) for i in range(300)]
    assert 0.905 <= np.mean([i.low <= 1.0 <= i.high for i in intervals]) <= 0.985


def test_seed_and_block_size(monkeypatch):
    x = np.random.default_rng(6).normal(size=50)
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1) != bootstrap(x, seed=2)
    whole = bootstrap(x, samples=999)
    monkeypatch.setattr(statistics, "BLOCK", 70)  # one row at a time
    assert bootstrap(x, samples=999) == whole


def test_level():
    x = np.random.default_rng(7).normal(size=100)
    narrow, wide = bootstrap(x, level=0.5), bootstrap(x, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (431, 2157), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(successes, trials, level):
    reference = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert wilson(successes, trials, level) == pytest.approx((successes / trials, reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "at least one value"),
        (lambda: bootstrap([[1.0]]), r"shape \(1, 1\)"),
        (lambda: bootstrap([1.0, float("nan")]), "1 of 2 values are not finite"),
        (lambda: bootstrap([1.0], ["a", "b"]), "1 values and 2 cluster names"),
        (lambda: bootstrap([1.0], level=95), "not at 95"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "two values per item"),
        (lambda: wilson(0, 0), "0 of 0"),
        (lambda: wilson(3, 2), "3 of 2"),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("case", range(200))
def test_few_pairs_equal_scipy(case):
    rng = np.random.default_rng(case)
    n = int(rng.integers(2, 13))
    a, b = rng.normal(rng.normal(), 1.0, n), rng.normal(0.0, rng.uniform(0.2, 2.0), n)
    theirs = stats.ttest_rel(a, b)
    bounds = theirs.confidence_interval(0.95)
    assert paired_t_p(a, b) == pytest.approx(theirs.pvalue, rel=1e-9)
    assert paired_t(a, b) == pytest.approx((np.mean(a - b), bounds.low, bounds.high), rel=1e-9)
    flips = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=10**5, vectorized=True
    )
    assert sign_flip(a, b) == pytest.approx(flips.pvalue, abs=1e-12)
    p = rng.uniform(0, 0.2, int(rng.integers(1, 9)))
    assert holm(p.tolist()) == pytest.approx(holm_by_hand(p), rel=1e-12)


def holm_by_hand(p):
    """The adjusted p of a hypothesis is the largest (m - rank) p among those at most as large."""
    return [min(1.0, max((p >= other).sum() * other for other in p if other <= one)) for one in p]


def test_sign_flip_of_many_pairs_is_close_to_the_exact_one():
    rng = np.random.default_rng(1)
    a = rng.normal(0.4, 1.0, 30)
    assert sign_flip(a, np.zeros(30)) == pytest.approx(paired_t_p(a, np.zeros(30)), abs=0.01)


def test_pairs_without_spread():
    assert paired_t([1.0], [0.5]) == (0.5, -np.inf, np.inf) and paired_t_p([1.0], [0.5]) == 1.0
    assert paired_t_p([1.0, 2.0], [1.0, 2.0]) == 1.0 and paired_t_p([1.0, 2.0], [0.5, 1.5]) == 0.0
    assert sign_flip([1.0] * 5, [0.0] * 5) == 0.0625  # the least that five pairs can give
    with pytest.raises(ValueError, match="two values per item"):
        paired_t([1.0], [1.0, 2.0])


def test_spearman_equals_scipy_with_ties():
    rng = np.random.default_rng(8)
    a, b = rng.integers(5, size=60), rng.normal(size=60)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1) and np.isnan(spearman([1, 1], [2, 3]))
