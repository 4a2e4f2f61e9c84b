"""Correction for a sampler that is not quite the trainer: its weights are older, its kernels or its precision differ."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.rl.aggregation import sum_within
from tacit.rl.kl import kl_value


def truncated_weights(old_logp: Tensor, behaviour_logp: Tensor, cap: float, level: str = "token", *, rows: Tensor, mask: Tensor) -> Tensor:
    """min(pi_old / pi_behaviour, cap) per token, (T,), without gradient: what a loss is multiplied with.

    `level` token: each token its own weight. Sequence: all tokens of a row the weight of the completion, the product over its trained tokens;
    `rows` (T,) int64, ids in any order. `mask` (T,) bool; what stands at untrained positions is not used.
    Source: truncated importance sampling, Ionides 2008; between sampler and trainer, Yao et al. 2025, "On the Rollout-Training Mismatch
    in Modern RL Systems". Raises ValueError for another level.
    """
    gap = torch.where(mask, old_logp - behaviour_logp, 0).detach()
    match level:
        case "token":
            return gap.exp().clamp(max=cap)
        case "sequence":
            return sum_within(gap, rows).exp().clamp(max=cap)
        case _:
            raise ValueError(f"unknown level of importance weights {level!r}: choose token or sequence")


def effective_sample_size(weights: Tensor) -> float:
    """(sum w)² / (N sum w²) in [1/N, 1]: the share of the N weights that carries the estimate; 1 when all are equal (Kish 1965)."""
    w = weights.detach().double()
    return float(w.sum().square() / (len(w) * w.square().sum()))


def logp_gap(old_logp: Tensor, behaviour_logp: Tensor, mask: Tensor) -> dict[str, float]:
    """How far trainer and sampler are apart on the trained tokens, in nats; `mask` (T,) bool marks at least one.

    mean_abs and max_abs of the log-prob difference, and KL(behaviour || old) as estimated by k1 and by k3.
    """
    old, behaviour = old_logp.detach()[mask].double(), behaviour_logp.detach()[mask].double()
    gap = (old - behaviour).abs()
    return {
        "mean_abs": float(gap.mean()),
        "max_abs": float(gap.max()),
        "k1": float(kl_value(behaviour, old, "k1").mean()),
        "k3": float(kl_value(behaviour, old, "k3").mean()),
    }
