"""Policy losses per token, unreduced: how far a token's log-prob is pushed, given its advantage. `aggregation` makes them a scalar.

All share one signature, which is also that of a user's own loss:

    logp, old_logp, advantages  (T,) flat over rows: log-probs now and when the data were taken as given; only `logp` carries a gradient
    rows                        (T,) int64, the row of each token, ids in any order; a row is never split over two calls
    mask                        (T,) bool, trained tokens; what stands at the others is never used, finite or not, and gets gradient 0
    clip_low, clip_high         a ratio is free in [1 - clip_low, 1 + clip_high]
    dual_clip                   bound on the ratio for negative advantages, > 1 + clip_high; None: off

and at ratio 1 (data of the current policy) all have the same gradient, -A d(logp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tacit.rl.aggregation import sum_within

LOG_RATIO_LIMIT = 20.0  # a ratio is held within exp(±20): beyond, stale data would overflow and 0 * inf make a NaN of clipped tokens


@dataclass(slots=True)
class PolicyLoss:
    """What a policy loss returns, all (T,). Only `loss`, to be minimised, carries a gradient."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor  # bool: trained tokens whose gradient the clip took away (CISPO: cut down)


class TokenLoss(Protocol):
    """What a policy loss is; see the module's docstring."""

    def __call__(
        self,
        logp: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        /,
        *,
        rows: Tensor,
        mask: Tensor,
        clip_low: float,
        clip_high: float,
        dual_clip: float | None,
    ) -> PolicyLoss: ...


def clipped_ratio(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    rows: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """-min(r A, clip(r) A), each token with its own ratio r = pi(token) / pi_old(token).

    Source: PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300, eq. 3; unequal bounds, clip-higher: DAPO, arXiv 2503.14476, section 3.1.
    """
    log_ratio = torch.where(mask, logp - old_logp, 0)
    return _clipped(_ratio(log_ratio, log_ratio), advantages, mask, clip_low, clip_high, dual_clip)


def gspo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    rows: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The clipped loss with one ratio per row, the geometric mean of its tokens' ratios: s = exp(mean of logp - old_logp).

    Every token holds its row's value and sends the gradient through its own log-prob alone, so that seq-mean-token-mean is GSPO's objective
    in value and gradient, and advantages may differ from token to token.
    Source: GSPO, arXiv 2507.18071, eq. 5 and 7; the form per token (GSPO-token), eq. 13 and 14. Its bounds: 3e-4 and 4e-4.
    """
    log_ratio = torch.where(mask, logp - old_logp, 0)
    mean = sum_within(log_ratio, rows) / sum_within(mask.to(logp.dtype), rows).clamp(min=1)
    return _clipped(_ratio(mean, log_ratio), advantages, mask, clip_low, clip_high, dual_clip)


def sequence_ratio(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    rows: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The clipped loss with one ratio per row, that of the whole completion: the product of its tokens' ratios.

    Exact as an importance weight, of a variance that grows with the length. Value and gradient per token as in `gspo`; summed over
    the row (seq-mean-token-sum) the gradient is that of -min(r A, clip(r) A) for the completion as one action.
    Source: PPO, arXiv 1707.06347, eq. 7, with the completion as the action.
    """
    log_ratio = torch.where(mask, logp - old_logp, 0)
    return _clipped(_ratio(sum_within(log_ratio, rows), log_ratio), advantages, mask, clip_low, clip_high, dual_clip)


def cispo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    rows: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """-sg(clip(r)) A logp: the ratio is a bounded weight and every token keeps its gradient. Has no dual clip.

    Source: CISPO in MiniMax-M1, arXiv 2506.13585, section 3.1. The paper switches the lower bound off: clip_low = 1. TRL 1.16 clamps
    at epsilon_high itself, so its epsilon_high = 5 is clip_high = 4 here.
    """
    log_ratio = torch.where(mask, logp - old_logp, 0)
    ratio = _ratio(log_ratio, log_ratio).detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return PolicyLoss(-weight * advantages * torch.where(mask, logp, 0), ratio, weight != ratio)


def policy_gradient(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    rows: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """-A logp: unbiased on data of the current policy only; the ratio is reported, nothing is clipped or corrected.

    Source: REINFORCE (Williams 1992).
    """
    log_ratio = torch.where(mask, logp - old_logp, 0)
    return PolicyLoss(-advantages * torch.where(mask, logp, 0), _ratio(log_ratio, log_ratio).detach(), torch.zeros_like(mask))


LOSSES: dict[str, TokenLoss] = {
    "clip": clipped_ratio,
    "gspo": gspo,
    "sequence": sequence_ratio,
    "cispo": cispo,
    "policy_gradient": policy_gradient,
}


def _ratio(log_ratio: Tensor, through: Tensor) -> Tensor:
    """exp(log_ratio) in value; its gradient flows through `through`, token by token, as if that were the logarithm."""
    return (log_ratio.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) + (through - through.detach())).exp()


def _clipped(ratio: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float, dual_clip: float | None) -> PolicyLoss:
    """-min(r A, clip(r) A), and no more than dual_clip |A| for A < 0 (dual-clip PPO, arXiv 1912.09729)."""
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    if dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
        clipped |= (advantages < 0) & (ratio > dual_clip)
    return PolicyLoss(-gain, ratio.detach(), clipped & mask)
