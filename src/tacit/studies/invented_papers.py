"""A small invented literature, whose papers are alike in their background, their method or their result: the study `unifar` without any data.

Each paper has one subject for each facet, and a subject has words of its own; so which papers are alike in a facet is known, not judged.
"""

from __future__ import annotations

from random import Random

from tacit.retrieval.benchmarks import FACETS, Benchmark, Query, csfcube_score, doris_mae_score
from tacit.retrieval.dev import known_item
from tacit.retrieval.pairs import Document
from tacit.studies.paper_sets import Material

SUBJECTS, WORDS, PAPERS = 4, 6, 64  # subjects of a facet, words of a subject, papers
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
FORMS = {
    "background": ("Many systems need {} and {}.", "Recent work on {} has shown that {} is hard."),
    "method": ("We propose {}, which uses {}.", "Our model combines {} with {}."),
    "result": ("Experiments show that {} improves {}.", "We find {} to be better than {}."),
}


def invented() -> Material:
    """Papers, roles of their sentences, and sets of queries with the names and the protocols of the public ones."""
    rng = Random(0)
    words = {(facet, n): [_word(rng) for _ in range(WORDS)] for facet in FACETS for n in range(SUBJECTS)}
    subjects = [{facet: rng.randrange(SUBJECTS) for facet in FACETS} for _ in range(PAPERS)]

    def sentence(n: int, facet: str) -> str:
        return rng.choice(FORMS[facet]).format(*rng.sample(words[facet, subjects[n][facet]], 2))

    papers, labels = [], []
    for n in range(PAPERS):
        title = " ".join(rng.choice(words[facet, subjects[n][facet]]) for facet in FACETS)
        kinds = [facet for facet in FACETS for _ in range(2)]
        papers.append(Document(f"p{n:02d}", title, tuple(sentence(n, facet) for facet in kinds)))
        labels.append({"sentences": list(papers[-1].sentences), "labels": kinds})
    corpus = {paper.id: paper.text for paper in papers}

    def alike(n: int, facet: str, most: float) -> dict[str, float]:
        return {papers[i].id: most * (subjects[i][facet] == subjects[n][facet]) for i in range(PAPERS) if i != n}

    faceted = [(n, facet) for n in range(4) for facet in FACETS]
    pairs = tuple(
        Query(f"{papers[n].id}_{facet}", papers[n].id, papers[n].text, alike(n, facet, 3.0), facet, like=papers[n].id, facet=facet)
        for n, facet in faceted
    )
    questions = tuple(Query(f"q{n}_{facet}", f"q{n}", f"Which papers are on {sentence(n, facet)}", alike(n, facet, 1.0)) for n, facet in faceted)
    given = {q.id: [*q.grades] for q in pairs}
    same = tuple(Query(q.id, q.topic, q.text, q.grades, like=q.like) for q in pairs)
    return Material(
        papers=tuple(papers),
        labelled={"train": labels[: PAPERS // 2], "dev": labels[PAPERS // 2 : 48], "test": labels[48:]},
        questions=tuple((sentence(n, "method"), papers[n].id) for n in range(0, PAPERS, 2)),
        sets={
            "csfcube": Benchmark("CSFCube", pairs, corpus, {"SPECTER": given}, csfcube_score, ("map",)),
            "dorismae": Benchmark("DORIS-MAE", questions, corpus, {"ada": {q.id: [*q.grades] for q in questions}}, doris_mae_score, ("map",)),
        },
        dev={
            "papers": Benchmark("papers", same, corpus, {}, known_item, ("map",)),
            "questions": Benchmark("questions", questions, corpus, {}, known_item, ("map",)),
        },
    )


def _word(rng: Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=3))
