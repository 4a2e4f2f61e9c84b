"""Evaluation by hand on a table of four questions; fitting and calibration on made-up ones; the bars on LaRA where it is at hand."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from tacit.routing import evaluation, fitting, lara
from tacit.routing.decision import Metadata, Setting
from tacit.routing.evaluation import Policy, area, at_cost, auc, compare, cost, curve, evaluate, play, reference_policies, report, sign_flip
from tacit.routing.features import NAMES, features
from tacit.routing.fitting import best_threshold, fit, fit_forest, fit_tree, out_of_fold
from tacit.routing.labels import ideal_label
from tacit.routing.learned import LearnedRouter
from tacit.routing.page import write_page
from tacit.routing.rules import RuleRouter
from tacit.routing.table import Record, columns, read_table, write_table
from tacit.tasks.data import DataError


def record(qid: str, rag: float, lc: float, *, refused: bool | None = False, doc: str = "d", question: str = "Why?", **more) -> Record:
    told = {"doc_tokens": 40_000, "rag_cost": 10.0, "lc_cost": 100.0, "doc_type": "book", "task": "location"}
    return Record(qid=qid, doc_id=doc, question=question, rag_score=rag, lc_score=lc, rag_refused=refused, **told | more)


FOUR = [
    record("a", 1, 0, doc="d1", refused=True),
    record("b", 0, 1, doc="d1"),
    record("c", 1, 1, doc="d2", question="How do both differ?"),
    record("d", 0, 1, doc="d2", refused=True, task="hallu"),
]
CHOICE = Policy("mine", np.array([False, True, False, False]), np.array([0.2, 0.9, 0.4, 0.4]))


def test_a_report_by_hand():
    found = report(CHOICE, FOUR, samples=200)
    assert found["score"].mean == 0.75 and found["lc_rate"] == 0.25
    assert found["cost"] == 32.5 and found["cost_ratio"] == 0.325
    assert found["route_accuracy"] == 0.75 and found["accuracy_where_they_differ"] == pytest.approx(2 / 3)
    assert found["auc_where_they_differ"] == 1.0 and found["regret"] == 0.25 and found["recovered"] == 0.5
    assert found["over_rag"].mean == 0.25 and found["over_lc"].mean == 0.0
    assert found["over_random"].mean == pytest.approx(0.75 - (0.75 * 0.5 + 0.25 * 0.75))
    assert found["by_task"] == {
        "location": {"questions": 3, "score": 1.0, "lc_rate": pytest.approx(1 / 3), "route_accuracy": 1.0},
        "hallu": {"questions": 1, "score": 0.0, "lc_rate": 0.0, "route_accuracy": 0.0},
    }


def test_the_curve_moves_ties_together():
    points = curve(CHOICE, FOUR)
    assert points.tolist() == [[10, 0.5], [32.5, 0.75], [77.5, 1.0], [100, 0.75]]
    assert area(points) == pytest.approx((0.625 * 22.5 + 0.875 * 45 + 0.875 * 22.5) / 90)
    assert area(np.array([[10.0, 0.5], [10.0, 0.7]])) == pytest.approx(0.6)
    constant = Policy("c", np.zeros(4, bool), np.zeros(4))
    assert area(curve(constant, FOUR)) == pytest.approx(0.625)  # the mean of both constants, as for a random router


def test_references_and_the_cost_of_self_route():
    found = {p.name: p for p in reference_policies(FOUR)}
    assert list(found) == ["always RAG", "always LC", "keywords", "oracle", "Self-Route"]
    assert found["oracle"].to_lc.tolist() == [False, True, False, True]
    assert found["keywords"].to_lc.tolist() == [False, False, True, False]
    assert found["Self-Route"].to_lc.tolist() == [True, False, False, True]
    assert cost(found["Self-Route"], FOUR).tolist() == [110, 10, 10, 110]
    assert "Self-Route" not in {p.name for p in reference_policies([record("a", 1, 0, refused=None)])}


def test_at_equal_cost():
    assert at_cost(CHOICE, FOUR, 60).to_lc.tolist() == [False, True, True, False]
    assert at_cost(CHOICE, FOUR, 9).to_lc.tolist() == [False] * 4
    assert at_cost(CHOICE, FOUR, 100).to_lc.tolist() == [True] * 4


def test_comparisons():
    other = Policy("all", np.ones(4, bool), np.ones(4))
    found = compare(CHOICE, other, FOUR, samples=100)
    assert found["difference"].mean == 0.0 and found["p"] == 1.0
    assert sign_flip(np.array([1.0, 1.0, 1.0]), ["a", "b", "c"]) == 0.25
    assert sign_flip(np.array([1.0, 1.0, 1.0]), ["a", "a", "a"]) == 1.0
    assert sign_flip(np.ones(20), [str(i) for i in range(20)], samples=500) == pytest.approx(1 / 501)


def test_auc_by_hand():
    assert auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])) == 0.875
    assert auc(np.ones(2), np.ones(2, bool)) is None


def test_a_threshold_by_hand():
    chance = np.array([0.9, 0.8, 0.8, 0.1])
    rag, lc = np.zeros(4), np.array([1.0, 1.0, -1.0, 0.0])
    assert best_threshold(chance, rag, lc) == pytest.approx(0.85)
    assert best_threshold(chance, rag, -np.ones(4)) == 1.0
    assert best_threshold(chance, rag, np.ones(4)) == pytest.approx(0.05)
    assert best_threshold(np.full(4, 0.5), rag, np.array([1.0, 0, 0, -1.0])) == 1.0  # one group, no gain: not worth it


def made_up(answerers: tuple[str, ...] = ("m",), documents: int = 20, *, seed: int = 0) -> list[Record]:
    """Comparisons gain from long context, lookups lose; a fifth is noise. The second answerer gains nothing from anything."""
    rng, found = np.random.default_rng(seed), []
    for doc in range(documents):
        for i in range(10):
            compares = bool(rng.integers(2))
            for name in answerers:
                gains = compares if rng.random() > 0.2 else not compares
                gains = gains and name == "m"
                question = f"How do both of the {i} parts differ?" if compares else f"Who is named in part {i}?"
                found.append(
                    record(f"{doc}-{i}", float(not gains), float(gains), doc=f"d{doc}", question=question, answer_model=name, strength="strong")
                )
    return found


def test_a_router_learns_what_is_there_and_nothing_from_shuffled_metadata():
    records = made_up()
    rag, lc = columns(records, "rag_score", "lc_score")
    right = [np.mean(np.array([d.to_lc for d in out_of_fold(records, fit, shuffled=s)]) == ideal_label(rag, lc)) for s in (False, True)]
    assert right[0] > 0.75 and right[1] < 0.65


def test_answerers_have_weights_of_their_own_and_unknown_ones_the_mean():
    router = fit(made_up(("m", "n")), told="made up")
    found = {}
    for name, strength in (("m", "strong"), ("n", "strong"), ("x", "strong"), ("x", "weak")):
        m = Metadata("How do both of the 3 parts differ?", 40_000, doc_type="book", setting=Setting(name, strength))  # type: ignore[arg-type]
        found[name, strength] = router.decide(m)
    assert found["m", "strong"].lc > found["x", "strong"].lc > found["n", "strong"].lc
    assert "(m)" in found["m", "strong"].reasons[0] and "(the mean of strong answerers)" in found["x", "strong"].reasons[0]
    assert "(the mean of all answerers)" in found["x", "weak"].reasons[0]


@pytest.mark.parametrize("fitter", [fit_tree, fit_forest])
def test_trees_learn_it_too(fitter):
    router = fitter(made_up())
    found = router.decide(Metadata("How do both of the 3 parts differ?", 40_000, doc_type="book"))
    assert found.to_lc and "expects long context to gain +0" in found.reasons[0]
    assert not router.decide(Metadata("Who is named in part 3?", 40_000, doc_type="book")).to_lc
    assert router.decide(Metadata("How?", 100)).by == "hard rule"


def test_what_never_varied_has_no_weight():
    """All made-up documents are books of one length."""
    router, question = fit(made_up()), "How do both of the 3 parts differ?"
    chance = {router.decide(Metadata(question, tokens, doc_type=kind)).lc for tokens in (5_000, 40_000, 250_000) for kind in ("book", "paper", "x")}
    assert max(chance) - min(chance) < 1e-6


def test_a_document_of_unknown_type_is_the_average_document():
    pulls = LearnedRouter.load().decide(Metadata("Why?", 40_000)).trace["pulls"]
    assert [pulls[name] for name in ("book", "financial", "paper")] == [0, 0, 0] and pulls["why"] != 0


def test_what_cannot_be_fitted_says_so():
    with pytest.raises(ValueError, match="0 of 1 questions were answered differently well"):
        fit([record("a", 1, 1)])


def test_a_router_is_saved_and_read_back(tmp_path):
    router = fit(made_up())
    router.save(tmp_path / "r.json")
    again = LearnedRouter.load(tmp_path / "r.json")
    m = Metadata("How do both differ?", 50_000)
    assert again.name == "r" and again.decide(m) == router.decide(m)
    (tmp_path / "bad.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=r"bad\.json is no router: "):
        LearnedRouter.load(tmp_path / "bad.json")
    told = json.loads((tmp_path / "r.json").read_text())
    told["features"][0] = "moon"
    (tmp_path / "old.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="these coefficients are for the features moon"):
        LearnedRouter.load(tmp_path / "old.json")


def test_the_bundled_router_holds_coefficients_and_is_quick():
    router = LearnedRouter.load()
    told = router.coefficients
    assert set(told.answerers) == set(lara.ANSWERERS) and len(told.weights) == len(NAMES) == len(features(Metadata("", 1)))
    taken = []
    for i in range(300):
        m = Metadata(f"How did revenue in 20{i:02} compare with costs " * (i % 9 + 1), 50_000 + i, doc_head="x" * 10_000)
        began = time.perf_counter()
        router.decide(m)
        taken.append(time.perf_counter() - began)
    assert np.quantile(taken, 0.95) < 2e-3
    assert router.decide(Metadata("How " + "a1 A " * 200_000, 50_000)).reasons


def test_tables_are_read_with_file_line_and_column(tmp_path):
    write_table(FOUR, tmp_path / "t.jsonl")
    assert read_table(tmp_path / "t.jsonl") == FOUR
    line = FOUR[0].model_dump()
    for change, words in (
        ({"rag_score": "high"}, "line 2: column 'rag_score'"),
        ({"doc_tokens": 0}, "line 2: column 'doc_tokens'"),
        ({"colour": 1}, "line 2: column 'colour'"),
        ({}, "line 2: question 'a' of 'unknown' is already on line 1"),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
        with pytest.raises(DataError, match=words):
            read_table(tmp_path / "bad.jsonl")


def test_evaluate_gives_plain_data_and_a_page(tmp_path):
    result = evaluate(FOUR, lambda mine: [CHOICE, play(RuleRouter(), mine)], samples=50)
    assert json.loads(json.dumps(result))["answerers"]["unknown"]["documents"] == 2
    found = result["answerers"]["unknown"]
    assert [q["qid"] for q in found["differ"]] == [r.qid for r, a, b in zip(FOUR, CHOICE.to_lc, play(RuleRouter(), FOUR).to_lc) if a != b]
    assert [(c["a"], c["b"]) for c in found["comparisons"]][:2] == [("mine", "keywords"), ("mine", "Self-Route")]
    assert sum("equal cost" in c["a"] for c in found["comparisons"]) == 2
    alone = evaluate(FOUR, lambda mine: [CHOICE], samples=50)
    assert [q["qid"] for q in alone["answerers"]["unknown"]["differ"]] == ["d"]
    page = write_page(result, tmp_path / "r.html").read_text()
    assert "always RAG" in page and "recovered gain" in page and "<script src" not in page and page.count("plotly-graph-div") >= 1
    evil = [r.model_copy(update={"qid": "<script>alert(1)</script>"}) for r in FOUR[3:]]
    page = write_page(evaluate(evil, lambda mine: [Policy("x", np.zeros(1, bool), np.zeros(1))], samples=10), tmp_path / "e.html").read_text()
    assert "<script>alert(1)</script>" not in page and "alert(1)" in page


@pytest.mark.slow
def test_the_learned_router_on_lara():
    """The bars of the bundled router, out of fold, seed 0; medians over ten seeds stand in docs/routing.md."""
    try:
        tables = lara.tables()
    except DataError as error:
        pytest.skip(str(error))
    everyone = [r for rows in tables.values() for r in rows]
    decisions = iter(out_of_fold(everyone, fit))
    over_rag, over_chance, over_keywords, over_self_route = [], [], [], []
    for rows in tables.values():
        mine = evaluation.policy_of("learned", [next(decisions) for _ in rows])
        refs = {p.name: p for p in reference_policies(rows)}
        found = report(mine, rows)
        over_rag.append(found["over_rag"])
        over_chance.append(found["over_random"])
        over_keywords.append(compare(mine, refs["keywords"], rows)["difference"])
        equal = at_cost(mine, rows, float(cost(refs["Self-Route"], rows).mean()))
        over_self_route.append(compare(equal, refs["Self-Route"], rows)["difference"])
    assert sum(i.mean > 0 for i in over_rag) >= 9 and sum(i.low > 0 for i in over_rag) >= 6
    assert sum(i.low > 0 for i in over_chance) >= 7
    assert sum(i.mean > 0 for i in over_keywords) >= 7
    assert all(i.mean > 0 for i in over_self_route) and sum(i.low > 0 for i in over_self_route) >= 9


def test_the_bundled_file_is_what_the_script_writes(tmp_path, monkeypatch):
    try:
        lara.tables(("gpt-4o",))
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("sys.argv", ["fitting", str(tmp_path / "again.json")])
    fitting.main()
    again, bundled = (LearnedRouter.load(p).coefficients for p in (tmp_path / "again.json", None))
    assert again.weights == pytest.approx(bundled.weights, abs=1e-4)
    assert {n: p.threshold for n, p in again.answerers.items()} == pytest.approx({n: p.threshold for n, p in bundled.answerers.items()}, abs=1e-3)
