"""Scores of the pools of a benchmark by words, by a model, and by both together. Rankings come from scores, and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tacit.retrieval.benchmarks import Benchmark, Query, Ranking, Scores, evaluate
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.fusion import reciprocal_rank_fusion
from tacit.retrieval.lexical import BM25, LSA, TfIdf, tokens
from tacit.retrieval.metrics import ranked

PoolScores = Mapping[str, Mapping[str, float]]  # query → document of its pool → score, the higher the better
Facet = Callable[[Query], str | None]
REFERENCE, WORDS, WRONG = "TF-IDF, ours", "BM25, ours", ", wrong facet"  # the last behind the name of a model


def rankings(scores: PoolScores) -> dict[str, Ranking]:
    """The order of each pool; equal scores by id."""
    return {query: ranked(pool) for query, pool in scores.items()}


def lexical(benchmark: Benchmark, lsa: bool = True) -> dict[str, PoolScores]:
    """Own TF-IDF, LSA (unless told not to) and BM25, with document frequencies from all documents of the benchmark.

    BM25 comes twice: with each word of a query once, and with repeated words counted, which suits a query that is a whole paper.
    """
    names, texts = list(benchmark.corpus), list(benchmark.corpus.values())
    tfidf, bm25 = TfIdf(texts), BM25([tokens(text) for text in texts])
    scorers = {
        REFERENCE: tfidf.scores,
        **({"LSA of 200, ours": LSA(tfidf).scores} if lsa else {}),
        WORDS: lambda text: bm25.scores(sorted(set(tokens(text)))),
        "BM25, repeats counted": lambda text: bm25.scores(tokens(text)),
    }
    return {system: {q.id: _in_pool(q, names, score(q.text)) for q in benchmark.queries} for system, score in scorers.items()}


def given(query: Query) -> str | None:
    """The facet that the benchmark asks under."""
    return query.facet or None


def evenly(query: Query) -> str | None:
    """Every facet alike, whatever the benchmark asks under."""
    return "all"


class Dense:
    """A benchmark as a model sees it, every text cut where the model stops reading. Documents are encoded once, whatever is asked then."""

    def __init__(self, benchmark: Benchmark, encoder: Encoder):
        self.benchmark, self.encoder = benchmark, encoder
        names = sorted({name for q in benchmark.queries for name in (*q.grades, *filter(None, [q.like]))})
        self.rows = {name: row for row, name in enumerate(names)}
        self.documents = encoder.documents([benchmark.corpus[name] for name in names])

    @property
    def faceted(self) -> bool:
        """Whether the benchmark asks under facets and the model knows them."""
        return bool(self.encoder.facets) and any(q.facet for q in self.benchmark.queries)

    def scores(self, facet: Facet = given) -> PoolScores:
        """Inner products; of a model without facets cosines. A query that is a paper asks with its document's vector, its facets even unless one
        is given; a question is encoded as one, its facets weighed by π unless one is given."""
        return {q.id: _in_pool(q, list(q.grades), self.documents[[self.rows[n] for n in q.grades]] @ v) for q, v in self._asking(facet)}

    def _asking(self, facet: Facet) -> list[tuple[Query, NDArray[np.float32]]]:
        chosen = {q.id: facet(q) if self.encoder.facets else None for q in self.benchmark.queries}
        questions = [q for q in self.benchmark.queries if not q.like]
        vectors = {}
        for name in dict.fromkeys(chosen[q.id] for q in questions):
            mine = [q for q in questions if chosen[q.id] == name]
            vectors |= dict(zip((q.id for q in mine), self.encoder.queries([q.text for q in mine], name), strict=True))
        for q in self.benchmark.queries:
            if q.like:
                vectors[q.id] = self.encoder.like(self.documents[[self.rows[q.like]]], chosen[q.id])
        return [(q, vectors[q.id]) for q in self.benchmark.queries]


def wrong_facets(dense: Dense) -> Scores:
    """Every metric of a query as its mean over the facets that were not asked for."""
    facets = dense.encoder.facets
    return mean_scores(dense.benchmark, [dense.scores(turned(step, facets)) for step in range(1, len(facets))])


def turned(step: int, facets: Sequence[str]) -> Facet:
    """The facet that stands `step` places after the one that the benchmark asks under; none where it asks under none."""
    return lambda query: facets[(facets.index(query.facet) + step) % len(facets)] if query.facet in facets else None


def mean_scores(benchmark: Benchmark, runs: Sequence[PoolScores]) -> Scores:
    """Every metric of a query as its mean over runs."""
    each = [evaluate(benchmark, rankings(scores)).values for scores in runs]
    return Scores(benchmark, {m: {q: float(np.mean([values[m][q] for values in each])) for q in column} for m, column in each[0].items()})


def fused(first: PoolScores, second: PoolScores) -> PoolScores:
    """By the ranks in both."""
    return {query: reciprocal_rank_fusion([ranked(first[query]), ranked(second[query])]) for query in first}


def hybrid(lexical: PoolScores, dense: PoolScores, weight: float) -> PoolScores:
    """(1 - weight) · z(lexical) + weight · z(dense), where z has mean 0 and variance 1 over each pool; 0 where all scores are equal."""
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of the model in a hybrid is from 0 to 1, not {weight}")
    mixed = {}
    for query, pool in lexical.items():
        other = standardised(dense[query])
        mixed[query] = {name: (1 - weight) * score + weight * other[name] for name, score in standardised(pool).items()}
    return mixed


def standardised(pool: Mapping[str, float]) -> dict[str, float]:
    values = np.array(list(pool.values()))
    spread = values.std()
    centred = (values - values.mean()) / (spread if spread > 1e-12 else np.inf)
    return dict(zip(pool, centred.tolist(), strict=True))


def _in_pool(query: Query, names: Sequence[str], scores: NDArray[np.floating]) -> dict[str, float]:
    return {name: float(score) for name, score in zip(names, scores, strict=True) if name in query.grades}


def all_systems(benchmark: Benchmark, encoders: Sequence[Encoder] = (), weight: float | None = None) -> dict[str, Scores]:
    """Scores of the published systems, of our own, and of each model alone and fused with our BM25; with a `weight` also mixed with our TF-IDF and
    BM25 by scores. A model with facets gets rows of its own under the wrong facets and under all alike, where the benchmark asks under one."""
    own = lexical(benchmark)
    found = {system: evaluate(benchmark, given) for system, given in benchmark.published.items()}
    for encoder in encoders:
        name, dense = encoder.name, Dense(benchmark, encoder)
        own[name] = dense.scores()
        own[f"{name} + BM25"] = fused(own[name], own[WORDS])
        if weight is not None:
            own |= {f"{name} {weight:g} + {words.split(',')[0]}": hybrid(own[words], own[name], weight) for words in (REFERENCE, WORDS)}
        if dense.faceted:
            own[f"{name}, all facets"] = dense.scores(evenly)
            found[name + WRONG] = wrong_facets(dense)
    return found | {system: evaluate(benchmark, rankings(scores)) for system, scores in own.items()}
