"""A text as K + 1 unit vectors, one of the whole and one for each facet: how they are pooled, scored and trained.

UniFAR (2602.23766) can only be read in its abstract and in digests. Facet anchors shared by documents and questions, three grains, contrastive and
KL terms are theirs; every equation here is the reconstruction "R1" of them [inferred]: what is built of it is UniFAR-style.

Shapes: B texts, L tokens, n sentences, K facets, width d. Scores are inner products of concatenated vectors: a document is stored as
`document_side`, (K + 1)·d numbers, and what asks has its facet blocks multiplied by the weights of the facets (`weighed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12
GRAINS = ("token", "sentence", "global")


# --- pooling ---


def anchor_logits(states: Tensor, anchors: Tensor, projection: Tensor) -> Tensor:
    """ℓ_ki = a_k · (W x_i) / √d (B, K, L), of states (B, L, d), anchors (K, d) and W (d, d). Step (A) of R1.

    The anchors are projected instead of the states: the same number, at K instead of L products with W.
    """
    return (states @ (anchors @ projection).T).transpose(1, 2) / math.sqrt(states.shape[-1])


def places(logits: Tensor, mask: Tensor) -> Tensor:
    """β (B, K, L): where each facet is in a text, softmax over its positions. Exactly 0 where `mask` (B, L) is false, so all 0 for an empty text."""
    held = logits.masked_fill(~mask[:, None], -math.inf)
    top = held.amax(-1, keepdim=True).clamp(min=torch.finfo(held.dtype).min)
    weights = (held - top.detach()).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=_tiny(weights))


def kinds(logits: Tensor) -> Tensor:
    """log p(k | x_i) (B, L, K): which facet an element is of, softmax over the facets of the same logits (B, K, L)."""
    return logits.transpose(1, 2).log_softmax(-1)


def shares(mask: Tensor, weights: Tensor) -> Tensor:
    """What each token in `mask` (B, L) counts in a mean by `weights` (B, L) > 0: rows that sum to 1, or are all 0 for an empty text."""
    held = weights * mask
    return held / held.sum(-1, keepdim=True).clamp(min=_tiny(held))


def sentence_shares(sentence_ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the mean of each sentence (B, n, L), and which sentences there are (B, n). Step (G) of R1.

    `sentence_ids` (B, L): -1 outside.
    """
    n = max(int(sentence_ids.max()) + 1, 1) if sentence_ids.numel() else 1
    spans = sentence_ids[:, None] == torch.arange(n, device=sentence_ids.device)[:, None]
    return shares(spans, weights[:, None]), spans.any(-1)


def damping(ids: Tensor, mask: Tensor) -> Tensor:
    """(1 + ln n) / n for each token of a text in which its word stands n times (B, L), of ids (B, L): together they weigh 1 + ln n, as in TF-IDF."""
    if not mask.any():
        return torch.ones_like(ids, dtype=torch.float32)
    keys = ids + (int(ids.max()) + 1) * torch.arange(len(ids), device=ids.device)[:, None]
    n = torch.bincount(keys[mask], minlength=int(keys.max()) + 1)[keys].clamp(min=1).float()
    return (1 + n.log()) / n


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; 0 stays 0."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=_tiny(vectors))


def _tiny(like: Tensor) -> float:
    """What is divided by at least: in half precision TINY would be 0."""
    return max(TINY, torch.finfo(like.dtype).tiny)


# --- scores: step (S) of R1 ---


def document_side(vectors: Tensor, whole: float) -> Tensor:
    """[√λ0 z_0 ; √(1 - λ0) z_1 ; …] (…, (K + 1)·d) of unit vectors (…, K + 1, d); `whole` is λ0, the weight of the whole text."""
    scale = vectors.new_full((vectors.shape[-2], 1), math.sqrt(1 - whole))
    scale[0] = math.sqrt(whole)
    return (vectors * scale).flatten(-2)


def weighed(documents: Tensor, weights: Tensor) -> Tensor:
    """What asks with document-side vectors (…, (K + 1)·d) when facets weigh `weights` (…, K). Its inner product with a document is
    λ0 z_0·z_0' + (1 - λ0) Σ_k w_k z_k·z_k'."""
    blocks = documents.unflatten(-1, (weights.shape[-1] + 1, -1))
    return torch.cat([blocks[..., :1, :], blocks[..., 1:, :] * weights[..., None]], -2).flatten(-2)


