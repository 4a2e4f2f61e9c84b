"""A scripted endpoint on the loopback interface: it answers as told, and remembers every request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class ScriptedServer:
    """`script(request, seen)` is asked for each request, which has been `seen` so often before; it returns text or a trouble of `TROUBLES`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: Callable[[dict[str, Any], int], str] = lambda request, seen: "4"
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.handle_error = lambda *_: None  # a client that hangs up is part of the script
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    seen = server.requests.count(request)
                    server.requests.append(request)
                    server.headers.append({name.title(): value for name, value in self.headers.items()})
                    server.under_way += 1
                    server.most_under_way = max(server.most_under_way, server.under_way)
                told = server.script(request, seen)
                try:
                    TROUBLES.get(told, answer)(self, told)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up on a late reply
                finally:
                    with server.lock:
                        server.under_way -= 1

        return Handler


def send(handler: Any, status: int, body: str, cut: int | None = None, **headers: str) -> None:
    data = body.encode()
    handler.send_response(status)
    for name, value in (
        {"Content-Type": "application/json", "Content-Length": str(len(data))} | {k.replace("_", "-"): v for k, v in headers.items()}
    ).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data[:cut])
    if cut is not None:
        handler.close_connection = True


def answer(handler: Any, text: str) -> None:
    send(handler, 200, reply(text, chat=handler.path.endswith("/chat/completions")))


def reply(text: str, *, chat: bool = True, finish: str = "stop") -> str:
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return json.dumps({"id": "1", "choices": [{"index": 0, "finish_reason": finish, **said}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})


def cut_chunks(handler: Any, _: str) -> None:
    """A chunked reply whose stream ends in the middle, without the last chunk."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"28\r\n" + reply("4").encode()[:40] + b"\r\n")
    handler.close_connection = True


def error(status: int, told: str = "told so") -> Callable[[Any, str], None]:
    return lambda handler, _: send(handler, status, json.dumps({"error": {"message": told}}), retry_after_ms="1")


def late(handler: Any, _: str) -> None:
    time.sleep(0.6)
    answer(handler, "too late")


def echo_of_the_key(handler: Any, _: str) -> None:
    send(handler, 400, json.dumps({"error": {"message": "you sent " + handler.headers["Authorization"]}}))


TROUBLES: dict[str, Callable[[Any, str], None]] = {
    "429": error(429),
    "500": error(500),
    "400": error(400),
    "401": error(401),
    "404": error(404),
    "late": late,
    "half JSON": lambda handler, _: send(handler, 200, reply("4")[:40]),
    "cut": lambda handler, _: send(handler, 200, reply("4"), cut=40),
    "cut stream": cut_chunks,
    "nothing": lambda handler, _: send(handler, 200, ""),
    "another schema": lambda handler, _: send(handler, 200, '{"choices": []}'),
    "key": echo_of_the_key,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    found = ScriptedServer()
    yield found
    found.http.shutdown()
    found.http.server_close()
