"""The client against an endpoint that misbehaves as scripted."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from tacit.clients import endpoint as module
from tacit.clients.cache import ReplyCache, request_key
from tacit.clients.endpoint import Endpoint, EndpointError, Reply, Spent, cost_of, together

pytest.importorskip("openai")
KEY = "sk-a-secret-of-mine"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


def ask(server: Any, *questions: str, complete: bool = False, progress: Any = None, draw: int = 0, options: Any = None, **how: Any) -> Any:
    """The replies to some questions, and the endpoint that gave them."""

    async def run() -> tuple[list[Reply], Endpoint]:
        async with Endpoint(getattr(server, "url", server), "m", **{"retries": 3, "timeout": 5.0, **how}) as endpoint:
            if complete:
                replies = [endpoint.complete(q, draw=draw, **(options or {})) for q in questions]
            else:
                replies = [endpoint.chat([{"role": "user", "content": q}], draw=draw, **(options or {})) for q in questions]
            return await together(replies, progress), endpoint

    return asyncio.run(run())


def question(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"]


def test_one_call_gives_text_usage_and_cost(server):
    [found], endpoint = ask(server, "2+2?", prices={"m": (1.0, 2.0)}, key=KEY)
    assert found == Reply("4", "stop", 10, 5, 20e-6, False, "")
    assert endpoint.spent == Spent(1, 0, 0, 10, 5, 20e-6, 0)
    assert server.requests == [{"model": "m", "messages": [{"role": "user", "content": "2+2?"}]}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_options_go_into_the_request_as_they_are(server):
    schema = {"type": "json_schema", "json_schema": {"name": "route", "strict": True, "schema": {"type": "object"}}}
    ask(server, "?", options={"temperature": 0, "seed": 3, "response_format": schema, "own_option": [1]})
    assert server.requests[0] == {"model": "m", "messages": [{"role": "user", "content": "?"}]} | {
        "temperature": 0,
        "seed": 3,
        "response_format": schema,
        "own_option": [1],
    }


def test_completions_and_no_key(server):
    [found], _ = ask(server, "2+2=", complete=True, options={"max_tokens": 4})
    assert (found.text, found.cost) == ("4", None)
    assert server.requests == [{"model": "m", "prompt": "2+2=", "max_tokens": 4}]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("trouble", ["429", "500", "late", "half JSON", "cut", "cut stream", "nothing", "another schema"])
def test_trouble_that_passes_is_waited_out(server, trouble):
    server.script = lambda request, seen: trouble if seen < 2 else "4"
    [found], endpoint = ask(server, "?", timeout=0.3)
    assert (found.text, found.failure) == ("4", "")
    assert len(server.requests) == 3 and endpoint.spent.answered == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("429", "status 429: "),
        ("500", "status 500: "),
        ("late", "no reply within the time limit, 3 times"),
        ("half JSON", "an unreadable reply, 3 times: {"),
        ("cut", "the connection broke, 3 times: "),
        ("cut stream", "the connection broke, 3 times: "),
        ("nothing", "an unreadable reply, 3 times: empty"),
        ("another schema", 'an unreadable reply, 3 times: {"choices": []}'),
    ],
)
def test_trouble_that_stays_is_a_failure_of_that_item_alone(server, trouble, reason):
    server.script = lambda request, seen: trouble if question(request) == "bad" else "4"
    replies, endpoint = ask(server, "good", "bad", "fine", retries=2, timeout=0.3)
    assert [r.text for r in replies] == ["4", "", "4"]
    assert replies[1].failure.startswith(reason) and not replies[0].failure
    assert sum(question(r) == "bad" for r in server.requests) == 3
    assert (endpoint.spent.answered, endpoint.spent.failed) == (2, 1)


def test_mixed_trouble_shares_one_number_of_tries(server):
    server.script = lambda request, seen: ["half JSON", "500", "nothing", "429"][seen % 4]
    [found], _ = ask(server, "?", retries=3)
    assert found.failure.startswith("status 429") and len(server.requests) == 4


def test_a_request_that_is_wrong_is_not_repeated(server):
    server.script = lambda request, seen: "400"
    [found], _ = ask(server, "?")
    assert found.failure.startswith("status 400") and "told so" in found.failure and len(server.requests) == 1


def test_retry_after_is_respected(server, monkeypatch):
    """The reply asks for 1 ms; without it the openai client would wait far longer."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 60.0)
    server.script = lambda request, seen: "429" if seen == 0 else "4"
    assert asyncio.run(asyncio.wait_for(asyncio.to_thread(ask, server, "?"), 20))[0][0].text == "4"


