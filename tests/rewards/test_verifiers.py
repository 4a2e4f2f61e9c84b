from __future__ import annotations

import pytest

from tacit.rewards.verifiers import exact, numeric


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
    ],
)
def test_numeric(completion, answer, reward):
    assert numeric(completion, answer) == reward
