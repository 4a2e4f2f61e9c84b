"""Study: does an encoder with facets find what words alone do not, without any pretrained weights, and by what?

A UniFAR-style model (2602.23766 as reconstructed in docs/systems/unifar.md) is made and trained from public texts alone and re-ranks the pools of
CSFCube (27 pairs of paper and facet, 17 papers) and DORIS-MAE (20 long questions, 16 with a relevant paper). Claims E1 to E7 and 6.15 to 6.18 of the
specification. A value is a query's; intervals and p resample the papers or questions that ask, and take seeds as repeated measures.

Temperature, rates, steps, width and weight of roles are those with the best MAP on held-out sets in the preset `calibrate`, seed 1000: for papers
200 of SPECTER's triplets, for questions 619 summaries of SciTLDR; roles on CSAbstruct dev stand beside it. It looks at nothing else. Of hybrids the
words and the weight come from there too; λ0 is that of the specification's small size. This is the third run: numbers on the reported queries of
two earlier ones were known meanwhile.
The texts of what is searched are trained on, as a user's own papers would be; queries, judgements and published rankings are not.
Pseudo-questions are synthetic: the words of a sentence behind a template. CSFCube's pools come from TF-IDF and SPECTER in part, which favours both.

Controls: the wrong facets and all alike; anchors that were told no labels, named by the labels that they fit best; the same model untrained, as LSA
leaves it; whole-text vectors alone. `better of words` is for each metric the best of TF-IDF and BM25 (both forms), in hindsight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tacit.studies import faceted
from tacit.studies.faceted import METRICS
from tacit.studies.study import CALIBRATION, Arm, Claim, Expected, Measured, Plan, Property, Study

Settings = dict[str, Any]
TFIDF, LSA, BM25, COUNTED = "TF-IDF, ours", "LSA of 200, ours", "BM25, ours", "BM25, repeats counted"

WORDS: Settings = {
    "base": {"layers": 0, "hidden": 512, "vocabulary": 15_000, "length": 256},
    "model": {"whole": 0.6, "pooled": "mean", "kinds": True, "intent_temperature": 1.0},
    "loss": {"temperature": 0.03, "roles": 1.0},
    "training": {"learning_rate": 3e-4, "head_learning_rate": 3e-3, "batch_size": 32},
    "steps": 100,
    "rows": 9_600,
}
TRANSFORMER: Settings = {
    **WORDS,
    "base": {"layers": 2, "hidden": 128, "heads": 4, "vocabulary": 20_000, "length": 192},
    "training": {**WORDS["training"], "batch_size": 16},
    "steps": 60,
}
HYBRID: Settings = {"hybrid": True, "partner": {"csfcube": TFIDF, "dorismae": COUNTED}, "weight": {"csfcube": 0.5, "dorismae": 0.5}}

ABLATIONS: dict[str, Mapping[str, Mapping[str, Any]]] = {  # what differs from "full"
    "full": {},
    "no labels": {"loss": {"roles": 0.0}},
    "papers only": {"loss": {"question": 0.0}},
    "questions only": {"loss": {"pairs": 0.0}},
    "constant gates": {"model": {"gates": "constant"}},
    "no tokens": {"model": {"granularities": ["sentence", "global"]}},
    "no sentences": {"model": {"granularities": ["token", "global"]}},
    "no global": {"model": {"granularities": ["token", "sentence"]}},
    "whole text": {"model": {"whole": 1.0}},
}
REFERENCES: dict[str, list[str]] = {
    "TF-IDF": [TFIDF],
    "BM25": [BM25],
    "BM25, repeats counted": [COUNTED],
    "LSA": [LSA],
    "better of words": [TFIDF, BM25, COUNTED],
}
PUBLISHED = (  # of DORIS-MAE, and SPECTER, of both
    *("ada", "ance-querysentences", "bm25", "colbertv2", "e5", "ernie", "llama", "ot_aspire", "rocketqa", "rocketqa-querysentences"),
    *("scibert", "sentbert-querysentences", "simlm", "spladev2", "tfidf", "ts_aspire"),
)
VIEWS: dict[str, tuple[str, Settings]] = {  # what is seen of a trained arm
    "full, wrong facet": ("full", {"facet": "wrong"}),
    "full, all facets": ("full", {"facet": "even"}),
    "full, whole text": ("full", {"facet": "whole"}),
    "hybrid": ("full", {"facet": "given", **HYBRID}),
    "hybrid, wrong facet": ("full", {"facet": "wrong", **HYBRID}),
    "hybrid, all facets": ("full", {"facet": "even", **HYBRID}),
    "hybrid, whole text": ("whole text", {"facet": "given", **HYBRID}),
    "hybrid, untrained": ("untrained", {"facet": "given", **HYBRID}),
    "no labels, wrong facet": ("no labels", {"facet": "wrong"}),
    "untrained, wrong facet": ("untrained", {"facet": "wrong"}),
    "transformer, wrong facet": ("transformer", {"facet": "wrong"}),
    "transformer, whole text": ("transformer", {"facet": "whole"}),
}


def arms(data: str = "public", words: Settings = WORDS, transformer: Settings = TRANSFORMER) -> list[Arm]:
    told = {"data": data, "sets": True}
    found = [Arm(name, told | {"words": systems}, cost=0.2) for name, systems in REFERENCES.items()]
    found.append(Arm("SPECTER", told | {"published": {"csfcube": "SPECTER", "dorismae": "specter"}}, cost=0.1))
    found += [Arm(f"published {name}", told | {"published": {"dorismae": name}}, cost=0.1) for name in PUBLISHED[: None if data == "public" else 1]]
    found.insert(0, Arm("untrained", told | words, cost=2.0))
    found.insert(1, Arm("untrained transformer", told | transformer, cost=2.0))
    found += [Arm(name, told | changed(words, change), after="untrained", cost=3.0) for name, change in ABLATIONS.items()]
    found.append(Arm("transformer", told | transformer, after="untrained transformer", cost=4.0))
    found += [Arm(name, told | view, after=of, cost=0.1) for name, (of, view) in VIEWS.items()]
    return found


def changed(settings: Settings, change: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings with other values in some sections."""
    return {**settings, **{section: {**settings[section], **values} for section, values in change.items()}}


