"""What training did to a model's logits and its confidence. Pure functions. Source: WMSS (arXiv 2602.08222 v2), tables 6 and 7."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def logit_statistics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Means over tokens, of logits (N, V) at targets (N,), of the columns of the paper's tables 6 and 7; entropy in nats."""
    z = logits.double()
    target = z.gather(-1, targets[:, None])[:, 0]
    others = (z.sum(-1) - target) / (z.shape[1] - 1)
    logp = z.log_softmax(-1)
    p = logp.exp()
    values = {
        "target": target,
        "nontarget": others,
        "gap": target - others,
        "std": z.std(-1, unbiased=False),
        "mean": z.mean(-1),
        "centred_norm": (z - z.mean(-1, keepdim=True)).norm(dim=-1),
        "max": z.amax(-1),
        "entropy": -(p * logp).sum(-1),
        "p_max": p.amax(-1),
    }
    return {name: float(value.mean()) for name, value in values.items()}


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """ECE: mean |accuracy - confidence| over equal bins of confidence, weighted by their sizes. (N,) in [0, 1] and (N,) bool.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    place = (confidence.double() * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right.double() - confidence.double())
    return float(gaps.abs().sum() / max(1, len(confidence)))


def token_calibration_error(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> float:
    """ECE of the most likely token of softmax(logits (N, V) / temperature)."""
    p, best = (logits.double() / temperature).softmax(-1).max(-1)
    return calibration_error(p, best == targets)


def fitted_temperature(logits: Tensor, targets: Tensor, low: float = 0.05, high: float = 20.0) -> float:
    """The temperature in [low, high] of the least negative log-likelihood, by golden section in log T: 1/T is convex there, so T is unimodal."""
    z, at = logits.double(), targets[:, None]

    def nll(log_t: float) -> float:
        return -float((z * math.exp(-log_t)).log_softmax(-1).gather(-1, at).mean())

    a, b, ratio = math.log(low), math.log(high), (math.sqrt(5.0) - 1.0) / 2.0
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    left, right = nll(c), nll(d)
    for _ in range(40):  # log T to 3e-8
        if left <= right:
            b, d, right = d, c, left
            c = b - ratio * (b - a)
            left = nll(c)
        else:
            a, c, left = c, d, right
            d = a + ratio * (b - a)
            right = nll(d)
    return math.exp((a + b) / 2.0)


def accuracy_by_bin(right: Sequence[float], difficulty: Sequence[str]) -> dict[str, float]:
    """Mean of `right` in each bin of difficulty, bins in order of first appearance. Raises ValueError when the lengths differ."""
    bins: dict[str, list[float]] = {}
    for value, name in zip(right, difficulty, strict=True):
        bins.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in bins.items()}
