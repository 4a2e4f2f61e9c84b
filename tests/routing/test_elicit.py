"""Any of N, coins and votes by hand and against enumeration; the command against a scripted endpoint."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tacit.cli import app
from tacit.routing.elicit import curves, vote
from tacit.routing.labels import majority
from tacit.routing.table import Record, write_table


def test_curves_by_hand():
    found = curves([[True, False], [False, False]], [True, True])
    assert found.lc_rate == 0.25
    assert found.any_of == [0.25, 0.5]
    assert found.coin == [0.25, pytest.approx(1 - 0.75**2)]
    assert found.majority == [0.25, 0.0]  # one of two is a tie, and goes to RAG
    assert curves([[False, False]], [False]).majority == [1.0, 1.0]


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_a_vote_is_the_mean_over_all_choices(draws, n):
    n = min(n, len(draws))
    assert vote(len(draws), sum(draws), n) == pytest.approx(np.mean([majority(c) for c in combinations(draws, n)]))


def test_a_router_that_flips_coins_gains_what_coins_gain():
    rng = np.random.default_rng(0)
    found = curves(rng.random((3000, 8)) < 0.3, rng.random(3000) < 0.5)
    assert found.any_of == pytest.approx(found.coin, abs=0.03)
    assert found.any_of[0] == pytest.approx(found.majority[0])


def test_at_temperature_0_the_curve_is_flat():
    ideal = np.arange(10) % 2 == 0
    found = curves(np.repeat(~ideal[:, None], 4, 1), ideal)
    assert found.any_of == [0.0] * 4 == found.majority


def test_the_command(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    told = {"doc_tokens": 40_000, "rag_cost": 3_100, "lc_cost": 40_100, "answer_model": "m", "doc_id": "d"}
    write_table([Record(qid=str(i), question=f"Question {i}?", rag_score=i % 2, lc_score=1 - i % 2, **told) for i in range(8)], "t.jsonl")

    def script(request: Any, seen: int) -> str:
        number = int(json.loads(request["messages"][1]["content"])["question"].split()[1].rstrip("?"))
        return "no idea" if number == 3 else "LONG_CONTEXT" if number % 2 == 0 else "RAG"

    server.script = script
    words = ["route", "elicit", "t.jsonl", "--endpoint", server.url, "--router", "r", "--questions", "4", "-n", "3", "-o", "out"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "4 questions x 3 draws x 3 prompts: up to 36 calls" in done.output and len(server.requests) == 36
    assert "Long context is ideal for 100%: always RAG is right on 0.000." in done.output  # every second of the table
    assert "guideline, any of N      1.000   1.000   1.000" in done.output
    assert json.loads(Path("out/elicit.json").read_text())["styles"]["free"]["lc_rate"] == 1.0
    assert "always RAG" in Path("out/elicit.html").read_text()
    done = CliRunner().invoke(app, [*words[:7], "--questions", "8", "-n", "1"])
    assert "direct: 1 of 8 replies named no route and count as RAG" in done.output
    write_table([Record(qid="0", question="?", rag_score=0, lc_score=1, **told | {"doc_tokens": 10})], "short.jsonl")
    done = CliRunner().invoke(app, ["route", "elicit", "short.jsonl", *words[3:]])
    assert done.exit_code == 2 and "hard rules decide every question of short.jsonl" in done.output
