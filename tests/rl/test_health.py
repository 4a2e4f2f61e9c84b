from __future__ import annotations

import math
from statistics import stdev

import pytest
import torch

from tacit.rl.health import THRESHOLDS, alarms, batch_metrics, step_metrics
from tacit.rl.step import STAGES, Step

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


def test_batch_metrics_by_hand(lab):
    """Three groups: 1 and 0; 1 and 1; 1 and unscored. One completion was cut off, one log-prob is missing."""
    batch = lab.batch(
        [([2], [3, 1]), ([2], [3]), ([2], [4, 4, 4]), ([2], [4, 1]), ([2], [5, 1]), ([2], [5, 5])],
        group=[0, 0, 1, 1, 2, 2],
        reward=[1.0, 0, 1, 1, 1, 0],
        scored=[True, True, True, True, True, False],
        finished=[True, True, False, True, True, True],
        tokens={"behaviour_logp": [-1.0, -2, -3, -0.5, -0.5, -0.5, -1, -1, -1, -1.5, -1, math.nan]},
        **{"reward/format": [1.0, 0, math.nan, 1, 1, 1], "reward/never": [math.nan] * 6},
    )
    assert batch_metrics(batch) == pytest.approx(
        {
            "reward/mean": 0.8,
            "reward/std": stdev([1, 0, 1, 1, 1]),
            "length/mean": 2.0,
            "length/max": 3.0,
            "health/constant_groups": 2 / 3,
            "health/truncated": 1 / 6,
            "health/unscored": 1 / 6,
            "health/nonfinite": 1.0,
            "health/entropy": 13 / 11,
            "reward/format": 0.8,
            "reward/never": math.nan,
        },
        nan_ok=True,
    )


def test_the_mean_reward_is_the_verifiers_before_shaping(lab):
    batch = lab.batch([([2], [1])] * 2, reward=[1.0, 0.0]).with_columns(reward=torch.tensor([0.5, -0.5]))
    assert batch_metrics(batch)["reward/mean"] == 0.5


def test_nothing_scored_has_no_mean(lab):
    metrics = batch_metrics(lab.batch([([2], [1])] * 2, scored=[False, False]))
    assert math.isnan(metrics["reward/mean"]) and metrics["reward/std"] == 0.0
    assert (metrics["health/unscored"], metrics["health/constant_groups"]) == (1.0, 1.0)


def test_step_metrics_by_hand(lab):
    """Two agents of one row each, and a greedy row that counts as drawn only."""
    agents = [lab.agent(index=i, optimiser={"lr": lr}) for i, lr in enumerate((0.1, 0.2))]
    step = Step(0, 0)
    step.add(lab.batch([([2], [3, 1]), ([2], [3]), ([2], [1])], agent=[0, 1, 0], role=[0, 0, 1], spent=[5, 1, 4]), torch.tensor([True, False, True]))
    step.times.update({stage: float(i) for i, stage in enumerate(STAGES)})
    metrics = step_metrics(step, agents)
    assert (metrics["length/mean"], metrics["agent1/length/mean"]) == (2.0, 1.0)
    assert (metrics["optimiser/lr"], metrics["agent1/optimiser/lr"]) == (0.1, 0.2)
    assert (metrics["data/drawn"], metrics["data/kept"], metrics["data/rounds"]) == (3, 2, 1)
    assert [metrics[f"time/{stage}"] for stage in STAGES] == list(range(9)) and metrics["time/step"] == 36
    assert metrics["throughput/sampled_tokens_per_second"] == 10 / 1e-9
    assert metrics["throughput/tokens_per_second"] == pytest.approx(10 / 36)
