"""Sentences of a text, and passages of whole sentences that an encoder can read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tacit.retrieval.lexical import UNSPACED

BOUNDARY = re.compile(r"[.!?…][\"'”’)\]]?(\s+)(?=[^\sa-z])|[。！？।॥](\s*)|(\n\s*\n)")  # the group is what lies between two sentences
NO_END = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|al|fig|figs|eq|eqs|sec|vs|cf|dr|prof|mr|ms|mrs|no|vol|pp|approx|resp)\.$", re.IGNORECASE)
CHARACTER = re.compile(rf"[{UNSPACED}]")
LONGEST = 100  # words; what has no full stop is cut all the same
SENTENCE_END = "\x1e"  # ASCII's record separator, between sentences that are known: white space to tokenisers


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space collapsed. Full stops of abbreviations end none; none is longer than 100 words."""
    found, start = [], 0
    for boundary in BOUNDARY.finditer(text):
        group = boundary.lastindex or 0
        piece = text[start : boundary.start(group)]
        if "\n" not in boundary[group] and NO_END.search(piece[-12:]):
            continue
        found.append(piece)
        start = boundary.end()
    return [part for piece in (*found, text[start:]) for part in _cut(" ".join(piece.split()))]


def _cut(sentence: str) -> list[str]:
    if size(sentence) <= LONGEST:
        return [sentence] if sentence else []
    words = [part for word in sentence.split() for part in (word[i : i + LONGEST] for i in range(0, len(word), LONGEST))]
    parts, room = [[]], LONGEST
    for word in words:
        if parts[-1] and size(word) > room:
            parts.append([])
            room = LONGEST
        parts[-1].append(word)
        room -= size(word)
    return [" ".join(part) for part in parts]


def size(text: str) -> int:
    """Words of a text; in scripts without spaces every character is one."""
    if text.isascii():
        return len(text.split())
    characters = len(CHARACTER.findall(text))
    return characters + len(CHARACTER.sub(" ", text).split())


def passages(title: str, text: str, words: int) -> list[list[str]]:
    """Groups of whole sentences of a text, of at most `words` words with the title; at least one group, a sentence in each at least."""
    room, groups, filled = max(1, words - size(title)), [[]], 0
    for sentence in sentences(text):
        length = size(sentence)
        if groups[-1] and filled + length > room:
            groups.append([])
            filled = 0
        groups[-1].append(sentence)
        filled += length
    return groups


def behind(title: str, group: Sequence[str]) -> str:
    """Sentences behind a title as one text, SENTENCE_END between them. `spaced` makes it readable."""
    title = title if title.strip() else ""
    return SENTENCE_END.join([f"{title.rstrip('.')}.", *group] if title and group else [title] if title else group)


def spaced(text: str) -> str:
    """With a space where sentences are known to end."""
    return text.replace(SENTENCE_END, " ")
