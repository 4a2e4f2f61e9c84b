"""Asks any OpenAI-compatible endpoint, through the openai client: its retries, its backoff with jitter, its respect for Retry-After.

What is added here: replies that arrive cut or unreadable are asked for again, within the same number of retries; an item that fails for good says
why instead of raising; an account of tokens and money; a cache; and an API key that appears in no text, log, file or repr.

    async with Endpoint("http://localhost:8000/v1", "my-model") as endpoint:
        reply = await endpoint.chat([{"role": "user", "content": "2+2?"}], temperature=0, response_format={"type": "json_object"})
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tacit.clients.cache import ReplyCache, request_key

FATAL = {401: "it wants another API key, see --key-env", 404: "it does not know this model or path"}  # the next item would fare no better
PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before an unreadable reply is asked for again, doubled every time; as the openai client does
LONGEST_REASON = 300  # characters of what a server says about a failure


class EndpointError(ValueError):
    """No item can be answered by this endpoint as it is asked; why, and what to do, in one sentence."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `failure` says why nothing did; tokens and cost are None where the endpoint or the price table does not tell."""

    text: str = ""
    finish: str = ""  # why it ended: "stop", "length", ...
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None  # in the currency of the price table, whether or not the cache saved it
    cached: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """The account of an endpoint: answers it was asked for, and what they took. Answers from the cache took nothing."""

    answered: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0  # answers without a known cost

    def plus(self, reply: Reply) -> Spent:
        if reply.failure:
            return replace(self, failed=self.failed + 1)
        if reply.cached:
            return replace(self, cached=self.cached + 1)
        return Spent(
            self.answered + 1,
            self.cached,
            self.failed,
            self.prompt_tokens + (reply.prompt_tokens or 0),
            self.completion_tokens + (reply.completion_tokens or 0),
            self.cost + (reply.cost or 0.0),
            self.unpriced + (reply.cost is None),
        )


