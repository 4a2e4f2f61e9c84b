"""The table of what supervised runs measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tacit.report.arms import Arm
from tacit.report.instruments import instruments, measured
from tacit.report.runs import Run


def arm(name: str, *results: Any) -> Arm:
    return Arm(name, tuple(Run(Path(name), name, result={"measured": found}) for found in results))


def test_both_models_of_a_run_stand_side_by_side() -> None:
    page = instruments([arm("wmss", {"loss": 0.5, "ece": 0.01, "weak_loss": 1.25, "pass@1": 0.9, "pass@1_low": 0.8, "pass@1/hard": 0.4})])
    assert "<th scope='col'>model</th><th scope='col'>weak model</th>" in page
    assert "<th scope='row'>loss</th><td>0.5</td><td>1.25</td>" in page
    assert "<th scope='row'>pass@1/hard</th><td>0.4</td><td><span class='faint'>–</span></td>" in page
    assert "pass@1_low" not in page and "weak_loss" not in page


def test_seeds_are_averaged_and_arms_are_columns() -> None:
    page = instruments([arm("a", {"loss": 1.0}, {"loss": 2.0}), arm("b<", {"loss": 4.0, "weak_loss": 8.0})])
    assert "<th scope='col'>a</th><th scope='col'>b&lt;</th><th scope='col'>b&lt;, weak model</th>" in page
    assert "<th scope='row'>loss</th><td>1.5</td><td>4</td><td>8</td>" in page


def test_odd_numbers_leave_a_gap_and_nothing_measured_no_table() -> None:
    assert measured(arm("a", {"loss": float("nan"), "ece": "x"}, {"loss": 2.0})) == {"loss": 2.0, "ece": None}
    assert instruments([arm("a", {}), arm("b", None), Arm("c", (Run(Path("c"), "c"),))]) == ""
