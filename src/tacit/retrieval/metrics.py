"""Ranking metrics over graded judgements, as two benchmarks compute them.

All take `grades` (n,): the grades of a whole pool in the order of a ranking, best first, so that the ideal order is the same list sorted.
Metrics that need "relevant or not" take flags (n,) instead. Every metric is 0 where nothing in the pool is relevant; whether such a query
counts is the protocol's decision (`tacit.retrieval.benchmarks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

Grades = Sequence[float]
Flags = Sequence[bool]


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Ids by falling score; equal scores by id, so that a ranking is a function of the scores alone. Raises ValueError for NaN."""
    if undefined := [name for name, score in scores.items() if math.isnan(score)]:
        raise ValueError(f"the score of {undefined[0]!r} is not a number; {len(undefined)} of {len(scores)} scores are undefined")
    return sorted(scores, key=lambda name: (-scores[name], name))


def completed(ranking: Iterable[str], pool: Collection[str]) -> list[str]:
    """The whole pool in the order of a ranking. What is not in the pool is passed over, a repeated id counts where it comes first, and
    what the ranking leaves out comes last, by id: a system is not spared a document that it did not find."""
    seen = dict.fromkeys(name for name in ranking if name in pool)
    return [*seen, *sorted(set(pool) - seen.keys())]


def discount_late(rank: int) -> float:
    """1, 1, log2 3, 2, …: the first two ranks undiscounted. Source: Järvelin & Kekäläinen (2002), eq. 2 with b = 2; CSFCube's script ("method 0")."""
    return math.log2(max(rank, 2))


def discount_early(rank: int) -> float:
    """log2(rank + 1), so 1, log2 3, 2, …: only the first rank undiscounted. Source: Burges et al. (2005); DORIS-MAE's script ("method 1")."""
    return math.log2(rank + 1)


def dcg(grades: Grades, cut: int, discount: Callable[[int], float] = discount_late) -> float:
    """Σ grade / discount over ranks 1 … cut."""
    return math.fsum(grade / discount(rank) for rank, grade in enumerate(grades[:cut], 1))


def ndcg(grades: Grades, cut: int | None = None, discount: Callable[[int], float] = discount_late) -> float:
    """DCG as a share of that of the ideal order of the pool, both down to rank `cut` (all without one); 0 where the ideal is 0."""
    cut = len(grades) if cut is None else cut
    best = dcg(sorted(grades, reverse=True), cut, discount)
    return dcg(grades, cut, discount) / best if best > 0 else 0.0


def at_share(grades: Sequence[object], share: float) -> int:
    """Rank at which a share of the pool is cut: int(share · n), rounded down as both benchmarks do."""
    return int(share * len(grades))


def precision_at(flags: Flags, cut: int) -> float:
    """Relevant documents in the first `cut`, over `cut`."""
    return sum(flags[:cut]) / cut


def recall_at(flags: Flags, cut: int) -> float:
    """Relevant documents in the first `cut`, over all relevant ones."""
    return sum(flags[:cut]) / sum(flags) if any(flags) else 0.0


def r_precision(flags: Flags) -> float:
    """Precision at as many documents as are relevant."""
    return precision_at(flags, sum(flags)) if any(flags) else 0.0


def precision_to_last(flags: Flags) -> float:
    """Precision down to the last relevant document: what CSFCube's script calls "R-precision", and is not."""
    return sum(flags) / max(rank for rank, relevant in enumerate(flags, 1) if relevant) if any(flags) else 0.0


def average_precision(flags: Flags) -> float:
    """Mean over the relevant documents of the precision at their ranks; its mean over queries is MAP."""
    ranks = [rank for rank, relevant in enumerate(flags, 1) if relevant]
    return math.fsum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks) if ranks else 0.0


def reciprocal_rank(flags: Flags, cut: int | None = None) -> float:
    """1 / rank of the first relevant document, 0 when it lies beyond `cut`; its mean over queries is MRR."""
    return next((1 / rank for rank, relevant in enumerate(flags[:cut], 1) if relevant), 0.0)
