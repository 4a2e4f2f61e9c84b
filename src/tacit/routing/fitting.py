"""Fits routers on recorded tables: the logistic one that ships, a decision tree and a random forest. Needs scikit-learn.

    TACIT_DATA=... python -m tacit.routing.fitting src/tacit/routing/bundled.json      # rebuilds the bundled router

Questions on which both routes score the same teach nothing about which is better, so the logistic model is fitted on the others alone. Its
hyper-parameters (PENALTY, equal scale of shared and own weights) were chosen among nine variants by the same cross-validation that is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tacit.routing.decision import Decision, Metadata, Router, decision, hard_rule
from tacit.routing.features import NAMES, features
from tacit.routing.labels import split_by_group
from tacit.routing.learned import Coefficients, LearnedRouter, Part
from tacit.routing.table import Record, columns

PENALTY = 0.03  # inverse strength of the L2 penalty, C of scikit-learn
INTERCEPT_SCALE = 3.0  # an intercept is penalised a ninth as much as a weight
PRICE = 0.03  # of long context, in score: a threshold maximises score - PRICE x LC rate. Source: section 7.3 of the specification
FOLDS = 5

Array = NDArray[np.float64]


class Fit(Protocol):
    def __call__(self, records: Sequence[Record], /) -> Router: ...


def design(records: Sequence[Record]) -> Array:
    """Features of records, task-blind (n, features)."""
    return np.array([features(r.metadata()) for r in records], np.float64)


def best_threshold(chance: Array, rag: Array, lc: Array, price: float = PRICE) -> float:
    """The probability above which long context is taken, where score - price x LC rate is largest (n,); 1.0 when it is never worth it.

    Halfway between the last that is taken and the first that is not; of equally good cuts the one with the lower LC rate. Items of equal
    probability are never parted.
    """
    order = np.argsort(-chance, kind="stable")
    ranked, gains = chance[order], np.concatenate([[0.0], np.cumsum((lc - rag - price)[order])])
    cuts = np.concatenate([[True], ranked[1:] != ranked[:-1], [True]])
    best = int(np.argmax(np.where(cuts, gains, -np.inf)))
    if best == 0:
        return 1.0
    after = ranked[best] if best < len(ranked) else 0.0
    return float((ranked[best - 1] + after) / 2)


@dataclass(frozen=True)
class Fitted:
    """Logistic models of several answerers: `weights` (answerers, k) and `intercept` (answerers,) on features standardised by `mean` and `scale`
    (k,), of which the `shared` weights (k,) are common to all; `threshold` (answerers,) is where long context becomes worth its price."""

    mean: Array
    scale: Array
    shared: Array
    weights: Array
    intercept: Array
    threshold: Array

    def chance(self, x: Array, who: NDArray[np.int64]) -> Array:
        """P(long context is better | the routes differ) of questions (n, k) for answerers (n,)."""
        return 1 / (1 + np.exp(-self.intercept[who] - ((x - self.mean) / self.scale * self.weights[who]).sum(1)))


def solve(x: Array, who: NDArray[np.int64], rag: Array, lc: Array, price: float = PRICE) -> Fitted:
    """Fits features x (n, k) of questions to answerers `who` (n,) on the questions where the routes differ. Raises ValueError where none do, or all
    in favour of the same one."""
    from sklearn.linear_model import LogisticRegression

    differ, better = rag != lc, lc > rag
    if len(set(better[differ].tolist())) < 2:
        raise ValueError(
            f"{int(differ.sum())} of {len(x)} questions were answered differently well by the two routes, "
            "and all in favour of the same: nothing to fit; record more questions, or use a constant route"
        )
    mean, spread = x.mean(0), x.std(0)
    scale = np.where(spread > 1e-6, spread, 1.0)  # what never varied in the table must not weigh when it does
    z, one = (x - mean) / scale, np.eye(int(who.max()) + 1)[who]
    (n, k), answerers = z.shape, one.shape[1]
    own = (one[:, :, None] * z[:, None, :]).reshape(n, -1)
    model = LogisticRegression(C=PENALTY, max_iter=1000)
    found = model.fit(np.hstack([z, INTERCEPT_SCALE * one, own])[differ], better[differ]).coef_[0]
    shared, intercept, own_weights = np.split(found, [k, k + answerers])
    weights, bias = shared + own_weights.reshape(answerers, k), float(np.ravel(model.intercept_)[0]) + INTERCEPT_SCALE * intercept
    fitted = Fitted(mean, scale, shared, weights, bias, np.ones(answerers))
    chance = fitted.chance(x, who)
    return replace(fitted, threshold=np.array([best_threshold(chance[who == i], rag[who == i], lc[who == i], price) for i in range(answerers)]))


def fit(records: Sequence[Record], *, told: str = "a recorded table", price: float = PRICE) -> LearnedRouter:
    """The logistic router for all answerers in `records`. Raises ValueError when the routes never differ, or always in favour of the same one."""
    names = list(dict.fromkeys(r.answer_model for r in records))
    rag, lc = columns(records, "rag_score", "lc_score")
    found = solve(design(records), np.array([names.index(r.answer_model) for r in records]), rag, lc, price)
    parts = {
        name: Part(
            intercept=float(found.intercept[i]),
            weights=(found.weights[i] - found.shared).tolist(),
            threshold=float(found.threshold[i]),
            strength=next(r.strength for r in records if r.answer_model == name),
        )
        for i, name in enumerate(names)
    }
    return LearnedRouter(
        Coefficients(
            features=list(NAMES),
            mean=found.mean.tolist(),
            scale=found.scale.tolist(),
            weights=found.shared.tolist(),
            answerers=parts,
            fitted_on=told,
        ),
        "learned",
    )


class GainRouter:
    """Long context where a regressor of scikit-learn expects a gain above PRICE. Serves one answerer."""

    def __init__(self, name: str, regressor: Any):
        self.name, self.regressor = name, regressor

    def decide(self, metadata: Metadata) -> Decision:
        if (ruled := hard_rule(metadata)) is not None:
            return ruled
        gain = float(self.regressor.predict(np.array([features(metadata)]))[0])
        lc = min(1.0, max(0.0, 0.5 + (gain - PRICE) / 2))
        return decision(metadata, lc, (f"The {self.name} expects long context to gain {gain:+.2f}; it is taken above {PRICE}.",), "model")


def fit_tree(records: Sequence[Record]) -> GainRouter:
    """A shallow regression tree on the gain of long context, of one answerer."""
    from sklearn.tree import DecisionTreeRegressor

    rag, lc = columns(records, "rag_score", "lc_score")
    return GainRouter("decision tree", DecisionTreeRegressor(max_depth=4, min_samples_leaf=20, random_state=0).fit(design(records), lc - rag))


def fit_forest(records: Sequence[Record]) -> GainRouter:
    """A random forest on the gain of long context, of one answerer."""
    from sklearn.ensemble import RandomForestRegressor

    rag, lc = columns(records, "rag_score", "lc_score")
    forest = RandomForestRegressor(50, min_samples_leaf=10, random_state=0, n_jobs=1)
    return GainRouter("random forest", forest.fit(design(records), lc - rag))


def out_of_fold(records: Sequence[Record], fitter: Fit, *, folds: int = FOLDS, seed: int = 0, shuffled: bool = False) -> list[Decision]:
    """A decision for each record by a router that was fitted without its document. `shuffled` gives each question, for all its answerers, the
    metadata of another: the control that must find nothing."""
    shown = _shuffle(records, seed) if shuffled else list(records)
    found: list[Decision | None] = [None] * len(records)
    for held in split_by_group([r.doc_id for r in records], [1] * folds, seed):
        inside = set(held)
        router = fitter([r for i, r in enumerate(shown) if i not in inside])
        for i in held:
            found[i] = router.decide(shown[i].metadata())
    return [d for d in found if d is not None]


def _shuffle(records: Sequence[Record], seed: int) -> list[Record]:
    ids = list(dict.fromkeys(r.qid for r in records))
    other = dict(zip(ids, np.random.default_rng(seed).permutation(len(ids))))
    first = {r.qid: r for r in reversed(records)}
    kept = ("question", "doc_tokens", "doc_type", "doc_title", "head", "task")
    return [r.model_copy(update={name: getattr(first[ids[other[r.qid]]], name) for name in kept}) for r in records]


def main() -> None:
    from tacit.routing.lara import tables

    recorded = tables()
    records = [r for table in recorded.values() for r in table]
    fit(records, told=f"LaRA, {len(records)} recorded answers of {len(recorded)} models, judged by the proxy judge").save(sys.argv[1])


if __name__ == "__main__":
    main()
