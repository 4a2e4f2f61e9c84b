"""What is found and why: by words, by meaning, by both; other scripts, long and similar papers."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.retrieval.encoder import Encoder, same_model
from tacit.retrieval.index import Contents, build
from tacit.retrieval.lexical import BM25
from tacit.retrieval.papers import Paper
from tacit.retrieval.search import Searcher

PAPERS = [
    Paper("cats", "On cats", "Cats sleep all day. They dislike graph theory. Dogs do not."),
    Paper("graph", "Graph neural networks", "A neural network on a graph passes messages."),
    Paper("long", "A long one", "Filler word. " * 5_000 + "The answer is quokka. " + "Filler word. " * 5),
    Paper("zh", "图神经网络", "我们提出一种新的图神经网络。结果很好。"),
    Paper("ru", "Обучение", "Мы предлагаем новый метод обучения."),
]


@pytest.fixture(scope="module")
def searcher(bert, tmp_path_factory) -> Searcher:
    folder = tmp_path_factory.mktemp("search") / "i"
    build(folder, PAPERS, Encoder.load(bert))
    return Searcher.open(folder)


def found(searcher, text=None, **how):
    return [hit.paper.id for hit in searcher.search(searcher.query(text, how.pop("like", None)), **how)]


@pytest.mark.parametrize(("text", "best"), [("do cats sleep?", "cats"), ("quokka", "long"), ("图神经", "zh"), ("метод обучения", "ru")])
def test_by_words(searcher, text, best):
    assert found(searcher, text, method="bm25")[0] == best


def test_by_words_only_papers_that_share_one(searcher):
    assert found(searcher, "messages", method="bm25") == ["graph"]
    assert found(searcher, "nowhere", method="bm25") == []
    assert len(found(searcher, "nowhere", k=3)) == 3  # by meaning there is always a nearest


def test_by_meaning_every_paper_has_the_cosine_of_its_nearest_passage(searcher, bert):
    query = searcher.query("graph neural")
    hits = searcher.search(query, method="dense")
    assert len(hits) == 5
    held, vector = searcher.dense.nearest.held, Encoder.load(bert).queries(["graph neural"])[0]
    for hit in hits:
        row = PAPERS.index(hit.paper)
        assert hit.score == pytest.approx(float((held.of(row) @ vector).max()), abs=1e-5)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert len(held.of(2)) > 100  # the long paper has many passages


def test_hybrid_is_the_fusion_of_both(searcher):
    hits = searcher.search(searcher.query("graph messages"))
    for hit in hits:
        assert hit.score == pytest.approx(sum(1 / (60 + rank) for rank, _ in hit.parts.values()))
    assert set(hits[0].parts) == {"bm25", "dense"}
    assert [searcher.explain(searcher.query("graph messages"), hit.paper.id)["score"] for hit in hits] == [hit.score for hit in hits]


def test_a_score_does_not_depend_on_how_many_are_shown(searcher):
    query = searcher.query("graph cats")
    for method in ("bm25", "dense", "hybrid"):
        (one,), five = searcher.search(query, 1, method), searcher.search(query, 5, method)
        assert one.paper == five[0].paper and one.score == pytest.approx(five[0].score, abs=1e-6)  # FAISS and a scan round differently


def test_only_the_depth_of_either_ranking_is_fused(searcher, monkeypatch):
    monkeypatch.setattr("tacit.retrieval.search.DEPTH", 1)
    hits = searcher.search(searcher.query("quokka"), 5)
    assert 1 <= len(hits) <= 2 and all(rank == 1 for hit in hits for rank, _ in hit.parts.values())


def test_like_a_paper_leaves_that_paper_out(searcher):
    for method in ("bm25", "dense", "hybrid"):
        names = found(searcher, like="graph", method=method)
        assert "graph" not in names and "cats" in names
    mean = searcher.dense.nearest.held.of(2).mean(0)
    assert searcher.vector(searcher.query(like="long")) == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_sentences_are_weighed(searcher):
    told = searcher.sentences(searcher.query("cats sleep"), PAPERS[0])
    assert [text for text, _ in told] == ["Cats sleep all day.", "They dislike graph theory.", "Dogs do not."]
    assert [weight for _, weight in told] == [1, 0, 0]
    both = searcher.sentences(searcher.query("cats sleep"), PAPERS[0], by_meaning=True)
    assert all(0 <= w <= 1 for _, w in both) and both[0][1] > 0.5 and both[1][1] > 0
    assert searcher.sentences(searcher.query("cats"), Paper("t", "Only cats", ""))[0] == ("Only cats", 1)


def test_explain_adds_up(searcher):
    query = searcher.query("graph cats sleep")
    told = searcher.explain(query, "cats")
    assert told["rank"] == 1 and set(told["words"]) == {"graph", "cats", "sleep"}
    assert sum(told["words"].values()) == pytest.approx(told["parts"]["bm25"]["score"], abs=1e-5)
    assert told["passage"]["of"] == 1 and told["passage"]["text"] == "On cats. Cats sleep all day. They dislike graph theory. Dogs do not."
    long = searcher.explain(searcher.query("quokka"), "long", "bm25")
    assert "passage" not in long and long["rank"] == 1
    assert max(long["sentences"], key=lambda s: s["weight"])["text"] == "The answer is quokka."
    missed = searcher.explain(searcher.query("messages"), "cats", "bm25")
    assert (missed["rank"], missed["parts"], missed["words"]) == (None, {}, {})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"text": " "}, "the query is empty"),
        ({}, "give either a text or, with --like, the id of a paper"),
        ({"text": "x", "like": "cats"}, "give either a text"),
        ({"like": "cat"}, "the paper must be .*; did you mean 'cats'"),
        ({"text": "x", "method": "bm52"}, "--method must be bm25, dense or hybrid, not 'bm52'; did you mean 'bm25'"),
    ],
)
def test_queries_that_are_refused(searcher, how, words):
    with pytest.raises(ValueError, match=words):
        found(searcher, **how)


def test_an_index_of_words_alone(tmp_path, bert):
    build(tmp_path / "i", PAPERS)
    searcher = Searcher.open(tmp_path / "i")
    assert found(searcher, "messages") == ["graph"]
    with pytest.raises(ValueError, match="was made without a model, so it can only be searched with bm25"):
        found(searcher, "messages", method="dense")
    with pytest.raises(ValueError, match="was made without a model; make it anew with --model"):
        Searcher.open(tmp_path / "i", str(bert))


def test_equal_scores_come_by_id():
    twins = [Paper(name, "twin", "cats") for name in "cab"]
    searcher = Searcher(Contents(twins, BM25([["cats"]] * 3), None))
    assert found(searcher, "cats") == ["a", "b", "c"]


@pytest.mark.parametrize("method", ["bm25", "dense", "hybrid"])
def test_equal_scores_come_by_id_at_the_cut_too(bert, tmp_path, monkeypatch, method):
    """Of 30 equal papers, the last ids first in the index, any number shows the first ids; a better and a worse one keep their places."""
    monkeypatch.setattr("tacit.retrieval.search.DEPTH", 12)
    twins = [Paper(f"p{n:02}", "cats", "cats sleep graph") for n in reversed(range(30))]
    build(tmp_path / "i", [Paper("worse", "dogs", "neural cats"), *twins, Paper("best", "cats", "cats sleep")], Encoder.load(bert))
    searcher = Searcher.open(tmp_path / "i")
    query = searcher.query("cats cats sleep")
    expected = ["best", *(f"p{n:02}" for n in range(30)), "worse"][: 12 if method == "hybrid" else None]
    for k in (1, 2, 4, 9, 30, 40):
        hits = searcher.search(query, k, method)
        assert [hit.paper.id for hit in hits] == expected[:k]
    assert found(searcher, like="p00", k=3, method=method) == ["p01", "p02", "p03"]


def test_another_model_is_refused(searcher, bert, other_bert):
    with pytest.raises(ValueError, match="gives other vectors for the same texts"):
        Searcher(searcher.contents, Encoder.load(other_bert))
    assert Searcher(searcher.contents, Encoder.load(bert)).encoder.name == str(bert.resolve())
    probe = Encoder.load(bert).probe()
    assert same_model(probe, probe + 1e-4) and not same_model(probe, probe[:, 1:]) and not same_model(probe, probe + 0.01)


def test_encoder(bert, tmp_path):
    encoder = Encoder.load(bert)
    vectors = encoder.documents(["cats", " ", "dogs"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 1]) and vectors.dtype == np.float32
    assert encoder.queries([]).shape == (0, 32) and encoder.length == 64
    with pytest.raises(ValueError, match="no sentence-transformers model could be loaded from"):
        Encoder.load(tmp_path / "none")
    next(encoder.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="gives no finite vector for the text 'cats'"):
        encoder.documents(["cats"])
