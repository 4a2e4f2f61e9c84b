"""How good routers are on a recorded table: quality, cost, regret, intervals by document, and the whole cost-quality curve.

Route accuracy is printed beside both constants because always-RAG scores 1 minus the share of questions where long context is better: with a
binary score most questions tie, ties count for RAG, and a high route accuracy is then the base rate. Source: section 7.5 of the specification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.core.statistics import Interval, bootstrap, paired_bootstrap
from tacit.routing.baselines import Always, Keywords, Oracle, recorded_self_route
from tacit.routing.decision import Decision, Router
from tacit.routing.labels import Mask, ideal_label, quality
from tacit.routing.table import Record, columns

SAMPLES = 2_000  # of a bootstrap
CURVE_POINTS = 41  # kept of a curve
EXACT_SIGNS = 12  # documents up to which all signs are tried
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """What a router did with a table: routes (n,) and scores for long context (n,). `reactive`: long context is paid on top of RAG."""

    name: str
    to_lc: Mask
    lc: Array
    reactive: bool = False


def play(router: Router, records: Sequence[Record], *, blind: bool = True) -> Policy:
    """Asks a router about every record."""
    return policy_of(router.name, [router.decide(r.metadata(blind=blind)) for r in records])


def policy_of(name: str, decisions: Sequence[Decision], *, reactive: bool = False) -> Policy:
    return Policy(name, np.array([d.to_lc for d in decisions], bool), np.array([d.lc for d in decisions], np.float64), reactive)


def reference_policies(records: Sequence[Record]) -> list[Policy]:
    """Both constants, keywords, Self-Route where refusals were recorded, and the oracle."""
    found = [play(router, records) for router in (Always(False), Always(True), Keywords(), Oracle(records))]
    if all(r.rag_refused is not None for r in records):
        replay = recorded_self_route(records)
        found.append(policy_of(replay.name, [replay.decide(r.metadata()) for r in records], reactive=True))
    return found


def cost(policy: Policy, records: Sequence[Record]) -> Array:
    """Cost of each question (n,)."""
    rag, lc = columns(records, "rag_cost", "lc_cost")
    return np.where(policy.to_lc, lc + rag if policy.reactive else lc, rag)


def auc(scores: Array, positive: Mask) -> float | None:
    """Chance that a positive item scores above a negative one, ties half; None without both. Written here: evaluation needs no scikit-learn."""
    wins = scores[positive][:, None] - scores[~positive][None, :]
    return float(((wins > 0) + 0.5 * (wins == 0)).mean()) if wins.size else None


def curve(policy: Policy, records: Sequence[Record]) -> Array:
    """(points, 2) of mean cost and mean score while the threshold falls from all-RAG to all-LC. Questions of one score move together."""
    rag, lc, rag_cost, lc_cost = columns(records, "rag_score", "lc_score", "rag_cost", "lc_cost")
    order = np.argsort(-policy.lc, kind="stable")
    ranked = policy.lc[order]
    ends = np.concatenate([[True], ranked[1:] != ranked[:-1], [True]])
    score = rag.mean() + np.concatenate([[0.0], np.cumsum((lc - rag)[order])]) / len(rag)
    spent = rag_cost.mean() + np.concatenate([[0.0], np.cumsum((lc_cost - rag_cost)[order])]) / len(rag)
    return np.stack([spent[ends], score[ends]], 1)


def area(points: Array) -> float:
    """Mean score over the range of costs of a curve: what a budget drawn at random buys. A random router has the mean of both constants."""
    x, y = points.T
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width else float(y.mean())


def at_cost(policy: Policy, records: Sequence[Record], budget: float, name: str = "") -> Policy:
    """The same router at the lowest threshold whose mean cost does not exceed `budget`; it looks at scores and costs, at no
    quality. Of questions with equal scores, those that come first in the table go first."""
    rag_cost, lc_cost = columns(records, "rag_cost", "lc_cost")
    order = np.argsort(-policy.lc, kind="stable")
    spent = rag_cost.mean() + np.cumsum((lc_cost - rag_cost)[order]) / len(order)
    to_lc = np.zeros(len(order), bool)
    to_lc[order[: int(np.searchsorted(spent, budget, side="right"))]] = True
    return Policy(name or f"{policy.name} at equal cost", to_lc, policy.lc)


def report(policy: Policy, records: Sequence[Record], *, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """Every metric of a policy; intervals resample documents."""
    rag, lc, lc_cost = columns(records, "rag_score", "lc_score", "lc_cost")
    documents = [r.doc_id for r in records]
    scores, spent, ideal = quality(policy.to_lc, rag, lc), cost(policy, records), ideal_label(rag, lc)
    rate, best, differ = float(policy.to_lc.mean()), np.maximum(rag, lc), rag != lc
    by_chance = (1 - rate) * rag + rate * lc
    points = curve(policy, records)

    def interval(values: Array) -> Interval:
        return bootstrap(values, documents, samples=samples, seed=seed)

    gap = float(best.mean() - rag.mean())
    return {
        "score": interval(scores),
        "lc_rate": rate,
        "cost": float(spent.mean()),
        "cost_ratio": float(spent.mean() / lc_cost.mean()) if lc_cost.any() else None,
        "route_accuracy": float((policy.to_lc == ideal).mean()),
        "accuracy_where_they_differ": float((policy.to_lc == ideal)[differ].mean()) if differ.any() else None,
        "auc_where_they_differ": auc(policy.lc[differ], ideal[differ]),
        "regret": float((best - scores).mean()),
        "recovered": float((scores.mean() - rag.mean()) / gap) if gap else None,
        "over_rag": interval(scores - rag),
        "over_lc": interval(scores - lc),
        "over_random": interval(scores - by_chance),
        "area": area(points),
        "curve": points[np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))].tolist(),
        "by_task": _by([r.task for r in records], policy, scores, ideal),
        "by_type": _by([r.doc_type for r in records], policy, scores, ideal),
    }


def _by(groups: Sequence[str], policy: Policy, scores: Array, ideal: Mask) -> dict[str, dict[str, float]]:
    names = np.array(groups)
    return {
        name: {
            "questions": int(mine.sum()),
            "score": float(scores[mine].mean()),
            "lc_rate": float(policy.to_lc[mine].mean()),
            "route_accuracy": float((policy.to_lc == ideal)[mine].mean()),
        }
        for name in dict.fromkeys(groups)
        for mine in [names == name]
    }


def compare(a: Policy, b: Policy, records: Sequence[Record], *, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean score of a minus that of b, its interval over documents, and the sign-flip p over documents."""
    rag, lc = columns(records, "rag_score", "lc_score")
    first, second = quality(a.to_lc, rag, lc), quality(b.to_lc, rag, lc)
    documents = [r.doc_id for r in records]
    return {
        "a": a.name,
        "b": b.name,
        "difference": paired_bootstrap(first, second, clusters=documents, samples=samples, seed=seed),
        "p": sign_flip(first - second, documents, samples=samples, seed=seed),
    }


