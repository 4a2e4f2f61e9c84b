"""The claims of section 6 of the Pre-Route specification, under their numbers. 6.4 and 6.5 for the LLM router stand in test_llm.py."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.clients.endpoint import cost_of
from tacit.rewards.metrics import pass_at_k
from tacit.routing import labels
from tacit.routing.baselines import Always, Keywords, Oracle, Random, SelfRoute, recorded_self_route
from tacit.routing.decision import Metadata, Route, Setting
from tacit.routing.labels import Draw
from tacit.routing.learned import LearnedRouter
from tacit.routing.probe import probe
from tacit.routing.rules import RULES, STEPS, TIE, VETOES, RuleRouter
from tacit.routing.table import Record

grades = st.sampled_from([0.0, 0.25, 0.5, 1.0, 4.0])
pairs = st.lists(st.tuples(grades, grades, st.booleans()), min_size=1, max_size=40)
QUESTIONS = [
    "Who owns the red boat?",
    "How do the two plans differ?",
    "What is the main theme across all chapters?",
    "Why did Emma leave?",
    "What are the exact plans for next year?",
    "Describe it.",
]
metadata = st.builds(
    Metadata,
    st.sampled_from(QUESTIONS) | st.text(max_size=80),
    st.integers(1, 300_000),
    doc_type=st.sampled_from(["book", "paper", "financial", "unknown", ""]),
    doc_head=st.text(max_size=40),
    setting=st.builds(Setting, strength=st.sampled_from(["weak", "medium", "strong", "unknown"]), window=st.none() | st.integers(2_000, 200_000)),
)


def split(rows):
    rag, lc, to_lc = zip(*rows)
    return np.array(rag), np.array(lc), np.array(to_lc)


@given(pairs)
def test_6_1_long_context_is_ideal_only_where_strictly_better_and_the_constants_share_one(rows):
    rag, lc, _ = split(rows)
    assert labels.ideal_label(rag, lc).tolist() == [b > a for a, b in zip(rag, lc)]
    nobody, everybody = np.zeros(len(rag), bool), np.ones(len(rag), bool)
    assert labels.route_accuracy(nobody, rag, lc) + labels.route_accuracy(everybody, rag, lc) == pytest.approx(1, abs=1e-15)


def test_6_1_by_hand():
    rag, lc = [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]
    assert labels.ideal_label(rag, lc).tolist() == [False, False, False, True]
    assert labels.route_accuracy([False] * 4, rag, lc) == 0.75


@given(pairs)
def test_6_2_no_router_leaves_the_range_and_the_oracle_is_not_beaten(rows):
    rag, lc, to_lc = split(rows)
    oracle = labels.quality(labels.ideal_label(rag, lc), rag, lc).mean()
    assert oracle >= max(rag.mean(), lc.mean()) - 1e-12
    assert np.minimum(rag, lc).mean() - 1e-12 <= labels.quality(to_lc, rag, lc).mean() <= np.maximum(rag, lc).mean() + 1e-12


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5000), st.integers(5001, 200_000), st.integers(0, 2000))
def test_6_3_costs_are_affine_and_their_difference_is_an_identity(p, q, rag, lc, router):
    at = lambda rate: float(labels.proactive_cost(rate, rag, lc, router))  # noqa: E731
    assert at((p + q) / 2) == pytest.approx((at(p) + at(q)) / 2)
    assert (at(p) - at(q)) * (p - q) >= 0 and at(1) - at(0) == pytest.approx(lc - rag)
    assert float(labels.reactive_cost(p, rag, lc)) - at(p) == pytest.approx(p * rag - router, abs=1e-6)


def test_6_3_by_hand():
    assert float(labels.proactive_cost(0.25, 3000, 100_000, 200)) == 200 + 2250 + 25_000
    assert float(labels.reactive_cost(0.25, 3000, 100_000)) == 28_000
    assert float(labels.reactive_cost(0.25, 3000, 100_000) - labels.proactive_cost(0.25, 3000, 100_000, 0.25 * 3000)) == 0


ROUTERS = [RuleRouter(), LearnedRouter.load()]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: r.name)
@given(m=metadata)
def test_6_5_what_exceeds_the_window_goes_to_rag(router, m):
    window = m.doc_tokens + m.setting.reserve - 1
    tight = Metadata(m.question, m.doc_tokens, setting=Setting(window=window))
    found = router.decide(tight)
    assert found.route is Route.RAG and found.by == "hard rule" and "exceeds the window" in found.reasons[0]


@pytest.mark.parametrize("router", [*ROUTERS, Always(True), Always(False), Random(0.3), Keywords()], ids=lambda r: r.name)
@given(m=metadata)
def test_6_6_every_metadata_gives_a_valid_decision(router, m):
    found = router.decide(m)
    assert found.route in Route and found.reasons and 0 <= found.confidence <= 1 and found.expected_cost > 0
    assert found == router.decide(m)
    assert found.expected_cost == pytest.approx(m.costs()[found.to_lc])


@given(pairs, st.sampled_from([-2.0, 0.5, 16.0]))
def test_6_7_labels_ignore_a_common_shift_and_flip_with_the_routes(rows, shift):
    rag, lc, _ = split(rows)
    ideal = labels.ideal_label(rag, lc)
    assert (labels.ideal_label(rag + shift, lc + shift) == ideal).all()
    assert ((labels.ideal_label(lc, rag) != ideal) == (rag != lc)).all()


@given(st.lists(st.booleans(), max_size=12), st.booleans())
def test_6_8_rejection_sampling_keeps_what_agrees(routes, ideal):
    draws = [Draw(f"chain {i}", r) for i, r in enumerate(routes)]
    kept = labels.keep_agreeing(draws, ideal)
    assert kept == [d for d in draws if d.to_lc is ideal]
    assert (not kept) == (ideal not in routes)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=60).filter(lambda g: len(set(g)) >= 3), st.integers(0, 5))
def test_6_8_no_document_is_in_two_parts_of_a_split(groups, seed):
    parts = labels.split_by_group(groups, [70, 10, 20], seed)
    assert sorted(i for part in parts for i in part) == list(range(len(groups)))
    held = [{groups[i] for i in part} for part in parts]
    assert all(held) and not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])


def test_6_8_parts_have_their_shares():
    parts = labels.split_by_group(range(100), [70, 10, 20])
    assert [len(part) for part in parts] == [70, 10, 20]
    assert parts != labels.split_by_group(range(100), [70, 10, 20], seed=1)


@pytest.mark.parametrize(("groups", "shares", "words"), [([1], [1, 1], "cannot be split"), ([1, 2], [1, 0], "positive share")])
def test_6_8_splits_that_cannot_be(groups, shares, words):
    with pytest.raises(ValueError, match=words):
        labels.split_by_group(groups, shares)


@given(st.integers(1, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_6_9_any_of_n_never_falls_and_begins_at_accuracy(counts):
    n, right = counts
    values = [pass_at_k(n, right, k) for k in range(1, n + 1)]
    assert values[0] == pytest.approx(right / n)
    assert all(b >= a for a, b in pairwise(values))
    if right in (0, n):  # at temperature 0 all draws agree
        assert len(set(values)) == 1


@pytest.mark.parametrize(("c", "n", "expected"), [(0.5, 1, 0.5), (0.5, 2, 0.75), (0.5, 4, 0.9375), (0.5, 8, 0.99609375), (0.7, 2, 0.91)])
def test_6_9_coins(c, n, expected):
    assert labels.coin_any(c, n) == pytest.approx(expected)
    flips = np.random.default_rng(0).random((20_000, n)) < c
    assert flips.any(1).mean() == pytest.approx(expected, abs=0.015)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.randoms())
def test_6_10_a_vote_ignores_order_and_ties_go_to_rag(routes, rng):
    mixed = list(routes)
    rng.shuffle(mixed)
    assert labels.majority(mixed) == labels.majority(routes) == (np.mean(routes) > 0.5)
    assert not labels.majority([*routes, *(not r for r in routes)])


def test_6_11_a_probe_finds_a_label_that_is_there_and_none_that_is_not():
    rng = np.random.default_rng(0)
    label = np.arange(2000) % 2
    documents = [int(d) for d in rng.integers(0, 50, 2000)]
    hidden = rng.normal(size=(2000, 5))
    told = np.column_stack([hidden, label])
    found = probe(told, label.tolist(), documents)
    assert found.accuracy == 1.0 and found.base_rate == 0.5
    assert abs(found.shuffled - 0.5) < 0.06
    assert abs(probe(hidden, label.tolist(), documents).accuracy - 0.5) < 0.06
    with pytest.raises(ValueError, match="at least two labels"):
        probe(hidden, [0] * 2000, documents)


def test_6_12_the_cost_table():
    assert cost_of(2600, 27, (0.28, 1.13)) == pytest.approx(0.76e-3, rel=0.02)
    assert cost_of(1205, 648, (0.28, 1.13)) == pytest.approx(1.07e-3, rel=0.02)
    assert cost_of(1205, 670, (0.04, 0.17)) == pytest.approx(0.16e-3, rel=0.02)


def record(number: int, rag: float = 0.0, lc: float = 1.0, refused: bool | None = False, **more) -> Record:
    told = {"doc_id": f"d{number % 4}", "question": QUESTIONS[number % len(QUESTIONS)], "doc_tokens": 40_000, "rag_cost": 3100, "lc_cost": 40_100}
    return Record(**{"qid": f"q{number}", "rag_score": rag, "lc_score": lc, "rag_refused": refused, **told, **more})


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_6_14_self_route_escalates_refusals_and_nothing_else(refused):
    records = [record(i, refused=r) for i, r in enumerate(refused)]
    replay = recorded_self_route(records)
    assert [replay.decide(r.metadata()).to_lc for r in records] == refused


@given(st.text(max_size=200), metadata)
def test_6_14_without_refusals_self_route_is_always_rag(answer, m):
    assert SelfRoute(lambda _: answer, refusal=lambda _: None).decide(m).route is Route.RAG
    assert SelfRoute(lambda _: f"It is {answer}").decide(m).to_lc is (SelfRoute(lambda _: f"It is {answer}").decide(m).by != "answer")


def test_self_route_pays_for_both_and_says_which_rule_fired():
    m = Metadata("Who?", 40_000)
    found = SelfRoute(lambda _: "Unanswerable!").decide(m)
    assert found.to_lc and found.reasons == ("The answer by RAG refuses (rule 'unanswerable').",)
    assert found.expected_cost == sum(m.costs())
    assert SelfRoute(lambda _: "The text does not mention him.").decide(m).by == "refusal: not told"


@given(metadata, st.sets(st.sampled_from(RULES)), st.sets(st.sampled_from(list(STEPS))))
def test_6_15_a_rule_less_never_takes_a_question_away_from_long_context(m, rules, steps):
    with_all = RuleRouter(rules=RULES, steps=steps).decide(m)
    with_some = RuleRouter(rules=rules, steps=steps).decide(m)
    assert with_some.lc >= with_all.lc - 1e-12
    assert with_some.to_lc or not with_all.to_lc


def test_6_15_each_rule_matters():
    base = {"setting": Setting(strength="strong")}
    cases = {
        TIE: Metadata("Why is it so?", 20_000, **base),
        "weak answerer": Metadata("How do both differ across all chapters?", 20_000, setting=Setting(strength="weak")),
        "absent evidence": Metadata("How does the overall strategy compare?", 20_000, **base),
        "lookup": Metadata("Who is named in section 1 and in section 2?", 20_000, **base),
    }
    for rule, m in cases.items():
        others = [] if rule == "lookup" else [r for r in RULES if r != rule]  # the tie rule alone already keeps a lookup
        assert RuleRouter(rules=[*others, rule]).decide(m).route is Route.RAG, rule
        assert RuleRouter(rules=others).decide(m).route is Route.LC, rule
    assert set(cases) == {TIE, *VETOES}


def test_the_oracle_and_chance():
    records = [record(0), record(1, 1.0, 0.0), record(2, 1.0, 1.0)]
    oracle = Oracle(records)
    assert [oracle.decide(r.metadata()).to_lc for r in records] == [True, False, False]
    many = [Metadata("?", 40_000, id=str(i)) for i in range(2000)]
    rate = np.mean([Random(0.3, seed=1).decide(m).to_lc for m in many])
    assert abs(rate - 0.3) < 0.04
    with pytest.raises(ValueError, match="between 0 and 1"):
        Random(1.5)
    with pytest.raises(ValueError, match="no step or rule is called 'luck'"):
        RuleRouter(rules=["luck"])
