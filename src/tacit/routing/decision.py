"""What a router is told, what it answers, and the two decisions that need no router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

UNKNOWN = "unknown"
Strength = Literal["weak", "medium", "strong", "unknown"]


class Route(StrEnum):
    RAG = "RAG"
    LC = "LONG_CONTEXT"


@dataclass(frozen=True, slots=True)
class Setting:
    """Who answers, and how retrieval is set up; sizes in tokens. Defaults: the paper's retrieval, as digests report it; `reserve` [inferred]."""

    answer_model: str = UNKNOWN
    strength: Strength = "unknown"  # how well the model uses a long input
    window: int | None = None  # context window; None: not known, and then taken to suffice
    reserve: int = 1024  # kept free for the prompt around the document and the answer
    chunk_size: int = 600
    overlap: int = 100
    chunks: int = 5

    @property
    def budget(self) -> int:
        """Tokens that retrieval hands over."""
        return self.chunks * self.chunk_size


@dataclass(frozen=True, slots=True)
class Metadata:
    """All that a router may know: question and document in outline, never a retrieved passage, never text beyond the head."""

    question: str
    doc_tokens: int
    doc_title: str = UNKNOWN
    doc_type: str = UNKNOWN
    doc_head: str = ""
    task: str = UNKNOWN  # unknown is task-blind
    setting: Setting = field(default_factory=Setting)
    id: str = ""  # of a recorded question; no router that ships reads it, only the oracle and simulations do

    def costs(self) -> tuple[float, float]:
        """Expected input tokens of an answer by (RAG, long context)."""
        question = len(self.question.encode()) / 4
        return min(self.setting.budget, self.doc_tokens) + question + PROMPT, self.doc_tokens + question + PROMPT


PROMPT = 75  # tokens of instructions around a question


@dataclass(frozen=True, slots=True)
class Decision:
    """A route and why. `confidence` is in the route taken, 0 to 1; `lc` is the router's score for long context, by which a threshold may be moved."""

    route: Route
    reasons: tuple[str, ...]
    confidence: float
    expected_cost: float  # input tokens, what the router itself read included
    by: str  # "hard rule", "rule", "model", "fallback", ...
    lc: float
    trace: Mapping[str, Any] = field(default_factory=dict)

    @property
    def to_lc(self) -> bool:
        return self.route is Route.LC

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"route": self.route.value, "reasons": list(self.reasons), "trace": dict(self.trace)}


class Router(Protocol):
    """Decides a route from metadata."""

    name: str

    def decide(self, metadata: Metadata) -> Decision: ...


def decision(
    metadata: Metadata,
    lc: float,
    reasons: tuple[str, ...],
    by: str,
    *,
    threshold: float = 0.5,
    confidence: float | None = None,
    cost: float = 0.0,
    trace: Mapping[str, Any] | None = None,
) -> Decision:
    """Long context where lc > threshold: at equality RAG. `cost` is what was spent on deciding."""
    to_lc = lc > threshold
    rag_cost, lc_cost = metadata.costs()
    sure = max(lc, 1 - lc) if confidence is None else confidence
    return Decision(Route.LC if to_lc else Route.RAG, reasons, sure, cost + (lc_cost if to_lc else rag_cost), by, lc, trace or {})


def hard_rule(metadata: Metadata) -> Decision | None:
    """The decision where there is nothing to weigh: the document exceeds the window (RAG), or retrieval would hand over all of it (long context).

    None otherwise. Source: sections 2.5 and 2.11 of the specification [inferred].
    """
    setting = metadata.setting
    if setting.window is not None and metadata.doc_tokens + setting.reserve > setting.window:
        return decision(
            metadata,
            0.0,
            (f"The document has {metadata.doc_tokens:,} tokens; with {setting.reserve:,} in reserve it exceeds the window of {setting.window:,}.",),
            "hard rule",
        )
    if metadata.doc_tokens <= setting.budget:
        why = f"The document has {metadata.doc_tokens:,} tokens, no more than retrieval would hand over ({setting.budget:,}): read it whole."
        return decision(metadata, 1.0, (why,), "hard rule")
    return None
