"""The formulas of joint-logit training (WMSS, arXiv 2602.08222 v2; WD-JT): tensors in, tensors out, logits (..., V) and targets (...,).

λ weighs the strong model. Training takes the same numbers from hidden states, see `core.mixedhead`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixed_logits(strong: Tensor, weak: Tensor, lam: float) -> Tensor:
    """λ z_strong + (1-λ) z_weak. Source: equation 5."""
    return lam * strong + (1.0 - lam) * weak


def joint_cross_entropy(strong: Tensor, weak: Tensor, targets: Tensor, lam: float) -> Tensor:
    """-log softmax(z_mix)[y] per token (...,), in nats. Source: equation 6, before the mean."""
    return -mixed_logits(strong, weak, lam).log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def residual(logits: Tensor, targets: Tensor) -> Tensor:
    """∂CE/∂z = P - e_y; the branches get λ and 1-λ times that of the mixed logits. Source: section 2.2 of the specification."""
    return logits.softmax(-1).scatter_add(-1, targets[..., None], -torch.ones_like(logits[..., :1]))


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """m_k = z[y] - z[k] (..., V)."""
    return logits.gather(-1, targets[..., None]) - logits


def log_normaliser(strong: Tensor, weak: Tensor, lam: float) -> Tensor:
    """log C_λ = log Σ P_weak^{1-λ} P_strong^λ (...,), at most 0: P_mix is their normalised product. [inferred]"""
    return mixed_logits(strong.log_softmax(-1), weak.log_softmax(-1), lam).logsumexp(-1)


def amplified(logp_mix: Tensor, logp_strong: Tensor, lam: float) -> Tensor:
    """Whether |∂L/∂z_strong[y]| exceeds that of plain SFT: λ (1 - P_mix(y)) > 1 - P_strong(y). Never where P_strong(y) <= 1-λ. [inferred]"""
    return lam * -torch.expm1(logp_mix) > -torch.expm1(logp_strong)


def hessian(logits: Tensor) -> Tensor:
    """∂²CE/∂z² = diag(P) - PPᵀ (..., V, V)."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def sensitivity_crossover(norm_strong: float, norm_weak: float) -> float:
    """λ* = 1 / (1 + √a), a = (‖z̃_strong‖ / ‖z̃_weak‖)². A heuristic: it assumes that sensitivity grows as the squared centred norm."""
    return 1.0 / (1.0 + norm_strong / norm_weak)
