"""Instruments against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tacit.sft import instruments


def test_logit_statistics():
    found = instruments.logit_statistics(torch.tensor([[3.0, 1.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    p = torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64).softmax(0)
    expected = {"target": 1.5, "nontarget": 0.0, "gap": 1.5, "std": math.sqrt(8 / 3) / 2, "mean": 0.5, "centred_norm": math.sqrt(8) / 2, "max": 1.5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["entropy"] == pytest.approx((float(-(p * p.log()).sum()) + math.log(3)) / 2) and found["p_max"] == pytest.approx(
        (float(p[0]) + 1 / 3) / 2
    )


def test_calibration_error():
    confidence, right = torch.tensor([0.95, 0.95, 0.55, 0.55, 1.0]), torch.tensor([True, False, True, True, True])
    assert instruments.calibration_error(confidence, right, bins=10) == pytest.approx((abs(2 - 2.9) + abs(2 - 1.1)) / 5)
    assert instruments.calibration_error(torch.tensor([]), torch.tensor([], dtype=torch.bool)) == 0.0


def test_temperature_makes_an_over_sharp_model_calibrated():
    g = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, 5, generator=g)
    y = torch.multinomial(true.softmax(-1), 1, generator=g)[:, 0]
    sharp = true * 2.5
    fitted = instruments.fitted_temperature(sharp, y)
    assert fitted == pytest.approx(2.5, rel=0.05)
    assert instruments.token_calibration_error(sharp, y, fitted) < 0.02 < 0.15 < instruments.token_calibration_error(sharp, y)


def test_accuracy_by_bin():
    assert instruments.accuracy_by_bin([1.0, 0.0, 1.0], ["hard", "easy", "hard"]) == {"hard": 1.0, "easy": 0.0}
    with pytest.raises(ValueError, match=r"shorter|longer"):
        instruments.accuracy_by_bin([1.0], [])
