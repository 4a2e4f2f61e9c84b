from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.numbers import final_number, parse_number, write_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24", 24),
        (" 24.0 ", 24),
        ("24.", 24),
        ("024", 24),
        (".5", Fraction(1, 2)),
        ("0.50", Fraction(1, 2)),
        ("-3", -3),
        ("- 3", -3),
        ("+3", 3),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("$1,234", 1234),
        ("-$5", -5),
        ("$-5", -5),
        ("50%", 50),
        ("50 %", 50),
        ("0.1", Fraction(1, 10)),
        *((text, None) for text in ("", "-", "--3", "-$-3", "3 apples", "1/2", "1,23", "1.2.3", "twelve", "1e3", ".", "24..")),
    ],
)
def test_parse(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(24), "24"),
        (Fraction(0), "0"),
        (Fraction(-7), "-7"),
        (Fraction(1, 2), "0.5"),
        (Fraction(-5, 4), "-1.25"),
        (Fraction(1, 1000), "0.001"),
        (Fraction(100), "100"),
        (Fraction(1, 3), None),
        (Fraction(5, 6), None),
    ],
)
def test_write(value, text):
    assert write_number(value) == text


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_what_is_written_is_read_back(value):
    exact = Fraction(value)
    text = write_number(exact)
    assert text is not None and parse_number(text) == exact
    assert "." not in text or not text.endswith("0")  # one way to write it


@given(st.fractions())
def test_only_finite_decimals_are_written(value):
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    assert (write_number(value) is not None) == (rest == 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She has 3 and 4, so 7.\n#### 7", 7),
        ("#### $1,234 in all", 1234),
        ("#### -5", -5),
        ("#### 3\nno: #### 4 (of 9)", 4),
        ("5 of them\n#### none", None),
        (r"so \boxed{12} of 30", 12),
        (r"\boxed{3} and \boxed{x = 4}", 4),
        (r"\boxed{\text{no}} then 8", 8),
        ("12-5", 5),
        ("(2) - 5", 5),
        ("it fell to -5", -5),
        ("it is 0.25.", Fraction(1, 4)),
        ("in 2024, 1,000 came", 1000),
        ("no number", None),
        ("", None),
    ],
)
def test_final_number(text, value):
    assert final_number(text) == value


def test_what_is_too_long_is_no_number():
    assert parse_number("9" * 400) == 10**400 - 1
    assert parse_number("9" * 401) is None and parse_number("-" + " " * 10**5 + "1") is None
    assert final_number("9" * 10**5) is None
