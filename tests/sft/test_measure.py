"""What a verifier found: pass@n and accuracy by difficulty, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tacit.core.rollouts import Prompt
from tacit.sft.measure import verified

PROMPTS = [
    Prompt(str(i), "x", None, info) for i, info in enumerate(({"difficulty": "2 digits"}, {"difficulty": "3 digits"}, {"difficulty": "2 digits"}, {}))
]
NAN = math.nan


def test_pass_at_n_and_bins():
    found = verified(np.array([[1, 0], [0, 0], [1, NAN], [1, 1.0]]), PROMPTS)
    assert found == {"pass@2": pytest.approx(2 / 3), "pass@1/2_digits": pytest.approx(0.75), "pass@1/3_digits": 0.0}


def test_what_could_not_be_judged_says_nothing():
    found = verified(np.array([[NAN, NAN], [NAN, NAN], [NAN, NAN], [1, NAN]]), PROMPTS)
    assert list(found) == ["pass@2"] and math.isnan(found["pass@2"])
    assert verified(np.array([[1.0], [0.0], [0.0], [1.0]]), PROMPTS) == {"pass@1/2_digits": 0.5, "pass@1/3_digits": 0.0}
