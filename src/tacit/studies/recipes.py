"""An arm that is a recipe: `tacit.job` runs it, its evaluations are what was measured. Most arms are of this kind."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tacit.config import KINDS, ModelConfig, RLConfig, SFTConfig
from tacit.core.policy import load_policy
from tacit.core.rundir import JsonLines
from tacit.generation.decoders import decoder_for
from tacit.generation.sampler import Sampler
from tacit.job import run
from tacit.rewards.base import load_reward
from tacit.rewards.evaluation import evaluate
from tacit.studies.study import Arm, Measured
from tacit.tasks.base import resolve_task

CURVES = ("eval/pass@1", "reward/mean", "health/entropy", "length/mean")
GREEDY_SEED = 2**31  # of no consequence for greedy completions, but a sampler wants one


def measure_recipe(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    """Trains what `arm.settings` describe and evaluates it, sampled and greedy; goes on where an earlier attempt in `folder` was stopped.

    Numbers: pass@1 before and after, greedy accuracy after, the best pass@1 seen on the way, length, and what health metrics say.
    """
    config = configured(arm.settings, seed, folder, start)
    result = run(config, resume=(folder / "config.yaml").exists()).result
    metrics = list(JsonLines(folder / "metrics.jsonl").records())
    curves = {name: curve(metrics, name) for name in CURVES if any(name in line for line in metrics)}
    seen = [value for value in curves["eval/pass@1"][1] if value is not None]
    numbers = {
        "before": result["before"]["mean"],
        "pass@1": result["after"]["mean"],
        "greedy": greedy(config, folder),
        "best": max(seen),
        "length": curves["length/mean"][1][-1] if "length/mean" in curves else math.nan,
        "unscored": float(result["unscored"]),
    }
    shutil.rmtree(folder / "checkpoints")  # what comes after starts from `policy`
    return Measured({name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}, curves)


def configured(settings: Mapping[str, Any], seed: int, folder: Path, start: Path | None) -> RLConfig | SFTConfig:
    whole = {"seed": seed, "output": str(folder), **settings}
    if start is not None:
        whole["init"] = str(start)
    return KINDS[settings["kind"]].model_validate(whole)


def greedy(config: RLConfig | SFTConfig, folder: Path) -> float:
    """Greedy accuracy of the trained policy on the held-out prompts: a gain that is only there in sampling is sharpening."""
    task = resolve_task(config.task)
    policy = load_policy(ModelConfig(), folder=folder / "policy")
    sampler = Sampler(decoder_for(policy), policy, max_new_tokens=config.completion_limit)
    found = evaluate(sampler, task.heldout(config.evaluation.prompts), load_reward(config.reward, task), temperature=0.0, seed=GREEDY_SEED)
    return found.interval().mean


def curve(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float | None]]:
    """Steps and values of a metric, where it was logged; at a step that was logged twice, the later value."""
    points = {line["step"]: line[name] for line in metrics if name in line}
    return list(points), list(points.values())
