from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.tasks.expressions import parse

NUMBERS = st.integers(0, 99).map(str) | st.decimals(0, 99, places=2).map(str)


@st.composite
def expressions(draw, depth=3):
    """Text with its value, from a tree built by hand: an independent evaluator."""
    if depth == 0 or draw(st.booleans()):
        text = draw(NUMBERS)
        return text, Fraction(text)
    (a, x), (b, y) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    operator = draw(st.sampled_from("+-*" if y == 0 else "+-*/"))
    value = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y}[operator]()
    return f"({a}){operator}({b})", value


@given(expressions())
def test_value(case):
    text, value = case
    assert parse(text).value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("10-4-3", 3),
        ("8/4/2", 1),
        ("2*3/4", Fraction(3, 2)),
        ("-3+5", 2),
        ("-(2-5)", 3),
        ("71+-3", 68),
        ("+4", 4),
        (".5*4", 2),
        ("5.*2", 10),
        ("0.1+0.2", Fraction(3, 10)),
        ("007+1", 8),
        ("100+00", 100),
        (" 1 +\t2 ", 3),
        ("1/3", Fraction(1, 3)),
    ],
)
def test_precedence_signs_and_writing(text, value):
    assert parse(text).value == value


@pytest.mark.parametrize(
    "same",
    [
        ["3*(2*4)", "4*2*3", "(4)*3*2.0", "4 * 03*2"],
        ["8/2/4", "8/(4*2)", "8/4/2"],
        ["0.20*5", ".2*5", "5*0.2"],
        ["1-2+3", "3+1-2", "3-(2-1)", "-2+3+1", "1+-2+3"],
        ["2*(3+4)", "(4+3)*2"],
        ["60*2/3", "2*60/3", "60/3*2"],
        ["5", "5.0", "(5)"],
    ],
)
def test_forms_that_are_one(same):
    assert len({parse(text).form for text in same}) == 1


def test_forms_that_differ():
    sums, products = ["2+2", "2-2", "2+3+4", "3-2", "2-3"], ["2*2", "2/2", "4/2", "2/4", "6/2/3", "2*0.3", "2*3/10", "-2*3"]
    texts = [*sums, *products, "2*3+4", "2*(3+4)", "6/(2/3)", "4", "20", ".4"]
    assert len({parse(text).form for text in texts}) == len(texts)


@given(expressions(), st.randoms())
def test_equal_forms_have_equal_values(case, random):
    """Shuffling the terms of a sum and the factors of a product, in any bracket, keeps the form and the value."""
    text, value = case
    left, right = f"({text})*7", f"7*({text})"
    assert parse(left) == parse(right)
    assert parse(f"({text})+7") == parse(f"7+({text})")
    assert parse(left).value == 7 * value


@pytest.mark.parametrize("text", ["", " ", "()", "3 4", "2**3", "7//2", "(1,2)", "1+", "*2", "(1", "1)", "1..2", "x+1", "1e3", "2^3", "3%2", "1+2=3"])
def test_not_an_expression(text):
    with pytest.raises(ValueError, match="is not an arithmetic expression"):
        parse(text)


def test_division_by_zero():
    with pytest.raises(ZeroDivisionError):
        parse("1/(2-2)")
