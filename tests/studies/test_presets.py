"""The studies themselves: every preset is a sound plan, the tiny ones run from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from tacit.cli import app
from tacit.studies.noise import FlippedRewards, place_in_group
from tacit.studies.recipes import configured, measure_recipe
from tacit.studies.study import NAMES, PRESETS, find_study, plan_of


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_a_sound_plan(name, preset, tmp_path):
    plan = plan_of(find_study(name), preset)
    assert all(seed >= 1000 for seed in plan.seeds) if preset == "calibrate" else plan.seeds[0] == 0
    for arm in plan.arms if find_study(name).measure is measure_recipe else ():
        configured(arm.settings, 0, tmp_path / "run", tmp_path if arm.after else None)  # raises where a recipe is wrong
    assert len({claim.id for claim in plan.claims}) == len(plan.claims)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_preset_from_the_command_line(name, tmp_path, monkeypatch, made_up_answers):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["study", name, "--preset", "tiny", "--processes", "0", "--force"])
    assert told.exit_code == 0, (told.output, told.exception)
    found = json.loads((tmp_path / "runs" / f"study-{name}-tiny" / "result.json").read_text())
    assert found["missing"] == [] and found["claims"] and all(claim["contrast"]["n"] >= 2 for claim in found["claims"])
    assert "Report: " in told.stdout and (tmp_path / "runs" / f"study-{name}-tiny" / "report.html").stat().st_size > 10_000
    again = CliRunner().invoke(app, ["study", name, "--preset", "tiny", "--judge-only"])
    assert again.exit_code == 0 and again.stdout.count("inconclusive") == told.stdout.count("inconclusive")


@dataclass
class Batch:
    """The part of a RolloutBatch that a reward changes."""

    group: torch.Tensor
    scored: torch.Tensor
    rows: dict[str, torch.Tensor]

    @property
    def reward(self) -> torch.Tensor:
        return self.rows["reward"]

    def with_columns(self, **columns: torch.Tensor) -> Batch:
        return replace(self, rows=self.rows | columns)


def test_flipped_rewards_flip_their_share_and_nothing_unscored():
    rows = 4000
    right = (torch.arange(rows) % 2).double()
    batch: Any = Batch(torch.arange(rows) // 8, torch.arange(rows) % 5 > 0, {"reward": right, "reward/raw": right})
    step, agent = SimpleNamespace(seed=3, index=5), SimpleNamespace(index=0)
    noise: Any = FlippedRewards(0.1)
    flipped = noise.score(step, agent, batch)
    changed = flipped.reward != batch.reward
    assert 0.08 < changed[batch.scored].double().mean() < 0.12
    assert not changed[~batch.scored].any() and torch.equal(flipped.reward[changed], 1 - batch.reward[changed])
    assert torch.equal(noise.score(step, agent, batch).reward, flipped.reward)  # the same again when resumed
    assert torch.equal(flipped.rows["reward/raw"], right)
    deceived = cast(Any, FlippedRewards(0.1, raw=True)).score(step, agent, batch)
    assert torch.equal(deceived.reward, flipped.reward) and torch.equal(deceived.rows["reward/raw"], flipped.reward)
    assert not torch.equal(noise.score(SimpleNamespace(seed=3, index=6), agent, batch).reward, flipped.reward)
    with pytest.raises(ValueError, match="between 0 and 1"):
        FlippedRewards(1.5)


def test_places_in_a_group():
    assert place_in_group(torch.tensor([7, 7, 3, 7, 3])) == [0, 1, 0, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("after", [2.5, 5.0, 6.5, 8.0])
def test_killed_at_any_moment_the_same_command_gives_the_same_result(tmp_path, after):
    command = [sys.executable, "-m", "tacit", "study", "stability", "--preset", "tiny", "--processes", "2", "--force", "-o"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(after)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(2)  # its processes notice
    for folder in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / folder)], check=True, capture_output=True, timeout=120)
    one, other = (json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("killed", "whole"))
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
