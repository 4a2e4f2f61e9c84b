"""What a recipe of `kind: retrieval` trains on: papers, labelled sentences and questions as the user has them, made into rows and held-out sets.

Without a corpus of one's own the papers are those of the public sets below TACIT_DATA: texts alone, never judgements.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from tacit.config import RetrievalConfig
from tacit.core.progress import Reporter
from tacit.retrieval import small
from tacit.retrieval.benchmarks import FACETS, Benchmark
from tacit.retrieval.dense import WORDS_PER_TOKEN
from tacit.retrieval.dev import PUBLIC, known_items
from tacit.retrieval.encoder import USUAL
from tacit.retrieval.pairs import TEMPLATES, Document, PairOptions, Pairs, content, letters, of_labelled, with_roles
from tacit.retrieval.papers import gather
from tacit.retrieval.quiet import quiet
from tacit.retrieval.roles import Teacher
from tacit.retrieval.scientific import scientific
from tacit.retrieval.sentences import behind, passages, sentences
from tacit.retrieval.training import Prepared
from tacit.tasks.data import DataError, data_root, read_jsonl, text_field

ROLES = "csabstruct/train.jsonl.gz"  # below TACIT_DATA
FEWEST, SHARE = 10, 5  # papers of a corpus; one in so many is held out at most
PASSAGES = 8  # of a long paper, from its beginning: no paper outweighs the others
FIELD = 0.02  # share of pairs of one field of study, which the scientific sets know for a few papers
MOST_ROWS = 64_000  # that are made; a longer training goes over them again
MOST_TOLD = 5  # papers left out that are named
ENDING = 20  # letters of a text by which it is looked up

Papers = dict[str, list[Document]]  # by id; a paper that is too long to be read at once is several documents, the first with its own id
Labelled = Mapping[str, Any]  # `sentences` and their `labels`
Question = tuple[str, str]  # and the id of the paper that answers it


@dataclass(frozen=True, slots=True)
class Read:
    """What was found."""

    papers: Papers
    labelled: Sequence[Labelled]
    questions: Sequence[Question]


@dataclass(frozen=True, slots=True)
class Material:
    """`told`: how much there is of what."""

    prepared: Prepared
    told: dict[str, int]
    fingerprint: str


def prepare(config: RetrievalConfig, scratch: Path, reporter: Reporter, most: int | None = None) -> Material:
    """Rows, base and held-out sets of a recipe; a small base is written into `scratch`. `most`: papers to stop at.

    What has the same letters as a held-out paper, or as one of a public set that is held out, is not learnt from either.
    A small base is made without the held-out papers: LSA of a small corpus knows the words of each of its papers by heart.

    Raises ValueError where the corpus is too small, or a file is not what it should be.
    """
    found = read(config, reporter, most)
    if len(found.papers) < FEWEST:
        raise ValueError(
            f"training needs {FEWEST} papers at least, and learns little from less than some hundreds; the corpus has {len(found.papers)}"
        )
    held = held_out(list(found.papers), config)
    public = [PUBLIC[name]() for name in config.evaluation.sets]
    texts = [" ".join(document.sentences) for name in held for document in found.papers[name]]
    shown = shown_in([*texts, *(text for one in public for text in one.corpus.values())])
    labelled = [row for row in found.labelled if not shown(row["sentences"])]
    if not labelled:
        reporter.warning("there are no labelled sentences, so nothing tells the model which facet is which; name some in roles")
    reporter.phase("making pairs", None)
    papers = taught(found.papers, labelled)
    kept = {name: documents for name, documents in papers.items() if name not in held and not any(shown(d.sentences) for d in documents)}
    out = len(papers) - len(held) - len(kept), len(found.labelled) - len(labelled)
    if any(out):
        reporter.message(f"left out, as their texts are held out: {out[0]} papers and {out[1]} labelled texts")
    learnt = [document for documents in kept.values() for document in documents]
    asked = [question for question in found.questions if question[1] in kept]
    pairs = Pairs(learnt, questions=asked, labelled=of_labelled(labelled), options=pair_options(config))
    rows = pairs.rows(min(config.steps * config.batch_size, MOST_ROWS), config.seed)
    sets = own_sets([papers[name][0] for name in held], found.questions, config.seed) + public

    base, weights = config.base.path, None
    if config.base.small is not None:
        reporter.phase("making a small encoder", None)
        base = str(scratch / "base")
        texts = [document.text for document in learnt]
        weights = small.make(texts, base, seed=config.seed, **config.base.small.model_dump())
    assert base is not None
    told = {"papers": len(kept), "held_out_papers": len(held), "questions": len(asked), "labelled_texts": len(labelled)}
    return Material(Prepared(rows, base, weights, sets), told, fingerprint(rows, sets))


# --- reading ---


def read(config: RetrievalConfig, reporter: Reporter, most: int | None = None) -> Read:
    """The corpus, labelled sentences and questions that a recipe names."""
    if config.corpus:
        papers, questions = own(config, reporter), []
    else:
        reporter.phase("reading", None)
        try:
            public = scientific()
        except DataError as error:
            raise ValueError(f"corpus names no papers, so the public sets would be read, but {error}; or name yours in corpus") from None
        papers, questions = {document.id: [document] for document in public.documents}, list(public.questions)
    for name in config.questions:
        questions += _questions(place(name, "questions"), papers)
    papers = dict(list(papers.items())[:most])
    return Read(papers, labelled(config), [question for question in questions if question[1] in papers])


def place(name: str, key: str) -> Path:
    """A path of the user's, or else one below TACIT_DATA. Raises ValueError when there is neither."""
    below = data_root() / name
    for path in (Path(name), below, below.with_name(f"{below.name}.gz")):
        if path.exists():
            return path
    raise ValueError(f"{key}: there is no file or folder {name}, neither in {Path.cwd()} nor in TACIT_DATA ({data_root().resolve()})")


