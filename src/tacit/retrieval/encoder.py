"""Any sentence-transformers model as an encoder of queries and documents: unit vectors, zeros for empty text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]
BATCH = 32
PROBES = ("Which papers compare dense with lexical retrieval?", "We study optimisers for deep networks. Results improve on all five data sets.", "β")
SAME = 1e-3  # most that a coordinate of a unit vector may move between machines and versions


class Encoder:
    """Queries and documents as rows of length 1, with the prompts that the model itself has for either."""

    def __init__(self, model: SentenceTransformer, name: str = "a model"):
        self.model, self.name = model, name

    @classmethod
    def load(cls, name: str | Path, device: str | None = None) -> Encoder:
        """The model in a folder or on the hub. Raises ValueError when there is none, or sentence-transformers is not installed."""
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError:
            raise ValueError(
                "an encoder needs sentence-transformers, which is not installed; install it with: pip install 'tacit[retrieval]'"
            ) from None
        transformers_logging.disable_progress_bar()  # of loading; encoding has its own
        name = str(Path(name).resolve()) if Path(name).exists() else str(name)  # an index is also used from other folders
        try:
            model = SentenceTransformer(name, device=device)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"no sentence-transformers model could be loaded from {name!r}: {reason}") from None
        return cls(model, name)

    @property
    def length(self) -> int:
        """Tokens that the model reads of a text; what is beyond is lost."""
        return int(self.model.get_max_seq_length() or 512)

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._unit(texts, np.asarray(self.model.encode_query(list(texts), batch_size=BATCH, show_progress_bar=False)))

    def documents(self, texts: Sequence[str]) -> Vectors:
        return self._unit(texts, np.asarray(self.model.encode_document(list(texts), batch_size=BATCH, show_progress_bar=False)))

    def probe(self) -> Vectors:
        """Vectors (2 · probes, d) of fixed texts: what tells one model from another, whatever its folder is called."""
        return np.concatenate([self.queries(PROBES), self.documents(PROBES)])

    def _unit(self, texts: Sequence[str], vectors: NDArray[np.floating]) -> Vectors:
        if not len(texts):
            return np.zeros((0, self.model.get_embedding_dimension() or 0), np.float32)
        if not np.isfinite(vectors).all():
            bad = next(text for text, row in zip(texts, vectors) if not np.isfinite(row).all())
            raise ValueError(f"{self.name} gives no finite vector for the text {bad[:60]!r}; use another model")
        found = vectors.astype(np.float32)
        found[[not text.strip() for text in texts]] = 0
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return cast(Vectors, found / np.where(norms > 1e-12, norms, 1).astype(np.float32))


def same_model(a: Vectors, b: Vectors) -> bool:
    """Whether two probes come from the same model, up to rounding on another machine."""
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= SAME)
