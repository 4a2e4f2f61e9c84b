"""Log-probs and entropies from hidden states: the values and gradients of log_softmax, in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tacit.core import logprobs
from tacit.core.logprobs import logits_logprobs, token_logprobs

N, D, V = 11, 5, 7


def inputs(dtype: torch.dtype = torch.float64, n: int = N, d: int = D, v: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, targets"""
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in [(n, d), (v, d), (v,)])
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), torch.randint(v, (n,), generator=generator)


def reference(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.fixture(params=[1, 3 * V, 2**22], ids=["row by row", "three rows", "at once"])
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", request.param)
    return request.param


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_gradient_of_log_softmax(chunk, temperature, with_bias):
    hidden, weight, bias, targets = inputs()
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    logp, entropy = token_logprobs(hidden, weight, targets, bias=bias if with_bias else None, temperature=temperature, entropy=True)
    expected = reference(torch.nn.functional.linear(hidden, weight, bias if with_bias else None), targets, temperature)
    torch.testing.assert_close((logp, entropy), expected, rtol=0, atol=1e-12)
    directions = torch.randn(2, N, dtype=torch.float64)
    found_gradients = torch.autograd.grad([logp, entropy], leaves, list(directions))
    torch.testing.assert_close(found_gradients, torch.autograd.grad(expected, leaves, list(directions)), rtol=0, atol=1e-12)


def test_gradcheck(chunk):
    hidden, weight, bias, targets = inputs()
    both = lambda h, w, b: token_logprobs(h, w, targets, bias=b, temperature=0.7, entropy=True)  # noqa: E731
    assert torch.autograd.gradcheck(both, (hidden, weight, bias))
    assert torch.autograd.gradcheck(lambda h, w, b: both(h, w, b)[1], (hidden, weight, bias)), "through the entropy alone"
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets)[0], (hidden, weight)), "without entropy and bias"


def test_a_uniform_distribution():
    logp, entropy = token_logprobs(torch.zeros(3, D), torch.randn(V, D), torch.tensor([0, 3, 6]), entropy=True)
    assert logp.tolist() == pytest.approx([-math.log(V)] * 3) and entropy.tolist() == pytest.approx([math.log(V)] * 3)


def test_a_frozen_head_gets_no_gradient(chunk):
    hidden, weight, bias, targets = inputs()
    logp, entropy = token_logprobs(hidden, weight.detach(), targets, bias=bias.detach())
    assert entropy is None
    logp.sum().backward()
    expected = torch.autograd.grad(reference(hidden @ weight.T + bias, targets, 1.0)[0].sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, rtol=0, atol=1e-12)
    assert weight.grad is None and bias.grad is None


def test_no_tokens():
    hidden, weight, bias, targets = inputs(n=0)
    logp, entropy = token_logprobs(hidden, weight, targets, bias=bias, entropy=True)
    logp.sum().backward()
    assert logp.shape == entropy.shape == (0,) and not weight.grad.any()


def test_huge_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logp, entropy = token_logprobs(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), entropy=True)
    assert logp.tolist() == [0.0, -2e4] and entropy.tolist() == [0.0, 0.0]
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.tolist() == [[0.0], [2.0]]


def test_a_second_derivative_is_refused():
    """The backward pass takes the normaliser for a constant: differentiating it again would be wrong without a word."""
    hidden, weight, _, targets = inputs()
    direction = torch.ones(N, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(token_logprobs(hidden, weight, targets)[0], hidden, direction, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_low_precision_in_and_fp32_out(chunk):
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    logp, entropy = token_logprobs(hidden, weight, targets, bias=bias, entropy=True)
    assert logp.dtype == entropy.dtype == torch.float32
    expected = reference(torch.nn.functional.linear(hidden, weight, bias).float(), targets, 1.0)
    torch.testing.assert_close((logp, entropy), expected, rtol=0, atol=1e-5)
    logp.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.bfloat16


def test_autocast(chunk):
    """Under autocast the head multiplies in bf16, as the model's own would, and the leaves get fp32 gradients."""
    hidden, weight, bias, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logp, entropy = token_logprobs(hidden, weight, targets, bias=bias, entropy=True)
        expected = reference(torch.nn.functional.linear(hidden, weight, bias).float(), targets, 1.0)
    torch.testing.assert_close((logp, entropy), expected, rtol=0, atol=1e-5)
    directions = torch.randn(2, N)
    found_gradients = torch.autograd.grad([logp, entropy], [hidden, weight, bias], list(directions))
    assert {g.dtype for g in found_gradients} == {torch.float32}
    for found, wanted in zip(found_gradients, torch.autograd.grad(expected, [hidden, weight, bias], list(directions)), strict=True):
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_many_chunks_lose_no_gradient_in_bf16(monkeypatch):
    hidden, weight, bias, targets = inputs(torch.bfloat16, n=1024, v=50)
    targets = targets % 3
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    reference(exact[0] @ exact[1].T + exact[2], targets, 1.0)[0].sum().backward()
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 100)
    token_logprobs(hidden, weight, targets, bias=bias)[0].sum().backward()
    for found, wanted in ((weight.grad, exact[1].grad), (bias.grad, exact[2].grad)):
        assert (found.double() - wanted).norm() < 0.005 * wanted.norm()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_logits_of_all_tokens_never_exist(monkeypatch):
    n, v = 300, 500
    hidden, weight, bias, targets = inputs(torch.float32, n=n, v=v)

    def largest() -> int:
        with LargestTensor() as seen:
            logp, entropy = token_logprobs(hidden, weight, targets, bias=bias, temperature=0.7, entropy=True)
            (logp + entropy).sum().backward()
        return seen.size

    assert largest() == n * v, "everything fits one chunk"
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 10 * v)
    assert largest() == 10 * v


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_from_logits(temperature):
    hidden, weight, bias, targets = inputs()
    logits = (hidden @ weight.T + bias).detach().requires_grad_()
    logp, entropy = logits_logprobs(logits, targets, temperature=temperature, entropy=True)
    torch.testing.assert_close((logp, entropy), reference(logits, targets, temperature), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: logits_logprobs(x, targets, temperature=temperature, entropy=True), logits)
    alone, nothing = logits_logprobs(logits.bfloat16(), targets, temperature=temperature)
    assert alone.dtype == torch.float32 and nothing is None
