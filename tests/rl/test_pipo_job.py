"""PIPO and the guard as recipes name them: registered names, what they say of their cost, and a run that ends before its time."""

from __future__ import annotations

from typing import Any

import pytest

from tacit.config import RLConfig
from tacit.core.progress import SilentReporter
from tacit.core.rundir import JsonLines
from tacit.job import run
from tacit.rl.component import Component

BASE: dict[str, Any] = {
    "kind": "rl",
    "task": {"name": "sorting", "options": {"min_length": 2, "max_length": 3}},
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 24}},
    "steps": 6,
    "sampling": {"prompts": 2, "group_size": 4, "max_new_tokens": 4},
    "evaluation": {"prompts": 4},
}


class Recorder(SilentReporter):
    def __init__(self):
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


class EndsAfter(Component):
    """Wants training to stop with step `last`."""

    def __init__(self, last: int):
        self.last = last

    def observe(self, step, agent):
        if step.index + 1 == self.last:
            self.ended = "enough"


def config(tmp_path, *components: dict[str, Any], **changes: Any) -> RLConfig:
    return RLConfig.model_validate({**BASE, "output": str(tmp_path / "run"), "components": list(components), **changes})


def test_registered_names_and_costs_that_are_told(tmp_path):
    recorder = Recorder()
    wanted = [{"name": "pipo", "options": {"window": 2}}, {"name": "rollback", "options": {"probes": 10, "every": 2}}]
    run(config(tmp_path, *wanted), reporter=recorder)
    assert any(text.startswith("PIPO: at most one more update a step, from step 2 on, and no rollouts beyond") for text in recorder.told)
    assert any("10 probes every 2 steps are 5 completions a step beside 8; up to 4 snapshots of" in text for text in recorder.told)
    lines = list(JsonLines(tmp_path / "run" / "metrics.jsonl").records())
    assert ["pipo/xi" in line for line in lines if "reward/mean" in line] == [False] * 2 + [True] * 4
    assert [line["step"] for line in lines if "rollback/level" in line] == [1, 3, 5]


def test_a_run_that_ends_before_its_time_is_finished_and_says_after_how_many_steps(tmp_path):
    ends = {"name": f"{__name__}:EndsAfter", "options": {"last": 3}}
    outcome = run(config(tmp_path, ends))
    assert outcome.result["steps"] == 3 and (tmp_path / "run" / "policy").is_dir()


@pytest.mark.parametrize("wrong", [{"lam": -1}, {"ksi": 1}])
def test_wrong_options_are_told_in_one_sentence(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"PIPO needs lam >= 0|component 'pipo' has no option 'ksi'"):
        run(config(tmp_path, {"name": "pipo", "options": wrong}))
