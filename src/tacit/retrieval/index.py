"""An index of papers: made, added to, taken from, as one atomic step each; only new and changed papers are encoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from tacit.core.progress import Reporter
from tacit.mistakes import choice
from tacit.retrieval.dense import KINDS, Nearest, Passages, encode, joined, passage_words
from tacit.retrieval.encoder import Encoder, Vectors, same_model
from tacit.retrieval.lexical import BM25, tokens
from tacit.retrieval.papers import Paper, by_id
from tacit.retrieval.store import Store, StoreError

FORMAT = 2
ABOUT, PAPERS, VECTORS, OWNERS, PROBE, GRAPH = "about.json", "papers.jsonl", "vectors.npy", "owners.npy", "probe.npy", "graph.faiss"


@dataclass(frozen=True, slots=True)
class Dense:
    """The half of an index that is searched by meaning: which model made it, how, and what it made."""

    model: str
    facets: tuple[str, ...]
    kind: str
    words: int
    probe: Vectors
    nearest: Nearest

    def check(self, encoder: Encoder) -> Encoder:
        """Raises ValueError when the encoder is not the model that made the vectors."""
        if not same_model(self.probe, encoder.probe()):
            raise ValueError(
                f"the index was made with {self.model}, and {encoder.name} gives other vectors for the same texts; "
                "name the model of the index with --model, or make the index anew"
            )
        return encoder


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that one generation of an index holds."""

    papers: list[Paper]
    bm25: BM25
    dense: Dense | None

    def row(self, name: str) -> int:
        """Raises ValueError for an id that is not in the index."""
        for row, paper in enumerate(self.papers):
            if paper.id == name:
                return row
        raise ValueError(choice("the paper", name, [p.id for p in self.papers]) if len(self.papers) < 10 else f"the index has no paper {name!r}")


@dataclass(frozen=True, slots=True)
class Changes:
    """What a write did to the papers of an index, and how many it now has."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    total: int = 0


def read(folder: str | Path) -> Contents:
    """The index in a folder. Raises StoreError when there is none or it is damaged."""
    return Store(folder).read(_read)


def free(folder: str | Path, kind: str = "flat", force: bool = False) -> Store:
    """Where an index can be made. Raises ValueError when one is there already (unless forced), something else is, or `kind` is unknown."""
    if kind not in KINDS:
        raise ValueError(choice("--ann", kind, list(KINDS)))
    store = Store(folder)
    if store.exists() and not force:
        raise StoreError(f"{folder} already is an index; add to it with: tacit search add, or replace it with --force")
    store.refuse_strangers()
    return store


def existing(folder: str | Path) -> Store:
    """Where an index is. Raises StoreError when there is none."""
    store = Store(folder)
    store.current()
    return store


def build(
    folder: str | Path,
    papers: Sequence[Paper],
    encoder: Encoder | None = None,
    *,
    kind: str = "flat",
    force: bool = False,
    reporter: Reporter | None = None,
) -> Changes:
    """Makes an index. Raises ValueError as `free` does."""
    store = free(folder, kind, force)
    with store.writing():
        dense = None
        if encoder is not None:
            words = passage_words(encoder)
            held = joined(encode(encoder, papers, words, reporter))
            dense = Dense(encoder.name, encoder.facets, kind, words, encoder.probe(), Nearest.build(held, kind))
        store.publish(_writer(Contents(list(papers), _bm25(papers), dense)))
    return Changes(added=len(papers), total=len(papers))


def add(folder: str | Path, papers: Sequence[Paper], load: Callable[[str], Encoder] = Encoder.load, *, reporter: Reporter | None = None) -> Changes:
    """Adds papers; one whose id is there takes its place when its text differs. `load` gives the encoder from the name in the index.

    Raises ValueError when it is another model.
    """
    store = existing(folder)
    with store.writing():
        old = store.read(_read)
        known, new = by_id(old.papers), by_id(papers)
        fresh = [p for p in new.values() if p.id not in known]
        changed = [p for p in new.values() if p.id in known and _text(known[p.id]) != _text(p)]
        changes = Changes(len(fresh), len(changed), len(new) - len(fresh) - len(changed), total=len(known) + len(fresh))
        if fresh or changed:
            replaced = by_id(changed)
            after = [*(replaced.get(p.id, p) for p in old.papers), *fresh]
            store.publish(_writer(Contents(after, _bm25(after), _grown(old, after, load, reporter) if old.dense else None)))
    return changes


def delete(folder: str | Path, names: Sequence[str]) -> Changes:
    """Takes papers out. Raises ValueError, and takes none, when one of them is not there or none would remain."""
    store = existing(folder)
    with store.writing():
        old = store.read(_read)
        gone = {old.row(name) for name in names}
        rows = [row for row in range(len(old.papers)) if row not in gone]
        if not rows:
            raise ValueError(f"that would leave no paper in {folder}; remove the folder instead")
        after, dense = [old.papers[row] for row in rows], old.dense
        if dense is not None:
            held = joined([dense.nearest.held.of(row) for row in rows])
            dense = replace(dense, nearest=Nearest.build(held, dense.kind))
        store.publish(_writer(Contents(after, _bm25(after), dense)))
    return Changes(deleted=len(gone), total=len(after))


def _text(paper: Paper) -> tuple[str, str]:
    return paper.title, paper.text


def _bm25(papers: Sequence[Paper]) -> BM25:
    return BM25([tokens(paper.whole) for paper in papers])


def _grown(old: Contents, after: Sequence[Paper], load: Callable[[str], Encoder], reporter: Reporter | None) -> Dense:
    """Vectors of papers that stayed are kept; papers stand in the old order, new ones at the end."""
    dense = old.dense
    assert dense is not None
    encoder = dense.check(load(dense.model))
    stale = [row for row, paper in enumerate(after) if row >= len(old.papers) or _text(old.papers[row]) != _text(paper)]
    fresh = dict(zip(stale, encode(encoder, [after[row] for row in stale], dense.words, reporter)))
    held = joined([fresh[row] if row in fresh else dense.nearest.held.of(row) for row in range(len(after))])
    only_new = stale[0] >= len(old.papers)
    return replace(dense, nearest=dense.nearest.grown(held) if only_new else Nearest.build(held, dense.kind))


def _writer(contents: Contents) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        dense = contents.dense
        about = {
            "format": FORMAT,
            "model": dense.model if dense else None,
            "facets": dense.facets if dense else (),
            "kind": dense.kind if dense else None,
            "words": dense.words if dense else 0,
        }
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        with (folder / PAPERS).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(paper)) + "\n" for paper in contents.papers)
        contents.bm25.save(folder)
        if dense is not None:
            np.save(folder / VECTORS, dense.nearest.held.vectors)
            np.save(folder / OWNERS, dense.nearest.held.owners)
            np.save(folder / PROBE, dense.probe)
            if dense.kind == "hnsw":
                dense.nearest.save(folder / GRAPH)

    return write


def _read(folder: Path) -> Contents:
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["format"] != FORMAT:
        raise StoreError(f"{folder} has format {about['format']}, this version of tacit reads format {FORMAT}; make the index anew, with --force")
    with (folder / PAPERS).open(encoding="utf-8") as file:
        papers = [Paper(**json.loads(line)) for line in file]
    dense = None
    if about["model"] is not None:
        held = Passages(np.load(folder / VECTORS), np.load(folder / OWNERS))
        nearest = Nearest.open(held, about["kind"], folder / GRAPH)
        dense = Dense(about["model"], tuple(about["facets"]), about["kind"], about["words"], np.load(folder / PROBE), nearest)
    return Contents(papers, BM25.open(folder, len(papers)), dense)
