"""Which papers of a corpus are near one another by their words, as a whole or by some of their sentences: where positives and hard negatives lie.

After SciNCL (2202.06671), which takes both from bands of ranks among the neighbours of a paper, there in a space of citations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tacit.retrieval.lexical import LSA, TfIdf

BLOCK = 1024  # texts whose cosines with all others are held at once
UNLIKE = 1e-6  # a cosine below which two texts share nothing
Rankings = list[list[int]]  # for each text, places of others, nearest first


def nearest(texts: Sequence[str], groups: NDArray[np.int64], depth: int, *, rank: int, exact: float) -> Rankings:
    """The `depth` texts nearest to each; fewer where fewer have anything in common with it. Equals by place.

    Nearness is `exact` · cosine of TF-IDF + (1 − `exact`) · cosine in LSA of `rank` dimensions. Texts of one group (N,) are not each other's.
    """
    found, depth = [], min(depth, len(texts))
    for start, cosines in _cosines(texts, rank, exact):
        cosines[groups[start : start + BLOCK, None] == groups[None, :]] = 0
        best = np.sort(np.argpartition(-cosines, depth - 1, axis=1)[:, :depth], axis=1)
        found += [_falling(places, row[places]) for places, row in zip(best, cosines)]
    return found or [[] for _ in texts]


def reordered(texts: Sequence[str], rankings: Rankings, *, rank: int, exact: float) -> Rankings:
    """Rankings by the nearness of other texts of the same papers; who shares nothing with them, or has no text here, leaves the ranking."""
    found = []
    for start, cosines in _cosines(texts, rank, exact):
        places = [np.sort(np.array(ranking, int)) for ranking in rankings[start : start + BLOCK]]
        found += [_falling(mine, row[mine]) for mine, row in zip(places, cosines)]
    return found or [[] for _ in texts]


def _falling(places: NDArray[np.int64], cosines: NDArray[np.float32]) -> list[int]:
    order = np.argsort(-cosines, kind="stable")
    return places[order[: int((cosines > UNLIKE).sum())]].tolist()


def _cosines(texts: Sequence[str], rank: int, exact: float) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First row and cosines (rows, N) of one block of texts with all of them, block by block; none where texts have not two words."""
    from scipy.sparse import csr_matrix

    space = TfIdf(texts)
    if len(texts) < 2 or len(space.idf) < 2:
        return
    vectors = LSA(space, rank).documents.astype(np.float32)
    words = csr_matrix(space.documents, dtype=np.float32)
    columns = csr_matrix(words.T)
    for start in range(0, len(texts), BLOCK):
        rows = slice(start, start + BLOCK)
        yield start, (1 - exact) * (vectors[rows] @ vectors.T) + exact * (words[rows] @ columns).toarray()
