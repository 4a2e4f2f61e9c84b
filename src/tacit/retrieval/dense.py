"""Vectors of passages, searched by FAISS: exactly (flat) or through a graph (HNSW). A paper is as near as its nearest passage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.core.progress import Reporter, SilentReporter
from tacit.retrieval.encoder import Encoder, Vectors
from tacit.retrieval.papers import Paper
from tacit.retrieval.sentences import behind, passages

KINDS = ("flat", "hnsw")
NEIGHBOURS, BUILD_WIDTH, SEARCH_WIDTH = 32, 200, 128  # of the HNSW graph: M, efConstruction, efSearch
WORDS_PER_TOKEN = 0.6  # of English scientific text in word pieces, on the safe side
CHUNK = 256  # passages between two reports of progress


@dataclass(frozen=True, slots=True)
class Passages:
    """Vectors (P, d) and the row of the paper that each belongs to (P,), in order of papers."""

    vectors: Vectors
    owners: NDArray[np.int64]

    def of(self, row: int) -> Vectors:
        first, last = np.searchsorted(self.owners, [row, row + 1])
        return self.vectors[first:last]


def passage_words(encoder: Encoder) -> int:
    """Words of a passage that the encoder is likely to read to the end."""
    return max(8, int(WORDS_PER_TOKEN * encoder.length))


def encode(encoder: Encoder, papers: Sequence[Paper], words: int, reporter: Reporter | None = None) -> list[Vectors]:
    """The vectors of the passages of each paper."""
    reporter = reporter or SilentReporter()
    texts = [[behind(paper.title, group) for group in passages(paper.title, paper.text, words)] for paper in papers]
    every = [text for group in texts for text in group]
    parts = []
    reporter.phase(f"encoding {len(every):,} passages", math.ceil(len(every) / CHUNK))
    for n, start in enumerate(range(0, len(every), CHUNK)):
        parts.append(encoder.documents(every[start : start + CHUNK]))
        reporter.step(n, {"passages": start + len(parts[-1])})
    vectors = np.concatenate(parts) if parts else encoder.documents([])
    return np.split(vectors, np.cumsum([len(group) for group in texts])[:-1])


def joined(groups: Sequence[Vectors]) -> Passages:
    return Passages(np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(group) for group in groups]))


def leading(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Places of the `count` highest scores and of all that equal the last of them, or of all there are; in order of places."""
    if count >= len(scores):
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, -count)[-count])


class Nearest:
    """Finds the papers whose passages are nearest to a vector."""

    def __init__(self, held: Passages, engine: Any):
        self.held, self.engine = held, engine

    @classmethod
    def build(cls, held: Passages, kind: str) -> Nearest:
        faiss, width = _faiss(), held.vectors.shape[1]
        if kind == "hnsw":
            engine = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            engine.hnsw.efConstruction = BUILD_WIDTH
        else:
            engine = faiss.IndexFlatIP(width)
        engine.add(held.vectors)
        return cls(held, engine)

    @classmethod
    def open(cls, held: Passages, kind: str, file: Path) -> Nearest:
        """A graph is read from its file; the flat index is its vectors."""
        return cls(held, _faiss().read_index(str(file))) if kind == "hnsw" else cls.build(held, kind)

    def save(self, file: Path) -> None:
        _faiss().write_index(self.engine, str(file))

    def grown(self, held: Passages) -> Nearest:
        """With the passages that `held` has beyond those here. The graph takes them in without being made anew."""
        self.engine.add(held.vectors[len(self.held.vectors) :])
        return Nearest(held, self.engine)

    def search(self, vector: Vectors, papers: int) -> dict[int, float]:
        """Row → score of the `papers` nearest papers, one at least, and of all that are as near as the last of them, or of all there are; nearest
        first, equals by row. Scores are inner products, so cosines where vectors have length 1.

        A graph can lose sight of papers behind many equal passages: when even all passages do not yield enough papers, the scan is exact.
        """
        total, papers = len(self.held.vectors), max(papers, 1)
        wanted = papers + 1
        while wanted < total:
            self._widen(wanted)
            scores, places = self.engine.search(vector[None], wanted)
            found = places[0] >= 0
            best = self._best(places[0][found], scores[0][found], papers)
            if len(best) >= papers and scores[0][found][-1] < min(best.values()):  # else papers as near may be left
                return best
            wanted *= 2
        if not total:
            return {}
        # by FAISS too: of equal vectors a product of matrices can make scores that differ in the last bit
        scores, places = _faiss().knn(vector[None], self.held.vectors, total, metric=_faiss().METRIC_INNER_PRODUCT)
        return self._best(places[0], scores[0], papers)

    def _best(self, places: NDArray[np.int64], scores: Vectors, papers: int) -> dict[int, float]:
        """Of passages, nearest first."""
        rows, nearest = np.unique(self.held.owners[places], return_index=True)
        kept = leading(scores[nearest], papers)
        kept = kept[np.argsort(-scores[nearest][kept], kind="stable")]
        return dict(zip(rows[kept].tolist(), scores[nearest][kept].tolist()))

    def _widen(self, wanted: int) -> None:
        if hasattr(self.engine, "hnsw"):
            self.engine.hnsw.efSearch = max(SEARCH_WIDTH, 2 * wanted)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError("an index of vectors needs faiss, which is not installed; install it with: pip install 'tacit[retrieval]'") from None
    return faiss
