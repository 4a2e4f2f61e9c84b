"""Routers to compare with: both constants, chance, one line of keywords, Self-Route, and the oracle that has seen the scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from tacit.routing import cues
from tacit.routing.decision import Decision, Metadata, decision
from tacit.routing.refusal import refusal_rule
from tacit.routing.table import Record


class Always:
    """One route for all."""

    def __init__(self, lc: bool):
        self.lc, self.name = lc, "always LC" if lc else "always RAG"

    def decide(self, metadata: Metadata) -> Decision:
        return decision(metadata, float(self.lc), (f"The route is {self.name}.",), "constant")


class Random:
    """Long context at `rate`, by a hash of seed, question and id: the same question gets the same route, in whatever order."""

    def __init__(self, rate: float, seed: int = 0):
        if not 0 <= rate <= 1:
            raise ValueError(f"the rate of long context lies between 0 and 1, not at {rate}")
        self.rate, self.seed, self.name = rate, seed, f"random {rate:.2f}"

    def decide(self, metadata: Metadata) -> Decision:
        told = repr((self.seed, metadata.id, metadata.question)).encode("utf-8", "replace")
        draw = int.from_bytes(hashlib.sha256(told).digest()[:8]) / 2**64
        return decision(metadata, float(draw < self.rate), (f"By chance, long context at rate {self.rate:.2f}.",), "chance", confidence=0.5)


class Keywords:
    """Long context where the question has wording of comparison or of the whole. Source: section 7.3 of the specification."""

    name = "keywords"

    def decide(self, metadata: Metadata) -> Decision:
        word = cues.found(cues.KEYWORD, metadata.question)
        why = f"The question says '{word}'." if word else "The question has no wording of comparison or of the whole."
        return decision(metadata, float(bool(word)), (why,), "rule", confidence=0.5)


class Oracle:
    """The ideal label of recorded questions, for the bound that no router exceeds. Raises KeyError for a question that was not recorded."""

    name = "oracle"

    def __init__(self, records: Iterable[Record]):
        self._ideal = {(r.answer_model, r.qid): r.lc_score > r.rag_score for r in records}

    def decide(self, metadata: Metadata) -> Decision:
        to_lc = self._ideal[metadata.setting.answer_model, metadata.id]
        return decision(
            metadata, float(to_lc), ("Its answer is known to be better." if to_lc else "Long context is known not to be better.",), "oracle"
        )


class SelfRoute:
    """Answers by RAG first, and reads everything when that answer refuses. Source: 2407.16833; refusals in free text [inferred].

    `answer(metadata)` gives the RAG answer. Its reason names the rule that found the refusal, and its cost holds both answers.
    """

    name = "Self-Route"

    def __init__(self, answer: Callable[[Metadata], str], refusal: Callable[[str], str | None] = refusal_rule):
        self.answer, self.refusal = answer, refusal

    def decide(self, metadata: Metadata) -> Decision:
        rule = self.refusal(self.answer(metadata))
        why = f"The answer by RAG refuses (rule '{rule}')." if rule else "The answer by RAG does not refuse."
        return decision(
            metadata, float(rule is not None), (why,), f"refusal: {rule}" if rule else "answer", cost=metadata.costs()[0] if rule else 0.0
        )


def recorded_self_route(records: Iterable[Record]) -> SelfRoute:
    """Self-Route replayed from column rag_refused, where the recorded answer by RAG stands in for its first step."""
    refused = {(r.answer_model, r.qid): bool(r.rag_refused) for r in records}
    replay = SelfRoute(lambda m: "unanswerable" if refused[m.setting.answer_model, m.id] else "answered")
    replay.refusal = lambda told: "recorded" if told == "unanswerable" else None
    return replay
