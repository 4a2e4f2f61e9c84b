"""Does a prompt elicit routing? N samples of each prompt style, as any-of-N with its coin control and as a majority vote.

Any of N samples being right grows with N for a coin too: a label with two values is hit by 8 fair flips 99.6 % of the time. So any-of-N is always
shown beside coins that fall for long context as often as the samples did. Source: section 2.6 of the specification; control and vote [inferred].
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tacit.rewards.metrics import pass_at_k
from tacit.routing.decision import Decision, Metadata
from tacit.routing.labels import coin_any
from tacit.routing.llm import LLMRouter
from tacit.routing.prompt import Style

STYLES: tuple[Style, ...] = ("direct", "free", "guideline")


@dataclass(frozen=True, slots=True)
class Curves:
    """Means over questions for N = 1 to the number of draws, each a list of that length, and the share of draws for long context."""

    any_of: list[float]
    coin: list[float]
    majority: list[float]
    lc_rate: float


def curves(to_lc: ArrayLike, ideal: ArrayLike) -> Curves:
    """From draws (questions, N) and ideal labels (questions,). N below the number of draws is averaged over all choices of N draws."""
    draws, labels = np.asarray(to_lc, bool), np.asarray(ideal, bool)
    total, rate = draws.shape[1], float(draws.mean())
    lc = draws.sum(1)
    right = np.where(labels, lc, total - lc)
    chance = np.where(labels, rate, 1 - rate)
    counts = range(1, total + 1)
    return Curves(
        [float(np.mean([pass_at_k(total, int(r), n) for r in right])) for n in counts],
        [float(np.mean([coin_any(float(c), n) for c in chance])) for n in counts],
        [float(np.mean([abs((not label) - vote(total, int(k), n)) for k, label in zip(lc, labels)])) for n in counts],
        rate,
    )


def vote(total: int, lc: int, n: int) -> float:
    """Chance that n draws, of `total` with `lc` for long context, vote for it: more than half of them; a tie goes to RAG."""
    ways = sum(comb(lc, k) * comb(total - lc, n - k) for k in range(n // 2 + 1, n + 1))
    return ways / comb(total, n)


async def elicit(
    routers: Sequence[LLMRouter], questions: Sequence[Metadata], ideal: Sequence[bool], draws: int, temperature: float = 1.0
) -> dict[str, Any]:
    """For each router, which is one prompt style: its curves, and how many of its replies gave no route. Plain data.

    Questions that a hard rule decides say nothing about a prompt and must be left out before. Every failed draw counts as RAG, as in earnest.
    """
    found = {}
    for router in routers:
        drawn = await asyncio.gather(*(router.samples(q, draws, temperature=temperature) for q in questions))
        told = asdict(curves([[d.to_lc for d in row] for row in drawn], ideal))
        found[router.style] = told | {"without_route": _without(drawn), "replies": len(questions) * draws}
    return {"questions": len(questions), "ideal_lc_rate": float(np.mean(np.asarray(ideal, bool))), "draws": draws, "styles": found}


def _without(drawn: Sequence[Sequence[Decision]]) -> int:
    return sum(d.by == "fallback" for row in drawn for d in row)
