"""The recipes with the paper's settings: each is a dry run of a tiny model of the same architecture, and says what the paper says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tacit.config import RLConfig, load
from tacit.job import run

pytestmark = pytest.mark.usefixtures("qwen3_on_math")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BASES = ("grpo", "gspo", "dapo")
HERE = ["model.path=model", "runtime.device=cpu", "runtime.distributed=ddp", "runtime.precision=fp32"]


def recipe(base: str, *overrides: str) -> RLConfig:
    found = load(RECIPES / f"pipo_qwen3_4b_{base}.yaml", overrides)
    assert isinstance(found, RLConfig)
    return found


@pytest.mark.parametrize("base", BASES)
def test_a_dry_run_takes_a_step(base):
    outcome = run(recipe(base, *HERE, "reward=mine.py:score", "evaluation.prompts=4"), dry_run=True)
    metrics = outcome.result["metrics"]
    assert outcome.folder is None and "pipo/mean" in metrics and metrics["health/unscored"] == 0
    assert ("loss/kl" in metrics) == (base != "gspo") or metrics["health/constant_groups"] == 1


def test_a_replay_happens_where_the_window_is_full():
    small = ["steps=4", "sampling.prompts=2", "sampling.group_size=4", "sampling.max_new_tokens=4", "evaluation.prompts=2", "reward=mine.py:score"]
    pipo = "components=[{name: pipo, options: {window: 2, constant: 0.4}}]"
    run(recipe("dapo", *HERE, *small, pipo, "evaluation.every=0"))
    lines = [json.loads(line) for line in Path("runs/pipo-qwen3-4b-dapo/metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("pipo/extra_steps", 0) for line in lines) >= 1


@pytest.mark.parametrize("base", BASES)
def test_the_settings_are_the_paper_s(base):
    config = recipe(base)
    algorithm, sampling = config.algorithm, config.sampling
    assert (sampling.prompts, sampling.group_size, sampling.max_new_tokens) == (128, 8, 4096)
    assert algorithm.minibatch_rows == 64 * 8 and config.optimiser.lr == 1e-6
    clips = {"grpo": (0.2, 0.2), "gspo": (3e-4, 4e-4), "dapo": (0.2, 0.28)}[base]
    assert (algorithm.clip_low, algorithm.clip_high) == clips
    assert sampling.temperature == (0.7 if base == "grpo" else 1.0) and algorithm.kl.coefficient == (0 if base == "gspo" else 0.001)
    assert algorithm.filter.drop_constant == (base == "dapo")
    (pipo,) = config.components
    assert pipo.name == "pipo" and pipo.options == {"window": 8, "lam": 0.1}
