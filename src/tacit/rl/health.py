"""What a step reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tacit.core.rollouts import Role, RolloutBatch
from tacit.rl.filters import has_signal

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step


def step_metrics(step: Step, agents: Sequence[Agent]) -> dict[str, float]:
    """Metrics of a step over everything drawn for training; the first agent's plainly named, the others' under agentN/."""
    metrics = {}
    for agent in agents:
        place = "" if agent.index == 0 else f"agent{agent.index}/"
        drawn = step.drawn.select((step.drawn.agent == agent.index) & (step.drawn.role == Role.TRAIN))
        metrics |= {place + name: value for name, value in batch_metrics(drawn).items()}
        metrics[place + "optimiser/lr"] = agent.optimiser.param_groups[0]["lr"]
    metrics["data/drawn"] = float(len(step.drawn))
    metrics["data/kept"] = float(step.kept.sum())
    metrics["data/rounds"] = float(step.rounds)
    metrics |= {f"time/{stage}": seconds for stage, seconds in step.times.items()}
    metrics["time/step"] = sum(step.times.values())
    tokens = float(step.drawn.spent.sum())
    metrics["throughput/sampled_tokens_per_second"] = tokens / max(step.times["sample"], 1e-9)
    metrics["throughput/tokens_per_second"] = tokens / max(metrics["time/step"], 1e-9)
    metrics["throughput/scored_per_second"] = len(step.drawn) / max(step.times["score"], 1e-9)
    return metrics


def batch_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Rewards over scored rollouts, lengths, and the health of the groups. The entropy is the sampler's own estimate, -mean log-prob."""
    raw, finite = batch.rows["reward/raw"], batch.behaviour_logp.isfinite()
    groups = len(batch.group.unique())
    with_signal = len(batch.group[has_signal(raw, batch.group, batch.scored)].unique())
    metrics = {
        "reward/mean": float(raw[batch.scored].mean()) if batch.scored.any() else torch.nan,
        "reward/std": float(raw[batch.scored].std()) if batch.scored.sum() > 1 else 0.0,
        "length/mean": float(batch.lengths.double().mean()),
        "length/max": float(batch.lengths.max()),
        "health/constant_groups": 1 - with_signal / groups,
        "health/truncated": float((~batch.finished).double().mean()),
        "health/unscored": float((~batch.scored).double().mean()),
        "health/nonfinite": float((~finite).sum()),
        "health/entropy": -float(batch.behaviour_logp[finite].mean()),
    }
    for name, column in batch.rows.items():
        if name.startswith("reward/") and name != "reward/raw":
            metrics[name] = float(column.nanmean())
    return metrics
