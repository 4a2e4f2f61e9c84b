"""Study: does a router that decides before retrieval beat one that decides after a refusal, and by what?

The recorded answers of ten language models to 1,215 questions on 68 documents (half of LaRA, 2502.09977), by RAG and by long context, judged by
the proxy judge of docs/routing.md. Claims P1 to P4 and P7 to P9 of Pre-Route (2605.10235), as far as recorded answers can tell; P5 and P6 need
its distillation. A seed deals the documents to five folds; whatever is fitted decides on documents that it has not seen, and sees no tasks unless
an arm says so. A value is a document's: the sum over its questions, divided by the mean number of questions of a document. Intervals and p
therefore take documents as the unit, and the seeds of a document as repeated measures of it.

These tables were looked at before: features and penalty of the bundled router were chosen on them, and docs/routing.md told most of P1 before the
study was written. Self-Route is replayed from answers by RAG whose prompt did not offer the word "unanswerable". Controls: `control` gives each
question another one's metadata, `chance` is a coin with the router's own rate of long context, `at its cost` moves a threshold to where it costs
what Self-Route does, by scores and costs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tacit.core.statistics import bootstrap
from tacit.routing.evaluation import Policy, auc, curve
from tacit.routing.labels import ideal_label
from tacit.routing.lara import ANSWERERS
from tacit.routing.rules import RULES, STEPS, TIE
from tacit.routing.table import Record, columns
from tacit.studies.routes import Array, Tables, is_long, policies, tables
from tacit.studies.study import Arm, Claim, Expected, Measured, Plan, Property, Study

ROUTER_TOKENS = 1_205 + 648  # what an LLM router reads and writes for one decision. Source: section 7.4 of the specification
DRAWS = (1, 2, 4, 8)
PERCENTS = range(5, 101, 5)  # of the cost of always LC, at which a cost-quality curve is read

ROUTERS: dict[str, dict[str, Any]] = {
    "always RAG": {"route": "always-rag"},
    "always LC": {"route": "always-lc"},
    "keywords": {"route": "keywords"},
    "Self-Route": {"route": "self-route"},
    "oracle": {"route": "oracle"},
    "learned": {"route": "learned"},
    "learned at its cost": {"route": "learned", "at": "self-route"},
    "chance": {"route": "learned", "coin": True},
    "chance at its cost": {"route": "learned", "at": "self-route", "coin": True},
    "control": {"route": "learned", "shuffled": True},
    "control at its cost": {"route": "learned", "shuffled": True, "at": "self-route"},
    "tree": {"route": "tree"},
    "forest": {"route": "forest"},
    "rules": {"route": "rules"},
    "rules without tie": {"route": "rules", "without": [TIE]},
    "rules without rules": {"route": "rules", "without": list(RULES)},
    **{f"rules without {step}": {"route": "rules", "without": [step]} for step in STEPS},
    "sampled words": {"route": "sampled", "reads": "words"},
    "sampled words, coin": {"route": "sampled", "reads": "words", "coin": True},
    "sampled steps": {"route": "sampled", "reads": "steps"},
    "sampled steps, coin": {"route": "sampled", "reads": "steps", "coin": True},
    "new length": {"route": "learned", "leave_out": "length"},
    "new type": {"route": "learned", "leave_out": "type"},
    "new answerer": {"route": "learned", "leave_out": "answerer"},
    "no question": {"route": "learned", "hide": ["question"]},
    "no type": {"route": "learned", "hide": ["doc_type"]},
    "no length": {"route": "learned", "hide": ["doc_tokens"]},
    "length alone": {"route": "learned", "hide": ["question", "doc_type"]},
    "task told": {"route": "task", "task": "told"},
    "task guessed": {"route": "task", "task": "guessed"},
}
COST = {"always RAG": 5.0, "always LC": 5.0, "forest": 20.0, "new answerer": 15.0, "learned": 3.0}  # the first arms judge the answers


def claim(name: str, statement: str, a: str, b: str, metric: str = "score/all", expected: Expected = "a > b", margin: float = 0.0) -> Claim:
    return Claim(name, statement, metric, a, b, expected, margin, unit="document")


CLAIMS = (
    claim("P1-self-route", "at Self-Route's cost the learned router answers better than Self-Route", "learned at its cost", "Self-Route"),
    claim("P1-rag", "the learned router answers better than always RAG", "learned", "always RAG"),
    claim("P1-chance", "and better than a coin with its rate of long context", "learned", "chance"),
    claim("P1-keywords", "and better than one line of keywords", "learned", "keywords"),
    claim("P1-control", "and better than the same procedure on another question's metadata", "learned", "control"),
    claim("P1-insight", "a coin at Self-Route's cost is no better than Self-Route", "chance at its cost", "Self-Route", expected="a < b"),
    claim("P3-rate", "without the rule that ties go to RAG, rules read everything more often", "rules without tie", "rules", "lc/all", margin=0.05),
    claim("P3-score", "and answer no better for it", "rules without tie", "rules", expected="a = b", margin=0.01),
    claim("P4-one", "a single sample is right more often when it reads the six steps", "sampled steps", "sampled words", "any1/all"),
    claim("P4-eight", "with eight samples the difference is gone", "sampled steps", "sampled words", "any8/all", "a = b", 0.02),
    claim("P4-coin", "one sample that reads the six steps is right more often than its coin", "sampled steps", "sampled steps, coin", "any1/all"),
    claim("P7-length", "fitted on short documents, long ones are answered better than by Self-Route", "new length", "Self-Route", "score/long"),
    claim("P7-length-rag", "and better than by always RAG", "new length", "always RAG", "score/long"),
    claim("P7-type", "a type of document that was never seen is answered better than by Self-Route", "new type", "Self-Route"),
    claim("P7-type-rag", "and better than by always RAG", "new type", "always RAG"),
    claim("P7-answerer", "an answerer known by its strength alone does better than with Self-Route", "new answerer", "Self-Route"),
    claim("P7-answerer-rag", "and better than with always RAG", "new answerer", "always RAG"),
    claim("P8-task", "told the task, the router answers better", "task told", "learned"),
    claim("P8-guess", "and so it does with a task guessed from the question", "task guessed", "learned"),
    claim("P8-question", "without the question it answers worse", "no question", "learned", expected="a < b"),
    claim("P8-type", "without the type of the document it answers worse", "no type", "learned", expected="a < b"),
    claim("P8-length", "without the length of the document it answers worse", "no length", "learned", expected="a < b"),
)

Numbers = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> metric -> value


def above(name: str, statement: str, a: str, b: str, wanted: int, clear: int) -> tuple[Property, Property]:
    """In the median seed `a` is above `b` for `wanted` answerers, and with its interval over documents above 0 for `clear`."""

    def counted(sure: bool) -> Callable[[Numbers], tuple[float, bool] | None]:
        def test(found: Numbers) -> tuple[float, bool] | None:
            seeds = [seed for seed in found.get(a, {}) if seed in found.get(b, {})]
            if not seeds:
                return None
            counts = [sum(_above(found[a][seed], found[b][seed], answerer, sure) for answerer in ANSWERERS) for seed in seeds]
            value = float(np.median(counts))
            return value, value >= (clear if sure else wanted)

        return test

    return (
        Property(name, f"{statement} for at least {wanted} of {len(ANSWERERS)} answerers, in the median seed", counted(False)),
        Property(f"{name}-interval", f"{statement}, its interval over documents above 0, for at least {clear}", counted(True)),
    )


def _above(a: Mapping[str, Any], b: Mapping[str, Any], answerer: str, sure: bool) -> bool:
    first, second = a.get(f"score/{answerer}"), b.get(f"score/{answerer}")
    if first is None or second is None:
        return False
    gap = np.subtract(first, second)
    return bool((bootstrap(gap, samples=2000).low if sure else gap.mean()) > 0)


def within(name: str, statement: str, arm: str, metric: str, low: float, high: float, wanted: int) -> Property:
    """`metric` of `arm` lies between the bounds for `wanted` answerers."""

    def test(found: Numbers) -> tuple[float, bool] | None:
        first = next(iter(found.get(arm, {}).values()), None)
        if first is None:
            return None
        count = sum(low <= _mean(first.get(f"{metric}/{answerer}", np.nan)) <= high for answerer in ANSWERERS)
        return float(count), count >= wanted

    return Property(name, f"{statement} for at least {wanted} answerers", test)


def _mean(value: Any) -> float:
    return float(np.mean(value))


def growth_of_coin(found: Numbers) -> tuple[float, bool] | None:
    """Of what eight samples are right more often than one, the share that a coin gains as well."""
    first, coin = (next(iter(found.get(arm, {}).values()), None) for arm in ("sampled steps", "sampled steps, coin"))
    if first is None or coin is None:
        return None
    gains = [_mean(numbers["any8/all"]) - _mean(numbers["any1/all"]) for numbers in (coin, first)]
    return gains[0] / gains[1], gains[0] / gains[1] > 0.5


def dearer_than_self_route(found: Numbers) -> tuple[float, bool] | None:
    """Mean cost of the learned router as a share of always LC, an LLM router's own tokens on top, against RAG's and Self-Route's."""
    if any(not found.get(arm) for arm in ("learned", "Self-Route", "always RAG")):
        return None
    learned, reactive, rag = (np.mean([_mean(n["cost/all"]) for n in found[arm].values()]) for arm in ("learned", "Self-Route", "always RAG"))
    learned += np.mean([n["router/all"] for n in found["learned"].values()])
    return float(learned), bool(rag < learned < reactive)


