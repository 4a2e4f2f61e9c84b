"""Fabricated run folders: what a report reads, without a run."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONFIG = """\
kind: {kind}
seed: 0
output: {output}
model:
  tiny:
    family: qwen2
    hidden: 64
    layers: 4
task:
  name: sorting
steps: {steps}
optimiser:
  lr: {lr}
"""
ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "Linux x86_64, 2 cores",
    "commit": "0123abc",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "tacit": "0.1.0"},
}


def jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def rl_metrics(steps: int, seed: int = 0, lift: float = 0.35) -> list[dict[str, Any]]:
    """Curves that look like those of a run: a noisy rising reward, shrinking entropy, an evaluation now and then."""
    chance = random.Random(seed)
    records = []
    for step in range(steps):
        done = step / max(1, steps - 1)
        reward = 0.45 + lift * (1 - math.exp(-3 * done)) + chance.gauss(0, 0.03)
        times = {"sample": 0.21 + chance.random() * 0.05, "annotate": 0.0, "score": 0.02, "verify": 0.001, "credit": 0.004, "update": 0.16}
        record = {
            "step": step,
            "reward/mean": reward,
            "reward/std": 0.45,
            "reward/exact": reward - 0.01,
            "length/mean": 9 - 2 * done + chance.gauss(0, 0.2),
            "length/max": 16.0,
            "health/entropy": 0.3 * math.exp(-2 * done) + 0.05 + chance.random() * 0.02,
            "health/logp_gap": 2e-6 * (1 + chance.random()),
            "health/constant_groups": 0.2 + 0.4 * done,
            "health/truncated": 0.01 if step % 40 else 0.35,
            "health/unscored": 0.0,
            "health/nonfinite": 0.0,
            "health/clip_fraction": 0.01 + 0.02 * done,
            "loss/policy": chance.gauss(0, 0.01),
            "loss/kl": 0.02 * done,
            "optimiser/grad_norm": 0.4 + chance.random() * 0.3,
            "optimiser/lr": 2e-4 * min(1, (step + 1) / 10),
            "data/kept": 512.0,
            "throughput/tokens_per_second": 12000 + chance.random() * 900,
            "throughput/sampled_tokens_per_second": 22000 + chance.random() * 900,
            **{f"time/{stage}": seconds for stage, seconds in times.items()},
            "time/step": sum(times.values()),
        }
        if step % 20 == 0 or step == steps - 1:
            mean = 0.44 + lift * (1 - math.exp(-3 * done)) + chance.gauss(0, 0.01)
            record |= {"eval/pass@1": mean, "eval/pass@1_low": mean - 0.03, "eval/pass@1_high": mean + 0.03, "eval/length": 8.0}
        records.append(record)
    return records


def sample(step: int, group: int, member: int, right: bool | None = True) -> dict[str, Any]:
    digits = "".join(str((7 * group + 3 * n) % 10) for n in range(7))
    return {
        "step": step,
        "group": group,
        "role": "train",
        "prompt": f"{digits}=",
        "answer": "".join(sorted(digits)),
        "completion": "".join(sorted(digits)) if right else digits,
        "reward": None if right is None else float(right),
        "parts": {} if right is None else {"exact": float(right), "format": 1.0},
        "advantage": None if right is None else 0.97 if right else -1.03,
        "failure": "the verifier timed out after 2 s" if right is None else "",
        "finished": member % 5 != 4,
    }


def rl_samples(steps: int, groups: int = 2, members: int = 8) -> list[dict[str, Any]]:
    pattern = [True, False, True, True, False, True, None, True]
    return [
        sample(step, step * groups + group, member, pattern[(step + group + member) % 8])
        for step in range(0, steps, 10)
        for group in range(groups)
        for member in range(members)
    ]


def rl_result(before: float = 0.446, after: float = 0.772) -> dict[str, Any]:
    gain = after - before
    return {
        "task": "sorting",
        "metric": "held-out sampled pass@1",
        "before": {"mean": before, "low": before - 0.03, "high": before + 0.03},
        "after": {"mean": after, "low": after - 0.025, "high": after + 0.024},
        "gain": {"mean": gain, "low": gain - 0.034, "high": gain + 0.033},
        "baselines": {"lookup": 0.12, "majority": 0.031},
        "prompts": 512,
        "samples": 4,
        "examples": [
            {"prompt": "5281=", "completion": "1258", "answer": "1258", "reward": 1.0, "parts": {"exact": 1.0}, "failure": "", "finished": True},
            {"prompt": "90417=", "completion": "04179", "answer": "01479", "reward": 0.0, "parts": {"exact": 0.0}, "failure": "", "finished": True},
        ],
        "environment": ENVIRONMENT,
        "seconds": 134.2,
    }


def sft_metrics(steps: int) -> list[dict[str, Any]]:
    chance = random.Random(1)
    return [
        {
            "step": step,
            "loss/train": 2.2 * math.exp(-step / 60) + 0.2 + chance.random() * 0.05,
            "optimiser/lr": 2e-3,
            "optimiser/grad_norm": 1.0,
            "time/forward": 0.03,
            "time/step": 0.05,
        }
        | ({"eval/loss": 2.2 * math.exp(-step / 60) + 0.25} if step % 25 == 0 else {})
        for step in range(steps)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run("a", metrics=[...], samples=[...], result={...}): a run folder; None leaves a file out."""

    def make(name: str = "run", *, config: str | None = "", metrics: Any = (), samples: Any = (), result: Any = None, lr: float = 2e-4) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if config is not None:
            (folder / "config.yaml").write_text(config or CONFIG.format(kind="rl", output=f"runs/{name}", steps=200, lr=lr))
        if metrics is not None:
            jsonl(folder / "metrics.jsonl", metrics)
        if samples is not None:
            jsonl(folder / "samples.jsonl", samples)
        if result is not None:
            (folder / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
        return folder

    return make


@pytest.fixture
def rl_run(make_run: Callable[..., Path]) -> Path:
    return make_run("sorting-grpo", metrics=rl_metrics(200), samples=rl_samples(200), result=rl_result())


@pytest.fixture
def reports() -> ModuleType:
    """The functions above, for tests that put their own runs together."""
    return sys.modules[__name__]
