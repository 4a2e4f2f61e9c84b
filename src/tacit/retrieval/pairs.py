"""Pairs to train an encoder on, made of papers alone: nobody has to say which papers are alike, or which of them answers a question.

All of it is pseudo-supervision, and ours where nothing else is named. Papers like a paper:

    halves      one half of an abstract's sentences, and the other
    titles      a title, and its abstract
    neighbours  a paper, and one of its five nearest in LSA; one from rank 30 to 60 is its hard negative (bands as SciNCL has them, 2202.06671)
    facets      the same by the sentences of one facet alone: alike in that facet, and trained with its weight one-hot (FLeW's split, 2509.07531)
    fields      two papers of a field, where fields are known

Questions: one labelled sentence of a paper behind a template of its facet, taken out of the paper (inverse cloze, Lee et al. 2019, 1906.00300),
or given ones, such as summaries. The former are synthetic, and their intent is the facet of the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.retrieval.benchmarks import FACETS
from tacit.retrieval.lexical import LSA, STOP_WORDS, TfIdf
from tacit.retrieval.roles import NONE, roles_of
from tacit.retrieval.sentences import SENTENCE_END, behind

Row = dict[str, Any]
Labelled = Mapping[str, Any]  # `sentences` and their `labels`
Rng = np.random.Generator
Neighbours = NDArray[np.int64]  # (n, FAR): rows of the nearest, nearest first; -1 where there are no more
NEAR, FAR_FROM, FAR = 5, 30, 60  # ranks of positives, and of hard negatives
RANK, CHUNK = 200, 1000  # of LSA; rows that are compared at once
SENTENCES = 24  # of a labelled text that have room for a label
TEMPLATES = {
    "background": ("Which papers study the problem of {}?", "what is known about {}", "why is {} hard"),
    "method": ("Which papers use {}?", "papers that propose {}", "how to do {}"),
    "result": ("Which papers find {}?", "results on {}", "is it true that {}"),
}
KINDS = ("halves", "titles", "neighbours", "facets", "fields")


@dataclass(frozen=True, slots=True)
class Document:
    """A paper: title ("" where there is none), sentences, the facet of each (-1: none) where known, and its fields of study where known."""

    id: str
    title: str
    sentences: tuple[str, ...]
    roles: tuple[int, ...] = ()
    fields: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return behind(self.title, self.sentences)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the text that answers it."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Shares:
    """How often each kind of pair is made, relative to the others, where the corpus has any; `cloze`: the share of questions made of sentences, if
    others are given; `taught`: the share of labelled texts whose labels are the teacher's, if people labelled some."""

    halves: float = 0.25
    titles: float = 0.2
    neighbours: float = 0.25
    facets: float = 0.3
    fields: float = 0.1
    cloze: float = 0.6
    taught: float = 0.5

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 0:
                raise ValueError(f"the share of {one.name} is {getattr(self, one.name)}; shares are not negative")