def own(config: RetrievalConfig, reporter: Reporter) -> Papers:
    """Papers as `tacit search index` reads them, long ones in passages that the model reads to the end."""
    found = gather([place(name, "corpus") for name in config.corpus], reporter)
    found.tell(reporter, MOST_TOLD)
    words = int(WORDS_PER_TOKEN * _tokens(config))
    papers = {paper.id: _documents(paper.id, paper.title, passages(paper.title, paper.text, words)) for paper in found.papers}
    return {name: documents for name, documents in papers.items() if documents}


def _tokens(config: RetrievalConfig) -> int:
    """How many the model will read of a text."""
    if config.model.length is not None:
        return config.model.length
    if config.base.small is not None:
        return config.base.small.length
    assert config.base.path is not None
    try:
        with quiet():
            most = getattr(AutoConfig.from_pretrained(config.base.path), "max_position_embeddings", None) or 0
    except (OSError, ValueError, KeyError, AttributeError):
        return USUAL  # what is wrong with the base is told where it is built
    return min(most, USUAL) if most > 0 else USUAL


def _documents(name: str, title: str, groups: Sequence[Sequence[str]]) -> list[Document]:
    return [Document(name if not n else f"{name} ({n + 1})", title, tuple(group)) for n, group in enumerate(groups[:PASSAGES]) if group]


def labelled(config: RetrievalConfig) -> list[Labelled]:
    """Texts whose sentences people labelled. Raises DataError for a line that is not like that."""
    if config.roles is None:
        root = data_root() / ROLES
        paths = [path for path in (root, root.with_suffix("")) if path.is_file()][:1]
    else:
        paths = [place(name, "roles") for name in config.roles]
    return [_labelled(path, line, row) for path in paths for line, row in read_jsonl(path)]


def _labelled(path: Path, line: int, row: dict[str, Any]) -> Labelled:
    for column in ("sentences", "labels"):
        value = row.get(column)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise DataError(f"{path}, line {line}: {column!r} must be a list of texts, one for each sentence")
    if len(row["sentences"]) != len(row["labels"]):
        raise DataError(f"{path}, line {line}: {len(row['sentences'])} sentences have {len(row['labels'])} labels; give each one")
    return row


