"""The text that each token adds to a completion, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what a decoder shows of a character whose bytes are not all there


def token_texts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """What every token of `ids` (T,) adds to the text, (T,); joined they are the decoded completion.

    A character spread over several tokens belongs to the last of them, a token without text (end of sequence) adds "". Each token is decoded
    with the ones before it back to the last whole character, so the cost grows with T and spaces that a tokenizer joins to a word stay.
    """
    texts: list[str] = []
    start, before = 0, ""  # ids[start:] is decoded; `before` is the part of it that was told already
    for end in range(1, len(ids) + 1):
        text = decode(list(ids[start:end]))
        if text.endswith(UNFINISHED) and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        if texts[-1]:
            start, before = end - 1, decode([ids[end - 1]])
    return texts
