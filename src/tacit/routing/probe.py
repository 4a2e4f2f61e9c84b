"""How much of a label a linear classifier reads off hidden states, documents held out together. Needs scikit-learn.

Source: section 2.7 of the specification; layer, split and regularisation are [inferred]: L2 with C = 1, standardised, five folds by document.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tacit.routing.labels import split_by_group


@dataclass(frozen=True, slots=True)
class Probed:
    """Accuracy on held-out documents, the same for shuffled labels, and the share of the commonest label."""

    accuracy: float
    shuffled: float
    base_rate: float


def probe(hidden: ArrayLike, labels: Sequence[Hashable], documents: Sequence[Hashable], *, folds: int = 5, seed: int = 0) -> Probed:
    """Probes hidden states (n, d) for labels (n,). Raises ValueError when there is one label only, or fewer documents than folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.asarray(hidden, np.float64)
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise ValueError(f"a probe needs at least two labels, there is only {names}")
    y = np.array([names.index(label) for label in labels])
    wrong = np.random.default_rng(seed).permutation(y)
    right, control = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for held in split_by_group(documents, [1] * folds, seed):
        rest = np.setdiff1d(np.arange(len(y)), held)
        for told, found in ((y, right), (wrong, control)):
            if len(set(told[rest].tolist())) == 1:  # nothing to separate: the probe says what it saw
                found[held] = told[held] == told[rest][0]
            else:
                found[held] = (
                    make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[rest], told[rest]).predict(x[held]) == told[held]
                )
    return Probed(float(right.mean()), float(control.mean()), float(np.bincount(y).max() / len(y)))