def sign_flip(differences: Array, groups: Sequence[str], *, samples: int = SAMPLES, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that the sign of each group's total is a coin: exact up to 12 groups, else from `samples` draws."""
    index = np.unique(np.array(groups), return_inverse=True)[1]
    totals = np.bincount(index, weights=differences)
    seen = abs(totals.sum()) - 1e-12
    if len(totals) <= EXACT_SIGNS:
        signs = np.array(list(product((-1, 1), repeat=len(totals))))
        return float((abs(signs @ totals) >= seen).mean())
    signs = np.random.default_rng(seed).choice((-1, 1), (samples, len(totals)))
    return float((1 + (abs(signs @ totals) >= seen).sum()) / (1 + samples))


def evaluate(
    records: Sequence[Record], policies: Callable[[Sequence[Record]], Sequence[Policy]], *, samples: int = SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """For each answerer of a table: a report of the reference policies and of what `policies(its records)` gives, comparisons with Self-Route and
    keywords, and the questions where the given policies differ. Plain data throughout, for a study, a page or JSON."""
    found = {}
    for name in dict.fromkeys(r.answer_model for r in records):
        mine = [r for r in records if r.answer_model == name]
        references, given = reference_policies(mine), list(policies(mine))
        against = [p for p in references if p.name in ("keywords", "Self-Route")]
        compared = [compare(p, other, mine, samples=samples, seed=seed) for p in given for other in against]
        for p in given:
            for other in against:
                if other.reactive:
                    equal = at_cost(p, mine, float(cost(other, mine).mean()))
                    compared.append(compare(equal, other, mine, samples=samples, seed=seed) | {"lc_rate": float(equal.to_lc.mean())})
        found[name] = {
            "questions": len(mine),
            "documents": len({r.doc_id for r in mine}),
            "policies": {p.name: report(p, mine, samples=samples, seed=seed) for p in (*references, *given)},
            "comparisons": compared,
            "differ": _differing(mine, given),
        }
    return {"answerers": found, "samples": samples, "seed": seed, "note": NOTE}


NOTE = (
    "Self-Route is replayed from recorded answers by RAG, whose prompt may not have offered the word 'unanswerable'; the recorded long-context "
    "answer stands in for its second step. A router's own calls are not in the cost."
)


def _differing(records: Sequence[Record], policies: Sequence[Policy]) -> list[dict[str, Any]]:
    """Questions on which the given policies do not agree, or a single one misses the better route."""
    if not policies:
        return []
    routes = np.stack([p.to_lc for p in policies])
    ideal = ideal_label(*columns(records, "rag_score", "lc_score"))
    apart = (routes != routes[0]).any(0) if len(policies) > 1 else routes[0] != ideal
    return [
        {"qid": r.qid, "rag_score": r.rag_score, "lc_score": r.lc_score, "to_lc": {p.name: bool(p.to_lc[i]) for p in policies}}
        for i, r in enumerate(records)
        if apart[i]
    ]
