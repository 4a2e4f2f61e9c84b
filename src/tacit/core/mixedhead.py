"""Log-probs of two language models' mixed logits straight from their hidden states, in chunks of rows, forward and backward.

Neither model's (N, V) logits exist whole, only one chunk of each: what two heads need beyond one is a second chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tacit.core.logprobs import CHUNK_ELEMENTS


class Head(NamedTuple):
    """Where logits come from: hidden weightᵀ + bias; without a weight, `hidden` (N, V) are the logits. Shapes (N, D), (V, D), (V,)."""

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def vocabulary(self) -> int:
        return self.hidden.shape[1] if self.weight is None else len(self.weight)


class MixedStats(NamedTuple):
    """Per token (N,), in nats: log P_mix(y); its mean over the vocabulary; and, without gradient, log P_strong(y), log P_weak(y), log C_λ."""

    logp: Tensor
    mean_logp: Tensor
    logp_strong: Tensor
    logp_weak: Tensor
    log_c: Tensor


def mixed_logprobs(strong: Head, weak: Head | None, targets: Tensor, lam: float, *, shuffle_seed: int | None = None) -> MixedStats:
    """log softmax(λ z_strong + (1-λ) z_weak) at `targets` (N,); differentiable in hidden, weight and bias of both heads.

    Without a weak head its logits count as constant: softmax(λ z_strong), the control D0. With `shuffle_seed` the weak logits of wrong tokens change
    places at random in each row, the target's stays. Raises ValueError when the vocabularies differ.

    Source: WMSS (arXiv 2602.08222 v2), equations 5 and 6; C_λ = Σ P_weak^{1-λ} P_strong^λ.
    """
    if weak is not None and weak.vocabulary != strong.vocabulary:
        raise ValueError(f"the weak model has {weak.vocabulary} logits and the strong one {strong.vocabulary}: mixing needs one vocabulary")
    kind = strong.hidden.device.type
    parts = [*strong, *(weak or (None, None, None))]
    if torch.is_autocast_enabled(kind):  # cast here once, so that forward and the recomputation in backward see the same numbers
        parts = [None if x is None else x.to(torch.get_autocast_dtype(kind)) for x in parts]
    with torch.autocast(kind, enabled=False):
        return MixedStats(*_MixedHeads.apply(*parts, targets, lam, shuffle_seed))


def wrong_tokens_shuffled(targets: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
    """(N, V) a random permutation of the vocabulary for each row that leaves the target (N,) where it is; for `gather`."""
    order = torch.rand(len(targets), vocabulary - 1, generator=generator).argsort(-1).to(targets.device)
    target = targets[:, None]
    places = torch.arange(vocabulary, device=targets.device).expand(len(targets), -1).clone()
    others = places[:, :-1]
    return places.scatter(-1, others + (others >= target), order + (order >= target))


class _MixedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hs: Tensor, ws: Tensor, bs: Tensor, hw: Tensor, ww: Tensor, bw: Tensor, targets: Tensor, lam: float, seed: int | None
    ) -> Any:
        dtype = torch.float64 if hs.dtype == torch.float64 else torch.float32
        heads = Head(hs, ws, bs), None if hw is None else Head(hw, ww, bw)
        ctx.rows, ctx.lam, ctx.seed = max(1, CHUNK_ELEMENTS // heads[0].vocabulary), lam, seed
        out = [torch.empty(len(hs), dtype=dtype, device=hs.device) for _ in range(5)]
        logp, mean, logp_strong, logp_weak, log_c = out
        normaliser = torch.empty_like(logp)
        for part in _parts(len(hs), ctx.rows):
            at = targets[part, None]
            strong, weak, _ = _chunk(heads, part, at[:, 0], seed, dtype)
            lse_strong, lse_weak = strong.logsumexp(-1), weak.logsumexp(-1)
            logp_strong[part], logp_weak[part] = strong.gather(-1, at)[:, 0] - lse_strong, weak.gather(-1, at)[:, 0] - lse_weak
            mixed = strong.mul_(lam).add_(weak, alpha=1.0 - lam)
            normaliser[part] = mixed.logsumexp(-1)
            logp[part], mean[part] = mixed.gather(-1, at)[:, 0] - normaliser[part], mixed.mean(-1) - normaliser[part]
            log_c[part] = normaliser[part] - lam * lse_strong - (1.0 - lam) * lse_weak
        ctx.save_for_backward(hs, ws, bs, hw, ww, bw, targets, normaliser)
        ctx.mark_non_differentiable(logp_strong, logp_weak, log_c)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, targets, normaliser = ctx.saved_tensors
        heads = Head(*tensors[:3]), None if tensors[3] is None else Head(*tensors[3:])
        grad_logp, grad_mean = gradients[:2]
        sums = [
            None if t is None or not ctx.needs_input_grad[i] else torch.zeros_like(t, dtype=_kept(i, t, normaliser)) for i, t in enumerate(tensors)
        ]
        for part in _parts(len(targets), ctx.rows):
            at = targets[part, None]
            strong, weak, order = _chunk(heads, part, at[:, 0], ctx.seed, normaliser.dtype)
            probs = strong.mul_(ctx.lam).add_(weak, alpha=1.0 - ctx.lam).sub_(normaliser[part, None]).exp_()
            grad = probs.mul_(-(grad_logp + grad_mean)[part, None]).add_(grad_mean[part, None] / probs.shape[1])  # e_y - P, and 1/V - P
            grad.scatter_add_(-1, at, grad_logp[part, None])
            _accumulate(sums[:3], heads[0], part, grad * ctx.lam)
            if heads[1] is not None:
                back = grad if order is None else torch.empty_like(grad).scatter_(-1, order, grad)
                _accumulate(sums[3:], heads[1], part, back * (1.0 - ctx.lam))
        return (*(None if s is None else s.to(t.dtype) for s, t in zip(sums, tensors, strict=True)), None, None, None)


def _chunk(heads: Sequence[Head | None], part: slice, targets: Tensor, seed: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (n, V) of both heads, fresh, and the order that the weak ones were brought into."""
    strong, weak = (None if head is None else _logits(head, part, dtype) for head in heads)
    assert strong is not None
    if weak is None:
        return strong, torch.zeros_like(strong), None
    if seed is None:
        return strong, weak, None
    order = wrong_tokens_shuffled(targets, weak.shape[1], torch.Generator().manual_seed(seed + part.start))
    return strong, weak.gather(-1, order), order


def _logits(head: Head, part: slice, dtype: torch.dtype) -> Tensor:
    if head.weight is None:
        return head.hidden[part].to(dtype, copy=True)
    return torch.nn.functional.linear(head.hidden[part], head.weight, head.bias).to(dtype)


def _accumulate(sums: Sequence[Tensor | None], head: Head, part: slice, grad: Tensor) -> None:
    hidden, weight, bias = sums
    if bias is not None:
        bias += grad.sum(0)
    grad = grad.to(head.hidden.dtype)
    if hidden is not None:
        hidden[part] = grad if head.weight is None else grad @ head.weight
    if weight is not None and weight.dtype == grad.dtype:
        weight.addmm_(grad.T, head.hidden[part])  # in place
    elif weight is not None:
        weight += grad.T @ head.hidden[part]


def _kept(place: int, tensor: Tensor, accurate: Tensor) -> torch.dtype:
    """Hidden states get each gradient once; weights and biases sum over chunks, where bf16 would lose the late ones."""
    return tensor.dtype if place % 3 == 0 else accurate.dtype


def _parts(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
