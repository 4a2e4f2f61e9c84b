"""Which papers of a corpus are near one another by latent semantic analysis, and which are somewhat near: positives and hard negatives.

Source: SciNCL (2202.06671), which takes both from bands of ranks among the neighbours of a paper, there in a space of citations. The ranks are those
of the specification, section 2.8, for a small corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tacit.retrieval.lexical import LSA, TfIdf

Band = tuple[int, int]  # first and last rank, the nearest neighbour having rank 1
BLOCK = 1024  # texts whose cosines with all others are held at once
UNLIKE = 1e-6  # a cosine below which two texts share nothing


@dataclass(frozen=True, slots=True)
class Neighbours:
    """For each text, places of those in the near band and in the far band, nearest first; a small corpus has fewer of either, or none."""

    near: list[list[int]]
    far: list[list[int]]


def neighbours(texts: Sequence[str], groups: NDArray[np.int64], near: Band, far: Band, rank: int) -> Neighbours:
    """Of `texts`, by cosine in LSA, equals by place. Texts of one group (N,) are no neighbours of one another and take no rank."""
    space = TfIdf(texts)
    if len(texts) < 2 or len(space.idf) < 2:
        return Neighbours([[] for _ in texts], [[] for _ in texts])
    vectors = LSA(space, rank).documents.astype(np.float32)
    found = Neighbours([], [])
    deepest = min(max(near[1], far[1]), len(texts))
    for start in range(0, len(texts), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        cosines[groups[start : start + BLOCK, None] == groups[None, :]] = -np.inf
        best = np.sort(np.argpartition(-cosines, deepest - 1, axis=1)[:, :deepest], axis=1)
        values = np.take_along_axis(cosines, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        for places, cosine in zip(np.take_along_axis(best, order, 1).tolist(), np.take_along_axis(values, order, 1)):
            count = int((cosine > UNLIKE).sum())
            found.near.append(places[near[0] - 1 : min(near[1], count)])
            found.far.append(places[far[0] - 1 : min(far[1], count)])
    return found
