"""LaRA (2502.09977) as recorded tables: its questions, and the answers of 13 models by RAG and by long context, judged here.

Two repairs that the specification asks for: the type of a document is the folder of its question set, since the raw field gives the task away;
a missing or empty answer scores 0. Lengths are bytes / 4, for documents that are not at hand the mean of their length and type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tacit.routing.decision import Strength
from tacit.routing.judge import Item, Judge, ProxyJudge
from tacit.routing.refusal import refuses
from tacit.routing.table import Record
from tacit.tasks.data import read_set

ANSWERERS: dict[str, Strength] = {
    "gpt-4o": "strong",
    "claude-3-5-sonnet-20241022": "strong",
    "gemini-1.5-pro": "strong",
    "qwen2.5-72b-instruct": "strong",
    "gpt-4o-mini": "medium",
    "llama-3.3-70b": "medium",
    "qwen2.5-7b-instruct": "medium",
    "llama-3.1-8b": "medium",
    "llama-3.2-3b": "weak",
    "mistral-nemo": "weak",
}  # the ten that published results name, by how well they use a long input in those
FILES = ("lara/questions.jsonl.gz", "lara/predictions.jsonl.gz", "lara/documents.jsonl.gz")
MEAN_BYTES = {
    ("32k", "book"): 1_709_871 / 15,
    ("32k", "financial"): 4_429_446 / 30,
    ("32k", "paper"): 1_994_926 / 19,
    ("128k", "book"): 10_549_368 / 25,
    ("128k", "financial"): 5_035_972 / 11,
    ("128k", "paper"): 11_132_887 / 31,
}  # of the whole benchmark: total bytes / files
CUT = 127_000  # tokens; LaRA cut the middle out of longer texts
RAG_TOKENS, PROMPT_TOKENS = 3_100, 100  # section 7.4 of the specification


def tables(answerers: Sequence[str] = tuple(ANSWERERS), judge: Judge | None = None) -> dict[str, list[Record]]:
    """The recorded table of each answerer, over the same questions in the same order. Raises DataError when the data are not there."""
    judge = judge or ProxyJudge()
    questions, predictions, texts = (read_set(name) for name in FILES)
    answers = {row["id"]: row for row in predictions}
    tokens = {(row["length"], row["context_type"], row["file"]): len(row["text"].encode()) // 4 for row in texts}
    return {name: _table(name, questions, answers, tokens, judge) for name in answerers}


def _table(
    answerer: str, questions: list[dict[str, Any]], answers: dict[str, Any], tokens: dict[tuple[str, str, str], int], judge: Judge
) -> list[Record]:
    """Both answers to each question, judged together; a question is left out when one of the two could not be judged."""
    told = [(row, answers[row["id"]]["rag"].get(answerer), answers[row["id"]]["full"].get(answerer)) for row in questions]
    items = [Item(row["task"], row["question"], row["answer"], answer) for row, *both in told for answer in both]
    scores = judge.scores(items)
    rows = zip(told, scores[::2], scores[1::2])
    return [_record(row, answerer, rag, (a, b), tokens) for (row, rag, _), a, b in rows if a is not None and b is not None]


def _record(row: dict[str, Any], answerer: str, rag: object, scores: tuple[float, float], tokens: dict[tuple[str, str, str], int]) -> Record:
    place = (row["length"], row["context_type"])
    doc_tokens = tokens.get((*place, row["file"]), round(MEAN_BYTES[place] / 4))
    return Record(
        qid=row["id"],
        doc_id="/".join((*place, row["file"])),
        question=row["question"],
        doc_type=row["context_type"],
        doc_tokens=doc_tokens,
        task=row["task"],
        answer_model=answerer,
        strength=ANSWERERS.get(answerer, "unknown"),
        rag_score=scores[0],
        lc_score=scores[1],
        rag_cost=RAG_TOKENS,
        lc_cost=min(doc_tokens, CUT) + PROMPT_TOKENS,
        window=None,
        rag_refused=isinstance(rag, str) and refuses(rag),
    )
