"""The loss of a UniFAR-style model, for the trainer of sentence-transformers: pairs, questions and roles of sentences, all in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from tacit.retrieval import facets as f
from tacit.retrieval.modules import pooling_of

PAIRED, ASKED, LABELLED = ("anchor", "positive", "negative"), ("question", "answer"), ("labelled",)
COLUMNS = (*PAIRED, *ASKED, *LABELLED)  # of a data set, in this order
FACET, INTENT, ROLES = 0, 1, 2  # of `label` (B, 2 + most sentences): facet of the pair, of the question, then of the sentences; -1: none


@dataclass(frozen=True, slots=True)
class LossOptions:
    """L = L_dd + `question` · L_qd + `roles` · (K1 + K2) + `orthogonality` · ‖ÂÂᵀ - I‖². Step (T) of R1 [inferred].

    `pairs`: 0 trains on questions alone. `kl`: what the intent of a question is compared with, its `label`, or how well each facet `match`es the
    answer. `hard`: whether hard negatives are used. `triplet` takes `margin` instead of `temperature`.
    """

    temperature: float = 0.05
    pairs: float = 1.0
    question: float = 1.0
    roles: float = 0.2
    orthogonality: float = 0.01
    smoothing: float = 0.1
    form: Literal["infonce", "triplet"] = "infonce"
    margin: float = 1.0
    kl: Literal["labels", "match"] = "labels"
    hard: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that this loss reads: a data set needs no others. A term that weighs 0 is not computed, so that it changes no bit."""
        pairs = PAIRED if self.hard else PAIRED[:2]
        return (*(pairs if self.pairs else ()), *(ASKED if self.question else ()), *(LABELLED if self.roles else ()))


class FacetLoss(nn.Module):
    """Returns its terms by name, weighted; the trainer logs each and adds them up."""

    def __init__(self, model: SentenceTransformer, options: LossOptions | None = None):
        super().__init__()
        self.model, self.options = model, options or LossOptions()
        if not (self.options.pairs or self.options.question):
            raise ValueError("there is nothing to learn from: pairs and question both weigh 0")

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> dict[str, Tensor]:
        """`sentence_features` in the order of `options.columns`; `labels` as at the head of this file."""
        o, pooling = self.options, pooling_of(self.model)
        given = dict(zip(o.columns, sentence_features, strict=True))
        terms: dict[str, Tensor] = {}
        if o.pairs:
            read = [self._read(given[name])["sentence_embedding"] for name in o.columns[: 3 if o.hard else 2]]
            anchor, positive, negative = read if o.hard else (*read, None)
            asks = f.weighed(anchor, self._pair_weights(labels[:, FACET], len(pooling.facets)).to(anchor))
            terms["pairs"] = o.pairs * self._contrast(asks, positive, negative, anchor)
        if o.question:
            question, answer = self._read(given["question"], task="query"), self._read(given["answer"])
            terms["question"] = o.question * self._contrast(question["sentence_embedding"], answer["sentence_embedding"])
            if o.roles:
                terms["intent"] = o.roles * self._intent(question, answer, labels[:, INTENT])
        if o.roles:
            terms["roles"] = o.roles * self._roles(self._read(given["labelled"]), labels[:, ROLES:])
        if o.orthogonality:
            terms["orthogonality"] = o.orthogonality * f.orthogonality(pooling.anchors)
        return terms

    def _read(self, features: dict[str, Any], task: str = "document") -> dict[str, Any]:
        return self.model(dict(features), task=task)

    def _contrast(self, asks: Tensor, positives: Tensor, negatives: Tensor | None = None, asking: Tensor | None = None) -> Tensor:
        found = f.candidates(asks, positives, negatives, asking)
        return f.info_nce(found, self.options.temperature) if self.options.form == "infonce" else f.triplet(found, self.options.margin)

    @staticmethod
    def _pair_weights(facet: Tensor, facets: int) -> Tensor:
        """w (B, K): one-hot for a pair that is alike in one facet, even for others."""
        one = nn.functional.one_hot(facet.clamp(min=0), facets)
        return torch.where(facet[:, None] >= 0, one.double(), 1 / facets)

    def _roles(self, found: dict[str, Any], roles: Tensor) -> Tensor:
        """K1, over the sentences that have a label; what was cut off has none."""
        log_p = found["sentence_roles"]
        n = min(log_p.shape[1], roles.shape[1])
        labelled = found["sentence_mask"][:, :n] & (roles[:, :n] >= 0)
        return f.kl(f.smoothed(roles[:, :n][labelled], log_p.shape[-1], self.options.smoothing), log_p[:, :n][labelled])

    def _intent(self, question: dict[str, Any], answer: dict[str, Any], intent: Tensor) -> Tensor:
        """K2, over the questions whose facet is known; with `kl: match` over all."""
        log_p = question["intent"].clamp(min=f.TINY).log()
        if self.options.kl == "match":
            fit = (question["facet_vectors"] * answer["facet_vectors"].detach()).sum(-1)[:, 1:]
            return f.kl((fit / self.options.temperature).softmax(-1).detach(), log_p)
        known = intent >= 0
        return f.kl(f.smoothed(intent[known], log_p.shape[-1], self.options.smoothing), log_p[known])

    def get_config_dict(self) -> dict[str, Any]:
        return asdict(self.options)


def columns_of(options: LossOptions, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the columns that this loss reads, and their labels."""
    return [{name: row[name] for name in (*options.columns, "label")} for row in rows]
