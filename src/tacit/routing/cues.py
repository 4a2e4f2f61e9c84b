"""What a question gives away by its wording. Cheap, language-bound (English), and the same for every router that looks at words."""

from __future__ import annotations

import re


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b", re.IGNORECASE)


_PART = r"(?:papers?|documents?|chapters?|sections?|reports?) (?:\d+|[A-Z])"
_FACT = r"(?:name|number|date|amount|total|value|title|colou?r|year)"
_COMPARING = (r"compar\w*", r"differ\w*", "both", "versus", "between", r"contrast\w*", r"relat\w*", r"similar\w*")

COMPARES = _words(*_COMPARING, r"vs\.?", r"distinguish\w*", "respectively")
WHOLE = _words(
    r"evol\w*",
    "throughout",
    "overall",
    r"chang\w*",
    "across",
    r"summar\w*",
    r"theme\w*",
    "entire",
    "whole",
    r"main (?:idea|argument|point)\w*",
    r"trend\w*",
)
LOOKS_UP = _words("who", "when", "where", "which", "how (?:much|many|old|long|far)", rf"what (?:is|was|were|are) the (?:\w+ )?{_FACT}")
EXPLAINS = _words(
    "why",
    "how (?:do|does|did|might|could|would|can|has|have|is|was)",
    r"reason\w*",
    r"suggest\w*",
    "impl(?:y|ies)",
    r"explain\w*",
    r"infer\w*",
    "impact",
    r"effect\w*",
    r"influence\w*",
    r"affect\w*",
)
ABSENT = _words(
    "exact(?:ly)?",
    "precise(?:ly)?",
    "specific(?:ally)?",
    r"detail\w*",
    "plans?",
    "strategy",
    "strategies",
    "future",
    "next (?:fiscal )?(?:year|quarter)",
    r"expect\w*",
    r"intend\w*",
    r"ethical\w*",
    r"environmental\w*",
)  # wording that asks for more than documents tend to say
NUMBERED = re.compile(r"\d")
SEVERAL = re.compile(rf"\b{_PART}\b.*\b{_PART}\b", re.IGNORECASE)
NAMES = re.compile(r"(?<!^)(?<![.?!] )\b[A-Z][a-z]+")
KEYWORD = _words(*_COMPARING, r"evol\w*", "throughout", "overall", r"chang\w*", "across")  # the rule of section 7.3 of the specification


def found(pattern: re.Pattern[str], question: str) -> str:
    """The first words of the question that match, in lower case; empty when none do."""
    match = pattern.search(question)
    return match[0].lower() if match else ""
