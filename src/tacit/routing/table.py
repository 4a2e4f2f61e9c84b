"""The recorded table: one line a question, answered by both routes once, with scores and costs. Routers are evaluated and calibrated on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit.routing.decision import UNKNOWN, Metadata, Setting, Strength
from tacit.tasks.data import DataError, read_jsonl


class Record(BaseModel):
    """A question, what is known before retrieval, and what both routes gave. Source: section 7.5 of the specification."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    qid: str = Field(description="name of the question, unique for an answerer")
    doc_id: str = Field(description="its document: what splits and the bootstrap keep together")
    question: str
    doc_tokens: int = Field(gt=0)
    rag_score: float = Field(description="quality of the answer by RAG; more is better")
    lc_score: float = Field(description="quality of the answer by long context, on the same scale; 0 where it failed")
    rag_cost: float = Field(ge=0, description="tokens, or money; in one unit for all")
    lc_cost: float = Field(ge=0)
    rag_refused: bool | None = Field(None, description="whether the RAG answer refused: what Self-Route goes by; absent: no Self-Route")
    doc_type: str = UNKNOWN
    doc_title: str = UNKNOWN
    head: str = ""
    task: str = UNKNOWN
    answer_model: str = UNKNOWN
    strength: Strength = "unknown"
    window: int | None = Field(None, description="context window of the answerer in tokens")

    def metadata(self, *, blind: bool = True) -> Metadata:
        """What a router may see of it; `blind` hides the task, which may give away that there is no answer."""
        setting = Setting(answer_model=self.answer_model, strength=self.strength, window=self.window)
        task = UNKNOWN if blind else self.task
        return Metadata(self.question, self.doc_tokens, self.doc_title, self.doc_type, self.head, task, setting, self.qid)


def read_table(path: str | Path) -> list[Record]:
    """The records of a JSON-lines file, .gz or not. Raises DataError with file, line and column for the first that is wrong or there twice."""
    found, seen = list[Record](), dict[tuple[str, str], int]()
    for line, row in read_jsonl(path):
        try:
            record = Record.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{path}, line {line}: column {'.'.join(map(str, first['loc']))!r}: {first['msg'].lower()}") from None
        before = seen.setdefault((record.answer_model, record.qid), line)
        if before != line:
            raise DataError(f"{path}, line {line}: question {record.qid!r} of {record.answer_model!r} is already on line {before}; keep one")
        found.append(record)
    return found


def write_table(records: Iterable[Record], path: str | Path) -> None:
    Path(path).write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")


def columns(records: Sequence[Record], *names: str) -> list[NDArray[np.float64]]:
    """Columns of numbers (n,), one array each."""
    return [np.array([getattr(r, name) for r in records], np.float64) for name in names]
