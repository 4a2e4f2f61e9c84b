"""LongBench-v2 (2412.15204) as a recorded table: its questions in the published format, and the answers of one model by RAG and by long context.

Expects data.json (or .jsonl) of `THUDM/LongBench-v2`, one object a question with _id, domain, sub_domain, question, choice_A to choice_D, answer
and context, and two files that the benchmark's own script writes, MODEL_rag_N.jsonl and MODEL.jsonl, one object a line with _id and pred. Neither is
shipped here. Source: section 3.2 of the specification.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tacit.routing.decision import PROMPT, Setting, Strength
from tacit.routing.table import Record
from tacit.tasks.data import DataError, read_jsonl

FIELDS = ("_id", "domain", "sub_domain", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer", "context")
LETTERS = ("A", "B", "C", "D")
HEAD = 800  # characters of a head: 200 tokens
GUESS = 0.25  # of an answer without a letter, where such answers are credited with what guessing would give


def table(
    data: str | Path,
    rag: str | Path,
    lc: str | Path,
    *,
    answerer: str,
    strength: Strength = "unknown",
    window: int | None = None,
    chunks: int = 5,
    credit_guess: bool = False,
) -> list[Record]:
    """The questions that both files answer, in the order of `data`. Score 1 for the right letter, else 0; an answer without a letter counts as wrong,
    or as GUESS with `credit_guess`. Questions about the same text share a document. Lengths are bytes / 4.

    Raises DataError naming file, line or question, and field, for what is not in the published format, and when no question has both answers.
    """
    questions = {str(row["_id"]): row for row in _questions(Path(data))}
    by_rag, by_lc = (
        {name: _score(letter, questions[name]["answer"], credit_guess) for name, letter in _letters(path, questions)} for path in (rag, lc)
    )
    setting = Setting(answerer, strength, window, chunks=chunks)
    both = [name for name in questions if name in by_rag and name in by_lc]
    if not both:
        raise DataError(f"{rag} and {lc} have no question of {data} in common; they must come from runs on it")
    return [_record(questions[name], setting, by_rag[name], by_lc[name]) for name in both]


def _questions(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file; it is data.json of the data set THUDM/LongBench-v2") from None
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from None
        if not isinstance(rows, list):
            raise DataError(f"{path} must hold a list of questions, not {type(rows).__name__}")
    else:
        rows = [row for _, row in read_jsonl(path)]
    for number, row in enumerate(rows, 1):
        missing = [name for name in FIELDS if not isinstance(row, dict) or not isinstance(row.get(name), str)]
        if missing:
            raise DataError(f"{path}, question {number}: {missing[0]!r} is not there, or is no text; the format is that of THUDM/LongBench-v2")
        yield row


def _letters(path: str | Path, known: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    for line, row in read_jsonl(path):
        name, letter = str(row.get("_id")), row.get("pred")
        if name not in known:
            raise DataError(f"{path}, line {line}: no question has the _id {name!r}")
        if "pred" not in row or (letter is not None and letter not in LETTERS):
            raise DataError(f"{path}, line {line}: 'pred' is one of {', '.join(LETTERS)} or null, not {letter!r}")
        yield name, letter


def _score(letter: str | None, answer: str, credit_guess: bool) -> float:
    return GUESS * credit_guess if letter is None else float(letter == answer)


def _record(row: Mapping[str, Any], setting: Setting, rag: float, lc: float) -> Record:
    context = row["context"]
    tokens = max(1, len(context.encode("utf-8", "replace")) // 4)
    choices = "\n".join(f"({letter}) {row[f'choice_{letter}']}" for letter in LETTERS)
    room = tokens if setting.window is None else min(tokens, setting.window)  # the benchmark cuts the middle out of what does not fit
    return Record(
        qid=row["_id"],
        doc_id=hashlib.sha256(context.encode("utf-8", "replace")).hexdigest()[:16],
        question=f"{row['question']}\n{choices}",
        doc_type=row["sub_domain"],
        doc_tokens=tokens,
        head=context[:HEAD],
        task=row["domain"],
        answer_model=setting.answer_model,
        strength=setting.strength,
        window=None,  # routers may weigh a text that is cut as well
        rag_score=rag,
        lc_score=lc,
        rag_cost=min(setting.budget, tokens) + PROMPT,
        lc_cost=room + PROMPT,
        rag_refused=None,
    )
