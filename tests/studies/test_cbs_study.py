"""The study of CBS: its numbers by hand, its arms, its noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tacit.core.rollouts import Prompt, Ragged, RolloutBatch
from tacit.studies.cbs import CLAIMS, PROPERTIES, plan, played, told
from tacit.studies.combine import plan as combined
from tacit.studies.noise import GuessedCorrect
from tacit.studies.recipes import configured
from tacit.studies.study import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_recipes_are_sound(preset, tmp_path):
    for arm in plan(preset).arms:
        if arm.settings["kind"] != "world":
            configured(arm.settings, 0, tmp_path / "run", tmp_path if arm.after else None)


def test_full_has_every_claim_and_core_the_primary_ones():
    assert {claim.id for claim in plan("full").claims} == {claim.id for claim in CLAIMS}
    core = plan("core")
    assert all(("snr" in claim.beside) == (claim.metric in ("pass@1", "auc")) for claim in CLAIMS), "no accuracy without the noise of its labels"
    assert all(claim.beside == ("snr",) for claim in combined("core").claims)
    assert core.seeds == tuple(range(8)) and {c.id for c in core.claims} >= {
        "ceiling",
        "random",
        "top-advantage",
        "shuffled",
        "full",
        "credit",
        "guessed",
    }
    rows = {arm.name: arm.settings for arm in core.arms if "/" in arm.name and arm.settings["kind"] == "rl"}
    assert len({str(s["sampling"]) + str(s["optimiser"]) + str(s["steps"]) for s in rows.values()}) == 1, "equal rollouts, steps and rates"
    guessed = [s["components"][0]["name"] for name, s in rows.items() if name.startswith("guessed/")]
    assert guessed == ["tacit.studies.noise:GuessedCorrect"] * 3, "the noise comes first, and deceives all"


def test_numbers_by_hand():
    lines = [
        {"step": 1, "cbs/gain": 0.1, "cbs/label_noise": 0.2, "select/zero_advantage": 0.5, "select/zero_advantage_drawn": 0.6, "health/entropy": 4.0},
        {"step": 2, "cbs/gain": -0.05, "cbs/label_noise": 0.4, "select/guessed": 0.1, "select/guessed_drawn": 0.3, "health/entropy": 3.0},
        {"step": 3, "cbs/spearman": 0.2, "cbs/spearman_logp": 0.1, "health/entropy": 2.0},
        {"step": 4, "cbs/spearman": 0.4, "cbs/spearman_logp": None, "health/entropy": 1.0},
    ]
    expected = {
        "snr": 0.025 / 0.3,
        "label_noise": 0.3,
        "zero_excess": -0.1,
        "guessed_excess": -0.2,
        "spearman": 0.4,
        "spearman_logp": 0.1,
        "late_entropy": 1.0,
    }
    assert told(lines) == pytest.approx(expected)


def test_worlds_are_played():
    settings = {"kind": "world", "world": "linear", "rounds": 30, "size": 256, "keep": 128}
    random, learned = played(settings | {"policy": "random"}, 0), played(settings | {"kind_of_label": "set"}, 0)
    assert random.numbers["slope"] == pytest.approx(1, abs=0.1) and "spearman" not in random.numbers
    assert set(learned.numbers) == {"regret", "lift", "slope", "spearman"}
    steps, regret = learned.curves["world/regret"]
    assert len(steps) == 30 and regret[-1] == pytest.approx(30 * learned.numbers["regret"])


def test_properties_by_hand():
    of = {p.id: p.test for p in PROPERTIES}
    measured: Any = {"clean/cbs": {0: {"snr": 0.1, "explained": 0.2}, 1: {"snr": 0.2}}, "clean/probes": {0: {"snr": 0.6}}}
    assert of["snr"](measured) == (pytest.approx(0.15), True) and of["explained"](measured) == (0.2, True)
    assert of["snr-probes"](measured) == (0.6, True) and of["snr-probes"]({}) is None and of["sublinear-mlp"]({}) is None
    assert of["sublinear-linear"]({"world/linear sample": {0: {"slope": 0.75}}}) == (0.75, False)


def test_one_in_five_wrong_answers_passes_always_the_same_ones():
    texts = [f"{n:04d}" for n in range(3000)]
    rows = len(texts)
    batch = RolloutBatch(
        [Prompt("p", "?", answer="0007")] * rows,
        Ragged.from_lists([[1]] * rows),
        torch.arange(rows + 1),
        texts=texts,
        rows={"group": torch.zeros(rows, dtype=torch.int64), "scored": torch.arange(rows) != 5, "reward": torch.arange(rows) == 7},
        tokens={"token": torch.zeros(rows), "behaviour_logp": torch.zeros(rows)},
    )
    batch = batch.with_columns(**{"reward/raw": batch.reward})
    noise, step = GuessedCorrect(5), SimpleNamespace(seed=0, index=0)
    found = noise.score(step, SimpleNamespace(index=0), batch)  # type: ignore[arg-type]
    guessed = found.rows["noise/guessed"] > 0
    assert 0.17 < guessed.double().mean() < 0.23 and not guessed[7] and not guessed[5]
    assert torch.equal(found.reward == 1, guessed | (batch.reward == 1)) and torch.equal(found.rows["reward/raw"], found.reward)
    again = noise.score(SimpleNamespace(seed=9, index=4), SimpleNamespace(index=0), batch)  # type: ignore[arg-type]
    assert np.array_equal(again.rows["noise/guessed"], found.rows["noise/guessed"])
    with pytest.raises(ValueError, match="at least 2"):
        GuessedCorrect(1)
