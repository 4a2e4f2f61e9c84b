"""Entries of a BibTeX file: key and fields, with LaTeX accents and braces resolved as far as a search needs."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterator

ENTRY = re.compile(r"@\s*([A-Za-z]\w*)\s*[{(]")
BEGINS = re.compile(r"^[ \t]*@\s*[A-Za-z]\w*\s*\{\s*[^\s,{}()\"=#]+\s*[,=]", re.MULTILINE)  # a line that can be nothing else
MARK = re.compile(r'\\.|[{}")]', re.DOTALL)  # an escaped brace or quote is a character
FIELD = re.compile(r"\s*([\w:.+-]+)\s*=\s*")
ACCENTS = {
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", "=": "\u0304", "u": "\u0306", ".": "\u0307", '"': "\u0308", "r": "\u030a",
    "H": "\u030b", "v": "\u030c", "d": "\u0323", "c": "\u0327", "k": "\u0328",
}  # fmt: skip
LETTERS = {"ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "aa": "å", "AA": "Å", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "i": "i", "j": "j"}
MONTHS = {m[:3].lower(): m for m in ("January February March April May June July August September October November December".split())}  # noqa: SIM905


def entries(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, lower-case field → plain text) of every entry, in the order of the file. What is not an entry is a comment, as for BibTeX.

    An entry that is never closed ends at the line where the next one begins, or with the file.
    """
    strings: dict[str, str] = dict(MONTHS)
    begins, place = [m.start() for m in BEGINS.finditer(text)], 0
    while (start := ENTRY.search(text, place)) is not None:
        kind, first = start[1].lower(), start.end()
        if kind == "comment":  # for BibTeX the word alone: what it holds may be entries
            place = first
            continue
        following = bisect.bisect_left(begins, first)
        place = _closing(text, first - 1, begins[following] if following < len(begins) else len(text))
        if kind == "preamble":
            continue
        if kind == "string":
            strings |= dict(_fields(text, first, place, strings))
            continue
        comma = text.find(",", first, place)
        if comma >= 0 and (key := text[first:comma].strip()):
            yield key, {name: plain(value) for name, value in _fields(text, comma + 1, place, strings)}


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
    """Place of the brace, parenthesis or quote that closes the one at `place`; `limit` when none does."""
    wanted, depth = {"{": "}", "(": ")"}.get(text[place], '"'), 0
    place += 1
    while (mark := MARK.search(text, place, limit)) is not None:
        place = mark.end()
        if mark[0] == wanted and depth == 0:
            return mark.start()
        if mark[0] == '"' and wanted == ")" and depth == 0:  # a value, where parentheses are text
            place = _closing(text, mark.start(), limit) + 1
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
    return limit


def plain(value: str) -> str:
    """A field without LaTeX: accents composed, letters such as \\ss spelt, braces, $ and other commands gone."""
    accent = r"\\(?:([`'^~=.\"])\s*|([uvHrdck])(?:\s+|(?=\{)))\{?\\?(\w)\}?"
    value = re.sub(accent, lambda m: m[3] + ACCENTS[m[1] or m[2]], value)
    value = re.sub(r"\\([A-Za-z]+)\s*", lambda m: LETTERS.get(m[1], ""), value)
    value = re.sub(r"\\([&%#_${}])", r"\1", value).replace("--", "–").replace("~", " ")
    return unicodedata.normalize("NFC", " ".join(re.sub(r"[{}$]", "", value).split()))
