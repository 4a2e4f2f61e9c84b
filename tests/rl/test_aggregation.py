from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tacit.core.rollouts import Ragged, lengths_to_offsets, token_index
from tacit.rl.aggregation import Denominators, aggregate, denominators, sum_within

MODES = ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]

# rows: (1, 2, 3*), (4), (), (5*), with * untrained: 3 trained tokens in 4 rows
LOSS = torch.tensor([1, 2, 3, 4, 5], dtype=torch.float64)
MASK = torch.tensor([True, True, False, True, False])
OFFSETS = torch.tensor([0, 3, 4, 4, 5])


def test_denominators_count_every_row():
    assert denominators(MASK, OFFSETS, max_length=10) == Denominators(tokens=3.0, sequences=4.0, length=10.0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", (1 + 2 + 4) / 3),
        ("token-sum", 1 + 2 + 4),
        ("seq-mean-token-mean", ((1 + 2) / 2 + 4 / 1 + 0 + 0) / 4),
        ("seq-mean-token-sum", (1 + 2 + 4) / 4),
        ("seq-mean-token-sum-norm", (1 + 2 + 4) / (4 * 10)),
    ],
)
def test_values(mode, expected):
    found = aggregate(LOSS, MASK, OFFSETS, mode, denominators(MASK, OFFSETS, 10))
    assert found.shape == () and found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("token-mean", [1 / 3, 1 / 3, 0, 1 / 3, 0]),
        ("token-sum", [1, 1, 0, 1, 0]),
        ("seq-mean-token-mean", [1 / 8, 1 / 8, 0, 1 / 4, 0]),
        ("seq-mean-token-sum", [1 / 4, 1 / 4, 0, 1 / 4, 0]),
        ("seq-mean-token-sum-norm", [1 / 40, 1 / 40, 0, 1 / 40, 0]),
    ],
)
def test_gradients(mode, weights):
    loss = LOSS.clone().requires_grad_()
    aggregate(loss, MASK, OFFSETS, mode, denominators(MASK, OFFSETS, 10)).backward()
    assert_close(loss.grad, torch.tensor(weights, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_untrained_positions_are_never_read(mode, poison):
    counts = denominators(MASK, OFFSETS, 10)
    loss = torch.where(MASK, LOSS, poison).requires_grad_()
    found = aggregate(loss, MASK, OFFSETS, mode, counts)
    found.backward()
    assert torch.equal(found, aggregate(LOSS, MASK, OFFSETS, mode, counts))
    assert loss.grad.isfinite().all() and (loss.grad[~MASK] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_trained_tokens_is_zero(mode):
    nothing = torch.zeros_like(MASK)
    assert aggregate(LOSS, nothing, OFFSETS, mode, denominators(nothing, OFFSETS, 10)) == 0


def test_a_masked_row_leaves_the_others_gradient_alone():
    # a row (6, 6) loses its tokens: with sequence means the other rows' gradients stay, with token-mean they would grow
    loss, offsets = torch.tensor([1.0, 2.0, 6.0, 6.0], dtype=torch.float64), torch.tensor([0, 2, 4])
    for mode in ["seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]:
        grads = []
        for mask in [torch.tensor([True] * 4), torch.tensor([True, True, False, False])]:
            x = loss.clone().requires_grad_()
            aggregate(x, mask, offsets, mode, denominators(mask, offsets, 4)).backward()
            grads.append(x.grad[:2])
        assert torch.equal(*grads)


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown aggregation 'mean': choose token-mean"):
        aggregate(LOSS, MASK, OFFSETS, "mean", denominators(MASK, OFFSETS, 10))


@st.composite
def steps(draw) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Losses, mask and offsets of a step, and its rows dealt out over micro-batches in any order."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    total = sum(lengths)
    loss = torch.randn(total, dtype=torch.float64, generator=generator)
    mask = torch.rand(total, generator=generator) < 0.7
    order = torch.randperm(len(lengths), generator=generator)
    return loss, mask, lengths_to_offsets(torch.tensor(lengths)), list(order.split(draw(st.integers(1, len(lengths)))))


@settings(max_examples=60, deadline=None)
@given(steps(), st.sampled_from(MODES))
def test_micro_batches_add_up_to_the_step(step, mode):
    loss, mask, offsets, parts = step
    counts = denominators(mask, offsets, 5)
    whole, cut = loss.clone().requires_grad_(), loss.clone().requires_grad_()
    expected = aggregate(whole, mask, offsets, mode, counts)
    expected.backward()
    found = []
    for rows in parts:
        at = token_index(offsets, rows)
        found.append(aggregate(cut[at], mask[at], Ragged(loss, offsets).select(rows).offsets, mode, counts))
        found[-1].backward()
    assert_close(torch.stack(found).sum(), expected, rtol=1e-12, atol=1e-12)
    assert_close(cut.grad, whole.grad, rtol=1e-12, atol=1e-12)


def test_sum_within():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    assert sum_within(values, torch.tensor([5, -1, 5, 2])).tolist() == [5, 2, 5, 8]
    assert sum_within(values[:0], torch.tensor([], dtype=torch.int64)).tolist() == []
