"""Searching an index: by words, by meaning, or by both; and why a paper was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tacit.mistakes import choice
from tacit.retrieval.dense import leading
from tacit.retrieval.encoder import Encoder, Vectors, facet_weights, known_facet, like
from tacit.retrieval.fusion import reciprocal_rank_fusion
from tacit.retrieval.index import Contents, Dense, read
from tacit.retrieval.lexical import tokens
from tacit.retrieval.metrics import ranked
from tacit.retrieval.papers import Paper
from tacit.retrieval.sentences import behind, passages, sentences, spaced

METHODS = ("bm25", "dense", "hybrid")
DEPTH = 1000  # papers of either ranking that are fused
K1, B = 1.2, 0.75  # of BM25 over the sentences of a paper, for highlights


@dataclass(frozen=True, slots=True)
class Query:
    """A text, or a paper of the index that others should be like; under a facet or none. Repeated words count in a paper, whose subject they tell."""

    text: str
    words: tuple[str, ...]
    like: str | None = None
    facet: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A paper that was found, its score, and its rank and score by each method that was asked."""

    rank: int
    paper: Paper
    score: float
    parts: dict[str, tuple[int, float]]


class Searcher:
    """An open index. The model is loaded when a query first needs it."""

    def __init__(self, contents: Contents, encoder: Encoder | None = None):
        self.contents = contents
        self._encoder = contents.dense.check(encoder) if contents.dense and encoder else None
        self._rows = {paper.id: row for row, paper in enumerate(contents.papers)}
        self._asked: dict[Query, Vectors] = {}  # the query asked last

    @classmethod
    def open(cls, folder: str | Path, model: str | None = None) -> Searcher:
        """Raises StoreError when there is no index, ValueError when `model` is not that of the index."""
        contents = read(folder)
        if model is not None and contents.dense is None:
            raise ValueError(f"the index {folder} was made without a model; make it anew with --model {model} to search it by meaning")
        return cls(contents, Encoder.load(model) if model else None)

    @property
    def default(self) -> str:
        """The method where none is named."""
        return "hybrid" if self.contents.dense else "bm25"

    @property
    def dense(self) -> Dense:
        if self.contents.dense is None:
            raise ValueError("the index was made without a model, so it can only be searched with bm25; make it anew with --model")
        return self.contents.dense

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self.dense.check(Encoder.load(self.dense.model))
        return self._encoder

    def query(self, text: str | None = None, like: str | None = None, facet: str | None = None) -> Query:
        """Raises ValueError unless exactly one of text and like is given and says something, and for a facet that the model of the index has not."""
        if (text is None) == (like is None):
            raise ValueError("give either a text or, with --like, the id of a paper")
        if facet is not None and self.contents.dense is None:
            raise ValueError("the index was made without a model, so it knows no facets; make it anew with --model and a UniFAR-style model")
        if facet is not None:
            known_facet(facet, self.dense.facets)
        if like is not None:
            paper = self.contents.papers[self.contents.row(like)]
            return Query(paper.whole, tuple(tokens(paper.whole)), like, facet)
        if text is None or not text.strip():
            raise ValueError("the query is empty; ask something")
        return Query(text, tuple(sorted(set(tokens(text)))), facet=facet)

    def search(self, query: Query, k: int = 10, method: str | None = None) -> list[Hit]:
        """The best `k` papers, equal scores by id; without the paper that the query is. Default: both methods where there is a model.

        Both means the first 1,000 papers of either, whatever `k`, so that a score does not depend on how many are shown.
        """
        method = method or self.default
        if method not in METHODS:
            raise ValueError(choice("--method", method, list(METHODS)))
        if method == "bm25" and query.facet is not None:
            raise ValueError("bm25 compares whole documents and knows no facets; leave out --facet, or choose --method dense or hybrid")
        depth = DEPTH if method == "hybrid" else k
        rankings: dict[str, dict[str, float]] = {}
        if method != "dense":
            rankings["bm25"] = self._by_words(query, depth)
        if method != "bm25":
            rankings["dense"] = self._by_meaning(query, depth)
        orders = {name: ranked(scores)[:depth] for name, scores in rankings.items()}
        scores = reciprocal_rank_fusion(orders.values()) if method == "hybrid" else rankings[method]
        places = {name: {paper: rank for rank, paper in enumerate(order, 1)} for name, order in orders.items()}
        hits = []
        for rank, name in enumerate(ranked(scores)[:k], 1):
            parts = {part: (places[part][name], rankings[part][name]) for part in orders if name in places[part]}
            hits.append(Hit(rank, self.contents.papers[self._rows[name]], scores[name], parts))
        return hits

    def _by_words(self, query: Query, depth: int) -> dict[str, float]:
        scores = self.contents.bm25.scores(query.words)
        shared = np.flatnonzero(scores > 0)
        best = shared[leading(scores[shared], depth + 1)]  # one more than is asked: the paper that the query is goes
        return self._named(dict(zip(best.tolist(), scores[best].tolist())), query)

    def _by_meaning(self, query: Query, depth: int) -> dict[str, float]:
        return self._named(self.dense.nearest.search(self.vector(query), depth + 1), query)

    def _named(self, scores: dict[int, float], query: Query) -> dict[str, float]:
        names = {self.contents.papers[row].id: score for row, score in scores.items()}
        names.pop(query.like or "", None)
        return names

    def vector(self, query: Query) -> Vectors:
        """What is compared with passages (d,): of the text, or of the mean of the paper's passages."""
        if query not in self._asked:
            if query.like is None:
                found = self.encoder.queries([query.text], query.facet)[0]
            else:
                found = like(self.dense.nearest.held.of(self._rows[query.like]), self.dense.facets, query.facet)
            self._asked = {query: found}
        return self._asked[query]

    def sentences(self, query: Query, paper: Paper, by_meaning: bool = False) -> list[tuple[str, float]]:
        """Sentences of a paper, in order, with what each has to do with the query: BM25 by words, with a model optionally its score on top of it,
        both scaled to at most 1. Nothing in common is 0."""
        texts = sentences(paper.text) or [paper.title]
        weights = _scaled(self._lexical(query, texts))
        if by_meaning and self.contents.dense is not None:
            weights = (weights + _scaled(np.maximum(0, self.encoder.documents(texts) @ self.vector(query)))) / 2
        return [(text, float(weight)) for text, weight in zip(texts, weights)]

    def roles(self, paper: Paper) -> list[str]:
        """The most likely facet of each of these sentences; "" where the model has no facets, stopped reading before, or reads no token."""
        groups = passages(paper.title, paper.text, self.dense.words)
        found = []
        for group, names in zip(groups, self.encoder.roles([behind(paper.title, group) for group in groups])):
            read = names[1:] if paper.title and group else names  # the title is the first sentence of each passage
            size = max(1, len(group))
            found += [*read, *[""] * size][:size]
        return found

    def _lexical(self, query: Query, texts: Sequence[str]) -> np.ndarray:
        bags, wanted = [tokens(text) for text in texts], set(query.words)
        mean = max(1.0, sum(map(len, bags)) / len(bags))
        found = []
        for bag in bags:
            saturation = K1 * (1 - B + B * len(bag) / mean)
            shared = {word: bag.count(word) for word in wanted.intersection(bag)}
            found.append(math.fsum(self.contents.bm25.idf(word) * tf * (K1 + 1) / (tf + saturation) for word, tf in shared.items()))
        return np.array(found)

    def explain(self, query: Query, name: str, method: str | None = None) -> dict[str, Any]:
        """Why a paper stands where it stands: rank and score of each method, what each word adds, the nearest passage, the sentences."""
        row = self.contents.row(name)
        paper = self.contents.papers[row]
        found = {hit.paper.id: hit for hit in self.search(query, len(self.contents.papers), method)}
        hit = found.get(name)
        bm25 = self.contents.bm25
        words = {word: float(bm25.scores([word])[row]) * query.words.count(word) for word in dict.fromkeys(query.words)}
        told: dict[str, Any] = {
            "paper": paper.id,
            "title": paper.title,
            "rank": hit.rank if hit else None,
            "score": hit.score if hit else 0.0,
            "parts": {part: {"rank": rank, "score": score} for part, (rank, score) in hit.parts.items()} if hit else {},
            "words": dict(sorted(((w, s) for w, s in words.items() if s > 0), key=lambda item: (-item[1], item[0]))),
            "sentences": self.told_sentences(query, paper, by_meaning=method != "bm25"),
        }
        if self.contents.dense is not None and method != "bm25":
            told |= self._nearest(query, paper, row)
        return told

    def told_sentences(self, query: Query, paper: Paper, by_meaning: bool) -> list[dict[str, Any]]:
        """The sentences of a paper as plain data: text, weight, and by meaning the most likely facet where the model has some."""
        told: list[dict[str, Any]] = [{"text": text, "weight": weight} for text, weight in self.sentences(query, paper, by_meaning)]
        if by_meaning and self.contents.dense is not None and self.dense.facets:
            for sentence, role in zip(told, self.roles(paper), strict=True):
                sentence["facet"] = role
        return told

    def _nearest(self, query: Query, paper: Paper, row: int) -> dict[str, Any]:
        """The nearest passage and its score; with facets, how much each was asked for, and the terms that the score is the sum of."""
        held, asks = self.dense.nearest.held.of(row), self.vector(query)
        scores = held @ asks
        best = int(scores.argmax())
        text = spaced(behind(paper.title, passages(paper.title, paper.text, self.dense.words)[best]))
        told: dict[str, Any] = {"passage": {"text": text, "score": float(scores[best]), "of": len(scores)}}
        if names := self.dense.facets:
            blocks = len(names) + 1, -1
            terms = (held[best].reshape(blocks) * asks.reshape(blocks)).sum(1)
            told["facets"] = {"asked": self.weights(query), "terms": dict(zip(("whole", *names), map(float, terms), strict=True))}
        return told

    def weights(self, query: Query) -> dict[str, float]:
        """How much each facet counts: π of a question, 1 for the facet that was named, the same for all of a paper. They sum to 1."""
        names = self.dense.facets
        asked = query.like is None and query.facet is None
        found = map(float, self.encoder.intents([query.text])[0]) if asked else facet_weights(names, query.facet)
        return dict(zip(names, found, strict=True))


def _scaled(weights: np.ndarray) -> np.ndarray:
    top = weights.max(initial=0)
    return weights / top if top > 0 else np.zeros(len(weights))
