"""The verdict of a run, in number and sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tacit.report.runs import Run
from tacit.report.verdict import Estimate, estimate, verdict


def run(**result: Any) -> Run:
    return Run(Path("r"), "r", result=result or None)


def span(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(
    ("gain", "tone", "headline", "words"),
    [
        (span(0.1, 0.05, 0.15), "good", "+10.0 points", "rose from 40.0% to 50.0%; the 95% interval of the gain is +5.0 to +15.0 points."),
        (span(-0.1, -0.2, -0.01), "bad", "−10.0 points", "fell from 40.0% to 50.0%; the 95% interval of the gain is −20.0 to −1.0 points."),
        (span(0.1, -0.05, 0.15), "open", "+10.0 points", "the 95% interval of the gain is −5.0 to +15.0 points, which includes no change."),
        (span(0.1, 0.0, 0.2), "open", "+10.0 points", "which includes no change."),
        ({"mean": 0.1}, "open", "+10.0 points", "the interval of the gain is not known."),
        (0.1, "open", "+10.0 points", "the interval of the gain is not known."),
        (span(0.0, -0.1, 0.1), "open", "+0.0 points", "did not move from 40.0%; "),
    ],
)
def test_the_interval_of_the_gain_decides(gain: Any, tone: str, headline: str, words: str) -> None:
    said = verdict(run(metric="pass@1", before=span(0.4, 0.3, 0.5), after=span(0.5, 0.4, 0.6), gain=gain))
    assert (said.tone, said.headline) == (tone, headline)
    assert words in said.sentence
    assert said.sentence.startswith("Held-out pass@1 ")


def test_counts_and_baselines_are_named() -> None:
    said = verdict(run(after=0.5, gain=span(0.1, 0.05, 0.2), prompts=512, samples=4, baselines={"lookup": 0.12, "odd": None, "majority": 0.03}))
    assert said.sentence.endswith("+5.0 to +20.0 points (512 prompts, 4 samples each). Baselines: lookup 12.0%, majority 3.0%.")
    assert verdict(run(after=0.5, gain=0.1, prompts=9, samples=1, baselines={"lookup": 0.12})).sentence.endswith(
        "(9 prompts). Baseline: lookup 12.0%."
    )


def test_without_a_comparison_the_value_itself_is_told() -> None:
    said = verdict(run(metric="pass@1", after=span(0.446, 0.42, 0.48)))
    assert said == ("none", "44.6%", "Held-out pass@1 44.6%, with a 95% interval from 42.0% to 48.0%.")


def test_what_is_no_share_is_shown_as_it_is() -> None:
    assert verdict(run(metric="mean length", before=31.0, after=18.7, gain=span(-12.3, -13.0, -11.5))).headline == "−12.3"
    assert verdict(run(metric="held-out loss", before=0.5, after=0.25, gain=0.25)).headline == "+0.25"


def test_without_a_result_the_last_number_is_told() -> None:
    assert verdict(run()).sentence == "No step has been recorded and there is no result.json."
    started = Run(Path("r"), "r", steps=[0], metrics={"reward/mean": [0.25]})
    assert verdict(started) == ("none", "No verdict yet", "There is no result.json with an evaluation yet. Last reward: 0.250.")
    assert verdict(Run(Path("r"), "r", steps=[0], metrics={"loss/train": [0.5]})).sentence.endswith("Last loss: 0.5000.")
    assert verdict(Run(Path("r"), "r", steps=[0])).sentence.endswith("yet.")


@pytest.mark.parametrize("entry", [None, "0.5", {}, {"mean": None}, {"mean": float("nan"), "low": 0, "high": 1}, [0.5]])
def test_what_is_no_estimate_is_none(entry: Any) -> None:
    assert estimate(run(after=entry), "after") is None


def test_an_estimate_with_half_an_interval_has_none() -> None:
    assert estimate(run(after={"mean": 0.5, "low": 0.4, "high": None}), "after") == Estimate(0.5)
    assert estimate(run(after=span(0.5, 0.4, 0.6)), "after") == Estimate(0.5, (0.4, 0.6))
