"""The UniFAR-style encoder as modules of sentence-transformers: sentences that are known apart, over any encoder, and pooling by facets."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.util import load_file_path
from torch import Tensor, nn

from tacit.mistakes import choice
from tacit.retrieval import facets as f
from tacit.retrieval.benchmarks import FACETS
from tacit.retrieval.encoder import USUAL, facet_weights
from tacit.retrieval.sentences import SENTENCE_END, sentences

BINS = 10  # relative positions of a sentence in its text that are told apart
OUTSIDE = -1  # sentence id of special tokens and padding
GATE = 64  # units of the network that sets the gates
GATES = ("adaptive", "constant")
MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
KEPT = ("prompts", "default_prompt_name", "similarity_fn_name")  # of the settings
HUB = ("token", "cache_folder", "revision", "local_files_only")  # what sentence-transformers needs to fetch a file


def split(text: str) -> list[str]:
    """Sentences of a text: where the caller says so, else by punctuation."""
    return [part for part in (" ".join(p.split()) for p in text.split(SENTENCE_END)) if part] if SENTENCE_END in text else sentences(text)


def _ids(tokenizer: Any, sentences: list[str]) -> list[list[int]]:
    """Tokens of each sentence. Of a fast tokenizer nothing else is asked, such as the place of each token, which takes a quarter of its time."""
    if not sentences:
        return []
    if not tokenizer.is_fast:
        return tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]
    engine = tokenizer.backend_tokenizer
    engine.no_padding()
    engine.no_truncation()
    return [found.ids for found in engine.encode_batch_fast(sentences, add_special_tokens=False)]


def _within(sentences: Sequence[list[int]], room: int) -> tuple[list[int], list[int]]:
    """Tokens of as many sentences as have room, and the sentence of each."""
    tokens: list[int] = []
    owner: list[int] = []
    for n, sentence in enumerate(sentences):
        if n and len(tokens) + len(sentence) > room:
            break
        tokens += sentence[:room]
        owner += [n] * len(sentence[:room])
    return tokens, owner


class Sentencewise(Transformer):
    """Any transformers encoder, reading a text sentence by sentence: tokens know theirs. The title, or whatever stands first, is sentence 0.

    A text that is too long loses whole sentences from its end, and the first sentence alone is cut if even that is needed.
    """

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, processing_kwargs: Any = None, **kwargs: Any) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `sentence_ids` (B, L). Raises ValueError for what is not text, or options for a processor."""
        if processing_kwargs:
            raise ValueError("sentences are cut and joined here, so processing_kwargs have no meaning; set max_seq_length of the model")
        if other := next((text for text in inputs if not isinstance(text, str)), None):
            raise ValueError(f"a text was expected, not {type(other).__name__}")
        groups = [split((prompt or "") + text) for text in inputs]
        tokenizer: Any = self.tokenizer
        # tokens of bytes tell words by the space before them
        every = [f" {sentence}" if n else sentence for group in groups for n, sentence in enumerate(group)]
        encoded = iter(_ids(tokenizer, every))
        first, last = self._special
        room = (kwargs.get("max_length") or self.max_seq_length or USUAL) - len(first) - len(last)
        tokens: list[int] = []
        owner: list[int] = []
        lengths: list[int] = []
        for group in groups:
            read, theirs = _within(list(islice(encoded, len(group))), room)
            tokens += first + read + last
            owner += [OUTSIDE] * len(first) + theirs + [OUTSIDE] * len(last)
            lengths.append(len(first) + len(read) + len(last))
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        ids, owners = np.full(mask.shape, tokenizer.pad_token_id or 0), np.full(mask.shape, OUTSIDE)
        ids[mask], owners[mask] = tokens, owner  # of all texts at once, and by numpy: a tensor made of each list takes as long as the facets do
        found = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "sentence_ids": owners}
        return {name: torch.from_numpy(values) for name, values in found.items()} | {"modality": "text"}

    @property
    def _special(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        if not hasattr(self, "_around"):
            tokenizer: Any = self.tokenizer
            bare = tokenizer("a", add_special_tokens=False)["input_ids"]
            whole = tokenizer("a")["input_ids"]
            start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
            self._around = (whole[:start], whole[start + len(bare) :])
        return self._around

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings` (B, L, d)."""
        read = {name: value for name, value in features.items() if name != "sentence_ids"}
        return super().forward(read, **kwargs) | {"sentence_ids": features["sentence_ids"]}


class FacetPooling(Module):
    """From token states to K + 1 unit vectors: steps (G), (A), (M), (F) and (S) of R1 [inferred].

    Added to R1, all ours: `words`, a learnt weight for each word of the vocabulary in means and attention, without which a small model is far behind
    TF-IDF; of n times the same word in a whole text 1 + ln n count, as there; the relative position of a sentence among its logits; anchors that are
    multiplied by the projection instead of the states.
    """

    config_keys = ["dim", "facets", "whole", "granularities", "gates", "pooled", "kinds", "words", "intent_temperature", "evidence", "length"]  # noqa: RUF012
    config_file_name = "facets.json"
    forward_kwargs = {"task", "facet"}  # noqa: RUF012

    def __init__(
        self,
        dim: int,
        facets: Sequence[str] = FACETS,
        *,
        whole: float = 0.5,
        granularities: Sequence[str] = f.GRAINS,
        gates: str = "adaptive",
        pooled: str = "first",
        kinds: bool = False,
        words: int = 0,
        intent_temperature: float = 0.5,
        evidence: bool = False,
        length: int = USUAL,
    ):
        """`whole`: λ0. `granularities`: of `token`, `sentence`, `global`, those that facets are made of. `gates`: by facet and text, or learnt
        constants. `pooled`: the whole text is its `first` token's state, or the `mean`. `kinds`: a learnt vector is added to the states of
        questions, another to those of documents. `words`: size of the vocabulary if words are weighted, else 0. `intent_temperature`: τ_f.
        `evidence`: facet blocks are multiplied by the largest p(k | sentence). `length`: tokens at which the length of a text counts as 1."""
        super().__init__()
        if not 0 <= whole <= 1:
            raise ValueError(f"whole is λ0, the weight of the whole text, from 0 to 1, not {whole}")
        if gates not in GATES:
            raise ValueError(choice("gates", gates, list(GATES)))
        if pooled not in ("first", "mean"):
            raise ValueError(choice("pooled", pooled, ["first", "mean"]))
        if unknown := next((g for g in granularities if g not in f.GRAINS), None):
            raise ValueError(choice("granularities", unknown, list(f.GRAINS)))
        if not granularities:
            raise ValueError(f"granularities is empty; name at least one of {', '.join(f.GRAINS)}")
        self.dim, self.facets, self.whole, self.gates, self.pooled = dim, tuple(facets), whole, gates, pooled
        self.granularities, self.kinds, self.words, self.length = tuple(granularities), kinds, words, length
        self.intent_temperature, self.evidence = intent_temperature, evidence
        k = len(self.facets)
        self.anchors = nn.Parameter(f.unit(nn.init.orthogonal_(torch.empty(k, dim))))
        like = math.sqrt(dim) * torch.eye(dim)  # ℓ is divided by √d, as for anchors as long as the states; theirs is 1, and facets would start as one
        self.token_projection, self.sentence_projection, self.intent_projection = (nn.Parameter(like.clone()) for _ in range(3))
        self.position = nn.Parameter(torch.zeros(k, BINS))
        if gates == "adaptive":
            self.gate_hidden, self.gate = nn.Linear(3 * dim + 1, GATE), nn.Linear(GATE, 3)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        else:
            self.gate_constant = nn.Parameter(torch.zeros(3))
        self.out, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        with torch.no_grad():
            self.out.weight.copy_(torch.eye(dim))
            self.out.bias.zero_()
        self.kind = nn.Parameter(torch.zeros(2, dim)) if kinds else None
        self.word_logs = nn.Parameter(torch.zeros(words)) if words else None
        self.register_buffer("closed", torch.tensor([grain not in self.granularities for grain in f.GRAINS]), persistent=False)

    def forward(self, features: dict[str, Any], task: str | None = None, facet: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` (B, (K + 1)·d): the document side, or for `task="query"` what asks, its facets weighed by its intent, by
        `facet`, or evenly for `facet="all"`. Also `facet_vectors` (B, K + 1, d), `intent` (B, K), `sentence_roles` (B, n, K) as log-probs,
        `sentence_mask` (B, n), `gates` (B, K, 3) in the order of GRAINS, and `evidence` (B, K). Raises ValueError for a `facet` of a document."""
        if facet is not None and task != "query":
            raise ValueError("a facet weighs what asks: give it to encode_query; a document is stored with every facet")
        states, owners = features["token_embeddings"], features["sentence_ids"]
        mask = owners >= 0
        some = mask.any(-1, keepdim=True)
        token_logits = f.anchor_logits(states, self.anchors, self.token_projection)
        weights = counted = torch.ones_like(states[..., 0])
        if self.word_logs is not None:
            words = self.word_logs[features["input_ids"]]
            weights, token_logits = words.exp(), token_logits + words[:, None]
            counted = weights * f.damping(features["input_ids"], mask).to(weights)
        first = torch.arange(owners.shape[1], device=owners.device) == 0
        whole_shares = f.shares(mask, counted) if self.pooled == "mean" else (first & some).to(states)
        sentence_shares, there = f.sentence_shares(owners, weights)
        every = torch.cat([sentence_shares, f.places(token_logits, mask), whole_shares[:, None]], 1)
        pooled = every @ states  # (B, n + K + 1, d): all that is read of the tokens, in one product
        if self.kind is not None:  # a state that all tokens share is one that all means share, and changes no place
            pooled = pooled + self.kind[int(task == "query")] * torch.cat([there, some.expand(-1, len(self.facets) + 1)], 1)[..., None]
        sentence, by_token, whole = pooled.split([there.shape[1], len(self.facets), 1], 1)
        sentence_logits = f.anchor_logits(sentence, self.anchors, self.sentence_projection) + self._position(there)
        by_sentence = f.places(sentence_logits, there) @ sentence
        grains = torch.stack([by_token, by_sentence, whole.expand_as(by_token)], -2)  # (B, K, 3, d)
        gates = self._gates(grains, mask.sum(-1))
        mixed = self.norm(self.out((gates[..., None, :] @ grains)[..., 0, :]))
        vectors = f.unit(torch.cat([whole, mixed * some[..., None]], 1))

        roles = f.kinds(sentence_logits)
        evidence = (roles.exp() * there[..., None]).amax(1)
        intent = (whole[:, 0] @ (self.anchors @ self.intent_projection).T / (math.sqrt(self.dim) * self.intent_temperature)).softmax(-1)
        found = f.document_side(vectors, self.whole)
        if self.evidence:
            found = f.weighed(found, evidence)
        if task == "query":
            found = f.weighed(found, intent if facet is None else self._weights(facet, found))
        return features | {
            "sentence_embedding": found,
            "facet_vectors": vectors,
            "intent": intent,
            "sentence_roles": roles,
            "sentence_mask": there,
            "gates": gates,
            "evidence": evidence,
        }

    def _position(self, there: Tensor) -> Tensor:
        """What the relative place of each sentence says for each facet (B, K, n)."""
        place = torch.arange(there.shape[1], device=there.device) / (there.sum(-1, keepdim=True) - 1).clamp(min=1)
        return self.position[:, (place * BINS).long().clamp(max=BINS - 1)].transpose(0, 1)

    def _gates(self, grains: Tensor, tokens: Tensor) -> Tensor:
        """γ (B, K, 3), on the simplex; 0 for a grain that is left out."""
        if self.gates == "adaptive":
            long = (torch.log1p(tokens.to(grains.dtype)) / math.log1p(self.length))[:, None, None].expand(-1, grains.shape[1], 1)
            logits = self.gate(torch.relu(self.gate_hidden(torch.cat([grains.flatten(-2), long], -1))))
        else:
            logits = self.gate_constant.expand(*grains.shape[:2], 3)
        return logits.masked_fill(self.closed, -math.inf).softmax(-1)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _weights(self, facet: str, like: Tensor) -> Tensor:
        return like.new_tensor(facet_weights(self.facets, facet)).expand(len(like), -1)

    def start(self, *, centroids: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Before training: anchors at the mean sentence of each facet (K, d), weights of words (V,), of which 0 counts as very little."""
        with torch.no_grad():
            if centroids is not None:
                self.anchors.copy_(f.unit(centroids))
            if weights is not None:
                assert self.word_logs is not None, "words are not weighted"
                self.word_logs.copy_(weights.clamp(min=1e-3).log())

    def get_embedding_dimension(self) -> int:
        return (len(self.facets) + 1) * self.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        hub: dict[str, Any] = {name: value for name, value in kwargs.items() if name in HUB and value is not None}
        model = cls(**cls.load_config(model_name_or_path, subfolder=subfolder, **hub))
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=model, **hub)
        return model