PROPERTIES = (
    *above("P1-all-self-route", "at its cost above Self-Route", "learned at its cost", "Self-Route", 10, 9),
    *above("P1-all-rag", "above always RAG", "learned", "always RAG", 9, 6),
    *above("P1-all-chance", "above a coin of its rate", "learned", "chance", 9, 7),
    above("P1-all-keywords", "above keywords", "learned", "keywords", 7, 10)[0],
    *above("P1-all-control", "even the control, which knows nothing, above Self-Route at its cost", "control at its cost", "Self-Route", 6, 6),
    within("P2-absent", "Self-Route's route accuracy on unanswerable questions lies between 0.1 and 0.3", "Self-Route", "route-hallu", 0.1, 0.3, 9),
    within("P2-escalated", "it escalates 44 to 85 % of them", "Self-Route", "lc-hallu", 0.44, 0.85, 10),
    within("P2-other", "and 1 to 11 % of the others", "Self-Route", "lc-others", 0.01, 0.11, 10),
    Property("P4-growth", "a coin explains more than half of what eight samples gain over one", growth_of_coin),
    within("P9-rag", "always RAG costs 3 to 6 % of always LC", "always RAG", "cost", 0.03, 0.06, 10),
    within("P9-self-route", "Self-Route costs 16 to 35 % of always LC", "Self-Route", "cost", 0.16, 0.35, 9),
    Property(
        "P9-between", "the learned router, with an LLM router's tokens on top, costs more than RAG and less than Self-Route", dearer_than_self_route
    ),
)


