"""What n completions of a problem say about k of them: pass@k, maj@k, avg@n. Pure functions in exact integers and float64, and their intervals.

All take what could be scored. A completion without a verdict is no wrong one: it is left out, and a problem with fewer than k verdicts says nothing
about k.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from tacit.core.statistics import Interval, bootstrap, wilson

RIGHT = 0.5  # a completion with a reward above it counts as right


class Estimate(NamedTuple):
    """A mean over `problems`, with its 95 % interval."""

    mean: float
    low: float
    high: float
    problems: int


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that k completions, drawn without replacement from n of which `right` are right, hold a right one: unbiased for k fresh ones.

    Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1, here as a quotient of exact integers. Raises ValueError unless 0 <= right <= n, 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {right} right ones among {n} is not defined: it needs 0 <= right <= n and 1 <= k <= n")
    return 1 - comb(n - right, k) / comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], right: Sequence[float], k: int) -> float:
    """Chance that the majority vote of k completions, drawn without replacement from these n, is right: unbiased for k fresh ones.

    Completions vote for their answer, and equal answers are one candidate; None abstains. Of several candidates with the most votes each wins
    equally often, and a vote without any candidate is lost. `right` (n,) in [0, 1]: a candidate is as right as its completions are on average.
    Source: self-consistency, Wang et al. 2023 (arXiv 2203.11171), sec. 2; averaging over all subsets and ties in closed form is our construction.
    Raises ValueError unless 1 <= k <= n.
    """
    n = len(answers)
    if not 1 <= k <= n or len(right) != n:
        raise ValueError(f"maj@{k} needs at least {k} answers and a verdict for each; there are {n} answers and {len(right)} verdicts")
    members: dict[Hashable, list[float]] = defaultdict(list)
    for answer, value in zip(answers, right, strict=True):
        if answer is not None:
            members[answer].append(value)
    sizes = [len(values) for values in members.values()]
    chance = 0.0
    for place, values in enumerate(members.values()):
        if any(values):
            chance += sum(values) / len(values) * _wins(len(values), sizes[:place] + sizes[place + 1 :], n, k)
    return chance


def _wins(size: int, others: list[int], n: int, k: int) -> float:
    """Chance that a candidate with `size` of n completions has the most votes among k drawn, a tie of t counting 1/t."""
    ways = 0.0
    for votes in range(1, min(size, k) + 1):
        for ties, subsets in enumerate(_subsets(others, n - size, votes, k - votes)):
            ways += comb(size, votes) * subsets / (ties + 1)
    return ways / comb(n, k)


def _subsets(sizes: list[int], total: int, votes: int, left: int) -> list[int]:
    """[t]: in how many ways `left` completions can be drawn from `total`, t candidates of these sizes having exactly `votes` and none more.

    A polynomial in the number drawn for each t, multiplied by (1 + x)^size for candidates, and abstentions, that cannot get so far.
    """
    rivals = [size for size in sizes if size >= votes]
    free = total - sum(rivals)
    ways = [[comb(free, drawn) for drawn in range(left + 1)]]
    for size in rivals:
        before = [*ways, [0] * (left + 1)]
        ways = [[0] * (left + 1) for _ in before]
        for ties, counts in enumerate(before):
            for drawn, count in enumerate(counts):
                if count:
                    for more in range(min(votes - 1, left - drawn) + 1):
                        ways[ties][drawn + more] += count * comb(size, more)
                    if drawn + votes <= left:
                        ways[ties + 1][drawn + votes] += count * comb(size, votes)
    return [counts[left] for counts in ways]


def over_problems(values: Sequence[float]) -> Estimate:
    """Mean of one value per problem, with a 95 % interval that resamples problems: the n completions of one are not independent.

    Bootstrap (see core.statistics), or Wilson's interval where every value is 0 or 1: after 20 right ones out of 20 a bootstrap would claim
    certainty. NaN when no problem says anything.
    """
    count = len(values)
    if count == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    binary = all(value in (0.0, 1.0) for value in values)
    found: Interval = wilson(int(sum(values)), count) if binary else bootstrap(values)
    return Estimate(*found, count)


def measure(rewards: Sequence[Sequence[float]], answers: Sequence[Sequence[Hashable | None]], n: int, ks: Sequence[int]) -> dict[str, Estimate]:
    """avg@n, and pass@k and maj@k for each k, over problems: `rewards` and `answers` hold what was scored of each, up to n, in the same order.

    avg@n is the mean reward, which for rewards of 0 and 1 is pass@1.
    """
    verdicts = [[float(reward > RIGHT) for reward in of_one] for of_one in rewards]
    found = {f"avg@{n}": over_problems([sum(of_one) / len(of_one) for of_one in rewards if of_one])}
    for k in ks:
        found[f"pass@{k}"] = over_problems([pass_at_k(len(right), int(sum(right)), k) for right in verdicts if len(right) >= k])
    for k in ks:
        if k > 1:
            votes = zip(answers, verdicts, strict=True)
            found[f"maj@{k}"] = over_problems([maj_at_k(given, right, k) for given, right in votes if len(right) >= k])
    return found