def build(
    base: str | Path, *, weights: Tensor | None = None, device: str | None = None, length: int | None = None, **options: Any
) -> SentenceTransformer:
    """A model over a base: the folder or hub id of a transformers encoder. `weights` (V,) of words, where they are to be weighted; `length`: the
    most tokens that are read, by default as many as the base reads, 512 at most; `options`: those of FacetPooling."""
    backbone = Sentencewise(str(base))
    limits = [backbone.max_seq_length, getattr(backbone.config, "max_position_embeddings", None)]  # a tokenizer without one has 1e30
    most = min((limit for limit in limits if limit), default=USUAL)
    if length is not None and length > most:
        raise ValueError(f"it reads {most} tokens at most, not {length}; lower model.length")
    backbone.max_seq_length = length or min(most, USUAL)
    words = 0 if weights is None else len(weights)
    pooling = FacetPooling(backbone.get_embedding_dimension(), words=words, length=backbone.max_seq_length, **options)
    pooling.start(weights=weights)
    return SentenceTransformer(modules=[backbone, pooling], device=device, similarity_fn_name="dot")


def is_faceted(name: str | Path) -> bool:
    """Whether a folder, or a model of the hub, is a UniFAR-style one."""
    path = load_file_path(str(name), MODULES, local_files_only=os.path.isdir(name))
    if path is None:
        return False
    return any(module["type"] == _type(FacetPooling) for module in json.loads(Path(path).read_text(encoding="utf-8")))


