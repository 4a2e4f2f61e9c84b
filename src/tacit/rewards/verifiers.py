"""Verdicts on a completion, as pure functions: for your own `score(prompt, completion, answer)`, and for `combine.scorer`.

None of them raises on any text, and each takes time linear in its length. None stands for "this cannot be judged".
"""

from __future__ import annotations

from fractions import Fraction

from tacit.core.answers import final_choice
from tacit.core.numbers import final_number, parse_number


def exact(completion: str, answer: str) -> float:
    """1 when the completion is the answer, white space around either aside."""
    return float(completion.strip() == answer.strip())


def numeric(completion: str, answer: str, *, absolute: float = 0.0, relative: float = 0.0) -> float | None:
    """1 when the number that the completion ends on (see numbers.final_number) equals the answer; None when the answer is no number.

    It may be off by `absolute`, or by `relative` times the size of the answer, whichever allows more; both 0 compare exactly. For numbers with
    units see `quantities.quantity`.
    """
    expected, found = parse_number(answer), final_number(completion)
    if expected is None:
        return None
    return float(found is not None and close(found, expected, absolute, relative))


def close(found: Fraction, expected: Fraction, absolute: float, relative: float) -> bool:
    """Whether |found - expected| <= max(absolute, relative · |expected|), in exact arithmetic: numbers may be too large for a float."""
    return abs(found - expected) <= max(Fraction(absolute), Fraction(relative) * abs(expected))


def multiple_choice(completion: str, answer: str, *, letters: str = "ABCDE") -> float | None:
    """1 when the letter that the completion settles on (see answers.final_choice) is the answer's; None when the answer is no letter."""
    expected = answer.strip().strip("().").upper()
    if len(expected) != 1 or expected not in letters:
        return None
    return float(final_choice(completion, letters) == expected)
