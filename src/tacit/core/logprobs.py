"""Token log-probs and entropies straight from hidden states: the vocabulary is visited in chunks of rows, forward and backward.

A whole (N, V) logits tensor exists only where it is smaller than one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**22  # logits held at a time: 16 MB in fp32


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden weightᵀ / temperature) at `targets`, and the entropy of that distribution when asked, both in nats.

    hidden (N, D), weight (V, D), bias (V,), targets (N,) int64 -> (N,), (N,) or None; in fp32, or fp64 when hidden is.
    Differentiable in hidden, weight and bias; backward recomputes each chunk's logits instead of keeping them.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # cast here once, so that forward and the recomputation in backward see the same numbers
        hidden, weight = hidden.to(torch.get_autocast_dtype(kind)), weight.to(torch.get_autocast_dtype(kind))
        bias = None if bias is None else bias.to(hidden.dtype)
    with torch.autocast(kind, enabled=False):
        logp, ent = _ChunkedHead.apply(hidden, weight, bias, targets, temperature, entropy)
    return logp, ent if entropy else None


def logits_logprobs(logits: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """The same from logits (N, V) that the model has already made: the generic path, for heads that do more than a matrix product."""
    logits = _accurate(logits) / temperature
    log_normaliser = logits.logsumexp(-1)
    logp = logits.gather(-1, targets[:, None])[:, 0] - log_normaliser
    if not entropy:
        return logp, None
    return logp, log_normaliser - (logits.softmax(-1) * logits).sum(-1)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, CHUNK_ELEMENTS // len(weight))
        logp = hidden.new_empty(len(hidden), dtype=_accurate_dtype(hidden.dtype))
        log_normaliser, ent = torch.empty_like(logp), torch.zeros_like(logp)
        for part in _slices(len(hidden), rows):
            logits = _logits(hidden[part], weight, bias, temperature)
            log_normaliser[part] = logits.logsumexp(-1)
            logp[part] = logits.gather(-1, targets[part, None])[:, 0] - log_normaliser[part]
            if entropy:
                probs = (logits - log_normaliser[part, None]).exp_()
                ent[part] = log_normaliser[part] - probs.mul_(logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_normaliser, ent)
        ctx.temperature, ctx.rows, ctx.entropy = temperature, rows, entropy
        return logp, ent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_logp, grad_entropy = gradients
        hidden, weight, bias, targets, log_normaliser, ent = ctx.saved_tensors
        grad_hidden, accurate = torch.empty_like(hidden), log_normaliser.dtype  # a sum over many chunks kept in bf16 would lose the late ones
        grad_weight = torch.zeros_like(weight, dtype=accurate) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=accurate) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _slices(len(hidden), ctx.rows):
            logits = _logits(hidden[part], weight, bias, ctx.temperature).sub_(log_normaliser[part, None])  # log-probs
            probs = logits.exp()
            grad = probs * -grad_logp[part, None]
            if ctx.entropy:  # dH/dz = -p (log p + H)
                grad.sub_(grad_entropy[part, None] * probs * (logits + ent[part, None]))
            grad.scatter_add_(-1, targets[part, None], grad_logp[part, None])
            grad.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                if grad.dtype == accurate:
                    grad_weight.addmm_(grad.T, hidden[part])  # in place
                else:
                    grad_weight += grad.T @ hidden[part]
        grad_weight, grad_bias = (None if g is None else g.to(weight.dtype) for g in (grad_weight, grad_bias))
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = _accurate(torch.nn.functional.linear(hidden, weight, bias))
    return logits if temperature == 1.0 else logits / temperature


def _accurate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _accurate(x: Tensor) -> Tensor:
    return x.to(_accurate_dtype(x.dtype))


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
