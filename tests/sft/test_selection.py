"""Selection by entropy: claim 14 of the specification's section 6 and its reference vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tacit.sft import selection
from tacit.sft.selection import selection_weights

WEAK, STRONG = (torch.tensor(h, dtype=torch.float64) for h in ([1, 0.6, 0.4, 0.2, 0.05], [0.5, 0.5, 0.45, 0.02, 0.05]))
EXPECTED = {
    "v2": [0.34642, 0.31563, 0.28099, 0.02617, 0.03079],
    "v1": [0.58548, 0.16393, 0.05269, 0.19204, 0.00586],
    "code": [0.55727, 0.12923, 0.11778, 0.19350, 0.00222],
}
FORMULAS = pytest.mark.parametrize("formula", list(EXPECTED))
ENTROPIES = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=12).map(lambda x: torch.tensor(x, dtype=torch.float64).T)


@FORMULAS
def test_14_reference(formula):
    torch.testing.assert_close(selection_weights(WEAK, STRONG, formula), torch.tensor(EXPECTED[formula], dtype=torch.float64), rtol=0, atol=1.1e-5)


@FORMULAS
@given(ENTROPIES)
def test_14_a_distribution_that_follows_its_examples(formula, entropies):
    weak, strong = entropies
    p = selection_weights(weak, strong, formula)
    assert (p >= 0).all() and float(p.sum()) == pytest.approx(1.0)
    order = torch.randperm(len(weak), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(selection_weights(weak[order], strong[order], formula), p[order], rtol=0, atol=1e-9)


def test_14_the_code_formula_knows_no_unit():
    torch.testing.assert_close(selection_weights(WEAK * 7, STRONG * 7, "code"), selection_weights(WEAK, STRONG, "code"), rtol=0, atol=1e-12)
    terms = [selection_weights(WEAK, STRONG, "code", *(float(i == j) for j in range(3))) for i in range(3)]  # each alone sums to 1
    mixed = 0.1 * terms[0] + 0.8 * terms[1] + 0.1 * terms[2]
    torch.testing.assert_close(mixed, selection_weights(WEAK, STRONG, "code"), rtol=0, atol=1e-12)


@FORMULAS
def test_empty_sums_and_no_weight_at_all(formula):
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(selection_weights(zero, zero, formula), one / 4)
    for pair in ((one, zero), (zero, one), (one, one)):
        assert float(selection_weights(*pair, formula).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_bad_entropies(bad):
    with pytest.raises(ValueError, match="entropies must be finite and not negative"):
        selection_weights(WEAK, torch.tensor([0.5, bad, 0, 0, 0]))


def test_drawing():
    p = torch.tensor([0.0, 0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    many = selection.draw(p, 20_000, 42, deduplicate=False)
    share = np.bincount(many.numpy(), minlength=5) / len(many)
    assert share[0] == share[4] == 0 and share[1:4] == pytest.approx([0.5, 0.25, 0.25], abs=0.015)
    once = selection.draw(p, 20_000, 42)
    assert sorted(once.tolist()) == [1, 2, 3] and once.tolist() == list(dict.fromkeys(many.tolist()))
    assert torch.equal(many, selection.draw(p, 20_000, 42, deduplicate=False)) and not torch.equal(
        many, selection.draw(p, 20_000, 43, deduplicate=False)
    )


def test_14_unique_fraction():
    n = 5000
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    assert selection.expected_unique_fraction(uniform, n) == pytest.approx(0.632, abs=5e-4)
    skewed = torch.arange(1, n + 1, dtype=torch.float64) / (n * (n + 1) / 2)
    for p in (uniform, skewed):
        assert len(selection.draw(p, n, 0)) / n == pytest.approx(selection.expected_unique_fraction(p, n), abs=0.02)


def test_random_subset():
    chosen = selection.random_subset(50, 20, 3)
    assert len(set(chosen.tolist())) == 20 and min(chosen) >= 0 and max(chosen) < 50
    assert torch.equal(chosen, selection.random_subset(50, 20, 3)) and not torch.equal(chosen, selection.random_subset(50, 20, 4))


def test_entropies_of_examples():
    found = selection.example_entropies(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 2, 3]))
    assert found.tolist() == [2.0, 5.0] and found.dtype == torch.float64
    with pytest.raises(ValueError, match="an example without a supervised token has no entropy"):
        selection.example_entropies(torch.tensor([1.0]), torch.tensor([0, 1, 1]))


def test_gap():
    gap: Tensor = torch.tensor([1.0, 1.0])
    assert selection.entropy_gap(gap, gap * 0.75) == pytest.approx(0.25) and selection.entropy_gap(gap, gap) == 0.0
