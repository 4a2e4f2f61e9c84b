"""The LLM router: one call a decision on any OpenAI-compatible endpoint, none where a hard rule decides; whatever goes wrong, a recorded route."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tacit.clients.endpoint import Endpoint, Reply
from tacit.routing.decision import Decision, Metadata, Route, decision, hard_rule
from tacit.routing.prompt import Answer, BareAnswer, Style, messages, read_reply


@dataclass
class LLMRouter:
    """Asks the endpoint with `style`, at temperature 0. `structured` sends the schema along, for endpoints that hold their models to it.

    The endpoint brings retries, cache and prices. A decision carries how its reply was read, the tokens and the money; the expected cost holds the
    input tokens of the call. An endpoint that refuses every call raises EndpointError; any other failure is a RAG decision that says so.
    """

    endpoint: Endpoint
    style: Style = "guideline"
    max_tokens: int = 1024
    structured: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.endpoint.model} ({self.style})"

    async def ask(self, metadata: Metadata, *, draw: int = 0, temperature: float = 0.0) -> Decision:
        """One decision. `draw` and `temperature` are for samples of a router; a decision in earnest leaves both at 0."""
        if (ruled := hard_rule(metadata)) is not None:
            return ruled
        options = {"temperature": temperature, "max_tokens": self.max_tokens, **self._format(), **self.options}
        return self._understand(metadata, await self.endpoint.chat(messages(metadata, self.style), draw=draw, **options))

    async def ask_all(self, many: Sequence[Metadata]) -> list[Decision]:
        """Decisions in order, as many calls at a time as the endpoint allows."""
        return list(await asyncio.gather(*map(self.ask, many)))

    async def samples(self, metadata: Metadata, draws: int, *, temperature: float = 1.0) -> list[Decision]:
        """Several draws on one question, for any-of-N with its coin control and for votes (see `labels`)."""
        return list(await asyncio.gather(*(self.ask(metadata, draw=n, temperature=temperature) for n in range(draws))))

    def _format(self) -> dict[str, Any]:
        if not self.structured:
            return {}
        schema = (Answer if self.style == "guideline" else BareAnswer).model_json_schema()
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "route", "schema": schema}}}

    def _understand(self, metadata: Metadata, reply: Reply) -> Decision:
        account = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens, "cost": reply.cost, "cached": reply.cached}
        spent = 0.0 if reply.cached else float(reply.prompt_tokens or 0)
        if reply.failure:
            why = f"The router gave no reply ({reply.failure}); RAG is the route where nothing is known."
            return decision(metadata, 0.0, (why,), "fallback", confidence=0.0, cost=spent, trace={"read": "no reply", **account})
        found = read_reply(reply.text, self.style)
        trace = {"read": found.how, "answer": found.answer, **account}
        if found.parse_failed:
            why = "The router's reply names no route; RAG is the route where nothing is known."
            return decision(metadata, 0.0, (why,), "fallback", confidence=0.0, cost=spent, trace=trace)
        sure = float(found.answer.get("confidence", 0.5))
        to_lc = found.route is Route.LC
        lc = 0.5 + sure / 2 if to_lc else 0.5 - sure / 2
        said = found.answer.get("rationale") or f"The router names {found.route.value} (read by {found.how})."
        # a confidence of 0 must not turn the route around: the threshold lies on the side of the route that was named
        return decision(metadata, lc, (said,), "model", threshold=0.5 if not to_lc else 0.0, confidence=sure, cost=spent, trace=trace)
