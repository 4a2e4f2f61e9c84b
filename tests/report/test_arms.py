"""Arms: which runs belong together, and what is said over their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student

from tacit.report.arms import Arm, arms, common_name, difference, over_seeds, settings_that_differ
from tacit.report.runs import Run


def run(name: str, seed: int | None = 0, after: float | None = None, half: float | None = None, **settings: Any) -> Run:
    interval = {} if after is None or half is None else {"low": after - half, "high": after + half}
    result = None if after is None else {"metric": "pass@1", "after": {"mean": after, **interval}}
    return Run(Path(name), name, config={"kind": "rl", "seed": seed, "output": f"runs/{name}", **settings}, result=result)


def test_runs_that_differ_in_seed_and_folder_alone_are_one_arm() -> None:
    runs = [run("a-0", 0, lr=1), run("b-0", 0, lr=2), run("a-1", 1, lr=1), run("b-1", 1, lr=2)]
    assert [(arm.name, [r.name for r in arm.runs]) for arm in arms(runs)] == [("a", ["a-0", "a-1"]), ("b", ["b-0", "b-1"])]


def test_a_seed_twice_or_unknown_settings_stand_alone() -> None:
    assert [len(arm.runs) for arm in arms([run("a", 0), run("b", 0), run("c", 1)])] == [2, 1]
    assert [len(arm.runs) for arm in arms([run("a", None), run("b", None)])] == [1, 1]
    assert [len(arm.runs) for arm in arms([Run(Path("x"), "x"), Run(Path("y"), "y")])] == [1, 1]


def test_arms_with_the_same_beginning_keep_the_names_of_their_runs() -> None:
    runs = [run("grpo-0", 0, lr=1), run("grpo-1", 1, lr=1), run("grpo-2", 0, lr=2), run("grpo-3", 1, lr=2)]
    assert [arm.name for arm in arms(runs)] == ["grpo-0, grpo-1", "grpo-2, grpo-3"]


@pytest.mark.parametrize(
    ("names", "shared"),
    [(["a-0"], "a-0"), (["grpo-seed-0", "grpo-seed-1"], "grpo"), (["x/g10", "x/g11"], "x/g"), (["one", "two"], "one, two"), (["0", "1"], "0, 1")],
)
def test_an_arm_is_called_by_what_its_names_begin_with(names: list[str], shared: str) -> None:
    assert common_name(names) == shared


def test_over_seeds_the_interval_is_students() -> None:
    found = over_seeds(Arm("a", (run("a-0", 0, 0.5, 0.01), run("a-1", 1, 0.7, 0.01), run("a-2", 2))), "after")
    half = float(student.ppf(0.975, 1)) * 0.1  # two values, 0.2 apart: standard error 0.1; the third run has no result
    assert found is not None and found.interval is not None
    assert (found.mean, *found.interval) == pytest.approx((0.6, 0.6 - half, 0.6 + half))


def test_of_one_run_it_is_the_runs_own_and_without_results_there_is_none() -> None:
    found = over_seeds(Arm("a", (run("a", 0, 0.5, 0.01),)), "after")
    assert found is not None and found.interval == (0.49, 0.51)
    lone = over_seeds(Arm("a", (run("a-0", 0, 0.5, 0.01), run("a-1", 1))), "after")
    assert lone is not None and lone.interval is None, "one seed of two says nothing about seeds"
    assert over_seeds(Arm("a", (run("a-0"), run("a-1", 1))), "after") is None


def test_arms_with_seeds_in_common_are_paired() -> None:
    base = Arm("a", (run("a-0", 0, 0.1), run("a-1", 1, 0.9), run("a-5", 5, 0.0)))
    other = Arm("b", (run("b-1", 1, 1.0), run("b-0", 0, 0.2)))
    found = difference(other, base)
    assert found is not None and found[0].interval is not None
    assert (found[0].mean, *found[0].interval) == pytest.approx((0.1, 0.1, 0.1))
    assert found[1] == "paired over 2 seeds"


def test_single_runs_are_compared_as_independent() -> None:
    found = difference(Arm("b", (run("b", 0, 0.7, 0.04),)), Arm("a", (run("a", 0, 0.5, 0.03),)))
    assert found is not None and found[0].interval is not None
    assert (found[0].mean, *found[0].interval) == pytest.approx((0.2, 0.15, 0.25))
    assert found[1] == "independent"
    bare = difference(Arm("b", (run("b", 0, 0.7),)), Arm("a", (run("a", 0, 0.5, 0.03),)))
    assert bare is not None and bare[0].interval is None
    assert difference(Arm("b", (run("b"),)), Arm("a", (run("a", 0, 0.5),))) is None


def test_settings_that_differ_leave_out_what_is_a_runs_own() -> None:
    pair = [Arm("a", (run("a-0", 0, lr=1, task={"name": "x"}), run("a-1", 1, lr=1))), Arm("b", (run("b-0", 3, lr=2, task={"name": "x", "size": 2}),))]
    assert settings_that_differ(pair) == {"lr": [1, 2], "task.size": [None, 2]}
    assert settings_that_differ([Arm("a", (run("a", 0),)), Arm("b", (run("b", 1),))]) == {"seed": [0, 1]}
