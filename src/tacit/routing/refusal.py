"""Whether an answer refuses: says that the text does not tell, instead of answering.

Recorded answers come from prompts that did not offer a word for it, so refusals are detected in free text. Source: our reconstruction of the
family of phrases that section 7.2 of the specification names.
"""

from __future__ import annotations

import re
import string

LOOKED_AT = 400  # characters from the beginning; what comes later is a remark, not the answer
WORD = "unanswerable"  # what Self-Route's own prompt offers

_TELL = (
    r"(?:mention|provide|specif(?:y|ied)|discuss|state|contain|include|disclose|indicate|describe|detail|address|give|say|reveal|"
    r"identif(?:y|ied)|elaborate|cover|report|explain|clarify|offer|present|list|refer|note|define|outline|name)(?:e?d|s|ing)?"
)
_NOT = r"(?:(?:do|does|did|is|are|was|were|has|have|had|can|could|would)(?:\s?n['’]?t|\s+not)|not|never|neither|nor)"
_ADVERB = r"(?:\s+(?:\w+ly|any|been|be|ever|actually|further|in|to|the|it|have|contain|find|even))?"
_FIND = r"(?:determined?|found|find|answer|identify|locate|provide|tell|say|infer|ascertain|conclude|give)"
_MATTER = r"(?:information|mention|details?|reference|indication|evidence|data|context)"
RULES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "not told": rf"\b{_NOT}{_ADVERB}{_ADVERB}\s+{_TELL}\b",
        "no information": rf"\b(?:no|any|not enough|without|lack(?:s|ing)?(?: of)?)\s+(?:\w+\s+){{0,2}}{_MATTER}\b",
        "cannot": rf"\b(?:can\s?not|can['’]?t|could\s?n['’]?t|could not|impossible to|not possible to|unable to)\s+(?:\w+\s+){{0,2}}{_FIND}\b",
        "unable": r"\b(?:unable to|insufficient|i do(?: not|n['’]t) (?:know|have|see))\b",
        "unknown": r"\b(?:un(?:known|clear|specified|disclosed)|not (?:available|known|clear|present in|in the (?:text|paper|document|context)))\b",
    }.items()
}


def refusal_rule(answer: str) -> str | None:
    """Which rule says that `answer` refuses, or None: "unanswerable" (Self-Route's word), else the name of a family of phrases."""
    head = answer[:LOOKED_AT].replace("’", "'")
    if WORD in head.lower().translate(str.maketrans("", "", string.punctuation)):
        return WORD
    return next((name for name, pattern in RULES.items() if pattern.search(head)), None)


def refuses(answer: str) -> bool:
    return refusal_rule(answer) is not None
