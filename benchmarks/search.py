"""Search as fast as it is promised: small encoders over the 4,205 abstracts of CSFCube, and their encoding beside plain mean pooling.

Prints one JSON object; the exit code is 1 when a bar is missed. Encoders: the default of `base: {small: {}}`, and a transformer of two layers.
`index_seconds`: reading, encoding and writing. `query_ms`: one open index, 200 questions made of titles, encoding included. `encoding`: abstracts a
second of the same backbone with pooling by facets and with the mean pooling of sentence-transformers, in turns; `ratio` is the median over the turns.
Data: TACIT_DATA, folder csfcube.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from tacit.core.environment import machine
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.index import build
from tacit.retrieval.modules import build as faceted
from tacit.retrieval.papers import gather
from tacit.retrieval.search import METHODS, Searcher
from tacit.retrieval.sentences import sentences
from tacit.retrieval.small import make
from tacit.retrieval_config import SmallConfig
from tacit.tasks.data import locate

SIZES = {"default": SmallConfig(), "two layers of 128": SmallConfig(layers=2, hidden=128)}
INDEX_SECONDS, QUERY_MS, RATIO = 60, 20, 0.9
QUESTIONS, SAMPLE, TURNS = 200, 512, 21


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def race(base: Path, weights: Any, texts: list[str]) -> dict[str, float]:
    """Abstracts a second of both, and the median ratio of neighbouring turns."""
    with_facets = faceted(base, weights=weights, device="cpu", pooled="mean")
    words = Transformer(str(base), max_seq_length=with_facets.get_max_seq_length())
    plain = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), "mean")], device="cpu")
    runs: dict[str, list[float]] = {"facets": [], "mean": []}
    for turn in range(TURNS + 1):
        for name, model in (("facets", with_facets), ("mean", plain)):
            took = seconds(lambda model=model: model.encode_document(texts, batch_size=32, show_progress_bar=False))
            if turn:
                runs[name].append(took)
    ratio = statistics.median(mean / facets for facets, mean in zip(runs["facets"], runs["mean"], strict=True))
    return {name: round(len(texts) / statistics.median(took)) for name, took in runs.items()} | {"ratio": round(ratio, 3)}


def asked(folder: Path, questions: list[str]) -> dict[str, dict[str, float]]:
    """Milliseconds of a query in an open index, by method."""
    searcher, found = Searcher.open(folder), {}
    for method in METHODS:
        took = [1000 * seconds(lambda q=q: searcher.search(searcher.query(q), 10, method)) for q in questions]  # noqa: B023
        cuts = statistics.quantiles(took[10:], n=20)
        found[method] = {"p50": round(statistics.median(took[10:]), 2), "p95": round(cuts[-1], 2)}
    return found


def measured(size: SmallConfig, corpus: Path, folder: Path) -> dict[str, Any]:
    papers = gather([corpus]).papers
    texts = [paper.whole for paper in papers]
    weights = make(texts, folder / "base", **size.model_dump())
    faceted(folder / "base", weights=weights, device="cpu", pooled="mean").save(str(folder / "model"))
    index = seconds(lambda: build(folder / "index", gather([corpus]).papers, Encoder.load(folder / "model")))
    return {
        "size": size.model_dump(),
        "index_seconds": round(index, 1),
        "query_ms": asked(folder / "index", [f"which papers study {sentences(paper.title)[0]}?" for paper in papers[: QUESTIONS + 10]]),
        "encoding": race(folder / "base", weights, texts[:SAMPLE]),
    }


def main() -> dict[str, Any]:
    corpus, found = locate("csfcube/corpus.jsonl.gz"), {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measured(size, corpus, Path(folder))
    every = found.values()
    return {
        "benchmark": "search",
        "papers": len(gather([corpus]).papers),
        "encoders": found,
        "holds": {
            f"index <= {INDEX_SECONDS} s": all(one["index_seconds"] <= INDEX_SECONDS for one in every),
            f"p95 <= {QUERY_MS} ms": all(times["p95"] <= QUERY_MS for one in every for times in one["query_ms"].values()),
            f"encoding >= {RATIO} x mean pooling": all(one["encoding"]["ratio"] >= RATIO for one in every),
        },
        "environment": machine(),
    }


if __name__ == "__main__":
    result = main()
    print(json.dumps(result, indent=1))
    sys.exit(not all(result["holds"].values()))
