from __future__ import annotations

from functools import partial
from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tacit.core.rollouts import lengths_to_offsets, token_index
from tacit.rl.aggregation import aggregate, denominators
from tacit.rl.losses import LOSSES, PolicyLoss, cispo, clipped_ratio, gspo, policy_gradient, sequence_ratio

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
MODES = ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


def f64(values: list[float], grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def close(found: Tensor, expected: list[float]) -> None:
    assert_close(found.detach(), f64(expected), rtol=1e-13, atol=1e-15)


def ones(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool)


def one_row(size: int) -> dict[str, Tensor]:
    return {"rows": torch.zeros(size, dtype=torch.int64), "mask": ones(size)}


def from_ratios(loss, ratios: list[float], advantages: list[float], **options) -> tuple[PolicyLoss, Tensor]:
    """The loss of tokens with these ratios, old log-prob -1 each, and d(sum of losses) / d(logp)."""
    logp = f64([log(r) - 1 for r in ratios], grad=True)
    result = loss(logp, torch.full_like(logp, -1).detach(), f64(advantages), **one_row(len(ratios)) | CLIP | options)
    (grad,) = torch.autograd.grad(result.loss.sum(), logp)
    return result, grad


# --- hand-computed values; d(r A)/d(logp) = r A ---


def test_clipped_ratio():
    # bounds .8 and 1.3; A = 2: r = .5 free, 1 free, 1.5 clipped at 1.3; A = -2: .5 clipped at .8, 1 free, 1.5 free
    result, grad = from_ratios(clipped_ratio, [0.5, 1.0, 1.5, 0.5, 1.0, 1.5], [2, 2, 2, -2, -2, -2])
    close(result.loss, [-0.5 * 2, -1 * 2, -1.3 * 2, 0.8 * 2, 1 * 2, 1.5 * 2])
    close(result.ratio, [0.5, 1.0, 1.5, 0.5, 1.0, 1.5])
    close(grad, [-1, -2, 0, 0, 2, 3])
    assert result.clipped.tolist() == [False, False, True, True, False, False]


def test_dual_clip():
    # A = -2: r = 4 is held at 3, r = 2.5 is not; A = 2 is not touched by it
    result, grad = from_ratios(clipped_ratio, [4.0, 2.5, 0.5, 4.0, 0.5], [-2, -2, -2, 2, 2], dual_clip=3.0)
    close(result.loss, [3 * 2, 2.5 * 2, 0.8 * 2, -1.3 * 2, -0.5 * 2])
    close(grad, [0, 5, 0, 0, -1])
    assert result.clipped.tolist() == [True, False, True, True, False]


# two rows of 2 and 3 tokens, the last untrained: log-ratios .1, .3 | .6, 0, (9)
LOG_RATIOS = [0.1, 0.6, 0.3, 0.0, 9.0]
ROWS = torch.tensor([8, 3, 8, 3, 3])
MASK = torch.tensor([True, True, True, True, False])


def test_gspo():
    # row 8: s = e^(.4/2) = e^.2 = 1.22, free; row 3: s = e^(.6/2) = e^.3 = 1.35 > 1.3, clipped
    logp = f64(LOG_RATIOS, grad=True)
    result = gspo(logp, torch.zeros(5).double(), f64([2, 2, 2, 2, 2]), rows=ROWS, mask=MASK, **CLIP)
    close(result.loss[MASK], [-2 * exp(0.2), -2.6, -2 * exp(0.2), -2.6])
    close(result.ratio[MASK], [exp(0.2), exp(0.3), exp(0.2), exp(0.3)])
    assert result.clipped.tolist() == [False, True, False, True, False]
    close(torch.autograd.grad(result.loss[MASK].sum(), logp)[0], [-2 * exp(0.2), 0, -2 * exp(0.2), 0, 0])


def test_sequence_ratio():
    # row 8: r = e^.4 = 1.49, row 3: r = e^.6 = 1.82; A = -2 on both: free upwards, held by a dual clip of 1.6
    logp = f64(LOG_RATIOS, grad=True)
    result = sequence_ratio(logp, torch.zeros(5).double(), torch.full((5,), -2.0).double(), rows=ROWS, mask=MASK, dual_clip=1.6, **CLIP)
    close(result.loss[MASK], [2 * exp(0.4), 3.2, 2 * exp(0.4), 3.2])
    assert result.clipped.tolist() == [False, True, False, True, False]
    close(torch.autograd.grad(result.loss[MASK].sum(), logp)[0], [2 * exp(0.4), 0, 2 * exp(0.4), 0, 0])


def test_cispo():
    # weights .8 (raised), 1, 1.3 (cut), whatever the sign; times -A logp, with logp = log r - 1
    result, grad = from_ratios(cispo, [0.5, 1.0, 1.5, 1.5], [2, 2, 2, -2])
    close(result.loss, [-0.8 * 2 * (log(0.5) - 1), -2 * -1, -1.3 * 2 * (log(1.5) - 1), 1.3 * 2 * (log(1.5) - 1)])
    close(grad, [-0.8 * 2, -2, -1.3 * 2, 1.3 * 2])  # no token loses its gradient
    assert result.clipped.tolist() == [True, False, True, True]


def test_cispo_without_lower_bound():
    # clip_low = 1, clip_high = 4 is a clamp at 5 from above only
    result, grad = from_ratios(cispo, [0.01, 4.9, 7.0], [1, 1, 1], clip_low=1.0, clip_high=4.0)
    close(grad, [-0.01, -4.9, -5])
    assert result.clipped.tolist() == [False, False, True]


def test_policy_gradient():
    result, grad = from_ratios(policy_gradient, [0.5, 1.5], [2, -3])
    close(result.loss, [-2 * (log(0.5) - 1), 3 * (log(1.5) - 1)])
    close(result.ratio, [0.5, 1.5])
    close(grad, [-2, 3])
    assert not result.clipped.any()


# --- what they share ---

EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@EVERY_LOSS
def test_on_policy_all_have_the_gradient_of_reinforce(loss):
    logp = f64([-0.5, -3.0, -1.2, -0.1], grad=True)
    advantages = f64([1.5, -0.5, 0.0, 2.0])
    result = loss(logp, logp.detach(), advantages, rows=torch.tensor([0, 1, 0, 1]), mask=ones(4), dual_clip=3.0, **CLIP)
    close(torch.autograd.grad(result.loss.sum(), logp)[0], [-1.5, 0.5, 0.0, -2.0])
    close(result.ratio, [1, 1, 1, 1])
    assert not result.clipped.any()


@EVERY_LOSS
def test_only_the_loss_carries_a_gradient(loss):
    logp = f64([-0.5, -3.0], grad=True)
    result = loss(logp, f64([-1, -1]), f64([1, -1]), **one_row(2), dual_clip=None, **CLIP)
    assert result.loss.requires_grad and not result.ratio.requires_grad
    assert result.clipped.dtype == torch.bool
    assert {x.shape for x in (result.loss, result.ratio, result.clipped)} == {(2,)}


@EVERY_LOSS
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_untrained_positions_are_never_used(loss, poison):
    at = torch.tensor([True, False, True])
    results = []
    for filling in (0.0, poison):
        logp, old, advantages = (torch.where(at, f64(x), filling) for x in ([-0.5, 0, -0.7], [-0.6, 0, -0.6], [1, 0, 1]))
        logp.requires_grad_()
        result = loss(logp, old, advantages, rows=torch.zeros(3, dtype=torch.int64), mask=at, dual_clip=3.0, **CLIP)
        scalar = aggregate(result.loss, at, torch.tensor([0, 3]), "token-mean", denominators(at, torch.tensor([0, 3]), 3))
        results.append((scalar.detach(), *torch.autograd.grad(scalar, logp), result.clipped))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
    assert results[1][1][1] == 0 and not results[1][2][1]


@EVERY_LOSS
@pytest.mark.parametrize("log_ratio", [-2000.0, 2000.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_absurdly_stale_tokens_give_finite_losses_and_gradients(loss, log_ratio, advantage):
    logp = torch.tensor([-1.0 + log_ratio, -1.0], requires_grad=True)  # a float32 exp overflows at 89
    result = loss(logp, torch.full((2,), -1.0), torch.full((2,), advantage), **one_row(2), dual_clip=None, **CLIP)
    (grad,) = torch.autograd.grad(result.loss.sum(), logp)
    assert result.loss.isfinite().all() and grad.isfinite().all() and result.ratio.isfinite().all()


@pytest.mark.parametrize("loss", [clipped_ratio, gspo, sequence_ratio])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_clipped_marks_exactly_the_tokens_without_gradient(loss, dual_clip, seed):
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, 40, dtype=torch.float64, generator=generator)
    logp, old, advantages = normal().mul(0.5).requires_grad_(), torch.zeros(40).double(), normal()
    rows, mask = torch.randint(0, 20, (40,), generator=generator), torch.rand(40, generator=generator) < 0.8
    result = loss(logp, old, advantages, rows=rows, mask=mask, dual_clip=dual_clip, **CLIP)
    (grad,) = torch.autograd.grad(result.loss[mask].sum(), logp)
    assert torch.equal(result.clipped, (grad == 0) & mask)
    assert result.clipped.any() and (mask & ~result.clipped).any()


# --- gradients against numerical ones ---


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_gradcheck_of_the_clipped_ratio(dual_clip):
    logp, old = f64([-0.5, -3.0, -1.2, -0.1], grad=True), f64([-0.8, -1.0, -1.25, -1.6])
    loss = partial(clipped_ratio, **one_row(4), dual_clip=dual_clip, **CLIP)
    assert torch.autograd.gradcheck(lambda x: loss(x, old, f64([1.5, -0.5, 1.0, -2.0])).loss, (logp,))


def test_gspo_is_the_gradient_of_its_sequence_objective():
    """Per token the gradient is a stop-gradient construction; averaged over rows it must be that of sum_b -min(s A, clip(s) A) / B."""
    rows, offsets, advantages = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 2, 5]), f64([1.5, 1.5, -2, -2, -2])
    logp, old = f64([-0.5, -3.0, -1.2, -0.1, -0.4], grad=True), f64([-0.6, -3.1, -1.0, -0.3, -0.6])

    def objective(x: Tensor) -> Tensor:
        loss = gspo(x, old, advantages, rows=rows, mask=ones(5), **CLIP).loss
        return aggregate(loss, ones(5), offsets, "seq-mean-token-mean", denominators(ones(5), offsets, 9))

    assert objective(logp).item() == pytest.approx((-1.5 * exp(0.2 / 2) + 2 * exp(0.2 / 3)) / 2, rel=1e-14)
    assert torch.autograd.gradcheck(objective, (logp,))