# --- what is claimed ---


def claim(name: str, statement: str, a: str, b: str, metric: str = "csfcube/ndcg%20", expected: Expected = "a > b", margin: float = 0.0) -> Claim:
    return Claim(name, statement, metric, a, b, expected, margin, unit="query")


MAP, NDCG, ASKED = "csfcube/map", "csfcube/ndcg%20", "dorismae/map"

CLAIMS = (
    claim("bar-map", "on CSFCube the hybrid ranks better than the better of own TF-IDF and BM25", "hybrid", "better of words", MAP),
    claim("bar-ndcg", "and so by NDCG%20", "hybrid", "better of words"),
    claim("bar-questions", "and on DORIS-MAE", "hybrid", "better of words", ASKED),
    claim("bar-specter-map", "on CSFCube the hybrid ranks better than SPECTER", "hybrid", "SPECTER", MAP),
    claim("bar-specter-ndcg", "and so by NDCG%20", "hybrid", "SPECTER"),
    claim("E1-whole", "vectors of facets rank papers better than those of whole texts alone", "full", "whole text"),
    claim("E1-lsa", "the model alone ranks papers better than LSA", "full", "LSA"),
    claim("E1-hybrid", "in the hybrid too, facets add to whole texts", "hybrid", "hybrid, whole text"),
    claim("E2-wrong", "the right facet ranks papers better than the wrong ones", "full", "full, wrong facet"),
    claim("E2-even", "and better than all facets alike", "full", "full, all facets"),
    claim("E2-even-wrong", "which rank them better than the wrong ones", "full, all facets", "full, wrong facet"),
    claim("6.15-map", "in the hybrid the right facet ranks papers better than the wrong ones", "hybrid", "hybrid, wrong facet", MAP),
    claim("6.15-ndcg", "and so by NDCG%20", "hybrid", "hybrid, wrong facet"),
    Claim("E3-labels", "told labels, anchors learn more of the roles of sentences", "roles/test", "full", "no labels", margin=0.1),
    Claim("E3-collapse", "and vectors of facets are less alike", "collapse", "full", "no labels", "a < b", higher_is_better=False),
    claim("E3-ranks", "and papers are ranked better", "full", "no labels"),
    claim("6.17-questions", "trained on both, questions are answered better than when trained on papers alone", "full", "papers only", ASKED),
    claim("6.17-papers", "and papers ranked better than when trained on questions alone", "full", "questions only"),
    claim("E4-papers", "papers are ranked as well as by training on papers alone", "full", "papers only", NDCG, "a = b", 0.005),
    claim("E4-questions", "and questions answered as well as by training on questions alone", "full", "questions only", ASKED, "a = b", 0.005),
    claim("E5-gates", "adaptive gates rank papers as constant ones do", "full", "constant gates", NDCG, "a = b", 0.01),
    claim("E5-tokens", "and the same without tokens", "full", "no tokens", NDCG, "a = b", 0.01),
    claim("E5-sentences", "without sentences", "full", "no sentences", NDCG, "a = b", 0.01),
    claim("E5-global", "and without whole texts among the grains", "full", "no global", NDCG, "a = b", 0.01),
    claim("E6-recall", "on DORIS-MAE the hybrid finds more in its first five than TF-IDF", "hybrid", "TF-IDF", "dorismae/r@5"),
    claim("E6-map", "and its MAP is that of TF-IDF within a point", "hybrid", "TF-IDF", ASKED, "a = b", 0.01),
    claim("trained-papers", "training ranks papers better than its start", "full", "untrained"),
    claim("trained-questions", "and answers questions better", "full", "untrained", ASKED),
    claim("trained-hybrid", "and makes a better hybrid", "hybrid", "hybrid, untrained"),
)

