"""The teacher of rhetorical roles: a linear model of words, pairs of words and places, fitted on sentences that people labelled.

It labels the sentences of papers that nobody did, for K1 and K2 and for facet neighbours (specification, sections 2.3 and 7). Source of the features:
section 7, "a linear model on uni/bi-grams + position"; their weights are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.retrieval.benchmarks import FACETS

MERGED = {"objective": "background"}  # labels that count as another: CSFCube's convention
NONE = -1  # the role of a sentence that has none, or of which nobody is sure
TENTHS = 10  # of a text, in which a sentence stands
Sentences = Sequence[str]
Roles = tuple[int, ...]


def roles_of(labels: Sequence[str], facets: Sequence[str] = FACETS) -> Roles:
    """Places in `facets` of the labels of a text's sentences; -1 for a label that is none of them, such as "other"."""
    names = {name: place for place, name in enumerate(facets)}
    return tuple(names.get(label, names.get(MERGED.get(label, label), NONE)) for label in labels)


class Teacher:
    """Says of each sentence of a text how probable each facet is."""

    def __init__(self, words: Any, model: Any, facets: tuple[str, ...]):
        self.words, self.model, self.facets = words, model, facets

    @classmethod
    def fit(cls, labelled: Sequence[Mapping[str, Any]], facets: Sequence[str] = FACETS, strength: float = 3.0) -> Teacher:
        """From texts as {"sentences": [...], "labels": [...]}; sentences with labels of no facet are left out. `strength`: inverse of the penalty.

        Raises ValueError for a text with unlike numbers of sentences and labels, a facet that no sentence has, or without scikit-learn.
        """
        for n, row in enumerate(labelled, 1):
            if len(row["sentences"]) != len(row["labels"]):
                raise ValueError(f"labelled text {n} has {len(row['sentences'])} sentences and {len(row['labels'])} labels; give each sentence one")
        texts = [row["sentences"] for row in labelled]
        roles = np.array([role for row in labelled for role in roles_of(row["labels"], facets)], int)
        if missing := [name for place, name in enumerate(facets) if not (roles == place).any()]:
            raise ValueError(f"no labelled sentence is {missing[0]!r}, so the role cannot be learnt; label some for each of {', '.join(facets)}")
        vectoriser, regression = _scikit_learn()
        words = vectoriser(lowercase=True, ngram_range=(1, 2), min_df=2 if len(roles) > 200 else 1, sublinear_tf=True)
        words.fit([sentence for text in texts for sentence in text])
        teacher = cls(words, regression(C=strength, max_iter=500), tuple(facets))
        teacher.model.fit(teacher._features(texts)[roles >= 0], roles[roles >= 0])
        return teacher

    def predict_all(self, texts: Sequence[Sentences]) -> list[NDArray[np.float64]]:
        """Probabilities (n, K) of the facets for the sentences of each text; many texts at once are a hundred times faster."""
        sizes = [len(text) for text in texts]
        if not sum(sizes):
            return [np.zeros((0, len(self.facets))) for _ in texts]
        return np.split(self.model.predict_proba(self._features(texts)), np.cumsum(sizes)[:-1])

    def sure(self, texts: Sequence[Sentences], least: float = 0.6) -> list[Roles]:
        """The likeliest facet of each sentence of each text, -1 where it is not as probable as `least`."""
        return [tuple(np.where(p.max(1) >= least, p.argmax(1), NONE).tolist()) for p in self.predict_all(texts)]

    def _features(self, texts: Sequence[Sentences]) -> Any:
        from scipy.sparse import csr_matrix, hstack

        words = self.words.transform([sentence for text in texts for sentence in text])
        return hstack([words, csr_matrix(places([len(text) for text in texts]))]).tocsr()


def places(sizes: Sequence[int]) -> NDArray[np.float64]:
    """Where each sentence stands in its text (Σ sizes, 14): from 0 to 1, that squared, whether first or last, and in which tenth."""
    row = np.concatenate([np.arange(n) for n in sizes] or [np.zeros(0)])
    last = np.repeat(np.array(sizes, int) - 1, sizes)
    relative = row / np.maximum(last, 1)
    tenth = np.eye(TENTHS)[np.minimum((relative * TENTHS).astype(int), TENTHS - 1)]
    return np.column_stack([relative, relative**2, row == 0, row == last, tenth]).astype(float)


def _scikit_learn() -> tuple[Any, Any]:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ValueError(
            "labels of sentences are learnt with scikit-learn, which is not installed; install it with: pip install 'tacit[retrieval]'"
        ) from None
    return TfidfVectorizer, LogisticRegression
