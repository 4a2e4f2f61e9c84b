from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tacit.studies.study import Arm, Claim, Measured, Plan, Study


@pytest.fixture
def invented() -> Callable[..., Study]:
    """A study whose arms add what their settings say to a number that depends on the seed; `spoil(arm, seed)` may raise before a cell is measured."""

    def make(effect: float = 1.0, seeds: int = 4, spoil: Callable[[str, int], None] = lambda arm, seed: None) -> Study:
        arms = (Arm("start", {"add": 0.0}), Arm("plain", {"add": 0.0}, after="start"), Arm("method", {"add": effect}, after="start", cost=2.0))
        claims = (
            Claim("better", "the method is better", "score", "method", "plain"),
            Claim("same", "start is plain", "score", "start", "plain", "a = b", 0.5),
        )

        def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
            spoil(arm.name, seed)
            assert (start is None) == (arm.after is None) and (start is None or (start / "left").read_text() == f"start {seed}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "left").write_text(f"{arm.name} {seed}")
            noise = (seed * 7919 + len(arm.name) * 104729) % 13 / 100
            return Measured({"score": seed + arm.settings["add"] + noise}, {"reward": ([0, 1], [0.0, noise])})

        return Study("invented", "An invented study", "About nothing.", lambda preset: Plan(arms, tuple(range(seeds)), claims), measure)

    return make
