"""What a route is worth: ideal labels, quality, cost, and samples of a router. Pure functions of recorded scores.

Source, unless a docstring says otherwise: Pre-Route (2605.10235) as digests transcribe it, sections 2.1, 2.6, 2.8 and 2.10 of the specification.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]


def ideal_label(rag: ArrayLike, lc: ArrayLike) -> Mask:
    """True where long context is ideal: lc > rag, strictly (n,). A tie goes to RAG, which is cheaper."""
    return np.asarray(lc, np.float64) > np.asarray(rag, np.float64)


def quality(to_lc: ArrayLike, rag: ArrayLike, lc: ArrayLike) -> NDArray[np.float64]:
    """Score of the chosen answer, question by question (n,)."""
    return np.where(np.asarray(to_lc, bool), np.asarray(lc, np.float64), np.asarray(rag, np.float64))


def route_accuracy(to_lc: ArrayLike, rag: ArrayLike, lc: ArrayLike) -> float:
    """Share of questions sent where the ideal label says. Always-RAG and Always-LC share out 1 between them."""
    return float((np.asarray(to_lc, bool) == ideal_label(rag, lc)).mean())


def proactive_cost(rate: ArrayLike, rag: ArrayLike, lc: ArrayLike, router: ArrayLike = 0.0) -> NDArray[np.float64]:
    """Cost of a route that is chosen first, at LC rate p: C_P + (1 - p) C_R + p C_L."""
    p = np.asarray(rate, np.float64)
    return np.asarray(router) + (1 - p) * np.asarray(rag) + p * np.asarray(lc)


def reactive_cost(rate: ArrayLike, rag: ArrayLike, lc: ArrayLike) -> NDArray[np.float64]:
    """Cost of Self-Route, which always pays for retrieval: C_R + p C_L. Source: 2407.16833."""
    return np.asarray(rag) + np.asarray(rate, np.float64) * np.asarray(lc)


def coin_any(right: float, draws: int) -> float:
    """Chance that one of `draws` independent guesses is right, 1 - (1 - c)^N: what any-of-N must beat before it shows an ability. [inferred]"""
    return 1 - (1 - right) ** draws


def majority(to_lc: Sequence[bool]) -> bool:
    """The vote of several draws for long context; a tie goes to RAG. Their order does not matter."""
    return sum(to_lc) * 2 > len(to_lc)


class Draw(NamedTuple):
    """One sample of a router: its chain of thought and the route that it ends on."""

    trace: str
    to_lc: bool


def keep_agreeing(draws: Sequence[Draw], ideal: bool) -> list[Draw]:
    """The chains that end on the ideal label, for distillation; empty when the teacher never agrees."""
    return [draw for draw in draws if draw.to_lc == ideal]


def split_by_group(groups: Sequence[Hashable], shares: Sequence[float], seed: int = 0) -> list[list[int]]:
    """Indices of the items of each part, whole groups at a time: no document is in two parts. `shares` are relative; parts follow their order.

    Raises ValueError when a share is not positive, or there are fewer groups than parts.
    """
    names = list(dict.fromkeys(groups))
    if not shares or min(shares) <= 0:
        raise ValueError(f"each part of a split needs a positive share, not {list(shares)}")
    if len(names) < len(shares):
        raise ValueError(f"{len(names)} documents cannot be split into {len(shares)} parts")
    random.Random(seed).shuffle(names)
    ends = list[int]()
    for k in range(len(shares)):  # at least one group to each part, those to come included
        wanted = round(len(names) * sum(shares[: k + 1]) / sum(shares))
        ends.append(min(max(wanted, ends[-1] + 1 if ends else 1), len(names) - len(shares) + k + 1))
    part = {name: k for k, (start, end) in enumerate(zip([0, *ends], ends)) for name in names[start:end]}
    return [[i for i, group in enumerate(groups) if part[group] == k] for k in range(len(shares))]
