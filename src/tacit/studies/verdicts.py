"""From values over seeds, or over items, to a verdict on each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tacit.core.statistics import Interval, bootstrap, holm, paired_t, paired_t_p, sign_flip
from tacit.studies.study import Claim, Measured

LEVEL = 0.05
Verdict = Literal["supported", "refuted", "inconclusive"]


class Contrast(NamedTuple):
    """mean(a - b) with its 95 % interval; `p` enters Holm's correction; `p_sign_flip` is exact for few pairs, None for items in clusters."""

    interval: Interval
    p: float
    p_sign_flip: float | None
    n: int


def contrast(a: Sequence[float], b: Sequence[float], clusters: Sequence[str] = ()) -> Contrast | None:
    """The difference of paired values: Student's interval and p over seeds, a clustered bootstrap over items. None without a pair.

    The p that is corrected is Student's, since the sign-flip p of five pairs cannot fall below 0.0625; it is told beside it.
    """
    if not a:
        return None
    if clusters:
        d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
        return Contrast(bootstrap(d, clusters), bootstrap_p(d, clusters), None, len(set(clusters)))
    return Contrast(paired_t(a, b), paired_t_p(a, b), sign_flip(a, b), len(a))


def bootstrap_p(d: Sequence[float] | np.ndarray, clusters: Sequence[str]) -> float:
    """Two-sided p of "the mean is 0" by resampled signs of whole clusters: sign_flip of the clusters' sums."""
    names = {name: n for n, name in enumerate(dict.fromkeys(clusters))}
    sums = np.bincount([names[name] for name in clusters], weights=np.asarray(d, np.float64))
    return sign_flip(sums, np.zeros_like(sums), samples=20_000)


def judge(claim: Claim, found: Contrast | None, p_adjusted: float) -> Verdict:
    """Supported, or refuted, when the interval clears the margin on one side; a difference needs its corrected p below 5 % as well.

    "a > b": supported when the interval lies above the margin, refuted when below it. "a = b": supported when the interval lies within the
    margin on both sides, refuted when it lies beyond it on one.
    """
    if found is None or found.n < 2:
        return "inconclusive"
    _, low, high = found.interval
    if claim.expected == "a = b":
        within, beyond = -claim.margin <= low and high <= claim.margin, low > claim.margin or high < -claim.margin
        return "supported" if within else "refuted" if beyond and p_adjusted < LEVEL else "inconclusive"
    if claim.expected == "a < b":
        low, high = -high, -low
    if low > claim.margin and p_adjusted < LEVEL:
        return "supported"
    contradicted = high < 0 and p_adjusted < LEVEL  # the other way round; or at least less than the margin asks for
    return "refuted" if contradicted or (claim.margin > 0 and high < claim.margin) else "inconclusive"


def judged(claims: Sequence[Claim], values: Mapping[str, Mapping[int, Measured]]) -> list[dict[str, Any]]:
    """The claims as result.json has them. `values`: arm -> seed -> what was measured."""
    paired = [pairs(claim, values) for claim in claims]
    contrasts = [contrast(a, b, clusters) for _, a, b, clusters in paired]
    adjusted = holm([1.0 if found is None else found.p for found in contrasts])
    return [told(*parts, values) for parts in zip(claims, paired, contrasts, adjusted, strict=True)]


Pairs = tuple[list[int], list[float], list[float], list[str]]


def pairs(claim: Claim, values: Mapping[str, Mapping[int, Measured]]) -> Pairs:
    """Seeds that both arms have, the values of `a` and of `b`, and the cluster of each value where the unit is not the seed."""
    first, second = values.get(claim.a, {}), values.get(claim.b, {})
    seeds = [seed for seed in first if seed in second and claim.metric in first[seed].numbers and claim.metric in second[seed].numbers]
    a, b, clusters = list[float](), list[float](), list[str]()
    for seed in seeds:
        x, y = (one if isinstance(one := found[seed].numbers[claim.metric], list) else [one] for found in (first, second))
        counted = [n for n, (u, v) in enumerate(zip(x, y, strict=True)) if u is not None and v is not None]
        a += [value for n in counted if (value := x[n]) is not None]
        b += [value for n in counted if (value := y[n]) is not None]
        if claim.unit != "seed":
            assert first[seed].clusters == second[seed].clusters, "two arms were measured on different items"
            clusters += [first[seed].clusters[n] for n in counted]
    return seeds, a, b, clusters


def means(metric: str, arms: Sequence[str], values: Mapping[str, Mapping[int, Measured]]) -> dict[str, float]:
    """By arm the mean over seeds of a metric that is one number a seed; of arms that have it."""
    there = {arm: [x for m in values.get(arm, {}).values() if isinstance(x := m.numbers.get(metric), float | int)] for arm in arms}
    return {arm: float(np.mean(found)) for arm, found in there.items() if found}


def told(claim: Claim, paired: Pairs, found: Contrast | None, p_adjusted: float, values: Mapping[str, Mapping[int, Measured]]) -> dict[str, Any]:
    seeds, a, b, _ = paired
    outcome: dict[str, Any] = {"a": claim.a, "b": claim.b, "margin": claim.margin, "n": 0 if found is None else found.n}
    if found is not None:
        outcome |= {"mean_diff": found.interval.mean, "ci95": [found.interval.low, found.interval.high], "p": found.p, "p_holm": p_adjusted}
        outcome |= {"p_sign_flip": found.p_sign_flip}
    beside = {metric: there for metric in claim.beside if (there := means(metric, (claim.a, claim.b), values))}
    one = claim.unit == "seed"
    arms = {name: {"values": x} if one else {"mean": float(np.mean(x)) if x else None} for name, x in ((claim.a, a), (claim.b, b))}
    return {
        "id": claim.id,
        "statement": claim.statement,
        "metric": claim.metric,
        "higher_is_better": claim.higher_is_better,
        "unit": claim.unit,
        "seeds": seeds,
        "arms": arms,
        "contrast": outcome,
        "expected": claim.expected,
        "verdict": judge(claim, found, p_adjusted),
    } | ({"beside": beside} if beside else {})
