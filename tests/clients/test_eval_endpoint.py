"""`tacit eval --endpoint` as a user types it, against an endpoint that misbehaves as scripted."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tacit
from tacit.cli import app

pytest.importorskip("openai")
SOURCE = str(Path(tacit.__file__).parents[1])
TASK = "{name: reversal, options: {min_length: 3, max_length: 4}}"
TROUBLE = ["429", "500", "late", "half JSON", "cut", "cut stream", "nothing"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACIT_DEBUG", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("tacit.clients.endpoint.PAUSE", 0.001)


def arguments(server: Any, *more: str) -> list[str]:
    given = ["eval", "--endpoint", getattr(server, "url", server), "--model", "m", "--task", TASK, "--prompts", "20", "-n", "2", "-o", "out"]
    return [*given, "--timeout", "0.4", *more]


def evaluate(server: Any, *more: str) -> Any:
    return CliRunner().invoke(app, arguments(server, *more))


def word(request: dict[str, Any]) -> str:
    return request["messages"][-1]["content"].rstrip(":")


def item(request: dict[str, Any]) -> tuple[str, int]:
    return word(request), request["seed"]


def right(request: dict[str, Any], seen: int) -> str:
    return word(request)[::-1]


def result() -> dict[str, Any]:
    return json.loads(Path("out/result.json").read_text())


def test_a_sound_endpoint(server):
    server.script = right
    told = evaluate(server, "--price", "1,2", "--system", "Reverse.", "--top-p", "0.9", "--stop", "x", "--request", "{own: 1, stop: null}")
    assert told.exit_code == 0, told.output
    assert "reversal avg@2 1.000 [0.839, 1.000] 20" in " ".join(told.stdout.split())
    assert "400 prompt and 200 completion tokens, cost 0.0008" in told.stdout
    assert Path("out/report.html").exists() and result()["spent"]["cost"] == pytest.approx(0.0008)
    assert result()["tasks"]["reversal"]["by_difficulty"]["3 letters"]["pass@2"]["mean"] == 1.0
    sent = server.requests[0]
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]
    assert {k: v for k, v in sent.items() if k not in ("messages", "seed")} == {
        "model": "m",
        "temperature": 1.0,
        "max_tokens": 512,
        "top_p": 0.9,
        "own": 1,
    }
    assert Counter(map(item, server.requests)).most_common(1)[0][1] == 1 and len(server.requests) == 40


def test_trouble_that_passes_ends_complete(server):
    chance = random.Random(0)
    plan: dict[tuple[str, int], list[str]] = {}

    def script(request: Any, seen: int) -> str:
        troubles = plan.setdefault(item(request), [chance.choice(TROUBLE) for _ in range(chance.randrange(3))])
        return troubles[seen] if seen < len(troubles) else right(request, seen)

    server.script = script
    told = evaluate(server)
    assert told.exit_code == 0, told.output
    assert result()["failures"] == [] and result()["tasks"]["reversal"]["metrics"]["pass@2"]["mean"] == 1.0
    assert Counter(map(item, server.requests)) == {key: 1 + len(troubles) for key, troubles in plan.items()}
    assert {t for troubles in plan.values() for t in troubles} == set(TROUBLE)


def test_trouble_that_stays_is_listed_item_by_item(server):
    """Sample 1 of the first words fails in every way there is; all others are measured."""
    bad: dict[str, str] = {}

    def script(request: Any, seen: int) -> str:
        if request["seed"] == 1 and (word(request) in bad or len(bad) < len(TROUBLE)):
            return bad.setdefault(word(request), TROUBLE[len(bad) % len(TROUBLE)])
        return right(request, seen)

    server.script = script
    told = evaluate(server, "--retries", "1")
    assert told.exit_code == 0, told.output
    failures = result()["failures"]
    assert {f["prompt"] for f in failures} == {f"reversal/{w}" for w in bad} and len(failures) == 7
    assert {f["sample"] for f in failures} == {1} and all(f["what"] == "no answer" for f in failures)
    reasons = {f["prompt"].removeprefix("reversal/"): f["why"] for f in failures}
    begins = {"429": "status 429", "500": "status 500", "late": "no reply within", "half JSON": "an unreadable", "cut": "the connection broke"} | {
        "cut stream": "the connection broke"
    }
    assert all(reasons[w].startswith(begins.get(trouble, "an unreadable reply, 2 times: empty")) for w, trouble in bad.items())
    metrics = result()["tasks"]["reversal"]["metrics"]
    assert (metrics["pass@1"]["problems"], metrics["pass@2"]["problems"], metrics["pass@2"]["mean"]) == (20, 13, 1.0)
    assert "reversal, left out of 40 completions: 7 failed" in told.stdout and told.stdout.count("no answer: reversal, prompt") == 7

    again = told.stdout.splitlines()[-1].partition("with: tacit ")[2]
    assert again.endswith("--resume --retry-failed")
    server.script, before = right, len(server.requests)
    told = CliRunner().invoke(app, shlex.split(again))
    assert told.exit_code == 0, told.output
    assert sorted(map(item, server.requests[before:])) == sorted((w, 1) for w in bad)
    assert result()["failures"] == []


def start(server: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "tacit", *arguments(server, "--concurrency", "3", "--timeout", "20")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(server: Any, count: int) -> None:
    until = time.monotonic() + 60
    while len(server.requests) < count:
        assert time.monotonic() < until, "the evaluation asks for nothing"
        time.sleep(0.005)


def slowly(request: Any, seen: int) -> str:
    time.sleep(0.05)
    return right(request, seen)


def test_stopped_by_ctrl_c_and_continued_it_asks_for_no_item_twice(server):
    server.script = slowly
    process = start(server)
    wait_for(server, 12)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert 12 <= len(server.requests) < 40
    again = stderr.strip().splitlines()[-1].partition("Stopped. Continue with: tacit ")[2]
    told = CliRunner().invoke(app, shlex.split(again))
    assert told.exit_code == 0, told.output
    assert len(server.requests) == 40 and max(Counter(map(item, server.requests)).values()) == 1
    assert result()["tasks"]["reversal"]["metrics"]["pass@2"]["mean"] == 1.0


def test_killed_it_asks_again_only_for_what_was_under_way(server):
    server.script = slowly
    process = start(server)
    wait_for(server, 12)
    process.kill()
    process.communicate(timeout=60)
    logged = {(r["prompt"].removeprefix("reversal/"), r["sample"]) for r in map(json.loads, Path("out/items.jsonl").read_text().splitlines())}
    asked = {item(r) for r in server.requests}
    assert len(logged) >= 12 - 2 * 3 and logged <= asked  # at most three under way, and three answers on their way to the disk
    before = len(server.requests)
    told = evaluate(server, "--resume", "--timeout", "20")
    assert told.exit_code == 0, told.output
    assert {item(r) for r in server.requests[before:]} & logged == set()
    assert len(server.requests) == before + 40 - len(logged)


def test_the_cache_serves_another_evaluation(server):
    server.script = right
    evaluate(server, "--cache", "replies")
    told = evaluate(server, "--cache", "replies", "-n", "2", "-o", "elsewhere", "--k", "2")
    assert told.exit_code == 0 and len(server.requests) == 40
    assert json.loads(Path("elsewhere/result.json").read_text())["spent"] == {"completion_tokens": 0, "prompt_tokens": 0, "cost": 0.0}


def test_plain_completions(server):
    server.script = lambda request, seen: request["prompt"].rstrip(":")[::-1]
    told = evaluate(server, "--no-chat", "--max-new-tokens", "8")
    assert told.exit_code == 0 and result()["tasks"]["reversal"]["metrics"]["pass@1"]["mean"] == 1.0
    assert server.requests[0]["max_tokens"] == 8


def sentence(told: Any) -> str:
    assert told.exit_code == 2, (told.exit_code, told.output, told.exception)
    lines = told.stderr.strip().splitlines()
    assert len(lines) == 1, told.stderr
    return lines[0]


def test_mistakes(server, monkeypatch):
    assert "cannot be reached" in sentence(evaluate("http://127.0.0.1:9/v1", "--retries", "0"))
    assert "is no endpoint; write it like" in sentence(evaluate("localhost:8000"))
    assert "--key-env names, is not set" in sentence(evaluate(server, "--key-env", "NO_SUCH_KEY"))
    assert "--price '1': write numbers" in sentence(evaluate(server, "--price", "1"))
    assert "--request 'x': write it like a section" in sentence(evaluate(server, "--request", "x"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.script = lambda request, seen: "401"
    told = sentence(evaluate(server))
    assert "it wants another API key" in told and "--key-env" in told and "sk-secret" not in told
    server.script = lambda request, seen: "404"
    assert "does not know this model" in sentence(evaluate(server))
    server.script = lambda request, seen: "400"
    assert "none of the 40 items was answered; 40 times: status 400" in sentence(evaluate(server))


def test_the_api_key_is_in_no_file(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-a-secret-of-mine")
    server.script = lambda request, seen: "key" if request["seed"] else right(request, seen)
    told = evaluate(server, "--key-env", "MY_KEY", "--cache", "replies")
    assert told.exit_code == 0 and server.headers[0]["Authorization"] == "Bearer sk-a-secret-of-mine"
    files = [path.read_text() for path in Path().rglob("*") if path.is_file()]
    assert len(files) > 20 and not any("sk-a-secret" in text for text in [*files, told.output])
