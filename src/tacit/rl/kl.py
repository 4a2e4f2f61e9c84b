"""KL divergence from a reference policy, estimated from the log-probs of sampled tokens.

With r = pi_ref(token) / pi(token) for a token drawn from pi, KL(pi || ref) is estimated by (Schulman, "Approximating KL Divergence", 2020)

    k1 = -log r              unbiased, high variance, may be negative
    k2 = (log r)² / 2        biased, low variance, >= 0
    k3 = r - 1 - log r       unbiased, low variance, >= 0

A good estimate of a value need not have a good gradient. Averaged over tokens drawn from pi, the gradients of the three are

    k1: 0                    k2: that of KL(pi || ref)                    k3: that of KL(ref || pi)

so k1 as a plain loss does nothing but add noise, and GRPO's k3 follows the other divergence (close to it near the reference).
`kl_loss` therefore reports one form's value and sends the gradient of a right one. See also Liu et al., arXiv 2510.01555.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_value(logp: Tensor, ref_logp: Tensor, form: str) -> Tensor:
    """k1, k2 or k3 per token, (T,); k3_unbiased has the value of k3. Raises ValueError for another form."""
    log_r = ref_logp - logp
    match form:
        case "k1":
            return logp - ref_logp
        case "k2":
            return log_r.square() / 2
        case "k3" | "k3_unbiased":
            return torch.expm1(log_r) - log_r
        case _:
            raise ValueError(f"unknown KL form {form!r}: choose k1, k2, k3 or k3_unbiased")


def kl_loss(logp: Tensor, ref_logp: Tensor, form: str, ratio: Tensor | None = None) -> Tensor:
    """KL per token for the loss, (T,): the value of `form`, and a gradient that pulls pi towards the reference.

        form         value  mean gradient, data of pi  with ratio = pi / pi_old, data of pi_old
        k1           k1     KL(pi || ref)              KL(pi || ref)
        k2           k2     KL(pi || ref)              KL(pi || ref)
        k3           k3     KL(ref || pi)              KL(pi || ref)
        k3_unbiased  k3     KL(pi || ref)              KL(pi || ref)

    `ratio` (T,), the importance weight of data from an older policy, must carry its gradient: k3 needs it, as there the derivative of the
    ratio is part of the estimate (DeepSeek-V3.2, arXiv 2512.02556, eq. 7; TRL's use_bias_correction_kl). The other forms send k2's
    gradient and take the ratio as a mere weight.
    Source: k3, GRPO, arXiv 2402.03300, eq. 4; the gradient of k2 under the other values, arXiv 2510.01555.
    """
    value = kl_value(logp, ref_logp, form)
    if form == "k3":
        return value if ratio is None else ratio * value
    k2 = kl_value(logp, ref_logp, "k2")
    loss = k2 + (value - k2).detach()
    return loss if ratio is None else ratio.detach() * loss


def kl_reward(logp: Tensor, ref_logp: Tensor, form: str) -> Tensor:
    """KL per token, (T,), without gradient: a penalty to subtract from the reward. Only k1 makes its policy gradient that of KL(pi || ref)."""
    return kl_value(logp, ref_logp, form).detach()
