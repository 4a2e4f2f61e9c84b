"""Two heads in chunks: the loss and every gradient of the plain formula, and no whole logits anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tacit.core import mixedhead
from tacit.core.logprobs import token_logprobs
from tacit.core.mixedhead import Head, mixed_logprobs, wrong_tokens_shuffled

N, V = 23, 17


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(mixedhead, "CHUNK_ELEMENTS", 5 * V)


def heads(dtype: torch.dtype = torch.float64, bias: bool = True) -> tuple[Head, Head, Tensor]:
    """A strong head of width 7 and a weak one of width 4, and targets."""
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    strong, weak = (Head(make(N, d), make(V, d), make(V) if bias else None) for d in (7, 4))
    return strong, weak, torch.randint(V, (N,), generator=g)


def logits(head: Head) -> Tensor:
    return torch.nn.functional.linear(head.hidden, head.weight, head.bias)  # pyright: ignore[reportArgumentType]


def leaves(*found: Head) -> list[Tensor]:
    return [x for head in found for x in head if x is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.42, 1.0])
def test_values_and_gradients_are_those_of_the_plain_formula(lam, bias):
    strong, weak, y = heads(bias=bias)
    stats = mixed_logprobs(strong, weak, y, lam)
    plain = (lam * logits(strong) + (1 - lam) * logits(weak)).log_softmax(-1)
    at = y[:, None]
    torch.testing.assert_close(stats.logp, plain.gather(-1, at)[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.mean_logp, plain.mean(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.logp_strong, logits(strong).log_softmax(-1).gather(-1, at)[:, 0].detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.logp_weak, logits(weak).log_softmax(-1).gather(-1, at)[:, 0].detach(), rtol=0, atol=1e-12)
    log_c = (lam * logits(strong).log_softmax(-1) + (1 - lam) * logits(weak).log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(stats.log_c, log_c.detach(), rtol=0, atol=1e-12)
    assert not stats.log_c.requires_grad
    pull = torch.linspace(-1, 2, N, dtype=torch.float64)
    found = torch.autograd.grad((stats.logp * pull + 0.3 * stats.mean_logp).sum(), leaves(strong, weak))
    expected = torch.autograd.grad((plain.gather(-1, at)[:, 0] * pull + 0.3 * plain.mean(-1)).sum(), leaves(strong, weak))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_lambda_one_is_plain_training(dtype, tolerance):
    strong, weak, y = heads(dtype)
    mixed = mixed_logprobs(strong, weak, y, 1.0).logp
    plain = token_logprobs(strong.hidden, strong.weight, y, bias=strong.bias)[0]  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(mixed, plain, rtol=tolerance, atol=tolerance)
    found, expected = (torch.autograd.grad(x.mean(), leaves(strong), retain_graph=True) for x in (mixed, plain))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert all(not g.any() for g in torch.autograd.grad(mixed.mean(), leaves(weak)))


def test_no_weak_head_is_temperature():
    """The D0 identity: constant weak logits are training at temperature 1/λ."""
    strong, _weak, y = heads()
    constant = Head(torch.full((N, V), 3.0, dtype=torch.float64))
    alone, uniform = mixed_logprobs(strong, None, y, 0.5), mixed_logprobs(strong, constant, y, 0.5)
    torch.testing.assert_close(alone, uniform, rtol=0, atol=1e-12)
    tempered = token_logprobs(strong.hidden, strong.weight, y, bias=strong.bias, temperature=2.0)[0]  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(alone.logp, tempered, rtol=0, atol=1e-12)


def test_heads_may_be_logits():
    strong, weak, y = heads()
    a, b = Head(logits(strong).detach().requires_grad_()), Head(logits(weak).detach().requires_grad_())
    torch.testing.assert_close(mixed_logprobs(a, b, y, 0.4).logp, mixed_logprobs(strong, weak, y, 0.4).logp, rtol=0, atol=1e-12)
    grad_a, grad_b = torch.autograd.grad(mixed_logprobs(a, b, y, 0.4).logp.sum(), [a.hidden, b.hidden])
    torch.testing.assert_close(grad_a * 0.6, grad_b * 0.4, rtol=0, atol=1e-12)


def test_the_shuffle_keeps_the_target_and_the_values():
    strong, weak, y = heads()
    order = wrong_tokens_shuffled(y, V, torch.Generator().manual_seed(1))
    assert torch.equal(order.sort(-1).values, torch.arange(V).expand(N, -1)) and torch.equal(order.gather(-1, y[:, None])[:, 0], y)
    assert (order != torch.arange(V)).double().mean() > 0.7
    chunks = [wrong_tokens_shuffled(y[i : i + 5], V, torch.Generator().manual_seed(9 + i)) for i in range(0, N, 5)]
    plain = (0.5 * logits(strong) + 0.5 * logits(weak).gather(-1, torch.cat(chunks))).log_softmax(-1).gather(-1, y[:, None])[:, 0]
    found = mixed_logprobs(strong, weak, y, 0.5, shuffle_seed=9)
    torch.testing.assert_close(found.logp, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logp_weak, mixed_logprobs(strong, weak, y, 0.5).logp_weak, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(x.sum(), leaves(strong, weak)) for x in (found.logp, plain)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_a_frozen_weak_head_gets_no_gradient():
    strong, weak, y = heads()
    frozen = Head(weak.hidden.detach(), weak.weight.detach(), weak.bias)  # pyright: ignore[reportOptionalMemberAccess]
    mixed_logprobs(strong, frozen, y, 0.5).logp.sum().backward()
    assert frozen.hidden.grad is None and strong.hidden.grad is not None


def test_low_precision_heads_under_autocast():
    strong, weak, y = heads(torch.float32)
    exact = mixed_logprobs(strong, weak, y, 0.5).logp
    with torch.autocast("cpu", torch.bfloat16):
        low = mixed_logprobs(strong, weak, y, 0.5).logp
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.1)
    grads = torch.autograd.grad(low.sum(), leaves(strong, weak))
    assert all(g.dtype == torch.float32 for g in grads)


def test_another_vocabulary_is_refused():
    strong, weak, y = heads()
    with pytest.raises(ValueError, match="the weak model has 16 logits and the strong one 17: mixing needs one vocabulary"):
        mixed_logprobs(strong, Head(weak.hidden, weak.weight[:-1]), y, 0.5)  # pyright: ignore[reportOptionalSubscript]


def test_never_more_than_a_chunk_of_logits(monkeypatch):
    sizes: list[int] = []
    real = mixedhead._logits
    monkeypatch.setattr(mixedhead, "_logits", lambda *a: sizes.append((out := real(*a)).numel()) or out)
    strong, weak, y = heads()
    mixed_logprobs(strong, weak, y, 0.5).logp.sum().backward()
    assert max(sizes) <= 5 * V and sum(sizes) == 4 * N * V
