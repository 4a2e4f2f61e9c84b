"""Reading run folders, whole and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.report.runs import LONGEST_TEXT, ReportError, _spread, read_run, read_runs

Make = Callable[..., Path]


def test_columns_are_aligned_with_steps_and_gaps_are_none(make_run: Make) -> None:
    folder = make_run()
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "reward/mean": 0.1, "eval/pass@1": 0.4}\n{"step": 2, "reward/mean": NaN, "note": "text"}\n'
        '{"step": 1, "reward/mean": null, "loss/kl": Infinity}\n{"step": 2, "eval/pass@1": 0.5}\n'
    )
    run = read_run(folder, "r")
    assert run.steps == [0, 1, 2]
    assert run.metrics == {"reward/mean": [0.1, None, None], "eval/pass@1": [0.4, None, 0.5]}
    assert (run.last("reward/mean"), run.last("eval/pass@1"), run.last("none"), run.mean("eval/pass@1")) == (0.1, 0.5, None, pytest.approx(0.45))
    assert run.notes == []


def test_a_step_logged_again_after_a_resume_counts_once_the_later_word_wins(make_run: Make) -> None:
    run = read_run(make_run(metrics=[{"step": 0, "a": 1.0}, {"step": 1, "a": 2.0}, {"step": 1, "a": 3.0}]), "r")
    assert (run.steps, run.metrics) == ([0, 1], {"a": [1.0, 3.0]})


def test_broken_lines_are_left_out_and_told(make_run: Make) -> None:
    folder = make_run(metrics=[{"step": 0, "a": 1.0}])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('[1]\n\n{"a": 2.0}\n{"step": 1, "a":')
    (folder / "samples.jsonl").write_text("{oops\n")
    run = read_run(folder, "r")
    assert run.metrics == {"a": [1.0]}
    assert run.notes == [
        "metrics.jsonl: 3 lines are (the first is line 2) not a whole JSON object with a step, and left out",
        "samples.jsonl: line 1 is not a whole JSON object with a step, and left out",
    ]


def test_missing_and_unreadable_files_become_notes_not_errors(make_run: Make) -> None:
    bare = read_run(make_run("bare", config=None, metrics=None, samples=None, result={"task": "t"}), "bare")
    assert (bare.config, bare.steps, bare.samples) == ({}, [], [])
    assert bare.notes == ["config.yaml is missing, so the settings of this run are not known"]
    broken = read_run(make_run("broken", config="a: [", result="{"), "broken")
    assert (broken.config_text, broken.config, broken.result) == ("a: [", {}, None)
    assert [note.split(" is ")[0] for note in broken.notes] == ["config.yaml", "result.json"]
    assert read_run(make_run("words", config="just words"), "words").config == {}


def test_settings_are_found_through_missing_sections(make_run: Make) -> None:
    run = read_run(make_run(), "r")
    assert (run.setting("model", "tiny", "hidden"), run.setting("model", "path", "deep"), run.setting("kind", "x")) == (64, None, None)


@pytest.mark.parametrize(
    ("paths", "names"),
    [(["x/a", "x/b"], ["a", "b"]), (["x/a", "y/a"], ["x/a", "y/a"]), (["x/a/r", "y/a/r"], ["x/a/r", "y/a/r"]), (["x/a", "x/a"], ["a (1)", "a (2)"])],
)
def test_names_tell_the_runs_apart(make_run: Make, tmp_path: Path, paths: list[str], names: list[str]) -> None:
    for path in dict.fromkeys(paths):
        make_run(path)
    assert [run.name for run in read_runs([tmp_path / path for path in paths])] == names


def test_folders_that_are_no_runs_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nowhere: there is no such folder; give the output folder of a run"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ReportError, match=r"this is not a run, it holds none of config\.yaml, metrics\.jsonl, samples\.jsonl, result\.json"):
        read_runs([tmp_path])
    with pytest.raises(ReportError, match="at least one run folder"):
        read_runs([])


def test_samples_are_capped_by_whole_groups_spread_over_the_run(make_run: Make) -> None:
    samples = [{"step": step, "group": step, "prompt": "p", "completion": str(n), "reward": 1.0} for step in range(50) for n in range(8)]
    folder = make_run(samples=samples)
    size = len(json.dumps(read_run(folder, "r").samples[-1]))
    run = read_run(folder, "r", most_text=40 * size)
    assert (run.samples_recorded, len(run.samples)) == (400, 40)
    steps = [sample["step"] for sample in run.samples]
    assert sorted(set(steps)) == [0, 12, 24, 37, 49]
    assert all(steps.count(step) == 8 for step in set(steps))
    assert read_run(run.path, "r", most_text=0).samples == []


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 60))
def test_the_choice_of_groups_stays_within_the_cap_and_shows_the_end(sizes: list[int], most: int) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    chosen = _spread(groups, dict.fromkeys(range(sum(sizes)), 1), most)
    assert 1 <= len(chosen) <= most
    assert len(set(chosen)) == len(chosen)
    assert groups[-1][0] in chosen
    if sum(sizes) <= most:
        assert chosen == list(range(sum(sizes)))


def test_at_least_one_sample_is_shown_however_long() -> None:
    assert _spread([[1, 2], [3, 4]], {1: 5, 2: 5, 3: 5, 4: 5}, 3) == [3]
    assert _spread([[1, 2], [3, 4]], {1: 5, 2: 5, 3: 5, 4: 5}, 10) == [3, 4]


def test_tokens_are_kept_as_lengths_and_log_probs(make_run: Make) -> None:
    records = [
        {"step": 0, "completion": "a𝄞 b", "tokens": ["a", "", "𝄞", " b", ""], "logps": [-0.126, -1, None, 0.0, -3.0]},
        {"step": 0, "completion": "a", "tokens": ["a", "STOP"], "logps": [-1.0, -2.0]},
        {"step": 0, "completion": "a", "tokens": ["a"], "logps": []},
        {"step": 0, "completion": "a" * LONGEST_TEXT + "b", "tokens": ["a" * LONGEST_TEXT, "b"], "logps": [-1.0, -1.0]},
    ]
    first, second, odd, long = read_run(make_run(samples=records), "r").samples
    assert (first["lengths"], first["logps"]) == ([1, 0, 2, 2, 0], [-0.13, -1.0, None, 0.0, -3.0])
    assert "drawn" not in first
    assert (second["lengths"], second["drawn"]) == ([1, 4], "aSTOP")
    assert "lengths" not in odd and "lengths" not in long


def test_a_sample_is_right_wrong_or_unscored_and_odd_fields_do_no_harm(make_run: Make) -> None:
    records = [
        {"step": 0, "group": 1, "reward": 1.0, "prompt": "p", "completion": "c", "answer": 42, "parts": {"exact": 1.0, "odd": "x"}, "advantage": 0.5},
        {"step": 0, "reward": 0.5, "prompt": None, "completion": ["a"], "parts": None, "finished": False},
        {"step": 0, "reward": None, "failure": "timed out", "role": "greedy"},
        {"step": 0, "reward": float("nan")},
    ]
    run = read_run(make_run(samples=records), "r")
    assert [sample["verdict"] for sample in run.samples] == ["right", "wrong", "unscored", "unscored"]
    first, second, third, _ = run.samples
    assert (first["answer"], first["parts"], first["group"], first["role"]) == ("42", {"exact": 1.0, "odd": None}, "1", "training")
    assert (second["prompt"], second["completion"], second["finished"], second["answer"]) == ("", '["a"]', False, None)
    assert (third["failure"], third["role"], third["advantage"]) == ("timed out", "greedy", None)


def test_the_word_of_the_verifier_decides_not_the_shaped_reward(make_run: Make) -> None:
    records = [
        {"step": 0, "reward": 0.3, "parts": {"raw": 1.0}},
        {"step": 0, "reward": 0.9, "parts": {"raw": 0.0}},
        {"step": 0, "reward": None, "parts": {"raw": None}},
    ]
    assert [sample["verdict"] for sample in read_run(make_run(samples=records), "r").samples] == ["right", "wrong", "unscored"]


def test_steps_that_only_evaluated_are_not_training_steps(make_run: Make) -> None:
    run = read_run(
        make_run(metrics=[{"step": 0, "eval/pass@1": 0.1}, {"step": 1, "reward/mean": 0.1}, {"step": 2, "reward/mean": 0.2, "eval/pass@1": 0.3}]), "r"
    )
    assert (len(run.steps), run.trained) == (3, 2)


def test_long_texts_are_cut_in_the_middle_and_say_so(make_run: Make) -> None:
    text = "a" * LONGEST_TEXT + "b" * LONGEST_TEXT
    [sample] = read_run(make_run(samples=[{"step": 0, "prompt": text, "completion": text[:LONGEST_TEXT]}]), "r").samples
    assert sample["prompt"] == "a" * (LONGEST_TEXT // 2) + f"\n[… {LONGEST_TEXT:,} characters left out …]\n" + "b" * (LONGEST_TEXT // 2)
    assert sample["completion"] == text[:LONGEST_TEXT]


def test_result_that_is_not_an_object_is_left_out(make_run: Make) -> None:
    run = read_run(make_run(result=json.dumps([1])), "r")
    assert (run.result, run.notes) == (None, ["result.json is not readable and is left out"])
