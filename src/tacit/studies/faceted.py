"""How the arms of the study `unifar` are made, and what is measured of them: encoders, words and published rankings, all on the same queries.

What a trained arm leaves is `scores.json`: by set and by what was asked (`HOW`) the score of every document of every pool. Arms that look at it in
another way, such as with the wrong facet or together with words, start from it. Arms without training leave `base/`, which trained ones start from.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tacit.core.rundir import write_json
from tacit.retrieval import facets as f
from tacit.retrieval import small
from tacit.retrieval.benchmarks import FACETS, Benchmark, Query, evaluate
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.losses import LossOptions
from tacit.retrieval.modules import pooling_of
from tacit.retrieval.pairs import Pairs, of_labelled, with_roles
from tacit.retrieval.roles import NONE, Teacher, roles_of
from tacit.retrieval.sentences import SENTENCE_END
from tacit.retrieval.systems import Dense, PoolScores, evenly, given, hybrid, lexical, mean_scores, turned
from tacit.retrieval.training import Options, Prepared, fit, start
from tacit.studies.invented_papers import invented
from tacit.studies.paper_sets import Material, public
from tacit.studies.study import Measured

METRICS = {"csfcube": ("map", "ndcg%20"), "dorismae": ("map", "r@5", "ndcg@10%")}
WEIGHTS = tuple(n / 10 for n in range(1, 11))  # of a model in a hybrid, as tried on held-out sets
GATED = 300  # texts of a kind whose gates are looked at
Values = Mapping[str, Mapping[str, float]]  # metric → query → value


HOW: dict[str, tuple[str, ...]] = {"given": ("given",), "even": ("even",), "wrong": ("wrong 1", "wrong 2"), "whole": ("whole",)}
ASKED: dict[str, Callable[[Query], str | None]] = {"given": given, "even": evenly, "wrong 1": turned(1, FACETS), "wrong 2": turned(2, FACETS)}


@lru_cache(maxsize=1)
def material(data: str) -> Material:
    return {"public": public, "invented": invented}[data]()


@lru_cache(maxsize=1)
def pairs(data: str) -> Pairs:
    """The papers, their sentences labelled by a teacher that learnt from the training part of the labelled ones. Made once in a process."""
    found = material(data)
    teacher = Teacher.fit(found.labelled["train"])
    return Pairs(with_roles(found.papers, teacher), questions=found.questions, labelled=of_labelled(found.labelled["train"]))


@lru_cache(maxsize=1)
def rows(data: str, count: int, seed: int) -> list[dict[str, Any]]:
    return pairs(data).rows(count, seed)


# --- arms ---


def untrained(settings: Mapping[str, Any], seed: int, folder: Path) -> SentenceTransformer:
    """The model before training. `folder` then holds the base and the weights of its words."""
    papers = material(settings["data"]).papers
    weights = small.make([paper.text for paper in papers], folder / "base", seed=seed, **settings["base"])
    np.save(folder / "weights.npy", weights.numpy())
    return start(prepared(settings, seed, folder), options(settings), seed)


def trained(settings: Mapping[str, Any], seed: int, begun: Path) -> SentenceTransformer:
    """`begun`: the folder of the arm without training."""
    return fit(prepared(settings, seed, begun), options(settings), steps=settings["steps"], seed=seed)


def prepared(settings: Mapping[str, Any], seed: int, folder: Path) -> Prepared:
    return Prepared(rows(settings["data"], settings["rows"], seed), folder / "base", torch.from_numpy(np.load(folder / "weights.npy")))


def options(settings: Mapping[str, Any]) -> Options:
    how = settings["training"]
    return Options(model=settings["model"], loss=LossOptions(**settings["loss"]), **how)


def name_facets(model: SentenceTransformer, labelled: Sequence[Mapping[str, Any]]) -> None:
    """Puts the anchors in the order in which most labelled sentences get their own facet: anchors that were never told have no names.

    Nothing but names changes (property 6.3).
    """
    encoder, pooling, size = Encoder(model), pooling_of(model), len(FACETS)
    seen = np.zeros((size, size))
    for said, true in told_roles(encoder, labelled):
        seen[FACETS.index(true), FACETS.index(said)] += 1
    best = list(max(permutations(range(size)), key=lambda order: sum(seen[k, order[k]] for k in range(size))))
    with torch.no_grad():
        for weights in (pooling.anchors, pooling.position):
            weights.copy_(weights[best].clone())


# --- scores of pools ---


def asked(benchmark: Benchmark, model: SentenceTransformer) -> dict[str, PoolScores]:
    """By what is asked the scores of all pools: under the facet of the query, all alike, each wrong one, and by the vectors of whole texts alone."""
    dense = Dense(benchmark, Encoder(model))
    found = {how: dense.scores(facet) for how, facet in ASKED.items() if how in ("given", "even") or dense.faceted}
    whole = copy.copy(dense)
    whole.documents = dense.documents.copy()
    whole.documents[:, whole.documents.shape[1] // (len(FACETS) + 1) :] = 0
    return found | {"whole": whole.scores(evenly)}


@lru_cache(maxsize=8)
def by_words(data: str, name: str) -> dict[str, PoolScores]:
    """Own TF-IDF, LSA and BM25 on a set."""
    found = material(data)
    return lexical({**found.sets, **{f"dev/{kind}": benchmark for kind, benchmark in found.dev.items()}}[name])


def with_words(settings: Mapping[str, Any], name: str, scores: PoolScores) -> PoolScores:
    """Mixed with those of words, at a weight that is fixed for the set."""
    partner, weight = settings["partner"][name], settings["weight"][name]
    return hybrid(by_words(settings["data"], name)[partner], scores, weight)


# --- measurements ---


def values_of(benchmark: Benchmark, runs: Sequence[PoolScores]) -> Values:
    """Every metric of every query that counts for it, the mean over runs."""
    return mean_scores(benchmark, runs).values


def measured(data: str, found: Mapping[str, Values], numbers: Mapping[str, float], curves: Mapping[str, Any] | None = None) -> Measured:
    """Numbers of all queries of the reported sets, one list for all of them: None for a query of another set, group, or that does not count."""
    sets = material(data).sets
    queries = [(name, query) for name, benchmark in sets.items() for query in benchmark.queries]
    lists: dict[str, float | list[float] | list[float | None]] = dict(numbers)
    for name, values in found.items():
        for metric in METRICS[name]:
            for group in dict.fromkeys(["", *(query.group for query in sets[name].queries)]):
                lists[f"{name}/{metric}" + (f"/{group}" if group else "")] = [
                    round(values[metric][query.id], 6) if of == name and group in ("", query.group) and query.id in values[metric] else None
                    for of, query in queries
                ]
    return Measured(lists, curves or {}, tuple(f"{name}/{query.topic}" for name, query in queries))


def told_roles(encoder: Encoder, labelled: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(what the model says, what people say) of every sentence with a facet that it reads."""
    told = encoder.roles([SENTENCE_END.join(row["sentences"]) for row in labelled])
    pairs = ((said, true) for one, row in zip(told, labelled) for said, true in zip(one, roles_of(row["labels"])))
    return [(said, FACETS[true]) for said, true in pairs if said and true != NONE]


def accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    return sum(said == true for said, true in pairs) / len(pairs)


def gates(model: SentenceTransformer, texts: Sequence[str], task: str) -> np.ndarray:
    """The mean weight of each grain (3,), over texts and facets."""
    encode = model.encode_query if task == "query" else model.encode_document
    told: Any = encode(list(texts[:GATED]), output_value=None, show_progress_bar=False)
    return np.mean([text["gates"].mean(0).tolist() for text in told], 0)


def looked_into(model: SentenceTransformer, found: Material) -> dict[str, float]:
    """Accuracy of roles, how alike the vectors of facets are (6.7), and the gates of papers, questions and long questions (6.18)."""
    numbers = {f"roles/{split}": accuracy(told_roles(Encoder(model), found.labelled[split])) for split in ("dev", "test")}
    corpus = found.sets["csfcube"].corpus
    papers = [corpus[name] for name in sorted(corpus)[:GATED]]
    if pooling_of(model).whole < 1:  # else facets weigh nothing, and their vectors are 0
        numbers["collapse"] = collapse(model, papers)
    kinds = {
        "papers": (papers, "document"),
        "questions": ([q.text for q in found.dev["questions"].queries], "query"),
        "long questions": ([q.text for q in found.sets["dorismae"].queries], "query"),
    }
    for kind, (texts, task) in kinds.items():
        numbers |= {f"gate/{grain}/{kind}": float(value) for grain, value in zip(f.GRAINS, gates(model, texts, task))}
    return numbers


