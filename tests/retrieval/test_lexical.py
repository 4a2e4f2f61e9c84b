"""Words of every script; TF-IDF, LSA and BM25 against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.retrieval.lexical import BM25, LSA, PAIRED, TfIdf, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Graph-based NETWORKS of 2020 are a x", ["graph-ba", "networks"]),
        ("ﬁne naïve Straße", ["fine", "naïve", "straße"]),
        ("обучение моделей", ["обучение", "моделей"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("深度学习 for 猫", ["深度", "度学", "学习", "猫"]),
        ("BERT模型", ["bert", "模型"]),
        ("العربية", ["العربية"]),
        ("ΤΗ\u0342Σ ΨΥΧΗ\u0342Σ", ["τῆς", "ψυχῆς"]),
        ("  \n…—!", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


@given(st.text())
def test_any_text_has_tokens_that_are_their_own(text):
    """But for a word that begins with 8 digits: cut, it is a number."""
    found = tokens(text)
    assert all(0 < len(word) <= 8 for word in found)
    assert tokens(" ".join(found)) == [word for word in found if not word.isdigit() or PAIRED.match(word)]


def test_tfidf_by_hand():
    """N = 3; df(cats) = 2, df(dogs) = 1: idf ln(4/2.5) and ln(4/1.5). The first text has cats twice."""
    space = TfIdf(["cats cats dogs", "cats", ""])
    cats, dogs = (1 + math.log(2)) * math.log(4 / 2.5), math.log(4 / 1.5)
    length = math.hypot(cats, dogs)
    assert space.documents.toarray() == pytest.approx(np.array([[cats / length, dogs / length], [1, 0], [0, 0]]))
    assert space.scores("dogs unknown") == pytest.approx([dogs / length, 0, 0])
    assert space.scores("") == pytest.approx([0, 0, 0])


def test_a_word_that_is_everywhere_still_weighs_a_little():
    assert TfIdf(["cats dogs", "cats"]).idf[0] == pytest.approx(math.log(3 / 2.5))
    assert TfIdf(["cats"] * 9).idf[0] == pytest.approx(math.log(10 / 9.5))


def test_lsa_of_full_rank_is_tfidf_between_documents():
    """Five directions, as one of six texts stands there twice; with fewer, texts without a shared word come near one another."""
    texts = ["cats sleep", "cats dogs", "dogs sleep bone", "graph theory", "graph bone", "sleep cats"]
    space = TfIdf(texts)
    full, half = LSA(space, rank=5), LSA(space, rank=2)
    assert full.basis.shape == (6, 5) and full.basis.T @ full.basis == pytest.approx(np.eye(5), abs=1e-9)
    for text in texts:
        assert full.scores(text) == pytest.approx(space.scores(text), abs=1e-9)
    assert space.scores("cats sleep")[2] < half.scores("cats sleep")[2] - 0.1 and half.basis.shape == (6, 2)
    with pytest.raises(ValueError, match="LSA needs at least two documents and two words, not 1 and 2"):
        LSA(TfIdf(["cats sleep"]))


@pytest.mark.parametrize("turned", [False, True])  # more words than documents, and the other way round
def test_lsa_of_a_large_corpus_is_found_another_way_and_is_the_same(monkeypatch, turned):
    rng = np.random.default_rng(0)
    words = [f"word{chr(97 + i)}" for i in range(12 if turned else 26)]
    space = TfIdf([" ".join(rng.choice(words, 6)) for _ in range(40 if turned else 15)])
    whole = LSA(space, 5)
    monkeypatch.setattr("tacit.retrieval.lexical.SOLVED_WHOLE", 0)
    large = LSA(space, 5)
    assert whole.basis.shape == large.basis.shape == (len(space.idf), 5)
    assert whole.documents @ whole.documents.T == pytest.approx(large.documents @ large.documents.T, abs=1e-9)


def test_lsa_of_texts_that_repeat_one_another_is_the_same_every_time():
    """ARPACK starts anew at random where documents depend on one another; and there are but two directions here."""
    space = TfIdf(["cats sleep", "graph theory"] * 8)
    first, second = LSA(space, 10), LSA(space, 10)
    assert first.basis.shape == (4, 2) and np.array_equal(first.basis, second.basis)
    assert first.documents @ first.documents[0] == pytest.approx([1.0, 0.0] * 8)


def test_bm25_by_hand():
    """N = 3, lengths 3, 1, 2, mean 2; df(dogs) = 1, df(cats) = 2; k1 1.2, b 0.75."""
    bm25 = BM25([["cats", "cats", "dogs"], ["cats"], ["sleep", "well"]])

    def part(df: int, tf: int, length: int) -> float:
        return math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + 1.2 * (0.25 + 0.75 * length / 2))

    both = [part(2, 2, 3) + part(1, 1, 3), part(2, 1, 1), 0]
    assert bm25.scores(["cats", "dogs"]) == pytest.approx(both, abs=1e-6)
    assert bm25.scores(["dogs", "dogs"])[0] == pytest.approx(2 * part(1, 1, 3), abs=1e-6)
    assert bm25.scores(["unknown"]).tolist() == bm25.scores([]).tolist() == [0, 0, 0]


def test_bm25_of_nothing():
    assert BM25([]).scores(["cats"]).shape == (0,)
    assert BM25([[], []]).scores(["cats"]).tolist() == [0, 0]
    assert BM25([[], ["cats"]]).scores(["cats"])[0] == 0


def test_a_missing_library_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r"pip install 'tacit\[retrieval\]'"):
        BM25([["cats"]])
