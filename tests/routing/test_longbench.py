"""LongBench-v2's loader, on a fixture in its published format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tacit.routing.evaluation import evaluate, play
from tacit.routing.learned import LearnedRouter
from tacit.routing.longbench import table
from tacit.tasks.data import DataError


def question(name: str, answer: str = "A", context: str = "word " * 4000) -> dict[str, Any]:
    choices = {f"choice_{letter}": f"claim {letter} of {name}" for letter in "ABCD"}
    told = {"_id": name, "domain": "Single-Document QA", "sub_domain": "Academic", "difficulty": "easy", "length": "short"}
    return told | {"question": f"What does {name} say?", **choices, "answer": answer, "context": context}


def predictions(path: Path, letters: dict[str, str | None]) -> Path:
    rows = [
        {"_id": name, "pred": letter, "judge": letter == "A", "response": "The correct answer is", "context": "word"}
        for name, letter in letters.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    questions = [question("q1"), question("q2", "B"), question("q3", context="another text " * 3000), question("q4")]
    (tmp_path / "data.json").write_text(json.dumps(questions))
    rag = predictions(tmp_path / "m_rag_5.jsonl", {"q1": "A", "q2": None, "q3": "C"})
    lc = predictions(tmp_path / "m.jsonl", {"q2": "B", "q1": "D", "q3": None, "q4": "A"})
    return {"data": tmp_path / "data.json", "rag": rag, "lc": lc}


def test_questions_that_both_routes_answered_become_records(files: dict[str, Path]) -> None:
    first, second, third = table(**files, answerer="m", strength="strong")
    assert [(r.qid, r.rag_score, r.lc_score) for r in (first, second, third)] == [("q1", 1, 0), ("q2", 0, 1), ("q3", 0, 0)]
    assert first.doc_id == second.doc_id != third.doc_id, "questions about one text share a document"
    assert first.question == "What does q1 say?\n(A) claim A of q1\n(B) claim B of q1\n(C) claim C of q1\n(D) claim D of q1"
    assert (first.doc_tokens, first.rag_cost, first.lc_cost) == (5000, 3075, 5075)
    assert (first.doc_type, first.task, first.strength, first.head) == ("Academic", "Single-Document QA", "strong", ("word " * 160))


def test_an_answer_without_a_letter_can_be_credited_with_guessing(files: dict[str, Path]) -> None:
    assert [r.rag_score for r in table(**files, answerer="m", credit_guess=True)] == [1, 0.25, 0]


def test_a_window_bounds_what_long_context_costs(files: dict[str, Path]) -> None:
    assert [r.lc_cost for r in table(**files, answerer="m", window=4000)] == [4075] * 3


def test_the_table_can_be_evaluated(files: dict[str, Path]) -> None:
    records = table(**files, answerer="m")
    found = evaluate(records, lambda mine: [play(LearnedRouter.load(), mine)], samples=50)
    assert found["answerers"]["m"]["policies"]["oracle"]["score"].mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f["data"].write_text("{"), "is not JSON"),
        (lambda f: f["data"].write_text('{"a": 1}'), "must hold a list of questions, not dict"),
        (lambda f: f["data"].write_text(json.dumps([question("q1"), {"_id": "q2"}])), "question 2: 'domain' is not there"),
        (lambda f: f["data"].unlink(), "there is no such file"),
        (lambda f: predictions(f["rag"], {"q9": "A"}), "line 1: no question has the _id 'q9'"),
        (lambda f: predictions(f["lc"], {"q1": "E"}), "line 1: 'pred' is one of A, B, C, D or null, not 'E'"),
        (lambda f: f["lc"].write_text('{"_id": "q1"}\n'), "'pred' is one of"),
        (lambda f: predictions(f["lc"], {"q4": "A"}), "have no question of"),
    ],
)
def test_what_is_not_in_the_published_format_is_told(files: dict[str, Path], spoil: Any, said: str) -> None:
    spoil(files)
    with pytest.raises(DataError, match=said):
        table(**files, answerer="m")


def test_json_lines_are_read_as_well(files: dict[str, Path]) -> None:
    lines = files["data"].with_suffix(".jsonl")
    lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(files["data"].read_text())))
    assert table(**files | {"data": lines}, answerer="m") == table(**files, answerer="m")
