"""An invented study, and recorded answers like LaRA's, small and made up, for the study of routers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tacit.routing import lara
from tacit.routing.table import Record
from tacit.studies import routes
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


TASKS = ("location", "reasoning", "comp", "hallu")
QUESTIONS = {
    "location": "Who signed part {n} in 1987?",
    "reasoning": "Why did the plan of part {n} fail?",
    "comp": "How do both halves of part {n} differ overall?",
    "hallu": "What exactly is the strategy for next year of part {n}?",
}


def made_up(answerers: tuple[str, ...]) -> dict[str, list[Record]]:
    """12 documents of 12 questions. Long context is better for comparisons, retrieval for what is absent, with exceptions."""
    return {name: [_record(name, weak, n) for n in range(144)] for weak, name in enumerate(answerers)}


def _record(name: str, weak: int, n: int) -> Record:
    document, task = n % 12, TASKS[(n // 12) % 4]
    odd = (7 * n + weak) % 5 == 0
    lc = {"location": 1.0, "reasoning": float(n % 3 > 0), "comp": 1.0, "hallu": 0.0}[task]
    rag = {"location": 1.0, "reasoning": float(n % 2), "comp": 0.0, "hallu": 1.0}[task]
    return Record(
        qid=str(n),
        doc_id=f"{'128k' if document % 2 else '32k'}/{('book', 'paper', 'financial')[document % 3]}/{document}",
        question=QUESTIONS[task].format(n=n),
        doc_type=("book", "paper", "financial")[document % 3],
        doc_tokens=100_000 if document % 2 else 30_000,
        task=task,
        answer_model=name,
        strength=lara.ANSWERERS.get(name, "unknown"),
        rag_score=lc if odd else rag,
        lc_score=rag if odd else lc,
        rag_cost=3_100,
        lc_cost=100_100 if document % 2 else 30_100,
        rag_refused=task == "hallu" and not odd,
    )


@pytest.fixture
def made_up_answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, ...]], dict[str, list[Record]]]:
    """In place of LaRA's."""
    routes.tables.cache_clear()
    monkeypatch.setattr(lara, "tables", made_up)
    return made_up
