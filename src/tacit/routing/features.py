"""Metadata as numbers, for routers that learn. Ten-odd cheap facts; the head of a document is not among them, so no text in it can move a route."""

from __future__ import annotations

from math import log2

from tacit.routing import cues
from tacit.routing.decision import Metadata

LOOKED_AT = 2000  # characters of a question

WORDINGS = {
    "compares": (cues.COMPARES, "it compares or relates"),
    "whole": (cues.WHOLE, "it asks about change or the whole"),
    "looks_up": (cues.LOOKS_UP, "it asks for a name, time or amount"),
    "explains": (cues.EXPLAINS, "it asks for reasons or effects"),
    "absent": (cues.ABSENT, "it asks for more detail than documents tend to give"),
    "numbered": (cues.NUMBERED, "it holds a number"),
    "several": (cues.SEVERAL, "it names several documents"),
}
DESCRIBED = {name: said for name, (_, said) in WORDINGS.items()} | {
    "words": "the length of the question",
    "names": "the names in the question",
    "book": "the document is a book",
    "financial": "the document is a financial report",
    "paper": "the document is a paper",
    "length": "the length of the document",
    "how": "it begins with how",
    "what": "it begins with what",
    "why": "it begins with why",
}
NAMES = tuple(DESCRIBED)
TYPES = ("book", "financial", "paper")


def features(metadata: Metadata) -> list[float]:
    """Values in the order of NAMES. Lengths are logarithms to base 2, of the document relative to 32,768 tokens and held within a factor of 8."""
    question = metadata.question[:LOOKED_AT]
    first = question.lower()
    return [
        *(float(bool(pattern.search(question))) for pattern, _ in WORDINGS.values()),
        log2(max(1, len(question.split()))),
        float(min(5, len(cues.NAMES.findall(question)))),
        *(float(metadata.doc_type == name) for name in TYPES),
        min(3.0, max(-3.0, log2(max(1, metadata.doc_tokens) / 32768))),
        *(float(first.startswith(word)) for word in ("how", "what", "why")),
    ]
