"""CSFCube (2103.12906) and DORIS-MAE (2310.04678): their queries, pools and published rankings, and their protocols to the letter.

Departures: (1) The exponential NDCG of DORIS-MAE runs on grades averaged over aspects, since the distributed data have no sums.
(2) Its MRR counts the documents with the highest grade as relevant, as its script does; where all have it, all do (the script leaves out one).
(3) A query in its own pool is taken out (CSFCube's script leaves it in).
Both data sets are for non-commercial use (CC BY-NC 4.0) and are read from outside the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tacit.core.statistics import Interval, bootstrap
from tacit.retrieval import metrics as m
from tacit.retrieval.sentences import SENTENCE_END
from tacit.tasks.data import read_set

FACETS = ("background", "method", "result")
OVERLONG = frozenset({"205580", "346695", "346826", "346836", "28674"})  # abstracts that DORIS-MAE's script does not count as relevant
Ranking = Sequence[str]


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its pool: document id → grade. `topic` is what several queries may share; they are not independent of one another.

    A query that is a paper of the corpus names it in `like`, with "" it is a question. `facet`: what it is asked under, if anything.
    """

    id: str
    topic: str
    text: str
    grades: Mapping[str, float]
    group: str = ""
    folds: tuple[str, ...] = ()
    like: str = ""
    facet: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Queries, the texts of all documents of their pools, published rankings by system and query, and the protocol. SENTENCE_END stands between
    sentences that are known.

    `score` gives the metrics of one query; a metric that it leaves out does not count for that query. `headline` are those of a short table.
    """

    name: str
    queries: tuple[Query, ...]
    corpus: Mapping[str, str]
    published: Mapping[str, Mapping[str, Ranking]]
    score: Callable[[Query, Ranking], dict[str, float]]
    headline: tuple[str, ...]


def csfcube() -> Benchmark:
    """Papers like this one, under a facet: 27 of the 50 pairs of paper and facet, graded 0–3. Raises DataError when the data are not there."""
    papers = {row["paper_id"]: SENTENCE_END.join([f"{row['title']}.", *row["abstract"]]) for row in read_set("csfcube/corpus.jsonl.gz")}
    queries = []
    for row in read_set("csfcube/judgements.jsonl.gz"):
        paper = row["query_id"]
        grades = {c["paper_id"]: float(c["relevance"]) for c in row["candidates"] if c["paper_id"] != paper}
        name, facet, folds = f"{paper}_{row['facet']}", row["facet"], tuple(row["folds"])
        queries.append(Query(name, paper, papers[paper], grades, group=facet, folds=folds, like=paper, facet=facet))
    specter = {f"{row['query_id']}_{row['facet']}": row["ranking"] for row in read_set("csfcube/specter_rankings.jsonl.gz")}
    return Benchmark("CSFCube", tuple(queries), papers, {"SPECTER": specter}, csfcube_score, ("map", "ndcg%20"))


def doris_mae() -> Benchmark:
    """Papers that answer a long question: 20 questions, and 17 published rankings. Raises DataError when the data are not there."""
    abstracts = {row["doc_id"]: row["abstract"] for row in read_set("dorismae_dev/corpus.jsonl.gz")}
    queries = [Query(row["query_id"], row["query_id"], row["query"], row["relevance"]) for row in read_set("dorismae_dev/queries.jsonl.gz")]
    published: dict[str, dict[str, Ranking]] = {}
    for row in read_set("dorismae_dev/published_rankings.jsonl.gz"):
        published.setdefault(row["system"], {})[row["query_id"]] = row["ranking"]
    return Benchmark("DORIS-MAE", tuple(queries), abstracts, published, doris_mae_score, ("map", "ndcg@10%", "r@5", "r@20", "r_precision"))


BENCHMARKS: dict[str, Callable[[], Benchmark]] = {"csfcube": csfcube, "dorismae": doris_mae}


def csfcube_score(query: Query, ranking: Ranking) -> dict[str, float]:
    """Metrics of one pair; grades from 2 on are relevant. Source: CSFCube, eval_scripts/ranking_eval.py."""
    grades = [query.grades[name] for name in m.completed(ranking, query.grades)]
    relevant = [grade >= 2 for grade in grades]
    return {
        "map": m.average_precision(relevant),
        "ndcg%20": m.ndcg(grades, m.at_share(grades, 0.20)),
        "ndcg@20": m.ndcg(grades, 20),
        "ndcg": m.ndcg(grades),
        "p@20": m.precision_at(relevant, 20),
        "r@20": m.recall_at(relevant, 20),
        "mrr": m.reciprocal_rank(relevant),
        "precision_to_last": m.precision_to_last(relevant),
    }


def doris_mae_score(query: Query, ranking: Ranking) -> dict[str, float]:
    """Metrics of one question; mean grades from 1 on are relevant, and a question without such a document counts for NDCG and MRR alone.

    Source: DORIS-MAE, benchmarking/rank_performance_util.py; departures at the head of this file.
    """
    ids = m.completed(ranking, query.grades)
    grades = [query.grades[name] for name in ids]
    relevant = [grade >= 1 and name not in OVERLONG for name, grade in zip(ids, grades)]
    cut, best = m.at_share(grades, 0.10), max(grades)
    scores = {
        "ndcg@10%": m.ndcg(grades, cut, m.discount_early),
        "ndcg_exp@10%": m.ndcg([2**grade for grade in grades], cut, m.discount_early),
        "mrr@10": m.reciprocal_rank([grade == best for grade in grades], 10),
    }
    if any(relevant):
        scores |= {
            "map": m.average_precision(relevant),
            "r@5": m.recall_at(relevant, 5),
            "r@20": m.recall_at(relevant, 20),
            "r_precision": m.r_precision(relevant),
        }
    return scores


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of one system on each query of a benchmark: metric → query id → value."""

    benchmark: Benchmark
    values: Mapping[str, Mapping[str, float]]

    def column(self, metric: str, group: str | None = None) -> tuple[list[float], list[str]]:
        """Values of the queries of a group (all without one) that count for this metric, and their topics."""
        mine = [q for q in self.benchmark.queries if (group is None or q.group == group) and q.id in self.values[metric]]
        return [self.values[metric][q.id] for q in mine], [q.topic for q in mine]

    def interval(self, metric: str, group: str | None = None, *, samples: int = 10_000, seed: int = 0) -> Interval:
        """Mean over the queries, and its 95 % interval from resampling topics."""
        values, topics = self.column(metric, group)
        return bootstrap(values, topics, samples=samples, seed=seed)

    def over_folds(self, metric: str, group: str | None = None) -> float:
        """CSFCube's test score: the mean over both folds of the mean over the fold's test queries. Raises ValueError without folds."""
        means = []
        for fold in ("fold1_test", "fold2_test"):
            mine = [self.values[metric][q.id] for q in self.benchmark.queries if fold in q.folds and group in (None, q.group)]
            if not mine:
                raise ValueError(f"{self.benchmark.name} has no queries in {fold}{f' with facet {group}' if group else ''}")
            means.append(sum(mine) / len(mine))
        return sum(means) / len(means)


def evaluate(benchmark: Benchmark, rankings: Mapping[str, Ranking]) -> Scores:
    """Scores of one system's rankings, one for each query. Raises ValueError naming a query that has none."""
    if missing := [q.id for q in benchmark.queries if q.id not in rankings]:
        raise ValueError(f"there is no ranking for the query {missing[0]!r} of {benchmark.name}; {len(missing)} of {len(benchmark.queries)} lack one")
    values: dict[str, dict[str, float]] = {}
    for query in benchmark.queries:
        for metric, value in benchmark.score(query, rankings[query.id]).items():
            values.setdefault(metric, {})[query.id] = value
    return Scores(benchmark, values)
