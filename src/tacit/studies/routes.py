"""How the arms of the study `preroute` route: for every answerer and question a probability of long context, and a score for it.

Whatever is fitted is fitted without the documents that it decides on: five folds by document, dealt by the seed, unless an arm leaves out a length, a
type or an answerer. Nothing here sees the task of a question except where an arm says so. Where a route is drawn, `Policy.to_lc` holds its
probability, and `preroute` reads it as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.routing import fitting, lara
from tacit.routing.baselines import Always, Keywords, Oracle, recorded_self_route
from tacit.routing.decision import UNKNOWN, Decision
from tacit.routing.evaluation import Policy, at_cost, cost, play, policy_of
from tacit.routing.labels import split_by_group
from tacit.routing.rules import RULES, STEPS, RuleRouter
from tacit.routing.table import Record, columns

Array = NDArray[np.float64]
Tables = dict[str, list[Record]]  # answerer -> records, the same questions in the same order
Policies = dict[str, Policy]
HIDDEN: dict[str, Any] = {"question": "", "doc_type": UNKNOWN, "doc_tokens": 32_768}  # what a field says that says nothing
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # inverse, of models whose features differ too much for one to suit all, chosen within the training folds


@lru_cache(maxsize=2)
def tables(answerers: tuple[str, ...]) -> Tables:
    """Judged once in a process."""
    return lara.tables(answerers)


def policies(settings: Mapping[str, Any], found: Tables, seed: int) -> Policies:
    """What the arm does. `at: self-route` moves its threshold to where it costs what Self-Route costs; `coin` gives its LC rate to chance."""
    made = ROUTES[settings["route"]](settings, found, seed)
    if settings.get("at") == "self-route":
        made = {name: at_cost(policy, found[name], spent_by_self_route(found[name])) for name, policy in made.items()}
    if settings.get("coin"):
        made = {name: flat(policy) for name, policy in made.items()}
    return made


def spent_by_self_route(records: Sequence[Record]) -> float:
    return float(cost(self_route(records), records).mean())


def self_route(records: Sequence[Record]) -> Policy:
    replay = recorded_self_route(records)
    return policy_of("Self-Route", [replay.decide(r.metadata()) for r in records], reactive=True)


def flat(policy: Policy) -> Policy:
    """A coin of the same rate for every question: for a policy of routes their share, for a sampled one the mean of its probabilities."""
    rate = np.full(len(policy.lc), float(np.mean(policy.to_lc)))
    return Policy("chance", rate, rate)


def each(policy: Callable[[Sequence[Record]], Policy]) -> Callable[[Mapping[str, Any], Tables, int], Policies]:
    """A route that needs no fit, answerer by answerer."""
    return lambda settings, found, seed: {name: policy(records) for name, records in found.items()}


def by_rules(settings: Mapping[str, Any], found: Tables, seed: int) -> Policies:
    without = settings.get("without", ())
    router = RuleRouter(steps=[s for s in STEPS if s not in without], rules=[r for r in RULES if r not in without])
    return {name: play(router, records) for name, records in found.items()}


def learned(settings: Mapping[str, Any], found: Tables, seed: int) -> Policies:
    """The bundled router's model, fitted anew for each fold on all answerers together."""
    hidden = {name: HIDDEN[name] for name in settings.get("hide", ())}
    records = [record.model_copy(update=hidden) for table in found.values() for record in table]
    if (left := settings.get("leave_out")) is None:
        return dealt(found, fitting.out_of_fold(records, fitting.fit, seed=seed, shuffled=settings.get("shuffled", False)))
    decisions: list[Decision | None] = [None] * len(records)
    for held, used in LEAVING[left](records, seed):
        router = fitting.fit([records[i] for i in used])
        for i in held:
            decisions[i] = router.decide(records[i].metadata())
    return dealt(found, [d for d in decisions if d is not None])


def dealt(found: Tables, decisions: Sequence[Decision]) -> Policies:
    """The decisions of all answerers, one table after the other, as a policy for each."""
    size = len(decisions) // len(found)
    return {name: policy_of(name, decisions[n * size : (n + 1) * size]) for n, name in enumerate(found)}


def by_trees(settings: Mapping[str, Any], found: Tables, seed: int) -> Policies:
    fitter = {"tree": fitting.fit_tree, "forest": fitting.fit_forest}[settings["route"]]
    return {name: policy_of(name, fitting.out_of_fold(records, fitter, seed=seed)) for name, records in found.items()}


# --- what is left out of the fit: (held, used) indices of records ---

Splits = list[tuple[list[int], list[int]]]


def leave_types(records: Sequence[Record], seed: int) -> Splits:
    """Each type of document by what was fitted on the others."""
    return [_parted(records, lambda r, kind=kind: r.doc_type == kind) for kind in dict.fromkeys(r.doc_type for r in records)]


def leave_long(records: Sequence[Record], seed: int) -> Splits:
    """The long documents (128k) by what was fitted on the short ones, and each short one by other short ones."""
    short = [i for i, r in enumerate(records) if not is_long(r)]
    parts = split_by_group([records[i].doc_id for i in short], [1] * fitting.FOLDS, seed)
    found: Splits = [([i for i, r in enumerate(records) if is_long(r)], short)]
    for part in parts:
        inside = set(part)
        found.append(([short[k] for k in part], [i for k, i in enumerate(short) if k not in inside]))
    return found


