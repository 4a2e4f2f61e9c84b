"""Health: findings against the trainer's own thresholds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tacit.report.health import excess, expected, findings, not_recorded, thresholds
from tacit.report.runs import Run


def run(**metrics: list[float | None]) -> Run:
    columns = {key.replace("__", "/"): column for key, column in metrics.items()}
    return Run(Path("r"), "r", steps=[0, 10, 20, 30], metrics=columns)


def test_a_metric_beyond_its_threshold_comes_first_and_says_when_and_what_to_do() -> None:
    first, second = findings(run(health__logp_gap=[1e-6, 2e-6, None, 1e-6], health__truncated=[0.4, None, 0.5, 0.1]))
    assert (first.metric, first.last, first.worst, first.expected) == ("health/truncated", 0.1, 0.5, "≤ 0.3")
    assert (first.beyond, first.steps, first.latest) == (2, 3, 20)
    assert "sampling.max_new_tokens" in first.advice
    assert (second.metric, second.beyond, second.latest, second.worst) == ("health/logp_gap", 0, None, 2e-6)


def test_the_worst_entropy_is_the_lowest() -> None:
    [found] = findings(run(health__entropy=[0.5, 0.2, 0.001, 0.3]))
    assert (found.worst, found.beyond, found.expected) == (0.001, 1, "≥ 0.005")


def test_other_agents_are_watched_too() -> None:
    found = findings(run(agent1__health__truncated=[0.0, 0.0, 0.0, 0.9], agent1__cross__health__clip_fraction=[0.0] * 4))
    assert [f.name for f in found] == ["truncated completions (agent1)", "clipped tokens (agent1/cross)"]


def test_nothing_is_found_where_nothing_is_watched() -> None:
    assert findings(run(reward__mean=[1.0] * 4)) == []
    assert len(not_recorded([run()])) == len(thresholds())
    assert "entropy" not in not_recorded([run(health__entropy=[1.0] * 4)])


@pytest.mark.parametrize(("low", "high", "text"), [(0, 0.01, "≤ 0.01"), (0.5, math.inf, "≥ 0.5"), (0, 0, "0"), (0.5, 1.001, "0.5 – 1.001")])
def test_thresholds_read_like_bounds(low: float, high: float, text: str) -> None:
    assert expected(low, high) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "far"), [(0.0, 0.0, 0.3, -0.3), (0.5, 0.0, 0.3, 0.2), (0.4, 0.5, 1.0, 0.1), (2.0, 0.5, math.inf, -1.5)]
)
def test_excess_is_positive_only_beyond(value: float, low: float, high: float, far: float) -> None:
    assert excess(value, low, high) == pytest.approx(far)