def test_the_sequence_ratio_is_the_gradient_for_the_completion_as_one_action():
    rows, offsets, advantages = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 2, 5]), f64([1.5, 1.5, -2, -2, -2])
    logp, old = f64([-0.5, -3.0, -1.2, -0.1, -0.4], grad=True), f64([-0.6, -3.1, -1.0, -0.3, -0.6])
    loss = sequence_ratio(logp, old, advantages, rows=rows, mask=ones(5), **CLIP).loss
    found = torch.autograd.grad(aggregate(loss, ones(5), offsets, "seq-mean-token-sum", denominators(ones(5), offsets, 9)), logp)[0]
    plain = -1.5 * (logp[:2] - old[:2]).sum().exp() + 2 * (logp[2:] - old[2:]).sum().exp()
    assert_close(found, torch.autograd.grad(plain / 2, logp)[0], rtol=1e-13, atol=0)


def test_policy_gradient_averages_to_the_gradient_of_the_expected_reward():
    logits, rewards = f64([1.0, -0.5, 0.3], grad=True), f64([2.0, 0.0, -1.0])
    logp = logits.log_softmax(0)
    loss = policy_gradient(logp, logp.detach(), rewards, **one_row(3), **CLIP).loss
    found = torch.autograd.grad((logp.exp().detach() * loss).sum(), logits, retain_graph=True)[0]
    assert_close(found, -torch.autograd.grad((logp.exp() * rewards).sum(), logits)[0], rtol=1e-13, atol=1e-15)


