"""Intervals: how far a mean, a paired difference or a proportion could be from what was measured."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 2**22  # random indices drawn at a time: 32 MB
MOST_EXACT = 16  # pairs up to which every pattern of signs is looked at


class Interval(NamedTuple):
    """A point estimate and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, clusters: Sequence[Hashable] | None = None, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of mean(a - b), where a[i] and b[i] (n,) were measured on the same item. See `bootstrap`."""
    return bootstrap(_differences(a, b), clusters, samples=samples, seed=seed, level=level)


def paired_t(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's interval of mean(a - b), a[i] and b[i] (n,) measured with the same seed: for few pairs, where a bootstrap is too narrow.

    Source: Student (1908). One pair, or pairs that all differ by the same, tell nothing about the spread: the bounds are then infinite, or the mean.
    """
    from scipy.stats import t

    d = _differences(a, b)
    if len(d) < 2:
        return Interval(float(d.mean()), -float("inf"), float("inf"))
    half = float(t.ppf((1 + level) / 2, len(d) - 1)) * float(d.std(ddof=1)) / len(d) ** 0.5
    return Interval(float(d.mean()), float(d.mean()) - half, float(d.mean()) + half)


def paired_t_p(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of "mean(a - b) is 0" by the paired t test; 1 for a single pair or when nothing differs."""
    from scipy.stats import t

    d = _differences(a, b)
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    if len(d) < 2 or (spread == 0 and d[0] == 0):
        return 1.0
    if spread == 0:
        return 0.0
    return float(2 * t.sf(abs(float(d.mean())) / spread * len(d) ** 0.5, len(d) - 1))


def sign_flip(a: ArrayLike, b: ArrayLike, *, samples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of "a and b are exchangeable within pairs": the share of sign patterns of a - b (n,) with a mean as far from 0 as the one seen.

    Exact over all 2^n patterns up to n = 16, else over `samples` random ones and the one seen. It cannot fall below 2^(1 - n): five seeds reach
    0.0625 at best. Source: Fisher, The Design of Experiments (1935), sec. 21.
    """
    d = _differences(a, b)
    n = len(d)
    if n <= MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)).mean())  # sums of the same numbers in another order differ by rounding
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1]), size=(samples, n))
    return float(((np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)).sum() + 1) / (samples + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p values (m,) adjusted so that the chance of any false rejection among them stays below the level. Source: Holm (1979), step-down."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def bootstrap(
    values: ArrayLike, clusters: Sequence[Hashable] | None = None, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of mean(values) (n,), resampling whole clusters: values that share a prompt are not independent.

    `clusters` (n,) names the cluster of each value; by default each is its own. Few clusters give intervals that are too narrow.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13; clusters: Davison & Hinkley (1997), sec. 3.8.
    Raises ValueError when there is nothing to average, or a value is not finite: leave unscored items out on purpose, not by accident.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"an interval needs a list of at least one value, not shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite; leave unscored items out first")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    sums, counts = _per_cluster(x, clusters)
    means = _resampled_means(sums, counts, samples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one of the two does not vary."""
    x, y = _mean_ranks(np.asarray(a, np.float64)), _mean_ranks(np.asarray(b, np.float64))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Interval of a proportion, sound near 0 and 1 and for few trials. Source: Wilson (1927), JASA 22, 209-212."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"a proportion needs 0 <= successes <= trials and at least one trial, not {successes} of {trials}")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    p = successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (p * (1 - p) / trials + z2 / (4 * trials**2))) ** 0.5 / (1 + z2 / trials)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired comparison needs two values per item, these have shapes {first.shape} and {second.shape}")
    return first - second


def _per_cluster(x: NDArray[np.float64], clusters: Sequence[Hashable] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster (m,), in order of first appearance."""
    if clusters is None:
        return x, np.ones_like(x)
    if len(clusters) != x.size:
        raise ValueError(f"there are {x.size} values and {len(clusters)} cluster names; each value needs one")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    return np.bincount(index, weights=x).astype(np.float64), np.bincount(index).astype(np.float64)


def _resampled_means(sums: NDArray[np.float64], counts: NDArray[np.float64], samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means (samples,) of as many clusters drawn with replacement: total over number of values, since clusters differ in size."""
    size = len(sums)
    rows = max(1, BLOCK // size)
    means = []
    for start in range(0, samples, rows):
        picks = rng.integers(size, size=(min(rows, samples - start), size))
        means.append(sums[picks].sum(1) / counts[picks].sum(1))
    return np.concatenate(means)


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
