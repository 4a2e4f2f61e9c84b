"""Refusals and the proxy judge, by hand; its agreement with the published grades where LaRA is at hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.routing import lara
from tacit.routing.judge import TASKS, Item, ProxyJudge, content, numbers, proxy_score
from tacit.routing.refusal import LOOKED_AT, refusal_rule, refuses
from tacit.tasks.data import DataError


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("Unanswerable.", "unanswerable"),
        ("UN-ANSWERABLE", "unanswerable"),
        ("The text does not mention a dog.", "not told"),
        ("The text doesn’t explicitly specify it.", "not told"),
        ("It is not mentioned in the report.", "not told"),
        ("There is no specific information about that.", "no information"),
        ("I cannot determine the answer.", "cannot"),
        ("I am unable to say.", "cannot"),
        ("The context is insufficient.", "unable"),
        ("His age is unknown.", "unknown"),
        ("He bought a red boat in 1912.", None),
        ("Notes mention the state of the contract.", None),
        ("x" * LOOKED_AT + " The text does not mention it.", None),
        ("", None),
    ],
)
def test_refusals(answer, rule):
    assert refusal_rule(answer) == rule
    assert refuses(answer) is (rule is not None)


def test_numbers_and_words_have_one_form():
    assert numbers("$1,234.50 and 12.0, or 007") == {"1234.5", "12", "007"}
    assert content("The managers' managing of Resources") == {"manage", "managi", "resour"}


Q, LONG = "What changed in 2023?", "However the ships sailed " * 30


@pytest.mark.parametrize(
    ("task", "gold", "answer", "score"),
    [
        ("location", "It was $1,200 and 7 ships.", "1200 with 7 boats", 1.0),
        ("location", "It was $1,200 and 7 ships.", "1200", 0.0),
        ("location", "It was 5 in 2023.", "5", 1.0),  # 2023 stands in the question
        ("location", "managers sailing boats", "Managed to sail a boat", 0.0),  # six letters of one word in three agree
        ("location", "red boat", "a RED one", 1.0),
        ("location", "red boat anchor", "a red one", 0.0),
        ("reasoning", "alpha bravo charlie delta", "alpha", 1.0),  # recall 1/4
        ("reasoning", "alpha bravo charlie delta echo", "alpha", 0.0),  # 1/5, no number
        ("reasoning", "alpha bravo charlie delta echo 5 6", "alpha 5", 1.0),  # 1/5 with half the numbers
        ("reasoning", "alpha bravo charlie delta echo 5 6 7", "alpha 5", 0.0),
        ("comp", "alpha bravo charlie delta 5 6", "alpha 5", 1.0),
        ("comp", "alpha bravo charlie delta echo 5 6", "alpha 5", 0.0),  # 1/5 is below .24
        ("comp", "alpha bravo charlie delta echo", "alpha bravo", 1.0),  # 2/5
        ("comp", "alpha bravo charlie delta echo", "alpha", 0.0),
        ("location", "red boat", "The text does not mention a red boat anchor.", 1.0),  # a refusal, but it recalls what was asked
        ("location", "red boat anchor", "It is unknown, perhaps red.", 0.0),
        ("location", "changed", "It did", 1.0),  # nothing in the gold answer that is not in the question
        ("location", "changed", "It is unknown", 0.0),
        ("hallu", "The text does not say.", "The text doesn't provide this.", 1.0),
        ("hallu", "The text does not say.", "It was 5.", 0.0),
        *((task, "The text does not say.", nothing, 0.0) for task, nothing in product(TASKS, ["", "  ", None, False, 3])),
    ],
)
def test_the_proxy_judge_by_hand(task, gold, answer, score):
    assert proxy_score(task, Q, gold, answer) == score
    assert ProxyJudge().scores([Item(task, Q, gold, answer)]) == [score]


def test_a_long_refusal_is_judged_by_what_it_says():
    gold = "ships sailed north against winds"
    assert proxy_score("reasoning", Q, gold, "The text does not mention it. " + LONG) == 1.0
    assert proxy_score("reasoning", Q, gold, "The text does not mention it. The ships sailed.") == 0.0


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="unknown task 'poem'"):
        proxy_score("poem", "", "", "x")


@given(st.sampled_from(TASKS), st.text(max_size=99), st.text(max_size=99), st.text(max_size=999))
def test_any_text_is_judged(task, question, gold, answer):
    assert proxy_score(task, question, gold, answer) in (0.0, 1.0)


# (LC, RAG) in %, of 32k location, reasoning, comp, hallu, then 128k: the results figure of LaRA, macro-averages over three document types
PUBLISHED = {
    "llama-3.1-8b": "77.60 73.85 51.65 46.59 58.29 38.06 78.80 83.73 72.64 72.65 48.48 47.73 40.87 22.27 58.40 78.36",
    "llama-3.2-3b": "69.11 71.08 36.60 34.88 31.10 25.02 65.13 79.71 60.96 68.96 33.99 38.86 24.54 20.20 52.06 69.45",
    "llama-3.3-70b": "77.50 79.83 66.43 57.23 65.33 53.13 73.59 86.62 74.54 78.11 52.98 59.05 43.09 26.69 44.00 77.67",
    "qwen2.5-7b-instruct": "78.10 73.70 51.30 48.63 62.35 43.79 76.42 84.36 68.94 74.08 44.69 50.93 39.51 29.17 42.52 71.02",
    "qwen2.5-72b-instruct": "83.29 81.63 74.06 65.24 68.89 49.24 85.08 83.76 76.10 78.92 65.25 64.37 54.62 36.10 64.45 71.32",
    "mistral-nemo": "54.45 72.38 29.81 45.74 29.02 43.63 35.27 71.70 23.44 72.29 14.87 50.53 7.77 32.59 14.77 57.92",
    "gpt-4o": "86.33 82.55 75.48 68.51 79.66 46.56 72.30 78.39 87.70 82.22 79.35 70.26 64.74 40.84 56.34 67.33",
    "gpt-4o-mini": "79.92 77.69 77.65 62.23 73.91 54.48 52.82 67.17 79.86 80.43 67.80 65.15 65.31 41.29 32.08 59.31",
    "claude-3-5-sonnet-20241022": "85.82 83.10 70.42 66.81 66.28 51.38 86.12 90.99 85.44 80.94 73.79 64.81 58.35 33.18 77.64 84.73",
    "gemini-1.5-pro": "78.94 74.71 64.68 53.50 77.34 56.43 84.58 88.03 82.15 75.41 67.97 48.47 61.67 36.54 66.16 78.60",
}


@pytest.fixture(scope="module")
def tables():
    try:
        return lara.tables()
    except DataError as error:
        pytest.skip(str(error))


def test_the_judge_agrees_with_the_published_grades(tables):
    """Half of the documents against grades over all of them: bounds, not equality."""
    ours = np.zeros((10, 2, 4, 2))
    for i, name in enumerate(PUBLISHED):
        for (j, length), (k, task) in product(enumerate(("32k", "128k")), enumerate(TASKS)):
            mine = [r for r in tables[name] if r.task == task and r.doc_id.startswith(length + "/")]
            kinds = [[r for r in mine if r.doc_type == kind] for kind in ("book", "financial", "paper")]
            ours[i, j, k] = [100 * np.mean([np.mean([getattr(r, s) for r in kind]) for kind in kinds]) for s in ("lc_score", "rag_score")]
    published = np.array([list(map(float, row.split())) for row in PUBLISHED.values()]).reshape(10, 2, 4, 2)
    errors = abs(ours - published).mean((0, 1, 3))
    assert (errors <= [3.0, 6.5, 9.5, 6.5]).all(), errors
    gaps, theirs = ours[..., 0] - ours[..., 1], published[..., 0] - published[..., 1]
    assert np.corrcoef(gaps.ravel(), theirs.ravel())[0, 1] >= 0.9
    assert (np.sign(gaps) == np.sign(theirs)).mean() >= 0.85


def test_6_13_self_route_escalates_where_a_refusal_is_right(tables):
    rows = tables["gpt-4o"]
    rate = {task: np.mean([r.rag_refused for r in rows if r.task == task]) for task in TASKS}
    assert rate["hallu"] > 0.6 and max(rate[t] for t in TASKS if t != "hallu") < 0.2
    right = [bool(r.rag_refused) == (r.lc_score > r.rag_score) for r in rows if r.task == "hallu"]
    assert 0.15 < np.mean(right) < 0.35


def test_the_tables_have_the_counts_of_their_description(tables):
    assert len(tables) == 10 and all(len(rows) == 1215 for rows in tables.values())
    rows = tables["gemini-1.5-pro"]
    assert len({r.doc_id for r in rows}) == 68 and {r.doc_type for r in rows} == {"book", "financial", "paper"}
    assert [r.rag_refused for r in rows if r.rag_score > 0 and r.task == "hallu"] == [True] * sum(r.rag_score > 0 and r.task == "hallu" for r in rows)
