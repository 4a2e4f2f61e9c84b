from __future__ import annotations

import math
from statistics import stdev

import pytest
import torch

from tacit.rl.health import batch_metrics, step_metrics
from tacit.rl.step import STAGES, Step


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
