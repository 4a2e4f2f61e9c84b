"""The answer that a completion ends on, as text: what is boxed, and which choice was taken. Linear in the length of the completion."""

from __future__ import annotations

import re
from functools import lru_cache

BOX = re.compile(r"\\f?box(?:ed)?\s{0,4}\{|\\.|[{}]", re.DOTALL)  # an escaped brace groups nothing
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s{0,4}\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """What stands in the last closed \\boxed{} (or \\fbox{}), braces inside it included: "\\boxed{\\frac{1}{2}}" -> "\\frac{1}{2}"; or None."""
    opened, found = list[tuple[int, bool]](), None
    for match in BOX.finditer(text):
        token = match[0]
        if token.endswith("{") and token != "\\{":
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, boxed = opened.pop()
            if boxed:
                found = (start, match.start())
    return text[found[0] : found[1]] if found else None


def answer_part(text: str) -> str:
    """Where to look for the answer: after the last "####", else in the last \\boxed{}, else everywhere."""
    if "####" in text:
        return text.rsplit("####", 1)[1]
    boxed = last_boxed(text)
    return text if boxed is None else boxed


def final_choice(text: str, letters: str = "ABCDE") -> str | None:
    """The letter that a completion settles on, or None.

    In the part for the answer (see `answer_part`): the letter that is all of it, the last one after "answer is" or "answer:", the one that it
    begins with as "B)", the last "(B)", the last that stands alone. An "A" in front of another word is an article, and no choice.
    """
    part = answer_part(text).strip()
    if (wrapped := WRAPPED.fullmatch(part)) is not None:
        part = wrapped[1].strip()
    whole, *others = _patterns(letters)
    if (match := whole.fullmatch(part)) is not None:
        return match[1].upper()
    for pattern in others:
        if found := pattern.findall(part):
            return found[-1]
    return None


@lru_cache
def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    one = rf"[{re.escape(letters)}]"
    return (
        re.compile(rf"[*(\[{{\s]{{0,9}}({one})[*)\]}}.:,\s]{{0,9}}", re.IGNORECASE),
        re.compile(rf"\b[Aa]nswer(?:\s{{1,4}}is|\s{{0,4}}:)\s{{0,4}}:?[\s*$]{{0,9}}(?:[Oo]ption\s)?[(\[]?({one})\b(?!['’-])"),
        re.compile(rf"\A({one})[).:]"),
        re.compile(rf"\(({one})\)"),
        re.compile(rf"(?<![\w'’-])({one})(?![\w'’-])(?!\s{{1,4}}[a-z])"),
    )
