from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tacit.core.progress import SilentReporter
from tacit.studies import runner
from tacit.studies.commands import run_study
from tacit.studies.records import Cell, Records, cells
from tacit.studies.result import lines
from tacit.studies.study import LIMITS, Measured, StudyError


@pytest.fixture
def study(monkeypatch, invented, tmp_path):
    """Runs an invented study in a folder, in this process; returns the content of result.json."""

    def run(where="here", of=None, **options):
        monkeypatch.setattr("tacit.studies.study.find_study", lambda name: of or invented())
        options = {"processes": 0, "reporter": SilentReporter()} | options
        return run_study("invented", "core", tmp_path / where, **options)

    return run


def without_times(result):
    return {key: value for key, value in result.items() if key != "seconds"}


def test_result_has_claims_measurements_and_settings(study, tmp_path):
    found = study()
    assert json.loads((tmp_path / "here" / "result.json").read_text()) == json.loads(json.dumps(found))
    better, same = found["claims"]
    assert better["verdict"] == "supported" and better["contrast"]["n"] == 4 and better["seeds"] == [0, 1, 2, 3]
    assert same["verdict"] == "supported" and same["expected"] == "a = b"
    assert found["measurements"]["method"]["seeds"] == [0, 1, 2, 3] and len(found["measurements"]["method"]["score"]) == 4
    assert found["settings"]["method"] == {"after": "start", "add": 1.0} and found["missing"] == []
    page = (tmp_path / "here" / "report.html").read_text()
    assert "An invented study" in page and page.count("<svg") == 2 and "supported" in page
    assert any(line.strip().startswith("supported  better: the method is better. score, method - plain: +1") for line in lines(found))


@pytest.mark.parametrize("stops_before", range(1, 12))
def test_stopped_anywhere_and_gone_on_with_gives_the_same_result(study, invented, stops_before):
    count = 0

    def stop(arm, seed):
        nonlocal count
        count += 1
        if count == stops_before:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study("stopped", invented(spoil=stop))
    assert without_times(study("stopped")) == without_times(study("whole"))


def test_only_what_is_asked_for_is_measured_and_the_rest_is_missing(study):
    found = study(arms=["method"], seeds=[2])
    assert found["measurements"]["method"]["seeds"] == [2] and found["measurements"]["start"]["seeds"] == [2]  # which it starts from
    assert {"arm": "plain", "seed": 2, "why": "not measured yet"} in found["missing"] and len(found["missing"]) == 10
    assert "missing: 10 cells" in lines(found)
    assert study(measure_missing=False) == found
    with pytest.raises(StudyError, match=r"--arm of invented, core must be start, plain or method, not 'methud'; did you mean 'method'\?"):
        study(arms=["methud"])


def test_records_of_two_folders_merge(study, tmp_path):
    study("one", seeds=[0, 1])
    study("two", seeds=[2, 3])
    merged = study("both", measure_missing=False, collect=[tmp_path / "one", tmp_path / "two"])
    assert without_times(merged) == without_times(study("whole"))
    with pytest.raises(StudyError, match="holds no records of a study"):
        study("both", collect=[tmp_path])


def test_folders_that_disagree_are_not_merged(study, tmp_path, invented):
    study("one", seeds=[0])
    study("two", seeds=[0])
    path = Records(tmp_path / "two").path(Cell("plain", 0))
    path.write_text(path.read_text().replace('"score": ', '"score": 9'))
    with pytest.raises(StudyError, match="disagree about plain, seed 0"):
        study("one", collect=[tmp_path / "two"])


def test_a_record_of_another_commit_is_flagged(study, tmp_path):
    study()
    path = Records(tmp_path / "here").path(Cell("plain", 0))
    record = json.loads(path.read_text())
    mine = record["environment"]["commit"]
    record["environment"]["commit"] = "0123456"
    path.write_text(json.dumps(record))
    found = study()
    assert found["environment"]["commit"] == {mine: 11, "0123456": 1} or found["environment"]["commit"] == {"0123456": 1, mine: 11}
    assert any("different commits" in flag and "1 of 0123456" in flag for flag in found["flags"])


