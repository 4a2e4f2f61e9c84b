"""The health of a run: every metric with a threshold, when it was beyond it, and what to do then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tacit.core.thresholds import THRESHOLDS
from tacit.report.runs import Run

NAMES = {
    "health/logp_gap": "|Δ log-prob|, trainer and sampler",
    "health/constant_groups": "groups without signal",
    "health/truncated": "truncated completions",
    "health/unscored": "unscored completions",
    "health/nonfinite": "non-finite log-probs",
    "health/skipped_steps": "skipped optimiser steps",
    "health/clip_fraction": "clipped tokens",
    "health/entropy": "entropy",
    "health/effective_sample_size": "effective sample size",
}


class Finding(NamedTuple):
    """One metric of one run against its threshold; `beyond` counts the steps outside it."""

    metric: str
    name: str
    last: float
    worst: float
    expected: str
    beyond: int
    steps: int
    latest: int | None  # step at which it was last beyond
    advice: str


def thresholds() -> dict[str, tuple[float, float]]:
    return {name: (threshold.low, threshold.high) for name, threshold in THRESHOLDS.items()}


def findings(run: Run) -> list[Finding]:
    """What there is to say of the metrics that the run recorded, those that need attention first."""
    found = []
    for metric, column in run.metrics.items():
        base = metric[max(0, metric.find("health/")) :]  # without the agent and the update it belongs to
        if base not in THRESHOLDS:
            continue
        limit = THRESHOLDS[base]
        values = [(step, value) for step, value in zip(run.steps, column, strict=True) if value is not None]
        beyond = [step for step, value in values if not limit.low <= value <= limit.high]
        worst = max((value for _, value in values), key=lambda value: excess(value, limit.low, limit.high))
        name = NAMES.get(base, base) + ("" if base == metric else f" ({metric.removesuffix('/' + base)})")
        latest = beyond[-1] if beyond else None
        found.append(Finding(metric, name, values[-1][1], worst, expected(limit.low, limit.high), len(beyond), len(values), latest, limit.advice))
    order = list(THRESHOLDS)
    return sorted(found, key=lambda f: (not f.beyond, order.index(next(name for name in order if f.metric.endswith(name)))))


def excess(value: float, low: float, high: float) -> float:
    """How far beyond its bounds a value is, negative inside. A lower bound of 0 is where shares and counts end, not a danger."""
    return max(low - value if low > 0 else -math.inf, value - high)


def not_recorded(runs: Sequence[Run]) -> list[str]:
    """Names of watched metrics that no run has."""
    return [NAMES.get(metric, metric) for metric in thresholds() if not any(metric in run.metrics for run in runs)]


def expected(low: float, high: float) -> str:
    """'≤ 0.01', '≥ 0.5', '0'."""
    if low == high:
        return f"{low:g}"
    if math.isinf(high):
        return f"≥ {low:g}"
    return f"≤ {high:g}" if low == 0 else f"{low:g} – {high:g}"
