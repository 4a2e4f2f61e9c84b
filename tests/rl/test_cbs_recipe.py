"""The recipe of CBS for Qwen3-1.7B-Base: a dry run on a tiny model of the same architecture, and names that a recipe may use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tacit.config import RLConfig, load
from tacit.job import run

pytestmark = pytest.mark.usefixtures("qwen3_on_math")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
HERE = ["model.path=model", "runtime.device=cpu", "runtime.precision=fp32", "reward=mine.py:score"]


def recipe(*overrides: str) -> RLConfig:
    found = load(RECIPES / "cbs_qwen3_1.7b_math.yaml", overrides)
    assert isinstance(found, RLConfig)
    return found


def test_a_dry_run_takes_a_step():
    outcome = run(recipe(*HERE, "evaluation.prompts=4"), dry_run=True)
    metrics = outcome.result["metrics"]
    assert outcome.folder is None and {"cbs/value", "cbs/entropy", "select/rows"} <= metrics.keys()


def test_its_settings():
    config = recipe()
    assert (config.sampling.prompts, config.sampling.group_size, config.algorithm.loss) == (128, 8, "gspo")
    (cbs,) = config.components
    assert cbs.name == "cbs" and cbs.options["share"] == 0.5
    chosen = config.sampling.prompts * config.sampling.group_size * cbs.options["share"]
    assert config.algorithm.minibatch_rows == chosen / 2, "two optimiser steps a step, as the base has without selection"


SMALL = ["steps=4", "sampling.prompts=2", "sampling.group_size=4", "sampling.max_new_tokens=4", "evaluation.prompts=2", "evaluation.every=0"]


@pytest.mark.parametrize(
    ("components", "logged"),
    [
        ("[{name: true_value, options: {prompts: 2}}, {name: cbs, options: {warmup: 2, explore: [0.1, 0.0, 5]}}]", "cbs/epsilon"),
        ("[{name: selector, options: {rule: max_variance}}]", "select/rows"),
        ("[{name: true_value, options: {prompts: 2}}, {name: selector, options: {rule: oracle}}]", "truth/sum"),
    ],
)
def test_names_that_a_recipe_may_use(components, logged):
    run(recipe(*HERE, *SMALL, f"components={components}"))
    lines = [json.loads(line) for line in Path("runs/cbs-qwen3-1.7b-math/metrics.jsonl").read_text().splitlines()]
    assert [logged in line for line in lines if "select/rows" in line] == [True] * 4


def test_wrong_options_are_told_in_one_sentence():
    with pytest.raises(ValueError, match="label of CBS must be one of sample, set, not 'all'"):
        run(recipe(*HERE, *SMALL, "components=[{name: cbs, options: {label: all}}]"))
    with pytest.raises(ValueError, match="component 'cbs' has no option 'luck'; its options are mode, share, "):
        run(recipe(*HERE, *SMALL, "components=[{name: cbs, options: {luck: 1}}]"))
