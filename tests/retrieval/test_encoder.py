"""Edges of encoders: sentences without a token, vectors that are cut, lengths that are no lengths."""

from __future__ import annotations

from typing import Any

import pytest

from tacit.retrieval.encoder import Encoder
from tacit.retrieval.index import build
from tacit.retrieval.modules import load
from tacit.retrieval.papers import Paper
from tacit.retrieval.search import Searcher
from tacit.retrieval.sentences import SENTENCE_END

NOTHING = "\u200b"  # a space of no width, of which BERT's tokenizer makes no token


def test_a_sentence_without_a_token_has_no_role_and_shifts_none(faceted):
    encoder = Encoder.load(faceted)
    told: Any = encoder.model.encode_document([SENTENCE_END.join(["cats", NOTHING, "dogs sleep"])], output_value=None)
    best = [encoder.facets[k] for k in told[0]["sentence_roles"].argmax(-1)]
    texts = [["cats", NOTHING, "dogs sleep"], [NOTHING, "cats"], ["cats", NOTHING], [NOTHING, NOTHING]]
    found = encoder.roles([SENTENCE_END.join(text) for text in texts])
    assert found[0] == [best[0], "", best[2]]
    assert [[role != "" for role in roles] for roles in found] == [[True, False, True], [False, True], [True], []]


@pytest.mark.parametrize(("title", "texts", "silent"), [("On cats", ["Cats.", NOTHING, "Dogs."], 1), (NOTHING, [], 0)])
def test_the_facets_of_a_paper_stay_with_their_sentences(faceted, tmp_path, title, texts, silent):
    build(tmp_path / "i", [Paper("a", title, "\n\n".join(texts)), Paper("b", "Dogs", "Sleep.")], Encoder.load(faceted))
    searcher = Searcher.open(tmp_path / "i")
    told = searcher.explain(searcher.query("cats"), "a")["sentences"]
    assert len(told) == max(1, len(texts)) and [n for n, s in enumerate(told) if not s["facet"]] == [silent]


def test_vectors_of_facets_that_are_cut_are_refused(faceted, bert):
    model = load(faceted)
    model.truncate_dim = 40
    with pytest.raises(ValueError, match="has facets, each with its part of a vector, so truncate_dim=40 would cut some off; set it to None"):
        Encoder(model)
    ordinary = Encoder.load(bert).model
    ordinary.truncate_dim = 16
    assert Encoder(ordinary).documents(["cats"]).shape == (1, 16)


@pytest.mark.parametrize(("limit", "length"), [(None, 512), (0, 512), (int(1e30), 512), (1e30, 512), (int(1e20), 512), (64, 64), (131_072, 131_072)])
def test_a_limit_that_is_none_counts_as_512(bert, monkeypatch, limit, length):
    encoder = Encoder.load(bert)
    monkeypatch.setattr(encoder.model, "get_max_seq_length", lambda: limit)
    assert encoder.length == length
