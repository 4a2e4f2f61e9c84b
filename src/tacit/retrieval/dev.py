"""Held-out sets to choose a model by: known items of the user's own corpus, and public ones; and the evaluator that scores a model on them.

The score of a set is MAP, which for one relevant document is the mean of 1 / rank. Nothing here is learnt from, and nothing of it is what CSFCube or
DORIS-MAE judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sentence_transformers.base.evaluation import BaseEvaluator

from tacit.core.statistics import Interval, bootstrap, paired_bootstrap
from tacit.retrieval import metrics as m
from tacit.retrieval.benchmarks import Benchmark, Query, Ranking, evaluate
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.sentences import SENTENCE_END
from tacit.retrieval.systems import REFERENCE, WORDS, Dense, PoolScores, lexical, rankings
from tacit.tasks.data import read_set

# --- sets ---


def known_item(query: Query, ranking: Ranking) -> dict[str, float]:
    """MAP of the documents with a grade above 0."""
    return {"map": m.average_precision([query.grades[name] > 0 for name in m.completed(ranking, query.grades)])}


def known_items(name: str, items: Iterable[tuple[str, str, str]], *, papers: bool) -> Benchmark:
    """From (topic, query, the document that it should find): all documents are the pool of each query, and equal ones are one document.

    `papers`: queries are documents themselves, not questions.
    """
    kept = [item for item in items if item[1] and item[2]]
    ids = {document: f"d{n:05d}" for n, document in enumerate(dict.fromkeys(document for _, _, document in kept))}
    queries, corpus = [], {one: document for document, one in ids.items()}
    for n, (topic, text, document) in enumerate(kept):
        grades = {one: float(one == ids[document]) for other, one in ids.items() if other == document or other != text}
        if papers:
            corpus[f"q{n:05d}"] = text
        queries.append(Query(f"q{n:05d}", topic, text, grades, like=f"q{n:05d}" if papers else ""))
    return Benchmark(name, tuple(queries), corpus, {}, known_item, ("map",))


def specter() -> Benchmark:
    """200 papers, each with one that it is cited with or cites, among 400. Source: SciRepEval's sample of the triplets of SPECTER."""
    rows = read_set("scirepeval_sample/specter_small.jsonl.gz")
    pool = {str(paper["corpus_id"]): _text(paper) for row in rows for paper in (row["pos"], row["neg"])}
    corpus, queries = dict(pool), []
    for n, row in enumerate(rows):
        asked, wanted = str(row["query"]["corpus_id"]), str(row["pos"]["corpus_id"])
        corpus[asked] = _text(row["query"])
        queries.append(Query(f"q{n:05d}", asked, corpus[asked], {name: float(name == wanted) for name in pool if name != asked}, like=asked))
    return Benchmark("specter", tuple(queries), corpus, {}, known_item, ("map",))


def search() -> Benchmark:
    """100 searches, each with the ten papers that were shown; those clicked are relevant. Source: SciRepEval's sample of Semantic Scholar's log."""
    queries, corpus = [], {}
    for n, row in enumerate(read_set("scirepeval_sample/search.jsonl.gz")):
        corpus |= {str(paper["corpus_id"]): _text(paper) for paper in row["candidates"]}
        queries.append(Query(f"q{n:05d}", str(n), row["query"], {str(paper["corpus_id"]): float(paper["score"]) for paper in row["candidates"]}))
    return Benchmark("search", tuple(queries), corpus, {}, known_item, ("map",))


def tldr() -> Benchmark:
    """Summaries of one sentence, each of one paper among 619. Source: SciTLDR, dev."""
    rows = read_set("scitldr/dev.jsonl.gz")
    items = ((row["paper_id"], row["target"][0], SENTENCE_END.join([row["title"], *row["source"]])) for row in rows)
    return known_items("tldr", items, papers=False)


PUBLIC: Mapping[str, Callable[[], Benchmark]] = {"specter": specter, "search": search, "tldr": tldr}


def _text(paper: Mapping[str, Any]) -> str:
    return f"{paper['title']}. {paper.get('abstract') or ''}"


# --- scores ---


@dataclass(frozen=True, slots=True)
class Measured:
    """MAP of each query, by set."""

    sets: Sequence[Benchmark]
    values: Mapping[str, Sequence[float]]

    def means(self) -> dict[str, float]:
        """`eval/NAME_map` of each set, and `eval/map`: the mean of both directions, papers for a paper and papers for a question, each the mean of
        its sets. A set of many queries weighs no more than one of few."""
        each = {f"eval/{name}_map": sum(values) / len(values) for name, values in self.values.items()}
        return {"eval/map": sum(self._shares()), **each}

    def interval(self) -> Interval:
        """Of `eval/map`, over the papers and questions that ask."""
        return bootstrap(self._spread(), self._topics())

    def gain(self, before: Measured) -> Interval:
        """The same of the difference, paired by query."""
        return paired_bootstrap(self._spread(), before._spread(), clusters=self._topics())

    def _shares(self) -> list[float]:
        """What each query adds to `eval/map`."""
        alike = [sum(by_paper(one) == by_paper(other) for other in self.sets) for one in self.sets]
        directions = len({by_paper(one) for one in self.sets})
        weights = [1 / (directions * same * len(one.queries)) for one, same in zip(self.sets, alike)]
        return [weight * value for one, weight in zip(self.sets, weights) for value in self.values[one.name]]

    def _spread(self) -> list[float]:
        """Numbers whose plain mean is `eval/map`, one a query."""
        shares = self._shares()
        return [len(shares) * share for share in shares]

    def _topics(self) -> list[str]:
        return [query.topic for one in self.sets for query in one.queries]


def by_paper(benchmark: Benchmark) -> bool:
    """Whether papers ask, not questions."""
    return any(query.like for query in benchmark.queries)


def measure(model: Any, sets: Sequence[Benchmark]) -> Measured:
    return _measured(sets, [Dense(one, Encoder(model)).scores() for one in sets])


def baselines(sets: Sequence[Benchmark]) -> dict[str, float]:
    """`eval/map` by words alone."""
    found = [lexical(one, lsa=False) for one in sets]
    return {name: _measured(sets, [f[system] for f in found]).means()["eval/map"] for name, system in (("TF-IDF", REFERENCE), ("BM25", WORDS))}


def _measured(sets: Sequence[Benchmark], scores: Sequence[PoolScores]) -> Measured:
    values = [evaluate(one, rankings(found)).values["map"] for one, found in zip(sets, scores, strict=True)]
    return Measured(sets, {one.name: [column[query.id] for query in one.queries] for one, column in zip(sets, values)})


class DevEvaluator(BaseEvaluator):
    """For the trainer of sentence-transformers, which keeps the checkpoint with the highest `map`."""

    def __init__(self, sets: Sequence[Benchmark]):
        super().__init__()
        self.sets, self.primary_metric = sets, "map"

    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        return {name.removeprefix("eval/"): value for name, value in measure(model, self.sets).means().items()}