Numbers = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> metric -> value
Test = Callable[[Numbers], tuple[float, bool] | None]


def mean(found: Numbers, arm: str, metric: str) -> float | None:
    """Over seeds, and over the queries that count."""
    values = [[v for v in np.atleast_1d(one[metric]) if v is not None] for one in found.get(arm, {}).values() if metric in one]
    return float(np.mean(values)) if values else None


def gap(found: Numbers, a: str, b: str, metric: str) -> float | None:
    first, second = mean(found, a, metric), mean(found, b, metric)
    return None if first is None or second is None else first - second


def number(arm: str, metric: str, holds: Callable[[float], bool]) -> Test:
    return lambda found: None if (value := mean(found, arm, metric)) is None else (value, holds(value))


def reaches(a: str, b: str, metric: str) -> Test:
    """The mean of `a` is no lower, whatever the interval says."""
    return lambda found: None if (value := gap(found, a, b, metric)) is None else (value, value >= 0)


def right_by_facet(found: Numbers) -> tuple[float, bool] | None:
    """The smallest gain in NDCG%20 of the right over the wrong facet, over facets."""
    gains = [gap(found, "hybrid", "hybrid, wrong facet", f"{NDCG}/{facet}") for facet in faceted.FACETS]
    known = [gain for gain in gains if gain is not None]
    return (min(known), min(known) > 0) if known else None


def largest_on_results(found: Numbers) -> tuple[float, bool] | None:
    """Gain in MAP over whole-text vectors: on results, less the larger of the other two; none on methods."""
    gains = [gap(found, "full", "full, whole text", f"{MAP}/{facet}") for facet in faceted.FACETS]
    if any(gain is None for gain in gains):
        return None
    background, method, result = (gain or 0.0 for gain in gains)
    return result - max(background, method), result > max(background, method) and method < 0.01


def gates_differ(found: Numbers) -> tuple[float, bool] | None:
    papers, questions = (mean(found, "full", f"gate/sentence/{kind}") for kind in ("papers", "questions"))
    return None if papers is None or questions is None else (papers - questions, papers > questions)


def same_signs(pairs: tuple[tuple[str, str], ...]) -> Test:
    """For how many bases the difference in NDCG%20 is above 0."""

    def test(found: Numbers) -> tuple[float, bool] | None:
        gaps = [gap(found, a, b, NDCG) for a, b in pairs]
        count = sum(value is not None and value > 0 for value in gaps)
        return None if any(value is None for value in gaps) else (float(count), count == len(pairs))

    return test