def test_an_arm_whose_settings_changed_is_measured_again(study, invented):
    study()
    found = study(of=invented(effect=3.0))
    assert found["claims"][0]["contrast"]["mean_diff"] > 2.5


def test_a_broken_record_is_named(study, tmp_path):
    study()
    Records(tmp_path / "here").path(Cell("plain", 0)).write_text("{")
    with pytest.raises(StudyError, match=r"seed-0\.json is no record of a study"):
        study()


def test_a_cell_that_fails_is_told_and_the_others_are_measured(study, invented, tmp_path):
    def fail(arm, seed):
        if (arm, seed) in {("plain", 1), ("start", 2)}:
            raise ArithmeticError("no")

    found = study(of=invented(spoil=fail))
    why = {(m["arm"], m["seed"]): m["why"] for m in found["missing"]}
    assert set(why) == {("plain", 1), ("start", 2), ("plain", 2), ("method", 2)}
    assert why["plain", 1].startswith("ArithmeticError: no") and why["method", 2] == "start, seed 2, which it starts from, failed"
    assert "ArithmeticError" in (tmp_path / "here" / "records" / "plain" / "seed-1.error.txt").read_text()
    assert found["claims"][0]["seeds"] == [0, 3]
    assert without_times(study()) == without_times(study("whole"))  # what failed is tried again


def test_a_recipe_that_failed_is_tried_again_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tacit.studies.recipes.run", lambda *a, **k: 1 / 0)
    options = {"processes": 0, "force": True, "seeds": [0], "arms": ["start"], "reporter": SilentReporter()}
    failed = run_study("stability", "tiny", tmp_path, **options)
    assert any("ZeroDivisionError" in missing["why"] for missing in failed["missing"])
    monkeypatch.undo()
    assert run_study("stability", "tiny", tmp_path, **options)["measurements"]["start"]["seeds"] == [0]


def test_a_plan_that_does_not_fit_its_preset_is_refused_after_one_cell(study, monkeypatch, tmp_path):
    monkeypatch.setitem(LIMITS, "core", 1e-9)
    with pytest.raises(
        StudyError, match="may take 0 s; share the seeds out over machines with --seed and --collect, or run it all the same with --force"
    ):
        study()
    assert len(list((tmp_path / "here").rglob("seed-*.json"))) == 1
    assert study(force=True)["missing"] == []


def test_forecast_uses_what_is_known_of_an_arm(invented):
    plan = invented().plan("core")
    record = runner.Record(Cell("plain", 0), {}, Measured({}), 10.0, {})
    done = {record.cell: record, Cell("start", 0): replace(record, cell=Cell("start", 0), seconds=30.0)}
    left = [Cell("plain", 1), Cell("start", 1), Cell("method", 0)]
    assert runner.forecast(plan, done, left, 2) == pytest.approx((10 + 30 + 2 * 20) / 2)  # a rate of 20 for each unit of cost


def test_cells_go_seed_by_seed_and_start_before_what_follows(invented):
    plan = invented(seeds=2).plan("core")
    assert [str(cell) for cell in cells(plan)][:4] == ["start, seed 0", "plain, seed 0", "method, seed 0", "start, seed 1"]
    waiting, busy = cells(plan), [Cell("start", 0)]
    waiting.remove(Cell("start", 0))
    assert runner.next_ready(plan, waiting, busy) == Cell("start", 1)
    assert runner.next_ready(plan, waiting, []) == Cell("plain", 0)


def test_two_studies_do_not_write_to_one_folder(study, tmp_path):
    with Records(tmp_path / "here").held(), pytest.raises(ValueError, match="is in use by process"):
        study()
