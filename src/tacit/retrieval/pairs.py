"""What a UniFAR-style model learns from when all there is are papers: pairs of papers, questions with their papers, and roles of sentences.

Pairs of papers, each a row's `anchor` and `positive`:
    halves      two halves of one abstract, drawn sentence by sentence; the title goes with either       [inferred; Izacard et al. 2022, cropping]
    title       a title and its abstract                                                                 [inferred]
    neighbours  a paper and one of its nearest by words; a farther one is the hard `negative`            [after SciNCL, 2202.06671]
    facets      a paper and those of its 100 nearest that are nearest by the sentences of one role;      [inferred; after FLeW's three graphs]
                negatives are near as a whole, but not in these; the pair counts for that facet
    field       two papers of one field of study, where fields are given                                 [inferred]
Questions, each with the paper that answers it:
    cloze       the content words of one sentence behind words for its role; the answer lacks the sentence   [Lee et al. 2019]
    aspects     two to four sentences of one paper as they stand; the answer lacks them                      [inferred]
    given       questions that the caller gives: summaries, questions of abstracts                           [specification, section 7]
Everything but `given` is made up from texts, and is no better a judge of relevance than that. No judgement of a benchmark is read anywhere here.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tacit.retrieval.benchmarks import FACETS
from tacit.retrieval.lexical import WORD, telling
from tacit.retrieval.neighbours import Rankings, nearest, reordered
from tacit.retrieval.roles import NONE, Roles, Teacher, roles_of
from tacit.retrieval.sentences import SENTENCE_END, behind

MOST = 24  # sentences of a labelled text that can have a role
Band = tuple[int, int]  # first and last rank among neighbours, of which the nearest has rank 1
FEWEST_WORDS = 4  # of a sentence that can be asked for
ASKED_WORDS = 12  # content words of a question at most
PAIRED, ASKED = ("halves", "title", "neighbours", "facets", "field"), ("cloze", "aspects", "given")
TEMPLATES = {
    "background": ("which work addresses {}", "papers on the problem of {}", "why is there a need for {}", "{}: what is known"),
    "method": ("which work uses {}", "papers that propose {}", "a method with {}", "how to do it by {}"),
    "result": ("which work shows {}", "papers that find {}", "is there evidence for {}", "findings: {}"),
}


@dataclass(frozen=True, slots=True)
class Document:
    """A paper as sentences, with the facet of each (-1: none); `roles` is empty where nobody said. `field`: of study, "" where unknown."""

    id: str
    title: str
    sentences: tuple[str, ...]
    roles: Roles = ()
    field: str = ""

    def __post_init__(self) -> None:
        if self.roles and len(self.roles) != len(self.sentences):
            raise ValueError(
                f"the paper {self.id!r} has {len(self.sentences)} sentences and {len(self.roles)} roles; give each sentence one, or none"
            )
        if not all(s.strip() for s in self.sentences):
            raise ValueError(f"a sentence of the paper {self.id!r} is empty; leave it out, with its role")

    @property
    def text(self) -> str:
        return behind(self.title, self.sentences)


def of_labelled(rows: Sequence[Mapping[str, Any]], facets: Sequence[str] = FACETS) -> list[Document]:
    """Labelled texts, {"sentences": [...], "labels": [...]}, as documents without a title; blank sentences are dropped with their labels."""
    found = []
    for n, row in enumerate(rows):
        kept = [(s, r) for s, r in zip(row["sentences"], roles_of(row["labels"], facets), strict=True) if s.strip()]
        found.append(Document(f"labelled:{n}", "", tuple(s for s, _ in kept), tuple(r for _, r in kept)))
    return found


def with_roles(documents: Sequence[Document], teacher: Teacher, least: float = 0.6) -> list[Document]:
    """Documents whose sentences have roles, of the teacher where there were none: -1 where it is less sure than `least`."""
    bare = [document for document in documents if not document.roles]
    told = dict(zip((document.id for document in bare), teacher.sure([document.sentences for document in bare], least)))
    return [document if document.roles else replace(document, roles=told[document.id]) for document in documents]


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Shares of the kinds; of a paper, those kinds count that it can give. Defaults are ours, as is all that is not named otherwise above.

    `near` and `far`: ranks of positives and hard negatives, those of the specification, 2.8. `depth`: neighbours as a whole among which facets look
    for theirs. `rank`: dimensions of LSA; `exact`: weight of TF-IDF beside it, which finds the cited papers of SPECTER's held-out triplets best at
    0.7 (MRR .64; .62 alone, LSA alone .47). `teacher_share`: of the labelled texts, those whose labels are the
    teacher's. `templates`: ways to ask for a sentence of a facet, with {} for its words.
    """

    pairs: Mapping[str, float] = field(default_factory=lambda: {"halves": 0.2, "title": 0.15, "neighbours": 0.3, "facets": 0.35, "field": 0.02})
    questions: Mapping[str, float] = field(default_factory=lambda: {"cloze": 0.4, "aspects": 0.2, "given": 0.4})
    near: Band = (1, 5)
    far: Band = (30, 60)
    depth: int = 100
    rank: int = 100
    exact: float = 0.7
    teacher_share: float = 0.5
    facets: tuple[str, ...] = FACETS
    templates: Mapping[str, Sequence[str]] = field(default_factory=lambda: TEMPLATES)

    def __post_init__(self) -> None:
        for name, given, known in (("pairs", self.pairs, PAIRED), ("questions", self.questions, ASKED)):
            if strange := [kind for kind in given if kind not in known]:
                raise ValueError(f"{name} has no kind {strange[0]!r}; there are {', '.join(known)}")
            if any(share < 0 for share in given.values()):
                raise ValueError(f"a share of {name} is negative; give 0 for a kind that is not wanted")