# --- one arm with one seed ---


def measure(arm: Arm, seed: int, folder: Path, start: Path | None) -> Measured:
    """Numbers by answerer and over all of them ("all"): lists over documents of score, LC rate and cost as a share of always LC's."""
    found = tables(tuple(arm.settings["answerers"]))
    played = policies(arm.settings, found, seed)
    records = next(iter(found.values()))
    documents = list(dict.fromkeys(r.doc_id for r in records))
    numbers: dict[str, float | list[float]] = {}
    for name, policy in played.items():
        numbers |= {f"{metric}/{name}": value for metric, value in answered(policy, found[name], documents).items()}
    for metric in dict.fromkeys(name.partition("/")[0] for name in numbers):
        parts = [numbers[f"{metric}/{name}"] for name in played]
        numbers[f"{metric}/all"] = np.mean(parts, 0).tolist()
    numbers["score/long"] = np.mean([score_on_long(played[name], found[name], documents) for name in played], 0).tolist()
    return Measured(numbers, {"score at a share of always LC's cost, %": mean_curve(played, found)}, tuple(documents))


def answered(policy: Policy, records: Sequence[Record], documents: Sequence[str]) -> dict[str, float | list[float]]:
    rag, lc, rag_cost, lc_cost = columns(records, "rag_score", "lc_score", "rag_cost", "lc_cost")
    p = np.asarray(policy.to_lc, np.float64)
    spent = rag_cost + p * lc_cost if policy.reactive else (1 - p) * rag_cost + p * lc_cost
    ideal, differ = ideal_label(rag, lc), rag != lc
    right = np.where(ideal, p, 1 - p)
    tasks = np.array([r.task for r in records])
    numbers: dict[str, float | list[float]] = {
        "score": by_document((1 - p) * rag + p * lc, records, documents),
        "lc": by_document(p, records, documents),
        "cost": by_document(spent / lc_cost.mean(), records, documents),
        "router": ROUTER_TOKENS / float(lc_cost.mean()),
        "route-hallu": float(right[tasks == "hallu"].mean()),
        "lc-hallu": float(p[tasks == "hallu"].mean()),
        "lc-others": float(p[tasks != "hallu"].mean()),
        "route-accuracy": float(right.mean()),
        "auc": auc(policy.lc[differ], ideal[differ]) or 0.5,
    }
    any_of = {f"any{n}": by_document(1 - (1 - right) ** n, records, documents, differ) for n in DRAWS}
    return numbers | any_of