def leave_answerers(records: Sequence[Record], seed: int) -> Splits:
    """Each answerer by what was fitted on the others, without the document: it is known by its strength alone."""
    parts = split_by_group([r.doc_id for r in records], [1] * fitting.FOLDS, seed)
    found: Splits = []
    for name in dict.fromkeys(r.answer_model for r in records):
        for part in parts:
            inside = set(part)
            held = [i for i in part if records[i].answer_model == name]
            found.append((held, [i for i, r in enumerate(records) if i not in inside and r.answer_model != name]))
    return found


def _parted(records: Sequence[Record], held: Callable[[Record], bool]) -> tuple[list[int], list[int]]:
    return [i for i, r in enumerate(records) if held(r)], [i for i, r in enumerate(records) if not held(r)]


def is_long(record: Record) -> bool:
    return record.doc_id.startswith("128k/")


LEAVING = {"type": leave_types, "length": leave_long, "answerer": leave_answerers}


# --- models on other features than the bundled router's ---


def with_task(settings: Mapping[str, Any], found: Tables, seed: int) -> Policies:
    """The same model with the task as four more features: as it is, or as guessed from the question."""
    records = next(iter(found.values()))
    tasks = [r.task for r in records] if settings["task"] == "told" else guessed_tasks(records, seed)
    names = sorted(set(tasks))
    one = np.array([[float(task == name) for name in names] for task in tasks])
    x = np.tile(np.hstack([fitting.design(records), one]), (len(found), 1))
    who, rag, lc, documents = stacked(found)
    chance, to_lc = np.empty(len(x)), np.zeros(len(x), bool)
    for held in split_by_group(documents, [1] * fitting.FOLDS, seed):
        used = np.setdiff1d(np.arange(len(x)), held)
        fitted = fitting.solve(x[used], who[used], rag[used], lc[used])
        chance[held] = fitted.chance(x[held], who[held])
        to_lc[held] = chance[held] > fitted.threshold[who[held]]
    size = len(records)
    return {name: Policy(name, to_lc[n * size : (n + 1) * size], chance[n * size : (n + 1) * size]) for n, name in enumerate(found)}


def guessed_tasks(records: Sequence[Record], seed: int) -> list[str]:
    """The task that the words of a question suggest, by a model fitted on other documents."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(binary=True, min_df=2).fit_transform([r.question for r in records])
    tasks = np.array([r.task for r in records])
    found = tasks.copy()
    for held in split_by_group([r.doc_id for r in records], [1] * fitting.FOLDS, seed):
        used = np.setdiff1d(np.arange(len(records)), held)
        found[held] = LogisticRegression(max_iter=1000).fit(words[used], tasks[used]).predict(words[np.array(held)])
    return found.tolist()


def sampled(settings: Mapping[str, Any], found: Tables, seed: int) -> Policies:
    """A router that is sampled at temperature 1: a route by its probability. It reads the words of the question, or what the six steps conclude."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    records = [r for table in found.values() for r in table]
    if settings["reads"] == "words":
        own = CountVectorizer(binary=True, min_df=2).fit_transform([r.question for r in records])
    else:
        own = DictVectorizer().fit_transform([{name: step(r.metadata())[0] for name, step in STEPS.items()} for r in records])
    who, rag, lc, documents = stacked(found)
    x, differ, better = csr_matrix(hstack([csr_matrix(np.eye(len(found))[who]), own])), rag != lc, lc > rag
    chance = np.empty(len(records))
    for held in split_by_group(documents, [1] * fitting.FOLDS, seed):
        used = np.setdiff1d(np.flatnonzero(differ), held)
        model = GridSearchCV(LogisticRegression(max_iter=2000), {"C": PENALTIES}, scoring="neg_log_loss", cv=5).fit(x[used], better[used])
        chance[held] = model.predict_proba(x[np.array(held)])[:, 1]
    size = len(records) // len(found)
    parts = {name: chance[n * size : (n + 1) * size] for n, name in enumerate(found)}
    return {name: Policy(name, part, part) for name, part in parts.items()}  # pyright: ignore[reportArgumentType]


def stacked(found: Tables) -> tuple[NDArray[np.int64], Array, Array, list[str]]:
    """Answerer, both scores and document of every record, one table after the other (n,)."""
    who = np.repeat(np.arange(len(found)), [len(records) for records in found.values()])
    rag, lc = (np.concatenate(parts) for parts in zip(*(columns(records, "rag_score", "lc_score") for records in found.values()), strict=True))
    return who, rag, lc, [r.doc_id for records in found.values() for r in records]


ROUTES: dict[str, Callable[[Mapping[str, Any], Tables, int], Policies]] = {
    "always-rag": each(lambda records: play(Always(False), records)),
    "always-lc": each(lambda records: play(Always(True), records)),
    "keywords": each(lambda records: play(Keywords(), records)),
    "oracle": each(lambda records: play(Oracle(records), records)),
    "self-route": each(self_route),
    "rules": by_rules,
    "learned": learned,
    "tree": by_trees,
    "forest": by_trees,
    "task": with_task,
    "sampled": sampled,
}
