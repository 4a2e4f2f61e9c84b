"""Any sentence-transformers model as an encoder of queries and documents; of a UniFAR-style one also its facets.

Vectors of ordinary models are made unit rows. Those of a model with K facets are K + 1 blocks, of the whole text and of each facet, and are taken as
they are: their inner product is the score (`tacit.retrieval.facets`). Empty text is 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tacit.mistakes import choice, reason
from tacit.retrieval.sentences import spaced

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]
BATCH = 32
ALL = "all"  # every facet evenly
PROBES = ("Which papers compare dense with lexical retrieval?", "We study optimisers for deep networks. Results improve on all five data sets.", "β")
USUAL, ENDLESS = 512, 10**8  # tokens read where no limit is known; a limit from which on it is the "none" of tokenizers, which say 1e30
SAME = 1e-3  # most that a coordinate may move between machines and versions


class Encoder:
    """Queries and documents as rows, with the prompts that the model itself has for either. `facets`: their names, none of an ordinary model."""

    facets: tuple[str, ...] = ()

    def __init__(self, model: SentenceTransformer, name: str = "a model"):
        """Raises ValueError for a model with facets whose vectors are cut (`truncate_dim`)."""
        from tacit.retrieval.modules import FacetPooling

        last = list(model.children())[-1]
        self.model, self.name = model, name
        self.facets = last.facets if isinstance(last, FacetPooling) else ()
        if self.facets and model.truncate_dim is not None:
            raise ValueError(
                f"{name} has facets, each with its part of a vector, so truncate_dim={model.truncate_dim} would cut some off; set it to None"
            )

    @classmethod
    def load(cls, name: str | Path, device: str | None = None) -> Encoder:
        """The model in a folder, in the `model` of a run's folder, or on the hub.

        Raises ValueError when there is none, or sentence-transformers is not installed.
        """
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError:
            raise ValueError(
                "an encoder needs sentence-transformers, which is not installed; install it with: pip install 'tacit[retrieval]'"
            ) from None
        from tacit.retrieval import modules

        transformers_logging.disable_progress_bar()  # of loading; encoding has its own
        found = Path(name).exists()
        name = str(_place(Path(name)).resolve()) if found else str(name)  # an index is also used from other folders
        failed = f"no sentence-transformers model could be loaded from {name!r}"
        if not found and means_a_folder(name):
            raise ValueError(f"{failed}: there is no such folder; name where it is with --model")
        if found and not any(Path(name, file).exists() for file in ("modules.json", "config.json")):
            raise ValueError(f"{failed}: it holds neither modules.json nor config.json; the run of a training has its model when it has ended")
        try:
            model = modules.load(name, device) if modules.is_faceted(name) else SentenceTransformer(name, device=device)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            absent = "" if found else "there is no such folder, and the hub gave none: "
            raise ValueError(f"{failed}: {absent}{reason(error)}") from None
        return cls(model, name)

    @property
    def length(self) -> int:
        """Tokens that the model reads of a text; what is beyond is lost. 512 where it sets no limit."""
        length = self.model.get_max_seq_length() or USUAL
        return int(length) if length < ENDLESS else USUAL

    def queries(self, texts: Sequence[str], facet: str | None = None) -> Vectors:
        """Of questions: a model with facets weighs them by π(q), or by the `facet` that is named. Raises ValueError for one that it has not."""
        asked = {"facet": known_facet(facet, self.facets)} if facet is not None else {}
        return self._checked(texts, self._encode(texts, task="query", **asked))

    def documents(self, texts: Sequence[str]) -> Vectors:
        return self._checked(texts, self._encode(texts, task="document"))

    def like(self, passages: Vectors, facet: str | None = None) -> Vectors:
        """What asks for documents like the one with these passages (P, D) → (D,)."""
        return like(passages, self.facets, facet)

    def intents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """π (n, K): how much each question asks for each facet."""
        told = self._encode(texts, task="query", output_value=None)
        return np.array([text["intent"].tolist() for text in told], np.float32).reshape(len(texts), len(self.facets))

    def roles(self, texts: Sequence[str]) -> list[list[str]]:
        """The most likely facet of each sentence of each text, as far as the model reads; "" for one without a token. None of a model without
        facets."""
        if not self.facets:
            return [[] for _ in texts]
        told = self._encode(texts, task="document", output_value=None)
        return [_read_roles(self.facets, text["sentence_roles"].argmax(-1).tolist(), text["sentence_mask"].tolist()) for text in told]

    def probe(self) -> Vectors:
        """Vectors (2 · probes, d) of fixed texts: what tells one model from another, whatever its folder is called."""
        return np.concatenate([self.queries(PROBES), self.documents(PROBES)])

    def _encode(self, texts: Sequence[str], task: str, **how: Any) -> Any:
        """Only a model with facets is told where sentences are known to end."""
        given = list(texts) if self.facets else [spaced(text) for text in texts]
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        return encode(given, batch_size=BATCH, show_progress_bar=False, **how)

    def _checked(self, texts: Sequence[str], vectors: Any) -> Vectors:
        if not len(texts):
            return np.zeros((0, self.model.get_embedding_dimension() or 0), np.float32)
        found = np.asarray(vectors).astype(np.float32)
        if not np.isfinite(found).all():
            bad = next(text for text, row in zip(texts, found) if not np.isfinite(row).all())
            raise ValueError(f"{self.name} gives no finite vector for the text {bad[:60]!r}; use another model")
        found[[not text.strip() for text in texts]] = 0
        return found if self.facets else unit(found)


def _read_roles(facets: Sequence[str], best: Sequence[int], read: Sequence[bool]) -> list[str]:
    """Up to the last sentence that was read: what follows is padding."""
    end = max((n for n, there in enumerate(read, 1) if there), default=0)
    return [facets[k] if there else "" for k, there in zip(best[:end], read)]


def _place(folder: Path) -> Path:
    """A run keeps its model in a folder of its own."""
    inner = folder / "model"
    return inner if not (folder / "modules.json").exists() and (inner / "modules.json").exists() else folder


def means_a_folder(name: str) -> bool:
    """Whether a name is none of the hub, where models are called `name` or `owner/name`, or begins with a folder that is there."""
    parts = Path(name).parts
    return len(parts) > 2 or name[:1] in (".", "~", "/") or (len(parts) == 2 and Path(parts[0]).is_dir())


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Rows of length 1; 0 stays 0."""
    found = vectors.astype(np.float32)
    norms = np.linalg.norm(found, axis=-1, keepdims=True)
    return cast(Vectors, found / np.where(norms > 1e-12, norms, 1).astype(np.float32))


