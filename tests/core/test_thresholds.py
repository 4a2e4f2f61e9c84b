from __future__ import annotations

import math

import pytest

from tacit.core.thresholds import THRESHOLDS, alarms

HEALTHY = {
    "health/logp_gap": 1e-6,
    "health/constant_groups": 0.5,
    "health/truncated": 0.1,
    "health/unscored": 0.0,
    "health/nonfinite": 0.0,
    "health/skipped_steps": 0.0,
    "health/clip_fraction": 0.1,
    "health/entropy": 0.5,
    "health/effective_sample_size": 0.9,
}


def test_every_threshold_has_a_healthy_example():
    assert set(HEALTHY) == set(THRESHOLDS)
    assert alarms(HEALTHY) == {}
    assert alarms({name: limit.low for name, limit in THRESHOLDS.items()} | {name: limit.high for name, limit in THRESHOLDS.items()}) == {}
    assert alarms({}) == alarms({"reward/mean": -1e9, "time/health": 1e9}) == {}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("health/logp_gap", 0.2, "health/logp_gap is 0.2, expected at most 0.01: trainer and sampler disagree"),
        ("health/constant_groups", 0.95, "expected at most 0.9: almost no group has both right and wrong answers"),
        ("health/truncated", 0.31, "expected at most 0.3: many completions hit the length limit"),
        ("health/unscored", 0.021, "expected at most 0.02: the reward function failed"),
        ("health/nonfinite", 1.0, "health/nonfinite is 1, expected at most 0: some log-probs are not finite"),
        ("health/skipped_steps", 1.0, "expected at most 0: a gradient was not finite"),
        ("health/clip_fraction", 0.4, "expected at most 0.3: the clip range stops many tokens"),
        ("health/entropy", 0.001, "health/entropy is 0.001, expected at least 0.005: the policy hardly explores"),
        ("health/effective_sample_size", 0.3, "expected at least 0.5: importance weights rest on few tokens"),
        ("health/entropy", math.nan, "health/entropy is nan"),
        ("agent1/health/truncated", 0.5, "agent1/health/truncated is 0.5, expected at most 0.3"),
        ("agent0/replay/health/clip_fraction", 0.5, "agent0/replay/health/clip_fraction is 0.5"),
    ],
)
def test_an_alarm_says_what_is_wrong_and_what_to_look_at(name, value, sentence):
    found = alarms(HEALTHY | {name: value})
    assert list(found) == [name] and sentence in found[name]
