"""Verdicts by comparison, as pure functions: for your own `score(prompt, completion, answer)`."""

from __future__ import annotations

from tacit.core.numbers import final_number, parse_number


def exact(completion: str, answer: str) -> float:
    """1 when the completion is the answer, white space around either aside."""
    return float(completion.strip() == answer.strip())


def numeric(completion: str, answer: str) -> float | None:
    """1 when the number that the completion ends on (see numbers.final_number) equals the answer; None when the answer is no number."""
    expected = parse_number(answer)
    return None if expected is None else float(final_number(completion) == expected)
