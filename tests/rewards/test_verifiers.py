from __future__ import annotations

import pytest

from tacit.rewards.verifiers import exact, multiple_choice, numeric


@pytest.mark.parametrize(
    ("completion", "answer", "reward"), [("a b", "a b", 1), (" a b\n", "a b ", 1), ("a  b", "a b", 0), ("A b", "a b", 0), ("", "a", 0)]
)
def test_exact(completion, answer, reward):
    assert exact(completion, answer) == reward


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("so it is 1,234.0", "1234", 1),
        ("#### 5 of 9", "5", 1),
        (r"\boxed{0.50}", ".5", 1),
        ("it is 12", "13", 0),
        ("no number", "13", 0),
        ("12", "twelve", None),
        ("9" * 10**5, "9", 0),
    ],
)
def test_numeric(completion, answer, reward):
    assert numeric(completion, answer) == reward


@pytest.mark.parametrize(
    ("completion", "answer", "options", "reward"),
    [
        ("3.14", "3.14159", {}, 0),
        ("3.14", "3.14159", {"absolute": 0.002}, 1),
        ("3.14", "3.14159", {"absolute": 0.001}, 0),
        ("-990", "-1000", {"relative": 0.01}, 1),
        ("-989", "-1000", {"relative": 0.01}, 0),
        ("0.1", "0.3", {"relative": 10.0, "absolute": 0.0}, 1),
        ("0.001", "0", {"relative": 0.5}, 0),
        ("none", "5", {"absolute": 100.0}, 0),
        ("9" * 400, "9" * 399, {"relative": 9.5}, 1),
    ],
)
def test_numeric_tolerance(completion, answer, options, reward):
    assert numeric(completion, answer, **options) == reward


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("The answer is (B).", "B", 1),
        ("The answer is (B).", "(b)", 1),
        ("C", "B", 0),
        ("no idea", "B", 0),
        ("B", "F", None),
        ("B", "", None),
        ("B", "AB", None),
    ],
)
def test_multiple_choice(completion, answer, reward):
    assert multiple_choice(completion, answer) == reward
