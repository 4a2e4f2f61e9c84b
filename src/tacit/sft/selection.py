"""Which examples to train on, from the change of predictive entropy between two models (WMSS, arXiv 2602.08222 v2; WD-DS). Pure functions.

Departures: the paper's v1, v2 and code weigh differently, and all three are here; v2, the text of record, is the default of the recipe.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Formula = Literal["v2", "v1", "code"]
TINY = 1e-12  # guards empty sums


def example_entropies(entropy: Tensor, offsets: Tensor) -> Tensor:
    """Mean entropy of each example (N,), in nats, from that of its supervised tokens (T,), example i at offsets[i]:offsets[i+1].

    Entropies are those of the distributions that *predict* the tokens. Source: equation 7. Raises ValueError for an example without a token.
    """
    lengths = offsets.diff()
    if (lengths <= 0).any():
        raise ValueError("an example without a supervised token has no entropy")
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, rows, entropy.double()) / lengths


def selection_weights(weak: Tensor, strong: Tensor, formula: Formula = "v2", alpha: float = 0.1, beta: float = 0.8, gamma: float = 0.1) -> Tensor:
    """Probabilities (N,) float64 of drawing each example, from the entropies (N,) of both models, ΔH = H_strong - H_weak:

    - `v2`: α[-ΔH]₊ + β H_strong + γ[ΔH]₊. Source: equation 9.
    - `v1`: α H_weak + β[-ΔH]₊ + γ[ΔH]₊. Source: digests of the first version.
    - `code`: as v1, each term divided by its sum. Source: the official repository.

    When nothing has weight, all have the same. Raises ValueError for entropies that are negative or not finite.
    """
    weak, strong = weak.double(), strong.double()
    if not all(bool(torch.isfinite(h).all() and (h >= -1e-6).all()) for h in (weak, strong)):
        raise ValueError("entropies must be finite and not negative")
    weak, strong = weak.clamp_min(0.0), strong.clamp_min(0.0)
    fallen, risen = (weak - strong).clamp_min(0.0), (strong - weak).clamp_min(0.0)
    if formula == "v2":
        found = alpha * fallen + beta * strong + gamma * risen
    elif formula == "v1":
        found = alpha * weak + beta * fallen + gamma * risen
    else:
        found = sum((c * h / h.sum().clamp_min(TINY) for c, h in ((alpha, weak), (beta, fallen), (gamma, risen))), torch.zeros_like(weak))
    total = found.sum()
    return found / total if float(total) > TINY else torch.full_like(found, 1.0 / len(found))


def draw(weights: Tensor, count: int, seed: int, *, deduplicate: bool = True) -> Tensor:
    """Indices of `count` draws with replacement, in the order drawn; with `deduplicate` each index once. Weight 0 is never drawn."""
    found = np.random.default_rng(seed).choice(len(weights), size=count, p=(weights / weights.sum()).numpy())
    return torch.from_numpy(np.asarray(list(dict.fromkeys(found.tolist())) if deduplicate else found, dtype=np.int64))


def random_subset(total: int, count: int, seed: int) -> Tensor:
    """`count` different indices, each as likely: the control for a selector that only makes the set smaller."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(total)[:count].astype(np.int64))


def expected_unique_fraction(weights: Tensor, count: int) -> float:
    """Mean of 1 - (1 - p_i)^count: 63.2 % for uniform weights and as many draws as examples."""
    return float((1.0 - (1.0 - weights.double()).clamp_min(0.0) ** count).mean())


def entropy_gap(weak: Tensor, strong: Tensor) -> float:
    """(H_weak - H_strong) / H_weak of the means. The method wants 0.1 or more: a weak model too close to the strong one has nothing to show."""
    return float((weak.double().mean() - strong.double().mean()) / weak.double().mean().clamp_min(TINY))
