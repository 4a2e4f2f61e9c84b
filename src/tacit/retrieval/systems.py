"""Rankings of the pools of a benchmark by words, by a model, and by both together; a table of all systems side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.core.statistics import paired_bootstrap
from tacit.retrieval.benchmarks import Benchmark, Ranking, Scores, evaluate
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.fusion import reciprocal_rank_fusion
from tacit.retrieval.lexical import BM25, LSA, TfIdf, tokens
from tacit.retrieval.metrics import ranked

Rankings = Mapping[str, Ranking]
REFERENCE = "TF-IDF, ours"  # what the other rows are compared with


def lexical(benchmark: Benchmark, lsa: bool = True) -> dict[str, Rankings]:
    """Own TF-IDF, LSA (unless told not to) and BM25, with document frequencies from all documents of the benchmark.

    BM25 comes twice: with each word of a query once, and with repeated words counted, which suits a query that is a whole paper.
    """
    names, texts = list(benchmark.corpus), list(benchmark.corpus.values())
    tfidf, bm25 = TfIdf(texts), BM25([tokens(text) for text in texts])
    scorers = {
        REFERENCE: tfidf.scores,
        **({"LSA of 200, ours": LSA(tfidf).scores} if lsa else {}),
        "BM25, ours": lambda text: bm25.scores(sorted(set(tokens(text)))),
        "BM25, repeats counted": lambda text: bm25.scores(tokens(text)),
    }
    return {system: {q.id: _in_pool(q.grades, names, score(q.text)) for q in benchmark.queries} for system, score in scorers.items()}


def dense(benchmark: Benchmark, encoder: Encoder) -> Rankings:
    """By cosine of the vectors of query and document, each cut where the model stops reading."""
    pools = sorted({name for q in benchmark.queries for name in q.grades})
    place = {name: row for row, name in enumerate(pools)}
    documents = encoder.documents([benchmark.corpus[name] for name in pools])
    queries = encoder.queries([q.text for q in benchmark.queries])
    return {q.id: _in_pool(q.grades, list(q.grades), documents[[place[n] for n in q.grades]] @ v) for q, v in zip(benchmark.queries, queries)}


def fused(benchmark: Benchmark, first: Rankings, second: Rankings) -> Rankings:
    return {q.id: ranked(reciprocal_rank_fusion([first[q.id], second[q.id]])) for q in benchmark.queries}


def _in_pool(pool: Mapping[str, float], names: Sequence[str], scores: NDArray[np.floating]) -> list[str]:
    return ranked({name: float(score) for name, score in zip(names, scores) if name in pool})


def all_systems(benchmark: Benchmark, encoders: Sequence[Encoder] = ()) -> dict[str, Scores]:
    """Scores of the published systems, of our own, and of each model alone and fused with our BM25."""
    own = lexical(benchmark)
    for encoder in encoders:
        own[encoder.name] = dense(benchmark, encoder)
        own[f"{encoder.name} + BM25"] = fused(benchmark, own[encoder.name], own["BM25, ours"])
    return {system: evaluate(benchmark, rankings) for system, rankings in {**benchmark.published, **own}.items()}


def table(benchmark: Benchmark, systems: Mapping[str, Scores], *, samples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Every metric of every system as plain data: mean, 95 % interval, number of queries, by group where there are groups; with folds, the
    mean over fold tests; and the difference to our TF-IDF, paired by query. Best MAP first."""
    groups = [None, *dict.fromkeys(q.group for q in benchmark.queries if q.group)]
    has_folds, reference = any(q.folds for q in benchmark.queries), systems[REFERENCE]
    rows = []
    for system, scores in systems.items():
        row: dict[str, Any] = {"system": system, "published": system in benchmark.published, "metrics": {}}
        for group in groups:
            for metric in scores.values:
                values, topics = scores.column(metric, group)
                told: dict[str, Any] = {"mean": scores.interval(metric, group, samples=samples, seed=seed), "queries": len(values)}
                if group is None:
                    base = reference.column(metric)[0]
                    told["over_tfidf"] = paired_bootstrap(values, base, clusters=topics, samples=samples, seed=seed)
                if has_folds:
                    told["over_folds"] = scores.over_folds(metric, group)
                row["metrics"][f"{metric} {group}" if group else metric] = told
        rows.append(row)
    rows.sort(key=lambda row: -row["metrics"]["map"]["mean"].mean)
    topics = len({q.topic for q in benchmark.queries})
    return {"benchmark": benchmark.name, "queries": len(benchmark.queries), "topics": topics, "headline": benchmark.headline, "systems": rows}


def table_lines(told: Mapping[str, Any]) -> list[str]:
    """The headline metrics of a table for people, in percent."""
    heads = "".join(f"{name + ' [95 %]':>22}" for name in told["headline"])
    width = max(len(row["system"]) for row in told["systems"]) + 3
    lines = [
        f"{told['benchmark']}: {told['queries']} queries on {told['topics']} topics; intervals resample topics. * published ranking",
        f"{'':<{width}}{heads}{'MAP - our TF-IDF':>22}",
    ]
    for row in told["systems"]:
        cells = "".join(f"{span(row['metrics'][name]['mean']):>22}" for name in told["headline"])
        difference = span(row["metrics"]["map"]["over_tfidf"], "+.1f")
        lines.append(f"{row['system'] + ('*' if row['published'] else ''):<{width}}{cells}{difference:>22}")
    return lines


def span(interval: tuple[float, float, float], form: str = ".1f") -> str:
    """'38.1 [29.0, 47.3]', in percent."""
    mean, low, high = (format(100 * x, form) for x in interval)
    return f"{mean} [{low}, {high}]"
