"""Metadata of a document: title, type, length and head, from text, Markdown, HTML or PDF. What lies beyond the head is counted and let go.

Lengths are bytes of UTF-8 text / 4 unless a `count` is given: the number of tokens of a text. [inferred: the head of 200 tokens]
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tacit.core.documents import read_document
from tacit.routing.decision import UNKNOWN, Metadata, Setting

HEAD_TOKENS = 200
LONGEST_TITLE = 200  # characters
KINDS = {
    "financial": re.compile(
        r"\b(?:10-[KQ]|annual report|quarterly report|balance sheets?|form 20-F|securities and exchange|fiscal year)\b", re.IGNORECASE
    ),
    "paper": re.compile(r"\b(?:abstract|arxiv|et al\.|proceedings|introduction\s+1|keywords:|doi:)", re.IGNORECASE),
    "book": re.compile(r"\b(?:chapter (?:[ivx]+|one|1)\b|project gutenberg|a novel|prologue)", re.IGNORECASE),
}
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Outline:
    """What is kept of a document."""

    title: str
    type: str
    tokens: int
    head: str


def by_bytes(text: str) -> int:
    """Tokens of a text, taken as its bytes / 4 and at least 1."""
    return max(1, len(text.encode("utf-8", "replace")) // 4)


def head_of(text: str, tokens: int = HEAD_TOKENS) -> str:
    """The first 4 x `tokens` characters, with white space collapsed: an upper bound on what a router may see of a text."""
    return " ".join(text[: 4 * tokens].split())


def outline(path: str | Path, *, count: Count = by_bytes, head_tokens: int = HEAD_TOKENS) -> Outline:
    """Title, type, length and head of a file, told apart by its ending. Raises DocumentError when nothing can be read from it."""
    title, text = read_document(path, 4 * head_tokens)
    path = Path(path)
    return outline_text(text, title=title or path.stem, count=count, head_tokens=head_tokens)


def outline_text(text: str, *, title: str = UNKNOWN, count: Count = by_bytes, head_tokens: int = HEAD_TOKENS) -> Outline:
    """The same from text that is at hand. The type is guessed from the head alone."""
    head = head_of(text, head_tokens)
    return Outline(" ".join(title.split())[:LONGEST_TITLE], kind_of(head), count(text), head)


def kind_of(head: str) -> str:
    """financial, paper or book by the wording of the head; unknown when none of it is typical."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(head)), UNKNOWN)


def describe(question: str, document: Outline, *, task: str = UNKNOWN, setting: Setting | None = None) -> Metadata:
    """What a router may know about a question to a document."""
    return Metadata(question, document.tokens, document.title, document.type, document.head, task, setting or Setting())
