"""Rows made from papers alone: every kind of pair, what repeats and what must not, and the public sets where they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tacit.retrieval.modules import split
from tacit.retrieval.neighbours import nearest, reordered
from tacit.retrieval.pairs import MOST, TEMPLATES, Document, PairOptions, Pairs, content, of_labelled, with_roles
from tacit.retrieval.roles import Teacher
from tacit.tasks.data import DataError, locate

TOPICS = {"graphs": "node edge", "cells": "membrane protein", "markets": "price trade"}


def paper(topic: str, n: int, **changes: Any) -> Document:
    """A paper of three labelled sentences and one without a role, whose method is shared with papers of other topics but the same n % 3."""
    about, tool = TOPICS[topic], ("kernel machines", "decision trees", "neural layers")[n % 3]
    said = (
        f"Little is known of {topic} with {about}",
        f"We propose fitting {tool} with optimal{n % 3} margins",
        f"Results improve accuracy on {topic} benchmarks{n}",
        "Code is available",
    )
    return Document(**{"id": f"{topic}{n}", "title": f"On {topic} item{n}", "sentences": said, "roles": (0, 1, 2, -1)} | changes)


def papers(size: int = 12) -> list[Document]:
    return [paper(topic, n) for topic in TOPICS for n in range(size)]


def only(**kinds: float) -> PairOptions:
    return PairOptions(pairs=kinds, near=(1, 3), far=(4, 8), rank=8)


def parts(text: str) -> list[str]:
    return [s.rstrip(".") for s in split(text)]


LABELLED = [{"sentences": ["What is known", "We propose it", " ", "See code"], "labels": ["objective", "method", "result", "other"]}]


def test_a_row_has_every_column_and_26_labels():
    found = Pairs(papers(), questions=[("what of graphs", "graphs0")], labelled=of_labelled(LABELLED)).rows(50)
    for row in found:
        assert list(row) == ["anchor", "positive", "negative", "question", "answer", "labelled", "label"]
        assert len(row["label"]) == 2 + MOST and all(isinstance(x, int) and -1 <= x <= 2 for x in row["label"])
        assert row["anchor"] and row["positive"] and row["question"] and row["answer"] and row["labelled"]
        assert row["anchor"] != row["positive"]


def test_fewer_rows_are_the_first_of_more_and_a_seed_gives_the_same():
    pairs = Pairs(papers(), labelled=of_labelled(LABELLED))
    many = pairs.rows(80, seed=3)
    assert pairs.rows(20, seed=3) == many[:20] and Pairs(papers(), labelled=of_labelled(LABELLED)).rows(80, seed=3) == many
    assert pairs.rows(80, seed=4) != many


def test_pairs_do_not_depend_on_questions_or_labels():
    """What 6.10 needs: without the other losses, the same pairs."""
    columns = ("anchor", "positive", "negative")
    bare = Pairs(papers()).rows(60)
    full = Pairs(papers(), questions=[("what of graphs", "graphs0")], labelled=of_labelled(LABELLED)).rows(60)
    assert [[row[c] for c in columns] for row in bare] == [[row[c] for c in columns] for row in full]
    assert [row["label"][0] for row in bare] == [row["label"][0] for row in full]


def test_a_paper_is_anchor_once_in_a_pass():
    every = papers()
    found = [row["anchor"] for row in Pairs(every, options=only(neighbours=1)).rows(3 * len(every))]
    passes = [found[k * len(every) : (k + 1) * len(every)] for k in range(3)]
    assert all(sorted(one) == sorted(d.text for d in every) for one in passes) and passes[0] != passes[1]


def test_halves_share_no_sentence_and_lose_none():
    every = {d.text: d for d in papers()}
    titles = Counter()
    for row in Pairs(list(every.values()), options=only(halves=1)).rows(72):
        one, other = parts(row["anchor"]), parts(row["positive"])
        mine = next(d for d in every.values() if d.title in one + other)
        assert sorted(one + other) == sorted([mine.title, *mine.sentences]) and row["negative"] == "" and row["label"][0] == -1
        titles[mine.title in one] += 1
    assert min(titles[True], titles[False]) > 10  # the title goes with either


def test_a_title_and_its_abstract():
    every = {d.title: d for d in papers()}
    for row in Pairs(list(every.values()), options=only(title=1)).rows(36):
        assert parts(row["positive"]) == list(every[row["anchor"]].sentences)


def test_neighbours_are_of_the_bands():
    every = papers()
    place = {d.text: n for n, d in enumerate(every)}
    rankings = nearest([d.text for d in every], np.arange(len(every)), 20, rank=8, exact=0.7)
    used = set()
    for row in Pairs(every, options=only(neighbours=1)).rows(400):
        ranking = rankings[place[row["anchor"]]]
        used |= {("near", ranking.index(place[row["positive"]]) + 1), ("far", ranking.index(place[row["negative"]]) + 1)}
    assert used == {*(("near", k) for k in (1, 2, 3)), *(("far", k) for k in (4, 5, 6, 7, 8))}


def test_neighbours_by_one_facet_are_alike_in_that_facet():
    """Papers of unlike topics share their methods; papers of one topic share their problems."""
    every = papers()
    by_text = {d.text: d for d in every}
    options = replace(only(facets=1), depth=36)
    found = Pairs(every, options=options).rows(200)
    method = [(by_text[r["anchor"]], by_text[r["positive"]]) for r in found if r["label"][0] == 1]
    problem = [(by_text[r["anchor"]], by_text[r["positive"]]) for r in found if r["label"][0] == 0]
    assert {r["label"][0] for r in found} == {0, 1, 2}
    assert all(a.sentences[1] == b.sentences[1] for a, b in method)
    assert all(a.id.rstrip("0123456789") == b.id.rstrip("0123456789") for a, b in problem)


def test_a_facets_neighbours_are_among_those_near_as_a_whole():
    every = papers()
    rankings = nearest([d.text for d in every], np.arange(len(every)), 8, rank=8, exact=0.7)
    place = {d.text: n for n, d in enumerate(every)}
    for row in Pairs(every, options=replace(only(facets=1), depth=8)).rows(100):
        assert place[row["positive"]] in rankings[place[row["anchor"]]]


def test_papers_of_one_field():
    every = [replace(d, field=d.id[0]) for d in papers(3)]
    by_text = {d.text: d for d in every}
    for row in Pairs(every, options=only(field=1)).rows(18):
        assert by_text[row["anchor"]].field == by_text[row["positive"]].field
    assert Pairs(every, options=only(halves=1)).kinds["pairs/field"] == 0  # of a share of 0


def test_a_kind_that_no_paper_can_give_does_not_come():
    bare = [replace(d, title="", roles=()) for d in papers(3)]
    pairs = Pairs(bare)
    assert {k for k, n in pairs.kinds.items() if n} == {"pairs/halves", "pairs/neighbours", "questions/aspects"}
    assert all(row["label"] == [-1] * 26 and row["labelled"] == "" for row in pairs.rows(30))


def test_cloze_asks_for_a_sentence_that_the_answer_lacks():
    every = {d.title: d for d in papers()}
    pairs = Pairs(list(every.values()), options=PairOptions(questions={"cloze": 1}))
    facets = Counter()
    for row in pairs.rows(72):
        title, *kept = parts(row["answer"])
        mine = every[title]
        gone = [k for k, s in enumerate(mine.sentences) if s not in kept]
        assert len(gone) == 1 and mine.roles[gone[0]] == row["label"][1] != -1
        words = " ".join(content(mine.sentences[gone[0]]))
        ways = [way.format(words) for way in TEMPLATES[("background", "method", "result")[row["label"][1]]]]
        assert row["question"] in ways
        facets[row["label"][1]] += 1
    assert set(facets) == {0, 1, 2}


def test_long_questions_are_sentences_that_the_answer_lacks():
    five = [replace(d, sentences=(*d.sentences, f"Another sentence of {d.id}"), roles=(*d.roles, -1)) for d in papers()]
    lengths = Counter()
    for row in Pairs(five, options=PairOptions(questions={"aspects": 1})).rows(72):
        asked, (title, *kept) = parts(row["question"]), parts(row["answer"])
        mine = next(d for d in five if d.title == title)
        assert sorted([*asked, *kept]) == sorted(mine.sentences) and len(kept) >= 2 and row["label"][1] == -1
        lengths[len(asked)] += 1
    assert set(lengths) == {2, 3}


def test_given_questions_come_each_once_in_a_pass_with_the_whole_paper():
    asked = [(f"what of item {n}?", f"graphs{n}") for n in range(5)] + [("  ", "graphs0")]
    every = {d.id: d for d in papers()}
    found = Pairs(list(every.values()), questions=asked, options=PairOptions(questions={"given": 1})).rows(10)
    expected = sorted((text, every[name].text, -1) for text, name in asked[:5])
    for half in (found[:5], found[5:]):
        assert sorted((r["question"], r["answer"], r["label"][1]) for r in half) == expected


def test_roles_stand_beside_their_sentences_as_the_model_splits_them():
    gold = of_labelled([*LABELLED, {"sentences": ["One. Two."], "labels": ["result"]}])
    assert gold[0].sentences == ("What is known", "We propose it", "See code") and gold[0].roles == (0, 1, -1)
    found = Pairs(papers(), labelled=gold, options=PairOptions(teacher_share=0.5)).rows(80)
    seen = Counter()
    for row in found:
        split_as, roles = split(row["labelled"]), row["label"][2:]
        if "On " in split_as[0]:
            assert roles[:5] == [-1, 0, 1, 2, -1] and len(split_as) == 5
            seen["taught"] += 1
        else:
            mine = next(d for d in gold if list(d.sentences) == split_as)  # one sentence with two full stops stays one
            assert roles[: len(split_as)] == list(mine.roles)
            seen["gold"] += 1
        assert set(roles[len(split_as) :]) == {-1}
    assert 25 < seen["taught"] < 55
    assert not any("On " in r["labelled"] for r in Pairs(papers(), labelled=gold, options=PairOptions(teacher_share=0)).rows(40))
    assert all("On " in r["labelled"] for r in Pairs(papers(), labelled=gold, options=PairOptions(teacher_share=1)).rows(40))


def test_a_labelled_text_of_many_sentences_keeps_the_first_24():
    long = Document("long", "A title", tuple(f"Sentence {n}" for n in range(40)), (1,) * 40)
    row = Pairs(papers(), labelled=[long], options=PairOptions(teacher_share=0)).rows(1)[0]
    assert row["label"][2:] == [-1] + [1] * 23


def test_the_same_paper_twice_is_neither_neighbour_nor_negative():
    """One with the same text is left out, and what is asked of it is asked of the other; one with the same title is no neighbour."""
    every = papers()
    copy = Document("copy", "Another title", tuple(s.upper() + " !" for s in every[0].sentences))
    version = replace(every[1], id="version", sentences=("A wholly new text of node edge item1 graphs", "We add more"), roles=(0, 1))
    pairs = Pairs([*every, copy, version], questions=[("who", "copy")], options=replace(only(neighbours=1), far=(4, 99)))
    assert len(pairs.documents) == len(every) + 1 and pairs.asked == [("who", 0)]
    ones = {every[1].text, version.text}
    for row in pairs.rows(400):
        if row["anchor"] in ones:
            assert not {row["positive"], row["negative"]} & ones


def test_a_teacher_gives_roles():
    found = [Document("a", "A title", ("We know little.", "We propose it!", "It works.")), Document("b", "Bare", ())]
    assert found[0].text.startswith("A title.") and found[1].text == "Bare"
    teacher = Teacher.fit([{"sentences": ["we know little", "we propose it", "it works"], "labels": ["background", "method", "result"]}] * 3)
    told = with_roles([*found, paper("graphs", 0)], teacher, least=0)
    assert told[0].roles == (0, 1, 2) and told[1].roles == () and told[2].roles == (0, 1, 2, -1)


def test_two_papers_are_a_corpus_and_one_with_an_abstract_too():
    assert Pairs([paper("graphs", 0), paper("graphs", 1)]).rows(3)[0]["negative"] == ""  # no rank 30
    assert len(Pairs([paper("graphs", 0)]).rows(2)) == 2


@pytest.mark.parametrize(
    ("documents", "given", "message"),
    [
        ([], {}, "no pair can be made of 0 papers; give more papers, with titles and abstracts"),
        ([Document("a", "Bare", ()), Document("b", "", ())], {}, "no pair can be made of 2 papers"),
        ([paper("graphs", 0), paper("graphs", 0)], {}, "two papers have the id 'graphs0'"),
        (papers(1), {"questions": [("why", "cells9")]}, "a question names the paper 'cells9', which is not among the 3 given"),
    ],
)
def test_what_gives_no_pairs_is_said(documents, given, message):
    with pytest.raises(ValueError, match=message):
        Pairs(documents, **given)


def test_mistakes_in_options_and_documents_are_said():
    with pytest.raises(ValueError, match="pairs has no kind 'half'; there are halves, title"):
        PairOptions(pairs={"half": 1})
    with pytest.raises(ValueError, match="a share of questions is negative"):
        PairOptions(questions={"cloze": -1})
    with pytest.raises(ValueError, match="the paper 'a' has 1 sentences and 2 roles"):
        Document("a", "", ("x",), (1, 2))
    with pytest.raises(ValueError, match="a sentence of the paper 'a' is empty"):
        Document("a", "", ("x", " "))


def test_content_words():
    assert content("We propose 12 Graph-based NETWORKS, x, for the cells.") == ["propose", "graph-based", "networks", "cells"]


def test_nearest_by_hand():
    """By TF-IDF alone: text 0 shares two of two words with 1, one with 2, none with 3; 1 and 4 are one group."""
    texts = ["cats dogs", "cats dogs", "cats bone", "graph theory", "cats dogs bone"]
    found = nearest(texts, np.array([0, 1, 2, 3, 1]), 9, rank=2, exact=1.0)
    assert found[0] == [1, 4, 2] and found[1] == [0, 2] and found[3] == []
    assert nearest(texts, np.array([0, 1, 2, 3, 1]), 1, rank=2, exact=1.0)[0] == [1]
    assert reordered(["theory bone", "bone", "", "theory bone", "graph"], [[1, 2, 3], [0], [], [4], []], rank=2, exact=1.0)[0] == [3, 1]
    assert nearest(["", ""], np.arange(2), 3, rank=2, exact=0.5) == [[], []] == reordered(["a", ""], [[1], [0]], rank=2, exact=0.5)


def test_the_public_sets_hold_nothing_that_is_held_out():
    from tacit.retrieval import scientific as module

    try:
        for name in ("csfcube/corpus", "dorismae_dev/corpus", "csabstruct/train", "scirepeval_sample/search", "scitldr/train", "pubmedqa/train"):
            locate(f"{name}.jsonl.gz")
    except DataError as missing:
        pytest.skip(str(missing))
    found = module.scientific()
    ids = {d.id for d in found.documents}
    assert 12_000 < len(ids) == len(found.documents) and all(name in ids for _, name in found.questions) and 2_400 < len(found.questions) <= 2_492
    assert len(found.labelled) == len(found.labelled_rows) == 1668
    held = {d for r in module._rows("scirepeval_sample/specter_small") for d in (r["query"]["title"], r["pos"]["title"], r["neg"]["title"])}
    held |= {r["title"] for r in module._rows("scitldr/dev")}
    assert not held & {d.title for d in found.documents}
    assert {d.id.partition(":")[0] for d in found.documents} == {"csfcube", "dorismae", "scitldr", "pubmedqa", "search", "fos", "mesh", "labelled"}