class Pairs:
    """Rows to train on from a corpus, mined once, drawn as often as wanted. What the corpus cannot give leaves its columns empty: `kinds` tells."""

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        questions: Sequence[tuple[str, str]] = (),
        labelled: Sequence[Document] = (),
        options: PairOptions | None = None,
    ):
        """`questions`: (text, id of its document). `labelled`: documents with gold roles.

        A document whose text another one has is left out; what is asked of it is asked of the other one. Raises ValueError for ids that repeat or
        are not there, and for documents of which no pair can be made.
        """
        self.options = options or PairOptions()
        place, self.documents = _distinct(documents)
        self.labelled = [d for d in labelled if d.sentences]
        self.asked = [(text, place[_known(name, place)]) for text, name in questions if text.strip()]
        self._mine()
        self.anchors = [self._pair_kinds(n) for n in range(len(self.documents))]
        self.starts = [n for n, kinds in enumerate(self.anchors) if kinds]
        if not self.starts:
            raise ValueError(f"no pair can be made of {len(self.documents)} papers; give more papers, with titles and abstracts")
        can = {
            "cloze": [n for n, d in enumerate(self.documents) if len(d.sentences) > 1 and _askable(d)],
            "aspects": [n for n, d in enumerate(self.documents) if len(d.sentences) >= 4],
            "given": list(range(len(self.asked))),
        }
        self.sources = {kind: can[kind] for kind in ASKED if can[kind] and self.options.questions.get(kind, 0) > 0}
        self.taught = [n for n, d in enumerate(self.documents) if any(role != NONE for role in d.roles)]

    @property
    def kinds(self) -> dict[str, int]:
        """How many papers, questions or texts each kind can start from."""
        found = {f"pairs/{kind}": sum(kind in kinds for kinds in self.anchors) for kind in PAIRED}
        found |= {f"questions/{kind}": len(self.sources.get(kind, ())) for kind in ASKED}
        return found | {"labelled/gold": len(self.labelled), "labelled/teacher": len(self.taught) if self._teacher_share else 0}

    def rows(self, n: int, seed: int = 0) -> list[dict[str, Any]]:
        """n rows with the columns of `FacetLoss`: anchor, positive, negative ("": none), question, answer, labelled, label.

        A paper is anchor once in a pass over the papers. Fewer rows are the first of more; pairs, questions and labelled texts are drawn apart, so
        that a corpus without questions has the same pairs.
        """
        found = []
        walks = {kind: _walk(len(items), f"{seed} {kind}") for kind, items in self.sources.items()}
        starts = {"anchor": self.starts, "gold": self.labelled, "taught": self.taught}
        anchors, gold, taught = (_walk(len(items), f"{seed} {name}") for name, items in starts.items())
        for i in range(n):
            anchor, positive, negative, facet = self._pair(self.starts[next(anchors)], random.Random(f"{seed} pair {i}"))
            question, answer, intent = self._question(walks, random.Random(f"{seed} question {i}"))
            text, roles = self._labelled(gold, taught, random.Random(f"{seed} labelled {i}"))
            label = [facet, intent, *roles, *[NONE] * (MOST - len(roles))]
            texts = {"anchor": anchor, "positive": positive, "negative": negative, "question": question, "answer": answer, "labelled": text}
            found.append({**texts, "label": label})
        return found

    def _mine(self) -> None:
        o, every = self.options, list(range(len(self.documents)))
        how: dict[str, Any] = {"rank": o.rank, "exact": o.exact}
        by_facet, by_words = o.pairs.get("facets", 0) > 0, o.pairs.get("neighbours", 0) > 0
        titles = [letters(d.title) or f" {n}" for n, d in enumerate(self.documents)]  # equal titles: versions of one paper
        groups = np.unique(titles, return_inverse=True)[1] if titles else np.zeros(0, int)
        depth = max(o.near[1], o.far[1], o.depth if by_facet else 0)
        self.whole: Rankings = nearest([d.text for d in self.documents], groups, depth, **how) if by_facet or by_words else [[] for _ in every]
        self.by_facet: list[dict[int, list[int]]] = [{} for _ in every]  # of each document: facet → neighbours
        for facet in range(len(o.facets) if by_facet else 0):
            told = [" ".join(s for s, role in zip(d.sentences, d.roles) if role == facet) for d in self.documents]
            for n, ranking in enumerate(reordered(told, self.whole, **how)):
                if _band(ranking, o.near):
                    self.by_facet[n][facet] = ranking
        self.fields: dict[str, list[int]] = {}
        for n, d in enumerate(self.documents):
            if d.field:
                self.fields.setdefault(d.field, []).append(n)

    def _pair_kinds(self, n: int) -> tuple[str, ...]:
        d = self.documents[n]
        can = {
            "halves": len(d.sentences) > 1,
            "title": bool(d.title.strip()) and bool(d.sentences),
            "neighbours": bool(_band(self.whole[n], self.options.near)),
            "facets": bool(self.by_facet[n]),
            "field": len(self.fields.get(d.field, ())) > 1,
        }
        return tuple(kind for kind in PAIRED if can[kind] and self.options.pairs.get(kind, 0) > 0)

    def _pair(self, n: int, rng: random.Random) -> tuple[str, str, str, int]:
        """Anchor, positive, hard negative or "", and the facet that they are alike in or -1."""
        d, kinds = self.documents[n], self.anchors[n]
        kind = rng.choices(kinds, [self.options.pairs[k] for k in kinds])[0]
        if kind == "halves":
            one = set(rng.sample(range(len(d.sentences)), len(d.sentences) // 2))
            titles = (d.title, "") if rng.random() < 0.5 else ("", d.title)
            first, second = (
                behind(title, [s for k, s in enumerate(d.sentences) if (k in one) is side]) for title, side in zip(titles, (True, False))
            )
            return first, second, "", NONE
        if kind == "title":
            return d.title, behind("", d.sentences), "", NONE
        facet, ranking = NONE, []
        if kind == "neighbours":
            ranking = self.whole[n]
        elif kind == "facets":
            facet = rng.choice(sorted(self.by_facet[n]))
            ranking = self.by_facet[n][facet]
        near, far = _band(ranking, self.options.near), _band(ranking, self.options.far)
        if kind == "field":
            near = [k for k in self.fields[d.field] if k != n]
        positive = self.documents[rng.choice(near)]
        return d.text, positive.text, self.documents[rng.choice(far)].text if far else "", facet

    def _question(self, walks: Mapping[str, Iterator[int]], rng: random.Random) -> tuple[str, str, int]:
        """Question, answer, and the facet that is asked for or -1."""
        if not walks:
            return "", "", NONE
        kind = rng.choices(list(walks), [self.options.questions[k] for k in walks])[0]
        item = self.sources[kind][next(walks[kind])]
        if kind == "given":
            text, n = self.asked[item]
            return text, self.documents[n].text, NONE
        d = self.documents[item]
        if kind == "aspects":
            taken = set(rng.sample(range(len(d.sentences)), rng.randint(2, min(4, len(d.sentences) - 2))))
            return (
                behind("", [d.sentences[k] for k in sorted(taken)]),
                behind(d.title, [s for k, s in enumerate(d.sentences) if k not in taken]),
                NONE,
            )
        k = rng.choice(_askable(d))
        words = content(d.sentences[k])
        kept = sorted(rng.sample(range(len(words)), min(len(words), ASKED_WORDS)))
        ways = self.options.templates.get(self.options.facets[d.roles[k]], ("{}",))
        question = rng.choice(list(ways)).format(" ".join(words[w] for w in kept))
        return question, behind(d.title, [*d.sentences[:k], *d.sentences[k + 1 :]]), d.roles[k]

    @property
    def _teacher_share(self) -> float:
        return self.options.teacher_share if self.labelled else float(self.options.teacher_share > 0)

    def _labelled(self, gold: Iterator[int], taught: Iterator[int], rng: random.Random) -> tuple[str, list[int]]:
        """A text in which sentences end where they are known to, and their roles; the title has none."""
        share = self._teacher_share if self.taught else 0.0
        if rng.random() < share:
            d = self.documents[self.taught[next(taught)]]
        elif self.labelled:
            d = self.labelled[next(gold)]
        else:
            return "", []
        roles = [*([NONE] if d.title.strip() else []), *d.roles][:MOST]
        return behind(d.title, d.sentences) + SENTENCE_END, roles


def content(sentence: str) -> list[str]:
    """The words of a sentence that say what it is about: lower case, no stop words, lone characters or numbers."""
    words = WORD.findall(unicodedata.normalize("NFKC", sentence).lower())
    return [word for word in words if telling(word)]


def _askable(d: Document) -> list[int]:
    return [k for k, role in enumerate(d.roles) if role != NONE and len(content(d.sentences[k])) >= FEWEST_WORDS]


def _band(ranking: list[int], band: Band) -> list[int]:
    return ranking[band[0] - 1 : band[1]]


def _walk(size: int, seed: str) -> Iterator[int]:
    """Places 0 … size − 1 in random order, again and again, in another order each time."""
    passes = 0
    while size:
        order = list(range(size))
        random.Random(f"{seed} {passes}").shuffle(order)
        yield from order
        passes += 1


def _distinct(documents: Sequence[Document]) -> tuple[dict[str, int], list[Document]]:
    """Documents with texts that differ in their letters, and the place of each id among them."""
    place, kept, seen = {}, [], {}
    for d in documents:
        if d.id in place:
            raise ValueError(f"two papers have the id {d.id!r}; give each paper an id of its own")
        text = letters(" ".join(d.sentences)) or letters(d.title) or d.text
        if text not in seen:
            seen[text] = len(kept)
            kept.append(d)
        place[d.id] = seen[text]
    return place, kept


def letters(text: str) -> str:
    """Letters and digits alone, of one case: equal for a text that was set in another way."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def _known(name: str, place: Mapping[str, int]) -> str:
    if name not in place:
        raise ValueError(f"a question names the paper {name!r}, which is not among the {len(place)} given")
    return name
