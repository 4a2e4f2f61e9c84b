"""Decoder: what moves a batch of sequences through a language model one token at a time. Samplers and searches are written on top of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(slots=True)
class Handle:
    """R sequences in the middle of decoding: `logits` (R, V) predict the next token of each, `state` is the business of the decoder that made it."""

    logits: Tensor
    state: Any

    @property
    def rows(self) -> int:
        return len(self.logits)


class Decoder(Protocol):
    """Prompts in, logits out, one step at a time; sequences can be duplicated, dropped and continued from embeddings."""

    def session(self) -> AbstractContextManager[None]:
        """While it is open the weights do not change, so what depends on them alone is prepared once. Every method works without, only slower."""
        ...

    def prefill(self, prompts: list[list[int]]) -> Handle:
        """Reads R prompts, of any lengths >= 1."""
        ...

    def fork(self, handle: Handle, rows: Tensor) -> Handle:
        """A handle of its own over these rows (N,) int64, in that order, a row as often as it is named; `handle` stays as it was."""
        ...

    def keep(self, handle: Handle, rows: Tensor) -> None:
        """Reduces `handle` in place to these different rows (N,) int64, in that order. Cheapest where rows[i] is i."""
        ...

    def step(self, handle: Handle, tokens: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Appends one position to each row, given as tokens (R,) int64 or as input embeddings (R, D), in place; returns the new logits (R, V)."""
        ...

    def release(self, handle: Handle) -> None:
        """Frees what the handle holds; it is of no use afterwards."""
        ...
