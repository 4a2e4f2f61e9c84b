"""The study of PIPO: its numbers by hand, its arms, and the arm that waits for another one's coefficient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tacit.core.progress import SilentReporter
from tacit.core.rundir import JsonLines
from tacit.studies import runner
from tacit.studies.commands import run_study
from tacit.studies.pipo import MATCHED, PROPERTIES, mean_coefficient, plan, stability, told, with_constant
from tacit.studies.records import Cell, Records, cells


def test_numbers_of_a_run_by_hand():
    found = stability([0.4, 0.5, None, 0.8, 0.3, 0.6, 0.7, 0.7])
    assert found["last5"] == pytest.approx((0.8 + 0.3 + 0.6 + 0.7 + 0.7) / 5)
    assert found["auc"] == pytest.approx((0.5 + 0.8 + 0.3 + 0.6 + 0.7 + 0.7) / 6)
    assert found["drawdown"] == pytest.approx(0.5) and found["kept"] == pytest.approx(found["last5"] / 0.8)
    lines = [
        {"step": 0, "eval/pass@1": 0.4},
        {"step": 1, "optimiser/grad_norm": 1.0, "optimiser/steps": 2.0, "data/kept": 16.0},
        {"step": 2, "optimiser/grad_norm": 3.0, "optimiser/steps": 2.0, "data/kept": 16.0, "pipo/agreement": 1.0, "rollback/count": 0.0},
        {"step": 3, "data/kept": 16.0, "pipo/agreement": 0.0, "agent0/replay/optimiser/steps": 2.0, "rollback/count": 1.0, "pipo/coefficient": None},
    ]
    expected = {"agreement": 0.5, "grad_p99": 1 + 2 * 0.99, "optimiser_steps": 6.0, "rollouts": 48.0, "rollbacks": 1.0}
    assert told(lines) == pytest.approx(expected)


def test_core_has_the_arms_of_the_specification_in_both_regimes():
    core = plan("core")
    assert core.seeds == tuple(range(8))
    for regime in ("calm", "stressed"):
        assert {arm.name.split("/")[1] for arm in core.arms if arm.name.startswith(regime)} >= {"base", "pipo", "equal_steps", "constant", "shuffled"}
        constant, pipo = core.arm(f"{regime}/constant"), core.arm(f"{regime}/pipo")
        assert constant.after == pipo.name and pipo.after == "start"
        assert constant.settings["components"][-1]["options"]["constant"] == MATCHED
        assert constant.settings["optimiser"] == pipo.settings["optimiser"] == core.arm(f"{regime}/equal_steps").settings["optimiser"]
    assert core.arm("stressed/pipo").settings["components"][0]["options"] == {"rate": 0.1, "raw": True}, "the noise comes first, and deceives all"
    assert {"lam_0", "lam_1", "window_2", "window_32", "flipped", "gspo_pipo"} <= {arm.name.split("/")[-1] for arm in plan("full").arms}


def test_properties_by_hand():
    of = {p.id: p.test for p in PROPERTIES}
    base = {0: {"pass@1": 0.1, "rollouts": 64.0}, 1: {"pass@1": 0.1, "rollouts": 64.0}, 2: {"pass@1": 0.3, "rollouts": 64.0}}
    guarded = {0: {"kept": 0.9}, 1: {"kept": 0.7}, 2: {"kept": 0.0}}
    pipo = {0: {"agreement": 0.4, "rollouts": 64.0}, 1: {"agreement": 0.8, "rollouts": 64.0}}
    measured: Any = {"stressed/base": base, "stressed/rollback": guarded, "stressed/pipo": pipo}
    assert of["rescued"](measured) == (0.5, False) and of["agreement-stressed"](measured) == (pytest.approx(0.6), True)
    assert of["agreement-calm"](measured) is None and of["no-rollouts"](measured) == (1.0, True)
    assert of["rescued"]({}) is None and of["no-rollouts"]({}) is None
    guarded[1]["kept"] = 0.8
    assert of["rescued"](measured) == (1.0, True)


def test_the_constant_arm_takes_the_mean_coefficient_of_the_pipo_run_of_its_seed(tmp_path):
    options: dict[str, Any] = {"processes": 0, "force": True, "seeds": [1], "reporter": SilentReporter()}
    run_study("pipo", "tiny", tmp_path, arms=["stressed/constant"], **options)  # measures what it starts from, and what that starts from
    records = Records(tmp_path)
    assert {cell.arm for cell in records.read(plan("tiny"))[0]} == {"start", "stressed/pipo", "stressed/constant"}
    pipo, constant = (list(JsonLines(records.work(Cell(f"stressed/{arm}", 1)) / "metrics.jsonl").records()) for arm in ("pipo", "constant"))
    coefficients = [line["pipo/coefficient"] for line in pipo if "pipo/coefficient" in line]
    assert len(coefficients) == 2 and mean_coefficient(records.work(Cell("stressed/pipo", 1))) == np.mean(coefficients)
    used = {line["pipo/coefficient"] for line in constant if "pipo/coefficient" in line}
    assert used == {np.mean(coefficients)}
    assert pipo[0] == constant[0], "both start from the same policy"


def test_only_the_constant_that_waits_is_filled_in():
    assert with_constant({"name": "pipo", "options": {"constant": MATCHED, "lam": 0.1}}, 0.4)["options"] == {"constant": 0.4, "lam": 0.1}
    assert with_constant({"name": "pipo", "options": {"constant": 0.2}}, 0.4)["options"] == {"constant": 0.2}
    assert with_constant({"name": "noise", "options": {"rate": 0.1}}, 0.4)["options"] == {"rate": 0.1}


def test_what_starts_from_what_starts_from_a_failed_cell_fails_too(tmp_path):
    chain = plan("tiny")
    waiting = [cell for cell in cells(chain) if cell.seed == 0 and cell.arm != "start"]
    assert set(runner.following(chain, waiting, Cell("start", 0))) == set(waiting)
    assert runner.following(chain, waiting, Cell("stressed/pipo", 0)) == [Cell("stressed/constant", 0)]
    order = runner.needed(chain, Records(tmp_path), [Cell("stressed/constant", 0)], {})
    assert [cell.arm for cell in order] == ["start", "stressed/pipo", "stressed/constant"]