def by_document(values: Array, records: Sequence[Record], documents: Sequence[str], counted: Any = None) -> list[float]:
    """Sums of `values` (n,) over the questions of each document that are `counted`, scaled so that their mean is that of all counted questions."""
    mask = np.ones(len(values), bool) if counted is None else np.asarray(counted, bool)
    place = {name: n for n, name in enumerate(documents)}
    sums = np.bincount([place[r.doc_id] for r in records], weights=values * mask, minlength=len(documents))
    return (sums * len(documents) / max(1, int(mask.sum()))).round(6).tolist()


def score_on_long(policy: Policy, records: Sequence[Record], documents: Sequence[str]) -> list[float]:
    rag, lc = columns(records, "rag_score", "lc_score")
    p = np.asarray(policy.to_lc, np.float64)
    return by_document((1 - p) * rag + p * lc, records, documents, [is_long(r) for r in records])


def mean_curve(played: Mapping[str, Policy], found: Tables) -> tuple[list[int], list[float | None]]:
    """Score while the threshold moves, at shares of always LC's cost, the mean of the answerers."""
    read = []
    for name, policy in played.items():
        spent, score = curve(policy, found[name]).T
        read.append(np.interp([percent / 100 * spent[-1] for percent in PERCENTS], spent, score))
    return list(PERCENTS), [float(value) for value in np.mean(read, 0).round(5)]


# --- presets ---


def plan(preset: str) -> Plan:
    if preset == "tiny":
        few = ("always RAG", "Self-Route", "learned at its cost", "control")
        claims = (CLAIMS[0], claim("P1-rag", "at Self-Route's cost it answers better than always RAG", "learned at its cost", "always RAG"))
        return Plan(tuple(arms(few, ("gpt-4o", "mistral-nemo"))), (0, 1), claims)
    seeds = {"smoke": (0,), "core": tuple(range(10)), "full": tuple(range(20)), "calibrate": (1000, 1001)}[preset]
    made = tuple(arms(ROUTERS, tuple(ANSWERERS)))
    return Plan(made, seeds) if preset == "calibrate" else Plan(made, seeds, CLAIMS, PROPERTIES)


def arms(names: Sequence[str] | Mapping[str, Any], answerers: tuple[str, ...]) -> list[Arm]:
    return [Arm(name, ROUTERS[name] | {"answerers": list(answerers)}, cost=COST.get(name, 1.0)) for name in names]


def tells(metric: str) -> bool:
    """Of each answerer score, rate of long context and cost; the rest over all of them."""
    return metric.startswith(("score/", "lc/", "cost/")) or metric.endswith("/all")


STUDY = Study("preroute", "Routing before retrieval, on recorded answers", (__doc__ or "").strip(), plan, measure, tells)
