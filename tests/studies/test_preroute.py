"""The study of routers: what its arms do, on made-up answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tacit.routing.evaluation import cost
from tacit.routing.table import columns
from tacit.studies import routes
from tacit.studies.preroute import PROPERTIES, ROUTERS, STUDY, arms, by_document, plan
from tacit.studies.study import Arm

NAMES = ("gpt-4o", "mistral-nemo")


@pytest.fixture
def found(made_up_answers):
    return made_up_answers(NAMES)


def measured(name: str, seed: int = 0):
    return STUDY.measure(Arm(name, ROUTERS[name] | {"answerers": list(NAMES)}), seed, Path("unused"), None)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_arm_measures_every_document(name, found, made_up_answers):
    told = measured(name)
    assert len(told.clusters) == 12
    for metric in ("score/gpt-4o", "score/all", "lc/all", "cost/mistral-nemo", "any8/all", "score/long"):
        values = told.numbers[metric]
        assert isinstance(values, list) and len(values) == 12 and np.isfinite(values).all()
    assert all(0 <= value <= 1 for value in told.numbers["lc/all"])
    [(steps, curve)] = told.curves.values()
    assert steps == list(range(5, 101, 5)) and curve[-1] == pytest.approx(
        np.mean([np.mean(columns(t, "lc_score")) for t in found.values()]), abs=1e-4
    )


def test_constants_score_what_their_answers_score(found, made_up_answers):
    for name, column, price in (("always RAG", "rag_score", "rag_cost"), ("always LC", "lc_score", "lc_cost")):
        told = measured(name).numbers
        [scores], [spent], [whole] = (columns(found["gpt-4o"], what) for what in (column, price, "lc_cost"))
        assert np.mean(told["score/gpt-4o"]) == pytest.approx(scores.mean(), abs=1e-5)
        assert np.mean(told["cost/gpt-4o"]) == pytest.approx(spent.mean() / whole.mean(), abs=1e-5)


def test_self_route_pays_twice_and_escalates_refusals(found, made_up_answers):
    told = measured("Self-Route").numbers
    absent = [r for r in found["gpt-4o"] if r.task == "hallu"]
    assert told["lc-hallu/gpt-4o"] == pytest.approx(np.mean([bool(r.rag_refused) for r in absent]))
    assert told["lc-others/gpt-4o"] == 0
    spent = np.mean([r.rag_cost + r.lc_cost * bool(r.rag_refused) for r in found["gpt-4o"]])
    assert np.mean(told["cost/gpt-4o"]) == pytest.approx(spent / np.mean([r.lc_cost for r in found["gpt-4o"]]), abs=1e-5)


def test_at_its_cost_a_router_spends_no_more_than_self_route(found, made_up_answers):
    for name in ("learned at its cost", "control at its cost"):
        played = routes.policies(ROUTERS[name], found, 0)
        assert all(cost(played[n], found[n]).mean() <= routes.spent_by_self_route(found[n]) + 1e-9 for n in NAMES)


def test_the_learned_router_finds_what_was_planted_and_the_control_does_not(found, made_up_answers):
    score = {name: np.mean(measured(name).numbers["score/all"]) for name in ("learned", "control", "always RAG", "oracle", "task told", "chance")}
    assert score["control"] < score["learned"] - 0.05
    assert max(score["always RAG"], score["chance"]) < score["learned"] <= score["oracle"]
    assert score["task told"] >= score["learned"] - 0.02


def test_a_coin_has_the_rate_of_its_router(found, made_up_answers):
    learned, coin = (routes.policies(ROUTERS[name], found, 3)["gpt-4o"] for name in ("learned", "chance"))
    assert set(np.round(coin.to_lc, 12)) == {np.round(learned.to_lc.mean(), 12)}


@pytest.mark.parametrize("left", routes.LEAVING)
def test_what_is_left_out_is_decided_by_what_did_not_see_it(left, found):
    records = [r for table in found.values() for r in table]
    splits = routes.LEAVING[left](records, 0)
    assert sorted(i for held, _ in splits for i in held) == list(range(len(records))), "every record is decided once"
    for held, used in splits:
        assert not {records[i].doc_id for i in held} & {records[i].doc_id for i in used}
        if left == "type":
            assert not {records[i].doc_type for i in held} & {records[i].doc_type for i in used}
        if left == "answerer":
            assert not {records[i].answer_model for i in held} & {records[i].answer_model for i in used}
        if left == "length":
            assert not any(routes.is_long(records[i]) for i in used)


def test_a_document_counts_by_its_questions(found):
    records = found["gpt-4o"][:13]  # the first document has two questions, the others one
    documents = list(dict.fromkeys(r.doc_id for r in records))
    values = np.arange(13.0)
    told = by_document(values, records, documents)
    assert np.mean(told) == pytest.approx(values.mean(), abs=1e-5)
    assert told[0] == pytest.approx((0 + 12) * 12 / 13, abs=1e-5)
    some = values > 5
    assert np.mean(by_document(values, records, documents, some)) == pytest.approx(values[some].mean(), abs=1e-5)


def test_any_of_n_samples_by_hand(found, made_up_answers):
    """Of a coin of rate c, one of N samples is right with 1 - (1 - c)^N where long context is better and 1 - c^N where retrieval is."""
    told = measured("chance").numbers
    rate = np.mean(told["lc/gpt-4o"])
    rag, lc = columns(found["gpt-4o"], "rag_score", "lc_score")
    differ = rag != lc
    for n in (1, 2, 4, 8):
        expected = np.where(lc > rag, 1 - (1 - rate) ** n, 1 - rate**n)[differ].mean()
        assert np.mean(told[f"any{n}/gpt-4o"]) == pytest.approx(expected, abs=1e-4)


def test_words_give_the_task_away(found):
    assert np.mean([guess == r.task for guess, r in zip(routes.guessed_tasks(found["gpt-4o"], 0), found["gpt-4o"], strict=True)]) > 0.95


def test_properties_count_answerers(found, made_up_answers):
    values = {"a": [1.0] * 12, "b": [0.0] * 12}
    numbers = {"learned": {0: {"score/gpt-4o": values["a"]}, 1: {}}, "always RAG": {0: {"score/gpt-4o": values["b"]}, 1: {}}}
    by_id = {p.id: p for p in PROPERTIES}
    assert by_id["P1-all-rag"].test(numbers) == (0.5, False), "above for one answerer with one seed, for none with the other"
    assert by_id["P1-all-rag"].test({}) is None
    spent = {"Self-Route": {0: {f"cost/{name}": [0.2] * 12 for name in NAMES}}}
    assert by_id["P9-self-route"].test(spent) == (2.0, False)


def test_presets_hold_every_router():
    assert {arm.name for arm in plan("core").arms} == set(ROUTERS) == {arm.name for arm in arms(ROUTERS, NAMES)}
    assert plan("core").seeds == tuple(range(10))
