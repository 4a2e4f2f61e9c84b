from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from tacit.core.rollouts import Prompt
from tacit.evaluation.summary import THE_ANSWER, candidate, failures, spent, summarise


class Sums:
    name, alphabet = "sums", ""

    def baselines(self):
        return {"guess": 0.1}


class OwnAnswer(Sums):
    def final_answer(self, prompt, completion):
        return completion[-1] if completion else None


def records(*rows: dict[str, Any]) -> dict:
    plain = {
        "task": "t",
        "completion": "x",
        "finished": True,
        "reward": 0.0,
        "failure": "",
        "error": "",
        "tokens": 2,
        "prompt_tokens": 5,
        "cost": 0.5,
    }
    made = [plain | {"cached": False} | row for row in rows]
    return {(r["task"], r["prompt"], r["sample"]): r for r in made}


def test_who_votes_for_what():
    number, word, free = Prompt("a", "1+1=", "2"), Prompt("b", "ab:", "ba"), Prompt("c", "make 4")
    assert candidate(Sums(), number, "it is 2", 1.0) is candidate(Sums(), number, "\\boxed{2.0}", 1.0) is THE_ANSWER
    assert candidate(Sums(), number, "so 3", 0.0) == candidate(Sums(), number, "= 3.0", 0.0) == Fraction(3)
    assert candidate(Sums(), number, "who knows", 0.0) is None
    assert candidate(Sums(), word, " bb ", 0.0) == "bb"
    assert candidate(Sums(), Prompt("d", "", "\\pi"), "so \\boxed{ 2\\pi}.", 0.0) == "2\\pi"
    assert candidate(Sums(), Prompt("e", "", "B"), "The answer is (C).", 0.0) == "C"
    assert candidate(Sums(), free, "2+2", 1.0) == "2+2" != candidate(Sums(), free, "3+1", 1.0)  # several right answers are several candidates
    assert candidate(OwnAnswer(), word, "xyz", 0.0) == "z" and candidate(OwnAnswer(), word, "", 0.0) is None


def test_the_result_of_a_task():
    prompts = [Prompt("a", "", "2", {"difficulty": "10 digits"}), Prompt("b", "", "3", {"difficulty": "9 digits"})]
    found = summarise(
        Sums(),
        "t",
        prompts,
        records(
            {"prompt": "a", "sample": 0, "reward": 1.0, "tokens": 4},
            {"prompt": "a", "sample": 1, "completion": "5", "finished": False},
            {"prompt": "b", "sample": 0, "reward": None, "failure": "no idea"},
            {"prompt": "b", "sample": 1, "reward": None, "error": "status 500", "tokens": None},
            {"prompt": "a", "sample": 0, "task": "other", "reward": None, "error": "elsewhere"},
        ),
        2,
        [1, 2],
    )
    assert {name: (m["mean"], m["problems"]) for name, m in found["metrics"].items()} == {
        "avg@2": (0.5, 1),
        "pass@1": (0.5, 1),
        "pass@2": (1.0, 1),
        "maj@2": (0.5, 1),
    }
    assert list(found["by_difficulty"]) == ["9 digits", "10 digits"]
    assert found["by_difficulty"]["9 digits"]["pass@1"]["problems"] == 0
    assert {name: found[name] for name in ("problems", "samples", "failed", "unscored", "truncated", "length", "baselines")} == {
        "problems": 2,
        "samples": 2,
        "failed": 1,
        "unscored": 1,
        "truncated": 1,
        "length": pytest.approx(8 / 3),
        "baselines": {"guess": 0.1},
    }


def test_failures_are_listed_with_their_reasons():
    found = failures(records({"prompt": "a", "sample": 0, "reward": 1.0}, {"prompt": "a", "sample": 1, "reward": None, "error": "late"}))
    found += failures(records({"prompt": "b", "sample": 0, "reward": None, "failure": "odd"}))
    assert found == [
        {"task": "t", "prompt": "a", "sample": 1, "what": "no answer", "why": "late"},
        {"task": "t", "prompt": "b", "sample": 0, "what": "no verdict", "why": "odd"},
    ]


def test_what_was_spent():
    rows = [{"prompt": "a", "sample": 0}, {"prompt": "a", "sample": 1, "cached": True}, {"prompt": "a", "sample": 2, "error": "late", "cost": None}]
    assert spent(records(*rows)) == {"completion_tokens": 2, "prompt_tokens": 5, "cost": 0.5}
    assert spent(records(*rows, {"prompt": "b", "sample": 0, "cost": None, "tokens": None}))["cost"] is None
    assert spent(records({"prompt": "a", "sample": 1, "cached": True}))["cost"] == 0.0