PROPERTIES = (
    Property("bar-map-mean", "on CSFCube the MAP of the hybrid is that of the better of words or above", reaches("hybrid", "better of words", MAP)),
    Property("bar-ndcg-mean", "and so its NDCG%20", reaches("hybrid", "better of words", NDCG)),
    Property("bar-questions-mean", "and its MAP on DORIS-MAE", reaches("hybrid", "better of words", ASKED)),
    Property("bar-specter-mean", "on CSFCube the MAP of the hybrid is above SPECTER's", reaches("hybrid", "SPECTER", MAP)),
    Property(
        "E3-roles", "the roles of sentences of CSAbstruct test are told with an accuracy of 0.75", number("full", "roles/test", lambda v: v >= 0.75)
    ),
    Property("6.7", "vectors of facets are not alike: mean |cos| below 0.9", number("full", "collapse", lambda v: v < 0.9)),
    Property("6.15-facets", "in the hybrid the right facet has a higher NDCG%20 than the wrong ones for each facet", right_by_facet),
    Property("6.16", "the gain over whole-text vectors is largest on results and below a point on methods", largest_on_results),
    Property("6.18", "the gate of sentences is wider for papers than for questions", gates_differ),
    Property(
        "E7-whole",
        "facets rank better than whole texts over word vectors and over a transformer",
        same_signs((("full", "full, whole text"), ("transformer", "transformer, whole text"))),
    ),
    Property(
        "E7-wrong",
        "and the right facet better than the wrong ones",
        same_signs((("full", "full, wrong facet"), ("transformer", "transformer, wrong facet"))),
    ),
)


# --- presets ---


def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    settings = arm.settings
    if "words" in settings or "published" in settings:
        return faceted.measure_reference(settings)
    if "facet" in settings:
        assert start is not None
        return faceted.measure_view(settings, start)
    return faceted.measure_model(settings, seed, folder, start)


def plan(preset: str) -> Plan:
    if preset in ("tiny", "smoke"):
        small: Settings = {
            **WORDS,
            "base": {"layers": 0, "hidden": 16, "vocabulary": 400, "length": 64},
            "rows": 64,
            "steps": 3 if preset == "tiny" else 20,
        }
        made = arms("invented", small, {**small, "base": {**small["base"], "layers": 1, "heads": 2}})
        if preset == "smoke":
            return Plan(tuple(made), (0,), CLAIMS, PROPERTIES)
        few = ("untrained", "full", "full, wrong facet", "hybrid", "TF-IDF", "better of words")
        kept = tuple(arm for arm in made if arm.name in few)
        return Plan(kept, (0, 1), tuple(c for c in CLAIMS if c.a in few and c.b in few), PROPERTIES)
    if preset == "calibrate":
        return Plan(tuple(candidates()), (CALIBRATION,))
    return Plan(tuple(arms()), tuple(range(3 if preset == "core" else 10)), CLAIMS, PROPERTIES)


def candidates() -> list[Arm]:
    """Settings that are tried on the held-out sets alone."""
    told = {"data": "public", "sets": False}
    tried: dict[str, Mapping[str, Mapping[str, Any]]] = {
        "chosen": {},
        "temperature 0.05": {"loss": {"temperature": 0.05}},
        "temperature 0.1": {"loss": {"temperature": 0.1}},
        "roles 0.5": {"loss": {"roles": 0.5}},
        "learning rate 1e-3": {"training": {"learning_rate": 1e-3}},
        "of the head 1e-2": {"training": {"head_learning_rate": 1e-2}},
    }
    narrow: Settings = {**WORDS, "base": {**WORDS["base"], "hidden": 256, "vocabulary": 20_000}}
    found = [Arm("untrained", told | WORDS, cost=2.0), Arm("untrained transformer", told | TRANSFORMER, cost=2.0)]
    found += [Arm(name, told | changed(WORDS, change), after="untrained", cost=3.0) for name, change in tried.items()]
    found.append(Arm("200 steps", told | WORDS | {"steps": 200}, after="untrained", cost=5.0))
    found += [Arm("width 256, untrained", told | narrow, cost=2.0), Arm("width 256", told | narrow, after="width 256, untrained", cost=2.0)]
    return [*found, Arm("transformer", told | TRANSFORMER, after="untrained transformer", cost=4.0)]


def tells(metric: str) -> bool:
    return metric.partition("/")[0] in (*METRICS, "roles", "gate", "collapse", "seconds", "dev")


STUDY = Study("unifar", "Papers and questions by facet, without pretrained weights", (__doc__ or "").strip(), plan, measure, tells)
