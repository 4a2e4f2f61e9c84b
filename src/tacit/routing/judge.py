"""Is a recorded answer right? A deterministic judge that stands in for an LLM, and an LLM judge behind the same interface.

Source of the rules and thresholds: section 7.2 of the specification, which fitted those of comparison and reasoning to published grades of five
models [inferred method, measured thresholds]. It judges groups of answers well and single answers less so: use it for differences of means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tacit.routing.refusal import refuses

TASKS = ("location", "reasoning", "comp", "hallu")
LONG_ANSWER, ENOUGH_RECALL = 600, 0.5  # a refusal this long, or one that names half the gold words, is a remark beside an answer
PREFIX = 6  # letters that two words must share; inflections then agree
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
WORD = re.compile(r"[a-z][a-z'’-]*")
STOP_WORDS = frozenset(
    re.findall(
        r"[a-z]+",
        "a about after all also although an and any are as at be because been before being both but by can could did do does "
        "during each for from had has have he her him his how i if in into is it its may might more most much no not of on one "
        "only or other our over she should so some such than that the their them then there these they this those through to "
        "under up upon very was we were what when where which while who whom whose why will with would you your",
    )
)


class Item(NamedTuple):
    """An answer to be judged; what is no text, or empty, scores 0."""

    task: str
    question: str
    gold: str
    answer: object


class Judge(Protocol):
    def scores(self, items: Sequence[Item], /) -> list[float | None]:
        """Quality of each answer from 0 to 1; None where it could not be judged."""
        ...


def numbers(text: str) -> set[str]:
    """The numbers in a text, written in one way: "1,234.50" is "1234.5"."""
    found = (match[0].replace(",", "") for match in NUMBER.finditer(text))
    return {n.rstrip("0").rstrip(".") if "." in n else n for n in found}


def content(text: str) -> set[str]:
    """The first letters of every word that is no stop word."""
    return {word[:PREFIX] for word in (w.strip("'’-") for w in WORD.findall(text.lower())) if word and word not in STOP_WORDS}


def share(wanted: set[str], found: set[str]) -> float:
    return len(wanted & found) / len(wanted) if wanted else 0.0


def proxy_score(task: str, question: str, gold: str, answer: object) -> float:
    """1.0 where `answer` agrees with `gold`, else 0.0. For task "hallu", what is right is to refuse.

    With nr the share of gold numbers and rec the share of gold words (neither counts what the question says) that the answer holds:
    location nr >= .99, without gold numbers rec >= .5; comp nr >= .34 and rec >= .24, without gold numbers rec >= .4; reasoning rec >= .25, or
    nr >= .5 and rec >= .15. The specification's "else" may mean "without gold numbers" or "failing that": the reading is chosen, for reasoning and
    comp, by agreement with the published grades. Raises ValueError for another task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the proxy judge knows {', '.join(TASKS)}")
    if not isinstance(answer, str) or not answer.strip():
        return 0.0
    refused = refuses(answer)
    if task == "hallu":
        return float(refused)
    words = content(gold) - content(question)
    wanted, recall = numbers(gold) - numbers(question), share(words, content(answer))
    if not words and not wanted:
        return float(not refused)
    if refused and len(answer) < LONG_ANSWER and recall < ENOUGH_RECALL:
        return 0.0
    hit = share(wanted, numbers(answer))
    if task == "location":
        return float(hit >= 0.99 if wanted else recall >= 0.5)
    if task == "reasoning":
        return float(recall >= 0.25 or (bool(wanted) and hit >= 0.5 and recall >= 0.15))
    return float(hit >= 0.34 and recall >= 0.24 if wanted else recall >= 0.4)


class ProxyJudge:
    """`proxy_score` as a Judge."""

    def scores(self, items: Sequence[Item], /) -> list[float | None]:
        return [proxy_score(*item) for item in items]