def known_facet(facet: str, facets: Sequence[str]) -> str:
    """Raises ValueError for a facet that the model has not; `all` is every facet evenly."""
    if not facets:
        raise ValueError(f"the model knows no facets, so it cannot be asked for {facet!r}; leave the facet out, or use a UniFAR-style model")
    if facet not in (*facets, ALL):
        raise ValueError(choice("--facet", facet, [*facets, ALL]))
    return facet


def facet_weights(facets: Sequence[str], facet: str | None) -> list[float]:
    """w of R1: 1/K each for None and `all`, else one-hot. Raises ValueError for a facet that is not there."""
    if facet in (None, ALL):
        return [1 / len(facets)] * len(facets)
    if facet not in facets:
        raise ValueError(f"the model knows no facet {facet!r}; it has {', '.join(facets)}")
    return [float(facet == name) for name in facets]


def like(passages: Vectors, facets: Sequence[str], facet: str | None = None) -> Vectors:
    """The mean of the passages (P, D) of a document, as a query (D,): each of its K + 1 blocks in the direction of its mean, as long as it was;
    the blocks of facets times 1/K, or 1 for the `facet` that is named and 0 for the others."""
    if facet is not None:
        known_facet(facet, facets)
    blocks = passages.reshape(len(passages), len(facets) + 1, -1)
    found = unit(blocks.mean(0)) * np.linalg.norm(blocks, axis=-1).max(0)[:, None]
    if facets:
        found[1:] *= np.array(facet_weights(facets, facet), np.float32)[:, None]
    return found.reshape(-1).astype(np.float32)


def same_model(a: Vectors, b: Vectors) -> bool:
    """Whether two probes come from the same model, up to rounding on another machine."""
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= SAME)