@dataclass
class Pairs:
    """Papers, and what is known of them. Neighbours are looked for when it is made. Raises ValueError where no pair at all can be made."""

    documents: Sequence[Document]
    questions: Sequence[Question] = ()
    labelled: Sequence[Labelled] = ()
    shares: Shares = field(default_factory=Shares)

    def __post_init__(self) -> None:
        many = [n for n, document in enumerate(self.documents) if len(document.sentences) > 1]
        titled = [n for n, document in enumerate(self.documents) if document.title and document.sentences]
        by_field: dict[str, list[int]] = {}
        for n, document in enumerate(self.documents):
            for name in document.fields:
                by_field.setdefault(name, []).append(n)
        self._by_field = {name: rows for name, rows in by_field.items() if len(rows) > 1}
        texts = [document.text for document in self.documents]
        same = _originals(self.documents)
        self._nearest = nearest(texts, same)
        self._by_facet = [self._facet(k, same) for k in range(len(FACETS))]
        self._anchors = {
            "halves": many,
            "titles": titled,
            "neighbours": [n for n, row in enumerate(self._nearest) if row[0] >= 0],
            "facets": sorted({n for found in self._by_facet for n in found}),
            "fields": [n for n, document in enumerate(self.documents) if any(name in self._by_field for name in document.fields)],
        }
        self._cloze = [n for n in many if any(role >= 0 for role in self.documents[n].roles)]
        self._taught = [n for n, document in enumerate(self.documents) if any(role >= 0 for role in document.roles)]
        self._kinds = [kind for kind in KINDS if self._anchors[kind] and getattr(self.shares, kind) > 0]
        if not self._kinds:
            raise ValueError("no pair can be made of these papers; give more of them, with abstracts of several sentences")
        self._may = {kind: frozenset(rows) for kind, rows in self._anchors.items()}

    def _facet(self, k: int, same: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """Paper → its nearest by the sentences of facet k, for those that have some."""
        mine = [n for n, document in enumerate(self.documents) if k in document.roles]
        if len(mine) < 3:
            return {}
        texts = [" ".join(s for s, role in zip(self.documents[n].sentences, self.documents[n].roles) if role == k) for n in mine]
        rows = np.array(mine)
        found = nearest(texts, same[rows])
        return {n: np.where(near >= 0, rows[near], -1) for n, near in zip(mine, found) if near[0] >= 0}

    def rows(self, count: int, seed: int) -> list[Row]:
        """`count` rows with the columns of `losses` and their label. Row i is a function of the seed and i; in a pass over the papers each is an
        anchor once at most."""
        size = len(self.documents)
        found: list[Row] = []
        passes = 0
        while len(found) < count:
            order = np.random.default_rng((seed, 0, passes)).permutation(size)
            for place in order[: count - len(found)]:
                found.append(self._row(int(place), np.random.default_rng((seed, 1, len(found)))))
            passes += 1
        return found

    def _row(self, n: int, rng: Rng) -> Row:
        facet, anchor, positive, negative = self._pair(n, rng)
        intent, question, answer = self._question(rng)
        labelled, roles = self._labelled(rng)
        label = [facet, intent, *roles[:SENTENCES], *[NONE] * (SENTENCES - len(roles))]
        return {
            "anchor": anchor,
            "positive": positive,
            "negative": negative,
            "question": question,
            "answer": answer,
            "labelled": labelled,
            "label": label,
        }

    # --- papers like a paper ---

    def _pair(self, n: int, rng: Rng) -> tuple[int, str, str, str]:
        """(facet or -1, anchor, positive, hard negative or ""). A paper that no kind suits gives its place to a random one."""
        kinds = [kind for kind in self._kinds if n in self._may[kind]]
        if not kinds:
            kinds = [self._kinds[0]]
            n = int(rng.choice(self._anchors[kinds[0]]))
        chances = np.array([getattr(self.shares, kind) for kind in kinds])
        kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
        return getattr(self, f"_pair_of_{kind}")(n, rng)

    def _pair_of_halves(self, n: int, rng: Rng) -> tuple[int, str, str, str]:
        document = self.documents[n]
        order = rng.permutation(len(document.sentences))
        first, second = (sorted(part) for part in np.array_split(order, 2))
        return NONE, SENTENCE_END.join(_chosen(document, first)), behind(document.title, _chosen(document, second)), ""

    def _pair_of_titles(self, n: int, rng: Rng) -> tuple[int, str, str, str]:
        return NONE, self.documents[n].title, SENTENCE_END.join(self.documents[n].sentences), ""

    def _pair_of_neighbours(self, n: int, rng: Rng) -> tuple[int, str, str, str]:
        return NONE, *self._near_and_far(n, self._nearest[n], rng)

    def _pair_of_facets(self, n: int, rng: Rng) -> tuple[int, str, str, str]:
        k = int(rng.choice([k for k, found in enumerate(self._by_facet) if n in found]))
        return k, *self._near_and_far(n, self._by_facet[k][n], rng)

    def _pair_of_fields(self, n: int, rng: Rng) -> tuple[int, str, str, str]:
        name = rng.choice([name for name in self.documents[n].fields if name in self._by_field])
        other = rng.choice([m for m in self._by_field[name] if m != n])
        return NONE, self.documents[n].text, self.documents[other].text, ""

    def _near_and_far(self, n: int, found: NDArray[np.int64], rng: Rng) -> tuple[str, str, str]:
        near, far = (part[part >= 0] for part in (found[:NEAR], found[FAR_FROM - 1 :]))
        negative = self.documents[int(rng.choice(far))].text if len(far) else ""
        return self.documents[n].text, self.documents[int(rng.choice(near))].text, negative

    # --- questions and labels ---

    def _question(self, rng: Rng) -> tuple[int, str, str]:
        """(facet or -1, question, answer), "" where none can be made."""
        cloze = bool(self._cloze) and (not self.questions or rng.random() < self.shares.cloze)
        if not cloze:
            if not self.questions:
                return NONE, "", ""
            given = self.questions[int(rng.integers(len(self.questions)))]
            return NONE, given.text, given.answer
        document = self.documents[int(rng.choice(self._cloze))]
        place = int(rng.choice([n for n, role in enumerate(document.roles) if role >= 0]))
        role = document.roles[place]
        rest = [n for n in range(len(document.sentences)) if n != place]
        templates = TEMPLATES[FACETS[role]]
        return (
            role,
            templates[rng.integers(len(templates))].format(content(document.sentences[place])),
            behind(document.title, _chosen(document, rest)),
        )

    def _labelled(self, rng: Rng) -> tuple[str, Sequence[int]]:
        """Sentences with their facets, "" where there are none."""
        taught = bool(self._taught) and (not self.labelled or rng.random() < self.shares.taught)
        if taught:
            document = self.documents[int(rng.choice(self._taught))]
            return SENTENCE_END.join(document.sentences), document.roles
        if not self.labelled:
            return "", ()
        row = self.labelled[int(rng.integers(len(self.labelled)))]
        return SENTENCE_END.join(row["sentences"]), roles_of(row["labels"])


def content(sentence: str) -> str:
    """A sentence without its stop words: what a question asks for."""
    words = [word.strip(".,;:()") for word in sentence.split()]
    kept = [word for word in words if word and word.lower() not in STOP_WORDS]
    return " ".join(kept or words)


def nearest(texts: Sequence[str], same: NDArray[np.int64]) -> Neighbours:
    """The FAR nearest others of each text in LSA, -1 from where there are no more. Texts with one number in `same` (n,) are one, and not each other's
    neighbours; a text without a known word has none."""
    found = np.full((len(texts), FAR), -1)
    try:
        vectors = LSA(TfIdf(texts), RANK).documents.astype(np.float32)
    except ValueError:  # fewer than two texts or words
        return found
    for start in range(0, len(texts), CHUNK):
        cosines = vectors[start : start + CHUNK] @ vectors.T
        cosines[same[start : start + CHUNK, None] == same[None]] = -np.inf
        cosines[~vectors[start : start + CHUNK].any(1)] = -np.inf
        width = min(FAR, len(texts))
        some = np.argpartition(-cosines, width - 1, axis=1)[:, :width]
        order = np.lexsort((some, -np.take_along_axis(cosines, some, 1)))
        some = np.take_along_axis(some, order, 1)
        found[start : start + CHUNK, :width] = np.where(np.isfinite(np.take_along_axis(cosines, some, 1)), some, -1)
    return found


def _originals(documents: Sequence[Document]) -> NDArray[np.int64]:
    """The row of the first paper with the same title or the same sentences (n,)."""
    known: dict[Any, int] = {}
    found = []
    for n, document in enumerate(documents):
        keys = [key for key in (document.title.lower().strip(" ."), document.sentences) if key]
        first = min((known[key] for key in keys if key in known), default=n)
        for key in keys:
            known.setdefault(key, first)
        found.append(first)
    return np.array(found)


def _chosen(document: Document, places: Sequence[int]) -> list[str]:
    return [document.sentences[n] for n in places]
