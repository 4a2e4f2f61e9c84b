"""Several rankings made one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DAMPING = 60  # the constant of the paper: the first rank is worth 1/61, the eleventh 1/71


def reciprocal_rank_fusion(rankings: Iterable[Sequence[str]], damping: float = DAMPING) -> dict[str, float]:
    """Σ over the rankings of 1 / (damping + rank): id → score; who is absent from a ranking gets nothing from it.

    Source: Cormack, Clarke & Büttcher (2009), SIGIR, "Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods".
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (damping + rank)
    return scores
