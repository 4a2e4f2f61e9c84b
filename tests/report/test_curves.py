"""Curves: which chart a metric lands in, and what is done to its points."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.report.arms import Arm
from tacit.report.curves import PLOTS, Plot, chart, charts, limits, other_charts, running_mean, thin, time_bars
from tacit.report.runs import Run


def run(name: str = "r", steps: int = 4, **metrics: list[float | None]) -> Arm:
    """An arm of one run."""
    return seeds(name, metrics, steps=steps)


def seeds(name: str, *metrics: dict[str, list[float | None]], steps: int = 4) -> Arm:
    named = [{key.replace("__", "/"): column for key, column in columns.items()} for columns in metrics]
    return Arm(name, tuple(Run(Path(name), name, steps=list(range(steps)), metrics=columns) for columns in named))


def plot(title: str) -> Plot:
    return next(p for p in PLOTS if p.title == title)


def test_one_run_gets_a_colour_per_metric_and_the_latest_value() -> None:
    made = chart(plot("Completion length"), [run(length__mean=[1.0, 2.0, None, 4.0], length__max=[9.0, 9.0, 9.0, 9.0])], {})
    assert [(line["key"], line["colour"], line["style"]) for line in made.lines] == [("mean", 0, "line"), ("longest", 1, "line")]
    assert made.lines[0]["y"] == [1.0, 2.0, None, 4.0]
    assert (made.main, made.value, made.note) == ("mean", "4.0", "tokens")
    assert made.described == "Completion length. mean: 1.0 at step 0, 4.0 at step 3; longest: 9.0 at step 0, 9.0 at step 3."


def test_several_runs_get_a_colour_each_and_styles_tell_the_metrics_apart() -> None:
    a = run("a", length__mean=[1.0] * 4, length__max=[2.0] * 4)
    b = run("b", steps=2, length__max=[3.0] * 2)
    made = chart(plot("Completion length"), [a, b], {})
    assert [(line["name"], line["key"], line["colour"], line["style"]) for line in made.lines] == [
        ("a, mean", "a", 0, "line"),
        ("a, longest", "a", 0, "dashed"),
        ("b, longest", "b", 1, "dashed"),
    ]
    assert (made.value, made.note) == ("", "— mean · ┄ longest")
    assert [line["name"] for line in chart(plot("Entropy"), [run("a", health__entropy=[1.0] * 4)] * 2, {}).lines] == ["a", "a"]


def test_an_evaluation_now_and_then_is_points_without_gaps() -> None:
    made = chart(plot("Reward and accuracy"), [run(**{"eval__pass@1": [0.1, None, None, 0.4]})], {})
    assert [(line["style"], line["x"], line["y"]) for line in made.lines] == [("points", [0, 3], [0.1, 0.4])]
    assert made.value == "0.400"


def test_a_measured_point_carries_its_interval() -> None:
    columns: dict[str, list[float | None]] = {
        "eval__pass@1": [0.2, None, None, 0.4],
        "eval__pass@1_low": [0.1, None, None, 0.3],
        "eval__pass@1_high": [0.3, None, None, 0.5],
    }
    [line] = chart(plot("Reward and accuracy"), [run(**columns)], {}).lines
    assert (line["x"], line["low"], line["high"]) == ([0, 3], [0.1, 0.3], [0.3, 0.5])
    assert other_charts([run(**columns)]) == ([], 0)


def test_a_noisy_line_is_drawn_faint_and_again_as_its_running_mean() -> None:
    column: list[float | None] = [float(n % 2) for n in range(40)]
    faint, strong = chart(plot("Reward and accuracy"), [run(steps=40, reward__mean=column)], {}).lines
    assert (faint["style"], faint["y"]) == ("faint", column)
    assert strong["style"] == "line"
    assert all(0.3 <= y <= 0.7 for y in strong["y"])
    assert len(chart(plot("Reward and accuracy"), [run(reward__mean=[1.0] * 4)], {}).lines) == 1


def test_several_seeds_are_a_line_in_a_band_from_the_lowest_to_the_highest() -> None:
    [line] = chart(plot("Entropy"), [seeds("a", {"health__entropy": [1.0, 2.0, None, 4.0]}, {"health__entropy": [3.0, 1.0, None, None]})], {}).lines
    assert (line["y"], line["low"], line["high"], line["band"]) == ([2.0, 1.5, None, 4.0], [1.0, 1.0, None, 4.0], [3.0, 2.0, None, 4.0], True)


def test_a_noisy_line_over_seeds_is_smoothed_with_its_band_and_drawn_once() -> None:
    low: list[float | None] = [float(n % 2) for n in range(40)]
    high: list[float | None] = [float(n % 2) + 2 for n in range(40)]
    [line] = chart(plot("Reward and accuracy"), [seeds("a", {"reward__mean": low}, {"reward__mean": high}, steps=40)], {}).lines
    for part, middle in (("low", 0.5), ("y", 1.5), ("high", 2.5)):
        assert all(abs(value - middle) <= 0.2 for value in line[part])


def test_an_evaluation_over_seeds_is_points_with_the_seeds_extremes_not_the_intervals_of_each() -> None:
    columns: dict[str, list[float | None]] = {"eval__pass@1": [0.2, None, None, 0.4], "eval__pass@1_low": [0.0] * 4, "eval__pass@1_high": [1.0] * 4}
    [line] = chart(plot("Reward and accuracy"), [seeds("a", columns, columns | {"eval__pass@1": [0.3, None, None, 0.6]})], {}).lines
    assert (line["x"], line["y"], line["low"], line["high"]) == ([0, 3], [0.25, 0.5], [0.2, 0.4], [0.3, 0.6])


def test_only_charts_with_a_metric_are_made_and_thresholds_are_lines() -> None:
    made = charts(
        [run(health__entropy=[1.0] * 4, health__logp_gap=[1e-6] * 4)], {"health/entropy": (0.005, math.inf), "health/logp_gap": (0.0, 0.01)}
    )
    assert [(c.title, c.limits, c.log) for c in made] == [
        ("Entropy", [{"y": 0.005, "label": "at least 0.005"}], False),
        ("|Δ log-prob|, trainer and sampler", [{"y": 0.01, "label": "at most 0.01"}], True),
    ]
    assert charts([run()], {}) == []


def test_bounds_a_curve_cannot_cross_are_no_lines() -> None:
    assert limits(None) == limits((0.0, math.inf)) == []
    assert [bound["y"] for bound in limits((0.5, 1.001))] == [0.5, 1.001]


def test_metrics_without_a_place_get_their_own_chart_up_to_a_number() -> None:
    made, left_out = other_charts([run(data__kept=[1.0] * 4, time__sample=[1.0] * 4, reward__mean=[1.0] * 4, pipo__gate=[0.0] * 4)])
    assert ([c.title for c in made], left_out) == (["data/kept", "pipo/gate"], 0)
    assert other_charts([run(**{f"m{n}": [1.0] * 4 for n in range(70)})])[1] == 10


def test_thinning_means_over_neighbours_and_keeps_the_last_step() -> None:
    assert thin([0, 1, 2], [1.0, None, 3.0], most=3) == ([0, 1, 2], [1.0, None, 3.0])
    assert thin([0, 1, 2, 3, 4], [1.0, 3.0, None, 5.0, 7.0], most=3) == ([1, 3, 4], [2.0, 5.0, 7.0])
    assert thin([0, 1], [None, None], most=1) == ([1], [None])
    assert thin([], [], most=3) == ([], [])


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 50))
def test_thinning_stays_within_bounds(y: list[float | None], most: int) -> None:
    steps = list(range(len(y)))
    x, means = thin(steps, y, most)
    assert len(x) == len(means) <= most
    assert x[-1] == steps[-1]
    assert x == sorted(set(x))
    found = [value for value in y if value is not None]
    assert all(min(found) - 1e-6 <= value <= max(found) + 1e-6 for value in means if value is not None)


def test_the_running_mean_is_centred_and_keeps_gaps() -> None:
    assert running_mean([0.0, 3.0, 6.0, None, 1.0], 3) == [1.5, 3.0, 4.5, None, 1.0]


def test_times_of_one_run_are_stacked_over_its_steps_and_small_stages_summed() -> None:
    made = time_bars(
        [run(time__sample=[0.6, 0.8, 0.6, 0.8], time__verify=[0.001] * 4, time__plan=[0.002] * 4, time__update=[0.4] * 4, time__step=[1.0] * 4)]
    )
    assert made is not None
    assert [(bar["name"], bar["colour"]) for bar in made["bars"]] == [("sample", 0), ("update", 6), ("other", 5)]
    assert made["bars"][2]["y"] == pytest.approx([0.003] * 4)
    assert (made["bars"][0]["x"], made["horizontal"]) == ([0, 1, 2, 3], False)


def test_times_of_several_runs_are_a_bar_each() -> None:
    made = time_bars([run("a", time__sample=[0.6, 0.8, 0.6, 0.8]), run("b", steps=1, time__update=[2.0])])
    assert made is not None
    assert [(bar["name"], bar["x"], bar["y"]) for bar in made["bars"]] == [
        ("sample", ["a", "b"], [pytest.approx(0.7), 0.0]),
        ("update", ["a", "b"], [0.0, 2.0]),
    ]
    assert made["horizontal"]


def test_stages_that_took_no_time_are_not_shown() -> None:
    assert time_bars([run(time__verify=[0.0] * 4)]) is None
    assert time_bars([run()]) is None
