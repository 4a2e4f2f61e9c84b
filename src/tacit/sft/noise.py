"""NEFTune: noise on embeddings in training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def embedding_noise(embedded: Tensor, alpha: float) -> Tensor:
    """Uniform noise of the shape of `embedded` (B, L, D), in ±α/√(L D). Source: Jain et al. 2023 (arXiv 2310.05914), algorithm 1.

    L is the width of the row, padding and packed neighbours included.
    """
    return torch.empty_like(embedded).uniform_(-1.0, 1.0) * (alpha / math.sqrt(embedded.shape[-2] * embedded.shape[-1]))


@contextmanager
def neftune(model: Any, alpha: float) -> Iterator[None]:
    """Adds such noise to the input embeddings of a causal LM in training mode, while the context lasts. Nothing happens where alpha is 0."""
    if not alpha:
        yield
        return

    def hook(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        return embedded + embedding_noise(embedded.detach(), alpha) if module.training else embedded

    with model.get_input_embeddings().register_forward_hook(hook):
        yield