@pytest.mark.parametrize(("trouble", "words"), [("401", "another API key"), ("404", "does not know this model")])
def test_what_no_item_can_survive_is_an_error(server, trouble, words):
    server.script = lambda request, seen: trouble
    with pytest.raises(EndpointError, match=words):
        ask(server, "?")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_there():
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(f"http://127.0.0.1:{free_port()}/v1", "?", retries=1)


@pytest.mark.parametrize(
    ("url", "words"),
    [("localhost:8000", "is no endpoint"), ("http://me:pw@host/v1", "carries a login"), ("http://host/v1?key=pw", "carries a login")],
)
def test_an_unsuitable_url_is_refused_without_repeating_secrets(url, words):
    with pytest.raises(EndpointError, match=words) as caught:
        Endpoint(url, "m")
    assert "pw" not in str(caught.value)


def test_concurrency_is_bounded(server):
    import time

    def slow(request: Any, seen: int) -> str:
        time.sleep(0.03)
        return "4"

    server.script = slow
    told: list[int] = []
    replies, _ = ask(server, *map(str, range(12)), concurrency=3, progress=told.append)
    assert len(replies) == 12 and server.most_under_way == 3
    assert told == list(range(1, 13))


def test_the_cache_answers_what_was_asked_before(server, tmp_path):
    how = {"cache": tmp_path, "prices": {"m": (1.0, 2.0)}}
    first, _ = ask(server, "a", "b", **how)
    again, endpoint = ask(server, "a", "b", **how)
    assert len(server.requests) == 2
    assert [r.cached for r in first + again] == [False, False, True, True]
    assert again[0].text == "4" and again[0].cost == 20e-6 and endpoint.spent == Spent(cached=2)
    ask(server, "a", draw=1, **how)  # another draw of the same request is another reply
    ask(server, "a", options={"temperature": 0.5}, **how)
    assert len(server.requests) == 4


def test_failures_are_not_cached(server, tmp_path):
    server.script = lambda request, seen: "400" if seen == 0 else "4"
    assert ask(server, "a", cache=tmp_path)[0][0].failure
    assert ask(server, "a", cache=tmp_path)[0][0].text == "4"


def test_a_damaged_cache_file_is_as_good_as_none(server, tmp_path):
    ask(server, "a", cache=tmp_path)
    [path] = tmp_path.rglob("*.json")
    for damaged in (path.read_text()[:20], '{"reply": {"choices": 3}}', "[]"):
        path.write_text(damaged)
        assert ask(server, "a", cache=tmp_path)[0][0] == Reply("4", "stop", 10, 5)
    assert len(server.requests) == 4


def test_the_key_of_a_request_is_all_of_it_and_nothing_else(tmp_path):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert request_key("u", body, 0) == request_key("u", dict(reversed(body.items())), 0)
    assert len({request_key("u", body, 0), request_key("v", body, 0), request_key("u", body, 1), request_key("u", body | {"seed": 1}, 0)}) == 4
    cache = ReplyCache(tmp_path)
    cache.put("ab12", body, {"x": 1})
    assert cache.get("ab12") == {"x": 1} and cache.get("cd") is None
    assert [p.name for p in Path(tmp_path, "ab").iterdir()] == ["ab12.json"]  # no temporary file stays


def test_the_api_key_appears_nowhere(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.script = lambda request, seen: "key" if question(request) == "bad" else "4"
    replies, endpoint = ask(server, "good", "bad", key=KEY, cache=tmp_path)
    assert replies[1].failure.startswith("status 400: ") and "you sent Bearer ***" in replies[1].failure
    told = [repr(endpoint), repr(replies), caplog.text, *(p.read_text() for p in tmp_path.rglob("*.json"))]
    assert caplog.text and len(told) == 4
    assert not any(KEY in text for text in told)


def test_cost_and_account():
    assert cost_of(1_000_000, 500_000, (0.5, 2.0)) == 1.5
    assert cost_of(None, 1, (1, 1)) is cost_of(1, 1, None) is None
    spent = Spent().plus(Reply("a", "", 3, 4, 0.5)).plus(Reply("a")).plus(Reply(cached=True, cost=9.0)).plus(Reply(failure="x"))
    assert spent == Spent(answered=2, cached=1, failed=1, prompt_tokens=3, completion_tokens=4, cost=0.5, unpriced=1)


def test_refusals_and_empty_content_are_texts(server):
    bodies = {"none": {"content": None, "refusal": None}, "no": {"content": None, "refusal": "I will not"}}
    read = Endpoint(server.url, "m")._read
    assert [read(json.loads(json.dumps({"choices": [{"message": m}]}))).text for m in bodies.values()] == ["", "I will not"]
    assert read({"choices": [{"message": {"content": ["parts"]}}]}) is None
    assert read({"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}}) is None


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(EndpointError, match=r"pip install 'tacit\[endpoint\]'"):
        Endpoint("http://localhost:1/v1", "m")