# --- invariances ---


@st.composite
def steps(draw) -> dict:
    lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    total = int(lengths.sum())
    normal = partial(torch.randn, total, dtype=torch.float64, generator=generator)
    mask = torch.rand(total, generator=generator) < 0.8
    order = torch.randperm(len(lengths), generator=generator)
    return {
        "tokens": {"logp": normal() - 2, "advantages": normal(), "mask": mask},
        "gap": 0.3 * normal(),
        "offsets": lengths_to_offsets(lengths),
        "parts": list(order.split(draw(st.integers(1, len(lengths))))),
    }


@settings(max_examples=40, deadline=None)
@given(steps(), st.sampled_from(sorted(LOSSES)), st.sampled_from(MODES))
def test_micro_batches_in_any_order_give_the_loss_and_gradient_of_the_step(step, name, mode):
    tokens, offsets = step["tokens"], step["offsets"]
    old, mask, advantages = tokens["logp"] - step["gap"], tokens["mask"], tokens["advantages"]
    rows = torch.repeat_interleave(offsets.diff())
    counts = denominators(mask, offsets, 5)

    def value_and_gradient(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        logp, total = tokens["logp"].clone().requires_grad_(), torch.zeros(()).double()
        for part in parts:
            at = token_index(offsets, part)
            result = LOSSES[name](logp[at], old[at], advantages[at], rows=-7 * rows[at], mask=mask[at], dual_clip=2.0, **CLIP)
            scalar = aggregate(result.loss, mask[at], lengths_to_offsets(offsets.diff()[part]), mode, counts)
            scalar.backward()
            total += scalar.detach()
        return total, logp.grad

    whole = value_and_gradient([torch.arange(len(offsets) - 1)])
    cut = value_and_gradient(step["parts"])
    assert_close(cut, whole, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(steps(), st.sampled_from(sorted(LOSSES)))
def test_the_order_of_tokens_does_not_matter(step, name):
    tokens, rows = step["tokens"], torch.repeat_interleave(step["offsets"].diff())
    logp, advantages, mask = tokens["logp"], tokens["advantages"], tokens["mask"]
    old, order = logp - step["gap"], torch.randperm(len(logp), generator=torch.Generator().manual_seed(0))
    straight = LOSSES[name](logp, old, advantages, rows=rows, mask=mask, dual_clip=2.0, **CLIP)
    mixed = LOSSES[name](logp[order], old[order], advantages[order], rows=rows[order], mask=mask[order], dual_clip=2.0, **CLIP)
    assert_close(mixed.loss, straight.loss[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(mixed.clipped, straight.clipped[order])