# --- losses: steps (C) and (K) of R1 ---


@dataclass(frozen=True, slots=True)
class Candidates:
    """Scores (B, C) of each query with each candidate, the column of its positive (B,), and which candidates count (B, C)."""

    scores: Tensor
    positive: Tensor
    counts: Tensor


def candidates(queries: Tensor, positives: Tensor, negatives: Tensor | None = None, asking: Tensor | None = None) -> Candidates:
    """Every query (B, D) with all positives (B, D) and all hard negatives (B, D) of the batch. `asking` (B, D): the documents that ask, if they do.

    What is 0 everywhere is no candidate, nor is a second copy of the query's own positive, or of the document that asks: the same document may stand
    in a batch more than once.
    """
    every = positives if negatives is None else torch.cat([positives, negatives])
    with torch.no_grad(), torch.autocast(every.device.type, enabled=False):  # in bf16 a copy is not told from what is near
        exact = every.to(torch.promote_types(every.dtype, torch.float32))
        copies = _same(exact[: len(positives)], exact)
        if asking is not None:
            copies |= _same(asking.to(exact.dtype), exact)
        own = torch.eye(len(positives), len(every), dtype=torch.bool, device=every.device)
        counts = own | ~(copies | (exact.norm(dim=-1) <= TINY))
    return Candidates(queries @ every.T, torch.arange(len(queries), device=every.device), counts)


def _same(a: Tensor, b: Tensor) -> Tensor:
    """Which of a (B, D) and b (C, D) are equal to rounding (B, C)."""
    return (a @ b.T) >= (1 - 1e-5) * a.norm(dim=-1)[:, None] * b.norm(dim=-1)


def info_nce(found: Candidates, temperature: float) -> Tensor:
    """-log exp(s⁺/τ) / Σ exp(s/τ) over the candidates that count, mean over the queries."""
    logits = (found.scores / temperature).masked_fill(~found.counts, -math.inf)
    return F.cross_entropy(logits, found.positive)


def triplet(found: Candidates, margin: float) -> Tensor:
    """max(0, ‖q - d⁺‖ - ‖q - d⁻‖ + margin), d⁻ the nearest negative that counts, where ‖q - d‖² = 2 - 2s. The form of SPECTER and ASPIRE."""
    distance = (2 - 2 * found.scores).clamp(min=TINY).sqrt()
    own = F.one_hot(found.positive, found.scores.shape[1]).bool()
    nearest = distance.masked_fill(own | ~found.counts, math.inf).amin(-1)
    return (distance[own] - nearest + margin).clamp(min=0).mean()


def smoothed(labels: Tensor, facets: int, smoothing: float) -> Tensor:
    """One-hot labels (…) as distributions (…, K): `smoothing` is shared out evenly."""
    return F.one_hot(labels, facets) * (1 - smoothing) + smoothing / facets


def kl(target: Tensor, log_p: Tensor) -> Tensor:
    """KL(target ‖ p), mean over all but the last dimension; 0 where there is nothing."""
    if not len(log_p):
        return log_p.sum()
    return (torch.special.xlogy(target, target) - target * log_p).sum(-1).mean()


def orthogonality(anchors: Tensor) -> Tensor:
    """‖ÂÂᵀ - I‖², Â the anchors at length 1: keeps them from becoming one."""
    directions = unit(anchors)
    return (directions @ directions.T - torch.eye(len(anchors), dtype=anchors.dtype, device=anchors.device)).square().sum()


def collapse(vectors: Tensor) -> Tensor:
    """Mean |cos(z_j, z_k)| over pairs j ≠ k of facet vectors, of unit vectors (B, K + 1, d): above 0.99 the facets are one. Check 6.7."""
    facets = vectors[:, 1:]
    cosines = (facets @ facets.transpose(1, 2)).abs()
    j, k = torch.triu_indices(facets.shape[1], facets.shape[1], 1).to(cosines.device)
    return cosines[:, j, k].mean()