def load(name: str | Path, device: str | None = None) -> SentenceTransformer:
    """A saved model with its prompts. The same as SentenceTransformer(name, trust_remote_code=True), without trusting any code but this."""
    path = load_file_path(str(name), MODULES)
    if path is None:
        raise ValueError(f"{name} holds no sentence-transformers model: there is no {MODULES}")
    classes = {_type(cls): cls for cls in (Sentencewise, FacetPooling)}
    modules = []
    for module in json.loads(Path(path).read_text(encoding="utf-8")):
        if module["type"] not in classes:
            raise ValueError(f"{name} is no UniFAR-style model: it has a module {module['type']}")
        modules.append(classes[module["type"]].load(str(name), subfolder=module["path"]))
    settings = load_file_path(str(name), SETTINGS)
    saved = json.loads(Path(settings).read_text(encoding="utf-8")) if settings else {}
    return SentenceTransformer(modules=modules, device=device, **{key: saved[key] for key in KEPT if saved.get(key)})


def pooling_of(model: SentenceTransformer) -> FacetPooling:
    """Raises ValueError when the model has no facets."""
    last = list(model.children())[-1]
    if not isinstance(last, FacetPooling):
        raise ValueError(f"the model ends in {type(last).__name__}, not in FacetPooling")
    return last


def _type(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
