"""Progress: the plain lines, the pace, and what makes the headline."""

from __future__ import annotations

import io
import math

import pytest

from tacit.core.progress import Pace, PlainReporter, Reporter, SilentReporter, duration, headlines


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reporter(clock: Clock) -> tuple[PlainReporter, io.StringIO]:
    stream = io.StringIO()
    return PlainReporter(stream, interval=5.0, clock=clock), stream


def test_lines_come_at_the_first_step_every_interval_and_at_the_last(clock: Clock) -> None:
    plain, stream = reporter(clock)
    plain.phase("train", 10)
    for index in range(10):
        clock.now += 2
        plain.step(index, {"reward/mean": index / 10, "length/mean": 7.0, "data/kept": 1.0})
    assert stream.getvalue().splitlines() == [
        "train: 10 steps",
        "train 1/10 · reward 0.000 · length 7.0 · 18 s left",
        "train 4/10 · reward 0.300 · length 7.0 · 12 s left",
        "train 7/10 · reward 0.600 · length 7.0 · 6 s left",
        "train 10/10 · reward 0.900 · length 7.0",
    ]


def test_an_evaluation_between_two_lines_is_told_with_the_next_and_once(clock: Clock) -> None:
    plain, stream = reporter(clock)
    plain.phase("train", None)
    plain.step(0, {"reward/mean": 0.1})
    plain.step(1, {"reward/mean": 0.2, "eval/pass@1": 0.5})
    clock.now += 6
    plain.step(2, {"reward/mean": 0.3})
    clock.now += 6
    plain.step(3, {"reward/mean": 0.4})
    assert stream.getvalue().splitlines() == ["train", "train 1 · reward 0.100", "train 3 · reward 0.300 · held-out 0.500", "train 4 · reward 0.400"]


def test_what_was_not_said_is_said_at_the_end_of_a_phase_and_at_closing(clock: Clock) -> None:
    plain, stream = reporter(clock)
    plain.phase("a", None)
    plain.step(0, {"reward/mean": 0.1})
    plain.step(1, {"reward/mean": 0.2})
    plain.phase("b", None)
    plain.warning("hot")
    plain.step(0, {"loss/train": 1.0})
    plain.step(1, {"loss/train": math.nan})
    plain.close()
    plain.close()
    assert stream.getvalue().splitlines() == [
        "a",
        "a 1 · reward 0.100",
        "a 2 · reward 0.200",
        "b",
        "warning: hot",
        "b 1 · loss 1.0000",
        "b 2 · loss –",
    ]


def test_time_left_after_a_resume_counts_only_the_steps_of_this_process(clock: Clock) -> None:
    pace = Pace("train", 100, clock)
    assert pace.left() is None
    for index in (80, 81):
        clock.now += 3
        pace.step(index)
    assert (pace.done, pace.left()) == (82, pytest.approx(18 * 3.0))
    assert Pace("train", None, clock).left() is None


def test_headlines_are_in_their_order_and_leave_out_what_is_missing() -> None:
    metrics = {"time/step": 0.5, "health/logp_gap": 2e-6, "throughput/tokens_per_second": 12345.6, "reward/mean": 0.5, "optimiser/lr": 1.0}
    assert headlines(metrics) == ["reward 0.500", "|Δlogp| 2.0e-06", "tokens/s 12,346", "s/step 0.50"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (3500, "58 min"), (3590, "1 h 0 min"), (4805, "1 h 20 min")]
)
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_silent_reporter_is_one_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent: Reporter = SilentReporter()
    silent.phase("a", 1)
    silent.step(0, {"reward/mean": 0.1})
    silent.message("m")
    silent.warning("w")
    silent.close()
    assert capsys.readouterr() == ("", "")


def test_the_plain_reporter_writes_to_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    PlainReporter().message("hello")
    assert capsys.readouterr().out == "hello\n"
