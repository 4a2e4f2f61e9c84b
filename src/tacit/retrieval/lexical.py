"""Matching by words: one tokeniser for every script, TF-IDF, LSA and BM25.

The tokeniser and the weights of TF-IDF are those of the specification's reference rows (section 3.2), widened to scripts beside the Latin one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FREQUENCY = "frequency.npy"
SOLVED_WHOLE, NOUGHT = 1024, 1e-9  # documents or words of which LSA is solved whole; a share of the largest value that is none
STEM = 8  # characters kept of a word: a stemmer that knows no language
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai … Khmer, kana, Han: no spaces
MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")  # vowel signs are no letters to Python's \\w
PAIRED = re.compile(rf"[{UNSPACED}]")
WORD = re.compile(rf"[{UNSPACED}]+|(?:(?![{UNSPACED}])[^\W_])(?:(?![{UNSPACED}])[\w{MARKS}-])*")
ENGLISH = """a an and are as at be been between both but by can do does for from had has have how however if in into is it its may more most no not
of on or other our over paper show such than that the their them then there these they this those through to under using via was we were what when
where which while who will with"""
STOP_WORDS = frozenset(ENGLISH.split())
Texts = Sequence[str]


def tokens(text: str) -> list[str]:
    """Words of a text: lower case, compatible forms made one (NFKC), without English stop words, lone characters and numbers, cut to 8 characters.

    Scripts written without spaces have no words to be found this simply; they give pairs of neighbouring characters instead.
    """
    found: list[str] = []
    lower = unicodedata.normalize("NFKC", text).lower()
    for word in WORD.findall(unicodedata.normalize("NFKC", lower)):  # again: some letters can be one with their mark only in lower case
        if PAIRED.match(word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        elif telling(word):
            found.append(word[:STEM])
    return found


def telling(word: str) -> bool:
    """Whether a word, in lower case, can tell the subject of a text: no English stop word, number, or lone character unless that is a word."""
    return not word.isdigit() and word not in STOP_WORDS and (len(word) > 1 or PAIRED.match(word) is not None)


class TfIdf:
    """Cosine of (1 + ln tf) · ln((N + 1) / (df + 0.5)), the idf from the corpus it was made of."""

    def __init__(self, corpus: Texts, words: Callable[[str], list[str]] = tokens):
        """`words`: what a text is made of."""
        self.words, documents = words, [words(text) for text in corpus]
        self.vocabulary = {word: n for n, word in enumerate(sorted({word for words in documents for word in words}))}
        frequency = np.bincount([self.vocabulary[w] for words in documents for w in set(words)], minlength=len(self.vocabulary))
        self.idf = np.log((len(documents) + 1) / (frequency + 0.5))
        self.size, self.documents = len(documents), self._weighed(documents)

    def vectors(self, texts: Texts) -> csr_matrix:
        """Unit rows (n, vocabulary); a text without a known word is 0 everywhere."""
        return self._weighed([self.words(text) for text in texts])

    def scores(self, query: str) -> NDArray[np.float64]:
        """Cosine of a query with every document of the corpus (N,)."""
        return (self.documents @ self.vectors([query]).T).toarray()[:, 0]

    def _weighed(self, documents: Sequence[Sequence[str]]) -> csr_matrix:
        from scipy.sparse import csr_matrix

        columns = [np.array([self.vocabulary[w] for w in words if w in self.vocabulary], np.int64) for words in documents]
        rows = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
        every = np.concatenate([*columns, np.zeros(0, np.int64)])
        counts = csr_matrix((np.ones(len(every)), (rows, every)), shape=(len(columns), len(self.vocabulary)))  # repeated places are added up
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        norms = np.sqrt(np.asarray(counts.multiply(counts).sum(1)).ravel())
        counts.data /= np.repeat(np.where(norms > 0, norms, 1.0), np.diff(counts.indptr))
        return counts


class LSA:
    """Cosine in the space of the largest singular vectors of TF-IDF. Source: Deerwester et al. (1990)."""

    def __init__(self, tfidf: TfIdf, rank: int = 200):
        words, documents = len(tfidf.idf), tfidf.size
        self.tfidf = tfidf
        rank = min(rank, words - 1, documents - 1)
        if rank < 1:
            raise ValueError(f"LSA needs at least two documents and two words, not {documents} and {words}")
        self.basis = _right_vectors(tfidf.documents, rank)  # (vocabulary, rank)
        self.documents = self.vectors_of(tfidf.documents)

    def vectors_of(self, weighed: csr_matrix) -> NDArray[np.float64]:
        projected = weighed @ self.basis
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return projected / np.where(norms > 1e-12, norms, 1.0)

    def scores(self, query: str) -> NDArray[np.float64]:
        return self.documents @ self.vectors_of(self.tfidf.vectors([query]))[0]


def _right_vectors(matrix: Any, rank: int) -> NDArray[np.float64]:
    """Right singular vectors (columns, rank) of a sparse matrix, of the largest singular values, fewer where the others are 0.

    Few rows or columns are solved whole: ARPACK starts anew at random where they depend on one another, and no seed of svds reaches that.
    """
    from scipy.sparse.linalg import svds

    if min(matrix.shape) > SOLVED_WHOLE:
        _, values, right = svds(matrix, k=rank, rng=np.random.default_rng(0))
        return right[values > NOUGHT * values.max()].T
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = np.linalg.eigh((matrix @ matrix.T if wide else matrix.T @ matrix).toarray())
    kept = squares[-rank:] > NOUGHT * squares.max()
    vectors = vectors[:, -rank:][:, kept]
    return matrix.T @ vectors / np.sqrt(squares[-rank:][kept]) if wide else vectors


class BM25:
    """Okapi BM25 with the idf of Lucene, ln(1 + (N − df + 0.5) / (df + 0.5)), by bm25s. Source: Robertson & Zaragoza (2009), section 3."""

    def __init__(self, corpus: Sequence[Sequence[str]], k1: float = 1.2, b: float = 0.75):
        """`corpus`: the tokens of each document. Raises ValueError where bm25s is not installed."""
        self.vocabulary = {word: n for n, word in enumerate(sorted({word for words in corpus for word in words}))}
        self.frequency = np.bincount([self.vocabulary[w] for words in corpus for w in set(words)], minlength=len(self.vocabulary))
        self.size, self.engine = len(corpus), None
        if self.vocabulary:
            self.engine = _bm25s().BM25(k1=k1, b=b, method="lucene", backend="numpy")
            ids = [[self.vocabulary[word] for word in words] for words in corpus]
            self.engine.index((ids, self.vocabulary), create_empty_token=False, show_progress=False)

    def save(self, folder: Path) -> None:
        """Several files in the folder; none of a corpus without words but the frequencies."""
        np.save(folder / FREQUENCY, self.frequency)
        if self.engine is not None:
            self.engine.save(folder, show_progress=False)

    @classmethod
    def open(cls, folder: Path, size: int) -> BM25:
        found = cls([])
        found.size, found.frequency = size, np.load(folder / FREQUENCY)
        if len(found.frequency):
            found.engine = _bm25s().BM25.load(folder, show_progress=False)
            found.vocabulary = {str(word): int(n) for word, n in found.engine.vocab_dict.items()}
        return found

    def idf(self, word: str) -> float:
        """0 for a word that the corpus has not."""
        if word not in self.vocabulary:
            return 0.0
        frequency = int(self.frequency[self.vocabulary[word]])
        return math.log(1 + (self.size - frequency + 0.5) / (frequency + 0.5))

    def scores(self, query: Sequence[str]) -> NDArray[np.float32]:
        """Scores of all documents (N,) for the tokens of a query; one that is repeated counts as often."""
        known = [self.vocabulary[word] for word in query if word in self.vocabulary]
        if self.engine is None or not known:
            return np.zeros(self.size, np.float32)
        return self.engine.get_scores_from_ids(known)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise ValueError("BM25 needs bm25s, which is not installed; install it with: pip install 'tacit[retrieval]'") from None
    return bm25s
