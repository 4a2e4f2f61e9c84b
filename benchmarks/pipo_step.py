"""What PIPO and the guard cost a step: a small policy on sorting, one thread, the base, PIPO and the guarded base in turns.

Prints one JSON object. `seconds`: medians of a step and of its update; PIPO replays at every step. The bar: a step of PIPO takes no longer than a
step of the base and one more of its updates. `guard_seconds`: mean step, snapshots and probes (256 every 5 steps) spread over all steps.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from tacit.config import AlgorithmConfig, ModelConfig, OptimiserConfig, SamplingConfig, TinyConfig
from tacit.core.environment import machine
from tacit.core.policy import load_policy
from tacit.rewards.base import each
from tacit.rl.agent import Agent
from tacit.rl.component import Component
from tacit.rl.pipo import PIPO
from tacit.rl.rollback import Rollback
from tacit.rl.trainer import Trainer
from tacit.tasks.sorting import Sorting

WARM, STEPS, SLACK = 5, 40, 1.05
MODEL = TinyConfig(hidden=64, layers=4, heads=4, mlp=192, context=48)


def trainer_of(*components: Component) -> Trainer:
    policy = load_policy(ModelConfig(tiny=MODEL), alphabet=Sorting.alphabet)
    agent = Agent(
        policy,
        algorithm=AlgorithmConfig(minibatch_rows=128),
        sampling=SamplingConfig(prompts=32, group_size=8, max_new_tokens=12),
        optimiser=OptimiserConfig(lr=1e-9),  # all draw and train on the same
        components=components,
        steps=WARM + STEPS,
    )
    return Trainer([agent], Sorting(), each(lambda prompt, completion: float(len(completion) % 2)))  # every group has something to say


def main() -> dict[str, Any]:
    torch.set_num_threads(1)
    trainers = {"base": trainer_of(), "pipo": trainer_of(PIPO(window=2, constant=0.1)), "guard": trainer_of(Rollback())}
    took: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    for number in range(WARM + STEPS):
        for name, trainer in trainers.items():
            metrics = trainer.step().metrics
            if number >= WARM:
                took[name].append(metrics)
    median = {f"{name} {what}": statistics.median(m[f"time/{what}"] for m in steps) for name, steps in took.items() for what in ("step", "update")}
    allowed = median["base step"] + median["base update"]
    return {
        "benchmark": "pipo_step",
        "seconds": median,
        "guard_seconds": statistics.mean(m["time/step"] for m in took["guard"]),
        "base_seconds": statistics.mean(m["time/step"] for m in took["base"]),
        "ratios": {"base and one more update / PIPO": allowed / median["pipo step"]},
        "holds": median["pipo step"] <= SLACK * allowed,
        "steps": STEPS,
        "environment": machine(),
    }


if __name__ == "__main__":
    found = main()
    print(json.dumps(found, indent=1))
    sys.exit(not found["holds"])