def cost_of(prompt_tokens: int | None, completion_tokens: int | None, price: tuple[float, float] | None) -> float | None:
    """Tokens times `price`, given per million prompt and completion tokens; None when one of the three is unknown."""
    if prompt_tokens is None or completion_tokens is None or price is None:
        return None
    return (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6


async def together(replies: Iterable[Awaitable[Reply]], progress: Callable[[int], None] | None = None) -> list[Reply]:
    """All replies, in order; `progress` hears how many are there whenever one more is."""
    done = 0

    async def one(reply: Awaitable[Reply]) -> Reply:
        nonlocal done
        found = await reply
        done += 1
        if progress is not None:
            progress(done)
        return found

    return await asyncio.gather(*map(one, replies))


class Endpoint:
    """`model` at `url`, which ends in /v1 for most servers. At most `concurrency` requests are under way at a time, each tried 1 + `retries` times
    with `timeout` seconds a try. `prices` gives (prompt, completion) per million tokens by model name; `cache` is a folder.

    Raises EndpointError when openai is not installed, or the URL is none or carries secrets.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 300.0,
        prices: Mapping[str, tuple[float, float]] | None = None,
        cache: str | Path | None = None,
    ):
        try:
            import openai  # takes half a second, and most commands do without
        except ImportError:
            raise EndpointError("asking an endpoint needs the package openai; install it with: pip install 'tacit[endpoint]'") from None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(
                f"{parts._replace(netloc=parts.hostname or '', query='').geturl()!r} is no endpoint; write it like http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise EndpointError(
                f"the URL of the endpoint at {parts.hostname} carries a login or a query; give the key as an environment variable instead"
            )
        self._openai, self._key = openai, key
        self.url, self.model, self.retries = url.rstrip("/"), model, retries
        self.price = (prices or {}).get(model)
        self.cache = None if cache is None else ReplyCache(cache)
        self.spent = Spent()
        self._room = asyncio.Semaphore(concurrency)
        self._headers = {} if key else {"Authorization": openai.Omit()}
        self._sdk = openai.AsyncOpenAI(base_url=self.url, api_key=key or "none", timeout=timeout, max_retries=retries)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sdk.close()

    async def chat(self, messages: Sequence[Mapping[str, Any]], *, draw: int = 0, **options: Any) -> Reply:
        """The reply to `messages`. `options` go into the request as they are: temperature, max_tokens, response_format with a JSON schema, ...

        `draw` tells apart, for the cache, several draws of one request. Raises EndpointError when no item could be answered, nothing otherwise.
        """
        return await self._ask(True, {"model": self.model, "messages": list(messages), **options}, draw)

    async def complete(self, prompt: str, *, draw: int = 0, **options: Any) -> Reply:
        """How a base model goes on after `prompt`. See `chat`."""
        return await self._ask(False, {"model": self.model, "prompt": prompt, **options}, draw)

    async def _ask(self, chat: bool, body: dict[str, Any], draw: int) -> Reply:
        key = request_key(self.url, body, draw)
        found = self.cache.get(key) if self.cache else None
        if found is not None and (reply := self._read(found)) is not None:
            reply = replace(reply, cached=True)
        else:
            async with self._room:
                found = await self._fetch(chat, body)
            reply = found if isinstance(found, Reply) else self._read(found)
            assert reply is not None
            if self.cache and not reply.failure:
                self.cache.put(key, body, found)
        self.spent = self.spent.plus(reply)
        return reply

    async def _fetch(self, chat: bool, body: dict[str, Any]) -> Any:
        """The parsed body of a whole reply, or a Reply that says why there is none."""
        openai, left = self._openai, self.retries
        needed = {name: body[name] for name in ("model", "messages" if chat else "prompt")}
        rest = {name: value for name, value in body.items() if name not in needed}
        while True:
            try:
                sdk = self._sdk.with_options(max_retries=left)
                raw = await (sdk.chat.completions if chat else sdk.completions).with_raw_response.create(
                    **needed, extra_body=rest, extra_headers=self._headers
                )
            except openai.APIStatusError as error:
                return self._refused(error.status_code, error.message.removeprefix(f"Error code: {error.status_code} - "))
            except openai.APITimeoutError:
                return Reply(failure=f"no reply within the time limit, {self.retries + 1} times")
            except openai.APIConnectionError as error:
                return self._unreachable(error)
            found = _json(raw.text)
            if found is not None and self._read(found) is not None:
                return found
            left -= 1 + raw.retries_taken
            if left < 0:
                return Reply(failure=f"an unreadable reply, {self.retries + 1} times: {self._safe(raw.text) or 'empty'}")
            await asyncio.sleep(min(LONGEST_PAUSE, PAUSE * 2 ** (self.retries - left - 1)))

    def _refused(self, status: int, told: str) -> Reply:
        if status in FATAL:
            raise EndpointError(f"{self.url} refuses {self.model!r} ({status}): {FATAL[status]}; it says: {self._safe(told)}")
        return Reply(failure=f"status {status}: {self._safe(told)}")

    def _unreachable(self, error: Exception) -> Reply:
        """Nobody there is a mistake in the URL as long as nothing has been answered; later on, it is bad luck of one item."""
        reason = self._safe(str(error.__cause__ or error)) or type(error.__cause__ or error).__name__
        if type(error.__cause__).__name__ == "ConnectError" and not self.spent.answered:
            raise EndpointError(f"{self.url} cannot be reached ({reason}): is the server running, and is the URL right?")
        return Reply(failure=f"the connection broke, {self.retries + 1} times: {reason}")

    def _safe(self, told: str) -> str:
        """What a server said, on one line, shortened, and without the key should it repeat it."""
        line = " ".join((told.replace(self._key, "***") if self._key else told).split())
        return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."

    def _read(self, found: Any) -> Reply | None:
        """The reply in a parsed body; None when it is not what a reply looks like."""
        try:
            choice = found["choices"][0]
            message = choice["message"] if "message" in choice else {"content": choice["text"]}
            text = message.get("content") or message.get("refusal") or ""
            usage = found.get("usage") or {}
            tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
        if not isinstance(text, str) or not all(t is None or isinstance(t, int) for t in tokens):
            return None
        return Reply(text, str(choice.get("finish_reason") or ""), *tokens, cost_of(*tokens, self.price))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
