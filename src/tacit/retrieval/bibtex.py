"""Entries of a BibTeX file: key and fields, with LaTeX accents and braces resolved as far as a search needs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

ENTRY = re.compile(r"@\s*(\w+)\s*([{(])")
FIELD = re.compile(r"\s*([\w:.+-]+)\s*=\s*")
ACCENTS = {
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", "=": "\u0304", "u": "\u0306", ".": "\u0307", '"': "\u0308", "r": "\u030a",
    "H": "\u030b", "v": "\u030c", "d": "\u0323", "c": "\u0327", "k": "\u0328",
}  # fmt: skip
LETTERS = {"ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "aa": "å", "AA": "Å", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "i": "i", "j": "j"}
MONTHS = {m[:3].lower(): m for m in ("January February March April May June July August September October November December".split())}  # noqa: SIM905


def entries(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, lower-case field → plain text) of every entry, in the order of the file. What is not an entry is a comment, as for BibTeX.

    An entry that is never closed ends where the next one begins, or with the file.
    """
    strings: dict[str, str] = dict(MONTHS)
    starts = [m for m in ENTRY.finditer(text) if m[1].lower() != "comment"]
    for n, start in enumerate(starts):
        limit = starts[n + 1].start() if n + 1 < len(starts) else len(text)
        kind, place = start[1].lower(), start.end()
        if kind == "preamble":
            continue
        if kind == "string":
            strings |= dict(_fields(text, place, limit, strings))
            continue
        comma = text.find(",", place, limit)
        if comma >= 0 and (key := text[place:comma].strip()):
            yield key, {name: plain(value) for name, value in _fields(text, comma + 1, limit, strings)}


def _fields(text: str, place: int, limit: int, strings: dict[str, str]) -> Iterator[tuple[str, str]]:
    while (field := FIELD.match(text, place, limit)) is not None:
        value, place = _value(text, field.end(), limit, strings)
        yield field[1].lower(), value
        comma = re.compile(r"\s*,").match(text, place, limit)
        if comma is None:
            return
        place = comma.end()


def _value(text: str, place: int, limit: int, strings: dict[str, str]) -> tuple[str, int]:
    """A value in braces or quotes, a number or an abbreviation, or several joined by #; and the place after it."""
    parts = []
    while place < limit:
        if text[place] in '{"':
            end = _closing(text, place, limit)
            parts.append(text[place + 1 : end])
            place = min(end + 1, limit)
        else:
            word = re.compile(r"[^\s,#{}()]*").match(text, place, limit)
            assert word is not None
            parts.append(strings.get(word[0].lower(), word[0]))
            place = word.end()
        joined = re.compile(r"\s*#\s*").match(text, place, limit)
        if joined is None:
            break
        place = joined.end()
    return "".join(parts), place


def _closing(text: str, place: int, limit: int) -> int:
    """Place of the brace or quote that closes the one at `place`; `limit` when none does."""
    wanted, depth = ("}" if text[place] == "{" else '"'), 0
    for n in range(place + 1, limit):
        if text[n] == wanted and depth == 0:
            return n
        if text[n - 1] != "\\":
            depth += {"{": 1, "}": -1}.get(text[n], 0)
    return limit


def plain(value: str) -> str:
    """A field without LaTeX: accents composed, letters such as \\ss spelt, braces, $ and other commands gone."""
    accent = r"\\(?:([`'^~=.\"])\s*|([uvHrdck])(?:\s+|(?=\{)))\{?\\?(\w)\}?"
    value = re.sub(accent, lambda m: m[3] + ACCENTS[m[1] or m[2]], value)
    value = re.sub(r"\\([A-Za-z]+)\s*", lambda m: LETTERS.get(m[1], ""), value)
    value = re.sub(r"\\([&%#_$])", r"\1", value).replace("--", "–").replace("~", " ")
    return unicodedata.normalize("NFC", " ".join(re.sub(r"[{}$]", "", value).split()))
