"""`tacit route` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tacit.cli import app
from tacit.routing.table import Record, write_table

GOOD = '{"route": "LONG_CONTEXT", "rationale": "Because."}'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    monkeypatch.setattr("tacit.clients.endpoint.PAUSE", 0.001)
    Path("report.md").write_text("# The report\n\nAnnual report. " + "figures " * 10_000)


def route(*words: str) -> Any:
    return CliRunner().invoke(app, ["route", *words])


def table() -> None:
    rows = []
    for i in range(60):
        compares, odd = i % 2 == 0, i % 7 == 0
        question = f"How do both of the {i} parts differ?" if compares else f"Who is named in part {i}?"
        told = {"qid": str(i), "doc_id": f"d{i % 12}", "question": question, "doc_tokens": 40_000, "rag_cost": 3_100, "lc_cost": 40_100}
        rows.append(Record(**told, rag_score=compares == odd, lc_score=compares != odd, rag_refused=i % 5 == 0, answer_model="m"))
    write_table(rows, "table.jsonl")


def test_decide_says_the_route_and_why():
    done = route("decide", "report.md", "How do costs compare with revenue?", "--answerer", "gpt-4o")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("LONG_CONTEXT  (by model, confidence 0.")
    assert lines[1] == "Document: 'The report', 20,007 tokens, type financial."
    assert "it is taken above 0." in lines[2] and any("compares" in line for line in lines)
    assert lines[-1].startswith("Expected cost: 20,0") and "RAG would take 3,0" in lines[-1]


def test_decide_as_json_by_rules_and_by_a_hard_rule():
    told = json.loads(route("decide", "report.md", "Who signed?", "--router", "rules", "--json").output)
    assert (told["route"], told["by"], told["trace"]["task"]) == ("RAG", "rule", "lookup")
    done = route("decide", "report.md", "Who signed?", "--window", "8000")
    assert done.output.startswith("RAG  (by hard rule") and "exceeds the window of 8,000" in done.output


def test_decide_by_an_llm(server: Any, monkeypatch: pytest.MonkeyPatch):
    server.script = lambda request, seen: GOOD
    monkeypatch.setenv("MY_KEY", "sk-secret")
    done = route(
        "decide", "report.md", "Who?", "--endpoint", server.url, "--router", "m", "--key-env", "MY_KEY", "--price", "1,2", "--cache", "cache"
    )
    assert done.exit_code == 0, done.output
    assert done.output.startswith("LONG_CONTEXT") and "(read by route field)" in done.output
    assert "The decision took 10 + 5 tokens, cost 2e-05." in done.output
    assert len(server.requests) == 1 and server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in done.output + "".join(p.read_text() for p in Path("cache").rglob("*.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["decide", "none.pdf", "?"], "none.pdf: no such file or directory; give the path of"),
        (["decide", "report.md", "?", "--router", "luck"], "no router is called 'luck'"),
        (["decide", "report.md", "?", "--router", "none.json"], "none.json: no such file"),
        (["decide", "report.md", "?", "--strength", "huge"], "--strength is weak, medium, strong or unknown, not 'huge'"),
        (["decide", "report.md", "?", "--endpoint", "http://127.0.0.1:1/v1"], "--endpoint needs the name of the model there"),
        (["decide", "report.md", "?", "--endpoint", "http://127.0.0.1:1/v1", "--router", "m", "--price", "free"], "--price is two numbers"),
        (["evaluate", "none.jsonl"], "there is no file none.jsonl"),
        (["evaluate", "table.jsonl", "--answerer", "x"], "table.jsonl has no answerer 'x', only m"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words: list[str], told: str):
    table()
    done = route(*words)
    assert done.exit_code == 2 and told in done.output and "Traceback" not in done.output


def test_calibrate_then_decide_and_evaluate():
    table()
    done = route("calibrate", "table.jsonl", "-o", "mine.json")
    assert done.exit_code == 0, done.output
    assert "m: 60 questions, 12 documents" in done.output and "learned at equal cost - Self-Route" in done.output
    for name in ("always RAG", "always LC", "keywords", "oracle", "Self-Route", "learned"):
        assert f"  {name}" in done.output
    assert route("decide", "report.md", "How do both of the parts differ?", "--router", "mine.json").output.startswith("LONG_CONTEXT")
    assert route("decide", "report.md", "Who is named in part 3?", "--router", "mine.json").output.startswith("RAG")
    done = route(
        "evaluate",
        "table.jsonl",
        "--router",
        "bundled",
        "--router",
        "rules",
        "--router",
        "learned",
        "--router",
        "tree",
        "--router",
        "forest",
        "-o",
        "out",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(Path("out/result.json").read_text())["answerers"]["m"]["policies"]
    assert list(found)[5:] == ["bundled", "rules", "learned", "tree", "forest"] and found["tree"]["over_rag"][0] > 0
    assert "Report: out" in done.output and Path("out/report.html").exists()


def test_a_router_is_not_evaluated_on_what_it_was_fitted_on():
    table()
    route("calibrate", "table.jsonl", "-o", "mine.json")
    done = route("evaluate", "table.jsonl", "--router", "mine.json")
    assert done.exit_code == 2 and "the router 'mine.json' was fitted on table.jsonl: evaluate 'learned'" in done.output
