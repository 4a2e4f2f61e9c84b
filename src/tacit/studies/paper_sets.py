"""What the study `unifar` trains on and measures with: public papers, roles of sentences, questions, sets of queries with judgements.

Texts of CSFCube and DORIS-MAE are among the papers that models are made from; their queries, judgements and labels are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tacit.retrieval import dev
from tacit.retrieval.benchmarks import Benchmark, csfcube, doris_mae
from tacit.retrieval.pairs import Document
from tacit.retrieval.scientific import scientific
from tacit.tasks.data import read_set


@dataclass(frozen=True, slots=True)
class Material:
    """`questions`: each with the paper that answers it. `labelled`: rows of `sentences` and their `labels`, by split. `sets`: the queries that are
    reported. `dev`: the held-out ones that everything is chosen by, of `papers` and of `questions`."""

    papers: tuple[Document, ...]
    questions: tuple[tuple[str, str], ...]
    labelled: Mapping[str, Sequence[Mapping[str, Any]]]
    sets: Mapping[str, Benchmark]
    dev: Mapping[str, Benchmark]


@lru_cache(maxsize=1)
def public() -> Material:
    """Read once in a process. Raises DataError where a set is not there.

    Held out: 200 papers of SPECTER's triplets, with the papers that they cite among 400; 619 summaries of SciTLDR, dev; CSAbstruct, dev.
    """
    found = scientific()
    labelled = {name: read_set(f"csabstruct/{name}.jsonl.gz") for name in ("dev", "test")}
    return Material(
        papers=found.documents,
        questions=found.questions,
        labelled={"train": found.labelled_rows, **labelled},
        sets={"csfcube": csfcube(), "dorismae": doris_mae()},
        dev={"papers": dev.specter(), "questions": dev.tldr()},
    )
