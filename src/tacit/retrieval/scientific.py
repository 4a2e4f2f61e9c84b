"""The papers that this library's own models are made from: public sets below TACIT_DATA, as texts. What is held out or judged is not read.

Not here: the triplets of SPECTER and the dev and test splits of SciTLDR, which choose between models; the queries and judgements of CSFCube and
DORIS-MAE, which the result is told by; the test split of CSAbstruct; clicks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tacit.retrieval.benchmarks import FACETS
from tacit.retrieval.pairs import Document, letters, of_labelled
from tacit.retrieval.sentences import sentences
from tacit.tasks.data import read_set


@dataclass(frozen=True, slots=True)
class Scientific:
    """What `Pairs` takes, and `labelled_rows` for `Teacher.fit`: the training split of CSAbstruct, which `labelled` are the documents of."""

    documents: tuple[Document, ...]
    questions: tuple[tuple[str, str], ...]
    labelled: tuple[Document, ...]
    labelled_rows: tuple[Mapping[str, Any], ...]


def scientific(facets: Sequence[str] = FACETS) -> Scientific:
    """About 12,000 abstracts; summaries of SciTLDR and questions of PubMedQA (train) with theirs. Raises DataError where a set is not there.

    Papers of the held-out sets that another set has too are left out of it: by title, or by text.
    """
    roles, tldr, asked = _rows("csabstruct/train"), _rows("scitldr/train"), _rows("pubmedqa/train")
    labelled = of_labelled(roles, facets)
    fields = [(f"fos:{r['corpus_id']}", r, next(iter(r["labels_text"]), "")) for r in _rows("scirepeval_sample/fos_small")]
    fields += [(f"mesh:{r['corpus_id']}", r, r["descriptor"]) for r in _rows("scirepeval_sample/mesh_small")]
    found = {c["corpus_id"]: c for r in _rows("scirepeval_sample/search") for c in r["candidates"]}
    documents = [
        *(Document(f"csfcube:{r['paper_id']}", r["title"], _clean(r["abstract"])) for r in _rows("csfcube/corpus")),
        *(Document(f"dorismae:{r['doc_id']}", "", _cut(r["abstract"])) for r in _rows("dorismae_dev/corpus")),
        *(Document(f"scitldr:{r['paper_id']}", r["title"], _clean(r["source"])) for r in tldr),
        *(Document(f"pubmedqa:{r['pmid']}", "", tuple(s for part in r["CONTEXTS"] for s in _cut(part))) for r in asked),
        *(Document(f"search:{name}", c["title"] or "", _cut(c["abstract"])) for name, c in found.items()),
        *(Document(name, r["title"] or "", _cut(r["abstract"]), field=field) for name, r, field in fields),
        *labelled,
    ]
    titles, texts = _held_out()
    kept = {d.id: d for d in documents if d.sentences and letters(d.title) not in titles and letters(" ".join(d.sentences)) not in texts}
    questions = [(r["target"][0], f"scitldr:{r['paper_id']}") for r in tldr] + [(r["QUESTION"], f"pubmedqa:{r['pmid']}") for r in asked]
    return Scientific(tuple(kept.values()), tuple(q for q in questions if q[1] in kept), tuple(labelled), tuple(roles))


def _held_out() -> tuple[set[str], set[str]]:
    """Letters of titles and texts of what chooses between models."""
    triplets = [r[role] for r in _rows("scirepeval_sample/specter_small") for role in ("query", "pos", "neg")]
    summaries = [r for part in ("dev", "test") for r in _rows(f"scitldr/{part}")]
    titles = {letters(r["title"] or "") for r in (*triplets, *summaries)}
    texts = {letters(r["abstract"] or "") for r in triplets} | {letters(" ".join(r["source"])) for r in summaries}
    return titles - {""}, texts - {""}


def _clean(group: Sequence[str]) -> tuple[str, ...]:
    return tuple(s for s in (" ".join(s.split()) for s in group) if s)


def _cut(text: str | None) -> tuple[str, ...]:
    return tuple(sentences(text or ""))


def _rows(name: str) -> list[dict[str, Any]]:
    return read_set(f"{name}.jsonl.gz")
