"""The wmss study: its arms go on alike, and its properties and remembered verdicts say what they claim."""

from __future__ import annotations

from typing import Any

import pytest

from tacit.core.rollouts import Prompt
from tacit.rewards.base import Score
from tacit.rewards.sandbox import guards, missing
from tacit.studies import wmss
from tacit.studies.study import plan_of


def test_arms_of_a_task_go_on_for_as_long_from_one_start_on_the_same_examples():
    plan = plan_of(wmss.STUDY, "core")
    assert len(plan.arms) * len(plan.seeds) <= 120 and len(plan.seeds) >= 5
    for task in wmss.TASKS:
        arms = {arm.name.partition("/")[2]: arm for arm in plan.arms if arm.name.startswith(task)}
        start = arms.pop("start")
        assert all(arm.after == start.name and arm.settings["examples"] == start.settings["examples"] for arm in arms.values())
        assert {arm.settings["steps"] for name, arm in arms.items() if name != "sft_twice"} == {wmss.STEPS}
        assert {arm.settings["optimiser"]["lr"] for name, arm in arms.items() if name != "sft_high_lr"} == {wmss.BEST[task]}
        assert {arm.settings["weak"] for arm in arms.values() if "weak" in arm.settings} == {"kept/step-00000060"}
    high, twice = plan.arm("multiplication/sft_high_lr").settings, plan.arm("multiplication/sft_twice").settings
    assert high["optimiser"]["lr"] == 2 * wmss.BEST["multiplication"] and twice["steps"] == 2 * wmss.STEPS
    mandatory = {("joint", "sft"), ("wmss", "sft"), ("joint", "d0"), ("joint", "shuffled"), ("wmss", "random_subset")}
    for task in wmss.TASKS:
        assert mandatory <= {(c.a.partition("/")[2], c.b.partition("/")[2]) for c in plan.claims if c.a.startswith(task)}


def test_the_sweeps_of_the_full_preset():
    plan = plan_of(wmss.STUDY, "full")
    settings = {arm.name: arm.settings for arm in plan.arms}
    assert settings["programs/lam_0.42"]["lam"] == 0.42 and settings["programs/rounds_3"]["steps"] == 45
    assert settings["multiplication/weak_90%"]["weak"] == "kept/step-00000270"
    assert len(settings) == 2 * (1 + 14 + 6 + 4 + 2)


def test_properties():
    measured: dict[str, Any] = {
        "multiplication/joint": {0: {"entropy_gap": 0.3}, 1: {"entropy_gap": 0.09}},
        "multiplication/lam_1": {0: {"nll": 0.1005}, 1: {"nll": 0.2}},
        "multiplication/sft": {0: {"nll": 0.1}},
    }
    assert wmss.widest_gap(measured) == (0.09, False)
    assert wmss.lam_1_is_sft(measured) == (pytest.approx(0.005), True)
    assert wmss.widest_gap({}) is None and wmss.lam_1_is_sft({}) is None


def test_what_the_mixture_was_like_is_a_mean_over_steps():
    assert wmss.on_the_way([{"step": 0}, {"wmss/p_mix": 0.5}, {"wmss/p_mix": 0.7, "wmss/entropy_gap": 0.4}]) == {
        "p_mix": pytest.approx(0.6),
        "entropy_gap": 0.4,
    }


def test_a_program_is_run_once():
    if missing(guards()):
        pytest.skip("programs cannot be isolated on this machine")
    reward = wmss.RememberedTests(workers=1)
    prompt = Prompt("p", "def f(x):#x3+\n return ", None, {"tests": ["assert f(1) == 4"], "entry_point": "f"})
    try:
        first = reward([prompt, prompt], ["x+3", "x-3"])
        handed_in = reward.sandbox.submit
        reward.sandbox.submit = lambda *a, **k: pytest.fail("run again")
        assert reward([prompt], ["x+3"]) == first[:1] and isinstance(first[0], Score) and [s.value for s in first] == [1.0, 0.0]
        reward.sandbox.submit = handed_in
    finally:
        reward.close()
