from __future__ import annotations

from math import e, exp

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tacit.rl.correction import effective_sample_size, logp_gap, truncated_weights

# two rows, interleaved; the last token is untrained and holds what must never be used
ROWS = torch.tensor([4, 1, 4, 1, 4])
MASK = torch.tensor([True, True, True, True, False])
OLD = torch.tensor([-1.0, -2.0, -0.5, -3.0, torch.nan], dtype=torch.float64)
BEHAVIOUR = torch.tensor([-1.5, -2.0, -0.25, -5.0, -torch.inf], dtype=torch.float64)  # gaps .5, 0, -.25, 2


def f64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_token_weights():
    found = truncated_weights(OLD, BEHAVIOUR, 2.0, rows=ROWS, mask=MASK)
    assert_close(found, f64([exp(0.5), 1, exp(-0.25), 2, 1]))  # e² = 7.4 is capped


def test_sequence_weights():
    # row 4: .5 - .25 = .25; row 1: 0 + 2, capped
    found = truncated_weights(OLD, BEHAVIOUR, 3.0, level="sequence", rows=ROWS, mask=MASK)
    assert_close(found, f64([exp(0.25), 3, exp(0.25), 3, exp(0.25)]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_do_not_depend_on_the_order_of_tokens(level):
    order = torch.tensor([3, 0, 4, 2, 1])
    expected = truncated_weights(OLD, BEHAVIOUR, 3.0, level, rows=ROWS, mask=MASK)
    found = truncated_weights(OLD[order], BEHAVIOUR[order], 3.0, level, rows=ROWS[order], mask=MASK[order])
    assert_close(found, expected[order], rtol=1e-14, atol=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_carry_no_gradient_and_never_overflow(level):
    old = torch.tensor([500.0, 0.0], requires_grad=True)  # a float32 exp overflows at 89
    found = truncated_weights(old, torch.zeros(2), 5.0, level, rows=torch.tensor([0, 1]), mask=torch.ones(2, dtype=torch.bool))
    assert not found.requires_grad
    assert found.tolist() == [5.0, 1.0]


def test_unknown_level():
    with pytest.raises(ValueError, match="unknown level of importance weights 'row': choose token or sequence"):
        truncated_weights(OLD, BEHAVIOUR, 2.0, "row", rows=ROWS, mask=MASK)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.7, 0.7], 1.0),
        ([1, 0, 0, 0], 1 / 4),
        ([1, 2, 3], 36 / (3 * 14)),
        ([5], 1.0),
    ],
)
def test_effective_sample_size(weights, expected):
    assert effective_sample_size(f64(weights)) == pytest.approx(expected, rel=1e-15)


def test_effective_sample_size_ignores_scale_and_order():
    weights = f64([0.2, 1.5, 0.9, 3.1])
    assert effective_sample_size(100 * weights.flip(0)) == pytest.approx(effective_sample_size(weights), rel=1e-14)


def test_logp_gap():
    # gaps .5, 0, -.25, 2: k1 = -mean gap; k3 = mean(e^gap - 1 - gap)
    found = logp_gap(OLD, BEHAVIOUR, MASK)
    k3 = ((exp(0.5) - 1.5) + 0 + (exp(-0.25) - 0.75) + (e**2 - 3)) / 4
    assert found == pytest.approx({"mean_abs": 2.75 / 4, "max_abs": 2.0, "k1": -2.25 / 4, "k3": k3}, rel=1e-14)


def test_logp_gap_of_equal_policies_is_zero():
    assert logp_gap(OLD, OLD, MASK) == {"mean_abs": 0, "max_abs": 0, "k1": 0, "k3": 0}


def test_logp_gap_averages_to_the_kl_of_behaviour_from_old():
    """Tokens enumerated in proportion to the behaviour policy (.5, .25, .25): both estimates are the exact divergence."""
    behaviour, old = f64([0.5, 0.25, 0.25]).log(), f64([0.2, 0.5, 0.3]).log()
    drawn = torch.tensor([0, 0, 1, 2])
    exact = float((behaviour.exp() * (behaviour - old)).sum())
    found = logp_gap(old[drawn], behaviour[drawn], torch.ones(4, dtype=torch.bool))
    assert found["k1"] == pytest.approx(exact, rel=1e-14)
    assert found["k3"] == pytest.approx(exact, rel=1e-14)