def collapse(model: SentenceTransformer, texts: Sequence[str]) -> float:
    blocks = torch.from_numpy(Encoder(model).documents(texts)).unflatten(-1, (len(FACETS) + 1, -1))
    return float(f.collapse(f.unit(blocks)))


def held_out(data: str, model: SentenceTransformer, hybrids: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """MAP on the held-out sets, of the model and of its whole-text vectors alone; with `hybrids` also curves over the weight of the model in one."""
    numbers: dict[str, float] = {}
    curves: dict[str, Any] = {}
    for kind, benchmark in material(data).dev.items():
        scores = asked(benchmark, model)
        numbers |= {f"dev/{kind}{told}": average(benchmark, scores[how]) for how, told in (("given", ""), ("whole", "/whole"))}
        for partner, words in by_words(data, f"dev/{kind}").items() if hybrids else ():
            mixed = [average(benchmark, hybrid(words, scores["given"], weight)) for weight in WEIGHTS]
            curves[f"dev/{kind} with {partner}"] = ([round(100 * weight) for weight in WEIGHTS], mixed)
            numbers |= {f"dev/{kind} with {partner}": max(mixed), f"dev/{kind}, {partner}": average(benchmark, words)}
    return numbers, curves


def average(benchmark: Benchmark, scores: PoolScores) -> float:
    return float(np.mean(list(values_of(benchmark, [scores])["map"].values())))


# --- one arm with one seed ---


def measure_model(settings: Mapping[str, Any], seed: int, folder: Path, begun: Path | None) -> Measured:
    """Without `begun` the model is not trained. With `sets: False` the reported sets are not looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    found = material(settings["data"])
    rows(settings["data"], settings["rows"], seed)  # mined once in a process, and not part of the time of the first arm
    clock = time.monotonic()
    model = untrained(settings, seed, folder) if begun is None else trained(settings, seed, begun)
    numbers = {"seconds/training": time.monotonic() - clock}
    name_facets(model, found.labelled["train"][:GATED])
    told, curves = held_out(settings["data"], model, hybrids=not settings["sets"])
    numbers |= told
    if not settings["sets"]:
        numbers["roles/dev"] = accuracy(told_roles(Encoder(model), found.labelled["dev"]))
        numbers["collapse"] = collapse(model, list(found.dev["papers"].corpus.values())[:GATED])
        return Measured(numbers, curves)
    numbers |= looked_into(model, found)
    scores = {name: asked(benchmark, model) for name, benchmark in found.sets.items()}
    write_json(folder / "scores.json", scores)
    return measured(settings["data"], {name: values_of(found.sets[name], [one["given"]]) for name, one in scores.items()}, numbers)


def measure_view(settings: Mapping[str, Any], start: Path) -> Measured:
    """The scores that another arm left, as they are under another facet, or mixed with words."""
    scores = json.loads((start / "scores.json").read_text(encoding="utf-8"))
    found: dict[str, Values] = {}
    for name, by in scores.items():
        runs = [by[how] for how in HOW[settings["facet"]] if how in by]
        if runs:
            mixed = [with_words(settings, name, one) for one in runs] if settings.get("hybrid") else runs
            found[name] = values_of(material(settings["data"]).sets[name], mixed)
    return measured(settings["data"], found, {})


def measure_reference(settings: Mapping[str, Any]) -> Measured:
    """Words alone: one system, or by metric the best of several, in hindsight. Or what others published."""
    found: dict[str, Values] = {}
    for name, benchmark in material(settings["data"]).sets.items():
        if "published" in settings:
            if settings["published"].get(name) in benchmark.published:
                found[name] = evaluate(benchmark, benchmark.published[settings["published"][name]]).values
            continue
        every = [values_of(benchmark, [by_words(settings["data"], name)[system]]) for system in settings["words"]]
        found[name] = {metric: max((one[metric] for one in every), key=lambda v: sum(v.values())) for metric in every[0]}
    return measured(settings["data"], found, {})