def _questions(path: Path, papers: Papers) -> Iterator[Question]:
    """Questions of a file. An answer that is a text of its own becomes a paper. Raises DataError for a line that names no paper and has no answer."""
    for line, row in read_jsonl(path):
        text, place = text_field(row, "question", path, line), f"{path}, line {line}"
        if "answer" in row:
            papers[place] = _documents(place, "", [sentences(text_field(row, "answer", path, line))])
            if not papers[place]:
                raise DataError(f"{place}: the answer is empty")
            yield text, place
        elif "id" not in row:
            raise DataError(f"{place}: a question needs the 'id' of the paper that answers it, or the 'answer'")
        elif str(row["id"]) not in papers:
            raise DataError(f"{place}: there is no paper {str(row['id'])!r} in the corpus; the ids are those that tacit search shows")
        else:
            yield text, str(row["id"])


# --- making ---


def taught(papers: Papers, labelled: Sequence[Labelled]) -> Papers:
    """The papers with the facet of each sentence, of a teacher that learnt from the labelled ones; without those as they are."""
    if not labelled:
        return papers
    every = with_roles([document for documents in papers.values() for document in documents], Teacher.fit(labelled))
    told = {document.id: document for document in every}
    return {name: [told[document.id] for document in documents] for name, documents in papers.items()}


def pair_options(config: RetrievalConfig) -> PairOptions:
    shares = config.mixture.model_dump()
    pairs, questions = (
        {kind: shares[kind] for kind in kinds} for kinds in (("halves", "title", "neighbours", "facets"), ("cloze", "aspects", "given"))
    )
    return PairOptions(pairs=pairs | {"field": FIELD}, questions=questions, teacher_share=config.mixture.taught)


def held_out(names: Sequence[str], config: RetrievalConfig) -> list[str]:
    """Papers drawn from the seed, never learnt from."""
    count = max(2, min(config.evaluation.documents, len(names) // SHARE))
    order: list[int] = np.random.default_rng((config.seed, 1)).permutation(len(names)).tolist()
    return [names[n] for n in order[:count]]


def shown_in(texts: Sequence[str]) -> Callable[[Sequence[str]], bool]:
    """Tells of sentences whether one of the texts has the same letters, or has them behind a title."""
    by_ending: dict[str, list[str]] = {}
    for text in map(letters, texts):
        by_ending.setdefault(text[-ENDING:], []).append(text)

    def shown(sentences: Sequence[str]) -> bool:
        text = letters(" ".join(sentences))
        return bool(text) and any(one.endswith(text) for one in by_ending.get(text[-ENDING:], ()))

    return shown


def own_sets(held: Sequence[Document], asked: Sequence[Question], seed: int) -> list[Benchmark]:
    """Known items among held-out papers: `documents`, one half of an abstract asks for the other; `questions`, the words of one sentence ask for the
    rest, and given questions for their papers. Raises ValueError where there is neither."""
    rng = np.random.default_rng((seed, 3))
    by_id = {document.id: document for document in held}
    halves, questions = [], [(name, text, by_id[name].text) for text, name in asked if name in by_id]
    for document in (document for document in held if len(document.sentences) > 1):
        n = len(document.sentences)
        first, second = (sorted(part) for part in np.array_split(rng.permutation(n), 2))
        halves.append((document.id, _chosen("", document, first), _chosen(document.title, document, second)))
        k, role = _choice(rng, [(k, role) for k, role in enumerate(document.roles) if role >= 0] or [(k, -1) for k in range(n)])
        words = " ".join(content(document.sentences[k]))
        question = TEMPLATES[FACETS[role]][0].format(words) if role >= 0 and words else words
        questions.append((document.id, question, _chosen(document.title, document, [other for other in range(n) if other != k])))
    sets = [known_items("documents", halves, papers=True), known_items("questions", questions, papers=False)]
    if not any(one.queries for one in sets):
        raise ValueError("no held-out paper has two sentences, so nothing can be measured; give papers with abstracts")
    return [one for one in sets if one.queries]


def _choice(rng: np.random.Generator, items: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return items[int(rng.integers(len(items)))]


def _chosen(title: str, document: Document, places: Sequence[int]) -> str:
    return behind(title, [document.sentences[k] for k in places])


def fingerprint(rows: Sequence[Mapping[str, Any]], sets: Sequence[Benchmark]) -> str:
    """What tells one material from another."""
    found = sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True).encode())
    for one in sets:
        found.update(json.dumps([one.name, [[query.id, query.text] for query in one.queries]]).encode())
    return found.hexdigest()
