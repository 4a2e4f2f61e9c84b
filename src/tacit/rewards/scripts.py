"""In which language a text is written, as far as its script can tell: Korean, Thai, Tamil, ... have one of their own, Italian has not."""

from __future__ import annotations

import unicodedata
from collections import Counter

# Language -> the scripts that its text is written in, as Unicode names characters; and the scripts that no other living language of note uses.
SCRIPTS = {
    "ar": ("ARABIC",), "bg": ("CYRILLIC",), "bn": ("BENGALI",), "de": ("LATIN",), "el": ("GREEK",), "en": ("LATIN",), "es": ("LATIN",),
    "fa": ("ARABIC",), "fi": ("LATIN",), "fr": ("LATIN",), "gu": ("GUJARATI",), "he": ("HEBREW",), "hi": ("DEVANAGARI",), "it": ("LATIN",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"), "kn": ("KANNADA",), "ko": ("HANGUL",), "ml": ("MALAYALAM",), "mr": ("DEVANAGARI",),
    "ne": ("DEVANAGARI",), "pa": ("GURMUKHI",), "pt": ("LATIN",), "ru": ("CYRILLIC",), "sw": ("LATIN",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "th": ("THAI",), "tr": ("LATIN",), "uk": ("CYRILLIC",), "ur": ("ARABIC",), "vi": ("LATIN",), "zh": ("CJK",),
}  # fmt: skip
OWN = {"el", "gu", "he", "ja", "kn", "ko", "ml", "pa", "ta", "te", "th"}
SHARE = 0.5  # of the letters that must be in a script of the language
LONGEST = 20_000  # characters that are looked at


class Unscorable(ValueError):
    """Why something cannot be judged."""


def language(text: str, language: str) -> bool:
    """Whether the text is in the language. False when most of its letters are of other scripts, True when they are of a script that is its own.

    Raises Unscorable where the script is shared (Italian or English?) or the language is not in the table: that would take a model.
    """
    if language not in SCRIPTS:
        raise Unscorable(f"the language {language!r} is not among those whose script is known")
    counts = Counter(script for c in text[:LONGEST] if c.isalpha() and (script := unicodedata.name(c, "").partition(" ")[0]))
    if sum(counts[s] for s in SCRIPTS[language]) <= SHARE * sum(counts.values()):
        return False
    if language == "ja" and not counts["HIRAGANA"] + counts["KATAKANA"]:
        return False
    if language not in OWN:
        raise Unscorable(f"whether text in this script is {language!r} takes a model to tell")
    return True
