"""The live display: what it shows, on a terminal that is a string."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from tacit.report.live import LiveReporter, sparkline


def live() -> tuple[LiveReporter, io.StringIO]:
    stream = io.StringIO()
    return LiveReporter(Console(file=stream, force_terminal=True, width=100, color_system=None)), stream


def test_it_shows_bar_numbers_courses_and_stage_times() -> None:
    reporter, stream = live()
    reporter.phase("train", 4)
    for index, reward in enumerate((0.2, 0.4, 0.6)):
        reporter.step(
            index, {"reward/mean": reward, "health/logp_gap": 2e-6, "time/sample": 0.6, "time/update": 0.4, "time/plan": 0.0, "time/step": 1.0}
        )
    reporter.message("a message with [brackets]")
    reporter.warning("take care")
    reporter.close()
    shown = stream.getvalue()
    for text in ("train", "3/4", "left", "reward", "0.600", "▁▅█", "from 0.200", "|Δlogp|", "2.0e-06", "sample 0.60 s (60%) · update 0.40 s (40%)"):
        assert text in shown
    assert "plan" not in shown
    assert "a message with [brackets]" in shown
    assert "warning: take care" in shown


def test_a_phase_of_unknown_length_and_one_without_steps_are_shown_too() -> None:
    reporter, stream = live()
    reporter.phase("evaluate", None)
    reporter.step(6, {"data/kept": 1.0})
    reporter.phase("save", 1)
    reporter.close()
    reporter.close()
    assert "evaluate" in stream.getvalue()
    assert " 7 " in stream.getvalue()
    assert "0/1" in stream.getvalue()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([5, 5, 5], "▁▁▁"),
        ([0, math.nan, 1], "▁ █"),
        ([math.nan], " "),
        ([0, 0, 1, 1], "▁▁██"),
    ],
)
def test_sparklines(values: list[float], line: str) -> None:
    assert sparkline(values) == line


def test_a_long_course_is_averaged_into_the_width() -> None:
    assert sparkline([0, 0, 1, 1, 2, 2, 3, 3], width=4) == "▁▃▆█"
    assert len(sparkline(list(range(1000)))) == 24
