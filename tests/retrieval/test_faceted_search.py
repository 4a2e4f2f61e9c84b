"""Searching by facet with a UniFAR-style model: what is stored, asked, refused, explained and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tacit.cli import app
from tacit.retrieval.benchmarks import FACETS, Benchmark, Query, csfcube_score, evaluate
from tacit.retrieval.encoder import Encoder, known_facet, like, unit
from tacit.retrieval.index import add, build, read
from tacit.retrieval.modules import load
from tacit.retrieval.papers import Paper
from tacit.retrieval.search import Searcher
from tacit.retrieval.sentences import SENTENCE_END, behind
from tacit.retrieval.systems import Dense, all_systems, evenly, hybrid, rankings, wrong_facets
from tacit.retrieval.tables import table, table_lines

PAPERS = [
    Paper("cats", "On cats", "Cats sleep all day. They dislike graph theory. Dogs do not."),
    Paper("graph", "Graph neural networks", "A neural network on a graph passes messages. It wins."),
    Paper("long", "A long one", "Filler word. " * 40 + "The answer is quokka."),
    Paper("bare", "Only a title", ""),
]
WIDTH = 32


@pytest.fixture(scope="module")
def encoder(faceted) -> Encoder:
    return Encoder.load(faceted)


@pytest.fixture(scope="module")
def searcher(faceted, tmp_path_factory) -> Searcher:
    folder = tmp_path_factory.mktemp("faceted") / "i"
    build(folder, PAPERS, Encoder.load(faceted))
    return Searcher.open(folder)


def test_vectors_are_those_of_the_model(encoder, faceted, bert):
    model = load(faceted)
    texts = ["cats sleep", " ", behind("Cats", ["dogs", "sleep. All"])]
    assert encoder.facets == FACETS and Encoder.load(bert).facets == () and encoder.length == 64
    documents = encoder.documents(texts)
    assert documents.shape == (3, 4 * WIDTH) and documents.dtype == np.float32 and not documents[1].any()
    assert documents[[0, 2]] == pytest.approx(model.encode_document([texts[0], texts[2]]), abs=1e-6)
    norms = np.linalg.norm(documents[[0, 2]].reshape(2, 4, WIDTH), axis=2)
    assert norms == pytest.approx(np.sqrt([[0.4, 0.6, 0.6, 0.6]] * 2), abs=1e-6)  # taken as they are, not of length 1
    assert encoder.queries(texts[:1]) == pytest.approx(model.encode_query(texts[:1]), abs=1e-6)
    for facet in (*FACETS, "all"):
        assert encoder.queries(texts[:1], facet) == pytest.approx(model.encode_query(texts[:1], facet=facet), abs=1e-6)
    assert encoder.queries([]).shape == (0, 4 * WIDTH) and encoder.intents([]).shape == (0, 3)


def test_a_question_weighs_facets_by_its_intent(encoder):
    intent = encoder.intents(["cats sleep", "neural graph"])
    assert intent.sum(1) == pytest.approx([1, 1]) and np.abs(intent[0] - intent[1]).max() > 1e-3
    blocks = np.linalg.norm(encoder.queries(["cats sleep"]).reshape(4, WIDTH), axis=1)
    assert blocks == pytest.approx([np.sqrt(0.4), *np.sqrt(0.6) * intent[0]], abs=1e-6)
    one = np.linalg.norm(encoder.queries(["cats sleep"], "method").reshape(4, WIDTH), axis=1)
    assert one == pytest.approx(np.sqrt([0.4, 0, 0.6, 0]), abs=1e-6)


def test_roles_are_those_of_the_sentences_that_are_known(encoder):
    text = behind("Cats", ["dogs sleep. All day", "graph"])
    told = encoder.model.encode_document([text], output_value=None)[0]["sentence_roles"]
    assert encoder.roles([text, "cats"])[0] == [FACETS[k] for k in told.argmax(-1)] and len(told) == 3
    assert len(encoder.roles([SENTENCE_END.join(["word " * 30] * 9)])[0]) < 9  # the model stops reading


def test_an_ordinary_model_sees_spaces_and_has_no_facets(bert):
    ordinary = Encoder.load(bert)
    assert ordinary.documents([behind("cats", ["dogs", "sleep"])]) == pytest.approx(ordinary.documents(["cats. dogs sleep"]))
    assert ordinary.roles(["cats"]) == [[]]
    with pytest.raises(ValueError, match="the model knows no facets, so it cannot be asked for 'method'"):
        ordinary.queries(["cats"], "method")


def test_like_by_hand():
    """Two passages, K = 2, d = 1: blocks (2, 1, -1) and (2, 1, 1) of lengths 2, 1, 1; the last one has no mean."""
    passages = np.array([[2.0, 1.0, -1.0], [2.0, 1.0, 1.0]], np.float32)
    assert like(passages, ("a", "b")).tolist() == like(passages, ("a", "b"), "all").tolist() == [2, 0.5, 0]
    assert like(passages, ("a", "b"), "a").tolist() == [2, 1, 0] and like(passages, ("a", "b"), "b").tolist() == [2, 0, 0]
    rows = unit(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert like(rows, ()) == pytest.approx([np.sqrt(0.5)] * 2)  # an ordinary model: the direction of the mean


@pytest.mark.parametrize(
    ("facet", "facets", "words"),
    [
        ("metod", FACETS, r"--facet must be background, method, result or all, not 'metod'; did you mean 'method'\?"),
        ("method", (), "the model knows no facets, so it cannot be asked for 'method'; leave the facet out, or use a UniFAR-style model"),
    ],
)
def test_facets_that_are_refused(facet, facets, words):
    with pytest.raises(ValueError, match=words):
        known_facet(facet, facets)
    with pytest.raises(ValueError, match=words):
        like(np.ones((1, 4), np.float32), facets, facet)


def test_the_index_holds_all_blocks_and_knows_the_facets(searcher, encoder):
    assert searcher.dense.facets == FACETS
    held = searcher.dense.nearest.held
    assert held.vectors.shape[1] == 4 * WIDTH and len(held.of(2)) > 1
    assert held.of(0) == pytest.approx(
        encoder.documents([behind("On cats", ["Cats sleep all day.", "They dislike graph theory.", "Dogs do not."])]), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("facet", [None, "all", *FACETS])
def test_scores_are_inner_products_under_the_facet(faceted, encoder, tmp_path, kind, facet):
    build(tmp_path / "i", PAPERS, encoder, kind=kind)
    searcher = Searcher(read(tmp_path / "i"), encoder)
    asks = encoder.queries(["do cats sleep?"], facet)[0]
    hits = searcher.search(searcher.query("do cats sleep?", facet=facet), method="dense")
    expected = {p.id: float((searcher.dense.nearest.held.of(row) @ asks).max()) for row, p in enumerate(PAPERS)}
    assert {hit.paper.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
    paper = searcher.search(searcher.query(like="cats", facet=facet), method="dense")
    own = (
        searcher.dense.nearest.held.of(0)[0].reshape(4, WIDTH)
        * np.array([1, *([1 / 3] * 3 if facet in (None, "all") else np.eye(3)[FACETS.index(facet)])])[:, None]
    )
    for hit in paper:
        assert hit.score == pytest.approx(float((searcher.dense.nearest.held.of(PAPERS.index(hit.paper)) @ own.ravel()).max()), abs=1e-5)


def test_a_paper_is_most_like_itself(searcher, encoder):
    """Check 6.6: s(x, x) = 1 for even weights, whatever λ0."""
    own = searcher.dense.nearest.held.of(0)
    assert float(own[0] @ encoder.like(own)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("how", "asked"), [({"text": "do cats sleep?"}, None), ({"text": "cats", "facet": "result"}, [0, 0, 1]), ({"like": "graph"}, [1 / 3] * 3)]
)
def test_an_explanation_adds_up(searcher, encoder, how, asked):
    told = searcher.explain(searcher.query(**how), "cats", "dense")
    terms, weights = told["facets"]["terms"], told["facets"]["asked"]
    assert list(terms) == ["whole", *FACETS] and list(weights) == list(FACETS)
    assert sum(terms.values()) == pytest.approx(told["passage"]["score"], abs=1e-5)
    assert told["passage"]["score"] == pytest.approx(told["parts"]["dense"]["score"], abs=1e-5)
    expected = asked if asked is not None else encoder.intents(["do cats sleep?"])[0].tolist()
    assert list(weights.values()) == pytest.approx(expected, abs=1e-6)
    if asked == [0, 0, 1]:
        assert terms["background"] == terms["method"] == 0
    assert told["passage"]["text"] == "On cats. Cats sleep all day. They dislike graph theory. Dogs do not."


def test_sentences_carry_their_facet(searcher, encoder):
    told = searcher.explain(searcher.query("cats"), "cats")["sentences"]
    assert [s["facet"] for s in told] == encoder.roles([behind("On cats", [s["text"] for s in told])])[0][1:]
    many = searcher.explain(searcher.query("quokka"), "long")["sentences"]
    assert len(many) == 41 and all(s["facet"] in ("", *FACETS) for s in many)
    assert many[0]["facet"] and not many[-1]["facet"]  # the model stops reading before
    (title,) = searcher.explain(searcher.query("title"), "bare")["sentences"]
    assert title["text"] == "Only a title" and title["facet"] == encoder.roles(["Only a title"])[0][0]
    assert "facet" not in searcher.explain(searcher.query("cats"), "cats", "bm25")["sentences"][0]


def test_what_a_facet_cannot_be_asked_of(searcher, bert, tmp_path):
    with pytest.raises(ValueError, match="--facet must be background, method, result or all, not 'metod'"):
        searcher.query("cats", facet="metod")
    with pytest.raises(ValueError, match="bm25 compares whole documents and knows no facets; leave out --facet, or choose --method dense or hybrid"):
        searcher.search(searcher.query("cats", facet="method"), method="bm25")
    build(tmp_path / "words", PAPERS)
    with pytest.raises(ValueError, match="the index was made without a model, so it knows no facets"):
        Searcher.open(tmp_path / "words").query(like="cats", facet="method")
    build(tmp_path / "plain", PAPERS, Encoder.load(bert))
    with pytest.raises(ValueError, match="the model knows no facets, so it cannot be asked for 'method'"):
        Searcher.open(tmp_path / "plain").query(like="cats", facet="method")


def test_another_model_is_refused_and_a_moved_one_is_not(faceted, other_faceted, bert, tmp_path):
    folder = tmp_path / "i"
    build(folder, PAPERS[:2], Encoder.load(faceted))
    for other in (other_faceted, bert):
        with pytest.raises(ValueError, match="gives other vectors for the same texts"):
            add(folder, PAPERS, lambda name, other=other: Encoder.load(other))
        with pytest.raises(ValueError, match="gives other vectors for the same texts"):
            Searcher.open(folder, str(other))
    shutil.copytree(faceted, tmp_path / "run" / "model")
    moved = Encoder.load(tmp_path / "run")
    assert moved.name.endswith("run/model") and moved.facets == FACETS
    assert add(folder, PAPERS, lambda name: moved).added == 2
    whole = tmp_path / "whole"
    build(whole, PAPERS, moved)
    first, second = read(folder).dense, read(whole).dense
    assert first and second and first.nearest.held.vectors == pytest.approx(second.nearest.held.vectors, abs=1e-6)


def search(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["search", *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def test_commands(faceted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    Path("papers").mkdir()
    Path("papers/cats.md").write_text("# On cats\n\nCats sleep all day. Dogs bark.")
    Path("papers/graphs.txt").write_text("A neural network on a graph passes messages.")
    search("index", "papers", "--model", str(faceted))
    assert search("query", "cats that sleep", "--facet", "method").splitlines()[0] == "By facet: method"
    told: dict[str, Any] = json.loads(search("query", "--like", "cats.md", "--facet", "result", "--json", "--html", "found.html"))
    assert (told["facet"], told["like"], told["query"], told["method"]) == ("result", "cats.md", None, "hybrid")
    assert told["hits"][0]["sentences"][0]["facet"] in FACETS
    page = Path("found.html").read_text()
    assert "by hybrid, by facet: result" in page and f"<small class='faint'>{told['hits'][0]['sentences'][0]['facet']}</small> <mark" in page
    assert json.loads(search("query", "cats", "--json"))["facet"] is None
    lines = search("explain", "cats.md", "cats that sleep").splitlines()
    assert any(line.startswith("its score: whole ") and " + background " in line for line in lines)
    assert any(line.startswith("asked for: background ") and line.count("%") == 3 for line in lines)
    assert lines[-1].endswith("]") and any(line.startswith("nearest passage of 1, score ") for line in lines)
    assert "asked for: background 0%, method 100%, result 0%" in search("explain", "cats.md", "cats", "--facet", "method")
    for words in (["query", "cats", "--facet", "mehtod"], ["explain", "cats.md", "cats", "--facet", "mehtod"]):
        assert "did you mean 'method'?" in search(*words, code=2)
    assert "bm25 compares whole documents" in search("query", "cats", "--facet", "method", "--method", "bm25", code=2)


class Fixed(Encoder):
    """Two facets, d = 1, λ0 left out: the text is its document-side vector; a question asks with the facet blocks as they are."""

    facets = ("method", "result")

    def __init__(self):
        self.name = "fixed"

    def documents(self, texts):
        return np.array([[float(x) for x in text.split()] for text in texts], np.float32)

    def queries(self, texts, facet=None):
        found = self.documents(texts)
        found[:, 1:] *= [1, 1] if facet is None else [facet in ("method", "all"), facet in ("result", "all")]
        return found


def faceted_benchmark(**changes: Any) -> Benchmark:
    """A paper that is like a by method and like b by result."""
    corpus = {"q": "0 1 1", "a": "0 1 0", "b": "0 0 1", "c": "0 0 0"}
    pool = {"a": 3.0, "b": 0.0, "c": 0.0}
    queries = (
        Query("q_method", "q", corpus["q"], pool, "method", ("fold1_test", "fold2_test"), like="q", facet="method"),
        Query("q_result", "q", corpus["q"], {**pool, "b": 1.0}, "result", ("fold1_test", "fold2_test"), like="q", facet="result"),
    )
    return Benchmark(
        **{"name": "faceted", "queries": queries, "corpus": corpus, "published": {}, "score": csfcube_score, "headline": ("map",)} | changes
    )


def test_a_benchmark_is_asked_under_its_facets():
    dense = Dense(faceted_benchmark(), Fixed())
    assert dense.faceted
    assert dense.scores() == {"q_method": {"a": 1, "b": 0, "c": 0}, "q_result": {"a": 0, "b": 1, "c": 0}}
    assert dense.scores(evenly) == {name: {"a": 0.5, "b": 0.5, "c": 0} for name in ("q_method", "q_result")}
    wrong = wrong_facets(dense)
    assert wrong.values["map"] == {"q_method": 1 / 2, "q_result": 1}  # the facet of one is the wrong one of the other
    questions = faceted_benchmark(queries=(Query("1", "1", "0 1 2", {"a": 1.0, "b": 0.0}),))
    assert Dense(questions, Fixed()).scores() == {"1": {"a": 1, "b": 2}} and not Dense(questions, Fixed()).faceted


def test_hybrid_by_hand():
    """Pools of mean 2 and spread 1, of mean 0 and spread 2, and one without a difference."""
    first, second = {"q": {"a": 1.0, "b": 3.0}}, {"q": {"a": 2.0, "b": -2.0}}
    assert hybrid(first, second, 0.25) == {"q": pytest.approx({"a": -0.75 + 0.25, "b": 0.75 - 0.25})}
    assert hybrid(first, {"q": {"a": 7.0, "b": 7.0}}, 0.5) == {"q": pytest.approx({"a": -0.5, "b": 0.5})}
    assert rankings(hybrid(first, second, 0)) == {"q": ["b", "a"]} and rankings(hybrid(first, second, 1)) == {"q": ["a", "b"]}
    with pytest.raises(ValueError, match="the weight of the model in a hybrid is from 0 to 1, not 2"):
        hybrid(first, second, 2)


def test_the_table_of_a_model_with_facets(faceted, encoder):
    data = faceted_benchmark(corpus={"q": "cats sleep", "a": "cats sleep long", "b": "dogs", "c": "graph theory"})
    told = table(data, all_systems(data, [encoder], weight=0.5), samples=20)
    rows = {row["system"]: row["metrics"]["map"] for row in told["systems"]}
    name = encoder.name
    assert {name, f"{name} + BM25", f"{name} 0.5 + TF-IDF", f"{name} 0.5 + BM25", f"{name}, all facets", f"{name}, wrong facet"} <= set(rows)
    gain = rows[name]["over_wrong_facet"]
    assert gain.mean == pytest.approx(rows[name]["mean"].mean - rows[f"{name}, wrong facet"]["mean"].mean)
    assert "over_wrong_facet" not in rows[f"{name}, all facets"]
    assert table_lines(told)[-1].startswith(f"{name}, right - wrong facet: map ")


def test_the_evaluator_asks_under_the_facet(encoder):
    from tacit.retrieval.evaluator import PoolEvaluator

    data = faceted_benchmark(corpus={"q": "cats sleep", "a": "cats sleep long", "b": "dogs", "c": "graph theory"})
    expected = evaluate(data, rankings(Dense(data, encoder).scores()))
    assert PoolEvaluator(data)(encoder.model)["faceted_map"] == pytest.approx(expected.interval("map", samples=5).mean)
