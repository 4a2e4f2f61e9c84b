"""Did the policy get worse? A sequential test on the rewards of a fixed set of probes, with an error that holds over the whole run.

For a pair of policies let d_i = (reward now - reward then) of probe i, in [-1, 1], and let harm mean that the probes' expected mean fell by
more than `margin` m. Without harm Σ E[d_i + m] >= 0, the d_i are independent (each probe has random numbers of its own, and until the first rollback
nothing that is trained depends on them), so that for any stake λ in [0, 1 / (1 + m))

    E[Π_i (1 - λ (d_i + m))] = Π_i (1 - λ E[d_i + m]) <= exp(-λ Σ_i E[d_i + m]) <= 1,

whatever the probes' difficulties and however single ones changed: an e-value, and so is a mean of them over stakes and over earlier policies. By
Markov it exceeds 1 / a with a chance of at most a. Comparison t of a run spends the error a_t, with Σ a_t <= alpha: the chance that a run without
harm has any rollback is at most alpha. After a rollback the past depends on the probes' luck: they get new random numbers, and a new alpha counts
from there to the next. Source: testing by betting, Shafer (2021), and e-values, Vovk & Wang (2021); the construction is ours.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

STAKES = np.geomspace(0.03, 0.9, 7)  # before division by 1 + margin


def log_e_values(scores: NDArray[np.float64], past: NDArray[np.float64], margin: float = 0.0) -> NDArray[np.float64]:
    """(n,) log of the mean over stakes λ of Π_i (1 - λ (d_i + margin)), with d = scores (P,) - past (n, P), both in [0, 1].

    Large where `scores` are lower by more than the margin. A probe without a verdict (NaN) in either is left out of the pair.
    """
    d = np.nan_to_num(scores - past + margin)
    stakes = STAKES / (1 + margin)
    return log_mean_exp(np.stack([np.log1p(-stake * d).sum(-1) for stake in stakes]))


def log_mean_exp(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the first axis."""
    top = logs.max(0)
    return top + np.log(np.exp(logs - top).mean(0))


def spent(alpha: float, comparison: int, planned: int) -> float:
    """The error that comparison 1, 2, … may spend: half of alpha evenly over the `planned` ones, half as 1 / (t (t + 1)) without end."""
    return alpha / 2 * ((comparison <= planned) / planned + 1 / (comparison * (comparison + 1)))


class HarmTest:
    """The sequential test: takes the probes' rewards (P,) in [0, 1] of one policy after another, and says when one is worse than those before.

    `evidence` is log e - log(1 / a_t) of the last comparison: from 0 on it is harm.
    """

    def __init__(self, alpha: float, margin: float, planned: int):
        self.alpha, self.margin, self.planned = alpha, margin, max(1, planned)
        self.past: list[NDArray[np.float64]] = []
        self.evidence = -math.inf

    def harmed(self, scores: NDArray[np.float64]) -> bool:
        if self.past:
            log_e = log_mean_exp(log_e_values(scores, np.stack(self.past), self.margin))
            self.evidence = float(log_e) + math.log(spent(self.alpha, len(self.past), self.planned))
        self.past.append(scores)
        return self.evidence >= 0

    def restart(self) -> None:
        self.past.clear()
        self.evidence = -math.inf
